"""What a connection needs of its byte stream, and what the streams of all event loops have in common.

A stream belongs to one event loop and serves one task at a time. Closing it is synchronous, because neither a
shield nor awaited clean-up withstands asyncio's `Task.cancel()`; an operation that is waiting then fails.
"""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

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

    def abort(self) -> None:
        """Close the stream immediately, even if its event loop has ended; idempotent."""
        ...


Poll = Callable[[int], list[Any]]


def poll_of(sock: socket.socket) -> Poll:
    """Return a function that, given the timeout 0, returns a truthy value if the socket has data or EOF."""
    if sys.platform == "win32" or not hasattr(select, "poll"):
        return lambda timeout: select.select([sock], [], [], timeout)[0]
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return poll.poll
