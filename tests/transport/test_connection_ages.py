"""How connections end over days: their age, idleness, servers that close them or restart."""

import gc
import random
import socket
import struct
import weakref
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
import trio

from omnigate import AsyncClient
from omnigate._transport.anyio_transport import AnyIOTransport

from ..support.cancellation import count_tasks
from ..support.fake_streams import Clock, FakeNetwork, over
from ..support.raw_server import chat_bytes
from ..support.servers import Peer, open_sockets, serving, until

pytestmark = pytest.mark.anyio

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}


async def get(transport: AnyIOTransport, url: str = "http://a.test/") -> bytes:
    return await (await transport.handle_async_request(httpx.Request("GET", url))).aread()


async def hold(transport: AnyIOTransport, count: int, url: str = "http://a.test/") -> None:
    """Open so many connections and leave them idle."""
    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(get, transport, url)
    assert transport.stats()["idle"] == count


def drawing(monkeypatch: pytest.MonkeyPatch, *drawn: float) -> list[tuple[float, float]]:
    """Have ages drawn as given, and return the limits they were drawn between."""
    left = iter(drawn)
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return next(left)

    monkeypatch.setattr(random, "uniform", uniform)
    return asked


async def test_connection_is_renewed_at_its_maximum_age(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, network = Clock(), FakeNetwork()
    asked = drawing(monkeypatch, 1.0, 0.8)
    transport = over(network, clock=clock)
    opened: list[int] = []
    for now in range(0, 540, 3):  # never idle for 4 s
        clock.now = now
        await get(transport)
        opened.append(len(network.streams))
    assert asked == [(0.8, 1)] * 2
    assert opened[: 300 // 3] == [1] * 100
    assert opened[300 // 3 :] == [2] * 80  # the second one lasts 240 s
    assert network.open == 1
    await transport.aclose()


async def test_connections_that_are_opened_together_do_not_end_together() -> None:
    clock, network = Clock(), FakeNetwork()
    transport = over(network, clock=clock, idle_timeout_seconds=1_000.0)
    await hold(transport, 200)
    left: list[int] = []
    for clock.now in (239.0, 255.0, 270.0, 285.0, 301.0):
        (pool,) = transport._pools.values()
        pool._alarm.stop()
        pool._close_stale()
        left.append(transport.stats()["idle"])
    assert left[0] == 200
    assert left[-1] == 0
    assert len(set(left)) == 5
    await transport.aclose()


@pytest.mark.parametrize("limit", [None, 50.0])
async def test_maximum_age_of_connections_can_be_set(limit: float | None) -> None:
    clock, network = Clock(), FakeNetwork()
    transport = over(network, clock=clock, max_connection_age_seconds=limit, idle_timeout_seconds=1e9)
    await get(transport)
    clock.now = 100_000.0
    await get(transport)
    assert len(network.streams) == (1 if limit is None else 2)
    await transport.aclose()


async def test_old_connection_is_not_handed_to_a_waiter_but_its_slot_is() -> None:
    clock = Clock()
    network = FakeNetwork(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no", b"k")
    transport = over(network, clock=clock, max_connections=1)
    first = await transport.handle_async_request(httpx.Request("GET", "http://a.test/"))
    async with anyio.create_task_group() as group:
        group.start_soon(get, transport)
        await until(lambda: transport.stats()["waiting"] == 1)
        clock.now = 301.0
        assert await first.aread() == b"ok"  # an answer in progress is not cut
    assert [stream.closed for stream in network.streams] == [True, False]
    assert (transport.stats()["idle"], transport.stats()["in_use"]) == (1, 0)
    await transport.aclose()


@pytest.mark.virtual_time
async def test_idle_connections_are_closed_without_another_call_and_their_origins_forgotten() -> None:
    network = FakeNetwork()
    transport = over(network)
    await hold(transport, 3)
    await anyio.sleep(2)
    await get(transport, "http://b.test/")
    await anyio.sleep(2.5)
    (pool,) = transport._pools.values()
    assert (network.open, list(pool._idle)) == (1, [("http", "b.test", 80)])
    await anyio.sleep(2)
    assert (network.open, pool._idle, pool._alarm.timer) == (0, {}, None)
    assert transport.stats() == {"idle": 0, "in_use": 0, "opening": 0, "waiting": 0, "origins": {}}
    await get(transport)  # and begins again
    await anyio.sleep(4.1)
    assert (len(network.streams), network.open) == (5, 0)


@pytest.mark.virtual_time
async def test_connections_closed_by_the_server_do_not_stay_open_while_the_client_is_idle() -> None:
    may_close = anyio.Event()

    async def answer_once(peer: Peer) -> None:
        await peer.request()
        await peer.send(chat_bytes())
        await may_close.wait()

    async with serving(answer_once) as server:
        before = open_sockets()
        transport = AnyIOTransport(idle_timeout_seconds=3_600.0)
        async with AsyncClient("k", base_url=server.url, transport=transport) as client:
            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(lambda: client.chat(**HELLO))
            may_close.set()
            await until(lambda: server.open == 0)
            assert len(open_sockets() - before) == 20
            await anyio.sleep(60.1)
            assert open_sockets() == before
            assert transport.stats()["idle"] == 0


@pytest.mark.virtual_time
async def test_connection_in_use_outlives_the_idle_timeout() -> None:
    network = FakeNetwork(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no", b"k")
    transport = over(network)
    await get(transport)
    response = await transport.handle_async_request(httpx.Request("GET", "http://a.test/"))
    await anyio.sleep(100)
    assert await response.aread() == b"ok"
    assert (len(network.streams), network.open) == (1, 1)
    await transport.aclose()


@pytest.mark.virtual_time
async def test_alarm_ends_with_the_transport_and_keeps_nothing_alive() -> None:
    transport = over(FakeNetwork())
    await get(transport)
    (pool,) = transport._pools.values()
    await transport.aclose()
    assert pool._alarm.timer is None

    transport = over(FakeNetwork())
    await get(transport)
    (pool,) = transport._pools.values()
    reference = weakref.ref(pool)
    pool.drop_idle(("http", "a.test", 80))
    del transport, pool
    gc.collect()
    assert reference() is None
    await anyio.sleep(10)  # the alarm rings, and finds nothing


@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
async def test_trio_has_no_task_of_the_transport_left_after_closing_it() -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    transport = over(FakeNetwork())
    for _ in range(50):
        await get(transport)
    assert trio.lowlevel.current_statistics().tasks_living == before + 1
    assert count_tasks() == before  # which leaves out the stand-in for a timer
    await transport.aclose()
    await until(lambda: trio.lowlevel.current_statistics().tasks_living == before)


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_kept_connections_of_a_gateway_that_restarts_are_not_used_for_any_call(reset: bool) -> None:
    """Without retries, so that any call over a dead connection would fail."""
    may_restart = anyio.Event()

    async def until_restart(peer: Peer) -> None:
        async with anyio.create_task_group() as group:

            async def answer() -> None:
                while True:
                    await peer.request()
                    await peer.send(chat_bytes())

            group.start_soon(answer)
            await may_restart.wait()
            if reset:
                raw = peer.stream.extra(anyio.abc.SocketAttribute.raw_socket)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            group.cancel_scope.cancel()

    async with serving(until_restart) as server:
        async with AsyncClient("k", base_url=server.url, retries=0) as client:

            async def calls() -> None:
                async with anyio.create_task_group() as group:
                    for _ in range(20):
                        group.start_soon(lambda: client.chat(**HELLO))

            await calls()
            assert server.accepted == 20
            may_restart.set()
            await until(lambda: server.open == 0)
            may_restart = anyio.Event()  # it is up again
            await calls()
            assert server.accepted == 40
            may_restart.set()
