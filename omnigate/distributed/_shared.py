"""One pacer for all workers, of any number of keys: reports in, grants out, as bytes. Sans-I/O.

However the bytes travel, this is the one end of the protocol (`omnigate._batch.pace.messages`); a worker's
batch is the other. Each key has its own `Leases`. Memory is bounded: so many keys, and so many workers of
each; those used longest ago are forgotten.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec

from omnigate._batch.pace.messages import PacerMessageError, Report, decode_report, encode
from omnigate.distributed._key_state import KeyState
from omnigate.distributed._leases import Leases

__all__ = ["SharedPacer", "exchange_stored", "key_of"]

_KEYS_MAX: Final = 1_024

_states: Final = msgspec.msgpack.Decoder(KeyState)

_encode: Final = msgspec.msgpack.Encoder().encode


class SharedPacer:
    """Shares the limits of the gateway's keys among many workers.

    Times are seconds of one clock, which may be any. Not to be called from several threads at once.

    Args:
        uniform: draws a number between two, evenly.
    """

    def __init__(self, *, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self._keys: OrderedDict[bytes, Leases] = OrderedDict()

    def exchange(self, report: bytes, now: float) -> bytes:
        """Learn from a worker's report and return the grant to answer it with.

        Args:
            report: as the worker has sent it.
            now: the present time in seconds.

        Raises:
            PacerMessageError: it is no report; nothing has changed.

        """
        told = decode_report(report)
        keys = self._keys
        leases = keys.get(told.key)
        if leases is None:
            if len(keys) >= _KEYS_MAX:
                self._forget()
            leases = keys[told.key] = Leases(KeyState.new(now), self._uniform)
        keys.move_to_end(told.key)
        return encode(leases.exchange(told, now))

    def _forget(self) -> None:
        """Forget a key: the one used longest ago, if possible without workers."""
        keys = self._keys
        oldest = next(iter(keys))
        del keys[next((key for key, leases in keys.items() if leases.is_idle), oldest)]

    def __repr__(self) -> str:
        workers = sum(len(leases.state.workers) for leases in self._keys.values())
        return f"<SharedPacer: {len(self._keys)} keys, {workers} workers>"


def exchange_stored(
    state: bytes | None,
    report: bytes,
    now: float,
    *,
    uniform: Callable[[float, float], float] = random.uniform,
) -> tuple[bytes, bytes]:
    """Do one exchange with a state that is stored elsewhere, such as in Redis, one for each key (`key_of`).

    Args:
        state: as returned by the last exchange of any worker with this key; None at first.
        report: as the worker has made it.
        now: the present time in seconds, by one clock for all workers: the store's.
        uniform: draws a number between two, evenly.

    Returns:
        The state to store, if no other exchange has changed it meanwhile (else do this again), and the grant.

    Raises:
        PacerMessageError: it is no report, or no state.

    """
    told = decode_report(report)
    known = KeyState.new(now)
    if state is not None:
        try:
            known = _states.decode(state)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise PacerMessageError(f"not the state of a pacer: {error}") from None
    leases = Leases(known, uniform)
    grant = leases.exchange(told, now)
    leases.store()
    return _encode(leases.state), encode(grant)


def key_of(report: bytes) -> bytes:
    """Return what stands for the key that a report is about.

    Raises:
        PacerMessageError: it is no report.

    """
    told: Report = decode_report(report)
    return told.key
