"""A call cancelled at its first, second, third, … await leaves a clean pool: slots free, waiters served.

Each operation is tried on each event loop with each way of cancelling: an anyio scope, and asyncio's own
`Task.cancel()` and `asyncio.timeout()`, which go through anyio's shields.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
import trustme

from omnigate._transport.anyio_transport import AnyIOTransport

from ..support.cancellation import LOOPS_AND_WAYS, cancelled_at_every_checkpoint, count_tasks
from ..support.fake_streams import FakeNetwork
from ..support.servers import Served, open_sockets, serving, until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize(("anyio_backend", "way"), LOOPS_AND_WAYS, indirect=["anyio_backend"]),
]

URL = "http://a.test/"
CHUNKED = [
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n",
    b"\r\n3\r\none\r\n",
    b"3\r\ntwo\r\n",
    b"5\r\nthree\r\n0\r\n\r\n",
]

Use = Callable[[AnyIOTransport, str], Awaitable[None]]


async def whole(transport: AnyIOTransport, url: str) -> None:
    response = await transport.handle_async_request(httpx.Request("POST", url, content=b"hello"))
    await response.aread()


class Body:
    """A request body in three pieces, with a checkpoint before each."""

    left = 3

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await anyio.lowlevel.checkpoint()
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        return b"hello"


async def streamed_request(transport: AnyIOTransport, url: str) -> None:
    response = await transport.handle_async_request(httpx.Request("POST", url, content=Body()))
    await response.aread()


async def half_read(transport: AnyIOTransport, url: str) -> None:
    response = await transport.handle_async_request(httpx.Request("GET", url))
    try:
        async for _ in response.stream:  # type: ignore[union-attr]
            break
    finally:
        await response.aclose()


async def unread(transport: AnyIOTransport, url: str) -> None:
    await (await transport.handle_async_request(httpx.Request("GET", url))).aclose()


def is_clean(transport: AnyIOTransport) -> bool:
    stats = transport.stats()
    return stats["in_use"] == stats["opening"] == stats["waiting"] == 0


@pytest.mark.parametrize("reuse", [False, True], ids=["new", "kept"])
@pytest.mark.parametrize("use", [whole, streamed_request, half_read, unread])
async def test_call_cancelled_at_any_await_leaves_a_clean_pool_over_fake_streams(
    use: Use, reuse: bool, way: str
) -> None:
    network = FakeNetwork(*CHUNKED)
    end = {whole: b"hello", streamed_request: b"0\r\n\r\n"}.get(use, b"\r\n\r\n")
    network.answer = lambda request: CHUNKED if request.endswith(end) else None
    transport = AnyIOTransport(max_connections=2)
    transport._connect = network  # type: ignore[assignment]
    before = count_tasks()
    count = 0
    async for count in cancelled_at_every_checkpoint(lambda: use(transport, URL), way):
        assert is_clean(transport), transport
        assert network.open == transport.stats()["idle"] <= 1
        if reuse:
            await use(transport, URL)
            assert is_clean(transport)
        else:
            for pool in transport._pools.values():
                pool.drop_idle(("http", "a.test", 80))
    assert count > 5
    assert count_tasks() == before
    await transport.aclose()
    assert network.open == 0


@pytest.mark.parametrize("victim", ["first", "middle", "last"])
async def test_waiter_cancelled_at_any_await_leaves_the_other_waiters_served(victim: str, way: str) -> None:
    """Cancel a waiter at each await; the waiters before and behind it must still be served."""
    network = FakeNetwork()
    transport = AnyIOTransport(max_connections=1)
    transport._connect = network  # type: ignore[assignment]
    served = 0

    async def other() -> None:
        nonlocal served
        await whole(transport, URL)
        served += 1

    async def operation() -> None:
        async with anyio.create_task_group() as group:
            if victim != "first":
                group.start_soon(bystander)
                await anyio.lowlevel.checkpoint()
            await whole(transport, URL)

    async def bystander() -> None:
        with anyio.CancelScope(shield=way == "scope"):
            await whole(transport, URL)

    rounds = 0
    async for rounds in cancelled_at_every_checkpoint(operation, way):
        assert is_clean(transport), transport
        async with anyio.create_task_group() as group:
            group.start_soon(other)
            group.start_soon(other)
        assert is_clean(transport), transport
    assert served == 2 * rounds

    # again, with the others already queued behind it when it is cancelled
    if victim == "first":
        return
    served = 0
    async with anyio.create_task_group() as group:
        rounds = 0
        async for rounds in cancelled_at_every_checkpoint(lambda: whole(transport, URL), way):
            for _ in range(3):
                group.start_soon(other)
            await anyio.lowlevel.checkpoint()
        with anyio.fail_after(5):
            while served < 3 * rounds:
                await anyio.lowlevel.checkpoint()
    assert is_clean(transport)
    await transport.aclose()


async def test_call_and_close_cancelled_at_any_await_leave_no_open_stream(way: str) -> None:
    network = FakeNetwork()

    async def operation() -> None:
        transport = AnyIOTransport()
        transport._connect = network  # type: ignore[assignment]
        try:
            await whole(transport, URL)
        finally:
            await transport.aclose()

    async for _ in cancelled_at_every_checkpoint(operation, way):
        assert network.open == 0


async def test_call_in_a_scope_that_is_cancelled_sends_nothing(way: str) -> None:
    async with serving() as server:
        transport = AnyIOTransport()
        await whole(transport, server.url)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await whole(transport, server.url)
        assert scope.cancelled_caught
        await whole(transport, server.url)
        assert len(server.received) == 2
        await transport.aclose()


@pytest.fixture(scope="module")
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return server, trusting


async def check_real(server: Served, transport: AnyIOTransport, use: Use, way: str, *, is_kept: bool) -> int:
    await use(transport, server.url)
    count = 0
    async for count in cancelled_at_every_checkpoint(lambda: use(transport, server.url), way):
        assert is_clean(transport), transport
        if not is_kept:
            for pool in transport._pools.values():
                for origin in list(pool._idle):
                    pool.drop_idle(origin)
        await until(lambda: server.open == transport.stats()["idle"])
    with anyio.fail_after(5):
        await use(transport, server.url)
    await transport.aclose()
    await until(lambda: server.open == 0)
    return count


@pytest.mark.parametrize("is_kept", [False, True], ids=["new", "kept"])
@pytest.mark.parametrize(
    "secure", [pytest.param(False, id="tcp"), pytest.param(True, id="tls", marks=pytest.mark.proof)]
)
@pytest.mark.parametrize("use", [whole, streamed_request, half_read])
async def test_call_cancelled_at_any_await_leaves_no_open_socket(
    use: Use, secure: bool, is_kept: bool, way: str, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    before = open_sockets()
    async with serving(b"".join(CHUNKED), tls=tls[0] if secure else None) as server:
        with_listener = open_sockets()
        transport = AnyIOTransport(max_connections=2, verify=tls[1] if secure else True)
        assert await check_real(server, transport, use, way, is_kept=is_kept) >= 2
        await until(lambda: open_sockets() == with_listener)
    await until(lambda: open_sockets() == before)


async def test_calls_cancelled_after_each_number_of_loop_iterations_leave_no_open_socket(way: str) -> None:
    """Counting loop iterations also hits the awaits of child tasks, which connecting uses."""
    before = open_sockets()
    async with serving() as server:
        transport = AnyIOTransport(max_connections=3)
        completed = 0
        for steps in range(60):
            scope = anyio.CancelScope()

            async def one(scope: anyio.CancelScope = scope) -> None:
                nonlocal completed
                with scope:
                    await whole(transport, server.url.replace("127.0.0.1", "localhost"))
                    completed += 1

            async with anyio.create_task_group() as group:
                if way == "task":
                    task = asyncio.create_task(one())
                    for _ in range(steps):
                        await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.wait([task])
                else:
                    group.start_soon(one)
                    for _ in range(steps):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()
            assert is_clean(transport), transport
            if steps % 2:
                for pool in transport._pools.values():
                    for origin in list(pool._idle):
                        pool.drop_idle(origin)
        await whole(transport, server.url)
        await transport.aclose()
        await until(lambda: server.open == 0)
    await until(lambda: open_sockets() == before)


async def test_call_to_a_name_with_two_addresses_cancelled_at_any_await_leaves_no_socket_and_no_lookup(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def two_addresses(_: str, port: int, **__: object) -> list[Any]:
        await anyio.lowlevel.checkpoint()
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{last}", port)) for last in (2, 1)
        ]  # the first one refuses

    monkeypatch.setattr(anyio, "getaddrinfo", two_addresses)
    before = open_sockets()
    async with serving() as server:
        transport = AnyIOTransport(max_connections=2)
        url = f"http://a.test:{server.port}/"
        async for _ in cancelled_at_every_checkpoint(lambda: whole(transport, url), way):
            assert is_clean(transport), transport
            assert list(transport._connect._lookups.values()) == [{}]
            for pool in transport._pools.values():
                pool.drop_idle(("http", "a.test", server.port))
        await transport.aclose()
        await until(lambda: server.open == 0)
    await until(lambda: open_sockets() == before)
