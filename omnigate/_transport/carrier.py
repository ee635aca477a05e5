"""Sends a request and returns its reply, over any transport; no other module depends on the transport's type.

There are two carriers. `Carrier` is for `AnyIOTransport`, whose clean-up needs no await, so it calls the
transport directly; most answers arrive whole, together with their head. `ForeignCarrier` is
for any other transport of httpx or httpx2, async or sync; it runs isolated from asyncio's native
cancellation, and closing takes at most a second.

Cancellation: before the head has arrived the transport cleans up; after it, `fetch` and `send` close the
response until `send` returns it. A returned reply belongs to the caller, who discards it.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import suppress
from typing import Any, ClassVar, Final, Protocol, cast

import anyio
import httpx
import msgspec

from omnigate._runtime.isolation import bounded, close_soon, isolated
from omnigate._runtime.loops import current_loop
from omnigate._transport.adapters import adapt, async_chunks, close_stream
from omnigate._transport.anyio_transport import AnyIOTransport
from omnigate._transport.bodies import BodyReader, too_long
from omnigate._transport.default import default_transport
from omnigate._transport.direct import DirectReader
from omnigate._transport.exchange import Exchange, ResponseStream
from omnigate._transport.messages import Origin, OutgoingMessage, PreparedRequest, RawResponse, request_head
from omnigate._wire.endpoints import Endpoint
from omnigate._wire.head import Head
from omnigate.exceptions import InvalidResponseError

MAX_RESPONSE_BYTES: Final = 64 << 20

_MAX_ERROR_BYTES: Final = 1 << 20

_MAX_PAGE_BYTES: Final = 1 << 16


class Sendable(Protocol):
    """The attributes of a call that a carrier needs.

    Attributes:
        endpoint: the endpoint.
        url: its URL.
        origin: the URL's scheme, host and port.
        headers: all headers but the length.
        head: request line and headers as bytes, if they have been worked out.
        content: the body; None for a request without one.
        extensions: the transport's, with the timeouts.
    """

    @property
    def endpoint(self) -> Endpoint: ...
    @property
    def url(self) -> httpx.URL: ...
    @property
    def origin(self) -> Origin: ...
    @property
    def headers(self) -> dict[bytes, bytes]: ...
    @property
    def head(self) -> bytes | None: ...
    @property
    def content(self) -> bytes | None: ...
    @property
    def extensions(self) -> dict[str, Any]: ...


class Answer(msgspec.Struct, frozen=True, gc=False):  # made faster than a named tuple
    """A response that has been read; for an error, as much of its body as arrived and is useful.

    Attributes:
        status: the HTTP status.
        head: the head.
        body: the body, decoded.
    """

    status: int
    head: Head
    body: bytes

    def __repr__(self) -> str:  # a local variable in many tracebacks; the body may repeat a key
        return f"<Answer {self.status}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # in place of msgspec's, which shows all
        return [("status", self.status)]


class Reply:
    """A response from our own transport whose head has arrived.

    Attributes:
        status: the HTTP status.
        head: the head.
        is_success: whether the status is one of 200 to 299.
        ends_reads: whether `discard` needs no await and ends a read in another task.
    """

    __slots__ = ("_body", "_chunks", "_limit", "_loop", "_response", "head", "is_success", "status")

    ends_reads: ClassVar[bool] = True

    _body: BodyReader

    def __init__(self, response: httpx.Response, head: Head, limit: int) -> None:
        self.status: int = response.status_code
        self.head: Head = head
        self.is_success: bool = 200 <= response.status_code < 300
        self._response = response
        self._limit = limit
        self._chunks: AsyncIterator[bytes] | None = None
        self._loop = current_loop()

    @property
    def received(self) -> int:
        """How many decoded bytes of the body have arrived."""
        return self._body.received

    def begin(self) -> None:
        """Prepare to read the body.

        Raises:
            InvalidResponseError: its content encoding is unknown.
        """
        self._chunks = async_chunks(self._response.stream)
        self._body = BodyReader(self._response, self._chunks, self._limit)

    def next(self) -> Awaitable[bytes | None]:
        """Return the next piece of the body, or None at its end.

        Raises:
            InvalidResponseError: the body is corrupt or too long.
            httpx.TransportError: it broke off.
        """
        return self._body.next()

    def lend(self) -> DirectReader | None:
        """Return a reader of the body for another thread, or None if only the event loop can read it."""
        stream = self._response.stream
        return stream.lend() if isinstance(stream, ResponseStream) and not self._body.is_encoded else None

    def count(self, data: bytes) -> None:
        """Count what the reader for another thread has read.

        Raises:
            InvalidResponseError: the body is too long.
        """
        self._body.count(data)

    def whole(self) -> Awaitable[Answer]:
        """Read the whole body; of an error, its beginning.

        Raises:
            InvalidResponseError: the body is corrupt, too long, or in an unknown content encoding.
            httpx.TransportError: it broke off.
        """
        return self.read()

    async def read(self) -> Answer:
        """Do what `whole` does, in the caller's own task."""
        body = b""
        if self.is_success:
            self.begin()
            body = await self._body.read()
        else:
            with suppress(InvalidResponseError):  # unknown content encoding: the head says enough
                self.begin()
                body = await self._body.read_start(_MAX_ERROR_BYTES)
        return Answer(self.status, self.head, body)

    def beginning(self) -> Awaitable[Answer]:
        """Read the beginning of a success that is an error after all, as far as it arrives."""
        return self.read_beginning()

    async def read_beginning(self) -> Answer:
        """Do what `beginning` does, in the caller's own task."""
        return Answer(self.status, self.head, await self._body.read_start(_MAX_PAGE_BYTES))

    async def drain(self, most: int, seconds: float) -> None:
        """Read and drop up to `most` bytes for up to `seconds`, however the body ends."""
        with anyio.move_on_after(seconds, shield=True):
            await self._drain(most)

    async def _drain(self, most: int) -> None:
        limit = self._body.received + most
        with suppress(httpx.TransportError, InvalidResponseError):
            while self._body.received < limit and await self._body.next() is not None:
                pass

    async def discard(self) -> None:
        """Close the response immediately, dropping what has not been read."""
        cast("ResponseStream", self._response.stream).abort()

    def drop(self) -> None:
        """Have the response closed soon, from a finalizer."""
        stream, chunks = self._response.stream, self._chunks

        async def close() -> None:
            await close_stream(stream, chunks)

        close_soon(self._loop, close)


class ForeignReply(Reply):
    """A response from any other transport whose head has arrived."""

    __slots__ = ()

    ends_reads: ClassVar[bool] = False

    def next(self) -> Awaitable[bytes | None]:
        """Return the next piece of the body, or None at its end."""
        return isolated(self._body.next)

    def whole(self) -> Awaitable[Answer]:
        """Read the whole body; of an error, its beginning."""
        return isolated(self.read)

    def beginning(self) -> Awaitable[Answer]:
        """Read the beginning of a success that is an error after all."""
        return isolated(self.read_beginning)

    async def _drain(self, most: int) -> None:
        await isolated(super()._drain, most)

    async def discard(self) -> None:
        """Close the response within a second, even if the caller is cancelled."""
        await bounded(self._close)

    async def _close(self) -> None:
        await close_stream(self._response.stream, self._chunks)


class Carrier:
    """Carries requests over our own transport.

    Attributes:
        transport: the transport underneath, as an async httpx transport.
        is_foreign: whether the transport is not our own, so that its errors may say more than their text.
    """

    is_foreign: ClassVar[bool] = False

    def __init__(self, transport: httpx.AsyncBaseTransport, max_response_bytes: int) -> None:
        self.transport: httpx.AsyncBaseTransport = transport
        self._own = cast("AnyIOTransport", transport)  # for the methods that a foreign one lacks
        self._limit = max_response_bytes
        # A subclass may have its own way of sending a request.
        self.is_direct: bool = type(transport).handle_async_request is AnyIOTransport.handle_async_request

    @property
    def is_ready(self) -> bool:
        """Whether a call may begin outside of the event loop."""
        return False

    @property
    def max_connections(self) -> int | None:
        """How many requests can be in flight; None for no known limit."""
        return self._own.max_connections

    def fetch(self, call: Sendable) -> Awaitable[Answer]:
        """Send a request and return its answer, read and closed.

        Raises:
            InvalidResponseError: a success's body is corrupt, too long, or in an unknown content encoding.
            httpx.TransportError: as the transport raises it.
        """
        if self.is_direct:
            return self._own._exchange(message_of(call), call.extensions).run(self._whole, self._rest)
        return self._fetch_prepared(call)

    def _whole(self, exchange: Exchange) -> Answer | None:
        """Return the answer if it is a success that has come in one piece, as most do."""
        status, head = exchange.reader.status_code, exchange.reader.head
        if not 200 <= status < 300 or head is None:
            return None
        body = exchange.take_whole()
        if body is None:
            return None
        if len(body) > self._limit:
            raise too_long(RawResponse(status, head, httpx.ByteStream(b"")), self._limit)
        return Answer(status, head, body)

    def _rest(self, exchange: Exchange) -> Awaitable[Answer]:
        return read_and_discard(reply_of(exchange.response(), self._limit))

    async def _fetch_prepared(self, call: Sendable) -> Answer:
        response = await self.transport.handle_async_request(_prepared(call))
        return await read_and_discard(reply_of(response, self._limit))

    async def send(self, call: Sendable) -> Reply:
        """Send a request and return its reply; a success is ready to be read.

        Raises:
            InvalidResponseError: the body of a success has an unknown content encoding.
            httpx.TransportError: as the transport raises it.
        """
        response: httpx.Response
        if self.is_direct:
            response = await self._own._exchange(message_of(call), call.extensions).run(Exchange.response)
        else:
            response = await self.transport.handle_async_request(_prepared(call))
        reply = reply_of(response, self._limit)
        if reply.is_success:
            try:
                reply.begin()
            except BaseException:
                await reply.discard()
                raise
        return reply

    def aclose(self) -> Awaitable[None]:
        """Close the transport."""
        return self.transport.aclose()


class ForeignCarrier(Carrier):
    """Carries requests over any other transport."""

    is_foreign: ClassVar[bool] = True

    @property
    def max_connections(self) -> int | None:
        """None: it is not known."""
        return None

    def fetch(self, call: Sendable) -> Awaitable[Answer]:
        """Send a request and return its answer, read and closed; isolated as a whole."""
        return isolated(self._fetch, call)

    async def _fetch(self, call: Sendable) -> Answer:
        response = await self.transport.handle_async_request(_request(call))
        return await read_and_discard(reply_of(response, self._limit))

    async def send(self, call: Sendable) -> Reply:
        """Send a request and return its reply; a success is ready to be read."""
        replies: list[Reply] = []  # cancellation may lose a result of `isolated`

        async def send() -> None:
            reply = reply_of(await self.transport.handle_async_request(_request(call)), self._limit)
            replies.append(reply)
            if reply.is_success:
                reply.begin()

        try:
            await isolated(send)
        except BaseException:
            for reply in replies:
                await reply.discard()
            raise
        return replies[0]

    def aclose(self) -> Awaitable[None]:
        """Close the transport."""
        return isolated(self.transport.aclose)


def carrier_over(
    transport: object | None, base_url: httpx.URL, verify: bool | ssl.SSLContext, max_response_bytes: int
) -> Carrier:
    """Return the carrier over a transport.

    Args:
        transport: any that is known; None for the default one.
        base_url: the gateway's address, which decides about the default transport.
        verify: whether the default transport verifies TLS certificates, or its `ssl.SSLContext`.
        max_response_bytes: bytes that a response may have, decoded.

    Raises:
        InvalidArgumentError: the transport is of an unknown kind, or the environment's proxy cannot be used.
    """
    adapted = default_transport(base_url, verify) if transport is None else adapt(transport)
    kind = Carrier if isinstance(adapted, AnyIOTransport) else ForeignCarrier
    return kind(adapted, max_response_bytes)


def reply_of(response: httpx.Response, limit: int) -> Reply:
    """Return a reply. A foreign transport may return a response of ours, and a subclass of ours another."""
    if isinstance(response, RawResponse) and isinstance(response.stream, ResponseStream):
        return Reply(response, response.head, limit)
    return ForeignReply(response, response.headers, limit)


async def read_and_discard(reply: Reply) -> Answer:
    """Read a reply, and close it in any case."""
    try:
        return await reply.read()
    finally:
        await reply.discard()


def message_of(call: Sendable) -> OutgoingMessage:
    """Return a call as it is sent."""
    method, content = call.endpoint.method, call.content
    head = call.head or request_head(method, call.url.raw_path, list(call.headers.items()))
    if content is None:
        return OutgoingMessage(method, call.origin, head + b"\r\n")
    start = b"%bcontent-length: %d\r\n\r\n%b" % (head, len(content), content)
    return OutgoingMessage(method, call.origin, start)


def _prepared(call: Sendable) -> PreparedRequest:
    """Return a call as a request for a subclass of our own transport."""
    message, content = message_of(call).start, call.content or b""
    head = message[: len(message) - len(content) - len(b"\r\n")]
    return PreparedRequest(call.endpoint.method, call.url, call.origin, head, content, call.extensions)


def _request(call: Sendable) -> httpx.Request:
    """Return a call as a request for a foreign transport."""
    content = call.content or b""
    headers = list(call.headers.items())
    if call.content is not None:
        headers.append((b"content-length", b"%d" % len(content)))
    return httpx.Request(
        call.endpoint.method, call.url, headers=headers, stream=_Content(content), extensions=call.extensions
    )


class _Content(httpx.ByteStream):
    """A request's body. httpx's is an async generator, and trio warns if one is left unfinished."""

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
