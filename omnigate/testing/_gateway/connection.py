"""Closes the connection under an ASGI response, where a script or the protocol requires it."""

from __future__ import annotations

from typing import Final

import anyio
import httpx
from starlette.types import Receive, Scope, Send

TRANSPORT: Final = "omnigate.transport"
"""The ASGI scope's key for the connection's asyncio transport; missing in-process."""

_HANG_UP_SECONDS: Final = 5.0


async def hang_up(scope: Scope, receive: Receive, data: bytes = b"") -> None:
    """Close the connection under a response; in-process, raise the error that a client would get."""
    transport = scope.get(TRANSPORT)
    if transport is None:
        raise httpx.RemoteProtocolError("the local gateway closed the connection without an answer")
    if data:
        transport.write(data)
    transport.close()
    with anyio.move_on_after(_HANG_UP_SECONDS):
        while (await receive())["type"] != "http.disconnect":
            pass


async def drop(scope: Scope, receive: Receive, send: Send) -> None:
    """Close the connection instead of answering (an ASGI application)."""
    await hang_up(scope, receive)
