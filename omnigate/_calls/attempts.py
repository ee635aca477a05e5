"""A call that is ready to be sent any number of times, and the attempts that are made of it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, NamedTuple

import anyio
import httpx

from omnigate._calls.failures import attempts_text
from omnigate._calls.retry import RetryConfig, compute_delay, should_retry
from omnigate._runtime.pauses import Pauses
from omnigate._transport.messages import Origin, PreparedRequest, RawResponse
from omnigate._wire.endpoints import Endpoint
from omnigate._wire.head import Meta
from omnigate.exceptions import APIError, ClientClosedError, ConnectionError, GatewayError, TimeoutError

logger: Final = logging.getLogger("omnigate")


class Call(NamedTuple):
    """A request, ready to be sent any number of times.

    Attributes:
        endpoint: what is called.
        url: where.
        origin: the same, as scheme, host and port.
        headers: all headers but the length.
        head: request line and headers as bytes, for our own transport; None for another.
        content: the body.
        extensions: for the transport: the timeouts.
        deadline_seconds: seconds for all attempts and waits.
        secrets: what must not be in an error: keys.

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

    def __repr__(self) -> str:  # is a local in many a traceback
        return f"<Call {self.endpoint.method} {self.url}>"

    def request(self) -> httpx.Request:
        """Return a request to send."""
        content = self.content or b""
        if self.head is not None:
            return PreparedRequest(
                self.endpoint.method, self.url, self.origin, self.head, content, self.extensions
            )
        headers = list(self.headers.items())
        if self.content is not None:
            headers.append((b"content-length", b"%d" % len(content)))
        stream = _Content(content)
        return httpx.Request(
            self.endpoint.method, self.url, headers=headers, stream=stream, extensions=self.extensions
        )


class _Content(httpx.ByteStream):
    """A request's body. httpx's is an async generator, of which trio complains if it is left unfinished."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Pieces(iter(self))


class _Pieces:
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


class Attempts:
    """The attempts of one call: counts them, decides after a failure, and waits before the next one."""

    __slots__ = ("_base_url", "_call", "_config", "_pauses", "count", "deadline", "started")

    def __init__(self, call: Call, config: RetryConfig, base_url: str, pauses: Pauses) -> None:
        self._call = call
        self._config = config
        self._base_url = base_url
        self._pauses = pauses
        self.count: int = 0
        self.started: float = time.monotonic()
        self.deadline: float = (
            math.inf if call.deadline_seconds is None else anyio.current_time() + call.deadline_seconds
        )

    async def recover(self, error: GatewayError, *, status: int | None = None) -> None:
        """Return when the next attempt may start, or raise `error` because there is none.

        Args:
            error: why the last attempt failed.
            status: the HTTP status to judge by, where it is not the error's own.

        Raises:
            GatewayError: `error`.
            TimeoutError: the next attempt could only start after the deadline.
            ClientClosedError: the client was closed meanwhile.

        """
        error.attempts = self.count
        delay = self.delay(error, attempts=self.count, status=status)
        if delay is None:
            raise error
        if self.deadline - anyio.current_time() <= delay:
            raise self.overdue() from error
        logger.debug("attempt %d failed (%s); the next one in %.2f s", self.count, error, delay)
        if not await self._pauses.wait(delay):
            raise self.closed() from error

    def delay(self, error: GatewayError, *, attempts: int, status: int | None = None) -> float | None:
        """Return the seconds to wait before the next attempt, or None if there is none.

        Args:
            error: why the last attempt failed.
            attempts: how many of those made count.
            status: the HTTP status to judge by, where it is not the error's own.

        """
        if isinstance(error, ConnectionError):
            retry_after, was_sent = None, error.was_sent
        elif isinstance(error, APIError):
            status = status or error.status_code
            retry_after, was_sent = error.retry_after, True
        else:
            return None
        may_retry = should_retry(
            self._config,
            attempts=attempts,
            status=status,
            was_sent=was_sent,
            resend=self._call.endpoint.resend,
            retry_after=retry_after,
        )
        return compute_delay(attempts, self._config, retry_after) if may_retry else None

    def closed(self) -> ClientClosedError:
        """Return the error that says that the client was closed before there was an answer."""
        error = ClientClosedError("the client was closed during the call")
        error.attempts = self.count
        return error

    def overdue(self) -> TimeoutError:
        """Return the error that says that the deadline has passed, or would before the next attempt."""
        error = TimeoutError(
            f"{self._base_url}: no answer within deadline_seconds={self._call.deadline_seconds:g} "
            f"({attempts_text(self.count)})"
        )
        error.attempts = self.count
        return error

    def meta(self, response: httpx.Response) -> Meta:
        """Return the metadata of a response, as of now."""
        return Meta(
            response.status_code,
            response.head if isinstance(response, RawResponse) else response.headers,
            attempts=self.count,
            elapsed=time.monotonic() - self.started,
        )
