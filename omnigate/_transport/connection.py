"""One connection: a byte stream that is idle, in use, or closed."""

from __future__ import annotations

from typing import Any, Literal

from omnigate._runtime.loops import call_soon
from omnigate._transport.byte_stream import ByteStream
from omnigate._transport.messages import Origin
from omnigate._transport.timers import Limit


class Connection:
    """A connection to an origin.

    Attributes:
        state: "idle", "in use" or "closed".
        idle_since: when it became idle, by the pool's clock.
        expires: when it is too old to carry another request, by the pool's clock.
        used: whether it has already carried a complete response.
        limit: the time limit of the current read or write.
        stream: its byte stream.
    """

    __slots__ = ("_loop", "expires", "idle_since", "limit", "origin", "state", "stream", "used")

    def __init__(self, stream: ByteStream, origin: Origin, limit: Limit, expires: float, loop: Any) -> None:
        """Start in use, in `loop`."""
        self._loop = loop
        self.stream: ByteStream = stream
        self.origin: Origin = origin
        self.limit: Limit = limit
        self.expires: float = expires
        self.state: Literal["idle", "in use", "closed"] = "in use"
        self.idle_since: float = 0.0
        self.used: bool = False

    def is_quiet(self) -> bool:
        """Return whether nothing has arrived since the last response, neither data nor EOF."""
        return self.stream.is_quiet()

    def close(self) -> None:
        """Close the connection immediately."""
        if self.state != "closed":
            self.state = "closed"
            self.stream.abort()

    def __del__(self) -> None:
        # Of a transport that was discarded without being closed. An event loop keeps what it reads from.
        if getattr(self, "state", "closed") != "closed":
            abort = self.stream.abort
            try:
                call_soon(self._loop, abort)  # this may be any thread
            except RuntimeError:
                abort()  # the loop has ended

    def __repr__(self) -> str:
        scheme, host, port = self.origin
        return f"<Connection to {scheme}://{host}:{port}: {self.state}>"
