"""Our transport under a plain `httpx2.AsyncClient`: requests, responses, streams and errors of httpx2's kind."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import anyio
import httpx
import httpx2
import pytest

from omnigate import AnyIOTransport, AsyncClient, ClientClosedError, InvalidArgumentError
from omnigate.testing import LocalGateway

from ..support.raw_server import RawServer, chat_bytes
from ..support.servers import Peer, serving, until

pytestmark = pytest.mark.anyio

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}


async def test_httpx2_client_over_our_transport_works_against_the_local_gateway() -> None:
    async with LocalGateway() as gateway:
        headers = {"authorization": f"Bearer {gateway.api_key}"}
        async with httpx2.AsyncClient(
            transport=AnyIOTransport(), base_url=gateway.url, headers=headers
        ) as client:
            health = await client.get("/health")
            assert isinstance(health, httpx2.Response)
            assert (health.json()["status"], health.http_version, health.reason_phrase) == (
                "ok",
                "HTTP/1.1",
                "OK",
            )
            assert (await client.head("/nowhere")).status_code == 404
            answer = await client.post("/v1/chat", json=HELLO)
            assert (answer.status_code, answer.json()["usage"]["completion_tokens"] > 0) == (200, True)
            async with client.stream("POST", "/v1/chat", json=HELLO | {"stream": True}) as response:
                text = "".join([piece async for piece in response.aiter_text()])
            assert answer.json()["content"] in text


async def test_httpx2_client_sends_streamed_and_multipart_bodies() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async with serving() as server, httpx2.AsyncClient(transport=AnyIOTransport()) as client:
        await client.post(server.url, content=pieces())
        await client.post(server.url, content=pieces(), headers={"content-length": "6"})
        await client.post(server.url, files={"file": b"contents"})
    assert [received.body for received in server.received[:2]] == [b"onetwo", b"onetwo"]
    assert b"contents" in server.received[2].body
    assert server.accepted == 1


async def test_httpx2_client_raises_its_own_connect_error() -> None:
    async with httpx2.AsyncClient(transport=AnyIOTransport()) as client:
        with pytest.raises(httpx2.ConnectError, match=r"127.0.0.1:9: ") as caught:
            await client.get("http://127.0.0.1:9")
    assert caught.value.request.url == "http://127.0.0.1:9"
    assert isinstance(caught.value.__cause__, httpx.ConnectError)


async def test_httpx2_client_raises_its_own_errors_of_the_protocol() -> None:
    async with (
        serving(b"nonsense\r\n\r\n") as server,
        httpx2.AsyncClient(transport=AnyIOTransport()) as client,
    ):
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.post(server.url)
        with pytest.raises(httpx2.LocalProtocolError):
            await client.get(server.url, headers={"x-header": "a\nb"})
        with pytest.raises(httpx2.UnsupportedProtocol):
            await AnyIOTransport().handle_async_request(httpx2.Request("GET", "ftp://gateway.test"))


@pytest.mark.virtual_time
async def test_httpx2_client_raises_its_own_read_timeout_before_the_head_and_within_the_body() -> None:
    async def stall(peer: Peer) -> None:
        received = await peer.request()
        if received.target == "/body":
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello")
        await peer.closed()

    transport = AnyIOTransport()
    async with serving(stall) as server, httpx2.AsyncClient(transport=transport, timeout=7) as client:
        with pytest.raises(httpx2.ReadTimeout):
            await client.get(f"{server.url}/head")
        with pytest.raises(httpx2.ReadTimeout):
            await client.get(f"{server.url}/body")
        assert transport.stats()["in_use"] == 0


@pytest.mark.virtual_time
async def test_httpx2_client_raises_its_own_pool_timeout() -> None:
    async def half(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello")
        await peer.closed()

    transport = AnyIOTransport(max_connections=1)
    async with serving(half) as server, httpx2.AsyncClient(transport=transport, timeout=7) as client:
        async with client.stream("GET", server.url):
            with pytest.raises(httpx2.PoolTimeout, match="max_connections"):
                await client.get(server.url)


async def test_httpx2_stream_that_breaks_off_raises_httpx2s_error_and_one_closed_early_is_closed() -> None:
    async def cut(peer: Peer) -> None:
        received = await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello")
        if received.target == "/early":
            await peer.closed()

    transport = AnyIOTransport()
    async with serving(cut) as server, httpx2.AsyncClient(transport=transport) as client:
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.get(f"{server.url}/cut")
        async with client.stream("GET", f"{server.url}/early") as response:
            async with aclosing(response.aiter_bytes()) as chunks:  # type: ignore[type-var]
                assert await anext(chunks) == b"hello"
        with anyio.fail_after(10):
            await until(lambda: server.open == 0)
        assert transport.stats() | {"origins": {}} == {
            "idle": 0,
            "in_use": 0,
            "opening": 0,
            "waiting": 0,
            "origins": {},
        }


async def test_httpx2_response_read_after_it_was_closed_raises_httpx2s_stream_closed() -> None:
    async def half(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")
        await peer.closed()

    async with serving(half) as server:
        response = await AnyIOTransport().handle_async_request(httpx2.Request("GET", server.url))
        stream = response.stream
        assert isinstance(stream, httpx2.AsyncByteStream)
        await stream.aclose()
        with pytest.raises(httpx2.StreamClosed):
            await anext(aiter(stream))


async def test_httpx2_request_cancelled_in_the_middle_leaves_no_connection_in_use() -> None:
    reached = anyio.Event()

    async def stall(peer: Peer) -> None:
        while True:
            received = await peer.request()
            if received.target == "/quick":
                await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                continue
            if received.target == "/body":
                await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello")
            reached.set()
            await peer.closed()
            return

    transport = AnyIOTransport(max_connections=1)
    async with serving(stall) as server, httpx2.AsyncClient(transport=transport) as client:
        for path in ("/head", "/body"):
            reached = anyio.Event()
            with anyio.fail_after(10):
                async with anyio.create_task_group() as group:
                    group.start_soon(client.get, f"{server.url}{path}")
                    await reached.wait()
                    group.cancel_scope.cancel()
                assert transport.stats()["in_use"] == 0
                assert (await client.get(f"{server.url}/quick")).content == b"ok"


async def test_httpx2_request_over_a_closed_transport_raises_client_closed_error() -> None:
    transport = AnyIOTransport()
    await transport.aclose()
    with pytest.raises(ClientClosedError):
        await transport.handle_async_request(httpx2.Request("GET", "http://gateway.test"))


async def test_object_that_is_no_request_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"request must be an httpx.Request \(or httpx2's\), got"):
        await AnyIOTransport().handle_async_request("GET /")  # type: ignore[call-overload]


async def test_subclass_that_adds_to_requests_of_httpx2_is_called_once_for_each() -> None:
    class Counting(AnyIOTransport):
        calls = 0

        async def handle_async_request(self, request: Any) -> Any:
            self.calls += 1
            return await super().handle_async_request(request)

    transport = Counting()
    async with serving() as server, httpx2.AsyncClient(transport=transport) as client:
        assert (await client.get(server.url)).content == b"ok"
    assert transport.calls == 1


async def test_httpx2_transport_around_ours_carries_the_calls_of_our_client() -> None:
    class Around(httpx2.AsyncBaseTransport):
        def __init__(self) -> None:
            self.inner = AnyIOTransport()

        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            request.headers["x-added"] = "yes"
            return await self.inner.handle_async_request(request)

        async def aclose(self) -> None:
            await self.inner.aclose()

    async with (
        RawServer(chat_bytes()) as server,
        AsyncClient("k", base_url=server.url, transport=Around()) as client,
    ):
        assert (await client.chat(**HELLO)).content == "hello"
        async with client.chat_stream(**HELLO) as stream:
            assert "hello" in await stream.text()
