"""One request and its response on one connection, and the stream of the response body."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import suppress
from typing import Final, TypeAlias, cast

import anyio
import httpx

from omnigate._runtime.isolation import bounded, close_soon
from omnigate._transport.connection import MAX_RECEIVE_BYTES, Connection
from omnigate._transport.http11 import ResponseReader
from omnigate._transport.messages import OutgoingMessage, RawResponse
from omnigate._transport.pool import Pool

Timeouts: TypeAlias = dict[str, float | None]

_SMALL_BYTES: Final = 16_384

_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})

_BROKEN: Final = (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError, ssl.SSLError)


class Exchange:
    """Sends a request and reads the response head. Owns nothing: on failure the caller discards."""

    __slots__ = ("_broken", "_connection", "_is_cut_short", "_message", "_reader", "_sent", "_timeouts")

    def __init__(self, message: OutgoingMessage, connection: Connection, timeouts: Timeouts) -> None:
        self._message = message
        self._connection = connection
        self._timeouts = timeouts
        self._reader = ResponseReader(message.method)
        self._sent = False  # part of the request may have been written
        self._is_cut_short = False  # the request was not written completely
        self._broken: str | None = None  # the protocol error in body data that arrived with the head

    def run(self) -> Awaitable[None]:
        """Send the request and read the response head.

        Raises:
            httpx.TransportError: under the same conditions as with httpx's own transports.
        """
        message = self._message
        if message.body is not None or len(message.start) > _SMALL_BYTES:
            return self._large()
        return self._connection.limit.run(httpx.WriteTimeout, self._timeouts.get("write"), self._small)

    def may_repeat(self, error: BaseException) -> bool:
        """Return whether the request can be resent on another connection without being processed twice."""
        if self._reader.started or self._message.body is not None:
            return False
        if not isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError):
            return False
        return not self._sent or self._message.method in _IDEMPOTENT

    def response(self, pool: Pool) -> RawResponse:
        """Return the response, which takes ownership of the connection."""
        reader = self._reader
        assert reader.head is not None
        if self._is_cut_short or self._message.closes:
            reader.forbid_reuse()
        stream = ResponseStream(pool, self._connection, reader, self._timeouts.get("read"), self._broken)
        return RawResponse(reader.status_code, reader.head, stream)

    async def _small(self) -> None:
        """Send the request in one write and read the head, under one limit that is moved in between."""
        stream, reader, timeouts = self._connection.stream, self._reader, self._timeouts
        try:
            await stream.send(self._message.start)
            self._sent = True
            read = timeouts.get("read")
            if read == timeouts.get("write"):
                self._connection.limit.kind = httpx.ReadTimeout  # writing took almost none of it
            else:
                self._connection.limit.move(httpx.ReadTimeout, read)
            reader.feed(await stream.receive(MAX_RECEIVE_BYTES))
            while reader.head is None:
                self._connection.limit.move(httpx.ReadTimeout, read)
                reader.feed(await stream.receive(MAX_RECEIVE_BYTES))
        except anyio.EndOfStream:
            reader.end()
        except _BROKEN as error:
            # The kernel accepts a small request whole or not at all.
            raise (httpx.ReadError if self._sent else httpx.WriteError)(_words(error)) from None
        except httpx.RemoteProtocolError as error:
            if reader.head is None:
                raise
            self._broken = str(error)

    async def _large(self) -> None:
        """Send the request, whole or as its body is produced, and read the head, under separate limits."""
        body = self._message.body
        self._sent = True  # after a failure it is unknown how much was sent
        try:
            if body is None:
                await self._send(self._message.start)
            else:
                await self._send_stream(body)
        except httpx.WriteError:
            if not self._is_cut_short:  # raised by the body iterator
                raise
            # The server may have answered and closed without reading the whole request.
            with suppress(httpx.NetworkError, httpx.RemoteProtocolError):
                await self._receive_head()
            if self._reader.head is None:
                raise
        else:
            await self._receive_head()

    async def _send(self, data: bytes) -> None:
        write = self._timeouts.get("write")
        await self._connection.limit.run(httpx.WriteTimeout, write, self._send_now, data)

    async def _send_now(self, data: bytes) -> None:
        try:
            await self._connection.stream.send(data)
        except _BROKEN as error:
            self._is_cut_short = True
            raise httpx.WriteError(_words(error)) from None

    async def _send_stream(self, body: AsyncIterator[bytes]) -> None:
        """Send a body as it is produced; the wait for its chunks is not limited."""
        try:
            await self._send_pieces(body)
        finally:
            if isinstance(body, AsyncGenerator):  # it may not have run to its end
                await bounded(cast("AsyncGenerator[bytes, None]", body).aclose)

    async def _send_pieces(self, body: AsyncIterator[bytes]) -> None:
        pending = self._message.start
        left = self._message.length
        async for chunk in body:
            if not chunk:
                continue
            if left is None:
                pending += b"%x\r\n%b\r\n" % (len(chunk), chunk)
            else:
                left -= len(chunk)
                if left < 0:
                    raise httpx.LocalProtocolError("the request's body is longer than its Content-Length")
                pending += chunk
            await self._send(pending)
            pending = b""
        if left:
            raise httpx.LocalProtocolError("the request's body is shorter than its Content-Length")
        if left is None:
            pending += b"0\r\n\r\n"
        if pending:
            await self._send(pending)

    async def _receive_head(self) -> None:
        connection, reader = self._connection, self._reader
        while reader.head is None:
            read = self._timeouts.get("read")
            try:
                await connection.limit.run(httpx.ReadTimeout, read, receive, connection, reader)
            except httpx.RemoteProtocolError as error:
                if reader.head is None:
                    raise
                self._broken = str(error)


class ResponseStream(httpx.AsyncByteStream):
    """A response body. Data that arrived together is yielded together, an error after the data before it.

    The connection returns to the pool as soon as the response has ended, if it is reusable. Otherwise, and if
    the stream is closed early, it is closed.
    """

    def __init__(
        self,
        pool: Pool,
        connection: Connection,
        reader: ResponseReader,
        read_timeout: float | None,
        broken: str | None = None,
    ) -> None:
        self._pool = pool
        self._connection: Connection | None = connection
        self._reader = reader
        self._read_timeout = read_timeout
        self._is_aborted = False
        self._broken = broken
        if reader.complete:
            self._finish(connection)
        elif broken is not None:
            self.abort()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while True:
            data = self._reader.take_body()
            if data:
                return data
            connection = self._connection
            if connection is None:
                if self._broken is not None:
                    raise httpx.RemoteProtocolError(self._broken)
                if self._is_aborted:
                    raise httpx.StreamClosed
                raise StopAsyncIteration
            try:
                await connection.limit.run(
                    httpx.ReadTimeout, self._read_timeout, receive, connection, self._reader
                )
            except httpx.RemoteProtocolError as error:
                self.abort()
                self._broken = str(error)  # not the error itself: its traceback refers to this object
                continue
            except BaseException:
                self.abort()
                raise
            if self._reader.complete:
                self._finish(connection)

    async def aclose(self) -> None:
        """Close the stream."""
        self.abort()

    def abort(self) -> None:
        """Close the stream immediately; must be called in its event loop."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._is_aborted = True
            self._pool.discard(connection)

    def take_whole(self) -> bytes | None:
        """Return the whole body if it has arrived and none of it was taken, otherwise None."""
        if self._connection is not None or self._is_aborted:
            return None
        return self._reader.take_body()

    def _finish(self, connection: Connection) -> None:
        self._connection = None
        if self._reader.reusable:
            self._pool.give_back(connection)
        else:
            self._pool.discard(connection)

    def __del__(self) -> None:
        if getattr(self, "_connection", None) is not None:
            connection, self._connection = self._connection, None
            pool = self._pool

            async def close() -> None:
                if connection is not None:
                    pool.discard(connection)

            close_soon(pool.loop, close)


async def receive(connection: Connection, reader: ResponseReader) -> None:
    """Receive the next bytes and feed them to `reader`.

    Raises:
        httpx.ReadError: the connection broke.
        httpx.RemoteProtocolError: the response ended too early, or is not HTTP.
    """
    try:
        data = await connection.stream.receive(MAX_RECEIVE_BYTES)
    except anyio.EndOfStream:
        reader.end(is_clean=connection.has_clean_end())
        return
    except _BROKEN as error:
        raise httpx.ReadError(_words(error)) from None
    reader.feed(data)


def _words(error: BaseException) -> str:
    return str(error) or str(error.__cause__ or "") or "the connection was closed"
