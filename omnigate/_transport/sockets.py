"""Connects sockets, on asyncio and trio: to one address, to the first of several that answers, or to a path.

A cancelled await leaves nothing behind: a socket that was connected meanwhile is closed immediately.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import anyio

from omnigate._runtime.loops import in_trio

_NEXT_ADDRESS_SECONDS: Final = 0.25
"""How long to try an address before also trying the next one (RFC 8305, section 5)."""


async def connect(addresses: Sequence[str], port: int) -> socket.socket:
    """Return a non-blocking socket connected to the address that answers first.

    Args:
        addresses: IP addresses, in the order in which to try them.
        port: the port.

    Raises:
        OSError: no address answers.
    """
    return await (_connect_to(addresses[0], port) if len(addresses) == 1 else _race(addresses, port))


async def connect_unix(path: str) -> socket.socket:
    """Return a non-blocking socket connected to a unix domain socket.

    Raises:
        OSError: it cannot be reached, or the system has no such sockets.
    """
    if sys.platform == "win32":
        raise OSError("this system has no unix domain sockets")
    return await _connected(socket.AF_UNIX, path)


async def _connect_to(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = await _connected(family, (address, port))
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


async def _connected(family: socket.AddressFamily, target: Any) -> socket.socket:
    if in_trio():
        trio = sys.modules["trio"]
        pending = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            await pending.connect(target)
            sock = socket.socket(family, socket.SOCK_STREAM, fileno=pending.detach())
        except BaseException:
            pending.close()
            raise
        sock.setblocking(False)
        return sock
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, target)
    except BaseException:
        sock.close()
        raise
    return sock


async def _race(addresses: Sequence[str], port: int) -> socket.socket:
    """Connect to the address that answers first; attempts start one after another.

    Raises:
        OSError: no address answers.
    """
    connected: socket.socket | None = None
    errors: list[OSError] = []

    async def attempt(address: str, ended: anyio.Event) -> None:
        nonlocal connected
        try:
            sock = await _connect_to(address, port)
        except OSError as error:
            errors.append(error)
        else:
            if connected is None:
                connected = sock
                group.cancel_scope.cancel()
            else:
                sock.close()
        finally:
            ended.set()

    try:
        async with anyio.create_task_group() as group:
            for address in addresses:
                ended = anyio.Event()
                group.start_soon(attempt, address, ended)
                with anyio.move_on_after(_NEXT_ADDRESS_SECONDS):
                    await ended.wait()
    except BaseException:
        if connected is not None:
            connected.close()
        raise
    if connected is None:
        raise OSError("no address answers") from ExceptionGroup("all addresses failed", errors)
    return connected
