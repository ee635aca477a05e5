"""The pool's byte streams: bounds on what nobody reads, waits for a full buffer, and the watch of deadlines."""

import asyncio
import gc
import os
import select
import ssl
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
import trio
import trustme

from omnigate._transport.anyio_transport import AnyIOTransport
from omnigate._transport.asyncio_stream import AsyncioStream

from ..support.cancellation import count_system_tasks
from ..support.fake_streams import FakeNetwork
from ..support.servers import OK, Peer, open_sockets, serving, until

pytestmark = pytest.mark.anyio

FLOOD = b"x" * 65_536
WATCH = "omnigate: watch deadlines"


async def get(transport: AnyIOTransport, url: str, **timeouts: float) -> bytes:
    request = httpx.Request("GET", url, extensions={"timeout": timeouts})
    return await (await transport.handle_async_request(request)).aread()


async def flood(peer: Peer, megabytes: int) -> None:
    for _ in range(16 * megabytes):
        await peer.send(FLOOD)


async def test_idle_connection_that_is_flooded_keeps_little_and_is_not_used_again() -> None:
    is_idle = anyio.Event()

    async def unasked(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await is_idle.wait()
        await flood(peer, 64)

    async with serving(unasked) as server:
        transport = AnyIOTransport()
        assert await get(transport, server.url) == b"ok"
        (pool,) = transport._pools.values()
        ((connection,),) = pool._idle.values()
        is_idle.set()
        await until(lambda: not connection.is_quiet())
        for _ in range(2_000):
            await anyio.lowlevel.checkpoint()
        stream = connection.stream
        if isinstance(stream, AsyncioStream):
            assert 65_536 <= len(stream._unread) <= 65_536 + 262_144
            assert stream._is_paused
        assert await get(transport, server.url) == b"ok"
        assert server.accepted == 2
        await transport.aclose()
        await until(lambda: server.open == 0)


async def test_body_that_is_read_slower_than_it_arrives_is_kept_in_bounds_and_arrives_whole() -> None:
    async def long(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (64 * len(FLOOD)))
        await flood(peer, 4)
        await peer.closed()

    async with serving(long) as server:
        transport = AnyIOTransport()
        response = await transport.handle_async_request(httpx.Request("GET", server.url))
        received = 0
        (pool,) = transport._pools.values()
        async for piece in response.stream:  # type: ignore[union-attr]
            received += len(piece)
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            for connection in pool.in_use:
                if isinstance(connection.stream, AsyncioStream):
                    assert len(connection.stream._unread) <= 65_536 + 262_144
        assert received == 64 * len(FLOOD)
        await transport.aclose()


async def test_request_larger_than_all_buffers_waits_for_the_server_to_read_it() -> None:
    may_read = anyio.Event()
    body = bytes(range(256)) * 65_536
    received = bytearray()

    async def slow(peer: Peer) -> None:
        await may_read.wait()
        while not received.endswith(body[-64:]) or len(received) < len(body):
            received.extend(await peer.stream.receive())
        await peer.send(OK)
        await peer.closed()

    async with serving(slow) as server:
        transport = AnyIOTransport()
        answered: list[int] = []

        async def post() -> None:
            request = httpx.Request("POST", server.url, content=body)
            answered.append((await transport.handle_async_request(request)).status_code)

        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(post)
                await until(lambda: transport.stats()["in_use"] == 1)
                for _ in range(50):
                    await anyio.lowlevel.checkpoint()
                assert not answered
                may_read.set()
        assert answered == [200]
        assert received.endswith(body)
        await transport.aclose()


async def test_call_cancelled_while_its_request_is_partly_written_closes_the_connection() -> None:
    may_end = anyio.Event()

    async def deaf(_: Peer) -> None:
        await may_end.wait()

    before = open_sockets()
    async with serving(deaf) as server:
        with_listener = open_sockets()
        transport = AnyIOTransport()
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                request = httpx.Request("POST", server.url, content=b"x" * 32_000_000)
                group.start_soon(transport.handle_async_request, request)
                await until(lambda: transport.stats()["in_use"] == 1)
                for _ in range(50):
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
        assert transport.stats()["in_use"] == transport.stats()["idle"] == 0
        await until(lambda: len(open_sockets() - with_listener) <= 1)  # the server's end
        may_end.set()
    await until(lambda: open_sockets() == before)


async def test_idle_connection_of_a_transport_that_is_discarded_without_being_closed_is_closed() -> None:
    async with serving() as server:
        transport = AnyIOTransport()
        assert await get(transport, server.url) == b"ok"
        del transport
        gc.collect()
        await until(lambda: server.open == 0)


def watches() -> int:
    return count_system_tasks(WATCH)


def silent(**arguments: Any) -> AnyIOTransport:
    transport = AnyIOTransport(**arguments)
    transport._connect = FakeNetwork(answer=lambda _: None)  # type: ignore[assignment]
    return transport


@pytest.mark.virtual_time
@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
async def test_one_task_of_trio_watches_all_deadlines_and_ends_when_none_is_left() -> None:
    transports = [silent(), silent()]
    start = trio.current_time()
    ends: dict[int, float] = {}

    async def one(seconds: int) -> None:
        with pytest.raises(httpx.ReadTimeout, match=f"within {seconds} s"):
            await get(transports[seconds % 2], "http://a.test/", read=seconds, write=seconds)
        ends[seconds] = trio.current_time() - start

    assert watches() == 0
    async with trio.open_nursery() as nursery:
        for seconds in (7, 3, 50, 1, 20, 2):
            nursery.start_soon(one, seconds)
        await trio.sleep(0.5)
        assert watches() == 1
    assert ends == {seconds: seconds for seconds in (1, 2, 3, 7, 20, 50)}
    await trio.testing.wait_all_tasks_blocked()
    assert watches() == 0


@pytest.mark.virtual_time
@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
async def test_watch_of_trio_ends_with_the_last_transport_that_has_a_call_with_a_deadline() -> None:
    first, second = silent(), silent()

    async def one(transport: AnyIOTransport) -> None:
        with pytest.raises(httpx.TransportError):
            await get(transport, "http://a.test/", read=60.0, write=60.0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, first)
        nursery.start_soon(one, second)
        await trio.testing.wait_all_tasks_blocked()
        await first.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert watches() == 1
        await second.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert watches() == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_watch_of_trio_ends_with_the_run_and_the_next_run_has_its_own() -> None:
    async def call(server_url: str, transport: AnyIOTransport) -> None:
        assert await get(transport, server_url, read=60.0, write=60.0) == b"ok"
        assert watches() == 1

    async with serving() as server:
        transport = AnyIOTransport()
        for _ in range(2):
            await anyio.to_thread.run_sync(trio.run, call, server.url, transport)
        await transport.aclose()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_deadline_in_a_guest_run_of_trio_ends_the_call() -> None:
    async def mute(peer: Peer) -> None:
        await peer.closed()

    async def guest(url: str) -> None:
        transport = AnyIOTransport()
        with pytest.raises(httpx.ReadTimeout, match=r"within 0\.01 s"):
            await get(transport, url, read=0.01, write=0.01)
        await transport.aclose()

    async with serving(mute) as server:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            guest,
            server.url,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.set_result,
            host_uses_signal_set_wakeup_fd=True,
        )
        with anyio.fail_after(10):
            (await done).unwrap()
        await until(lambda: server.open == 0)


@pytest.mark.skipif(os.name == "nt", reason="nothing is lent there")
async def test_stream_that_was_lent_is_read_elsewhere_then_here_and_its_end_wakes_whoever_waits() -> None:
    may_go_on = anyio.Event()

    async def talks(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await may_go_on.wait()
        await peer.send(b"first")
        await peer.closed()

    async with serving(talks) as server:
        transport = AnyIOTransport()
        assert await get(transport, server.url) == b"ok"
        (pool,) = transport._pools.values()
        ((connection,),) = pool._idle.values()
        descriptor = connection.stream.lend()
        assert descriptor is not None
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert not poll.poll(0)
        may_go_on.set()
        await until(lambda: bool(poll.poll(0)))
        assert os.read(descriptor, 3) == b"fir"
        connection.stream.take_back()
        assert await connection.stream.receive() == b"st"
        connection.stream.abort()
        assert poll.poll(0)
        assert os.read(descriptor, 1) == b""
        await until(lambda: server.open == 0)  # although the descriptor is still open
        os.close(descriptor)
        await transport.aclose()


async def test_stream_with_tls_is_not_lent() -> None:
    authority = trustme.CA()
    context, trusting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(context)
    authority.configure_trust(trusting)
    async with serving(tls=context) as server:
        transport = AnyIOTransport(verify=trusting)
        assert await get(transport, server.url) == b"ok"
        (pool,) = transport._pools.values()
        ((connection,),) = pool._idle.values()
        assert connection.stream.lend() is None
        assert await get(transport, server.url) == b"ok"
        await transport.aclose()
