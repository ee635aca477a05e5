"""Requests of every shape over real sockets, and whether the connection is reused afterwards."""

import gc
from collections.abc import AsyncGenerator, AsyncIterator

import anyio
import anyio.lowlevel
import httpx
import pytest

from omnigate._transport.anyio_transport import AnyIOTransport
from omnigate._transport.exchange import ResponseStream

from ..support.fake_streams import FakeNetwork, FakeStream
from ..support.servers import OK, Peer, Received, serving, until

pytestmark = pytest.mark.anyio


async def chunks(*parts: bytes) -> AsyncGenerator[bytes, None]:
    for part in parts:
        yield part


class Parts:
    """A request body that yields these parts, or raises the part that is an error."""

    def __init__(self, *parts: bytes | Exception) -> None:
        self.parts = list(parts)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await anyio.lowlevel.checkpoint()
        if not self.parts:
            raise StopAsyncIteration
        part = self.parts.pop(0)
        if isinstance(part, Exception):
            raise part
        return part


async def exchange(transport: AnyIOTransport, request: httpx.Request) -> httpx.Response:
    response = await transport.handle_async_request(request)
    await response.aread()
    return response


@pytest.mark.parametrize(
    ("headers", "parts", "framing"),
    [
        ({}, [b"one", b"", b"two" * 10_000], ("transfer-encoding", "chunked")),
        ({}, [], ("transfer-encoding", "chunked")),
        ({"content-length": "6"}, [b"one", b"", b"two"], ("content-length", "6")),
        ({"content-length": "0"}, [], ("content-length", "0")),
    ],
)
async def test_streamed_request_body_arrives_whole(
    headers: dict[str, str], parts: list[bytes], framing: tuple[str, str]
) -> None:
    async with serving() as server:
        transport = AnyIOTransport()
        for _ in range(2):
            request = httpx.Request("POST", server.url, headers=headers, content=chunks(*parts))
            assert (await exchange(transport, request)).content == b"ok"
        await transport.aclose()
    assert [received.body for received in server.received] == [b"".join(parts)] * 2
    assert server.received[0].header(framing[0]) == framing[1]
    assert server.accepted == 1


async def test_large_bytes_request_body_arrives_whole() -> None:
    content = bytes(range(256)) * 20_000
    async with serving() as server:
        transport = AnyIOTransport()
        request = httpx.Request("PUT", f"{server.url}/a%20b?c=d", content=content)
        assert (await exchange(transport, request)).status_code == 200
        await transport.aclose()
    (received,) = server.received
    assert (received.method, received.target, received.body) == ("PUT", "/a%20b?c=d", content)


async def test_request_head_and_small_body_are_sent_together() -> None:
    network = FakeNetwork()
    transport = AnyIOTransport()
    transport._connect = network  # type: ignore[assignment]
    await exchange(transport, httpx.Request("POST", "http://a.test/", content=b"hello"))
    (stream,) = network.streams
    assert len(stream.sends) == 1
    await exchange(transport, httpx.Request("POST", "http://a.test/", content=chunks(b"hello")))
    assert stream.sends[1].endswith(b"\r\n\r\n5\r\nhello\r\n")
    assert stream.sends[2] == b"0\r\n\r\n"


@pytest.mark.parametrize(("length", "words"), [("3", "longer"), ("30", "shorter")])
async def test_streamed_body_that_differs_from_its_content_length_raises_a_local_protocol_error(
    length: str, words: str
) -> None:
    async with serving() as server:
        transport = AnyIOTransport()
        body = chunks(b"hello", b"world")
        request = httpx.Request("POST", server.url, headers={"content-length": length}, content=body)
        with pytest.raises(httpx.LocalProtocolError, match=words):
            await exchange(transport, request)
        await body.aclose()
        assert transport.stats()["in_use"] == 0
        await until(lambda: server.open == 0)
        assert (await exchange(transport, httpx.Request("GET", server.url))).content == b"ok"
        await transport.aclose()


async def test_exception_raised_by_a_request_body_propagates_unchanged() -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"one"
        raise ZeroDivisionError

    async with serving() as server:
        transport = AnyIOTransport()
        with pytest.raises(ZeroDivisionError):
            await exchange(transport, httpx.Request("POST", server.url, content=failing()))
        await until(lambda: server.open == 0)
        assert transport.stats()["in_use"] == 0
        await transport.aclose()


async def test_response_sent_before_the_request_is_complete_is_read() -> None:
    """For example, from a server that rejects a large body and closes."""
    answered = anyio.Event()

    async def refuses(peer: Peer) -> None:
        while b"\r\n\r\n" not in peer.pending:
            peer.pending += await peer.stream.receive()
        await peer.send(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig")
        answered.set()
        await peer.stream.send_eof()
        for _ in range(20):
            await peer.stream.receive()

    class Endless:
        first = True

        def __aiter__(self) -> AsyncIterator[bytes]:
            return self

        async def __anext__(self) -> bytes:
            if not self.first:
                await answered.wait()
            self.first = False
            return b"a" * 65_536

    async with serving(refuses) as server:
        transport = AnyIOTransport()
        request = httpx.Request("POST", server.url, content=Endless())
        try:
            response = await exchange(transport, request)
            assert (response.status_code, response.content) == (413, b"big")
        except httpx.WriteError:
            pass  # the reset overtook the response, which the kernel then discards
        assert transport.stats()["in_use"] == transport.stats()["idle"] == 0
        await transport.aclose()


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig", b"", b"nonsense\r\n\r\n"]
)
async def test_response_sent_before_the_server_aborts_a_large_request_is_read(
    answer: bytes, is_streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaking(self: FakeStream, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        self.incoming.append(answer)
        raise ConnectionResetError

    network = FakeNetwork()
    transport = AnyIOTransport()
    transport._connect = network  # type: ignore[assignment]
    await exchange(transport, httpx.Request("GET", "http://a.test/"))
    monkeypatch.setattr(FakeStream, "send", breaking)
    large = b"a" * 100_000
    request = httpx.Request("POST", "http://a.test/", content=Parts(large) if is_streamed else large)
    if b"413" in answer:
        response = await exchange(transport, request)
        assert (response.status_code, response.content) == (413, b"big")
    else:
        with pytest.raises(httpx.WriteError):
            await exchange(transport, request)
    assert len(network.streams) == 1
    assert network.open == transport.stats()["in_use"] == transport.stats()["idle"] == 0


async def test_write_error_raised_by_a_request_body_is_not_mistaken_for_a_broken_connection() -> None:
    """For example, a body that is itself read from another httpx request."""

    network = FakeNetwork(answer=lambda _: None)
    transport = AnyIOTransport()
    transport._connect = network  # type: ignore[assignment]
    with anyio.fail_after(2), pytest.raises(httpx.WriteError, match="elsewhere"):
        await exchange(
            transport,
            httpx.Request("POST", "http://a.test/", content=Parts(b"one", httpx.WriteError("elsewhere"))),
        )
    assert network.open == transport.stats()["in_use"] == 0


@pytest.mark.parametrize("value", ["close", "Close", "keep-alive, close"])
@pytest.mark.parametrize("cut", [len(OK), len(OK) - 1, 20])
async def test_request_with_connection_close_closes_its_connection(value: str, cut: int) -> None:
    """RFC 9112, section 9.6: no further request may follow, whatever the response says."""

    async def keeping(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(OK[:cut])
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
            await peer.send(OK[cut:])

    async with serving(keeping) as server:
        transport = AnyIOTransport()
        for _ in range(2):
            await exchange(transport, httpx.Request("GET", server.url, headers={"Connection": value}))
            assert transport.stats()["idle"] == 0
        assert server.accepted == 2
        await transport.aclose()


KEPT = {
    "length": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "chunked with trailers": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx: y\r\n\r\n",
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\ncontent-length: 99\r\n\r\n",
    "after 1xx": b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
}
NOT_KEPT = {
    "connection: close": b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "leftover": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok-and-more",
    "an unsolicited response": KEPT["length"] * 2,
}


@pytest.mark.parametrize("name", [*KEPT, *NOT_KEPT])
async def test_connection_is_reused_only_if_its_response_allows_it(name: str) -> None:
    async with serving((KEPT | NOT_KEPT)[name]) as server:
        transport = AnyIOTransport()
        for _ in range(3):
            response = await exchange(transport, httpx.Request("GET", server.url))
            assert response.content in (b"ok", b"")
        assert server.accepted == (1 if name in KEPT else 3)
        assert transport.stats()["idle"] == (name in KEPT)
        await transport.aclose()


async def test_response_to_head_has_no_body() -> None:
    async with serving(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n") as server:
        transport = AnyIOTransport()
        for _ in range(3):
            response = await exchange(transport, httpx.Request("HEAD", server.url))
            assert (response.content, response.headers["content-length"]) == (b"", "1000")
        assert server.accepted == 1
        await transport.aclose()


async def test_response_body_without_framing_lasts_until_the_connection_closes() -> None:
    async def old(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.0 200 OK\r\n\r\nhello ")
        await peer.send(b"world")

    async with serving(old) as server:
        transport = AnyIOTransport()
        assert (await exchange(transport, httpx.Request("GET", server.url))).content == b"hello world"
        assert transport.stats()["idle"] == transport.stats()["in_use"] == 0
        await transport.aclose()


async def test_response_stream_yields_chunks_as_they_arrive_and_returns_its_connection_at_the_end() -> None:
    more = anyio.Event()

    async def slow(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
            await more.wait()
            await peer.send(b"3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n")

    async with serving(slow) as server:
        transport = AnyIOTransport()
        response = await transport.handle_async_request(httpx.Request("GET", server.url))
        stream = aiter(response.stream)  # type: ignore[arg-type]
        assert await anext(stream) == b"one"
        assert transport.stats()["in_use"] == 1
        more.set()
        assert b"".join([piece async for piece in stream]) == b"twothree"
        assert transport.stats()["idle"] == 1
        await response.aclose()
        assert transport.stats()["idle"] == 1
        await transport.aclose()


BROKEN = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"5\r\nhello\r\n" + b"ZZ\r\n"
STARTS = [0, BROKEN.index(b"5\r\n"), BROKEN.index(b"ZZ")]


@pytest.mark.parametrize("cuts", [[], STARTS[1:], STARTS[1:2], STARTS[2:], list(range(1, len(BROKEN)))])
@pytest.mark.parametrize("large", [False, True])
async def test_body_received_before_broken_framing_is_read_however_it_was_split(
    large: bool, cuts: list[int]
) -> None:
    network = FakeNetwork()
    pieces = [BROKEN[a:b] for a, b in zip([0, *cuts], [*cuts, len(BROKEN)], strict=True)]
    content = b"x" * 100_000 if large else b""
    network.answer = lambda request: (
        pieces if len(request) > len(content) and b"\r\n\r\n" in request else None
    )
    transport = AnyIOTransport()
    transport._connect = network  # type: ignore[assignment]
    response = await transport.handle_async_request(httpx.Request("POST", "http://a/", content=content))
    assert response.status_code == 200
    assert isinstance(response.stream, ResponseStream)
    read = b""
    with pytest.raises(httpx.RemoteProtocolError, match="not HTTP/1.1"):
        async for piece in response.stream:
            read += piece
    assert read == b"hello"
    with pytest.raises(httpx.RemoteProtocolError, match="not HTTP/1.1"):
        await anext(aiter(response.stream))
    assert network.open == transport.stats()["in_use"] == 0


async def test_closing_or_dropping_a_half_read_stream_closes_its_connection() -> None:
    async def half(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
        await peer.closed()

    async with serving(half) as server:
        transport = AnyIOTransport()
        response = await transport.handle_async_request(httpx.Request("GET", server.url))
        stream = aiter(response.stream)  # type: ignore[arg-type]
        assert await anext(stream) == b"half"
        await response.aclose()
        with pytest.raises(httpx.StreamClosed):
            await anext(stream)
        await until(lambda: server.open == 0)
        response = await transport.handle_async_request(httpx.Request("GET", server.url))
        del response
        await until(lambda: server.accepted == 2 and server.open == 0)
        assert transport.stats()["in_use"] == 0
        await transport.aclose()


class Dying:
    """A server that answers once on its first connection and closes it at the next request."""

    def __init__(self, kill: str) -> None:
        self.kill = kill
        self.received: list[Received] = []
        self.connections = 0

    async def __call__(self, peer: Peer) -> None:
        self.connections += 1
        self.received.append(await peer.request())
        await peer.send(OK)
        if self.connections > 1:
            self.received.append(await peer.request())
            await peer.send(OK)
            await peer.closed()
            return
        if self.kill == "after the request":
            self.received.append(await peer.request())
        elif self.kill == "in the response":
            self.received.append(await peer.request())
            await peer.send(OK[:9])


@pytest.mark.parametrize(
    ("method", "kill", "is_repeated"),
    [
        ("GET", "after the request", True),
        ("PUT", "after the request", True),
        ("DELETE", "after the request", True),
        ("POST", "after the request", False),
        ("PATCH", "after the request", False),
        ("GET", "in the response", False),
        ("POST", "in the response", False),
    ],
)
async def test_request_on_a_dead_idle_connection_is_resent_only_if_idempotent_and_unanswered(
    method: str, kill: str, is_repeated: bool
) -> None:
    dying = Dying(kill)
    async with serving(dying) as server:
        transport = AnyIOTransport()
        await exchange(transport, httpx.Request(method, server.url, content=b"1"))
        request = httpx.Request(method, server.url, content=b"2")
        if is_repeated:
            assert (await exchange(transport, request)).content == b"ok"
            assert [received.body for received in dying.received] == [b"1", b"2", b"2"]
        else:
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                await exchange(transport, request)
            assert [received.body for received in dying.received] == [b"1", b"2"]
        assert transport.stats()["in_use"] == 0
        await transport.aclose()


async def test_idle_connection_whose_write_fails_is_replaced_for_any_method() -> None:
    network = FakeNetwork()
    transport = AnyIOTransport()
    transport._connect = network  # type: ignore[assignment]
    await exchange(transport, httpx.Request("POST", "http://a.test/", content=b"1"))
    network.streams[0].closed = True  # the peer's close could not be seen before the write
    assert (await exchange(transport, httpx.Request("POST", "http://a.test/", content=b"2"))).content == b"ok"
    assert len(network.streams) == 2
    assert network.streams[1].sends[0].endswith(b"\r\n\r\n2")


async def test_finding_one_dead_idle_connection_discards_the_others() -> None:
    network = FakeNetwork()
    transport = AnyIOTransport()
    transport._connect = network  # type: ignore[assignment]
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(exchange, transport, httpx.Request("GET", "http://a.test/"))
    for stream in network.streams:
        stream.closed = True  # as after a server restart, which cannot be seen before the write
    assert (await exchange(transport, httpx.Request("POST", "http://a.test/", content=b"2"))).content == b"ok"
    assert (len(network.streams), transport.stats()["idle"]) == (4, 1)


async def test_failed_new_connection_is_not_replaced() -> None:
    network = FakeNetwork()
    transport = AnyIOTransport()
    transport._connect = network  # type: ignore[assignment]
    network.refuse_sends = True
    with pytest.raises(httpx.WriteError):
        await exchange(transport, httpx.Request("GET", "http://a.test/"))
    assert len(network.streams) == 1
    network.refuse_sends = False
    await exchange(transport, httpx.Request("GET", "http://a.test/"))
    network.refuse_sends = True
    with pytest.raises(httpx.WriteError):
        await exchange(transport, httpx.Request("GET", "http://a.test/"))
    assert len(network.streams) == 3
    assert network.open == 0


async def test_streamed_request_body_is_not_resent() -> None:
    network = FakeNetwork()
    transport = AnyIOTransport()
    transport._connect = network  # type: ignore[assignment]
    await exchange(transport, httpx.Request("PUT", "http://a.test/"))
    network.refuse_sends = True
    body = chunks(b"1")
    with pytest.raises(httpx.WriteError):
        await exchange(transport, httpx.Request("PUT", "http://a.test/", content=body))
    await body.aclose()
    assert len(network.streams) == 1


async def test_call_leaves_no_reference_cycles_of_the_transport() -> None:
    async with serving() as server:
        transport = AnyIOTransport()
        request = httpx.Request("POST", server.url, content=b"hello")
        for _ in range(2):
            await (await transport.handle_async_request(request)).aread()
        gc.collect()
        gc.disable()
        try:
            gc.set_debug(gc.DEBUG_SAVEALL)
            await (await transport.handle_async_request(request)).aread()
            gc.collect()
            kept = {type(item).__name__ for item in gc.garbage}
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
            await transport.aclose()
        assert not kept & {
            "ResponseReader",
            "HttpResponseParser",
            "RawResponse",
            "ResponseStream",
            "Exchange",
        }
