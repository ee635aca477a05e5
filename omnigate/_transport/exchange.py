"""One request and its response on one connection, and the stream of the response body."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Final, Protocol, TypeAlias, TypeVar, cast

import httpx
import msgspec

from omnigate._runtime.isolation import bounded, close_soon
from omnigate._transport.connection import Connection
from omnigate._transport.direct import DirectReader, Loan
from omnigate._transport.http11 import ResponseReader
from omnigate._transport.messages import Origin, OutgoingMessage, RawResponse
from omnigate._transport.pool import READERS_MAX, Pool
from omnigate._transport.timers import timed_out

T = TypeVar("T")

Timeouts: TypeAlias = dict[str, float | None]

_SMALL_BYTES: Final = 16_384

IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})


class Connections(Protocol):
    """Opens the connections that the pool has not."""

    async def _connection(
        self, pool: Pool, origin: Origin, timeouts: Timeouts, *, has_slot: bool
    ) -> Connection: ...


class Exchange(msgspec.Struct, eq=False, gc=False):  # made faster than another object
    """Sends a request on a connection of the pool, and reads the response head.

    When the head has arrived, the exchange owns the connection, until `take_whole` or `response`.

    Attributes:
        reader: has read the head by then.
    """

    _pool: Pool
    _opener: Connections
    _message: OutgoingMessage
    _timeouts: Timeouts
    _connection: Connection = cast("Connection", None)  # until it has one
    reader: ResponseReader = cast("ResponseReader", None)  # until the first bytes have arrived
    _is_cut_short: bool = False  # the request was not written completely
    _broken: str | None = None  # the protocol error in body data that arrived with the head

    def __repr__(self) -> str:  # a local variable in many tracebacks
        return f"<Exchange of {self._message!r}>"

    async def run(
        self,
        finish: Callable[[Exchange], T | None],
        go_on: Callable[[Exchange], Awaitable[T]] | None = None,
    ) -> T:
        """Send the request, read the response head, and return what `finish` makes of it.

        The reader is not made before the first bytes arrive: while a call waits, it shall hold few objects,
        because the garbage collector looks at them again and again.

        Args:
            finish: called once the head has arrived; returns None if there is more to read.
            go_on: reads on, then. Both are called from here because one more coroutine around this one would
                cost two hundredths of a call.

        Raises:
            httpx.TransportError: under the same conditions as with httpx's own transports.
        """
        pool, message = self._pool, self._message
        await pool.checkpoint_if_cancelled()  # a stream may send without one: a cancelled call sends nothing
        is_small = message.body is None and len(message.start) <= _SMALL_BYTES
        is_last = False
        while True:
            found = pool.take(message.origin)
            if type(found) is bool:  # twice as fast as `isinstance`
                found = await self._opener._connection(pool, message.origin, self._timeouts, has_slot=found)
            self._connection = found
            reader = None
            is_sent = False  # part of the request may have been written
            try:
                if not is_small:
                    is_sent = True  # after a failure it is unknown how much was sent
                    await self._large()
                    break
                # In one write, under one limit that is moved in between.
                limit, stream = found.limit, found.stream
                write, read = self._timeouts.get("write"), self._timeouts.get("read")
                is_written = False
                limit.begin(httpx.WriteTimeout, write)
                try:
                    pending = stream.send(message.start)
                    if pending is not None:
                        is_sent = True  # at least a part
                        await pending
                    is_sent = is_written = True
                    if read == write:
                        limit.kind = httpx.ReadTimeout  # writing took almost none of it
                    else:
                        limit.begin(httpx.ReadTimeout, read)
                    while True:
                        data = await stream.receive()
                        if reader is None:
                            if pool.readers:
                                reader = pool.readers.pop()
                                reader.restart(message.method)
                            else:
                                reader = ResponseReader(message.method)
                            self.reader = reader
                        if data:
                            reader.feed(data)
                        else:
                            reader.end(is_clean=stream.has_clean_end())
                        if reader.head is not None:
                            break
                        limit.begin(httpx.ReadTimeout, read)
                except OSError as error:
                    kind = httpx.ReadError if is_written else httpx.WriteError
                    raise limit.overdue() or kind(_words(error)) from None
                except httpx.RemoteProtocolError as error:
                    if reader is None or reader.head is None:
                        raise
                    self._broken = str(error)
                finally:
                    limit.deadline = math.inf  # `end`, without a call
                break
            except BaseException as error:
                pool.discard(found)
                if is_last or not found.used or not self._may_repeat(error, is_sent=is_sent):
                    raise
                is_last = True
                self.reader = cast("ResponseReader", None)
                pool.drop_idle(message.origin)
        result = finish(self)
        if result is None:
            assert go_on is not None
            return await go_on(self)
        return result

    def _may_repeat(self, error: BaseException, *, is_sent: bool) -> bool:
        """Return whether the request can be resent on another connection without being processed twice."""
        reader = cast("ResponseReader | None", self.reader)
        if self._message.body is not None or (reader is not None and reader.started):
            return False
        if not isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError):
            return False
        return not is_sent or self._message.method in IDEMPOTENT

    def take_whole(self) -> bytes | None:
        """Return the whole body if it has arrived and has no encoding, and give the connection back.

        The reader is given back, too: what else is to be read from it must have been.
        """
        reader = self.reader
        if not reader.complete or reader.is_encoded or self._broken is not None:
            return None
        body = reader.take_body()
        if self._is_cut_short or self._message.closes or not reader.reusable:
            reader.release()
            self._pool.discard(self._connection)
        else:
            pool = self._pool
            if reader.is_head or len(pool.readers) >= READERS_MAX:
                reader.release()
            else:
                pool.readers.append(reader)
            pool.give_back(self._connection)
        return body

    def response(self) -> RawResponse:
        """Return the response, which takes ownership of the connection."""
        reader = self.reader
        assert reader.head is not None
        if self._is_cut_short or self._message.closes:
            reader.forbid_reuse()
        read = self._timeouts.get("read")
        stream = ResponseStream(self._pool, self._connection, reader, read, self._broken)
        return RawResponse(reader.status_code, reader.head, stream)

    async def _large(self) -> None:
        """Send the request, whole or as its body is produced, and read the head, under separate limits."""
        body = self._message.body
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
                return
            raise
        await self._receive_head()

    async def _send(self, data: bytes) -> None:
        limit = self._connection.limit
        limit.begin(httpx.WriteTimeout, self._timeouts.get("write"))
        try:
            pending = self._connection.stream.send(data)
            if pending is not None:
                await pending
        except OSError as error:
            overdue = limit.overdue()
            if overdue is not None:
                raise overdue from None
            self._is_cut_short = True
            raise httpx.WriteError(_words(error)) from None
        finally:
            limit.end()

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
        connection, read = self._connection, self._timeouts.get("read")
        reader = self.reader = ResponseReader(self._message.method)
        while reader.head is None:
            try:
                await receive(connection, reader, read)
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
        self._loan: Loan | None = None
        if reader.complete:
            self._finish(connection)
        elif broken is not None:
            self.abort()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._loan is not None:
            self._take_back(self._loan)
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
                await receive(connection, self._reader, self._read_timeout)
            except httpx.RemoteProtocolError as error:
                self.abort()
                self._broken = str(error)  # not the error itself: its traceback refers to this object
                continue
            except BaseException:
                self.abort()
                raise
            if self._reader.complete:
                self._finish(connection)

    def lend(self) -> DirectReader | None:
        """Return a reader for another thread, valid until the next read here; None if impossible."""
        connection, reader = self._connection, self._reader
        if self._loan is not None or connection is None or reader.complete:
            return None
        descriptor = connection.stream.lend()
        if descriptor is None:
            return None
        self._loan = Loan()
        return DirectReader(descriptor, reader, self._read_timeout, self._loan)

    def _take_back(self, loan: Loan) -> None:
        """Read in the event loop again, and deal with what only it can.

        Raises:
            httpx.ReadTimeout: nothing arrived in time.
        """
        self._loan = None
        connection = self._connection
        if connection is None:
            return
        connection.stream.take_back()
        if loan.broken is not None:
            self.abort()
            self._broken = loan.broken
        elif self._reader.complete:
            self._finish(connection)
        elif loan.is_overdue:
            self.abort()
            raise timed_out(httpx.ReadTimeout, self._read_timeout)

    async def aclose(self) -> None:
        """Close the stream."""
        self.abort()

    def abort(self) -> None:
        """Close the stream immediately; must be called in its event loop."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._is_aborted = True
            self._pool.discard(connection)

    def _finish(self, connection: Connection) -> None:
        self._connection = None
        self._reader.release()
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


async def receive(connection: Connection, reader: ResponseReader, seconds: float | None) -> None:
    """Receive the next bytes, within `seconds`, and feed them to `reader`.

    Raises:
        httpx.ReadError: the connection broke.
        httpx.ReadTimeout: nothing arrived in time.
        httpx.RemoteProtocolError: the response ended too early, or is not HTTP.
    """
    limit = connection.limit
    limit.begin(httpx.ReadTimeout, seconds)
    try:
        data = await connection.stream.receive()
    except OSError as error:
        raise limit.overdue() or httpx.ReadError(_words(error)) from None
    finally:
        limit.end()
    if data:
        reader.feed(data)
    else:
        reader.end(is_clean=connection.stream.has_clean_end())


def _words(error: OSError) -> str:
    return str(error) or "the connection was closed"
