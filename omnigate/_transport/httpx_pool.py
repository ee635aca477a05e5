"""Takes out of the pool of httpx's own transport what got lost in it.

httpcore (1.0.9) gives a request that waits in line a new connection as soon as another request leaves. If
the one in line is cancelled at that moment, nobody ever opens that connection, uses or closes it, and it
counts against the pool's limit for ever: cancelling a batch that is larger than the pool can cost it all its
slots. What is in use belongs to a request that the pool knows; what does not, and is neither idle nor
closed, is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from omnigate._runtime.isolation import bounded
from omnigate._runtime.loops import PerLoop


class PerLoopTransport(httpx.AsyncBaseTransport):
    """Sends through a transport of the running event loop.

    Loops that run at the same time, in several threads, have one each. The transport of a loop that has
    ended is dropped when the next loop comes, and its sockets with it.
    """

    def __init__(self, make: Callable[[], httpx.AsyncBaseTransport]) -> None:
        """Begin; `make` returns a new transport."""
        self._transports: PerLoop[httpx.AsyncBaseTransport] = PerLoop(lambda loop: make())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`; see httpx."""
        return await self._transports.current().handle_async_request(request)

    async def aclose(self) -> None:
        """Close the running loop's transport; those of other loops are theirs to close."""
        transport = self._transports.pop()
        if transport is not None:
            await transport.aclose()

    def __repr__(self) -> str:
        return f"<PerLoopTransport of {self._transports.values()!r}>"


async def drop_lost_connections(transport: object) -> None:
    """Close the connections that got lost in the pool of `transport`, if it has one of httpcore's."""
    pool: Any = getattr(transport, "_pool", None)
    try:
        connections: list[Any] = pool._connections
        in_use = {id(request.connection) for request in pool._requests}
        lost = [c for c in connections if id(c) not in in_use and not (c.is_idle() or c.is_closed())]
        if not lost:
            return
        for connection in lost:
            connections.remove(connection)
        closing = lost + pool._assign_requests_to_connections()  # their slots are for who waits in line
    except AttributeError:  # another transport, or another version of it
        return

    async def close() -> None:
        for connection in closing:
            await connection.aclose()

    await bounded(close)


class HttpxTransport(httpx.AsyncBaseTransport):
    """httpx's own transport, whose pool keeps all its slots."""

    def __init__(self, transport: httpx.AsyncHTTPTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`; see httpx."""
        try:
            return await self._transport.handle_async_request(request)
        except BaseException:
            await drop_lost_connections(self._transport)
            raise

    async def aclose(self) -> None:
        """Close the transport."""
        await self._transport.aclose()

    def __repr__(self) -> str:
        pool = getattr(self._transport, "_pool", self._transport)  # httpcore's, whose repr has the numbers
        return f"<HttpxTransport of {pool!r}>"
