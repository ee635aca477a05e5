"""One connection: a byte stream that is idle, in use, or closed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

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
        is_quiet: whether nothing has arrived since the last response, neither data nor EOF.
    """

    __slots__ = ("expires", "idle_since", "is_quiet", "limit", "origin", "state", "stream", "used")

    def __init__(self, stream: ByteStream, origin: Origin, limit: Limit, expires: float) -> None:
        self.stream: ByteStream = stream
        self.is_quiet: Callable[[], bool] = stream.is_quiet
        self.origin: Origin = origin
        self.limit: Limit = limit
        self.expires: float = expires
        self.state: Literal["idle", "in use", "closed"] = "in use"
        self.idle_since: float = 0.0
        self.used: bool = False

    def close(self) -> None:
        """Close the connection immediately."""
        if self.state != "closed":
            self.state = "closed"
            self.stream.abort()

    def __repr__(self) -> str:
        scheme, host, port = self.origin
        return f"<Connection to {scheme}://{host}:{port}: {self.state}>"
