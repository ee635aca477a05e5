"""httpx's four timeouts, and the same errors as httpx's own transports raise."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest

from omnigate._transport.anyio_transport import AnyIOTransport

from ..support.fake_streams import FakeNetwork, FakeStream
from ..support.servers import OK, Peer, serving

pytestmark = pytest.mark.anyio

URL = "http://a.test/"


def over(network: FakeNetwork, **arguments: int) -> AnyIOTransport:
    transport = AnyIOTransport(**arguments)  # type: ignore[arg-type]
    transport._connect = network  # type: ignore[assignment]
    return transport


async def send(transport: AnyIOTransport, url: str = URL, **timeouts: float | None) -> httpx.Response:
    request = httpx.Request("POST", url, content=b"x", extensions={"timeout": timeouts})
    response = await transport.handle_async_request(request)
    await response.aread()
    return response


@pytest.mark.virtual_time
async def test_connect_timeout_is_raised_when_connecting_takes_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never(*_: object, **__: object) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(anyio, "getaddrinfo", never)
    transport = AnyIOTransport()
    start = anyio.current_time()
    with pytest.raises(httpx.ConnectTimeout, match=r"connecting to a\.test:80 took longer than 3\.0 s"):
        await send(transport, connect=3.0)
    assert anyio.current_time() == pytest.approx(start + 3)
    assert transport.stats()["opening"] == 0


@pytest.mark.virtual_time
async def test_read_timeout_is_raised_when_no_response_head_arrives() -> None:
    network = FakeNetwork(answer=lambda _: None)
    transport = over(network)
    start = anyio.current_time()
    with pytest.raises(httpx.ReadTimeout, match="no data was received within 3 s"):
        await send(transport, read=3.0, write=9.0)
    assert anyio.current_time() == pytest.approx(start + 3)
    assert network.open == 0
    with pytest.raises(httpx.ReadTimeout, match="no data was received within 3 s"):
        await send(transport, read=3.0, write=3.0)
    with pytest.raises(httpx.ReadTimeout, match="no data was received within 3 s"):
        await send(transport, read=3.0, write=None)
    assert network.open == transport.stats()["in_use"] == 0


@pytest.mark.virtual_time
async def test_read_timeout_applies_to_each_body_chunk_not_to_the_whole() -> None:
    network = FakeNetwork(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
    transport = over(network)

    async def drip() -> None:
        for _ in range(10):
            await anyio.sleep(2)
            stream = network.streams[0]
            stream.incoming.append(b".")
            stream.arrived.set()

    async with anyio.create_task_group() as group:
        group.start_soon(drip)
        start = anyio.current_time()
        with pytest.raises(httpx.ReadTimeout, match="no data was received within 3 s"):
            await send(transport, read=3.0)
        assert anyio.current_time() == pytest.approx(start + 23)
    assert network.open == transport.stats()["in_use"] == 0


@pytest.mark.virtual_time
@pytest.mark.parametrize("seconds", [3, 3.0])
async def test_read_timeout_of_the_head_restarts_with_each_chunk_and_starts_after_the_request_is_written(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    send_now = FakeStream.send

    async def slowly(self: FakeStream, item: bytes) -> None:
        await anyio.sleep(2)
        await send_now(self, item)

    monkeypatch.setattr(FakeStream, "send", slowly)
    network = FakeNetwork(answer=lambda _: None)
    transport = over(network)

    async def answer() -> None:
        await anyio.sleep(2)
        for piece in [b"HTTP/1.1 102 Processing\r\n\r\n"] * 5 + [b"HTTP/1.1 200 OK\r\n", OK[17:]]:
            await anyio.sleep(2)
            network.streams[0].incoming.append(piece)
            network.streams[0].arrived.set()

    async with anyio.create_task_group() as group:
        group.start_soon(answer)
        timeouts = {"write": seconds, "read": seconds}
        request = httpx.Request("POST", URL, content=b"x" * 100_000, extensions={"timeout": timeouts})
        response = await transport.handle_async_request(request)
        assert await response.aread() == b"ok"


@pytest.mark.virtual_time
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_write_timeout_is_raised_when_the_server_stops_reading(
    monkeypatch: pytest.MonkeyPatch, is_streamed: bool
) -> None:
    async def stuck(self: FakeStream, item: bytes) -> None:
        event = self.arrived = anyio.Event()
        await event.wait()
        if self.closed:
            raise OSError

    monkeypatch.setattr(FakeStream, "send", stuck)
    network = FakeNetwork()
    transport = over(network)

    class Body:
        sent = False

        def __aiter__(self) -> AsyncIterator[bytes]:
            return self

        async def __anext__(self) -> bytes:
            return b"x"

    content = Body() if is_streamed else b"x"
    request = httpx.Request("PUT", URL, content=content, extensions={"timeout": {"write": 3.0, "read": 9.0}})
    start = anyio.current_time()
    with pytest.raises(httpx.WriteTimeout, match="could not be written within 3 s"):
        await transport.handle_async_request(request)
    assert anyio.current_time() == pytest.approx(start + 3)
    assert network.open == transport.stats()["in_use"] == 0


@pytest.mark.virtual_time
async def test_slow_request_body_source_does_not_raise_a_write_timeout() -> None:
    network = FakeNetwork(answer=lambda request: [OK] if request.endswith(b"0\r\n\r\n") else None)
    transport = over(network)

    async def slow() -> AsyncIterator[bytes]:
        for _ in range(3):
            await anyio.sleep(60)
            yield b"x"

    request = httpx.Request("PUT", URL, content=slow(), extensions={"timeout": {"write": 3.0, "read": 3.0}})
    assert (await transport.handle_async_request(request)).status_code == 200


@pytest.mark.virtual_time
async def test_pool_timeout_is_raised_when_no_connection_becomes_free() -> None:
    network = FakeNetwork(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
    transport = over(network, max_connections=1)
    response = await transport.handle_async_request(httpx.Request("GET", URL))
    start = anyio.current_time()
    with pytest.raises(
        httpx.PoolTimeout, match=r"no connection became free within 3 s: 1 were in use \(max_connections\)"
    ):
        await send(transport, pool=3.0)
    assert anyio.current_time() == pytest.approx(start + 3)
    assert transport.stats()["waiting"] == 0
    await response.aclose()
    assert transport.stats() == {"idle": 0, "in_use": 0, "opening": 0, "waiting": 0, "origins": {}}


@pytest.mark.virtual_time
async def test_timeout_of_none_waits_without_limit() -> None:
    network = FakeNetwork(answer=lambda _: None)
    transport = over(network)
    with anyio.move_on_after(1_000_000) as scope:
        await send(transport, connect=None, read=None, write=None, pool=None)
    assert scope.cancelled_caught
    assert network.open == transport.stats()["in_use"] == 0


@pytest.mark.virtual_time
async def test_concurrent_calls_each_time_out_at_their_own_deadline() -> None:
    network = FakeNetwork(answer=lambda _: None)
    transport = over(network)
    ends: dict[int, float] = {}
    start = anyio.current_time()

    async def one(seconds: int) -> None:
        with pytest.raises(httpx.ReadTimeout, match=f"within {seconds} s"):
            await send(transport, read=float(seconds))
        ends[seconds] = round(anyio.current_time() - start, 3)

    async with anyio.create_task_group() as group:
        for seconds in (7, 3, 50, 1, 20, 2):
            group.start_soon(one, seconds)
    assert ends == {seconds: seconds for seconds in (1, 2, 3, 7, 20, 50)}
    assert network.open == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_calls_share_one_timer_that_keeps_nothing_alive_and_ends_with_the_transport(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []
    call_at = loop.call_at

    def counting(when: float, callback: Any, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        timer = call_at(when, callback, *args, **kwargs)
        if when > loop.time() + 500:
            timers.append(timer)
        return timer

    monkeypatch.setattr(loop, "call_at", counting)
    timeouts = {"connect": 9, "read": 1_000, "write": 2_000, "pool": 9}
    async with serving() as server:
        transport = AnyIOTransport()
        for _ in range(50):
            assert (await send(transport, server.url, **timeouts)).content == b"ok"
        assert len(timers) <= 2  # for the first write, and for the first read, which is due earlier
        await transport.aclose()
        assert all(timer.cancelled() for timer in timers)

        transport = AnyIOTransport()
        await send(transport, server.url, **timeouts)
        (pool,) = transport._pools.values()
        reference = weakref.ref(pool)
        pool.drop_idle(("http", "127.0.0.1", server.port))
        transport._pools.pop()
        del transport, pool
        gc.collect()
        assert reference() is None
        for timer in timers:
            timer.cancel()


@pytest.mark.virtual_time
@pytest.mark.parametrize("read", [None, 9.0])
async def test_timeout_that_fires_just_as_its_await_finishes_is_raised_by_the_next_await(
    read: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timeout has closed the connection, so the next await must report it, whatever its own limit."""
    send_now = FakeStream.send

    async def late(self: FakeStream, item: bytes) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(3.5)
            self.closed = False  # the await had already succeeded
            await send_now(self, item)
            self.closed = True

    monkeypatch.setattr(FakeStream, "send", late)
    transport = over(FakeNetwork())
    timeouts = {"write": 3.0, "read": read}
    request = httpx.Request("POST", URL, content=b"x", extensions={"timeout": timeouts})
    with pytest.raises(httpx.WriteTimeout, match="could not be written within 3 s"):
        await transport.handle_async_request(request)
    request = httpx.Request("POST", URL, content=b"x" * 100_000, extensions={"timeout": timeouts})
    with pytest.raises(httpx.WriteTimeout, match="could not be written within 3 s"):
        await transport.handle_async_request(request)
    assert transport.stats()["in_use"] == 0


async def test_closed_port_raises_a_connect_error_with_the_reason() -> None:
    async with serving() as server:
        pass
    with pytest.raises(
        httpx.ConnectError, match=f"127.0.0.1:{server.port}: .*[Rr]efused|Connect call failed"
    ):
        await send(AnyIOTransport(), server.url)


@pytest.mark.parametrize("port", [0, 65_536, 99_999])
async def test_port_out_of_range_raises_a_connect_error(port: int) -> None:
    with pytest.raises(httpx.ConnectError, match=f"127.0.0.1:{port}: the port must be between 1 and 65535"):
        await send(AnyIOTransport(), f"http://127.0.0.1:{port}/")


async def test_unresolvable_host_raises_a_connect_error() -> None:
    with pytest.raises(httpx.ConnectError, match=r"nobody\.invalid:80: "):
        await send(AnyIOTransport(), "http://nobody.invalid/")


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (b"", httpx.RemoteProtocolError, "without sending a response"),
        (b"HTTP/1.1 200 OK\r\ncontent-le", httpx.RemoteProtocolError, "in the response's headers"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel", httpx.RemoteProtocolError, "before the end"),
        (b"garbage\r\n\r\n", httpx.RemoteProtocolError, "not HTTP/1.1"),
    ],
)
async def test_broken_response_raises_a_remote_protocol_error_and_frees_its_connection(
    answer: bytes, error: type[Exception], words: str
) -> None:
    async def wrong(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)

    async with serving(wrong) as server:
        transport = AnyIOTransport()
        with pytest.raises(error, match=words):
            await send(transport, server.url)
        assert transport.stats()["in_use"] == transport.stats()["idle"] == 0
        await transport.aclose()


async def test_broken_responses_raise_the_same_errors_as_httpxs_own_transport() -> None:
    """Both transports raise the same class for the same broken response."""
    behaviours = [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
    ]
    for behaviour in behaviours:

        async def wrong(peer: Peer, behaviour: bytes = behaviour) -> None:
            await peer.request()
            await peer.send(behaviour)

        async with serving(wrong) as server:
            seen = []
            for transport in (AnyIOTransport(), httpx.AsyncHTTPTransport()):
                async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
                    with pytest.raises(httpx.TransportError) as caught:
                        await client.get(server.url)
                    seen.append(caught.type)
            assert seen[0] is seen[1], behaviour
