"""The connection pool: reuse, limits, the queue of waiters, expiry and closing."""

import asyncio
import re
import select
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import pytest

from omnigate import InvalidArgumentError
from omnigate._transport.anyio_transport import AnyIOTransport

from ..support.event_loops import without_debug
from ..support.fake_streams import OK, Clock, FakeNetwork, over
from ..support.servers import Peer, serving, until

pytestmark = pytest.mark.anyio


async def get(transport: AnyIOTransport, url: str = "http://a.test/", **timeouts: float) -> bytes:
    request = httpx.Request("GET", url, extensions={"timeout": timeouts})
    return await (await transport.handle_async_request(request)).aread()


@asynccontextmanager
async def held(transport: AnyIOTransport, url: str = "http://a.test/") -> AsyncIterator[None]:
    """Keep a connection in use."""
    head = await transport.handle_async_request(httpx.Request("GET", url))
    yield
    await head.aclose()


HALF = (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no",)


def numbers(transport: AnyIOTransport) -> tuple[int, int, int, int]:
    stats = transport.stats()
    return stats["idle"], stats["in_use"], stats["opening"], stats["waiting"]


async def test_pool_reuses_an_idle_connection() -> None:
    network = FakeNetwork()
    transport = over(network)
    for _ in range(5):
        assert await get(transport) == b"ok"
    assert len(network.streams) == 1
    assert numbers(transport) == (1, 0, 0, 0)
    await transport.aclose()
    assert network.open == 0
    assert numbers(transport) == (0, 0, 0, 0)


async def test_pool_keeps_connections_apart_by_scheme_host_and_port() -> None:
    network = FakeNetwork()
    transport = over(network)
    for url in (
        "http://a.test/",
        "http://a.test:80/x",
        "http://b.test/",
        "http://a.test:81/",
        "https://a.test/",
    ):
        await get(transport, url)
    assert len(network.streams) == 4
    assert set(transport.stats()["origins"]) == {
        "http://a.test:80",
        "http://b.test:80",
        "http://a.test:81",
        "https://a.test:443",
    }


async def test_pool_takes_the_most_recently_used_connection_first() -> None:
    network = FakeNetwork()
    transport = over(network)
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(get, transport)
    sends = [len(stream.sends) for stream in network.streams]
    assert sends == [1, 1, 1]
    for _ in range(4):
        await get(transport)
    assert sorted(len(stream.sends) for stream in network.streams) == [1, 1, 5]


async def test_pool_opens_no_more_than_max_connections() -> None:
    network = FakeNetwork()
    transport = over(network, max_connections=2)
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(get, transport)
    assert len(network.streams) == 2
    assert numbers(transport) == (2, 0, 0, 0)


async def test_pool_serves_waiters_in_fifo_order() -> None:
    network = FakeNetwork(*HALF)
    transport = over(network, max_connections=1)
    order: list[int] = []

    async def one(index: int) -> None:
        async with held(transport):
            order.append(index)

    async with anyio.create_task_group() as group:
        async with held(transport):
            for index in range(20):
                group.start_soon(one, index)
                await until(lambda index=index: numbers(transport)[3] == index + 1)  # type: ignore[misc]
    assert order == list(range(20))


@without_debug
async def test_pool_with_max_connections_none_opens_as_many_as_needed() -> None:
    network = FakeNetwork()
    transport = over(network, max_connections=None)
    async with anyio.create_task_group() as group:
        for _ in range(1_500):
            group.start_soon(get, transport)
    assert len(network.streams) == 1_500
    assert numbers(transport) == (1_500, 0, 0, 0)


async def test_pool_does_not_let_a_new_call_overtake_a_waiter() -> None:
    network = FakeNetwork(*HALF)
    transport = over(network, max_connections=1)
    order: list[str] = []

    async def one(name: str) -> None:
        async with held(transport):
            order.append(name)

    async with anyio.create_task_group() as group:
        async with held(transport):
            group.start_soon(one, "first")
            await until(lambda: numbers(transport)[3] == 1)
        group.start_soon(one, "second")
    assert order == ["first", "second"]


async def test_pool_drops_cancelled_waiters_and_serves_the_others() -> None:
    network = FakeNetwork(*HALF)
    transport = over(network, max_connections=1)
    served: list[int] = []

    async def one(index: int, scope: anyio.CancelScope) -> None:
        with scope:
            async with held(transport):
                served.append(index)

    scopes = [anyio.CancelScope() for _ in range(300)]
    async with anyio.create_task_group() as group:
        async with held(transport):
            for index, scope in enumerate(scopes):
                group.start_soon(one, index, scope)
            await until(lambda: numbers(transport)[3] == 300)
            for index in range(300):
                if index % 3:
                    scopes[index].cancel()
            await until(lambda: numbers(transport)[3] == 100)
            assert transport.stats()["origins"]["http://a.test:80"]["waiting"] == 100
            (pool,) = transport._pools.values()
            assert len(pool._waiters) < 300  # cancelled waiters are removed before they reach the front
    assert sorted(served) == list(range(0, 300, 3))
    assert numbers(transport) == (0, 0, 0, 0)


async def test_pool_hands_a_cancelled_waiters_connection_to_the_next_waiter() -> None:
    """The waiter is served and cancelled in the same loop iteration: the wake-up must not be lost."""
    network = FakeNetwork()
    transport = over(network, max_connections=1)
    scope = anyio.CancelScope()
    done = anyio.Event()

    async def cancelled() -> None:
        with scope:
            await get(transport)

    async def next_in_line() -> None:
        await get(transport)
        done.set()

    async with anyio.create_task_group() as group:
        response = await transport.handle_async_request(httpx.Request("GET", "http://a.test/"))
        network.answer = lambda request: [OK] if b"\r\n\r\n" in request else None
        pool = next(iter(transport._pools.values()))
        connection = pool.take(("http", "a.test", 80))
        assert not isinstance(connection, bool)
        group.start_soon(cancelled)
        await until(lambda: numbers(transport)[3] == 1)
        group.start_soon(next_in_line)
        await until(lambda: numbers(transport)[3] == 2)
        pool.give_back(connection)
        scope.cancel()
        with anyio.fail_after(5):
            await done.wait()
    assert await response.aread() == b"ok"
    assert numbers(transport) == (1, 0, 0, 0)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("is_connection", [True, False], ids=["connection", "slot"])
async def test_pool_hands_on_a_natively_cancelled_waiters_connection_or_slot(
    is_connection: bool,
) -> None:
    """Unlike a scope's, a native cancellation arrives even after the awaited result is ready."""
    network = FakeNetwork()
    transport = over(network, max_connections=1)
    response = await transport.handle_async_request(httpx.Request("GET", "http://a.test/"))
    (pool,) = transport._pools.values()
    connection = pool.take(("http", "a.test", 80))
    assert not isinstance(connection, bool)
    cancelled, after = (asyncio.create_task(get(transport)) for _ in range(2))
    await until(lambda: numbers(transport)[3] == 2)
    if is_connection:
        pool.give_back(connection)
    else:
        pool.discard(connection)
    cancelled.cancel()
    with anyio.fail_after(5):
        assert await after == b"ok"
    assert cancelled.cancelled()
    assert await response.aread() == b"ok"
    assert numbers(transport) == (1, 0, 0, 0)
    assert len(network.streams) == (1 if is_connection else 2)


async def test_pool_hands_the_slot_of_a_failed_connect_to_the_next_waiter() -> None:
    network = FakeNetwork()
    network.may_connect = anyio.Event()
    network.error = httpx.ConnectError("refused")
    transport = over(network, max_connections=1)
    errors: list[Exception] = []

    async def one() -> None:
        try:
            await get(transport)
        except httpx.ConnectError as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(one)
        await until(lambda: numbers(transport) == (0, 0, 1, 9))
        network.may_connect.set()
    assert len(errors) == 10
    assert numbers(transport) == (0, 0, 0, 0)


async def test_pool_serves_other_origins_while_it_connects_to_a_slow_one() -> None:
    network = FakeNetwork()
    transport = over(network)
    await get(transport)
    network.may_connect = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(get, transport, "http://slow.test/")
        await until(lambda: numbers(transport) == (1, 0, 1, 0))
        for _ in range(3):
            assert await get(transport) == b"ok"
        network.may_connect.set()


async def test_full_pool_closes_the_oldest_idle_connection_of_another_origin() -> None:
    clock = Clock()
    network = FakeNetwork()
    transport = over(network, max_connections=2, clock=clock)
    for clock.now, url in enumerate(("http://a.test/", "http://b.test/", "http://c.test/")):
        await get(transport, url)
    assert set(transport.stats()["origins"]) == {"http://b.test:80", "http://c.test:80"}
    assert [stream.closed for stream in network.streams] == [True, False, False]


async def test_pool_hands_a_freed_slot_to_a_waiter_for_another_origin() -> None:
    network = FakeNetwork(*HALF)
    transport = over(network, max_connections=1)
    async with anyio.create_task_group() as group:

        async def other() -> None:
            async with held(transport, "http://b.test/"):
                assert set(transport.stats()["origins"]) == {"http://b.test:80"}

        async with held(transport):
            group.start_soon(other)
            await until(lambda: numbers(transport)[3] == 1)
    network.answer = FakeNetwork().answer
    async with anyio.create_task_group() as group:
        response = await transport.handle_async_request(httpx.Request("GET", "http://a.test/"))
        group.start_soon(get, transport, "http://b.test/")
        await response.aread()
    assert transport.stats()["origins"] == {"http://b.test:80": {"idle": 1, "in_use": 0, "waiting": 0}}


async def test_pool_never_gives_a_waiter_a_connection_to_another_origin() -> None:
    network = FakeNetwork(*HALF)
    transport = over(network, max_connections=1)
    response = await transport.handle_async_request(httpx.Request("GET", "http://a.test/"))
    async with anyio.create_task_group() as group:
        group.start_soon(get, transport, "http://b.test/")
        await until(lambda: numbers(transport)[3] == 1)
        network.answer = FakeNetwork().answer
        network.streams[0].incoming.append(b"k")
        network.streams[0].arrived.set()
        assert await response.aread() == b"ok"
    assert [b"host: b.test" in b"".join(stream.sends).lower() for stream in network.streams] == [False, True]
    assert transport.stats()["origins"] == {"http://b.test:80": {"idle": 1, "in_use": 0, "waiting": 0}}


async def test_pool_keeps_no_more_than_max_idle_connections() -> None:
    network = FakeNetwork()
    transport = over(network, max_idle_connections=2)
    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(get, transport)
    assert numbers(transport) == (2, 0, 0, 0)
    assert network.open == 2
    none_kept = over(FakeNetwork(), max_idle_connections=0)
    await get(none_kept)
    assert numbers(none_kept) == (0, 0, 0, 0)


async def test_pool_closes_expired_idle_connections_when_their_origin_is_used() -> None:
    clock = Clock()
    network = FakeNetwork()
    transport = over(network, clock=clock)
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(get, transport)
    clock.now = 3.9
    await get(transport)  # this one is now recently used
    assert len(network.streams) == 5
    clock.now = 4.1
    await get(transport)
    assert (len(network.streams), network.open) == (5, 1)
    clock.now = 9.0
    await get(transport)
    assert (len(network.streams), network.open) == (6, 1)
    assert numbers(transport) == (1, 0, 0, 0)


async def test_pool_does_not_reuse_a_connection_closed_by_the_server() -> None:
    async def once(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)

    async with serving(once) as server:
        transport = AnyIOTransport()
        for count in range(1, 6):
            assert await get(transport, server.url) == b"ok"
            await until(lambda: server.open == 0)
            assert server.accepted == count
        await transport.aclose()


async def test_pool_does_not_hand_a_waiter_a_connection_closed_by_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server may close it between the end of a response and the moment the next waiter runs."""
    network = FakeNetwork(*HALF)
    transport = over(network, max_connections=1)
    sent: list[int] = []

    async def post() -> None:
        request = httpx.Request("POST", "http://a.test/")
        async with anyio.create_task_group():
            await (await transport.handle_async_request(request)).aread()
        sent.append(len(network.streams))

    response = await transport.handle_async_request(httpx.Request("GET", "http://a.test/"))
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(post)
        await until(lambda: numbers(transport)[3] == 2)
        network.answer = FakeNetwork().answer
        network.streams[0].is_noisy = True
        network.streams[0].incoming.append(b"k")
        network.streams[0].arrived.set()
        assert await response.aread() == b"ok"
    assert sent == [2, 2]
    assert len(network.streams[0].sends) == 1
    assert network.open == 1
    assert numbers(transport) == (1, 0, 0, 0)


async def test_pool_closes_a_stream_that_it_cannot_add_and_frees_its_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = FakeNetwork()
    transport = over(network, max_connections=1)

    def broken(*_: object) -> None:
        raise ValueError("closed")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="closed"):
        patch.setattr("omnigate._transport.pool.Connection", broken)
        await get(transport)
    assert (network.open, numbers(transport)) == (0, (0, 0, 0, 0))
    assert await get(transport) == b"ok"


@without_debug
async def test_transport_repr_can_be_read_from_another_thread() -> None:
    """For example, from the thread that uses the sync client."""
    transport = over(FakeNetwork(), max_connections=20)
    errors: list[Exception] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            try:
                repr(transport)
            except Exception as error:
                errors.append(error)
                raise

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, look)
            for count in range(10):
                async with anyio.create_task_group() as calls:
                    for index in range(100):
                        calls.start_soon(get, transport, f"http://{index % 7 + count}.test/")
            done.set()
    finally:
        done.set()
        sys.setswitchinterval(interval)
    assert not errors


async def test_pool_notices_a_closed_connection_without_select_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "poll")  # as on Windows

    async def once(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)

    async with serving(once) as server, serving() as lasting:
        transport = AnyIOTransport()
        for count in range(1, 4):
            assert await get(transport, server.url) == b"ok"
            await until(lambda: server.open == 0)
            assert server.accepted == count
            assert await get(transport, lasting.url) == b"ok"
        assert lasting.accepted == 1
        await transport.aclose()


async def test_pool_does_not_reuse_a_connection_with_unsolicited_bytes() -> None:
    asked = anyio.Event()

    async def talkative(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await asked.wait()
        await peer.send(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
        await peer.closed()

    async with serving(talkative) as server:
        transport = AnyIOTransport()
        assert await get(transport, server.url) == b"ok"
        asked.set()
        pool = next(iter(transport._pools.values()))
        connection = pool._idle["http", "127.0.0.1", server.port][0]
        await until(lambda: not connection.is_quiet())
        assert await get(transport, server.url) == b"ok"
        assert server.accepted == 2
        await transport.aclose()


async def test_unsolicited_response_is_noticed_whenever_it_arrives() -> None:
    async def talkative(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.send(OK)
        await peer.closed()

    async with serving(talkative) as server:
        for turns in range(30):
            transport = AnyIOTransport()
            assert await get(transport, server.url) == b"ok"
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            await anyio.sleep(0.002)
            (pool,) = transport._pools.values()
            assert not any(connection.is_quiet() for stack in pool._idle.values() for connection in stack)
            await transport.aclose()


async def test_fifty_calls_share_and_reuse_five_real_connections() -> None:
    async with serving() as server:
        transport = AnyIOTransport(max_connections=5)
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(get, transport, server.url)
        for _ in range(3):
            await get(transport, server.url)
        assert server.accepted == 5
        await transport.aclose()


async def test_transport_repr_and_stats_show_the_counts_by_origin() -> None:
    network = FakeNetwork(*HALF)
    transport = over(network, max_connections=2)
    assert repr(transport) == "<AnyIOTransport without connections>"
    async with anyio.create_task_group() as group:

        async def other() -> None:
            async with held(transport, "http://b.test/"):
                pass

        async with held(transport), held(transport):
            group.start_soon(other)
            await until(lambda: numbers(transport)[3] == 1)
            assert repr(transport) == (
                "<AnyIOTransport http://a.test:80: 0 idle, 2 in use, 0 waiting; "
                "http://b.test:80: 0 idle, 0 in use, 1 waiting>"
            )
            assert transport.stats() == {
                "idle": 0,
                "in_use": 2,
                "opening": 0,
                "waiting": 1,
                "origins": {
                    "http://a.test:80": {"idle": 0, "in_use": 2, "waiting": 0},
                    "http://b.test:80": {"idle": 0, "in_use": 0, "waiting": 1},
                },
            }
    await transport.aclose()
    assert repr(transport) == "<AnyIOTransport closed>"


async def test_closing_the_transport_fails_calls_in_flight_waiting_and_new() -> None:
    network = FakeNetwork(answer=lambda _: None)
    transport = over(network, max_connections=1)
    errors: list[Exception] = []

    async def one() -> None:
        try:
            await get(transport)
        except (httpx.TransportError, RuntimeError) as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(one)
        await until(lambda: numbers(transport) == (0, 1, 0, 0) and bool(network.streams[0].sends))
        group.start_soon(one)
        group.start_soon(one)
        await until(lambda: numbers(transport)[3] == 2)
        await transport.aclose()
    assert len(errors) == 3
    assert sum("the transport was closed" in str(error) for error in errors) == 2
    with pytest.raises(RuntimeError, match="the transport is closed"):
        await get(transport)
    await transport.aclose()
    assert network.open == 0
    assert numbers(transport) == (0, 0, 0, 0)


async def test_closing_the_transport_while_it_connects_closes_the_new_connection() -> None:
    network = FakeNetwork()
    network.may_connect = anyio.Event()
    transport = over(network)
    async with anyio.create_task_group() as group:

        async def one() -> None:
            with pytest.raises(RuntimeError, match="closed"):
                await get(transport)

        group.start_soon(one)
        await until(lambda: numbers(transport)[2] == 1)
        await transport.aclose()
        network.may_connect.set()
    assert network.open == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_connections": 0},
        {"max_connections": -1},
        {"max_connections": True},
        {"max_connections": 1.5},
        {"max_connections": "2"},
        {"max_idle_connections": -1},
        {"idle_timeout_seconds": -1.0},
        {"idle_timeout_seconds": float("nan")},
        {"idle_timeout_seconds": float("inf")},
        {"idle_timeout_seconds": "4"},
        {"idle_timeout_seconds": None},
        {"idle_timeout_seconds": True},
        {"verify": None},
        {"verify": "x"},
        {"uds": 5},
        {"uds": b""},
        {"uds": ""},
        {"clock": 5},
        {"max_connection_age_seconds": -1},
        {"max_connection_age_seconds": "5"},
    ],
)
async def test_anyio_transport_names_a_bad_argument(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(
        InvalidArgumentError, match=rf"^{name} must be .*, got {re.escape(repr(arguments[name]))}$"
    ):
        AnyIOTransport(**arguments)
