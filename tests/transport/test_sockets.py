"""Unix domain sockets, IPv6, several addresses of one name, proxies, and one event loop after another."""

import asyncio
import gc
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import pytest
import trustme
import uvloop

from omnigate import AsyncClient
from omnigate._transport.anyio_transport import AnyIOTransport

from ..support.event_loops import without_debug
from ..support.raw_server import chat_bytes
from ..support.servers import Peer, Received, serving, until

pytestmark = pytest.mark.anyio

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}


async def get(transport: AnyIOTransport, url: str) -> bytes:
    response = await transport.handle_async_request(httpx.Request("GET", url))
    return await response.aread()


async def test_transport_works_over_a_unix_domain_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "gateway.sock")
    async with serving(uds=path) as server:
        transport = AnyIOTransport(uds=path)
        for _ in range(3):
            assert await get(transport, "http://gateway.test/v1/models") == b"ok"
        assert server.accepted == 1
        assert server.received[0].header("host") == "gateway.test"
        await transport.aclose()
        await until(lambda: server.open == 0)
    with pytest.raises(httpx.ConnectError, match=r"nowhere\.sock: "):
        await get(AnyIOTransport(uds=str(tmp_path / "nowhere.sock")), "http://gateway.test/")


async def test_transport_connects_to_an_ipv6_address() -> None:
    async with serving(host="::1") as server:
        transport = AnyIOTransport()
        assert await get(transport, server.url) == b"ok"
        assert server.received[0].header("host") == f"[::1]:{server.port}"
        await transport.aclose()


async def test_transport_connects_to_whichever_address_of_a_host_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as server:

        async def two_addresses(*_: object, **__: object) -> list[Any]:
            addresses = (("::1", socket.AF_INET6), ("127.0.0.1", socket.AF_INET))
            return [(family, socket.SOCK_STREAM, 6, "", (host, server.port)) for host, family in addresses]

        monkeypatch.setattr("anyio.getaddrinfo", two_addresses)
        transport = AnyIOTransport()
        with anyio.fail_after(5):
            assert await get(transport, f"http://gateway.test:{server.port}/") == b"ok"
        await transport.aclose()


class Proxy:
    """A small proxy that forwards absolute-URL requests and tunnels CONNECT, always to this machine."""

    def __init__(self) -> None:
        self.received: list[Received] = []

    async def __call__(self, peer: Peer) -> None:
        received = await peer.request()
        self.received.append(received)
        if received.method == "CONNECT":
            port = received.target.rpartition(":")[2]
            async with await anyio.connect_tcp("127.0.0.1", int(port)) as remote:
                await peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
                async with anyio.create_task_group() as group:
                    group.start_soon(self.copy, peer.stream, remote, group.cancel_scope)
                    group.start_soon(self.copy, remote, peer.stream, group.cancel_scope)
            return
        url = httpx.URL(received.target)
        async with await anyio.connect_tcp("127.0.0.1", url.port or 80) as remote:
            head = [f"{received.method} {url.raw_path.decode()} HTTP/1.1"]
            head += [f"{name}: {value}" for name, value in received.headers]
            await remote.send("\r\n".join([*head, "connection: close", "", ""]).encode() + received.body)
            try:
                await peer.send(await remote.receive())
            except anyio.EndOfStream:
                pass

    @staticmethod
    async def copy(source: Any, sink: Any, scope: anyio.CancelScope) -> None:
        try:
            while True:
                await sink.send(await source.receive())
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            scope.cancel()


async def test_environment_proxy_forwards_http_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy()
    async with serving(chat_bytes()) as server, serving(proxy) as proxy_server:
        monkeypatch.setenv("HTTP_PROXY", proxy_server.url)
        async with AsyncClient(base_url=f"http://gateway.test:{server.port}") as client:
            assert (await client.chat(**HELLO)).content == "hello"
        assert proxy.received[0].target == f"http://gateway.test:{server.port}/v1/chat"


async def test_environment_proxy_is_bypassed_for_localhost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy = Proxy()
    async with serving(chat_bytes()) as server, serving(proxy) as proxy_server:
        for name in ("HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy_server.url)
        for host in ("127.0.0.1", "localhost"):
            async with AsyncClient("k", base_url=f"http://{host}:{server.port}") as client:
                assert (await client.chat(**HELLO)).content == "hello"
    assert proxy.received == []
    assert len(server.received) == 2


async def test_environment_proxy_tunnels_https_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    import ssl

    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("gateway.test").configure_cert(server_context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    proxy = Proxy()
    async with serving(chat_bytes(), tls=server_context) as server, serving(proxy) as proxy_server:
        monkeypatch.setenv("HTTPS_PROXY", proxy_server.url)
        address = f"https://gateway.test:{server.port}"
        async with AsyncClient("k", base_url=address, verify=trusting) as client:
            for _ in range(3):
                assert (await client.chat(**HELLO)).content == "hello"
        assert [received.method for received in proxy.received] == ["CONNECT"]
        assert proxy.received[0].target == f"gateway.test:{server.port}"
        assert not any(name.lower() == "authorization" for name, _ in proxy.received[0].headers)


async def test_proxy_credentials_are_sent_to_the_proxy_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy = Proxy()
    async with serving(chat_bytes()) as server, serving(proxy) as proxy_server:
        monkeypatch.setenv("HTTP_PROXY", proxy_server.url.replace("http://", "http://us%65r:p%40ss@"))
        async with AsyncClient(base_url=f"http://gateway.test:{server.port}") as client:
            assert (await client.chat(**HELLO)).content == "hello"
    assert proxy.received[0].header("proxy-authorization") == "Basic dXNlcjpwQHNz"
    assert proxy.received[0].header("authorization") is None


@without_debug
async def test_proxied_client_is_not_limited_to_httpxs_default_of_100_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting = 0
    all_there = anyio.Event()

    async def gather(peer: Peer) -> None:
        nonlocal waiting
        await peer.request()
        waiting += 1
        if waiting == 150:
            all_there.set()
        await all_there.wait()
        await peer.send(chat_bytes())

    async with serving(gather) as proxy_server:
        monkeypatch.setenv("ALL_PROXY", proxy_server.url)
        async with AsyncClient(base_url="http://gateway.test") as client:
            with anyio.fail_after(20):
                async with anyio.create_task_group() as group:
                    for _ in range(150):
                        group.start_soon(lambda: client.chat(**HELLO))


def in_new_loop(backend: str, func: Callable[..., Any], *arguments: Any) -> Any:
    return anyio.run(func, *arguments, backend=backend)


# asyncio warns about sockets left open when their loop was closed
ABANDONED = pytest.mark.filterwarnings("ignore::ResourceWarning")


@ABANDONED
@pytest.mark.parametrize("first", ["asyncio", "trio"])
@pytest.mark.parametrize("second", ["asyncio", "trio"])
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_transport_works_in_successive_event_loops_and_keeps_one_pool(first: str, second: str) -> None:
    async with serving() as server:
        transport = AnyIOTransport()
        for backend in (first, second):
            for _ in range(2):
                result = await anyio.to_thread.run_sync(in_new_loop, backend, get, transport, server.url)
                assert result == b"ok"
        assert len(transport._pools.values()) == 1
        assert await get(transport, server.url) == b"ok"
        assert len(transport._pools.values()) == 1
        await until(lambda: server.open == 1)
        await transport.aclose()
        gc.collect()


LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


def in_abandoned_loop(make_loop: Callable[[], asyncio.AbstractEventLoop], main: Any) -> None:
    """Run `main` in a loop that is then closed with its tasks and connections still open."""
    loop = make_loop()
    loop.run_until_complete(main)
    loop.close()


@ABANDONED
@pytest.mark.parametrize("make_loop", LOOPS)
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_transport_survives_a_loop_closed_with_calls_still_waiting(
    make_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def mute(peer: Peer) -> None:
        await peer.closed()

    async with serving(mute) as mute_server, serving() as server:
        transport = AnyIOTransport(max_connections=1)
        tasks: list[asyncio.Task[bytes]] = []

        async def begin() -> None:
            tasks.extend(asyncio.ensure_future(get(transport, mute_server.url)) for _ in range(3))
            await until(lambda: (transport.stats()["waiting"], transport.stats()["in_use"]) == (2, 1))

        await anyio.to_thread.run_sync(in_abandoned_loop, make_loop, begin())
        assert await get(transport, server.url) == b"ok"
        assert len(transport._pools.values()) == 1
        await until(lambda: mute_server.open == 0)
        await transport.aclose()
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        del task
        tasks.clear()
        gc.collect()


@ABANDONED
@pytest.mark.parametrize("make_loop", LOOPS)
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_closing_the_transport_closes_connections_left_by_an_ended_loop(
    make_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async with serving() as server:
        transport = AnyIOTransport()
        await anyio.to_thread.run_sync(in_abandoned_loop, make_loop, get(transport, server.url))
        assert transport.stats()["idle"] == 1
        await transport.aclose()
        assert transport.stats()["idle"] == 0
        await until(lambda: server.open == 0)
        gc.collect()


@pytest.mark.parametrize("other", ["asyncio", "trio"])
async def test_closing_the_transport_closes_connections_of_other_running_loops(other: str) -> None:
    async with serving() as server:
        transport = AnyIOTransport()
        used, closed = threading.Event(), threading.Event()

        async def elsewhere() -> None:
            assert await get(transport, server.url) == b"ok"
            used.set()
            while not closed.is_set():
                await anyio.lowlevel.checkpoint()
            await until(lambda: server.open == 0)
            with pytest.raises(RuntimeError, match="the transport is closed"):
                await get(transport, server.url)

        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, in_new_loop, other, elsewhere)
            try:
                await anyio.to_thread.run_sync(used.wait, 10)
                assert await get(transport, server.url) == b"ok"
                await transport.aclose()
                assert transport.stats()["idle"] == 0
            finally:
                closed.set()
        assert server.accepted == 2


@ABANDONED
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_response_of_an_ended_loop_can_be_dropped_or_closed() -> None:
    async with serving(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf") as server:
        transport = AnyIOTransport()

        async def begin() -> httpx.Response:
            return await transport.handle_async_request(httpx.Request("GET", server.url))

        for backend in ("asyncio", "trio"):
            await (await anyio.to_thread.run_sync(in_new_loop, backend, begin)).aclose()
            response = await anyio.to_thread.run_sync(in_new_loop, backend, begin)
            del response
            gc.collect()
        await transport.aclose()
