"""A transport for each event loop, made at first use: a client is bound to no loop before its first call.

httpx's own transports keep connections of the loop they were used in, and fail when another one comes.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import httpx

from omnigate.transport.event_loop import current_loop


class PerLoopTransport(httpx.AsyncBaseTransport):
    """Sends through a transport of the running event loop.

    A loop that has ended takes its transport along. Loops that run at the same time, in several threads,
    have one each.
    """

    def __init__(self, make: Callable[[], httpx.AsyncBaseTransport]) -> None:
        """Begin; `make` returns a new transport."""
        self._make = make
        self._transports: WeakKeyDictionary[object, httpx.AsyncBaseTransport] = WeakKeyDictionary()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`; see httpx."""
        token = current_loop()
        transport = self._transports.get(token)
        if transport is None:
            transport = self._transports[token] = self._make()
        return await transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the running loop's transport; another loop's is closed by nobody else than that loop."""
        transport = self._transports.pop(current_loop(), None)
        if transport is not None:
            await transport.aclose()

    def __repr__(self) -> str:
        return f"<PerLoopTransport of {list(self._transports.values())!r}>"
