"""The clients being compared. Each opens what it needs and yields a `call` to measure.

All send the same request with the same key and decode the response into their own type. `contenders.py`
imports this module by itself, in the contender's own interpreter; libraries are imported where they are used.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

Call = Callable[[], Awaitable[object]]
Case = dict[str, Any]

KEY = "llmg_benchmark"
MODEL = "gpt-4o-mini"
MESSAGES: Any = [{"role": "user", "content": "Say hi in French"}]


def _codec() -> tuple[Callable[[], bytes], Callable[[bytes], object]]:
    """Return functions that encode the request and decode a response."""
    import msgspec

    from omnigate import ChatResponse

    encode = msgspec.json.Encoder().encode
    return lambda: encode({"model": MODEL, "messages": MESSAGES}), msgspec.json.Decoder(ChatResponse).decode


def _trusting(case: Case) -> ssl.SSLContext | None:
    return ssl.create_default_context(cafile=case["authority"]) if case.get("authority") else None


# Floors: one connection for each worker, httptools, msgspec; no timeouts, no errors, no pool


class _Response:
    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []
        self.done = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        self.done = True


def _address(case: Case) -> tuple[str, int, bytes]:
    """Return host, port and the head of every request, with a place for its length."""
    host, _, port = case["url"].removeprefix("http://").partition(":")
    head = (
        f"POST /v1/chat HTTP/1.1\r\nhost: {host}:{port}\r\nuser-agent: bare\r\naccept: */*\r\n"
        f"x-api-key: {KEY}\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    )
    return host, int(port), head.encode()


@asynccontextmanager
async def protocol(case: Case) -> AsyncIterator[Call]:
    """An `asyncio.Protocol`."""
    import httptools

    host, port, head = _address(case)
    encode, decode = _codec()
    loop = asyncio.get_running_loop()
    free: list[Connection] = []

    class Connection(asyncio.Protocol):
        response: _Response
        parser: Any
        answered: asyncio.Future[_Response]

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport  # uvloop's is no `asyncio.Transport`

        def data_received(self, data: bytes) -> None:
            self.parser.feed_data(data)
            if self.response.done:
                self.answered.set_result(self.response)

        def connection_lost(self, exc: Exception | None) -> None:
            if hasattr(self, "answered") and not self.answered.done():
                self.answered.set_exception(exc or EOFError())

    async def call() -> object:
        if free:
            connection = free.pop()
        else:
            _, connection = await loop.create_connection(Connection, host, port)
        body = encode()
        connection.response = _Response()
        connection.parser = httptools.HttpResponseParser(connection.response)
        connection.answered = loop.create_future()
        connection.transport.write(head % len(body) + body)
        response = await connection.answered
        free.append(connection)
        return decode(b"".join(response.body))

    yield call
    for connection in free:
        connection.transport.close()


@asynccontextmanager
async def trio_socket(case: Case) -> AsyncIterator[Call]:
    """A `trio.socket`."""
    import httptools
    import trio

    host, port, head = _address(case)
    encode, decode = _codec()
    free: list[Any] = []

    async def call() -> object:
        if free:
            socket = free.pop()
        else:
            socket = trio.socket.socket()
            await socket.connect((host, port))
        body = encode()
        await socket.send(head % len(body) + body)  # small enough to be sent whole
        response = _Response()
        parser = httptools.HttpResponseParser(response)
        while not response.done:
            data = await socket.recv(65_536)
            if not data:
                raise EOFError
            parser.feed_data(data)
        free.append(socket)
        return decode(b"".join(response.body))

    yield call
    for socket in free:
        socket.close()


@asynccontextmanager
async def bare(case: Case) -> AsyncIterator[Call]:
    """Send and receive on an anyio stream."""
    import anyio
    import httptools

    host, port, head = _address(case)
    encode, decode = _codec()
    free: list[Any] = []

    async def call() -> object:
        stream = free.pop() if free else await anyio.connect_tcp(host, port)
        body = encode()
        await stream.send(head % len(body) + body)
        response = _Response()
        parser = httptools.HttpResponseParser(response)
        while not response.done:
            parser.feed_data(await stream.receive(65_536))
        free.append(stream)
        return decode(b"".join(response.body))

    yield call
    for stream in free:
        await stream.aclose()


# Clients of the gateway


@asynccontextmanager
async def ours(case: Case) -> AsyncIterator[Call]:
    """The whole of `AsyncClient.chat`, or of its text stream."""
    from omnigate import AnyIOTransport, AsyncClient

    transport = AnyIOTransport(max_connections=None, verify=_trusting(case) or True)
    async with AsyncClient(KEY, base_url=case["url"], transport=transport) as client:

        async def stream() -> AsyncIterator[object]:
            async with client.chat_stream(model=MODEL, messages=MESSAGES) as pieces:
                async for piece in pieces:
                    yield piece

        yield stream if case.get("stream") else lambda: client.chat(model=MODEL, messages=MESSAGES)  # type: ignore[misc]


@asynccontextmanager
async def published(case: Case) -> AsyncIterator[Call]:
    """The same program with 0.1.0."""
    from omnigate import AsyncClient

    async with AsyncClient(KEY, base_url=case["url"]) as client:

        async def stream() -> AsyncIterator[object]:
            async for piece in client.chat_stream(model=MODEL, messages=MESSAGES):
                yield piece

        yield stream if case.get("stream") else lambda: client.chat(model=MODEL, messages=MESSAGES)  # type: ignore[misc]


@asynccontextmanager
async def openai(case: Case) -> AsyncIterator[Call]:
    """The OpenAI SDK as it comes, against the gateway's OpenAI-compatible endpoint."""
    async with _openai(case) as call:
        yield call


@asynccontextmanager
async def openai_over_ours(case: Case) -> AsyncIterator[Call]:
    """The OpenAI SDK on an httpx2 client over `AnyIOTransport`."""
    import httpx2

    from omnigate import AnyIOTransport

    transport = AnyIOTransport(max_connections=None)
    async with _openai(case, http_client=httpx2.AsyncClient(transport=transport)) as call:
        yield call


@asynccontextmanager
async def _openai(case: Case, **options: Any) -> AsyncIterator[Call]:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(api_key=KEY, base_url=f"{case['url']}/v1", **options) as client:
        create: Any = client.chat.completions.create

        async def stream() -> AsyncIterator[object]:
            async for chunk in await create(model=MODEL, messages=MESSAGES, stream=True):
                yield chunk

        yield stream if case.get("stream") else lambda: create(model=MODEL, messages=MESSAGES)  # type: ignore[misc]


@asynccontextmanager
async def litellm(case: Case) -> AsyncIterator[Call]:
    """`litellm.acompletion` against the same endpoint."""
    import litellm as library

    library.telemetry = False
    library.suppress_debug_info = True
    options = {
        "model": f"openai/{MODEL}",
        "messages": MESSAGES,
        "api_key": KEY,
        "api_base": f"{case['url']}/v1",
    }

    async def stream() -> AsyncIterator[object]:
        async for chunk in await library.acompletion(**options, stream=True):
            yield chunk

    yield stream if case.get("stream") else lambda: library.acompletion(**options)  # type: ignore[misc]


# HTTP clients with msgspec, and as many connections as are needed


@asynccontextmanager
async def aiohttp(case: Case) -> AsyncIterator[Call]:
    """`ClientSession.post`."""
    import aiohttp as library

    encode, decode = _codec()
    url = f"{case['url']}/v1/chat"
    headers = {"x-api-key": KEY, "content-type": "application/json"}
    connector = library.TCPConnector(limit=0, ssl=_trusting(case) or True)
    async with library.ClientSession(connector=connector, headers=headers) as session:

        async def call() -> object:
            async with session.post(url, data=encode()) as response:
                return decode(await response.read())

        async def stream() -> AsyncIterator[object]:
            body = encode()[:-1] + b',"stream":true}'
            async with session.post(url, data=body) as response:
                async for chunk in response.content.iter_any():
                    yield chunk

        yield stream if case.get("stream") else call  # type: ignore[misc]


@asynccontextmanager
async def httpx(case: Case) -> AsyncIterator[Call]:
    """`httpx.AsyncClient.post`."""
    import httpx as library

    async with _httpx(library, case) as call:
        yield call


@asynccontextmanager
async def httpx2(case: Case) -> AsyncIterator[Call]:
    """`httpx2.AsyncClient.post`."""
    import httpx2 as library

    async with _httpx(library, case) as call:
        yield call


@asynccontextmanager
async def _httpx(library: Any, case: Case) -> AsyncIterator[Call]:
    encode, decode = _codec()
    url = f"{case['url']}/v1/chat"
    headers = {"x-api-key": KEY, "content-type": "application/json"}
    limits = library.Limits(max_connections=None, max_keepalive_connections=None)
    async with library.AsyncClient(headers=headers, limits=limits, timeout=60) as client:

        async def call() -> object:
            return decode((await client.post(url, content=encode())).content)

        async def stream() -> AsyncIterator[object]:
            body = encode()[:-1] + b',"stream":true}'
            async with client.stream("POST", url, content=body) as response:
                async for chunk in response.aiter_bytes():
                    yield chunk

        yield stream if case.get("stream") else call  # type: ignore[misc]


@asynccontextmanager
async def pyqwest(case: Case) -> AsyncIterator[Call]:
    """`pyqwest.Client.post`: a client written in Rust."""
    import pyqwest as library

    encode, decode = _codec()
    url = f"{case['url']}/v1/chat"
    headers = {"x-api-key": KEY, "content-type": "application/json"}
    client = library.Client()

    async def call() -> object:
        response = await client.post(url, headers=headers, content=encode())
        return decode(response.content)

    async def stream() -> AsyncIterator[object]:
        body = encode()[:-1] + b',"stream":true}'
        async with client.stream("POST", url, headers=headers, content=body) as response:
            async for chunk in response.content:
                yield chunk

    yield stream if case.get("stream") else call  # type: ignore[misc]


Contender = Callable[[Case], AbstractAsyncContextManager[Call]]

CLIENTS: dict[str, Contender] = {
    "protocol": protocol,
    "trio_socket": trio_socket,
    "bare": bare,
    "ours": ours,
    "aiohttp": aiohttp,
    "pyqwest": pyqwest,
    "httpx": httpx,
    "httpx2": httpx2,
    "openai": openai,
    "openai_over_ours": openai_over_ours,
    "litellm": litellm,
    "published": published,
}
