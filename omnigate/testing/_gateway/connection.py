"""Hangs up on a client, as a script or the protocol wants it: the connection under an ASGI response."""

from __future__ import annotations

from typing import Final

import anyio
import httpx
from starlette.types import Receive, Scope, Send

TRANSPORT: Final = "omnigate.transport"
"""In an ASGI scope: the asyncio transport of the connection, where there is a real one."""

_HANG_UP_SECONDS: Final = 5.0


async def hang_up(scope: Scope, receive: Receive, data: bytes = b"") -> None:
    """Close the connection under a response; in-process, where there is none, fail as it would."""
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
    """Be the response that is none, as an ASGI application: hang up."""
    await hang_up(scope, receive)
