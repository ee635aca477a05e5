"""httpx's own transport, without the connections that its pool leaks, and one transport per event loop.

httpcore (1.0.9) assigns a new connection to a queued request as soon as another request finishes. If the
queued request is cancelled at that moment, the connection is never opened, used or closed, and counts against
the pool's limit permanently: cancelling a batch larger than the pool can cost all its slots. A connection
that belongs to none of the pool's requests and is neither idle nor closed has leaked.

It also closes idle connections only when it is used again, so that those that the server has closed stay in
CLOSE_WAIT for as long as the client is idle. An alarm closes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import httpx

from omnigate._runtime.isolation import bounded, close_soon
from omnigate._runtime.loops import PerLoop, current_loop
from omnigate._transport.timers import Alarm
from omnigate._wire.pickling import UnpicklableClient

_SECONDS: Final = 5.0
"""How often the idle connections are looked at: httpx's own expiry is as long."""


class PerLoopTransport(UnpicklableClient, httpx.AsyncBaseTransport):
    """Sends each request through a transport that belongs to the running event loop.

    Loops that run simultaneously, in several threads, have one each. The transport of an ended loop is
    dropped, with its sockets, when the next loop first sends.
    """

    def __init__(self, make: Callable[[], httpx.AsyncBaseTransport]) -> None:
        """Start without transports; `make` creates one."""
        self._transports: PerLoop[httpx.AsyncBaseTransport] = PerLoop(lambda loop: make())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`; see httpx."""
        return await self._transports.current().handle_async_request(request)

    async def aclose(self) -> None:
        """Close the running loop's transport; those of other loops are left to them."""
        transport = self._transports.pop()
        if transport is not None:
            await transport.aclose()

    def __repr__(self) -> str:
        return f"<PerLoopTransport of {self._transports.values()!r}>"


async def drop_lost_connections(transport: object) -> None:
    """Close the connections that leaked in the httpcore pool of `transport`, if it has one."""
    pool: Any = getattr(transport, "_pool", None)
    try:
        connections: list[Any] = pool._connections
        in_use = {id(request.connection) for request in pool._requests}
        lost = [c for c in connections if id(c) not in in_use and not (c.is_idle() or c.is_closed())]
        if not lost:
            return
        for connection in lost:
            connections.remove(connection)
        closing = lost + pool._assign_requests_to_connections()  # gives their slots to queued requests
    except AttributeError:  # another transport, or another version of it
        return

    async def close() -> None:
        for connection in closing:
            await connection.aclose()

    await bounded(close)


class HttpxTransport(UnpicklableClient, httpx.AsyncBaseTransport):
    """httpx's own transport, with a pool that leaks no slots and keeps no dead connections."""

    def __init__(self, transport: httpx.AsyncHTTPTransport) -> None:
        self._transport = transport
        self._alarm: Alarm | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`; see httpx."""
        loop = current_loop()
        if self._alarm is None or self._alarm.loop is not loop:
            self._alarm = Alarm(loop, self._close_stale, "close idle connections")
        if self._alarm.timer is None:
            self._alarm.set(_SECONDS)
        try:
            return await self._transport.handle_async_request(request)
        except BaseException:
            await drop_lost_connections(self._transport)
            raise

    async def aclose(self) -> None:
        """Close the transport."""
        if self._alarm is not None and self._alarm.loop is current_loop():
            self._alarm.stop()
        await self._transport.aclose()

    def _close_stale(self) -> None:
        """Close the idle connections that have expired or that the server has closed."""
        pool: Any = getattr(self._transport, "_pool", None)
        try:
            stale: list[Any] = pool._assign_requests_to_connections()
            is_empty = not pool._connections
        except AttributeError:  # another version of httpx
            return

        async def close() -> None:
            for connection in stale:
                await connection.aclose()

        assert self._alarm is not None
        if stale:
            close_soon(self._alarm.loop, close)
        if not is_empty:
            self._alarm.set(_SECONDS)

    def __repr__(self) -> str:
        pool = getattr(
            self._transport, "_pool", self._transport
        )  # httpcore's pool shows its counts in its repr
        return f"<HttpxTransport of {pool!r}>"
