"""The sync client: the async core behind a portal, from scripts, threads, notebooks, forks and Ctrl-C."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

import omnigate
from omnigate import (
    Client,
    ClientClosedError,
    InvalidArgumentError,
    NotStartedError,
    ProviderError,
    RateLimitError,
    RetryConfig,
    StreamChunk,
    StreamClosedError,
)

from ..support.interrupts import everywhere
from ..support.scripted import ChunkStream, ScriptedTransport, Step, chat_answer, error_answer

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}
PORTAL = "omnigate-portal"


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Any:
    yield
    gc.collect()
    for thread in portal_threads():
        thread.join(5)
    assert portal_threads() == []


def portal_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == PORTAL]


def sync_client(*steps: Step, **arguments: Any) -> Client:
    arguments.setdefault("retry_config", RetryConfig(backoff_base=0))
    return Client("llmg_x", transport=ScriptedTransport(*steps), **arguments)


def streaming(*chunks: Any) -> tuple[ChunkStream, Step]:
    stream = ChunkStream(chunks)
    return stream, lambda _: httpx.Response(200, headers={"x-request-id": "r"}, stream=stream)


class Waiting:
    """A step that records when it was entered, waits until it is cancelled, and records how it ended."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.ended = threading.Event()

    async def __call__(self, _: httpx.Request) -> httpx.Response:
        self.entered.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.ended.set()
        raise AssertionError


# Calls


def test_sync_calls_work_on_either_event_loop(backend: Any) -> None:
    with sync_client(error_answer(503, "busy"), chat_answer, backend=backend) as client:
        response = client.chat(**HELLO)
        assert (response.content, response.meta.attempts) == ("hello", 2)


def test_a_sync_call_raises_its_error_unchanged_and_the_client_stays_usable(backend: Any) -> None:
    with sync_client(
        error_answer(429, "Rate limit exceeded", retry_after="61"), chat_answer, backend=backend
    ) as client:
        with pytest.raises(RateLimitError) as caught:
            client.chat(**HELLO)
        assert caught.value.retry_after == 61
        assert client.chat(**HELLO).content == "hello"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ZeroDivisionError, GeneratorExit])
def test_no_exception_of_a_call_stops_the_portal(backend: Any, error: type[BaseException]) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise error

    with sync_client(fail, chat_answer, backend=backend) as client:
        with pytest.raises(error):
            client.chat(**HELLO)
        assert client.chat(**HELLO).content == "hello"


def test_a_sync_client_accepts_sync_and_async_transports() -> None:
    class SyncOnly(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            return chat_answer()

    for transport in (SyncOnly(), httpx.MockTransport(chat_answer), ScriptedTransport(chat_answer)):
        with Client("k", transport=transport) as client:
            assert client.chat(**HELLO).content == "hello"


def test_the_callers_context_variables_reach_the_transport() -> None:
    variable: ContextVar[str] = ContextVar("variable")
    seen: list[str] = []

    def handler(_: httpx.Request) -> httpx.Response:
        seen.append(variable.get())
        return chat_answer()

    with Client("k", transport=httpx.MockTransport(handler)) as client:
        variable.set("mine")
        client.chat(**HELLO)
    assert seen == ["mine"]


def test_a_sync_client_can_be_reconfigured_and_its_repr_shows_no_key() -> None:
    client = Client("llmg_Abcdefg" + "x" * 36, base_url="https://gateway.test/", user_id="u")
    assert (client.base_url, client.user_id) == ("https://gateway.test", "u")
    client.api_key, client.base_url, client.user_id = "llmg_y", "https://other.test", None
    assert repr(client) == "Client(base_url='https://other.test', api_key='***')"
    assert client.api_key == "llmg_y"
    with pytest.raises(InvalidArgumentError, match="backend must be 'asyncio' or 'trio', got 'curio'"):
        Client(backend="curio")  # type: ignore[arg-type]


def test_many_threads_share_one_sync_client_and_one_portal(backend: Any) -> None:
    async def echo(request: httpx.Request) -> httpx.Response:
        await anyio.lowlevel.checkpoint()
        return chat_answer(content=request.headers["x-number"])

    with sync_client(echo, backend=backend) as client, ThreadPoolExecutor(32) as threads:

        def call(number: int) -> bool:
            return client.chat(**HELLO, extra_headers={"x-number": str(number)}).content == str(number)

        assert all(threads.map(call, range(500)))
        assert len(portal_threads()) == 1


@pytest.mark.blocks  # a sync call blocks the event loop it is made in
def test_a_sync_client_works_inside_a_running_event_loop(backend: Any) -> None:
    async def notebook_cell() -> str:
        with sync_client(chat_answer) as client:
            return client.chat(**HELLO).content

    assert anyio.run(notebook_cell, backend=backend) == "hello"


# Streams


def test_a_sync_stream_mirrors_the_async_one(backend: Any) -> None:
    body, step = streaming(b"a", b"b", b"c")
    with sync_client(step, backend=backend) as client, client.chat_stream(**HELLO) as stream:
        assert stream.meta.request_id == "r"
        assert next(stream) == "a"
        assert list(stream) == ["b", "c"]
        assert list(stream) == []
    assert body.closed


def test_a_sync_stream_yields_chunks() -> None:
    _, step = streaming(b"a", b"b", b"c")
    with sync_client(step) as client, client.chat_stream(**HELLO, as_chunks=True) as stream:
        assert next(stream) == StreamChunk(text="a", request_id="r")
        assert stream.text() == "bc"


def test_text_reads_the_rest_of_a_sync_stream_in_one_portal_call() -> None:
    body, step = streaming(*[b"a"] * 100)
    with sync_client(step) as client, client.chat_stream(**HELLO) as stream:
        next(stream)
        assert stream.text() == "a" * 99
        assert (stream.usage, stream.finish_reason) == (None, None)
    assert body.closed


def test_a_sync_stream_fetches_events_that_arrive_together_in_one_portal_call() -> None:
    events = (
        b"".join(b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n' for _ in range(50))
        + b"data: [DONE]\n\n"
    )
    body, step = streaming(events)
    with sync_client(step) as client:
        crossings: list[Any] = []
        original = client._portal.call
        client._portal.call = lambda func: crossings.append(func) or original(func)  # type: ignore[func-returns-value, method-assign]
        assert len(list(client.completions_stream(**HELLO))) == 50
        assert len(crossings) == 2
    assert body.closed


def test_a_failure_in_a_sync_stream_is_raised_after_its_text() -> None:
    _, step = streaming(b"a", b"b\n[error] boom")
    pieces: list[str] = []
    with sync_client(step) as client, pytest.raises(ProviderError, match="boom"):
        for piece in client.chat_stream(**HELLO):
            pieces.append(piece)
    assert pieces == ["a", "b"]


def test_leaving_a_sync_stream_early_closes_it(backend: Any) -> None:
    body, step = streaming(b"a", b"b", b"c")
    with sync_client(step, backend=backend) as client:
        with client.chat_stream(**HELLO) as stream:
            assert next(stream) == "a"
        assert body.closed
        with pytest.raises(StreamClosedError):
            next(stream)
        stream.close()


def test_a_dropped_sync_stream_is_closed_with_a_warning(backend: Any) -> None:
    body, step = streaming(b"a", b"b", b"c")
    with sync_client(step, backend=backend) as client:
        with pytest.warns(
            ResourceWarning, match=r"SyncChatStream was dropped before its end; use `with`, or call `close"
        ):
            for _ in client.chat_stream(**HELLO):
                break
            gc.collect()
        client._portal.call(lambda: anyio.lowlevel.checkpoint())
        deadline = time.monotonic() + 5
        while not body.closed and time.monotonic() < deadline:
            client._portal.call(lambda: anyio.lowlevel.checkpoint())
        assert body.closed


def test_a_sync_stream_of_a_closed_client_is_an_error_that_says_so() -> None:
    _, step = streaming(b"a", b"b")
    client = sync_client(step)
    stream = client.chat_stream(**HELLO)
    client.close()
    with pytest.raises(ClientClosedError):
        next(stream)


# Starting and closing


def test_the_portal_thread_starts_with_the_first_call_and_ends_with_close(backend: Any) -> None:
    client = sync_client(chat_answer, backend=backend)
    assert portal_threads() == []
    client.chat(**HELLO)
    (thread,) = portal_threads()
    client.close()
    assert not thread.is_alive()
    client.close()
    with pytest.raises(ClientClosedError):
        client.chat(**HELLO)


def test_closing_an_unused_sync_client_starts_no_thread() -> None:
    transport = ScriptedTransport(chat_answer)
    with Client("k", transport=transport):
        pass
    assert portal_threads() == []


def test_closing_a_sync_client_closes_its_transport() -> None:
    transport = ScriptedTransport(chat_answer)
    with Client("k", transport=transport) as client:
        client.chat(**HELLO)
    assert transport.closed


def test_the_portal_thread_ends_when_its_client_is_garbage_collected(backend: Any) -> None:
    transport = ScriptedTransport(chat_answer)
    client = Client("k", transport=transport, backend=backend)
    client.chat(**HELLO)
    (thread,) = portal_threads()
    alive = weakref.ref(client)
    del client
    gc.collect()
    assert alive() is None
    thread.join(5)
    assert not thread.is_alive()
    assert transport.closed


def test_closing_a_sync_client_ends_the_calls_of_other_threads(backend: Any) -> None:
    waiting = Waiting()
    client = sync_client(waiting, backend=backend)
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(client.chat, **HELLO)
        assert waiting.entered.wait(10)
        client.close()
        with pytest.raises(ClientClosedError):
            call.result(10)
    assert waiting.ended.is_set()


def test_an_event_loop_that_cannot_start_is_an_error_and_not_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_loop(*_: Any, **__: Any) -> None:
        raise LookupError("no such backend")

    with monkeypatch.context() as patch:
        patch.setattr("omnigate._sync.loop_thread.anyio.run", no_loop)
        client = sync_client(chat_answer)
        for _ in range(2):
            with pytest.raises(
                NotStartedError, match="could not start its asyncio event loop: no such backend"
            ):
                client.chat(**HELLO)
    assert client.chat(**HELLO).content == "hello"
    client.close()


# Ctrl-C


@pytest.mark.parametrize("streams", [False, True])
def test_ctrl_c_cancels_the_sync_call_in_flight_and_waits_for_its_end(backend: Any, streams: bool) -> None:
    waiting = Waiting()
    with sync_client(waiting, chat_answer, backend=backend) as client:

        def interrupt() -> None:
            assert waiting.entered.wait(10)
            os.kill(os.getpid(), signal.SIGINT)

        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            if streams:
                next(client.chat_stream(**HELLO))
            else:
                client.chat(**HELLO)
        assert waiting.ended.is_set()
        interrupter.join()
        assert client.chat(**HELLO).content == "hello"


def test_ctrl_c_just_after_the_head_of_a_sync_stream_leaves_nothing_open(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = ChunkStream([b"Hel", b"lo"])
    with sync_client(httpx.Response(200, stream=body), backend=backend) as client:
        stream = client.chat_stream(**HELLO)
        call = client._portal.call

        def late(func: Any) -> Any:
            monkeypatch.undo()
            call(func)
            raise KeyboardInterrupt

        monkeypatch.setattr(client._portal, "call", late)
        with pytest.raises(KeyboardInterrupt), stream:
            pytest.fail("entered")
        assert body.closed


# Ctrl-C anywhere


@pytest.fixture
def _no_wait_ends_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a wait that misses its event hang instead of timing out."""
    monkeypatch.setattr("omnigate._sync.loop_thread._INTERRUPT_SECONDS", -1)


@pytest.mark.usefixtures("_no_wait_ends_by_time")
def test_ctrl_c_anywhere_in_a_sync_call_leaves_a_usable_client(backend: Any) -> None:
    with sync_client(chat_answer, backend=backend) as client:
        client.chat(**HELLO)
        for interrupt in everywhere():
            with suppress(KeyboardInterrupt), interrupt:
                client.chat(**HELLO)
            assert client.chat(**HELLO).content == "hello"


@pytest.mark.usefixtures("_no_wait_ends_by_time")
@pytest.mark.parametrize("is_used_again", [True, False])
def test_ctrl_c_anywhere_in_the_first_sync_call_leaves_a_usable_client_that_can_be_closed(
    backend: Any, is_used_again: bool
) -> None:
    for interrupt in everywhere():
        transport = ScriptedTransport(chat_answer)
        client = Client("k", transport=transport, backend=backend)
        with suppress(KeyboardInterrupt), interrupt:
            client.chat(**HELLO)
        if is_used_again:
            assert client.chat(**HELLO).content == "hello"
            assert len(portal_threads()) == 1
        client.close()
        assert portal_threads() == []
        assert transport.closed or not is_used_again


def test_a_sync_client_whose_close_was_interrupted_can_be_closed_again(backend: Any) -> None:
    for interrupt in everywhere():
        transport = ScriptedTransport(chat_answer)
        client = Client("k", transport=transport, backend=backend)
        client.chat(**HELLO)
        with suppress(KeyboardInterrupt), interrupt:
            client.close()
        client.close()
        assert portal_threads() == []
        assert transport.closed


@pytest.mark.usefixtures("_no_wait_ends_by_time")
def test_ctrl_c_anywhere_in_reading_a_sync_stream_leaves_no_gap_in_its_text(backend: Any) -> None:
    for interrupt in everywhere():
        body, step = streaming(b"a", b"b", b"c")
        with sync_client(step, backend=backend) as client:
            pieces = ""
            with suppress(StreamClosedError), client.chat_stream(**HELLO) as stream, interrupt:
                while True:
                    try:
                        pieces += next(stream)
                    except KeyboardInterrupt:
                        continue
                    except StopIteration:
                        assert pieces == "abc"
                        break
            assert "abc".startswith(pieces)
            assert body.closed


# Calls from its own callbacks


def test_a_sync_call_from_the_portal_thread_is_refused_immediately(backend: Any) -> None:
    refused: list[str] = []

    def calls_itself(_: httpx.Request) -> httpx.Response:
        for use in (client.health, client.chat_stream(**HELLO).__enter__):
            with pytest.raises(NotStartedError) as caught:
                use()
            refused.append(str(caught.value))
        return chat_answer()

    with sync_client(calls_itself, backend=backend) as client:
        assert client.chat(**HELLO).content == "hello"
        assert len(refused) == 2
        assert "within its own callback" in refused[0]
        assert "another client" in refused[0]
        assert client.chat(**HELLO).content == "hello"


@pytest.mark.blocks  # a sync call blocks the event loop it is made in
def test_a_callback_may_use_another_sync_client(backend: Any) -> None:
    with sync_client(chat_answer, backend=backend) as other:

        def calls_the_other(_: httpx.Request) -> httpx.Response:
            return chat_answer(content=other.chat(**HELLO).content + "!")

        with sync_client(calls_the_other, backend=backend) as client:
            assert client.chat(**HELLO).content == "hello!"


# fork


def test_after_a_fork_a_used_sync_client_is_refused_and_a_new_one_works(backend: Any) -> None:
    with (
        sync_client(chat_answer, backend=backend) as used,
        sync_client(chat_answer, backend=backend) as fresh,
    ):
        used.chat(**HELLO)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # Python 3.12 says that forking with threads is risky
            pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.alarm(20)
                try:
                    used.chat(**HELLO)
                except omnigate.ForkedClientError as error:
                    assert "new client in the child" in str(error)
                    used.close()
                    if backend == "asyncio":
                        assert fresh.chat(**HELLO).content == "hello"
                        fresh.close()
                    code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert used.chat(**HELLO).content == "hello"


# Interpreter exit


SCRIPT = """
    import httpx, omnigate, threading
    def handler(request):
        return httpx.Response(200, json={"id": "1", "provider": "p", "model": "m", "content": "hello"})
    client = omnigate.Client("k", transport=httpx.MockTransport(handler), backend=BACKEND)
    print(client.chat(model="m", messages="x").content)
"""


def run_script(script: str, **names: str) -> subprocess.CompletedProcess[str]:
    source = textwrap.dedent(script)
    for name, value in names.items():
        source = source.replace(name, repr(value))
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", source]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


@pytest.mark.proof
def test_a_script_that_leaves_a_sync_client_open_still_exits(backend: str) -> None:
    done = run_script(SCRIPT, BACKEND=backend)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")


@pytest.mark.proof
def test_a_script_that_fails_with_an_open_sync_client_still_exits(backend: str) -> None:
    done = run_script(SCRIPT + "\n    raise SystemExit(3)", BACKEND=backend)
    assert (done.returncode, done.stderr) == (3, "")


def test_importing_the_package_imports_no_event_loop_library() -> None:
    done = run_script("""
        import sys, omnigate
        print([name for name in ("trio", "starlette", "uvicorn", "httpx2", "pytest") if name in sys.modules])
    """)
    assert (done.stdout, done.stderr) == ("[]\n", "")
