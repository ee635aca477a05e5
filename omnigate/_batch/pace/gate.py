"""The gate of one key: the pacer's verdicts turned into waiting, and the models behind it.

One per event loop, address and key: all batches with that key share the gateway's limit. They take turns.
Only the first in line watches the clock; when it passes or is cancelled, it wakes the next. There is no
background task.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import anyio

from omnigate._batch.pace.address import Address
from omnigate._batch.pace.lease import LeasePacer
from omnigate._batch.pace.link import Correspondence
from omnigate._batch.pace.messages import MODELS_MAX
from omnigate._batch.pace.pacer import Pacer, Send
from omnigate._batch.pace.patience import Patience, Reason
from omnigate._batch.pace.queue import FairQueue, Flow, Waiter
from omnigate._batch.pace.shared_concurrency import SharedConcurrency
from omnigate._batch.pace.upstream import Upstream
from omnigate._limits import RateLimit
from omnigate._runtime.loops import PerLoop, clock_of
from omnigate._transport.messages import Origin
from omnigate._wire.head import Head, rate_limit_of

logger: Final = logging.getLogger("omnigate")

_MODELS_MAX: Final = 256

_LOGGED_SECONDS: Final = 1.0
"""A shorter wait after a rejection is not logged."""


class Gate:
    """Lets sends pass at the pacer's pace.

    Attributes:
        address: where the key is used.
        clock: the event loop's clock, also the pacer's.
        opens_at: the time (UTC) until which the first in line was last seen to wait, or None. For reprs,
            which can be called from any thread.
    """

    def __init__(self, address: Address) -> None:
        self.address: Address = address
        self.clock: Callable[[], float] = address.clock
        self.opens_at: datetime | None = None
        self._pacer: Pacer | LeasePacer = Pacer(utc=time.time)
        self._correspondence: Correspondence | None = None
        self._queue = FairQueue(is_bounded=False)
        self._upstreams: OrderedDict[str, Upstream] = OrderedDict()

    @property
    def is_idle(self) -> bool:
        """Whether nobody uses it."""
        correspondence = self._correspondence
        if self._queue.count or (correspondence is not None and not correspondence.is_idle):
            return False
        return all(upstream.is_idle for upstream in self._upstreams.values())

    @property
    def rate_limit(self) -> int | None:
        """The key's limit in calls per minute; None if it is not known."""
        return self._pacer.limit

    def join_shared_pacer(self, key: bytes) -> Correspondence:
        """Return the talk with a shared pacer, which the caller has joined.

        Args:
            key: what stands for the key there (`key_digest`).
        """
        correspondence = self._correspondence
        if correspondence is None:
            assert isinstance(self._pacer, Pacer)
            pacer = self._pacer = LeasePacer(key, secrets.token_hex(8), self._pacer)
            correspondence = self._correspondence = Correspondence(
                pacer, self.clock, self._wake_all, self._shared_models
            )
            for upstream in self._upstreams.values():
                upstream.share_concurrency()
        correspondence.join()
        return correspondence

    def _wake_all(self) -> None:
        self._queue.wake()
        self.wake_upstreams()

    def _shared_models(self) -> list[tuple[SharedConcurrency, int, bool]]:
        """Return the models with calls, those used last, with their shared limits."""
        found = [upstream.shared() for upstream in reversed(self._upstreams.values()) if not upstream.is_idle]
        return [shared for shared in found if shared is not None][:MODELS_MAX]

    def upstream(self, model: str) -> Upstream:
        """Return what the calls of a model share."""
        upstreams = self._upstreams
        found = upstreams.get(model)
        if found is None:
            if len(upstreams) >= _MODELS_MAX:
                for name in [name for name, old in upstreams.items() if old.is_idle][: _MODELS_MAX // 4]:
                    del upstreams[name]
            found = upstreams[model] = Upstream(self.address, model)
            if self._correspondence is not None:
                found.share_concurrency()
        return found

    def wake_upstreams(self) -> None:
        """Wake all that may go now, whatever its model."""
        for upstream in list(self._upstreams.values()):
            upstream.wake()

    def try_pass(self, now: float) -> Send | None:
        """Return a send if one may go now and no other waits, else None."""
        if self._queue.count:
            return None
        return self._pacer.sent(now) if self._pacer.ask(now) <= now else None

    async def wait(self, flow: Flow, patience: Patience, *, is_again: bool) -> Send:
        """Wait in line and return a send that may go now.

        Args:
            flow: the batch's.
            patience: the item's.
            is_again: whether this is a resend, which precedes the batch's new sends.

        Raises:
            OutOfPatienceError: the item has waited for too long.
        """
        waiter = Waiter(flow, is_again=is_again)
        self._queue.add(waiter)
        send: Send | None = None
        try:
            while True:
                moment = math.inf
                if self._queue.first() is waiter:
                    now = self.clock()
                    moment = self._pacer.ask(now)
                    if moment <= now:
                        send = self._pacer.sent(now)
                        return send
                    self.opens_at = (
                        None if moment == math.inf else datetime.now(UTC) + timedelta(seconds=moment - now)
                    )
                await patience.wait(waiter.event, self.clock, moment, _window)
                if waiter.event.is_set():
                    waiter.event = anyio.Event()
        finally:
            self._queue.remove(waiter, has_passed=send is not None)
            self._queue.wake()

    def succeeded(self, send: Send, head: Head, now: float) -> None:
        """Record a success, whose head has the rate limit's headers."""
        if not self._pacer.confirmed(send, now):
            self._pacer.answered(send, now, rate_limit_of(head))
        if self._queue.count:
            self._queue.wake()

    def answered(self, send: Send, limit: RateLimit | None, now: float) -> None:
        """Record a failure with the rate limit's headers."""
        self._pacer.answered(send, now, limit)
        if self._queue.count:
            self._queue.wake()

    def rejected(self, send: Send, retry_after: float, limit: RateLimit | None) -> None:
        """Record that the gateway's own limit was exceeded."""
        now = self.clock()
        before = self._pacer.waiting_until(now)
        self._pacer.rejected(send, now, retry_after, limit)
        if before is None and retry_after >= _LOGGED_SECONDS:
            until = datetime.now(UTC) + timedelta(seconds=retry_after)
            logger.info(
                "batch: closed the gate for the key: rate limit exceeded; until %s UTC", f"{until:%H:%M:%S}"
            )
        self._queue.wake()

    def ended(self, send: Send) -> None:
        """Record a send that failed without the rate limit's headers, or was cancelled."""
        self._pacer.ended(send, self.clock())
        self._queue.wake()

    def room(self) -> int:
        """Return how many sends could go immediately."""
        return 0 if self._queue.count else self._pacer.room(self.clock())

    def waiting_seconds(self) -> float | None:
        """Return for how many more seconds all sends are held back; None if they are not."""
        now = self.clock()
        until = self._pacer.waiting_until(now)
        return None if until is None else until - now

    def __repr__(self) -> str:
        upstreams = list(self._upstreams.values())
        in_flight = sum(upstream.in_flight for upstream in upstreams)
        models = "".join(f", {upstream!r}" for upstream in upstreams[:8])
        return f"<Gate: {in_flight} in flight, {self._queue!r}, {self._pacer!r}{models}>"


class _Addresses:
    """The addresses used in one event loop."""

    def __init__(self, loop: Any) -> None:
        self.clock = _clock_of(loop)
        self._addresses: dict[Origin, Address] = {}

    def gate(self, origin: Origin, key: bytes) -> Gate:
        address = self._addresses.get(origin)
        if address is None:
            address = self._addresses[origin] = Address(self.clock)
        gate = address.gates.get(key)
        if gate is None:
            gate = address.gates[key] = Gate(address)
            address.forget_idle()
        return gate

    def __repr__(self) -> str:  # a key is not shown
        return f"<_Addresses: {list(self._addresses.values())!r}>"


_SHARED: Final = PerLoop(_Addresses)
"""What clients with the default transport share: a key has one limit, however many clients use it."""


class Gates:
    """The gates that a client's batches go through, one per event loop, address and key.

    Args:
        is_shared: whether other clients go through the same ones. A transport of the user's own may lead
            anywhere, so its client has its own.
    """

    __slots__ = ("_addresses",)

    def __init__(self, *, is_shared: bool = False) -> None:
        self._addresses: PerLoop[_Addresses] = _SHARED if is_shared else PerLoop(_Addresses)

    def clock(self) -> Callable[[], float]:
        """Return the running event loop's clock."""
        return self._addresses.current().clock

    def of(self, origin: Origin, key: bytes) -> Gate:
        """Return the gate of a key at an address.

        Args:
            origin: the address.
            key: the gateway key; empty for none.
        """
        return self._addresses.current().gate(origin, key)

    def __repr__(self) -> str:
        return f"<Gates: {self._addresses!r}>"


def _clock_of(loop: Any) -> Callable[[], float]:
    """Return the running event loop's clock, which does not keep the loop alive."""
    clock = clock_of(loop)
    if getattr(clock, "__self__", None) is not loop:
        return clock
    reference = weakref.ref(loop)

    def loop_time() -> float:
        alive = reference()
        return 0.0 if alive is None else alive.time()

    return loop_time


def _window() -> Reason:
    return "rate window"
