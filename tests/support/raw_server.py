"""A raw TCP server on loopback that answers every request with the given bytes."""

from types import TracebackType
from typing import Self

import anyio
import anyio.abc

from .scripted import chat_answer


def response_bytes(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    """Return a response with a Content-Length."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chat_bytes() -> bytes:
    """Return a response to a chat."""
    return response_bytes(chat_answer().content, content_type="application/json", x_request_id="request-1")


class RawServer:
    """Serve inside `async with`, with keep-alive and one response per request; count connections."""

    def __init__(self, response: bytes) -> None:
        self.response = response
        self.url = ""
        self.accepted = 0
        self.open = 0
        self._group: anyio.abc.TaskGroup

    async def __aenter__(self) -> Self:
        self._group = await anyio.create_task_group().__aenter__()
        self._listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = self._listener.extra(anyio.abc.SocketAttribute.local_port)
        self.url = f"http://127.0.0.1:{port}"
        self._group.start_soon(self._listener.serve, self._handle)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._group.cancel_scope.cancel()
        try:
            return await self._group.__aexit__(kind, error, traceback)
        finally:
            with anyio.CancelScope(shield=True):
                await self._listener.aclose()

    async def _handle(self, stream: anyio.abc.ByteStream) -> None:
        self.accepted += 1
        self.open += 1
        received = b""
        try:
            async with stream:
                while True:
                    received += await stream.receive()
                    head, separator, body = received.partition(b"\r\n\r\n")
                    length = next(
                        (
                            int(line[15:])
                            for line in head.lower().split(b"\r\n")
                            if line.startswith(b"content-length:")
                        ),
                        0,
                    )
                    if separator and len(body) >= length:
                        received = body[length:]
                        await stream.send(self.response)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass
        finally:
            self.open -= 1
