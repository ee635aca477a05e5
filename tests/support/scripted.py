"""A transport that answers from a script: no socket, but all a client can observe of one."""

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import anyio
import anyio.lowlevel
import httpx

Step = httpx.Response | Exception | Callable[[httpx.Request], Any]


class ChunkStream(httpx.AsyncByteStream):
    """A response body given as chunks: bytes are yielded, exceptions raised, numbers slept in seconds."""

    def __init__(self, chunks: Iterable[bytes | Exception | float]) -> None:
        self.chunks = iter(chunks)
        self.closed = False
        self.exhausted = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        assert not self.closed, "read after close"
        for chunk in self.chunks:
            if isinstance(chunk, Exception):
                raise chunk
            if isinstance(chunk, bytes):
                await anyio.lowlevel.checkpoint()
                return chunk
            await anyio.sleep(chunk)
        await anyio.lowlevel.checkpoint()
        self.exhausted = True
        raise StopAsyncIteration

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed = True


class ScriptedTransport(httpx.AsyncBaseTransport):
    """Answer the requests with the steps of a script, in order; the last step is repeated."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.requests: list[httpx.Request] = []
        self.times: list[float] = []
        self.closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await anyio.lowlevel.checkpoint()
        await request.aread()
        self.requests.append(request)
        self.times.append(anyio.current_time())
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        if isinstance(step, httpx.Response):
            return step
        answer = step(request)
        if hasattr(answer, "__await__"):
            answer = await answer
        assert isinstance(answer, httpx.Response)
        return answer

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed = True


def chat_answer(_: object = None, **fields: Any) -> httpx.Response:
    """Return an answer of `/v1/chat`."""
    body = {
        "id": "chatcmpl-1",
        "provider": "openai",
        "model": "gpt-4o-mini",
        "content": "hello",
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        "cost_usd": 0.000004,
        "finish_reason": "stop",
        "cached": False,
        "fallback_used": False,
        "latency_ms": 40,
    }
    return httpx.Response(200, json=body | fields, headers={"x-request-id": "request-1"})


def error_answer(status: int, detail: Any, **headers: str) -> Callable[[httpx.Request], httpx.Response]:
    """Return a step that answers with an error; header names are written with underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: httpx.Response(status, json={"detail": detail}, headers=named)


def stream_answer(
    *chunks: bytes | Exception | float, **headers: str
) -> Callable[[httpx.Request], httpx.Response]:
    """Return a step that answers with a stream of chunks, kept as `response.stream`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: httpx.Response(200, headers=named, stream=ChunkStream(chunks))
