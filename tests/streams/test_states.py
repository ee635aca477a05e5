"""The table of a stream's states, and that streams follow it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

import omnigate
from omnigate import (
    AnyIOTransport,
    AsyncClient,
    AuthError,
    ConnectionError,
    ProviderError,
    RetryConfig,
    StreamClosedError,
)
from omnigate._streams import core
from omnigate._streams.states import (
    ABANDONED,
    BUSY,
    HOLDING,
    REFUSALS,
    SETTLED,
    TRANSITIONS,
    Event,
    State,
)

from ..support.fake_streams import FakeNetwork
from ..support.scripted import ChunkStream, ScriptedTransport, Step, error_answer

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}

CHUNK = b'data: {"choices": []}\n\n'
DONE = b"data: [DONE]\n\n"
FAILURE = b'data: {"error": {"message": "OpenAI error 401: x"}}\n\n'
PASSING_FAILURE = b'data: {"error": {"message": "OpenAI error 503: x"}}\n\n'


# The table


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
def test_a_stream_event_leads_to_one_state_or_is_refused_as_a_bug(state: State, event: Event) -> None:
    if (state, event) in TRANSITIONS:
        assert TRANSITIONS[state, event] in State
    else:
        with pytest.raises(AssertionError, match=f"a stream that is {state.name} cannot {event.value}"):
            TRANSITIONS[state, event]


def reachable(start: State, events: Any = Event) -> set[State]:
    found = {start}
    while (
        new := {to for (state, event), to in TRANSITIONS.items() if state in found and event in events}
        - found
    ):
        found |= new
    return found


def test_every_stream_state_can_be_reached_from_new() -> None:
    assert reachable(State.NEW) == set(State)


@pytest.mark.parametrize("state", State)
def test_a_stream_can_be_closed_in_every_state_and_then_rests(state: State) -> None:
    closing = TRANSITIONS[state, Event.CLOSE]
    assert closing in ABANDONED | {State.ENDED, State.CLOSED}
    if closing in ABANDONED:
        assert TRANSITIONS[closing, Event.RELEASE] is State.CLOSED


@pytest.mark.parametrize("state", sorted(BUSY, key=lambda state: state.name))
def test_an_interrupted_step_of_a_stream_releases_the_response(state: State) -> None:
    assert TRANSITIONS[TRANSITIONS[state, Event.BREAK], Event.RELEASE] is State.CLOSED
    assert state in REFUSALS


@pytest.mark.parametrize("state", [State.ENDED, State.CLOSED])
def test_no_state_follows_the_end_of_a_stream(state: State) -> None:
    assert reachable(state) == {state}


def test_a_stream_being_closed_never_opens_again() -> None:
    for state in ABANDONED:
        assert reachable(state) <= ABANDONED | {State.ENDED, State.CLOSED}


def test_the_groups_of_stream_states_are_consistent() -> None:
    assert ABANDONED < BUSY
    assert {State.READING, State.DRAINING} == HOLDING & BUSY
    assert set(REFUSALS) == BUSY | {State.CLOSED}
    assert not SETTLED & (BUSY | HOLDING)


# Streams in each state


class Body(ChunkStream):
    """A body that can be told to close slowly."""

    def __init__(self, *chunks: bytes | Exception | float, slow: bool = False) -> None:
        super().__init__(chunks)
        self.slow = slow

    async def aclose(self) -> None:
        if self.slow:
            await anyio.sleep(0.5)
        await super().aclose()


def make_stream(*answers: Body | Step, method: str = "chat_stream", **arguments: Any) -> Any:
    steps = [httpx.Response(200, stream=answer) if isinstance(answer, Body) else answer for answer in answers]
    client = AsyncClient(
        "llmg_x",
        base_url="http://gateway.test",
        transport=ScriptedTransport(*steps),
        retry_config=RetryConfig(jitter=0),
    )
    return getattr(client, method)(**HELLO, **arguments)


async def settled() -> None:
    await anyio.sleep(0.01)


async def read_all(stream: Any) -> None:
    with suppress(StreamClosedError):
        async for _ in stream:
            pass


async def never(_: httpx.Request) -> httpx.Response:
    await anyio.sleep_forever()
    raise AssertionError


@asynccontextmanager
async def while_running(use: Callable[[], Awaitable[object]], stream: Any) -> AsyncIterator[Any]:
    """Yield `stream` while `use` runs in another task."""
    async with anyio.create_task_group() as group:
        group.start_soon(use)
        await settled()
        yield stream
        group.cancel_scope.cancel()


@asynccontextmanager
async def stream_in(state: State) -> AsyncIterator[Any]:
    """Yield a stream in `state` that stays there until it is used or five virtual minutes pass."""
    stream = make_stream(Body(b"abc", 300.0, b"d", slow=state in ABANDONED))
    match state:
        case State.NEW:
            yield stream
            await stream.aclose()
        case State.OPENING:
            stream = make_stream(never)
            async with while_running(lambda: read_all(stream), stream):
                yield stream
        case State.OPEN:
            async with stream:
                await anext(stream)
                yield stream
        case State.READING:
            async with while_running(lambda: read_all(stream), stream):
                yield stream
        case State.DRAINING:
            stream = make_stream(Body(CHUNK, DONE, 300.0), method="completions_stream")
            async with while_running(lambda: read_all(stream), stream):
                yield stream
        case State.RETRYING:
            stream = make_stream(Body(httpx.ReadError("reset")), Body(b"abc"))
            await stream._core._step(stream._core._advance)  # the next step follows without a pause
            yield stream
            await stream.aclose()
        case State.ENDED:
            stream = make_stream(Body(b"abc"))
            await stream.text()
            yield stream
        case State.FAILED:
            stream = make_stream(Body(b"abc\n[error] OpenAI error 401: x"))
            assert await anext(stream) == "abc"
            await stream._core._step(stream._core._advance)
            yield stream
        case State.STOPPING:
            async with while_running(lambda: read_all(stream), stream), while_running(stream.aclose, stream):
                yield stream
        case State.CLOSING:
            await anext(stream)
            async with while_running(stream.aclose, stream):
                yield stream
        case State.CLOSED:
            await anext(stream)
            await stream.aclose()
            yield stream


ANOTHER = "another task"
CLOSED = "before its end"

NEXT: dict[State, Any] = {
    State.NEW: "abc",
    State.OPENING: ANOTHER,
    State.OPEN: "d",
    State.READING: ANOTHER,
    State.DRAINING: ANOTHER,
    State.RETRYING: "abc",
    State.ENDED: StopAsyncIteration,
    State.FAILED: ProviderError,
    State.STOPPING: CLOSED,
    State.CLOSING: CLOSED,
    State.CLOSED: CLOSED,
}
"""The next piece, the message of a StreamClosedError, or an exception type."""

REPRS = {
    State.NEW: "<ChatStream new>",
    State.OPENING: "<ChatStream opening>",
    State.OPEN: "<ChatStream open: 3 bytes, 1 piece>",
    State.READING: "<ChatStream reading: 3 bytes, 1 piece>",
    State.DRAINING: "<CompletionStream ending: 37 bytes, 1 piece>",
    State.RETRYING: "<ChatStream to be opened again>",
    State.ENDED: "<ChatStream ended>",
    State.FAILED: "<ChatStream failed>",
    State.STOPPING: "<ChatStream being closed>",
    State.CLOSING: "<ChatStream closing>",
    State.CLOSED: "<ChatStream closed before its end>",
}

every_state = pytest.mark.parametrize("state", State)

on_each_loop = [pytest.mark.anyio, pytest.mark.virtual_time]


class TestEveryState:
    pytestmark = on_each_loop

    @every_state
    async def test_a_stream_yields_its_next_piece_or_says_why_not_in_every_state(self, state: State) -> None:
        expected = NEXT[state]
        async with stream_in(state) as stream:
            assert stream._core.state is state
            if expected in (ANOTHER, CLOSED):
                with pytest.raises(StreamClosedError, match=expected):
                    await anext(stream)
            elif isinstance(expected, str):
                assert await anext(stream) == expected
            else:
                with pytest.raises(expected):
                    await anext(stream)

    @every_state
    async def test_entering_a_stream_opens_it_continues_or_is_refused_in_every_state(
        self, state: State
    ) -> None:
        async with stream_in(state) as stream:
            if state in HOLDING | SETTLED:
                assert await stream.__aenter__() is stream
                assert stream._core.state is state
            elif state in REFUSALS:
                with pytest.raises(StreamClosedError, match=NEXT[state]):
                    await stream.__aenter__()
                assert stream._core.state is state
            else:
                assert await stream.__aenter__() is stream
                assert stream._core.state is State.OPEN

    @every_state
    async def test_closing_a_stream_leaves_nothing_to_read_in_every_state(self, state: State) -> None:
        async with stream_in(state) as stream:
            with anyio.fail_after(5):
                await stream.aclose()
                await stream.aclose()
            ends_well = state in (State.DRAINING, State.ENDED)
            assert stream._core.state is (State.ENDED if ends_well else State.CLOSED)
            assert stream.is_closed
            with pytest.raises(StopAsyncIteration if ends_well else StreamClosedError):
                await anext(stream)

    @every_state
    async def test_is_closed_is_true_once_nothing_can_be_read_from_a_stream(self, state: State) -> None:
        async with stream_in(state) as stream:
            assert stream.is_closed is (state in (State.ENDED, State.CLOSED))

    @every_state
    async def test_the_repr_of_a_stream_shows_its_state_and_what_has_arrived(self, state: State) -> None:
        async with stream_in(state) as stream:
            assert repr(stream) == REPRS[state]


class TestStreams:
    pytestmark = on_each_loop

    async def test_the_repr_of_a_stream_separates_thousands(self) -> None:
        stream = make_stream(Body(*[b"ab"] * 1_000, b"c"))
        async with stream:
            assert repr(stream) == "<ChatStream open>"
            for _ in range(1_000):
                await anext(stream)
            assert repr(stream) == "<ChatStream open: 2,000 bytes, 1,000 pieces>"

    async def test_an_ended_stream_with_unread_pieces_is_not_closed(self) -> None:
        stream = make_stream(Body(b"a", b"\n[err"))
        assert await anext(stream) == "a"
        assert await stream._core.fill()
        assert (stream._core.state, stream.is_closed) == (State.ENDED, False)
        assert await anext(stream) == "\n[err"
        assert stream.is_closed

    @pytest.mark.parametrize(
        "chunks",
        [
            [b"a", b"\n[err"],
            [b"a", b"\n[err", httpx.ReadError("reset")],
            [httpx.ReadError("reset")],
            [b"\n[error] OpenAI error 503: x"],
            [b"\n[error] OpenAI error 401: x"],
        ],
    )
    async def test_closing_a_stream_just_as_it_ends_counts_as_closed_before_its_end(
        self, chunks: list[Any]
    ) -> None:
        # At the end, the reader is releasing the response when another task closes the stream.
        stream = make_stream(Body(*chunks, slow=True), Body(b"again"))
        outcomes: list[BaseException] = []

        async def read() -> None:
            try:
                await stream.text()
            except StreamClosedError as error:
                outcomes.append(error)

        async with while_running(read, stream):
            await stream.aclose()
            await settled()
        assert [str(error) for error in outcomes] == ["the stream was closed before its end"]
        assert stream._core.state is State.CLOSED
        assert stream._core._failure is None


# Every row of the table


async def _broken_off() -> None:
    with pytest.raises(AuthError):
        await anext(make_stream(error_answer(401, "Invalid API key")))
    with anyio.move_on_after(1):
        await make_stream(Body(b"a", 100.0)).text()
    with pytest.raises(ZeroDivisionError):
        await read_all(make_stream(Body(DONE, ZeroDivisionError()), method="completions_stream"))


async def _failing() -> None:
    with pytest.raises(ConnectionError):
        await make_stream(Body(b"a", httpx.ReadError("reset"))).text()
    with pytest.raises(ProviderError):
        await read_all(make_stream(Body(CHUNK, FAILURE), method="completions_stream"))


async def _retried() -> None:
    assert await make_stream(Body(httpx.ReadError("reset")), Body(b"a")).text() == "a"
    stream = make_stream(Body(PASSING_FAILURE), Body(CHUNK, DONE), method="completions_stream")
    assert len([piece async for piece in stream]) == 1


async def _closed_in_every_state() -> None:
    for state in State:
        async with stream_in(state) as stream:
            await stream.aclose()


async def _closed_while_draining() -> None:
    for end in (DONE, FAILURE, PASSING_FAILURE):
        for tail in (0.5, ZeroDivisionError()):
            body = Body(end, 0.2, tail) if isinstance(tail, Exception) else Body(end, tail)
            stream = make_stream(body, method="completions_stream")
            async with while_running(lambda stream=stream: read_all(stream), stream):  # type: ignore[misc]
                await stream.aclose()


async def _closed_while_releasing() -> None:
    for chunks in ([b"a"], [b"a", httpx.ReadError("")], [httpx.ReadError("")]):
        stream = make_stream(Body(*chunks, slow=True), Body(b"a"))
        async with while_running(lambda stream=stream: read_all(stream), stream):  # type: ignore[misc]
            await stream.aclose()


async def _closed_just_as_the_head_comes() -> None:
    network = FakeNetwork(checkpoints=0)
    network.answer = lambda _: None
    transport = AnyIOTransport()
    transport._connect = network  # type: ignore[assignment]
    client = AsyncClient("llmg_x", base_url="http://gateway.test", transport=transport)
    stream: Any = client.chat_stream(**HELLO)

    async def enter() -> None:
        with suppress(StreamClosedError):
            await stream.__aenter__()

    async with while_running(enter, stream):
        wire = network.streams[0]
        wire.incoming.append(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        wire.arrived.set()
        await stream.aclose()
    assert network.open == 0


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_every_row_of_the_stream_state_table_occurs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[State, Event]] = set()

    class Recorded(dict[tuple[State, Event], State]):
        def __getitem__(self, pair: tuple[State, Event]) -> State:
            seen.add(pair)
            return TRANSITIONS[pair]

    monkeypatch.setattr(core, "TRANSITIONS", Recorded())
    for use in (
        _broken_off,
        _failing,
        _retried,
        _closed_in_every_state,
        _closed_while_draining,
        _closed_while_releasing,
        _closed_just_as_the_head_comes,
    ):
        await use()
    assert {f"{state.name} {event.name}" for state, event in set(TRANSITIONS) - seen} == set()


# The public names


@pytest.mark.parametrize("name", ["ChatStream", "CompletionStream", "SyncChatStream", "SyncCompletionStream"])
def test_a_stream_has_no_public_names_but_its_api(name: str) -> None:
    public = {each for each in dir(getattr(omnigate, name)) if not each.startswith("_")}
    own = {"text", "usage", "finish_reason"} if "Chat" in name else set[str]()
    closing = "close" if name.startswith("Sync") else "aclose"
    assert public == {"meta", "is_closed", closing} | own
