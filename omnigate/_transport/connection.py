"""One connection: an anyio byte stream that is idle, in use, or closed.

Closing is synchronous, because neither a shield nor awaited clean-up withstands asyncio's `Task.cancel()`.
`close_now` therefore runs the stream's `aclose()` only as far as it goes without waiting; by then anyio's
socket streams have closed their socket.
"""

from __future__ import annotations

import select
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Literal

import anyio
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSAttribute

from omnigate._transport.messages import Origin
from omnigate._transport.timers import Limit

MAX_RECEIVE_BYTES: Final = 262_144
"""The most that asyncio reads in one go, so that nothing stays in anyio's own buffer."""

_STEPS: Final = 8


class Connection:
    """A connection to an origin.

    Attributes:
        state: "idle", "in use" or "closed".
        idle_since: when it became idle, by the pool's clock.
        expires: when it is too old to carry another request, by the pool's clock.
        used: whether it has already carried a complete response.
        limit: the time limit of the current read or write.
    """

    __slots__ = (
        "_poll", "_queue", "_tls", "expires", "idle_since", "limit", "origin", "state", "stream", "used",
    )  # fmt: skip

    def __init__(self, stream: ByteStream, origin: Origin, limit: Limit, expires: float) -> None:
        self.stream: ByteStream = stream
        self.origin: Origin = origin
        self.limit: Limit = limit
        self.expires: float = expires
        self.state: Literal["idle", "in use", "closed"] = "in use"
        self.idle_since: float = 0.0
        self.used: bool = False
        raw_socket = stream.extra(SocketAttribute.raw_socket, None)
        self._tls: ssl.SSLObject | None = stream.extra(TLSAttribute.ssl_object, None)
        # Data that anyio has already read from an asyncio transport: uvloop may deliver it unasked, and TLS
        # may consume only part of what arrived together.
        beneath = getattr(stream, "transport_stream", stream)
        self._queue: Any = getattr(getattr(beneath, "_protocol", None), "read_queue", None)
        self._poll = None if raw_socket is None else _poll_of(raw_socket)

    def is_quiet(self) -> bool:
        """Return whether nothing has arrived since the last response, neither data nor EOF."""
        if (self._poll is not None and self._poll(0)) or self._queue:
            return False
        if self._tls is None:
            return True
        try:
            # Data that arrived in one packet with the response's last record has already left the socket.
            self._tls.read(1)
        except ssl.SSLWantReadError:
            return True
        except ssl.SSLError:
            pass
        return False

    def has_clean_end(self) -> bool:
        """Return whether the server announced the end that was received, which only TLS can."""
        if self._tls is None:
            return True
        try:
            return self._tls.read(1) == b""  # after close_notify; a cut connection keeps raising
        except ssl.SSLError:
            return False

    def close(self) -> None:
        """Close the connection immediately."""
        if self.state != "closed":
            self.state = "closed"
            self._poll = None
            close_now(self.stream)

    def __repr__(self) -> str:
        scheme, host, port = self.origin
        return f"<Connection to {scheme}://{host}:{port}: {self.state}>"


def _poll_of(raw_socket: socket.socket) -> Callable[[int], list[Any]]:
    """Return a function that, given the timeout 0, returns a truthy value if the socket has data or EOF."""
    if sys.platform == "win32" or not hasattr(select, "poll"):
        return lambda timeout: select.select([raw_socket], [], [], timeout)[0]
    poll = select.poll()
    poll.register(raw_socket.fileno(), select.POLLIN)
    return poll.poll


def close_now(stream: Any) -> None:
    """Close an anyio stream without waiting, even if its event loop has ended."""
    closing = stream.aclose()
    try:
        for _ in range(_STEPS):
            if closing.send(None) is not None:  # a bare yield (None) can be stepped, a future cannot
                break
    except StopIteration:
        pass
    except (OSError, ssl.SSLError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass  # the stream was broken; it is closed either way
    except RuntimeError:
        # The event loop has ended, or this is no task of it. asyncio closes the descriptor when it is
        # collected; shutting the socket down ends the connection for the server now.
        raw_socket = stream.extra(SocketAttribute.raw_socket, None)
        if raw_socket is not None:
            with suppress(OSError):
                raw_socket.shutdown(socket.SHUT_RDWR)
    finally:
        closing.close()
