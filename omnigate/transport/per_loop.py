"""A transport for each event loop, made at first use: a client is bound to no loop before its first call.

httpx's own transports keep connections of the loop they were used in, and fail when another one comes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import httpx

from omnigate.transport.event_loop import current_loop, has_ended


class PerLoopTransport(httpx.AsyncBaseTransport):
    """Sends through a transport of the running event loop.

    Loops that run at the same time, in several threads, have one each. The transport of a loop that has
    ended is dropped when the next loop comes, and its sockets with it.
    """

    def __init__(self, make: Callable[[], httpx.AsyncBaseTransport]) -> None:
        """Begin; `make` returns a new transport."""
        self._make = make
        self._transports: dict[object, httpx.AsyncBaseTransport] = {}
        self._lock = threading.Lock()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`; see httpx."""
        loop = current_loop()
        transport = self._transports.get(loop)
        if transport is None:
            transport = self._make()
            with self._lock:
                for other in [known for known in self._transports if has_ended(known)]:
                    del self._transports[other]
                self._transports[loop] = transport
        return await transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the running loop's transport; those of other loops are theirs to close."""
        with self._lock:
            transport = self._transports.pop(current_loop(), None)
        if transport is not None:
            await transport.aclose()

    def __repr__(self) -> str:
        return f"<PerLoopTransport of {list(self._transports.values())!r}>"
