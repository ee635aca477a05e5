"""A byte stream on asyncio: a protocol on the event loop's own transport, with the loop's own TLS.

Reading is not paused between receives, so a receive costs one future and no system call but the read. Bytes
that nobody receives are kept, up to a bound; beyond it, reading is paused. `send` writes to the transport,
and waits only while its buffer is above the high-water mark.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable
from contextlib import suppress
from typing import Final, cast

from omnigate._transport.byte_stream import CLOSED, Poll, duplicate, poll_of, shut_down

_MOST_UNREAD_BYTES: Final = 65_536
"""How many bytes are kept for a receive, apart from those of the last read, before reading is paused."""

_NO_LIMIT_SECONDS: Final = 86_400.0
"""asyncio limits a TLS handshake to a minute unless it is told otherwise; the connector has its own limit."""


async def open_stream(sock: socket.socket, context: ssl.SSLContext | None, hostname: str) -> AsyncioStream:
    """Return a stream over a connected socket, which it owns, also after an error.

    Args:
        sock: the socket, non-blocking.
        context: for TLS; None for none.
        hostname: the name that the server's certificate must have.

    Raises:
        OSError: the TLS handshake failed.
    """
    loop = asyncio.get_running_loop()
    stream = AsyncioStream(loop, sock)
    connect = loop.create_connection
    if hasattr(socket, "AF_UNIX") and sock.family == socket.AF_UNIX:
        connect = loop.create_unix_connection  # type: ignore[assignment]
    try:
        if context is None:
            await connect(lambda: stream, sock=sock)
        else:
            await connect(
                lambda: stream,
                sock=sock,
                ssl=context,
                server_hostname=hostname,
                ssl_handshake_timeout=_NO_LIMIT_SECONDS,
            )
    except BaseException:
        stream.abort()
        shut_down(sock)  # ends a handshake that nobody waits for any more
        raise
    return stream


class AsyncioStream(asyncio.Protocol):
    """A connected byte stream."""

    __slots__ = (
        "_drained", "_has_ended", "_is_aborted", "_is_clean", "_is_lent", "_is_paused", "_loop", "_poll",
        "_problem", "_socket", "_tls", "_transport", "_unread", "_waiter", "_was_lent",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        """Start before the connection is made."""
        self._loop = loop
        self._socket = sock  # the transport's
        self._tls: ssl.SSLObject | None = None
        self._transport: asyncio.Transport | None = None
        self._poll: Poll | None = None  # not made for a connection that carries one request
        self._unread = bytearray()
        self._is_paused = False  # reading is, because of what is unread
        self._is_lent = False
        self._was_lent = False  # a traceback may keep a descriptor that was lent, and so the connection
        self._waiter: asyncio.Future[bytes] | None = None  # of `receive`
        self._drained: asyncio.Future[None] | None = None  # while writing is paused
        self._has_ended = False
        self._is_clean = False
        self._is_aborted = False
        self._problem: str | None = None  # words, since an error keeps its traceback

    def send(self, data: bytes) -> Awaitable[None] | None:
        """Send `data`; return None if nothing is left to wait for."""
        transport = self._transport
        if transport is None or self._problem is not None or transport.is_closing():
            raise OSError(self._problem or CLOSED)
        transport.write(data)
        if transport.is_closing():  # the write failed immediately, so the system took nothing
            raise OSError(self._problem or CLOSED)
        return None if self._drained is None else self._drain(self._drained)

    async def _drain(self, drained: asyncio.Future[None]) -> None:
        await drained
        if self._problem is not None:
            raise OSError(self._problem)

    def receive(self) -> asyncio.Future[bytes]:
        """Return the next bytes; b"" at the end."""
        future: asyncio.Future[bytes] = self._loop.create_future()
        if self._unread:
            future.set_result(bytes(self._unread))
            self._unread.clear()
            if self._is_paused:
                self._is_paused = False
                cast("asyncio.Transport", self._transport).resume_reading()
        elif self._problem is not None:
            future.set_exception(OSError(self._problem))
        elif self._has_ended:
            future.set_result(b"")
        else:
            self._waiter = future
        return future

    def is_quiet(self) -> bool:
        """Return whether nothing has arrived that was not received, neither data nor the end."""
        if self._unread or self._has_ended or self._problem is not None:
            return False
        poll = self._poll
        if poll is None:
            poll = self._poll = poll_of(self._socket)
        return not poll(0)

    def has_clean_end(self) -> bool:
        """Return whether the end that was received is the server's."""
        return self._is_clean

    def lend(self) -> int | None:
        """Stop reading; return a descriptor for another thread to read from, or None."""
        transport = self._transport
        if transport is None or self._tls is not None or transport.is_closing():
            return None
        if self._unread or self._has_ended or self._problem is not None:
            return None
        descriptor = duplicate(self._socket)
        if descriptor is not None:
            transport.pause_reading()
            self._is_lent = self._was_lent = True
        return descriptor

    def take_back(self) -> None:
        """Read again."""
        if self._is_lent:
            self._is_lent = False
            if not self._is_aborted:
                cast("asyncio.Transport", self._transport).resume_reading()

    def abort(self) -> None:
        """Close the stream immediately, even if its event loop has ended."""
        if self._is_aborted:
            return
        self._is_aborted = True
        if self._was_lent:
            shut_down(self._socket)
        if self._loop.is_closed():
            # asyncio closes the descriptor when it is collected; this ends the connection for the server now.
            self._problem = CLOSED
            shut_down(self._socket)
            return
        self._fail(CLOSED)
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, problem: str) -> None:
        """Let all operations fail, those waiting first."""
        if self._problem is None:
            self._problem = problem
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(OSError(self._problem))
        self.resume_writing()

    def _end(self) -> None:
        self._has_ended = True
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(b"")

    # Callbacks of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, unless the caller has gone."""
        self._transport = cast("asyncio.Transport", transport)
        self._tls = transport.get_extra_info("ssl_object")
        if self._is_aborted:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Give the bytes to the receive that waits, or keep them for the next."""
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(data)
            return  # after a cancelled receive nobody uses the stream again
        self._unread += data
        if len(self._unread) >= _MOST_UNREAD_BYTES and not self._is_paused:
            self._is_paused = True
            cast("asyncio.Transport", self._transport).pause_reading()

    def eof_received(self) -> bool:
        """Note the end, and with TLS whether it was announced."""
        if self._tls is None:
            self._is_clean = True
        else:
            with suppress(ssl.SSLError):
                self._is_clean = (
                    self._tls.read(1) == b""
                )  # after close_notify; a cut connection keeps raising
        self._end()
        return self._tls is None  # keeps the transport open to write on; TLS knows no half-closed streams

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end or the error, and wake whichever operation is waiting."""
        if exc is not None:
            self._fail(str(exc) or CLOSED)
        else:
            self._end()
            self.resume_writing()

    def pause_writing(self) -> None:
        """Let the next sends wait."""
        if self._drained is None:
            self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        """Wake the send that waits."""
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)
