"""Servers on loopback whose every byte a test decides, with checks for leaks."""

import os
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import anyio.abc
import anyio.lowlevel
from anyio.streams.tls import TLSListener, TLSStream

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@dataclass
class Received:
    """A request as received."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """Return a header's value, or None."""
        return next((value for known, value in self.headers if known.lower() == name), None)


class Peer:
    """The server's side of one connection."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self.stream = stream
        self.pending = b""

    async def request(self) -> Received:
        """Read one request to its end."""
        await self._until(lambda: b"\r\n\r\n" in self.pending)
        head, _, self.pending = self.pending.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        method, target, _ = first.split(" ")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        received = Received(method, target, headers, b"")
        if received.header("transfer-encoding") == "chunked":
            received.body = await self._chunks()
        else:
            length = int(received.header("content-length") or 0)
            await self._until(lambda: len(self.pending) >= length)
            received.body, self.pending = self.pending[:length], self.pending[length:]
        return received

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        await self.stream.send(data)

    async def closed(self) -> None:
        """Wait until the client closes the connection."""
        try:
            while True:
                await self.stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass

    async def _chunks(self) -> bytes:
        body = b""
        while True:
            await self._until(lambda: b"\r\n" in self.pending)
            size, _, self.pending = self.pending.partition(b"\r\n")
            length = int(size, 16)
            await self._until(lambda length=length: len(self.pending) >= length + 2)  # type: ignore[misc]
            body += self.pending[:length]
            assert self.pending[length : length + 2] == b"\r\n"
            self.pending = self.pending[length + 2 :]
            if not length:
                return body

    async def _until(self, arrived: Callable[[], bool]) -> None:
        while not arrived():
            self.pending += await self.stream.receive()


Handler = Callable[[Peer], Awaitable[None]]


@dataclass
class Served:
    """A running server."""

    url: str
    port: int
    accepted: int = 0
    open: int = 0
    received: list[Received] = field(default_factory=list)


@asynccontextmanager
async def serving(
    handler: Handler | bytes = OK,
    *,
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
    uds: str | None = None,
) -> AsyncIterator[Served]:
    """Serve each connection with `handler`, or answer each request with these bytes."""
    listener: anyio.abc.Listener[anyio.abc.ByteStream]
    if uds is not None:
        listener = await anyio.create_unix_listener(uds)
        server = Served("http://gateway.test", 0)
    else:
        listener = await anyio.create_tcp_listener(local_host=host)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        name = f"[{host}]" if ":" in host else "localhost" if tls else host
        server = Served(f"{'https' if tls else 'http'}://{name}:{port}", port)
    if tls is not None:
        listener = TLSListener(listener, tls, standard_compatible=False)

    async def handle(stream: anyio.abc.ByteStream) -> None:
        server.accepted += 1
        server.open += 1
        peer = Peer(stream)
        try:
            async with stream:
                if callable(handler):
                    await handler(peer)
                    return
                while True:
                    server.received.append(await peer.request())
                    await peer.send(handler)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # the client went away
        finally:
            server.open -= 1

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, handle)
        yield server
        group.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop run until the condition holds, for at most five seconds."""
    with anyio.fail_after(5):
        while not condition():
            await anyio.lowlevel.checkpoint()


def open_sockets() -> set[str]:
    """Return the sockets that this process has open."""
    if sys.platform != "linux":
        return set()
    found = set[str]()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the descriptor of this very listing
        if target.startswith("socket:"):
            found.add(target)
    return found


def secure_stream(stream: anyio.abc.ByteStream, context: ssl.SSLContext) -> Awaitable[TLSStream]:
    """Wrap the server's side of a stream in TLS."""
    return TLSStream.wrap(stream, server_side=True, ssl_context=context, standard_compatible=False)
