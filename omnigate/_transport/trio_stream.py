"""A byte stream on trio: a non-blocking socket, which is written to directly and waited for by trio."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable
from typing import Final

import trio
from trio.lowlevel import notify_closing, wait_readable, wait_writable

from omnigate._transport.byte_stream import CLOSED, ByteStream, Poll, duplicate, poll_of, shut_down
from omnigate._transport.tls import TLSStream

_MAX_RECEIVE_BYTES: Final = 65_536


async def open_stream(sock: socket.socket, context: ssl.SSLContext | None, hostname: str) -> ByteStream:
    """Return a stream over a connected socket, which it owns, also after an error.

    Args:
        sock: the socket, non-blocking.
        context: for TLS; None for none.
        hostname: the name that the server's certificate must have.

    Raises:
        OSError: the TLS handshake failed.
    """
    stream = TrioStream(sock)
    if context is None:
        return stream
    try:
        secure = TLSStream(stream, context, hostname)
        await secure.handshake()
    except BaseException:
        stream.abort()
        raise
    return secure


class TrioStream:
    """A connected byte stream."""

    __slots__ = ("_is_aborted", "_poll", "_socket", "_was_lent")

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._poll: Poll | None = None  # not made for a connection that carries one request
        self._is_aborted = False
        self._was_lent = False

    def send(self, data: bytes) -> Awaitable[None] | None:
        """Send `data`; return None if nothing is left to wait for."""
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise self._translated(error) from None
        return None if sent == len(data) else self._send_rest(data, sent)

    async def _send_rest(self, data: bytes, sent: int) -> None:
        with memoryview(data) as view:
            while sent < len(data):
                try:
                    await wait_writable(self._socket)
                    sent += self._socket.send(view[sent:])
                except BlockingIOError:
                    pass
                except (OSError, trio.ClosedResourceError) as error:
                    raise self._translated(error) from None

    async def receive(self) -> bytes:
        """Return the next bytes; b"" at the end."""
        while True:
            if self._is_aborted:
                raise OSError(CLOSED)
            try:
                await wait_readable(self._socket)
                return self._socket.recv(_MAX_RECEIVE_BYTES)
            except BlockingIOError:
                pass
            except (OSError, trio.ClosedResourceError) as error:
                raise self._translated(error) from None

    def _translated(self, error: Exception) -> OSError:
        return error if isinstance(error, OSError) and not self._is_aborted else OSError(CLOSED)

    def is_quiet(self) -> bool:
        """Return whether nothing has arrived that was not received, neither data nor the end."""
        if self._is_aborted:
            return False
        poll = self._poll
        if poll is None:
            poll = self._poll = poll_of(self._socket)
        return not poll(0)

    def has_clean_end(self) -> bool:
        """Return True: without TLS nobody can tell."""
        return True

    def lend(self) -> int | None:
        """Return a descriptor for another thread to read from, or None."""
        descriptor = None if self._is_aborted else duplicate(self._socket)
        if descriptor is not None:
            self._was_lent = True
        return descriptor

    def take_back(self) -> None:
        """Do nothing: trio reads only when it is asked to."""

    def abort(self) -> None:
        """Close the stream immediately, even if its event loop has ended."""
        if self._is_aborted:
            return
        self._is_aborted = True
        if self._was_lent:  # a traceback may keep that descriptor, and so the connection
            shut_down(self._socket)
        try:
            notify_closing(self._socket)  # wakes the task that waits for it
        except RuntimeError:
            pass  # the event loop has ended
        finally:
            self._socket.close()
