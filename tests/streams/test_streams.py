"""Streams over a scripted transport: order, errors, retries, and that nothing stays open."""

import asyncio
import gc
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import msgspec
import pytest

from omnigate import (
    AnyIOTransport,
    AsyncClient,
    AuthError,
    ChatStream,
    Client,
    ConnectionError,
    InvalidArgumentTypeError,
    InvalidResponseError,
    ProviderError,
    ProviderRateLimitError,
    RetryConfig,
    StreamChunk,
    StreamClosedError,
    TimeoutError,
    Usage,
)

from ..support.fake_streams import FakeNetwork
from ..support.scripted import ChunkStream, ScriptedTransport, Step, error_answer

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}


class Streaming:
    """A client whose transport answers with the given streams, kept for inspection."""

    def __init__(self, *answers: ChunkStream | Step, **arguments: Any) -> None:
        self.streams = [answer for answer in answers if isinstance(answer, ChunkStream)]
        steps = [
            self._step(answer, n) if isinstance(answer, ChunkStream) else answer
            for n, answer in enumerate(answers)
        ]
        self.transport = ScriptedTransport(*steps)
        arguments.setdefault("retry_config", RetryConfig(jitter=0))
        self.client = AsyncClient(
            "llmg_x", base_url="http://gateway.test", transport=self.transport, **arguments
        )

    @staticmethod
    def _step(stream: ChunkStream, number: int) -> Step:
        return lambda _: httpx.Response(200, headers={"x-request-id": f"r{number}"}, stream=stream)

    def sent(self, number: int = 0) -> Any:
        request = self.transport.requests[number]
        return request.url.path, msgspec.json.decode(request.content)

    def assert_closed(self) -> None:
        assert all(stream.closed for stream in self.streams)


def event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else msgspec.json.encode(value)) + b"\n\n"


def chunk(content: str | None = None, finish_reason: str | None = None, **fields: Any) -> bytes:
    delta = {} if content is None else {"content": content}
    return event(
        {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], **fields}
    )


USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
DONE = event(b"[DONE]")
COMPLETION = [
    event({"id": "c", "choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]}),
    chunk("hel"), chunk("lo"), chunk(finish_reason="stop"), event({"id": "c", "choices": [], "usage": USAGE}), DONE,
]  # fmt: skip


FINE: dict[str, list[Any]] = {"chat_stream": [b"fine"], "completions_stream": [chunk("fine"), DONE]}


async def test_a_stream_yields_pieces_as_they_arrive_and_releases_its_connection() -> None:
    run = Streaming(ChunkStream([b"hel", b"lo ", "wörld".encode()]))
    async with run.client.chat_stream(**HELLO) as stream:
        assert [piece async for piece in stream] == ["hel", "lo ", "wörld"]
        run.assert_closed()
        assert run.streams[0].exhausted
    assert run.sent() == (
        "/v1/chat",
        {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "stream": True},
    )


async def test_entering_a_stream_returns_with_the_head_before_any_text() -> None:
    run = Streaming(ChunkStream([30.0, b"late"]))
    started = anyio.current_time()
    async with run.client.chat_stream(**HELLO) as stream:
        assert anyio.current_time() - started < 1
        assert stream.meta.request_id == "r0"
        assert stream.meta.attempts == 1
        assert await stream.text() == "late"


async def test_without_async_with_the_stream_opens_with_its_first_piece() -> None:
    run = Streaming(ChunkStream([b"a"]))
    stream = run.client.chat_stream(**HELLO)
    assert run.transport.requests == []
    with pytest.raises(AttributeError, match="not open yet"):
        _ = stream.meta
    assert [piece async for piece in stream] == ["a"]
    assert stream.meta.request_id == "r0"
    run.assert_closed()
    assert [piece async for piece in stream] == []


@pytest.mark.parametrize("method", ["chat_stream", "completions_stream"])
async def test_entering_an_ended_stream_again_sends_nothing(method: str) -> None:
    run = Streaming(ChunkStream(FINE[method]), ChunkStream(FINE[method]))
    stream = getattr(run.client, method)(**HELLO)
    assert len([piece async for piece in stream]) == 1
    for _ in range(2):
        async with stream as again:
            assert again is stream
            assert [piece async for piece in stream] == []
    assert repr(stream).endswith(" ended>")
    assert len(run.transport.requests) == 1


async def test_entering_a_partly_read_stream_continues_where_it_was() -> None:
    run = Streaming(ChunkStream([b"a", b"b"]))
    stream = run.client.chat_stream(**HELLO)
    assert await anext(stream) == "a"
    async with stream:
        assert await stream.text() == "b"
    assert len(run.transport.requests) == 1


async def test_entering_a_failed_stream_again_sends_nothing() -> None:
    run = Streaming(ChunkStream([b"a\n[error] OpenAI error 401: x"]))
    stream = run.client.chat_stream(**HELLO)
    assert await anext(stream) == "a"
    async with stream:  # its failure has not been raised yet
        with pytest.raises(ProviderError):
            await anext(stream)
    with pytest.raises(StreamClosedError, match="before its end"):
        async with stream:
            pytest.fail("entered")
    assert len(run.transport.requests) == 1


async def test_entering_a_closed_stream_sends_nothing() -> None:
    run = Streaming(ChunkStream([b"a", b"b"]))
    async with run.client.chat_stream(**HELLO) as stream:
        await anext(stream)
    with pytest.raises(StreamClosedError, match="before its end"):
        async with stream:
            pytest.fail("entered")
    assert len(run.transport.requests) == 1


async def test_stream_chunks_carry_the_request_id() -> None:
    run = Streaming(ChunkStream([b"a", b"b"]))
    async with run.client.chat_stream(**HELLO, as_chunks=True) as stream:
        assert [piece async for piece in stream] == [
            StreamChunk(text="a", request_id="r0"),
            StreamChunk(text="b", request_id="r0"),
        ]


async def test_text_returns_the_rest_of_a_stream() -> None:
    for as_chunks in (False, True):
        run = Streaming(ChunkStream([b"a", b"b", b"c\n", b"[er"]))
        stream: ChatStream[Any] = run.client.chat_stream(**HELLO, as_chunks=as_chunks)  # type: ignore[call-overload]
        await anext(stream)
        assert await stream.text() == "bc\n[er"


async def test_an_empty_stream_has_empty_text() -> None:
    run = Streaming(ChunkStream([]))
    async with run.client.chat_stream(**HELLO) as stream:
        assert await stream.text() == ""
        assert await stream.text() == ""


async def test_a_failure_in_a_stream_is_raised_after_all_text_before_it() -> None:
    run = Streaming(ChunkStream([b"part1 ", b"part2\n[err", b"or] two\nlines: OpenAI error", b" 500: x"]))
    pieces: list[str] = []
    with pytest.raises(ProviderError) as caught:
        async with run.client.chat_stream(**HELLO) as stream:
            async for piece in stream:
                pieces.append(piece)
    assert pieces == ["part1 ", "part2"]
    assert caught.value.message == "two lines: OpenAI error 500: x"  # a log's line stays one
    assert caught.value.detail == "two\nlines: OpenAI error 500: x"
    assert (caught.value.request_id, caught.value.status_code) == ("r0", 502)
    assert len(run.transport.requests) == 1
    run.assert_closed()


@pytest.mark.parametrize(
    "message",
    [
        b"OpenAI error 429: x",
        b"OpenAI error 503: x",
        b"OpenAI request failed: x",
        b"openai circuit is open",
        b"",
    ],
)
async def test_a_transient_stream_failure_before_any_text_is_retried(message: bytes) -> None:
    run = Streaming(ChunkStream([b"\n[err", b"or] " + message]), ChunkStream([b"fine"]))
    async with run.client.chat_stream(**HELLO) as stream:
        assert stream.meta.request_id == "r0"
        assert await anext(stream) == "fine"
        assert (stream.meta.request_id, stream.meta.attempts) == ("r1", 2)
    assert run.transport.times[1] - run.transport.times[0] == pytest.approx(0.5, abs=0.01)
    run.assert_closed()


async def test_a_stream_counts_attempts_over_its_head_and_its_first_text() -> None:
    run = Streaming(error_answer(503, "x"), ChunkStream([b"\n[error] "]), ChunkStream([b"\n[error] "]))
    with pytest.raises(ProviderError, match="without a message") as caught:
        await run.client.chat_stream(**HELLO).text()
    assert caught.value.attempts == len(run.transport.requests) == 3
    run.assert_closed()


@pytest.mark.parametrize(
    ("message", "kind"), [(b"OpenAI error 401: bad key", ProviderError), (b"something else", ProviderError)]
)
async def test_a_permanent_stream_failure_before_any_text_is_not_retried(
    message: bytes, kind: type[ProviderError]
) -> None:
    run = Streaming(ChunkStream([b"\n[error] " + message]))
    with pytest.raises(kind):
        await run.client.chat_stream(**HELLO).text()
    assert len(run.transport.requests) == 1


async def test_a_provider_rate_limit_in_a_stream_is_distinct_from_the_gateways() -> None:
    run = Streaming(ChunkStream([b"text\n[error] OpenAI error 429: slow down"]))
    with pytest.raises(ProviderRateLimitError) as caught:
        await run.client.chat_stream(**HELLO).text()
    assert caught.value.provider == "OpenAI"


async def test_retry_sent_false_does_not_retry_a_stream_that_failed_before_any_text() -> None:
    run = Streaming(ChunkStream([b"\n[error] "]), retry_config=RetryConfig(retry_sent=False))
    with pytest.raises(ProviderError):
        await run.client.chat_stream(**HELLO).text()
    assert len(run.transport.requests) == 1


async def test_a_stream_failure_before_the_head_is_retried_like_a_call() -> None:
    run = Streaming(
        error_answer(429, "Rate limit exceeded", retry_after="7"), httpx.ReadTimeout(""), ChunkStream([b"a"])
    )
    async with run.client.chat_stream(**HELLO) as stream:
        assert (await stream.text(), stream.meta.attempts) == ("a", 3)
    run = Streaming(error_answer(401, "Invalid API key"))
    with pytest.raises(AuthError):
        async with run.client.chat_stream(**HELLO):
            pytest.fail("entered")


@pytest.mark.parametrize("method", ["chat_stream", "completions_stream", "usage"])
@pytest.mark.parametrize(
    "breaks", [[httpx.ReadError("reset")], [httpx.ReadTimeout("")], [b"", httpx.ReadError("")]]
)
async def test_a_stream_that_breaks_before_its_first_piece_is_retried_like_a_call(
    breaks: list[Any], method: str
) -> None:
    options = {"include_usage": True} if method == "usage" else {}
    start = [COMPLETION[0], b"data: {"] if method == "usage" else []  # nothing that reaches the reader
    method = "chat_stream" if method == "usage" else method
    fine = FINE["completions_stream" if options else method]
    run = Streaming(ChunkStream([*start, *breaks]), ChunkStream(fine))
    async with getattr(run.client, method)(**HELLO, **options) as stream:
        assert len([piece async for piece in stream]) == 1
        assert (stream.meta.request_id, stream.meta.attempts) == ("r1", 2)
    assert run.transport.times[1] - run.transport.times[0] == pytest.approx(0.5, abs=0.01)
    run.assert_closed()


async def test_an_event_stream_without_events_is_retried() -> None:
    run = Streaming(ChunkStream([b": hello\n\n"]), ChunkStream(FINE["completions_stream"]))
    async with run.client.completions_stream(**HELLO) as stream:
        assert (len([piece async for piece in stream]), stream.meta.attempts) == (1, 2)


async def test_a_stream_that_breaks_every_time_reports_its_attempts() -> None:
    run = Streaming(*(ChunkStream([httpx.ReadTimeout("")]) for _ in range(3)))
    with pytest.raises(TimeoutError, match="broke after 0 bytes of the stream") as caught:
        await run.client.chat_stream(**HELLO).text()
    assert caught.value.attempts == len(run.transport.requests) == 3
    assert caught.value.request_id == "r2"
    run.assert_closed()


@pytest.mark.parametrize("arguments", [{"retries": 0}, {"retry_config": RetryConfig(retry_sent=False)}])
async def test_a_broken_stream_is_not_retried_where_a_call_would_not_be(arguments: dict[str, Any]) -> None:
    arguments.setdefault("retry_config", None)
    run = Streaming(ChunkStream([httpx.ReadError("reset")]), ChunkStream([b"fine"]), **arguments)
    with pytest.raises(ConnectionError, match="reset"):
        await run.client.chat_stream(**HELLO).text()
    assert len(run.transport.requests) == 1


async def test_text_held_back_as_a_possible_sentinel_is_delivered_when_a_stream_breaks() -> None:
    run = Streaming(ChunkStream([b"\n[err", httpx.ReadError("reset")]), ChunkStream([b"fine"]))
    stream = run.client.chat_stream(**HELLO)
    assert await anext(stream) == "\n[err"
    with pytest.raises(ConnectionError, match="reset"):
        await anext(stream)
    assert len(run.transport.requests) == 1


async def test_a_broken_stream_delivers_all_text_and_reports_the_bytes_received() -> None:
    run = Streaming(ChunkStream([b"text", b" more\n", httpx.RemoteProtocolError("peer closed connection")]))
    pieces: list[str] = []
    with pytest.raises(
        ConnectionError, match=r"http://gateway.test broke after 10 bytes .*peer closed"
    ) as caught:
        async with run.client.chat_stream(**HELLO) as stream:
            async for piece in stream:
                pieces.append(piece)
    assert "".join(pieces) == "text more\n"
    assert isinstance(caught.value.__cause__, httpx.RemoteProtocolError)
    assert caught.value.request_id == "r0"
    assert len(run.transport.requests) == 1
    run.assert_closed()


@pytest.mark.parametrize("method", ["chat_stream", "completions_stream"])
@pytest.mark.parametrize("cut", [0, 1, 2, 3])
async def test_text_before_broken_framing_is_delivered_however_it_is_split(cut: int, method: str) -> None:
    text = b"hello" if method == "chat_stream" else chunk("hello")
    wire = STREAM_HEAD, b"%x\r\n%b\r\n" % (len(text), text), b"ZZ\r\n"
    pieces = {
        0: [b"".join(wire)],
        1: [wire[0], wire[1] + wire[2]],
        2: [wire[0] + wire[1], wire[2]],
        3: list(wire),
    }[cut]
    run = Wired(*pieces)
    read: list[Any] = []
    with pytest.raises(ConnectionError, match=f"broke after {len(text)} bytes of the stream.*not HTTP/1.1"):
        async for piece in getattr(run.client, method)(**HELLO):
            read.append(piece)
    assert len(read) == 1
    assert len(run.network.streams) == 1
    run.assert_nothing_is_left()


async def test_a_read_timeout_inside_a_stream_is_a_timeout_error() -> None:
    run = Streaming(ChunkStream([b"text", httpx.ReadTimeout("")]))
    with pytest.raises(TimeoutError, match="no bytes came within the timeout"):
        await run.client.chat_stream(**HELLO).text()


async def test_an_endless_failure_message_in_a_stream_is_truncated() -> None:
    def endless() -> Any:
        yield b"\n[error] "
        while True:
            yield b"x" * 100_000

    run = Streaming(ChunkStream(endless()))
    with pytest.raises(ProviderError):
        await run.client.chat_stream(**HELLO).text()
    run.assert_closed()


async def test_a_stream_over_the_size_limit_is_refused() -> None:
    run = Streaming(ChunkStream([b"x" * 600] * 10), max_response_bytes=1_000)
    with pytest.raises(InvalidResponseError, match="max_response_bytes"):
        await run.client.chat_stream(**HELLO).text()
    run.assert_closed()


@pytest.mark.parametrize("argument", ["fallback_models", "cache"])
async def test_a_stream_refuses_arguments_that_the_gateway_ignores(argument: str) -> None:
    run = Streaming(ChunkStream([]))
    with pytest.raises(InvalidArgumentTypeError, match=f"^{argument} must be None for a stream, got "):
        run.client.chat_stream(**HELLO, **{argument: True})


# Closing


async def test_leaving_a_stream_early_closes_its_connection() -> None:
    run = Streaming(ChunkStream([b"a", b"b", b"c"]))
    async with run.client.chat_stream(**HELLO) as stream:
        assert await anext(stream) == "a"
    run.assert_closed()
    with pytest.raises(StreamClosedError):
        await anext(stream)


async def test_an_exception_in_the_block_of_a_stream_closes_it_and_propagates() -> None:
    run = Streaming(ChunkStream([b"a", b"b"]))
    with pytest.raises(KeyError):
        async with run.client.chat_stream(**HELLO) as stream:
            async for _ in stream:
                raise KeyError
    run.assert_closed()


async def test_a_stream_may_be_closed_at_any_time_and_twice() -> None:
    run = Streaming(ChunkStream([b"a"]))
    stream = run.client.chat_stream(**HELLO)
    await stream.aclose()
    await stream.aclose()
    with pytest.raises(StreamClosedError):
        await anext(stream)
    assert run.transport.requests == []


async def test_a_cancelled_read_closes_the_stream_and_later_reads_say_so() -> None:
    run = Streaming(ChunkStream([b"a", 100.0, b"b"]))
    stream = run.client.chat_stream(**HELLO)
    assert await anext(stream) == "a"
    with anyio.move_on_after(1) as scope:
        await anext(stream)
    assert scope.cancelled_caught
    run.assert_closed()
    with pytest.raises(StreamClosedError, match="before its end"):
        await anext(stream)


async def test_a_deadline_covers_a_stream_to_its_last_piece() -> None:
    run = Streaming(ChunkStream([4.0, b"a", 4.0, b"b", 4.0, b"c"]))
    pieces: list[str] = []
    started = anyio.current_time()
    with pytest.raises(TimeoutError, match="deadline_seconds=10"):
        async with run.client.chat_stream(**HELLO, deadline_seconds=10) as stream:
            async for piece in stream:
                pieces.append(piece)
    assert pieces == ["a", "b"]
    assert anyio.current_time() - started == pytest.approx(10, abs=0.01)
    run.assert_closed()


async def test_two_tasks_cannot_read_one_stream() -> None:
    run = Streaming(ChunkStream([5.0, b"a"]))
    async with run.client.chat_stream(**HELLO) as stream, anyio.create_task_group() as group:
        group.start_soon(stream.text)
        await anyio.sleep(1)
        with pytest.raises(StreamClosedError, match="another task"):
            await anext(stream)


# Closing while another task reads


class Reader:
    """Reads a stream in its own task and keeps the pieces and the outcome."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.pieces: list[str] = []
        self.outcome: BaseException | None = None
        self.task: asyncio.Task[Any] | None = None

    async def read(self) -> None:
        with suppress(RuntimeError):
            self.task = asyncio.current_task()
        try:
            async for piece in self.stream:
                self.pieces.append(piece)
        except StreamClosedError as error:
            self.outcome = error
        except BaseException as error:
            self.outcome = error
            raise

    def assert_told(self) -> None:
        assert isinstance(self.outcome, StreamClosedError), repr(self.outcome)
        assert "before its end" in str(self.outcome)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nx-request-id: r\r\ntransfer-encoding: chunked\r\n\r\n"


class Wired:
    """A client over our own transport and a network in memory."""

    def __init__(self, *pieces: bytes) -> None:
        self.network = FakeNetwork()
        self.network.answer = lambda request: list(pieces) if b"\r\n\r\n{" in request else None
        self.transport = AnyIOTransport()
        self.transport._connect = self.network  # type: ignore[assignment]
        self.client = AsyncClient("llmg_x", base_url="http://gateway.test", transport=self.transport)

    def assert_nothing_is_left(self) -> None:
        stats = self.transport.stats()
        assert stats["in_use"] == stats["opening"] == stats["waiting"] == 0, stats
        assert self.network.open == stats["idle"]


async def settled() -> None:
    """Let every task run until it waits for more than the next step."""
    await anyio.sleep(0.01)


with_and_without_deadline = pytest.mark.parametrize("options", [{}, {"deadline_seconds": 1_000.0}])


@with_and_without_deadline
@pytest.mark.parametrize("stage", ["connection", "head", "piece"])
async def test_closing_a_stream_stops_the_task_that_reads_it(stage: str, options: dict[str, Any]) -> None:
    run = Wired(*([STREAM_HEAD + b"5\r\nhello\r\n"] if stage == "piece" else []))
    if stage == "connection":
        run.network.may_connect = anyio.Event()
    stream = run.client.chat_stream(**HELLO, **options)
    reader = Reader(stream)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(reader.read)
            await settled()
            await stream.aclose()
            run.assert_nothing_is_left()
    reader.assert_told()
    assert reader.pieces == (["hello"] if stage == "piece" else [])
    assert stream.is_closed
    assert len(run.network.streams) == (stage != "connection")


@with_and_without_deadline
async def test_closing_a_stream_stops_the_read_of_a_foreign_transport(options: dict[str, Any]) -> None:
    run = Streaming(ChunkStream([b"hello", 10_000.0, b"more"]))
    stream = run.client.chat_stream(**HELLO, **options)
    reader = Reader(stream)
    started = anyio.current_time()
    async with anyio.create_task_group() as group:
        group.start_soon(reader.read)
        await settled()
        await stream.aclose()
        run.assert_closed()
    reader.assert_told()
    assert reader.pieces == ["hello"]
    assert anyio.current_time() - started < 1


async def test_closing_a_stream_cancels_the_request_of_a_foreign_transport() -> None:
    given_up = False

    async def answer(_: httpx.Request) -> httpx.Response:
        nonlocal given_up
        try:
            await anyio.sleep(10_000)
        except BaseException:
            given_up = True
            raise
        raise AssertionError

    run = Streaming(answer)
    stream = run.client.chat_stream(**HELLO)
    reader = Reader(stream)
    async with anyio.create_task_group() as group:
        group.start_soon(reader.read)
        await settled()
        await stream.aclose()
        assert given_up
    reader.assert_told()
    assert len(run.transport.requests) == 1


@pytest.mark.parametrize("is_open", [False, True])
async def test_closing_a_stream_ends_its_backoff(is_open: bool) -> None:
    first = ChunkStream([b"\n[error] "]) if is_open else httpx.ConnectError("refused")
    run = Streaming(
        first, ChunkStream([b"x"]), retry_config=RetryConfig(backoff_base=1_000, backoff_max=1_000)
    )
    stream = run.client.chat_stream(**HELLO)
    reader = Reader(stream)
    started = anyio.current_time()
    async with anyio.create_task_group() as group:
        group.start_soon(reader.read)
        await settled()
        await stream.aclose()
    reader.assert_told()
    assert anyio.current_time() - started < 1
    assert len(run.transport.requests) == 1


@pytest.mark.parametrize("end", [b"", b"0\r\n\r\n"])
@pytest.mark.parametrize("stage", ["head", "first piece", "second piece"])
async def test_data_that_arrives_just_as_a_stream_is_closed_is_discarded(stage: str, end: bytes) -> None:
    before = {"head": [], "first piece": [STREAM_HEAD], "second piece": [STREAM_HEAD + b"1\r\na\r\n"]}[stage]
    run = Wired(*before)
    stream = run.client.chat_stream(**HELLO)
    reader = Reader(stream)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(reader.read)
            await settled()
            wire = run.network.streams[0]
            wire.incoming += [(STREAM_HEAD if stage == "head" else b"") + b"5\r\nhello\r\n" + end]
            wire.arrived.set()
            await stream.aclose()
            run.assert_nothing_is_left()
    reader.assert_told()
    assert reader.pieces == (["a"] if stage == "second piece" else [])


async def test_closing_a_stream_waits_for_the_task_that_reads_its_tail() -> None:
    run = Streaming(ChunkStream([*COMPLETION, 0.5]))
    stream = run.client.chat_stream(**HELLO, include_usage=True)
    reader = Reader(stream)
    async with anyio.create_task_group() as group:
        group.start_soon(reader.read)
        await settled()
        group.start_soon(stream.aclose)
        await stream.aclose()
        assert run.streams[0].exhausted
        run.assert_closed()
    assert (reader.pieces, reader.outcome) == (["hel", "lo"], None)


async def test_two_tasks_may_close_a_stream_simultaneously() -> None:
    run = Streaming(ChunkStream([b"".join(COMPLETION), 0.5]))
    stream = run.client.completions_stream(**HELLO)
    await anext(stream)
    async with anyio.create_task_group() as group:
        group.start_soon(stream.aclose)
        await settled()
        await stream.aclose()
        assert run.streams[0].exhausted
        run.assert_closed()
        with pytest.raises(StreamClosedError):
            await anext(stream)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("stage", ["connection", "head", "piece", "foreign head", "foreign piece"])
async def test_closing_a_stream_does_not_swallow_a_cancellation_of_asyncio(
    stage: str, is_first: bool
) -> None:
    run: Any
    if stage.startswith("foreign"):
        run = Streaming(
            ChunkStream([b"hello", 10_000.0]) if stage == "foreign piece" else lambda _: anyio.sleep(10_000)
        )
    else:
        run = Wired(*([STREAM_HEAD + b"5\r\nhello\r\n"] if stage == "piece" else []))
        if stage == "connection":
            run.network.may_connect = anyio.Event()
    stream = run.client.chat_stream(**HELLO)
    reader = Reader(stream)
    task = asyncio.create_task(reader.read())
    await settled()
    if is_first:
        task.cancel()
    closing = asyncio.create_task(stream.aclose())
    await anyio.lowlevel.checkpoint()
    if not is_first and not task.done():
        task.cancel()
    with anyio.fail_after(5):
        await asyncio.wait([task, closing])
    closing.result()
    assert task.cancelled() or not (is_first or task.cancelling())
    if stage.startswith("foreign"):
        run.assert_closed()
    else:
        run.assert_nothing_is_left()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("stage", ["head", "piece"])
def test_closing_a_sync_stream_stops_the_thread_that_reads_it(stage: str, backend: Any) -> None:
    waiting = threading.Event()

    def chunks() -> Any:
        waiting.set()
        yield 10_000.0

    body = ChunkStream(chunks())

    async def answer(_: httpx.Request) -> httpx.Response:
        if stage == "head":
            waiting.set()
            await anyio.sleep(10_000)
        return httpx.Response(200, stream=body)

    transport = ScriptedTransport(answer)
    with (
        Client("llmg_x", base_url="http://gateway.test", transport=transport, backend=backend) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        stream = client.chat_stream(**HELLO)
        reading = pool.submit(stream.text)
        assert waiting.wait(5)
        stream.close()
        with pytest.raises(StreamClosedError, match="before its end"):
            reading.result(5)
        assert body.closed == (stage == "piece")


async def test_a_dropped_stream_is_closed_and_warns_what_to_do() -> None:
    run = Streaming(ChunkStream([b"a", b"b"]))

    async def careless() -> None:
        async for _ in run.client.chat_stream(**HELLO):
            break

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await careless()
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    assert "async with" in str(caught[0].message)
    with anyio.fail_after(1):
        while not run.streams[0].closed:
            await anyio.sleep(0.001)


async def test_a_stream_that_was_never_opened_is_dropped_without_a_warning() -> None:
    run = Streaming(ChunkStream([]))
    run.client.chat_stream(**HELLO)
    gc.collect()


# Completions


async def test_completion_chunks_are_yielded_unchanged() -> None:
    run = Streaming(ChunkStream(COMPLETION))
    async with run.client.completions_stream(**HELLO, include_usage=True) as stream:
        chunks = [piece async for piece in stream]
    assert [piece["choices"][0]["delta"].get("content") for piece in chunks if piece["choices"]] == [
        None,
        "hel",
        "lo",
        None,
    ]
    assert chunks[-1] == {"id": "c", "choices": [], "usage": USAGE}
    path, body = run.sent()
    assert (path, body["stream"], body["stream_options"]) == (
        "/v1/chat/completions",
        True,
        {"include_usage": True},
    )
    run.assert_closed()


@pytest.mark.parametrize("cut", [1, 3, 10_000])
async def test_the_last_chunk_of_a_stream_with_usage_carries_it(cut: int) -> None:
    body = b"".join(COMPLETION)
    run = Streaming(ChunkStream([body[i : i + cut] for i in range(0, len(body), cut)]))
    async with run.client.chat_stream(**HELLO, as_chunks=True, include_usage=True) as stream:
        assert stream.usage is None
        pieces = [piece async for piece in stream]
    assert "".join(piece.text for piece in pieces) == "hello"
    last = pieces[-1]
    assert (last.text, last.usage, last.finish_reason) == ("", Usage(**USAGE), "stop")
    assert (stream.usage, stream.finish_reason) == (Usage(**USAGE), "stop")
    path, sent = run.sent()
    assert (path, sent["stream_options"]) == ("/v1/chat/completions", {"include_usage": True})


async def test_a_text_stream_with_usage_has_it_at_its_end() -> None:
    run = Streaming(ChunkStream(COMPLETION))
    async with run.client.chat_stream(**HELLO, include_usage=True) as stream:
        assert [piece async for piece in stream] == ["hel", "lo"]
        assert (stream.usage, stream.finish_reason) == (Usage(**USAGE), "stop")


async def test_an_error_sentinel_in_model_text_is_text_in_a_stream_with_usage() -> None:
    run = Streaming(ChunkStream([chunk("log\n[error] fine"), DONE]))
    assert await run.client.chat_stream(**HELLO, include_usage=True).text() == "log\n[error] fine"


async def test_a_stream_body_is_read_to_its_end_after_done() -> None:
    run = Streaming(ChunkStream([*COMPLETION, b"\n", 0.5, b": bye\n"]))
    async with run.client.completions_stream(**HELLO) as stream:
        async for _ in stream:
            pass
    assert run.streams[0].exhausted


async def test_a_stream_left_at_its_last_chunk_reads_the_body_to_its_end() -> None:
    run = Streaming(ChunkStream([b"".join(COMPLETION), 0.5]))
    async with run.client.completions_stream(**HELLO) as stream:
        async for piece in stream:
            if "usage" in piece:
                break
    assert run.streams[0].exhausted


@pytest.mark.parametrize("tail", [[1_000.0], [b"x" * 10_000] * 1_000, [httpx.ReadError("reset")]])
async def test_a_stream_gives_up_a_tail_that_does_not_end(tail: list[Any]) -> None:
    run = Streaming(ChunkStream([*COMPLETION, *tail]))
    started = anyio.current_time()
    async with run.client.completions_stream(**HELLO) as stream:
        assert len([piece async for piece in stream]) == 5
    assert anyio.current_time() - started == pytest.approx(1.0 if tail == [1_000.0] else 0.0, abs=0.01)
    run.assert_closed()


async def test_text_before_the_end_of_a_stream_does_not_wait_for_the_tail() -> None:
    run = Streaming(ChunkStream([b"".join(COMPLETION), 1_000.0]))
    started = anyio.current_time()
    async with run.client.completions_stream(**HELLO) as stream:
        await anext(stream)
        assert anyio.current_time() - started < 0.1


async def test_cancelling_the_read_of_the_tail_closes_the_stream() -> None:
    run = Streaming(ChunkStream([*COMPLETION, 0.9]))
    with anyio.move_on_after(0.1):
        async with run.client.completions_stream(**HELLO) as stream:
            async for _ in stream:
                pass
    run.assert_closed()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ({"message": "provider gone", "type": "provider_error"}, "provider gone"),
        ({"message": ""}, "without a message"),
        ("bare text", "bare text"),
        ({}, "without a message"),
        ("", "without a message"),
    ],
)
@pytest.mark.parametrize(
    "further", [{}, {"choices": []}, {"choices": [{"delta": {"content": "x"}}]}, {"choices": None}]
)
@pytest.mark.parametrize("method", ["completions_stream", "chat_stream"])
async def test_an_error_event_is_a_provider_error_after_the_chunks_before_it(
    method: str, error: Any, message: str, further: dict[str, Any]
) -> None:
    run = Streaming(ChunkStream([chunk("part1"), event({"error": error, **further}), DONE]))
    options = {"include_usage": True} if method == "chat_stream" else {}
    stream = getattr(run.client, method)(**HELLO, **options)
    await anext(stream)
    with pytest.raises(ProviderError, match=message):
        await anext(stream)
    run.assert_closed()
    assert len(run.transport.requests) == 1


@pytest.mark.parametrize("method", ["completions_stream", "chat_stream"])
async def test_a_null_error_in_an_event_is_no_error(method: str) -> None:
    run = Streaming(ChunkStream([chunk("part1", error=None), event({"error": None}), chunk("part2"), DONE]))
    if method == "chat_stream":
        assert await run.client.chat_stream(**HELLO, include_usage=True).text() == "part1part2"
    else:
        assert len([piece async for piece in run.client.completions_stream(**HELLO)]) == 3


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 3, "completion_tokens": None, "total_tokens": 7}, (3, 0, 7)),
        ({"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}, (0, 0, 0)),
        ({}, (0, 0, 0)),
    ],
)
async def test_null_token_counts_in_a_stream_are_zero(usage: dict[str, Any], tokens: tuple[int, ...]) -> None:
    run = Streaming(ChunkStream([chunk("hello"), event({"choices": [], "usage": usage}), DONE]))
    stream = run.client.chat_stream(**HELLO, include_usage=True)
    assert await stream.text() == "hello"
    assert stream.usage is not None
    found = stream.usage
    assert (found.prompt_tokens, found.completion_tokens, found.total_tokens) == tokens


async def test_a_later_null_usage_does_not_erase_the_usage_of_a_stream() -> None:
    run = Streaming(ChunkStream([chunk("hello", usage=USAGE), chunk(finish_reason="stop", usage=None), DONE]))
    stream = run.client.chat_stream(**HELLO, include_usage=True)
    assert await stream.text() == "hello"
    assert stream.usage == Usage(**USAGE)


BREAKS_AFTER_A_SENTINEL = [httpx.ReadError("reset"), httpx.ReadTimeout("")]


@pytest.mark.parametrize("failure", BREAKS_AFTER_A_SENTINEL)
async def test_a_failure_message_cut_off_by_a_broken_body_is_still_raised(failure: Exception) -> None:
    run = Streaming(ChunkStream([b"text\n[error] OpenAI error 401: bad", failure]))
    stream = run.client.chat_stream(**HELLO)
    assert await anext(stream) == "text"
    with pytest.raises(ProviderError, match="OpenAI error 401: bad") as caught:
        await anext(stream)
    assert (caught.value.provider_status, caught.value.request_id, caught.value.attempts) == (401, "r0", 1)
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert caught.value.__cause__.__cause__ is failure
    run.assert_closed()


@pytest.mark.parametrize("failure", BREAKS_AFTER_A_SENTINEL)
async def test_a_failure_message_cut_off_by_a_broken_body_is_retried_as_if_whole(failure: Exception) -> None:
    run = Streaming(ChunkStream([b"\n[error] OpenAI error 503: over", failure]), ChunkStream([b"fine"]))
    stream = run.client.chat_stream(**HELLO)
    assert (await stream.text(), stream.meta.attempts) == ("fine", 2)
    run = Streaming(ChunkStream([b"\n[error] OpenAI error 401: bad", failure]), ChunkStream([b"fine"]))
    with pytest.raises(ProviderError, match="bad"):
        await run.client.chat_stream(**HELLO).text()
    assert len(run.transport.requests) == 1


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("method", ["completions_stream", "chat_stream"])
async def test_a_stream_body_is_read_to_its_end_after_an_error_event(method: str, together: bool) -> None:
    options = {"include_usage": True} if method == "chat_stream" else {}
    events = [chunk("part1"), event({"error": {"message": "boom"}})]
    run = Streaming(ChunkStream([*([b"".join(events)] if together else events), 0.5, DONE, 0.3, b"\n"]))
    started = anyio.current_time()
    async with getattr(run.client, method)(**HELLO, **options) as stream:
        await anext(stream)
        assert anyio.current_time() - started < 0.1  # the text before the error does not wait for it
        with pytest.raises(ProviderError, match="boom"):
            await anext(stream)
        assert run.streams[0].exhausted
        run.assert_closed()


async def test_a_stream_left_before_its_error_event_reads_the_body_to_its_end() -> None:
    run = Streaming(ChunkStream([chunk("part1") + event({"error": {"message": "boom"}}), 0.5, DONE]))
    async with run.client.completions_stream(**HELLO) as stream:
        await anext(stream)
    assert run.streams[0].exhausted


@pytest.mark.parametrize("tail", [[1_000.0], [b"x" * 10_000] * 1_000, [httpx.ReadError("reset")]])
async def test_reading_after_an_error_event_is_bounded_in_time_and_size(tail: list[Any]) -> None:
    run = Streaming(ChunkStream([event({"error": {"message": "boom"}}), *tail]))
    started = anyio.current_time()
    with pytest.raises(ProviderError, match="boom"):
        await anext(run.client.completions_stream(**HELLO))
    assert anyio.current_time() - started == pytest.approx(1.0 if tail == [1_000.0] else 0.0, abs=0.01)
    run.assert_closed()


async def test_a_connection_is_reused_after_an_error_event() -> None:
    events = event({"error": {"message": "boom"}})
    body = b"%x\r\n%b\r\n" % (len(events), events)
    rest = b"%x\r\n%b\r\n0\r\n\r\n" % (len(DONE), DONE)
    run = Wired(STREAM_HEAD, body, rest)
    with pytest.raises(ProviderError, match="boom"):
        await anext(run.client.completions_stream(**HELLO))
    assert run.transport.stats()["idle"] == 1
    run.assert_nothing_is_left()


async def test_a_transient_error_event_before_any_text_is_retried() -> None:
    failing = ChunkStream([COMPLETION[0], event({"error": {"message": "OpenAI error 429: x"}}), DONE])
    run = Streaming(failing, ChunkStream(COMPLETION))
    async with run.client.chat_stream(**HELLO, include_usage=True) as stream:
        assert (await stream.text(), stream.meta.attempts) == ("hello", 2)


async def test_an_event_stream_that_ends_without_done_is_a_connection_error() -> None:
    run = Streaming(ChunkStream(COMPLETION[:3]))
    with pytest.raises(ConnectionError, match="ended after .* bytes of the stream, before its end"):
        async with run.client.completions_stream(**HELLO) as stream:
            async for _ in stream:
                pass
    run.assert_closed()


@pytest.mark.parametrize("bad", [b"{", b"[]", b"5", b"\xff", b"[" * 100_000])
@pytest.mark.parametrize("method", ["completions_stream", "chat_stream"])
async def test_an_invalid_event_is_a_typed_error_that_shows_its_beginning(method: str, bad: bytes) -> None:
    run = Streaming(ChunkStream([chunk("a"), event(bad), DONE]))
    options = {"include_usage": True} if method == "chat_stream" else {}
    stream = getattr(run.client, method)(**HELLO, **options)
    await anext(stream)
    with pytest.raises(InvalidResponseError, match="it starts with") as caught:
        await anext(stream)
    assert caught.value.request_id == "r0"
    run.assert_closed()


async def test_an_endless_event_is_a_typed_error() -> None:
    run = Streaming(ChunkStream([b"data: ", *[b"x" * 500_000] * 20]))
    with pytest.raises(InvalidResponseError, match="event is longer"):
        await anext(run.client.completions_stream(**HELLO))


@pytest.mark.parametrize("make", [lambda c: c.chat_stream(**HELLO), lambda c: c.completions_stream(**HELLO)])
async def test_the_repr_of_a_stream_shows_its_state(make: Callable[[AsyncClient], Any]) -> None:
    run = Streaming(ChunkStream(COMPLETION))
    stream = make(run.client)
    assert repr(stream).endswith(" new>")
    async with stream:
        assert repr(stream).endswith(" open>")
        async for _ in stream:
            pass
        assert repr(stream).endswith(" ended>")


# What a gateway may send oddly, and what a stream that is left early leaves behind.

FINISH = chunk(finish_reason="stop")
USED = event({"id": "c", "choices": [], "usage": USAGE})


@pytest.mark.parametrize("last", [FINISH, USED], ids=["finish reason", "usage"])
@pytest.mark.parametrize("method", ["completions_stream", "chat_stream"])
async def test_a_stream_left_after_a_complete_answer_is_read_to_its_end(last: bytes, method: str) -> None:
    options: dict[str, Any] = {"include_usage": True} if method == "chat_stream" else {}
    run = Streaming(ChunkStream([chunk("hel") + last, 0.1, USED, 0.1, DONE, 0.1]))
    async with getattr(run.client, method)(**HELLO, **options) as stream:
        async for _ in stream:
            break
    assert run.streams[0].exhausted
    run.assert_closed()


async def test_a_raw_stream_left_at_its_last_chunk_is_read_to_its_end() -> None:
    run = Streaming(ChunkStream([chunk("hel"), FINISH, USED, 0.1, DONE, 0.1]))
    async with run.client.completions_stream(**HELLO, include_usage=True) as stream:
        async for piece in stream:
            if piece.get("usage"):
                break
    assert run.streams[0].exhausted


@pytest.mark.parametrize("tail", [[1_000.0], [b"x" * 10_000] * 1_000, [httpx.ReadError("reset")]])
async def test_leaving_after_a_complete_answer_is_bounded_in_time_and_size(tail: list[Any]) -> None:
    run = Streaming(ChunkStream([chunk("hel"), FINISH, *tail]))
    started = anyio.current_time()
    async with run.client.completions_stream(**HELLO) as stream:
        async for piece in stream:
            if piece["choices"][0]["finish_reason"]:
                break
    assert anyio.current_time() - started == pytest.approx(1.0 if tail == [1_000.0] else 0.0, abs=0.01)
    run.assert_closed()


@pytest.mark.parametrize("method", ["completions_stream", "chat_stream"])
async def test_a_stream_left_before_its_answer_is_complete_is_closed_immediately(method: str) -> None:
    run = Streaming(ChunkStream([chunk("hel"), chunk("lo"), 1_000.0]))
    started = anyio.current_time()
    options: dict[str, Any] = {"include_usage": True} if method == "chat_stream" else {}
    async with getattr(run.client, method)(**HELLO, **options) as stream:
        await anext(stream)
    assert anyio.current_time() == started
    run.assert_closed()


@pytest.mark.parametrize("mark", [b"[DONE] ", b" [DONE]", b"[DONE]\t", b"  [DONE]  "])
@pytest.mark.parametrize("end", [b"\n\n", b"\n", b""])
async def test_an_end_mark_with_blanks_ends_a_stream(mark: bytes, end: bytes) -> None:
    body = [chunk("hello"), FINISH, b"data: " + mark + end]
    run = Streaming(ChunkStream(body), ChunkStream(body))
    assert await run.client.chat_stream(**HELLO, include_usage=True).text() == "hello"
    assert len([piece async for piece in run.client.completions_stream(**HELLO)]) == 2


async def test_half_a_surrogate_pair_in_a_stream_is_replaced() -> None:
    parts = [b'{"choices":[{"delta":{"content":"%s"}}]}' % text for text in (b"hi ", b"\\ud83d", b"\\ude00")]
    body = [event(part) for part in parts] + [FINISH, DONE]
    run = Streaming(ChunkStream(body), ChunkStream(body))
    assert await run.client.chat_stream(**HELLO, include_usage=True).text() == "hi \ufffd\ufffd"
    pieces = [piece async for piece in run.client.completions_stream(**HELLO)]
    assert [piece["choices"][0]["delta"].get("content") for piece in pieces] == [
        "hi ",
        "\ufffd",
        "\ufffd",
        None,
    ]


async def test_invalid_utf8_in_an_event_is_replaced() -> None:
    run = Streaming(ChunkStream([event(b'{"choices":[{"delta":{"content":"caf\xe9"}}]}'), DONE]))
    assert await run.client.chat_stream(**HELLO, include_usage=True).text() == "caf\ufffd"


PAGE = b"<!doctype html><title>Welcome to the hotel</title><body>Please log in</body>"


@pytest.mark.parametrize(
    "kind", ["text/html", "text/html; charset=utf-8", "TEXT/HTML", "application/xhtml+xml"]
)
@pytest.mark.parametrize(
    ("method", "options"),
    [("chat_stream", {}), ("chat_stream", {"include_usage": True}), ("completions_stream", {}), ("chat", {})],
)
async def test_a_login_page_in_place_of_an_answer_is_refused(
    kind: str, method: str, options: dict[str, Any]
) -> None:
    stream = ChunkStream([PAGE[:20], PAGE[20:]])
    run = Streaming(stream)
    run.transport.steps = [
        lambda _: httpx.Response(200, headers={"content-type": kind, "x-request-id": "r0"}, stream=stream)
    ]
    with pytest.raises(InvalidResponseError) as caught:
        if method == "chat":
            await run.client.chat(**HELLO, **options)
        else:
            async with getattr(run.client, method)(**HELLO, **options):
                pytest.fail("entered")
    assert "it is an HTML page, 'Welcome to the hotel'" in str(caught.value)
    assert (caught.value.status_code, caught.value.request_id) == (200, "r0")
    assert len(run.transport.requests) == 1
    run.assert_closed()


async def test_a_stream_whose_text_looks_like_html_is_yielded_unchanged() -> None:
    run = Streaming(ChunkStream([PAGE]))
    assert await run.client.chat_stream(**HELLO).text() == PAGE.decode()
