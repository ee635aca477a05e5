"""Faults on the wire, from a raw server: each call ends in the documented error or its result, and leaks nothing.

Whatever happens, a call ends within its timeout; the pool holds only idle, reusable connections; after the client is
closed no descriptor is left open; and no call sees bytes of the one before.
"""

import gc
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import anyio
import anyio.abc
import anyio.lowlevel
import httpx
import pytest

from omnigate import (
    AnyIOTransport,
    AsyncClient,
    ConnectionError,
    GatewayError,
    InvalidResponseError,
    RetryConfig,
    TimeoutError,
)

from ..support.event_loops import BOTH, backend_of
from ..support.servers import Handler, Peer, Served, open_sockets, serving, until

pytestmark = [pytest.mark.anyio, pytest.mark.proof]


@pytest.fixture(params=[*BOTH, "trio+served"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run these tests on trio with one task that reads for all others, too."""
    return backend_of(request)


HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}
ONCE = RetryConfig(max_retries=0)
SECONDS = 10.0  # a limit that must not be reached
SHORT = 0.15  # a limit that is


# The three kinds of call, each with its complete response, in both framings, and the result


class Kind(NamedTuple):
    """A kind of call, its responses, and the result they give."""

    call: Callable[[AsyncClient], Awaitable[Any]]
    result: Any
    answers: dict[str, bytes]


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


def answer(body: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", b"x-request-id: r", *headers, b"", body])


def with_length(body: bytes) -> bytes:
    return answer(body, b"content-length: %d" % len(body))


CHUNKED = b"transfer-encoding: chunked"

CHAT = json.dumps(
    {
        "id": "c",
        "provider": "openai",
        "model": "gpt-4o-mini",
        "content": "wörld",
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    },
    ensure_ascii=False,
).encode()
TEXT = ["hel", "lo, wö", "rld"]
EVENTS: list[Any] = [
    {"choices": [{"index": 0, "delta": {"role": "assistant"}}]},
    {"choices": [{"index": 0, "delta": {"content": "wörld"}}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
]
EVENT_BYTES = [b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n" for event in EVENTS]
DONE = b"data: [DONE]\n\n"


async def chat(client: AsyncClient) -> str:
    return (await client.chat(**HELLO)).content


async def text_stream(client: AsyncClient) -> str:
    text = ""
    async with client.chat_stream(**HELLO) as stream:
        try:
            async for piece in stream:
                text += piece
        except GatewayError:
            assert "".join(TEXT).startswith(text.rstrip("\N{REPLACEMENT CHARACTER}")) or len(text) > 100
            raise
    return text


async def event_stream(client: AsyncClient) -> list[Any]:
    events: list[Any] = []
    async with client.completions_stream(**HELLO) as stream:
        try:
            async for event in stream:
                events.append(event)
        except GatewayError:
            assert events == EVENTS[: len(events)] or len(events) > 10
            raise
    return events


TEXT_BYTES = [piece.encode() for piece in TEXT]
KINDS = {
    "chat": Kind(
        chat,
        "wörld",
        {"length": with_length(CHAT), "chunked": answer(chunked(CHAT[:40], CHAT[40:]), CHUNKED)},
    ),
    "text": Kind(
        text_stream,
        "".join(TEXT),
        {"length": with_length(b"".join(TEXT_BYTES)), "chunked": answer(chunked(*TEXT_BYTES), CHUNKED)},
    ),
    "events": Kind(
        event_stream,
        EVENTS,
        {
            "length": with_length(b"".join(EVENT_BYTES) + DONE),
            "chunked": answer(chunked(*EVENT_BYTES, DONE), CHUNKED),
        },
    ),
}
FORMS = [(name, form) for name, kind in KINDS.items() for form in kind.answers]
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
every_form = pytest.mark.parametrize(
    ("kind", "whole"), [(KINDS[n], KINDS[n].answers[f]) for n, f in FORMS], ids=map("-".join, FORMS)
)


@pytest.fixture(scope="module", autouse=True)
def _no_warning_at_the_end() -> Iterator[None]:
    yield
    gc.collect()  # anything left open warns now, which is an error


# A client, with a check that its calls leave nothing behind

TRANSPORTS: dict[str, Callable[[], Any]] = {
    "own": lambda: AnyIOTransport(max_connections=4),
    "httpx": lambda: httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=4)),
}
every_transport = pytest.mark.parametrize("transport", TRANSPORTS)
own_at_least = pytest.mark.parametrize("transport", ["own", pytest.param("httpx", marks=pytest.mark.heavy)])


def in_use(transport: Any) -> int:
    if isinstance(transport, AnyIOTransport):
        stats = transport.stats()
        return stats["in_use"] + stats["opening"] + stats["waiting"]  # type: ignore[no-any-return]
    pool = getattr(transport, "_transport", transport)._pool  # our client wraps it
    return len(pool._requests) + sum(not connection.is_idle() for connection in pool.connections)


@asynccontextmanager
async def calling(
    url: str, transport: str = "own", *, timeout: Any = SECONDS, **arguments: Any
) -> AsyncIterator[AsyncClient]:
    """Yield a client without retries; check that it leaves nothing in use and, once closed, nothing open."""
    before = open_sockets()
    wire = TRANSPORTS[transport]()
    arguments.setdefault("retry_config", ONCE)
    with anyio.fail_after(30):
        async with AsyncClient("k", base_url=url, transport=wire, timeout=timeout, **arguments) as client:
            yield client
            assert in_use(wire) == 0, wire
    await until(lambda: open_sockets() <= before)


@asynccontextmanager
async def served(handler: Handler | bytes) -> AsyncIterator[Served]:
    before = open_sockets()
    async with serving(handler) as server:
        yield server
        await until(lambda: server.open == 0)
    await until(lambda: open_sockets() <= before)


def reset(peer: Peer) -> None:
    """Make closing the connection send a reset."""
    raw_socket = peer.stream.extra(anyio.abc.SocketAttribute.raw_socket)
    raw_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# Refused, reset


@every_transport
@every_kind
async def test_refused_connection_raises_a_connection_error(kind: Kind, transport: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        async with calling(f"http://127.0.0.1:{taken.getsockname()[1]}", transport) as client:
            with pytest.raises(ConnectionError) as caught:
                await kind.call(client)
    assert not isinstance(caught.value, TimeoutError)
    assert not caught.value.was_sent


@own_at_least
@every_form
@pytest.mark.parametrize("when", ["accepted", "requested", "in the head", "after the head", "in the body"])
async def test_connection_reset_at_any_stage_raises_a_connection_error(
    kind: Kind, whole: bytes, when: str, transport: str
) -> None:
    head = whole.index(b"\r\n\r\n") + 4
    length = {"in the head": head // 2, "after the head": head, "in the body": (head + len(whole)) // 2}.get(
        when, 0
    )

    async def handle(peer: Peer) -> None:
        if when != "accepted":
            await peer.request()
        if length:
            await peer.send(whole[:length])
        reset(peer)

    async with served(handle) as server, calling(server.url, transport) as client:
        with pytest.raises(ConnectionError) as caught:
            await kind.call(client)
        assert not isinstance(caught.value, TimeoutError)


# Cut, at every byte; stalled, at every stage


@pytest.mark.proof
@own_at_least
@every_form
@pytest.mark.parametrize("ending", ["closed", "reset"])
async def test_response_cut_at_any_byte_raises_a_connection_error_unless_complete(
    kind: Kind, whole: bytes, ending: str, transport: str
) -> None:
    """A truncated response is an error, a complete one the result; events are complete at `[DONE]`."""
    length = 0
    complete = whole.index(DONE) + len(DONE) if DONE in whole else len(whole)

    async def handle(peer: Peer) -> None:
        await peer.request()
        if length:
            await peer.send(whole[:length])
        if ending == "reset":
            reset(peer)

    async with served(handle) as server, calling(server.url, transport) as client:
        for length in range(len(whole) + 1):
            try:
                result = await kind.call(client)
            except ConnectionError as error:
                assert not isinstance(error, TimeoutError)
                assert length < complete or ending == "reset", length
            else:
                assert length >= complete, length
                assert result == kind.result
            assert in_use(client._session.carrier.transport) == 0
        assert server.accepted == len(whole) + 1


@own_at_least
@every_form
async def test_response_that_stalls_at_any_stage_raises_a_timeout_error(
    kind: Kind, whole: bytes, transport: str
) -> None:
    """Stall before the request is read and after every 29 bytes; run concurrently, so all take one timeout."""
    lengths = [0, *range(0, len(whole), 29), len(whole) - 3, len(whole) - 1]
    complete = whole.index(DONE) + len(DONE) if DONE in whole else len(whole)
    async with anyio.create_task_group() as group:

        async def one(number: int, length: int) -> None:
            async def handle(peer: Peer) -> None:
                if number:
                    await peer.request()
                if length:
                    await peer.send(whole[:length])
                await peer.closed()

            async with serving(handle) as server:
                wire = TRANSPORTS[transport]()
                async with AsyncClient(
                    "k",
                    base_url=server.url,
                    transport=wire,
                    timeout=httpx.Timeout(SECONDS, read=SHORT),
                    retry_config=ONCE,
                ) as client:
                    if length >= complete:
                        assert await kind.call(client) == kind.result
                    else:
                        with pytest.raises(TimeoutError):
                            await kind.call(client)
                    assert in_use(wire) == 0
                await until(lambda: server.open == 0)

        group.cancel_scope.deadline = anyio.current_time() + SECONDS
        for number, length in enumerate(lengths):
            group.start_soon(one, number, length)
    assert not group.cancel_scope.cancelled_caught


@every_transport
async def test_full_accept_queue_or_silent_tls_handshake_raises_a_timeout_error(transport: str) -> None:
    timeout = httpx.Timeout(SECONDS, connect=SHORT)
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for other in (first, second):  # one to fill the queue, and one more
            other.setblocking(False)
            other.connect_ex(listener.getsockname())
        async with calling(
            f"http://127.0.0.1:{listener.getsockname()[1]}", transport, timeout=timeout
        ) as client:
            with pytest.raises(TimeoutError) as caught:
                await client.chat(**HELLO)
            assert not caught.value.was_sent

    async def silent(peer: Peer) -> None:
        await peer.closed()

    async with served(silent) as server:
        url = server.url.replace("http:", "https:")
        async with calling(url, transport, timeout=timeout) as client:
            with pytest.raises(TimeoutError) as caught:
                await client.chat(**HELLO)
            assert not caught.value.was_sent


@every_transport
async def test_request_that_the_server_never_reads_raises_a_timeout_error(transport: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        timeout = httpx.Timeout(SECONDS, write=SHORT)
        async with calling(f"http://127.0.0.1:{deaf.getsockname()[1]}", transport, timeout=timeout) as client:
            with pytest.raises(TimeoutError):
                await client.chat(model="gpt-4o-mini", messages="x" * 20_000_000)


# The same bytes in other pieces


@own_at_least
@every_form
async def test_response_sent_one_byte_at_a_time_is_read_whole(
    kind: Kind, whole: bytes, transport: str
) -> None:
    async def handle(peer: Peer) -> None:
        while True:
            await peer.request()
            for n in range(len(whole)):
                await peer.send(whole[n : n + 1])
                await anyio.lowlevel.checkpoint()

    async with served(handle) as server, calling(server.url, transport) as client:
        for _ in range(2):
            assert await kind.call(client) == kind.result
        assert server.accepted == 1


@every_transport
@every_form
@pytest.mark.proof
async def test_response_sent_in_one_piece_is_read_whole(kind: Kind, whole: bytes, transport: str) -> None:
    async with served(whole) as server, calling(server.url, transport) as client:
        for _ in range(3):
            assert await kind.call(client) == kind.result
        assert server.accepted == 1


@every_form
async def test_surplus_response_is_not_taken_for_the_answer_to_the_next_request(
    kind: Kind, whole: bytes
) -> None:
    """Two responses in one segment; httpx's own transport takes the second for the next answer."""
    other = with_length(CHAT.replace("wörld".encode(), b"smuggled"))
    async with served(whole + other) as server, calling(server.url) as client:
        for calls in range(1, 4):
            assert await kind.call(client) == kind.result
            assert server.accepted == calls


# Not HTTP, or with false lengths


GARBAGE = {
    "noise": b"\x00\x01\x02\xff\xfe" * 50 + b"\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46",
    "HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + b"\x00" * 18,
    "blank lines": b"\r\n" * 100,
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "a request": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    "a header without a colon": b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
    "a NUL in a header": b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 0\r\n\r\n",
    "a switch of protocols": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
}


@every_transport
@every_kind
async def test_garbage_instead_of_a_response_raises_a_connection_error(kind: Kind, transport: str) -> None:
    garbage = b""

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(garbage)

    async with served(handle) as server, calling(server.url, transport) as client:
        for name, garbage in GARBAGE.items():
            with pytest.raises(ConnectionError) as caught:
                await kind.call(client)
            assert not isinstance(caught.value, TimeoutError), name


@every_transport
async def test_garbage_in_a_response_body_raises_a_typed_error_or_is_replaced(transport: str) -> None:
    noise = bytes(range(256)) * 4
    async with served(with_length(noise)) as server, calling(server.url, transport) as client:
        with pytest.raises(InvalidResponseError):
            await chat(client)
        assert await client.chat_stream(**HELLO).text() == noise.decode("utf-8", "replace")
        with pytest.raises(ConnectionError, match="before its end"):  # neither an event nor an end
            await event_stream(client)
    for event in (b"data: {nonsense\n\n", b"data: 1\n\n", b"data: \xff\xff\n\n"):
        async with served(with_length(event + DONE)) as server, calling(server.url, transport) as client:
            with pytest.raises(InvalidResponseError):
                await event_stream(client)


LENGTHS: dict[str, tuple[bytes, type[GatewayError]]] = {
    "too short": (answer(CHAT, b"content-length: 40"), InvalidResponseError),
    "zero": (answer(CHAT, b"content-length: 0"), InvalidResponseError),
    "too long": (answer(CHAT, b"content-length: %d" % (len(CHAT) + 9)), ConnectionError),
    "enormous": (answer(CHAT, b"content-length: 99999999999999999999999999"), ConnectionError),
    "negative": (answer(CHAT, b"content-length: -1"), ConnectionError),
    "not a number": (answer(CHAT, b"content-length: many"), ConnectionError),
    "two": (answer(CHAT, b"content-length: 40", b"content-length: %d" % len(CHAT)), ConnectionError),
    "chunk size not hexadecimal": (answer(b"xyz\r\n" + CHAT + b"\r\n0\r\n\r\n", CHUNKED), ConnectionError),
    "chunk size negative": (answer(b"-5\r\n" + CHAT + b"\r\n0\r\n\r\n", CHUNKED), ConnectionError),
    "chunk size enormous": (answer(b"f" * 40 + b"\r\n" + CHAT + b"\r\n0\r\n\r\n", CHUNKED), ConnectionError),
    "chunk too short": (answer(b"%x\r\n%b\r\n0\r\n\r\n" % (len(CHAT) + 9, CHAT), CHUNKED), ConnectionError),
    "chunk too long": (answer(b"%x\r\n%b\r\n0\r\n\r\n" % (len(CHAT) - 9, CHAT), CHUNKED), ConnectionError),
    "chunk size missing": (answer(CHAT + b"\r\n0\r\n\r\n", CHUNKED), ConnectionError),
}


@own_at_least
@pytest.mark.parametrize(("wrong", "error"), LENGTHS.values(), ids=LENGTHS.keys())
async def test_response_with_a_wrong_length_raises_an_error_and_loses_its_connection(
    wrong: bytes, error: type[GatewayError], transport: str
) -> None:
    """The connection is never reused; a text stream cannot tell that its length is too short."""
    await assert_refused(wrong, error, transport)


async def test_response_with_both_content_length_and_chunked_encoding_is_rejected() -> None:
    """RFC 9112, section 6.3; httpx's own transport reads the chunks."""
    await assert_refused(answer(chunked(CHAT), CHUNKED, b"content-length: 40"), ConnectionError, "own")


async def assert_refused(wrong: bytes, error: type[GatewayError], transport: str) -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(wrong)

    async with served(handle) as server, calling(server.url, transport) as client:
        with pytest.raises(error) as caught:
            await chat(client)
        assert not isinstance(caught.value, TimeoutError)
        for stream in (client.chat_stream(**HELLO), client.completions_stream(**HELLO)):
            try:
                async with stream:
                    async for _ in stream:
                        pass
            except ConnectionError as failure:
                assert not isinstance(failure, TimeoutError)
            else:
                assert error is InvalidResponseError
                assert isinstance(stream, type(client.chat_stream(**HELLO)))
        assert server.accepted == 3


# Endless responses


async def endless(peer: Peer, start: bytes, again: bytes) -> int:
    """Send until the client hangs up; return how many bytes it accepted."""
    await peer.request()
    taken = 0
    try:
        await peer.send(start)
        while True:
            await peer.send(again)
            taken += len(again)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        return taken


ENDLESS = {
    "headers": (b"HTTP/1.1 200 OK\r\n", b"x-header: " + b"x" * 500 + b"\r\n"),
    "many small headers": (b"HTTP/1.1 200 OK\r\n", b"a:\r\n" * 200),
    "one header": (b"HTTP/1.1 200 OK\r\nx-header: ", b"x" * 5_000),
    "a status line": (b"HTTP/1.1 200 ", b"O" * 5_000),
    "blank lines": (b"", b"\r\n" * 2_500),
    "a chunk's size": (answer(b"", CHUNKED), b"0" * 5_000),
    "a chunk's extension": (answer(b"5;x=", CHUNKED), b"x" * 5_000),
    "trailers": (answer(chunked(), CHUNKED)[:-2], b"x-trailer: x\r\n" * 300),
}


@own_at_least
@every_kind
@pytest.mark.parametrize(("start", "again"), ENDLESS.values(), ids=ENDLESS.keys())
async def test_endless_response_framing_is_abandoned_after_bounded_bytes(
    kind: Kind, start: bytes, again: bytes, transport: str
) -> None:
    """Each byte arrives in time, so only the number of bytes can end it."""
    await assert_given_up(kind, start, again, transport)


INTERIM = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"


@every_kind
async def test_endless_interim_responses_are_abandoned_after_bounded_bytes(kind: Kind) -> None:
    await assert_given_up(kind, b"", INTERIM, "own")


async def assert_given_up(kind: Kind, start: bytes, again: bytes, transport: str) -> None:
    taken: list[int] = []

    async def handle(peer: Peer) -> None:
        taken.append(await endless(peer, start, again))

    async with served(handle) as server, calling(server.url, transport) as client:
        with pytest.raises(ConnectionError) as caught:
            await kind.call(client)
        assert not isinstance(caught.value, TimeoutError)
    assert taken[0] < 10_000_000  # much of it still in the kernel's buffers


@every_transport
async def test_slow_endless_interim_responses_end_at_the_deadline(transport: str) -> None:
    """httpx's own transport reads them without limit, each in time: only a deadline ends the call."""

    async def handle(peer: Peer) -> None:
        await peer.request()
        with suppress(anyio.BrokenResourceError):
            while True:
                await peer.send(INTERIM)
                await anyio.sleep(SHORT / 5)  # slowly, so that their number does not end it first

    async with served(handle) as server, calling(server.url, transport) as client:
        with pytest.raises(TimeoutError):
            await client.chat(**HELLO, deadline_seconds=SHORT)


ENDLESS_BODIES = {
    "text": (answer(b"", CHUNKED), chunked(b"x" * 50_000)[:-5]),
    "until the connection closes": (answer(b""), b"x" * 50_000),
    "events": (answer(b"", CHUNKED), chunked(EVENT_BYTES[1] * 500)[:-5]),
    "one event": (answer(b"", CHUNKED), chunked(b"data: " + b"x" * 50_000)[:-5]),
    "white space": (answer(b"", CHUNKED), chunked(b" " * 50_000)[:-5]),
}


@own_at_least
@every_kind
@pytest.mark.parametrize(("start", "again"), ENDLESS_BODIES.values(), ids=ENDLESS_BODIES.keys())
@pytest.mark.proof
async def test_endless_response_body_is_abandoned_at_max_response_bytes(
    kind: Kind, start: bytes, again: bytes, transport: str
) -> None:
    async def handle(peer: Peer) -> None:
        await endless(peer, start, again)

    async with (
        served(handle) as server,
        calling(server.url, transport, max_response_bytes=2_000_000) as client,
    ):
        with pytest.raises(InvalidResponseError):
            await kind.call(client)


@own_at_least
@every_form
async def test_many_interim_responses_before_the_final_one_are_skipped(
    kind: Kind, whole: bytes, transport: str
) -> None:
    interim = b"HTTP/1.1 102 Processing\r\n\r\n" + b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    async with served(interim * 8 + whole) as server, calling(server.url, transport) as client:
        for _ in range(2):
            assert await kind.call(client) == kind.result
        assert server.accepted == 1


# Slow readers, half-open connections


@every_transport
async def test_large_request_reaches_a_server_that_reads_slowly(transport: str) -> None:
    """The server uses a bare socket, because asyncio's would read ahead."""
    length = 2_000_000

    async def serve(listener: socket.socket) -> None:
        await anyio.wait_readable(listener)
        with listener.accept()[0] as connection:
            received = 0
            while received < length:
                await anyio.wait_readable(connection)
                received += len(connection.recv(8_192))
            connection.sendall(with_length(CHAT))
            await anyio.wait_readable(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        async with anyio.create_task_group() as group:
            group.start_soon(serve, listener)
            async with calling(f"http://127.0.0.1:{listener.getsockname()[1]}", transport) as client:
                response = await client.chat(model="gpt-4o-mini", messages="x" * length)
                assert response.content == "wörld"


@every_transport
@pytest.mark.parametrize("is_events", [False, True])
async def test_slow_stream_consumer_holds_the_server_back_and_loses_nothing(
    is_events: bool, transport: str
) -> None:
    """Backpressure stops the server while the consumer is slow, and everything arrives."""
    count = 0
    many = 400
    piece = b"x" * 20_000

    async def handle(peer: Peer) -> None:
        nonlocal count
        await peer.request()
        await peer.send(answer(b"", CHUNKED))
        for count in range(1, many + 1):
            if is_events:
                event = {"choices": [{"index": 0, "delta": {"content": piece.decode()}}]}
                await peer.send(chunked(b"data: " + json.dumps(event).encode() + b"\n\n")[:-5])
            else:
                await peer.send(chunked(piece)[:-5])
        await peer.send(chunked(DONE) if is_events else chunked())

    async with served(handle) as server, calling(server.url, transport) as client:
        length = 0
        async with client.chat_stream(**HELLO, include_usage=is_events) as stream:
            for _ in range(2_000):
                await anyio.lowlevel.checkpoint()
            assert count < many, "nothing held the server back"
            async for text in stream:
                length += len(text)
                await anyio.lowlevel.checkpoint()
        assert length == many * len(piece)


@own_at_least
@every_form
@pytest.mark.parametrize("part", ["nothing", "half", "all"])
async def test_half_closed_connection_is_closed_and_a_partial_response_raises_a_connection_error(
    kind: Kind, whole: bytes, part: str, transport: str
) -> None:
    ended = closed = 0

    async def handle(peer: Peer) -> None:
        nonlocal ended, closed
        await peer.request()
        length = {"nothing": 0, "half": len(whole) // 2, "all": len(whole)}[part]
        if length:
            await peer.send(whole[:length])
        await peer.stream.send_eof()
        ended += 1
        await peer.closed()  # the client closes its side in response
        closed += 1

    async with served(handle) as server, calling(server.url, transport) as client:
        for calls in (1, 2):
            if part == "all":
                assert await kind.call(client) == kind.result
            else:
                with pytest.raises(ConnectionError) as caught:
                    await kind.call(client)
                assert not isinstance(caught.value, TimeoutError)
            await until(
                lambda calls=calls: ended == calls
            )  # a request that crosses the server's close would fail
        assert server.accepted == 2
    assert closed == 2


@own_at_least
@every_form
async def test_response_sent_before_the_request_is_not_taken_on_a_reused_connection(
    kind: Kind, whole: bytes, transport: str
) -> None:
    """On a new connection such a response may be accepted; on a reused one it answers no request."""

    async def handle(peer: Peer) -> None:
        await peer.send(whole)
        await peer.request()

    async with served(handle) as server, calling(server.url, transport) as client:
        for _ in range(3):
            assert await kind.call(client) == kind.result
            await until(lambda: server.open == 0)  # a request that crosses the server's close would fail
        assert server.accepted == 3
