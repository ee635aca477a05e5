"""A call that can be sent any number of times, and the one loop that sends it: try, judge, wait.

Cancellation: during an attempt the carrier cleans up; between attempts nothing is held.
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

from omnigate._calls.failures import (
    attempts_text,
    connection_error,
    invalid_response,
    is_unsent,
    response_error,
)
from omnigate._calls.retry import RetryConfig, compute_delay, should_retry
from omnigate._runtime.pauses import Pauses
from omnigate._transport.carrier import Answer, Carrier, Reply
from omnigate._transport.messages import Origin
from omnigate._wire.endpoints import Endpoint
from omnigate._wire.head import Meta, headers_of
from omnigate._wire.results import R
from omnigate._wire.structs import decode, decoder_for
from omnigate.exceptions import APIError, ClientClosedError, ConnectionError, GatewayError, TimeoutError

A = TypeVar("A")

T = TypeVar("T")

Means: TypeAlias = tuple[Carrier, RetryConfig, Pauses]
"""What attempts need: the carrier, the retry policy, and the pauses that closing the client ends."""

logger: Final = logging.getLogger("omnigate")


class Call(msgspec.Struct, frozen=True, gc=False):  # made faster than a named tuple
    """A request that can be sent any number of times.

    Attributes:
        endpoint: the endpoint.
        url: its URL.
        origin: the URL's scheme, host and port.
        headers: all headers but the length.
        head: request line and headers as bytes, if they are the same for all calls of the endpoint.
        content: the body.
        extensions: the transport's, with the timeouts.
        deadline_seconds: seconds for all attempts and waits.
        secrets: keys that errors must not show.
        address: the gateway's address, for errors.

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

    def __repr__(self) -> str:  # a local variable in many tracebacks
        return f"<Call {self.endpoint.method} {self.url}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # in place of msgspec's, which shows all
        return [("method", self.endpoint.method), ("url", str(self.url))]


class Attempts(Generic[A, T]):
    """The attempts of one call; after each failure, decides whether to retry, and waits.

    A subclass defines an attempt, which results in an `A`, and makes of it the `T` that the call results in.
    What a batch adds (its gate, its count of rejections) goes into the hooks `begin`, `received`, `judge`,
    `delay` and `pause`.

    Attributes:
        call: the call.
        count: the attempts so far.
        deadline: by the event loop's clock.
        started: when the call began, by the monotonic clock.
    """

    __slots__ = (
        "_carrier", "_config", "_earlier", "_last_failure", "_pauses", "call", "count", "deadline", "started"
    )  # fmt: skip

    def __init__(self, call: Call, means: Means) -> None:
        self._carrier, self._config, self._pauses = means
        self._earlier = 0  # attempts of earlier asks, which the retry policy does not count
        self._last_failure = ""  # words, since an error keeps its traceback, and that all it refers to
        self.call: Call = call
        self.count: int = 0
        self.started: float = time.monotonic()
        self.deadline: float = (
            math.inf if call.deadline_seconds is None else anyio.current_time() + call.deadline_seconds
        )

    def follow(self, earlier: Attempts[A, T], count: int) -> None:
        """Continue a call that asks again: keep its beginning and its deadline, and count on.

        Args:
            earlier: the attempts with which the call began.
            count: the attempts so far.
        """
        self.started, self.deadline = earlier.started, earlier.deadline
        self.count = self._earlier = count

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
        """Make attempts until one succeeds, without a deadline, and return its result.

        Args:
            failure: an error inside a stream, to recover from before the first attempt here.
            status: the HTTP status to judge it by, if not the error's own.
        """
        while True:
            if failure is not None:
                try:
                    await self._recover(failure, status)
                finally:
                    failure = status = None  # breaks the cycle of the error, its traceback and this frame
            self.begin()
            try:
                result = self.received(await self.attempt())
            except BaseException as error:
                failure = self.judge(error)
                if failure is None:
                    raise
            else:
                return self.finish(result)

    async def _recover(self, failure: GatewayError, status: int | None) -> None:
        """Return when the next attempt may start, or raise `failure` because there is none."""
        try:
            failure.attempts = self.count
            self._last_failure = _words(failure)
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

    def attempt(self) -> Awaitable[A]:
        """Make one attempt and return its result."""
        raise NotImplementedError

    def received(self, result: A) -> A:
        """Return the result of an attempt, or raise it as an error."""
        return result

    def finish(self, result: A) -> T:
        """Return the result of the call, given that of its last attempt; an error raised here is final."""
        raise NotImplementedError

    def judge(self, error: BaseException) -> GatewayError | None:
        """Return the typed error for a failed attempt; None if `error` is a bug or a cancellation.

        Once the client is closed, that is the failure, whatever the transport raised on being closed in use.
        An error response that arrived before is still reported as itself.
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
            if not self._carrier.is_foreign and is_unsent(error):
                # Our own transport's error says nothing that this does not: it is there, but not shown.
                failure.__context__, failure.__suppress_context__ = error, True
                return failure
        else:
            return None
        failure.__cause__ = error
        return failure

    def delay(self, failure: GatewayError, status: int | None = None) -> float | None:
        """Return the seconds to wait before the next attempt, or None if there is none.

        Args:
            failure: why the last attempt failed.
            status: the HTTP status to judge by, if not the error's own.
        """
        return self.backoff(failure, self.count - self._earlier, status)

    def backoff(self, failure: GatewayError, attempts: int, status: int | None = None) -> float | None:
        """Return the policy's wait in seconds after this many attempts, or None for no further attempt."""
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
        """Return the error for a client that was closed before the answer came."""
        error = ClientClosedError(
            "the client was closed during the call"
            if self.count
            else "the client is closed; create a new one"
        )
        error.attempts = self.count
        return error

    def overdue(self) -> TimeoutError:
        """Return the error for a deadline that has passed, or would pass before the next attempt."""
        last = f"; the last failure: {self._last_failure}" if self._last_failure else ""
        error = TimeoutError(
            f"{self.call.address}: no answer within deadline_seconds={self.call.deadline_seconds:g} "
            f"({attempts_text(self.count)}){last}"
        )
        error.attempts = self.count
        return error

    def meta(self, answer: Answer | Reply) -> Meta:
        """Return the metadata of an answer, as of now."""
        return Meta(answer.status, answer.head, self.count, time.monotonic() - self.started)


class _Reading(Attempts[Answer, T]):
    """The attempts of a call whose answer is read whole."""

    __slots__ = ()

    def attempt(self) -> Awaitable[Answer]:
        """Send the call once and return its answer."""
        return self._carrier.fetch(self.call)

    def received(self, result: Answer) -> Answer:
        """Return an answer, or raise it as an error."""
        if 200 <= result.status < 300:
            return result
        raise _error(result, self.call)


class Decoding(_Reading[R]):
    """The attempts of a call that results in a `Result`."""

    __slots__ = ()

    _kind: type[R]

    def finish(self, result: Answer) -> R:
        """Return the answer decoded, with its `meta`.

        Raises:
            InvalidResponseError: it is not of that type.
        """
        decoded: R
        try:
            decoded = decoder_for(self._kind).decode(result.body)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            decoded = decode_answer(self._kind, result, self.call)  # which repairs it, or raises
        decoded._meta = self.meta(result)
        return decoded


class Fetching(Decoding[R]):
    """The attempts of a call that results in a `Result` of a given type."""

    __slots__ = ("_kind",)

    def __init__(self, kind: type[R], call: Call, means: Means) -> None:
        # `super()` would take a fifth of the time of it all.
        Decoding.__init__(self, call, means)  # pyright: ignore[reportUnknownMemberType]
        self._kind = kind


class Answering(_Reading[Answer]):
    """The attempts of a call that results in an answer which is not decoded yet."""

    __slots__ = ()

    def finish(self, result: Answer) -> Answer:
        """Return the answer."""
        return result


class Reporting(Answering):
    """The attempts of a call for which a 503 from the gateway itself is also a result."""

    __slots__ = ()

    def received(self, result: Answer) -> Answer:
        """Return an answer, or raise it as an error: a 503 may be a proxy's page."""
        if result.status == 503 and _is_report(result.body):
            return result
        return super().received(result)


class Opening(Attempts[Reply, Reply]):
    """The attempts of a call whose answer is read as it arrives."""

    __slots__ = ()

    async def attempt(self) -> Reply:
        """Send the call once and return a successful reply, which the caller then owns.

        Raises:
            InvalidResponseError: it is an HTML page, such as the login page of a network.
        """
        reply = await self._carrier.send(self.call)
        if reply.is_success and not _is_html(reply):
            return reply
        call = self.call
        try:
            if not reply.is_success:
                raise _error(await reply.whole(), call)
            page = await reply.beginning()
            raise invalid_response(
                page, "it is an HTML page", call.secrets, show_body=not call.endpoint.mints_key
            )
        finally:
            await reply.discard()

    def finish(self, result: Reply) -> Reply:
        """Return the reply."""
        return result


def decode_answer(kind: Any, answer: Answer, call: Call) -> Any:
    """Decode the body of an answer to `call`.

    Raises:
        InvalidResponseError: it is not of that type.
    """
    try:
        return decode(decoder_for(kind), answer.body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        problem = str(error)
    # outside the except clause, because some of those errors contain the whole body
    raise invalid_response(answer, problem, call.secrets, show_body=not call.endpoint.mints_key)


def _is_html(reply: Reply) -> bool:
    return "html" in headers_of(reply.head).get("content-type", "").partition(";")[0].lower()


class _Report(msgspec.Struct):
    status: str


def _is_report(body: bytes) -> bool:
    """Return whether an error's body is the gateway's own answer rather than a proxy's page."""
    try:
        decode(decoder_for(_Report), body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    return True


def _error(answer: Answer, call: Call) -> APIError:
    return response_error(
        answer, secrets=call.secrets, show_body=not call.endpoint.mints_key, address=call.address
    )


def _words(failure: GatewayError) -> str:
    """Return an error's text, with the wait that the response asked for."""
    retry_after = failure.retry_after if isinstance(failure, APIError) else None
    return str(failure) if retry_after is None else f"{failure} (Retry-After: {retry_after:g} s)"
