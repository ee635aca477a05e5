"""A call that is ready to be sent any number of times, and the one loop that sends it: try, judge, wait.

What an await leaves behind when it is cancelled: during an attempt it is the carrier's to clean up; between
two there is nothing.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable
from typing import Any, Final, Generic, TypeAlias, TypeVar

import anyio
import httpx
import msgspec

from omnigate._calls.failures import attempts_text, connection_error, response_error
from omnigate._calls.retry import RetryConfig, compute_delay, should_retry
from omnigate._runtime.pauses import Pauses
from omnigate._transport.carrier import Answer, Carrier, Reply
from omnigate._transport.messages import Origin
from omnigate._wire.endpoints import Endpoint
from omnigate._wire.head import Meta
from omnigate._wire.structs import decoder_for
from omnigate.exceptions import APIError, ClientClosedError, ConnectionError, GatewayError, TimeoutError

T = TypeVar("T")

Means: TypeAlias = tuple[Carrier, RetryConfig, Pauses]
"""What attempts are made with: the carrier, the retry policy, and what the waits are in."""

logger: Final = logging.getLogger("omnigate")


class Call(msgspec.Struct, frozen=True, gc=False):  # made faster than a named tuple
    """A request, ready to be sent any number of times.

    Attributes:
        endpoint: what is called.
        url: where.
        origin: the same, as scheme, host and port.
        headers: all headers but the length.
        head: request line and headers as bytes, where they are the same for all calls of the endpoint.
        content: the body.
        extensions: for the transport: the timeouts.
        deadline_seconds: seconds for all attempts and waits.
        secrets: what must not be in an error: keys.
        address: the gateway's, as an error names it.

    """

    endpoint: Endpoint
    url: httpx.URL
    origin: Origin
    headers: dict[bytes, bytes]
    head: bytes | None
    content: bytes | None
    extensions: dict[str, Any]
    deadline_seconds: float | None
    secrets: tuple[str, ...]
    address: str

    def __repr__(self) -> str:  # is a local in many a traceback
        return f"<Call {self.endpoint.method} {self.url}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # in place of msgspec's, which shows all
        return [("method", self.endpoint.method), ("url", str(self.url))]


class Attempts(Generic[T]):
    """The attempts of one call: makes one after the other, and judges and waits in between.

    A subclass says what an attempt is. What a batch does besides (its gate, its count of rejections) are the
    hooks `begin`, `received`, `judge`, `delay` and `pause`.

    Attributes:
        call: what is sent.
        count: the attempts so far.
        deadline: by the event loop's clock.
        started: when the call began, by the monotonic clock.
    """

    __slots__ = ("_carrier", "_config", "_pauses", "call", "count", "deadline", "started")

    def __init__(self, call: Call, carrier: Carrier, config: RetryConfig, pauses: Pauses) -> None:
        self._carrier = carrier
        self._config = config
        self._pauses = pauses
        self.call: Call = call
        self.count: int = 0
        self.started: float = time.monotonic()
        self.deadline: float = (
            math.inf if call.deadline_seconds is None else anyio.current_time() + call.deadline_seconds
        )

    def run(self) -> Awaitable[T]:
        """Make attempts until one succeeds, within the call's deadline, and return its result.

        Raises:
            APIError: an answer that is an error.
            ConnectionError: no answer.
            TimeoutError: no answer in time.
            ClientClosedError: the client was closed before there was an answer.
        """
        return self.repeat() if self.deadline == math.inf else self._repeat_in_time()

    async def _repeat_in_time(self) -> T:
        with anyio.CancelScope(deadline=self.deadline):
            return await self.repeat()
        raise self.overdue()

    async def repeat(self, failure: GatewayError | None = None, status: int | None = None) -> T:
        """Make attempts until one succeeds, in whatever time, and return its result.

        Args:
            failure: why the last attempt failed after it had succeeded (inside a stream).
            status: the HTTP status to judge that by, where it is not the error's own.
        """
        while True:
            if failure is not None:
                try:
                    await self._recover(failure, status)
                finally:
                    failure = status = None  # breaks the cycle of the error, its traceback and this frame
            self.begin()
            try:
                return self.received(await self.attempt())
            except BaseException as error:
                failure = self.judge(error)
                if failure is None:
                    raise

    async def _recover(self, failure: GatewayError, status: int | None) -> None:
        """Return when the next attempt may start, or raise `failure` because there is none."""
        try:
            failure.attempts = self.count
            delay = self.delay(failure, status)
            if delay is None:
                raise failure
            if self.deadline - anyio.current_time() <= delay:
                raise self.overdue() from failure
            logger.debug("attempt %d failed (%s); the next one in %.2f s", self.count, failure, delay)
            if not await self.pause(delay):
                raise self.closed() from failure
        finally:
            del failure  # breaks the cycle of the error, its traceback and this frame

    def begin(self) -> None:
        """Begin an attempt.

        Raises:
            ClientClosedError: the client is closed.
        """
        if self._pauses.is_closed:
            raise self.closed()
        self.count += 1

    def attempt(self) -> Awaitable[T]:
        """Make one attempt and return its result."""
        raise NotImplementedError

    def received(self, result: T) -> T:
        """Return the result of an attempt, or raise the error that it is."""
        return result

    def judge(self, error: BaseException) -> GatewayError | None:
        """Return the typed error that an attempt failed with; None if `error` is a bug, or a cancellation.

        Once the client is closed, that is the failure, whatever a transport makes of being closed in use. An
        error response that came before is still itself.
        """
        if isinstance(error, APIError):
            return error
        failure: GatewayError
        if self._pauses.is_closed and isinstance(error, Exception):
            failure = self.closed()
        elif isinstance(error, ConnectionError):
            return error
        elif isinstance(error, httpx.TransportError):
            failure = connection_error(error, self.call.address, self.count)
        else:
            return None
        failure.__cause__ = error
        return failure

    def delay(self, failure: GatewayError, status: int | None = None) -> float | None:
        """Return the seconds to wait before the next attempt, or None if there is none.

        Args:
            failure: why the last attempt failed.
            status: the HTTP status to judge by, where it is not the error's own.
        """
        return self.backoff(failure, self.count, status)

    def backoff(self, failure: GatewayError, attempts: int, status: int | None = None) -> float | None:
        """Return what the retry policy says after so many attempts: seconds, or None for no further one."""
        if isinstance(failure, ConnectionError):
            if failure.is_permanent:
                return None
            retry_after, was_sent = None, failure.was_sent
        elif isinstance(failure, APIError):
            status = status or failure.status_code
            retry_after, was_sent = failure.retry_after, True
        else:
            return None
        may_retry = should_retry(
            self._config,
            attempts=attempts,
            status=status,
            was_sent=was_sent,
            resend=self.call.endpoint.resend,
            retry_after=retry_after,
        )
        return compute_delay(attempts, self._config, retry_after) if may_retry else None

    async def pause(self, seconds: float) -> bool:
        """Wait, and return True; or False, immediately, if the client is closed."""
        return await self._pauses.wait(seconds)

    def closed(self) -> ClientClosedError:
        """Return the error that says that the client was closed before there was an answer."""
        error = ClientClosedError(
            "the client was closed during the call"
            if self.count
            else "the client is closed; create a new one"
        )
        error.attempts = self.count
        return error

    def overdue(self) -> TimeoutError:
        """Return the error that says that the deadline has passed, or would before the next attempt."""
        error = TimeoutError(
            f"{self.call.address}: no answer within deadline_seconds={self.call.deadline_seconds:g} "
            f"({attempts_text(self.count)})"
        )
        error.attempts = self.count
        return error

    def meta(self, answer: Answer | Reply) -> Meta:
        """Return the metadata of an answer, as of now."""
        return Meta(answer.status, answer.head, attempts=self.count, elapsed=time.monotonic() - self.started)


class Fetching(Attempts[Answer]):
    """The attempts of a call whose answer is read as a whole."""

    __slots__ = ()

    def attempt(self) -> Awaitable[Answer]:
        """Send the call once and return its answer."""
        return self._carrier.fetch(self.call)

    def received(self, result: Answer) -> Answer:
        """Return an answer, or raise the error that it is."""
        if 200 <= result.status < 300:
            return result
        raise _error(result, self.call)


class Reporting(Fetching):
    """The attempts of a call whose answer of status 503, if the gateway gave it, is a result, too."""

    __slots__ = ()

    def received(self, result: Answer) -> Answer:
        """Return an answer, or raise the error that it is: a 503 may be a proxy's page."""
        if result.status == 503 and _is_report(result.body):
            return result
        return super().received(result)


class Opening(Attempts[Reply]):
    """The attempts of a call whose answer is read while it arrives."""

    __slots__ = ()

    async def attempt(self) -> Reply:
        """Send the call once and return its reply, which is a success and belongs to the caller."""
        reply = await self._carrier.send(self.call)
        if reply.is_success:
            return reply
        try:
            raise _error(await reply.whole(), self.call)
        finally:
            await reply.discard()


class _Report(msgspec.Struct):
    status: str


def _is_report(body: bytes) -> bool:
    """Return whether the body of an error is the gateway's answer, and not a proxy's page."""
    try:
        decoder_for(_Report).decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    return True


def _error(answer: Answer, call: Call) -> APIError:
    return response_error(answer, secrets=call.secrets, show_body=not call.endpoint.mints_key)
