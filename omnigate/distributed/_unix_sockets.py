"""A unix domain socket for the server, on asyncio, uvloop and trio.

anyio has one. But when a wait for data is cancelled just as it arrives, or as the peer closes, uvloop logs an
exception: anyio's callback then finds its future done.
"""

from __future__ import annotations

import socket
from typing import Final, Self

import anyio
import anyio.abc
import anyio.lowlevel

__all__ = ["UnixListener", "UnixStream", "listen"]

_RECEIVE_BYTES: Final = 65_536


async def listen(path: str) -> UnixListener:
    """Listen at a path, readable by its owner only. A socket that is there is replaced.

    Raises:
        OSError: the path is not available.
    """
    return UnixListener(await anyio.create_unix_listener(path, mode=0o600))


class UnixListener:
    """Accepts connections.

    Args:
        listener: anyio's, which is closed with this one.
    """

    def __init__(self, listener: anyio.abc.SocketListener) -> None:
        self._listener = listener
        self._socket: socket.socket = listener.extra(anyio.abc.SocketAttribute.raw_socket)

    async def accept(self) -> UnixStream:
        """Return the next connection.

        Raises:
            OSError: it could not be accepted.
        """
        await anyio.lowlevel.checkpoint()
        while True:
            try:
                connection, _ = self._socket.accept()
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
            else:
                connection.setblocking(False)
                return UnixStream(connection)

    async def aclose(self) -> None:
        """Stop listening; the file stays."""
        await self._listener.aclose()


class UnixStream:
    """A connection; leaving its `async with` block closes it.

    Args:
        connection: a socket that does not block.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    async def receive(self) -> bytes:
        """Return the next bytes.

        Raises:
            EndOfStream: the peer has closed the connection.
            OSError: it is broken.
        """
        await anyio.lowlevel.checkpoint()
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
            else:
                if not data:
                    raise anyio.EndOfStream
                return data

    async def send(self, data: bytes) -> None:
        """Send bytes.

        Raises:
            OSError: the connection is broken.
        """
        await anyio.lowlevel.checkpoint()
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                await anyio.wait_writable(self._socket)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._socket.close()
