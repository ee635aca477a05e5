"""The call of an item of a batch: the attempts of any call, and what a batch does besides.

Each attempt passes the gate, what comes back teaches the pacer and the adaptive limit, and the gateway's own
429 uses up no retry. One that ends the batch teaches the pacer nothing: other batches of the client must not
wait for what this one did not.

After a stop nothing is sent, even by a worker whose wait has just finished.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar, TypeVarTuple

import anyio

from omnigate._batch.items import Item
from omnigate._batch.options import BatchOptions
from omnigate._batch.outcomes import Outcome
from omnigate._batch.pace.gate import Gate, seconds_at_limit
from omnigate._batch.pace.pacer import Send
from omnigate._calls.attempts import Call, Fetching
from omnigate._calls.retry import compute_delay
from omnigate._transport.carrier import Answer
from omnigate._wire.head import rate_limit_of
from omnigate.exceptions import (
    APIError,
    ClientClosedError,
    GatewayError,
    ProviderRateLimitError,
    TimeoutError,
)
from omnigate.models import ChatResponse

if TYPE_CHECKING:
    from omnigate._calls.session import Session

T = TypeVar("T")

Args = TypeVarTuple("Args")

_OVERLOADED: Final = frozenset({500, 502, 503, 504})


class _Stopped(Exception):
    """The batch was stopped before an item could be sent again."""


class Ready(NamedTuple):
    """An item that may be sent now.

    Attributes:
        item: the item.
        call: its request.
        digest: of the request, for the journal.
        send: what the gate let pass.
        read_at: when the item was read, by the gate's clock.
    """

    item: Item
    call: Call
    digest: str
    send: Send
    read_at: float


class Caller:
    """Makes the calls of a batch.

    Attributes:
        gate: what each attempt passes.
        options: the batch's.
        is_auto: whether the calls teach the adaptive limit.
        is_abandoned: whether the batch has been stopped.
    """

    def __init__(self, session: Session, gate: Gate, options: BatchOptions) -> None:
        self.gate: Gate = gate
        self.options: BatchOptions = options
        self.is_auto: bool = options.max_concurrency == "auto"
        self._session = session
        self._pauses: set[anyio.CancelScope] = set()
        self.is_abandoned = False

    async def call(self, ready: Ready) -> Outcome | None:
        """Make the call of an item, with its deadline; None if it was given up before it was sent again."""
        session = self._session
        attempts = _ItemAttempts(self, session, ready)
        response: ChatResponse | None = None
        failure: GatewayError | None = None
        try:
            answer = await attempts.run()
            result: ChatResponse = session.decode(ChatResponse, answer, ready.call)
            result._meta = attempts.meta(answer)
            response = result
        except _Stopped:
            return None
        except GatewayError as error:
            failure = error
        item = ready.item
        try:
            return Outcome(
                index=item.index,
                id=item.id,
                request=item.request,
                response=response,
                error=failure,
                attempts=attempts.count,
                elapsed=self.gate.clock() - ready.read_at,
            )
        finally:
            del failure  # breaks the cycle of the error, its traceback and this frame

    async def wait(self, *, is_again: bool) -> Send | None:
        """Wait at the gate; None if the batch was stopped meanwhile."""
        passed = await self.pause(self._pass, is_again)
        if passed is None:
            return None
        if self.is_abandoned:  # just as it passed
            self.gate.ended(passed[0])
            return None
        return passed[0]

    async def _pass(self, is_again: bool) -> Send:
        return await self.gate.wait(is_again=is_again)

    async def pause(self, func: Callable[[*Args], Awaitable[T]], *args: *Args) -> tuple[T] | None:
        """Await what is given up when the batch stops, and return its result; None if it was given up.

        There is a result, too, if the batch stopped just when it came.
        """
        if self.is_abandoned:
            return None
        result: tuple[T] | None = None
        with anyio.CancelScope() as scope:
            self._pauses.add(scope)
            try:
                result = (await func(*args),)
            finally:
                self._pauses.discard(scope)
        return result

    def abandon(self) -> None:
        """Give up all that is waited for through `pause`, now and later."""
        self.is_abandoned = True
        for scope in self._pauses:
            scope.cancel()


class _ItemAttempts(Fetching):
    """The attempts of an item's call."""

    __slots__ = ("_caller", "_gate", "_in_flight", "_rejections", "_send", "_sent_at")

    _sent_at: float
    _in_flight: int

    def __init__(self, caller: Caller, session: Session, ready: Ready) -> None:
        super().__init__(ready.call, *session.means)
        self._caller = caller
        self._gate = caller.gate
        self._send = ready.send
        self._rejections = 0

    def begin(self) -> None:
        """Begin an attempt, which has passed the gate."""
        gate = self._gate
        try:
            super().begin()
        except ClientClosedError:
            gate.ended(self._send)
            raise
        self._sent_at = gate.clock()
        self._in_flight = gate.in_flight

    def received(self, result: Answer) -> Answer:
        """Learn from an answer, and return it."""
        answer = super().received(result)
        gate = self._gate
        gate.answered(self._send, rate_limit_of(answer.head))
        if self._caller.is_auto:
            now = gate.clock()
            gate.concurrency.succeeded(now, now - self._sent_at, self._in_flight)
        return answer

    def judge(self, error: BaseException) -> GatewayError | None:
        """Learn from a failure, and return it."""
        gate, failure = self._gate, super().judge(error)
        if failure is None or failure is not error:  # there was no answer
            gate.ended(self._send)
        elif (seconds := self._seconds_at_limit(failure)) is None:
            gate.answered(self._send, None)
        else:
            self._rejections += 1
            if seconds < self._config.backoff_base:  # "Retry-After: 0", or a date in the past
                seconds = compute_delay(self._rejections, self._config, seconds)
            gate.rejected(self._send, seconds, failure.rate_limit if isinstance(failure, APIError) else None)
        if failure is not None and self._caller.is_auto and _is_overload(failure):
            gate.concurrency.overloaded(gate.clock(), self._sent_at)
        return failure

    def delay(self, failure: GatewayError, status: int | None = None) -> float | None:
        """Return the seconds to wait before the gate; None if there is no further attempt."""
        if seconds_at_limit(failure) is None:
            return self.backoff(failure, self.count - self._rejections, status)
        return None if self._seconds_at_limit(failure) is None else 0.0

    async def pause(self, seconds: float) -> bool:
        """Wait, and then at the gate."""
        caller = self._caller
        if seconds:
            waited = await caller.pause(super().pause, seconds)
            if waited is None:
                raise _Stopped
            if not waited[0]:
                return False
        if caller.is_abandoned:  # just as the wait ended, too
            raise _Stopped
        send = self._gate.try_pass() or await caller.wait(is_again=True)
        if send is None:
            raise _Stopped
        self._send = send
        return True

    def _seconds_at_limit(self, failure: GatewayError) -> float | None:
        """Return for how many seconds the gateway's own limit holds the batch back; None if it does not."""
        seconds = seconds_at_limit(failure)
        if seconds is None or self._caller.options.stops_at_limit(failure, seconds):
            return None
        return seconds


def _is_overload(error: GatewayError) -> bool:
    """Return whether an error says that there are too many calls at once."""
    if isinstance(error, TimeoutError | ProviderRateLimitError):
        return True
    return isinstance(error, APIError) and error.status_code in _OVERLOADED
