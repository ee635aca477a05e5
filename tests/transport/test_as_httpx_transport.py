"""Our transport under a plain `httpx.AsyncClient`."""

import anyio
import httpx
import pytest

from omnigate import AnyIOTransport
from omnigate.testing import LocalGateway

from ..support.servers import Peer, serving

pytestmark = pytest.mark.anyio

HELLO = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}


async def test_httpx_client_over_our_transport_works_against_the_local_gateway() -> None:
    async with LocalGateway() as gateway:
        headers = {"authorization": f"Bearer {gateway.api_key}"}
        async with httpx.AsyncClient(
            transport=AnyIOTransport(), base_url=gateway.url, headers=headers
        ) as client:
            assert (await client.get("/health")).json()["status"] == "ok"
            assert (await client.head("/nowhere")).status_code == 404
            answer = await client.post("/v1/chat", json=HELLO)
            assert (answer.status_code, answer.json()["usage"]["completion_tokens"] > 0) == (200, True)
            assert (await client.post("/v1/chat", json={})).status_code == 422
            async with client.stream("POST", "/v1/chat", json=HELLO | {"stream": True}) as response:
                text = "".join([piece async for piece in response.aiter_text()])
            assert answer.json()["content"] in text
            async with client.stream(
                "POST", "/v1/chat/completions", json=HELLO | {"stream": True}
            ) as response:
                lines = [line async for line in response.aiter_lines() if line]
            assert lines[-1] == "data: [DONE]"


RESPONSES = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello", b"hello"),
    "chunked": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nX-T: 1\r\n\r\n",
        b"hello",
    ),
    "interim": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"ok",
    ),
    "until the end": (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello", b"hello"),
}


@pytest.mark.parametrize("name", RESPONSES)
async def test_httpx_client_reads_a_response_split_at_every_byte(name: str) -> None:
    data, body = RESPONSES[name]
    cut = 0

    async def split(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(data[:cut])
            for _ in range(3):  # let the client read the first part
                await anyio.lowlevel.checkpoint()
            await peer.send(data[cut:])
            if name == "until the end":
                return

    async with serving(split) as server, httpx.AsyncClient(transport=AnyIOTransport()) as client:
        for cut in range(1, len(data)):
            response = await client.get(server.url)
            assert (response.status_code, response.content) == (200, body), cut
        assert server.accepted == (len(data) - 1 if name == "until the end" else 1)


@pytest.mark.parametrize("name", RESPONSES)
async def test_httpx_client_reads_a_response_sent_one_byte_at_a_time(name: str) -> None:
    data, body = RESPONSES[name]

    async def drip(peer: Peer) -> None:
        await peer.request()
        for i in range(len(data)):
            await peer.send(data[i : i + 1])
            await anyio.lowlevel.checkpoint()

    async with serving(drip) as server, httpx.AsyncClient(transport=AnyIOTransport()) as client:
        assert (await client.get(server.url)).content == body


async def test_httpx_client_follows_redirects_and_keeps_cookies() -> None:
    async def handle(peer: Peer) -> None:
        while True:
            received = await peer.request()
            if received.target == "/old":
                await peer.send(
                    b"HTTP/1.1 302 Found\r\nLocation: /new\r\nSet-Cookie: a=1\r\nContent-Length: 0\r\n\r\n"
                )
            else:
                cookie = (received.header("cookie") or "").encode()
                await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(cookie), cookie))

    async with serving(handle) as server:
        async with httpx.AsyncClient(transport=AnyIOTransport(), follow_redirects=True) as client:
            response = await client.get(f"{server.url}/old")
        assert response.content == b"a=1"
        assert [old.status_code for old in response.history] == [302]
        assert server.accepted == 1
