"""What a connection needs of its byte stream, and what the streams of all event loops have in common.

A stream belongs to one event loop and serves one task at a time. Closing it is synchronous, because neither a
shield nor awaited clean-up withstands asyncio's `Task.cancel()`; an operation that is waiting then fails.

A stream without TLS can be lent to another thread. That reads and writes on a duplicate of the socket's
descriptor, whose number cannot come to mean another connection meanwhile. Closing a stream that was ever lent
shuts the connection down, which wakes that thread.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

from omnigate._runtime.gevent import gevent_patches

CLOSED = "the connection was closed"


class ByteStream(Protocol):
    """A connected byte stream. All its errors are `OSError`s."""

    def send(self, data: bytes) -> Awaitable[None] | None:
        """Send `data`; return None if nothing is left to wait for.

        After an error, or a cancelled wait, it is unknown how much was sent, except that an error raised here
        means nothing was.
        """
        ...

    def receive(self) -> Awaitable[bytes]:
        """Return the next bytes; b"" at the end."""
        ...

    def is_quiet(self) -> bool:
        """Return whether nothing has arrived that was not received, neither data nor the end."""
        ...

    def has_clean_end(self) -> bool:
        """Return whether the end that was received is the server's, and not that of somebody on the way.

        Only TLS can tell: the server announces the end.
        """
        ...

    def lend(self) -> int | None:
        """Stop reading; return a descriptor for another thread, which belongs to the caller.

        None if that is not possible: with TLS, on Windows, under gevent, and while anything has arrived.
        Nothing may be received before `take_back`.
        """
        ...

    def take_back(self) -> None:
        """Read again, after `lend`."""
        ...

    def abort(self) -> None:
        """Close the stream immediately, even if its event loop has ended; idempotent."""
        ...


def duplicate(sock: socket.socket) -> int | None:
    """Return a duplicate of a socket's descriptor to wait for and read from, if the system can do that."""
    if sys.platform == "win32" or not hasattr(select, "poll") or gevent_patches("select"):
        return None
    try:
        return os.dup(sock.fileno())
    except OSError:  # there are no more descriptors, or it was closed
        return None


def shut_down(sock: socket.socket) -> None:
    """End a connection for both sides, and wake a thread that waits on a duplicate of its descriptor."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


Poll = Callable[[int], list[Any]]


def poll_of(sock: socket.socket) -> Poll:
    """Return a function that, given the timeout 0, returns a truthy value if the socket has data or EOF."""
    if sys.platform == "win32" or not hasattr(select, "poll"):
        return lambda timeout: select.select([sock], [], [], timeout)[0]
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return poll.poll
