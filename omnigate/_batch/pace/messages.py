"""What a worker and a shared pacer tell each other: one `Report`, one `Grant`. Sans-I/O.

msgpack arrays, a few dozen bytes each. No key travels, only a digest of it. A worker's clock is never
compared with another's: every time in a grant is a duration from the moment the worker sent its report, and
times in a report are the pacer's own, as nearly as the worker can tell them (`Head`).

What comes from outside is bounded here: the length of a message, of each list and name, the range of each
number.
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Final, TypeVar

import msgspec

from omnigate._transport.messages import Origin

__all__ = ["Grant", "Head", "ModelGrant", "ModelReport", "PacerMessageError", "Report", "key_digest"]

T = TypeVar("T")

VERSION: Final = 1

MESSAGE_BYTES_MAX: Final = 1 << 18
"""The longest message that is read."""

HEADS_MAX: Final = 8

MODELS_MAX: Final = 64

LATENCIES_MAX: Final = 128

COUNT_MAX: Final = 1 << 30

UNLIMITED: Final = -1
"""`Grant.sends` when the gateway has no limit."""

_SECONDS_MAX: Final = 3_600.0

Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=_SECONDS_MAX)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]


class PacerMessageError(ValueError):
    """A message between a worker and a shared pacer that is not one."""


class Head(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """What an answer says of the limit.

    Attributes:
        sent_at: a time of the pacer's clock, not later than that at which the request was sent.
        received_at: one not earlier than that at which its answer came.
        limit: calls allowed in a window.
        counted: how many had been counted when the request arrived; above the limit for a rejection.
        reset_seconds: whole seconds that were left of the window then.
    """

    sent_at: float
    received_at: float
    limit: Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)]
    counted: Count
    reset_seconds: Annotated[int, msgspec.Meta(ge=0, le=60)]


class ModelReport(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """How the calls of one model went since the last report.

    Attributes:
        model: its name.
        in_flight: calls in flight.
        want: how many could be in flight if the limit were higher, as far as it knows.
        limit: how many it allows.
        latencies: seconds, of calls that got a response; a sample if there were many.
        overloads: seconds since those calls were sent that failed from overload.
        is_forgiven: whether the failures before turned out to have another cause.
    """

    model: Name
    in_flight: Count
    want: Count
    limit: Count
    latencies: Annotated[list[Seconds], msgspec.Meta(max_length=LATENCIES_MAX)] = []
    overloads: Annotated[list[Seconds], msgspec.Meta(max_length=LATENCIES_MAX)] = []
    is_forgiven: bool = False


class Report(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """What a worker tells the shared pacer.

    Attributes:
        version: of these messages.
        key: a digest of the gateway's address and the key (`key_digest`).
        worker: the worker's name, its own for each process, event loop and key.
        epoch: of the pacer that the worker has last heard; 0 for none.
        lease: the number of the last lease that it has received.
        is_hungry: whether a call waits for a lease now.
        want: how many more sends it could use.
        in_flight: its calls in flight.
        returned: how many sends of its lease it gives back with this report.
        unleased: how many it has sent without a lease since the last report.
        spent: how many it has sent in the present window, with and without.
        spent_seconds: when that window is over, as far as it knows; 0 if it knows of none.
        is_free: whether an answer has told by having no headers that there is no limit.
        closed_seconds: for how long the gateway has said that nothing may be sent; 0 if it has not.
        is_leaving: whether this is its last report.
        heads: the answers that say most; old ones are told again to a pacer that does not know them.
        models: how the calls of its models went.
        period_seconds: the length of a window, as the last pacer told it; 0 if none has.
    """

    version: int
    key: Annotated[bytes, msgspec.Meta(min_length=8, max_length=64)]
    worker: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    epoch: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] = 0
    lease: Count = 0
    is_hungry: bool = False
    want: Count = 0
    in_flight: Count = 0
    returned: Count = 0
    unleased: Count = 0
    spent: Count = 0
    spent_seconds: Seconds = 0.0
    is_free: bool = False
    closed_seconds: Seconds = 0.0
    is_leaving: bool = False
    heads: Annotated[list[Head], msgspec.Meta(max_length=HEADS_MAX)] = []
    models: Annotated[list[ModelReport], msgspec.Meta(max_length=MODELS_MAX)] = []
    period_seconds: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0.0


class ModelGrant(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """How many calls of a model a worker may have in flight; 0 if it has to find out on its own."""

    model: Name
    limit: Count


class Grant(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """What the shared pacer answers. All durations count from when the worker sent its report.

    Attributes:
        version: of these messages.
        epoch: which pacer this is; another one knows nothing of earlier leases.
        now: the pacer's clock when it answered.
        lease: the number of this lease.
        sends: how many more sends the worker may make; `UNLIMITED` where the gateway has no limit.
        valid_seconds: until when it may make those, and what it has left of earlier leases.
        ask_seconds: when to report again at the latest.
        again_seconds: when it may report again if a call waits.
        closed_seconds: before then nothing more is granted to anyone; 0 if something may be.
        limit: calls allowed in a window; 0 if unknown.
        window_seconds: when the present window is over for certain.
        period_seconds: the length of a window.
        models: limits of the models it has reported.
    """

    version: int
    epoch: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    now: float
    lease: Count
    sends: Annotated[int, msgspec.Meta(ge=UNLIMITED, le=COUNT_MAX)] = 0
    valid_seconds: Seconds = 0.0
    ask_seconds: Seconds = 0.0
    again_seconds: Seconds = 0.0
    closed_seconds: Seconds = 0.0
    limit: Count = 0
    window_seconds: Seconds = 0.0
    period_seconds: Seconds = 60.0
    models: Annotated[list[ModelGrant], msgspec.Meta(max_length=MODELS_MAX)] = []


_encode = msgspec.msgpack.Encoder().encode

_reports: Final = msgspec.msgpack.Decoder(Report)

_grants: Final = msgspec.msgpack.Decoder(Grant)


def encode(message: Report | Grant) -> bytes:
    """Return a message as bytes."""
    return _encode(message)


def decode_report(data: bytes) -> Report:
    """Return the report that bytes are.

    Raises:
        PacerMessageError: they are none.
    """
    report = _decode(_reports, data, "report")
    numbers = [report.closed_seconds, report.spent_seconds, report.period_seconds]
    for head in report.heads:
        numbers += (head.sent_at, head.received_at)
    for model in report.models:
        numbers += model.latencies
        numbers += model.overloads
    _check(report.version, numbers, "report")
    return report


def decode_grant(data: bytes) -> Grant:
    """Return the grant that bytes are.

    Raises:
        PacerMessageError: they are none.
    """
    grant = _decode(_grants, data, "grant")
    numbers = [grant.now, grant.valid_seconds, grant.ask_seconds, grant.again_seconds]
    _check(
        grant.version, [*numbers, grant.closed_seconds, grant.window_seconds, grant.period_seconds], "grant"
    )
    return grant


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes, what: str) -> T:
    if len(data) > MESSAGE_BYTES_MAX:
        raise PacerMessageError(
            f"a {what} must be at most {MESSAGE_BYTES_MAX:,} bytes long, got {len(data):,}"
        )
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise PacerMessageError(f"not a {what}: {error}") from None


def _check(version: int, numbers: list[float], what: str) -> None:
    if version != VERSION:
        raise PacerMessageError(f"a {what} must be of version {VERSION}, got {version}: update both sides")
    if not all(map(math.isfinite, numbers)):
        raise PacerMessageError(f"not a {what}: a number that is not finite")


def key_digest(origin: Origin, key: bytes) -> bytes:
    """Return what stands for a key at a gateway; the key cannot be told from it.

    Args:
        origin: the gateway's scheme, host and port.
        key: the gateway key, which has too many random bits to be guessed.
    """
    scheme, host, port = origin
    address = f"{scheme}://{host}:{port}"
    return hashlib.blake2b(address.encode() + b"\0" + key, digest_size=16, person=b"omnigate pacer").digest()
