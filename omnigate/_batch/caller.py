"""The call of one item of a batch: its attempts, and what is waited for between them.

It is the retry policy of every call, and beside it what only a batch does: each attempt passes the gate, what
comes back teaches the pacer and the adaptive limit, and the own 429 of the gateway uses up no retry. One that
ends the batch teaches the pacer nothing: other batches of the client must not wait for what this one did not.

Once the batch has been stopped nothing is sent, also not by who had waited to its end at that very moment.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar, TypeVarTuple

import anyio
import httpx

from omnigate._batch.items import Item
from omnigate._batch.options import BatchOptions
from omnigate._batch.outcomes import Outcome
from omnigate._batch.pace.gate import Gate, seconds_at_limit
from omnigate._batch.pace.pacer import Send
from omnigate._calls.attempts import Attempts, Call
from omnigate._transport.messages import RawResponse
from omnigate._wire.head import rate_limit_of
from omnigate.exceptions import (
    APIError,
    ConnectionError,
    GatewayError,
    InvalidResponseError,
    ProviderRateLimitError,
    TimeoutError,
)
from omnigate.models import ChatResponse

if TYPE_CHECKING:
    from omnigate._calls.session import Session

T = TypeVar("T")

Args = TypeVarTuple("Args")

_OVERLOADED: Final = frozenset({500, 502, 503, 504})


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
    """Makes the calls of a batch."""

    def __init__(self, session: Session, gate: Gate, options: BatchOptions) -> None:
        self._session = session
        self._gate = gate
        self._options = options
        self._is_auto = options.max_concurrency == "auto"
        self._pauses: set[anyio.CancelScope] = set()
        self._is_abandoned = False

    async def call(self, ready: Ready) -> Outcome | None:
        """Make the call of an item, with its deadline; None if it was given up before it was sent again."""
        attempts = self._session.attempts(ready.call)
        if attempts.deadline == math.inf:
            return await self._attempt(ready, attempts)
        with anyio.CancelScope(deadline=attempts.deadline):
            return await self._attempt(ready, attempts)
        return self._outcome(ready, attempts, error=attempts.overdue())

    async def _attempt(self, ready: Ready, attempts: Attempts) -> Outcome | None:
        session, gate, call, send = self._session, self._gate, ready.call, ready.send
        options = self._options
        rejections = 0
        while True:
            attempts.count += 1
            sent_at = gate.clock()
            in_flight = gate.in_flight
            failure: GatewayError
            wait_seconds: float | None = None
            stops = False
            try:
                response, body = await session.run(session.attempt, call, None)
            except httpx.TransportError as error:
                gate.ended(send)
                failure = session.failure_of(error, attempts)
            except ConnectionError as error:
                failure = error
                gate.answered(send, None)
            except APIError as error:
                failure = error
                wait_seconds = seconds_at_limit(error)
                stops = wait_seconds is not None and options.stops_at_limit(error, wait_seconds)
                if wait_seconds is None or stops:
                    gate.answered(send, None)
                else:
                    rejections += 1
                    gate.rejected(send, wait_seconds, error.rate_limit)
            except BaseException:
                gate.ended(send)
                raise
            else:
                head = response.head if isinstance(response, RawResponse) else response.headers
                gate.answered(send, rate_limit_of(head))
                now = gate.clock()
                if self._is_auto:
                    gate.concurrency.succeeded(now, now - sent_at, in_flight)
                try:
                    result: ChatResponse = session.decode(ChatResponse, response, body, call)
                except InvalidResponseError as error:
                    return self._outcome(ready, attempts, error=error)
                result._meta = attempts.meta(response)
                return self._outcome(ready, attempts, response=result)
            try:
                failure.attempts = attempts.count
                if self._is_auto and _is_overload(failure):
                    gate.concurrency.overloaded(gate.clock(), sent_at)
                if stops:
                    return self._outcome(ready, attempts, error=failure)
                if wait_seconds is None:
                    delay = attempts.delay(failure, attempts=attempts.count - rejections)
                    if delay is None:
                        return self._outcome(ready, attempts, error=failure)
                    if await self.pause(anyio.sleep, delay) is None:
                        return None
                if self._is_abandoned:
                    return None
                again = gate.try_pass() or await self.wait(is_again=True)
                if again is None:
                    return None
                send = again
            finally:
                del failure  # breaks the cycle of the error, its traceback and this frame

    def _outcome(
        self,
        ready: Ready,
        attempts: Attempts,
        *,
        response: ChatResponse | None = None,
        error: GatewayError | None = None,
    ) -> Outcome:
        item = ready.item
        return Outcome(
            index=item.index,
            id=item.id,
            request=item.request,
            response=response,
            error=error,
            attempts=attempts.count,
            elapsed=self._gate.clock() - ready.read_at,
        )

    async def wait(self, *, is_again: bool) -> Send | None:
        """Wait at the gate; None if the batch was stopped meanwhile."""
        passed = await self.pause(self._pass, is_again)
        if passed is None:
            return None
        if self._is_abandoned:  # just as it passed
            self._gate.ended(passed[0])
            return None
        return passed[0]

    async def _pass(self, is_again: bool) -> Send:
        return await self._gate.wait(is_again=is_again)

    async def pause(self, func: Callable[[*Args], Awaitable[T]], *args: *Args) -> tuple[T] | None:
        """Await what is given up when the batch stops, and return its result; None if it was given up.

        There is a result also if the batch stopped just when it came.
        """
        if self._is_abandoned:
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
        self._is_abandoned = True
        for scope in self._pauses:
            scope.cancel()


def _is_overload(error: GatewayError) -> bool:
    """Return whether an error says that there are too many calls at once."""
    if isinstance(error, TimeoutError | ProviderRateLimitError):
        return True
    return isinstance(error, APIError) and error.status_code in _OVERLOADED
