"""A network in memory: byte streams whose every operation has several checkpoints."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel

from omnigate._transport.anyio_transport import AnyIOTransport
from omnigate._transport.messages import Origin

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

Answer = Callable[[bytes], list[bytes] | None]
"""Return what the client receives for the request bytes so far: None for nothing yet, b"" for the end."""


def whole_requests(*pieces: bytes) -> Answer:
    """Return an answer to each request whose head is complete: the same pieces each time."""
    return lambda request: list(pieces) if b"\r\n\r\n" in request else None


class FakeStream:
    """The client's end of a connection in memory."""

    def __init__(self, network: "FakeNetwork") -> None:
        self.network = network
        self.sends: list[bytes] = []
        self.request = b""
        self.incoming: list[bytes] = []
        self.arrived = anyio.Event()
        self.closed = False
        self.is_noisy = False

    def send(self, item: bytes) -> Awaitable[None] | None:
        self._check_open()
        if self.network.refuse_sends:
            raise ConnectionResetError
        return self._send(item)

    async def _send(self, item: bytes) -> None:
        await self._checkpoints()
        self._check_open()
        self.sends.append(item)
        self.request += item
        answer = self.network.answer(self.request)
        if answer is not None:
            self.request = b""
            self.incoming += answer
            self.arrived.set()
        await self._checkpoints()

    async def receive(self) -> bytes:
        await self._checkpoints()
        self._check_open()
        if self.network.refuse_sends:
            raise ConnectionResetError
        while not self.incoming:
            self.arrived = anyio.Event()
            await self.arrived.wait()
            self._check_open()
        piece = self.incoming[0]
        if piece:
            del self.incoming[0]
        return piece

    def is_quiet(self) -> bool:
        return not self.is_noisy

    def has_clean_end(self) -> bool:
        return True

    def lend(self) -> None:
        return

    def take_back(self) -> None:
        raise AssertionError("it was never lent")

    def abort(self) -> None:
        self.closed = True
        self.arrived.set()

    def _check_open(self) -> None:
        if self.closed:
            raise OSError

    async def _checkpoints(self) -> None:
        for _ in range(self.network.checkpoints):
            await anyio.lowlevel.checkpoint()


class FakeNetwork:
    """Opens fake streams in place of the transport's connector."""

    def __init__(self, *pieces: bytes, answer: Answer | None = None, checkpoints: int = 2) -> None:
        self.answer = answer or whole_requests(*(pieces or (OK,)))
        self.checkpoints = checkpoints
        self.refuse_sends = False
        self.streams: list[FakeStream] = []
        self.error: Exception | None = None
        self.may_connect = anyio.Event()
        self.may_connect.set()

    async def __call__(self, origin: Origin, timeout: float | None) -> FakeStream:
        for _ in range(self.checkpoints):
            await anyio.lowlevel.checkpoint()
        await self.may_connect.wait()
        if self.error is not None:
            raise self.error
        stream = FakeStream(self)
        self.streams.append(stream)
        return stream

    @property
    def open(self) -> int:
        """Return how many streams are open."""
        return sum(not stream.closed for stream in self.streams)


class Clock:
    """A pool's clock, which stands still unless it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def over(network: FakeNetwork, **arguments: Any) -> AnyIOTransport:
    """Return a transport whose connections are those of a fake network."""
    transport = AnyIOTransport(**arguments)
    transport._connect = network  # type: ignore[assignment]
    return transport
