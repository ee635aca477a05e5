"""A sync client that is called or closed again inside one of its own calls: by a signal handler or a finalizer."""

import _thread
import gc
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import anyio
import httpx
import pytest

from omnigate import Client, ClientClosedError, NotStartedError
from omnigate._sync import crossing, loop_thread, portal
from omnigate.exceptions import ForkedClientError

from ..support.reentry import everywhere
from ..support.scripted import ChunkStream, ScriptedTransport, chat_answer

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}
CHUNKS = [b"0", b"1", b"2"]


@pytest.fixture(autouse=True)
def _no_wait_ends_by_time_and_no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(loop_thread, "_INTERRUPT_SECONDS", 1_000.0)
    monkeypatch.setattr(loop_thread, "_JOIN_SECONDS", 1_000.0)
    monkeypatch.setattr(portal, "_CLEAN_UP_SECONDS", 1_000.0)
    yield
    gc.collect()
    left = [thread for thread in threading.enumerate() if thread.name == "omnigate-portal"]
    for thread in left:
        thread.join(10)
        assert not thread.is_alive()


def answering(backend: Any, **arguments: Any) -> Client:
    return Client("k", transport=ScriptedTransport(chat_answer), backend=backend, **arguments)


def streaming(backend: Any) -> Client:
    def stream(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=ChunkStream(CHUNKS))

    return Client("k", transport=ScriptedTransport(stream), backend=backend)


def test_a_signal_handler_may_call_the_client_anywhere_in_a_call(backend: Any) -> None:
    answers: list[str] = []
    with answering(backend) as client:
        client.chat(**HELLO)
        for visit in everywhere(lambda: answers.append(client.chat(**HELLO).content)):
            with visit:
                assert client.chat(**HELLO).content == "hello"
    assert len(answers) > 100
    assert set(answers) == {"hello"}


def test_a_signal_handler_may_call_the_client_anywhere_in_its_first_call(backend: Any) -> None:
    clients: list[Client] = []
    for visit in everywhere(lambda: clients[-1].chat(**HELLO), step=5):
        with answering(backend) as client:
            clients.append(client)
            with visit:
                assert client.chat(**HELLO).content == "hello"
    assert len(clients) > 100


@pytest.mark.parametrize("is_first", [False, True])
def test_a_signal_handler_may_close_the_client_anywhere_in_a_call(backend: Any, is_first: bool) -> None:
    clients: list[Client] = []
    outcomes: set[str] = set()
    for visit in everywhere(lambda: clients[-1].close(), step=3):
        client = answering(backend)
        clients.append(client)
        if not is_first:
            client.chat(**HELLO)
        with visit:
            try:
                outcomes.add(str(client.chat(**HELLO).content))
            except ClientClosedError as error:
                outcomes.add(str(error))
        client.close()
    assert outcomes == {
        "hello",
        "the client is closed; create a new one",
        "the client was closed during the call",
    }


def test_a_signal_handler_may_close_the_client_anywhere_in_its_close(backend: Any) -> None:
    clients: list[Client] = []
    for visit in everywhere(lambda: clients[-1].close(), step=3):
        client = answering(backend)
        clients.append(client)
        client.chat(**HELLO)
        with visit:
            client.close()
    assert len(clients) > 50


def test_a_garbage_collected_stream_may_be_closed_anywhere_in_a_call(backend: Any) -> None:
    class Node:
        itself: Any
        pieces: Any

    def pieces(client: Client) -> Iterator[str]:
        with client.chat_stream(**HELLO) as stream:
            closed.append(stream)
            yield from stream

    closed: list[Any] = []
    garbage: list[Node] = []

    def collect() -> None:
        garbage.clear()
        gc.collect()

    gc.freeze()  # so that collecting is quick, here and in the tests after this one
    with streaming(backend) as client:
        for visit in everywhere(collect, step=5):
            node = Node()
            node.itself, node.pieces = node, pieces(client)
            assert next(node.pieces) == "0"
            garbage.append(node)
            del node
            with visit, client.chat_stream(**HELLO) as stream:
                assert stream.text() == "012"
            collect()
            assert closed[-1].is_closed
    assert len(closed) > 100


def test_two_threads_that_wake_the_loop_simultaneously_are_both_answered(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[str] = []

    def call_soon_late(func: Any) -> None:
        if not others and threading.current_thread() is threading.main_thread():
            others.append("called")  # another thread calls just before this one wakes the loop
            others.append(threads.submit(client.chat, **HELLO).result(10).content)
        call_soon(func)

    with answering(backend) as client, ThreadPoolExecutor(1) as threads:
        client.chat(**HELLO)
        inbox = client._portal._running_loop().inbox
        call_soon = inbox.call_soon
        monkeypatch.setattr(inbox, "call_soon", call_soon_late)
        assert client.chat(**HELLO).content == "hello"
    assert others == ["called", "hello"]


@pytest.mark.parametrize("is_late", [False, True], ids=["before", "after"])
def test_a_call_is_answered_though_ctrl_c_ended_one_just_when_it_woke_the_loop(
    backend: Any, is_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupts: list[bool] = []

    def interrupted(func: Any) -> None:
        if not interrupts and threading.current_thread() is threading.main_thread():
            interrupts.append(True)
            if is_late:
                call_soon(func)
            raise KeyboardInterrupt
        call_soon(func)

    with answering(backend) as client:
        client.chat(**HELLO)
        inbox = client._portal._running_loop().inbox
        call_soon = inbox.call_soon
        monkeypatch.setattr(inbox, "call_soon", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.chat(**HELLO)
        assert client.chat(**HELLO).content == "hello"


def test_a_real_signal_handler_closes_the_client_that_the_main_thread_waits_in(backend: Any) -> None:
    entered = threading.Event()

    def interrupt() -> None:
        assert entered.wait(10)
        os.kill(os.getpid(), signal.SIGUSR1)

    async def waits(_: httpx.Request) -> httpx.Response:
        entered.set()
        await anyio.sleep_forever()
        raise AssertionError

    client = Client("k", transport=ScriptedTransport(waits), backend=backend)
    previous = signal.signal(signal.SIGUSR1, lambda *_: client.close())
    interrupter = threading.Thread(target=interrupt)
    try:
        interrupter.start()
        with pytest.raises(ClientClosedError, match="closed during the call"):
            client.chat(**HELLO)
    finally:
        interrupter.join()
        signal.signal(signal.SIGUSR1, previous)


# `close`, from anywhere


def test_a_callback_may_close_its_own_client(backend: Any) -> None:
    def closes(_: httpx.Request) -> httpx.Response:
        client.close()
        return chat_answer()

    client = Client("k", transport=ScriptedTransport(closes), backend=backend)
    with suppress(ClientClosedError):  # the call may end before its loop does
        client.chat(**HELLO)
    client.close()
    with pytest.raises(ClientClosedError):
        client.chat(**HELLO)


def test_a_stream_closes_quietly_in_the_portals_own_thread(backend: Any) -> None:
    streams: list[Any] = []

    def closes(_: httpx.Request) -> httpx.Response:
        for stream in streams:
            stream.close()
            assert stream.is_closed
        return httpx.Response(200, stream=ChunkStream(CHUNKS))

    with Client("k", transport=ScriptedTransport(closes), backend=backend) as client:
        with client.chat_stream(**HELLO) as first:
            assert next(first) == "0"
            streams.append(first)
            with client.chat_stream(**HELLO) as second:
                assert second.text() == "012"
        assert first.is_closed


def test_a_stream_closes_quietly_after_its_client(backend: Any) -> None:
    client = streaming(backend)
    unopened = client.chat_stream(**HELLO)
    with client.chat_stream(**HELLO) as stream:
        assert next(stream) == "0"
        assert not stream.is_closed
        client.close()
    assert stream.is_closed
    unopened.close()
    assert unopened.is_closed


def test_a_stream_whose_transport_fails_to_close_is_logged_and_closed(
    backend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(ChunkStream):
        async def aclose(self) -> None:
            await super().aclose()
            raise ValueError("it cannot be closed")

    def stream(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Broken(CHUNKS))

    with Client("k", transport=ScriptedTransport(stream), backend=backend) as client:
        with client.chat_stream(**HELLO) as opened:
            next(opened)
        assert opened.is_closed
    assert "it cannot be closed" in caplog.text


def test_a_forked_child_closes_a_stream_of_its_parent_quietly(backend: Any) -> None:
    with streaming(backend) as client, client.chat_stream(**HELLO) as stream:
        next(stream)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.alarm(20)
                stream.close()
                client.close()
                with pytest.raises((ForkedClientError, ClientClosedError)):
                    client.health()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert stream.text() == "12"


def test_a_batch_in_a_collected_generator_ends_in_the_portals_own_thread(backend: Any) -> None:
    def outcomes(client: Client) -> Iterator[Any]:
        with client.batch([HELLO, HELLO, HELLO], max_concurrency=1) as batch:
            yield from batch

    generators: list[Any] = []

    def drops(_: httpx.Request) -> httpx.Response:
        generators.clear()
        return chat_answer()

    with Client("k", transport=ScriptedTransport(drops), backend=backend) as client:
        generator = outcomes(client)
        assert next(generator).response.content == "hello"
        generators.append(generator)
        del generator
        assert client.chat(**HELLO).content == "hello"


# Windows before Python 3.14, where Ctrl-C does not interrupt the wait for a lock


def test_no_wait_for_a_lock_is_longer_than_a_slice_where_ctrl_c_cannot_end_it(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    class Lock:
        def __init__(self) -> None:
            self._lock = threading.Lock()

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            if self._lock.locked():
                assert blocking
                assert 0 <= timeout <= 0.01
                waits.append(timeout)
            return self._lock.acquire(blocking, timeout)

        def release(self) -> None:
            self._lock.release()

    class Threading:
        def __getattr__(self, name: str) -> Any:
            return Lock if name == "Lock" else getattr(threading, name)

    monkeypatch.setattr(crossing, "threading", Threading())
    monkeypatch.setattr(crossing, "_SLICE_SECONDS", 0.01)
    with answering(backend) as client:
        assert client.chat(**HELLO).content == "hello"
    assert waits
    latch = crossing.Latch()
    assert not latch.wait(0.02)
    latch.open()
    assert latch.wait()


# An event loop that cannot start


def test_trio_that_is_not_installed_is_refused_when_the_client_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(portal, "_is_installed", lambda name: False)
        with pytest.raises(ValueError, match="trio is not installed.*pip install trio"):
            Client("k", backend="trio")
    Client("k", backend="asyncio").close()


def test_a_thread_that_cannot_start_is_a_typed_error_and_the_next_call_tries_again(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_many(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with answering(backend) as client:
        for owner, name in ((_thread, "start_new_thread"), (threading.Thread, "start")):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, too_many)
                with pytest.raises(NotStartedError, match="could not start .*can't start new thread"):
                    client.chat(**HELLO)
        assert client.chat(**HELLO).content == "hello"


# A batch


@pytest.mark.proof
def test_a_signal_handler_may_close_the_client_anywhere_in_a_batch(backend: Any) -> None:
    clients: list[Client] = []
    ends: set[str] = set()
    for visit in everywhere(lambda: clients[-1].close(), step=41):
        client = answering(backend)
        clients.append(client)
        client.chat(**HELLO)
        with visit:
            try:
                with client.batch([HELLO, HELLO, HELLO], max_concurrency=1) as batch:
                    ends.add(f"{len(list(batch))} outcomes")
            except ClientClosedError:
                ends.add("closed")
        client.close()
    assert ends == {"3 outcomes", "closed"}


@pytest.mark.proof
def test_a_signal_handler_may_call_the_client_anywhere_in_a_batch(backend: Any) -> None:
    answers: list[str] = []
    with answering(backend) as client:
        client.chat(**HELLO)
        for visit in everywhere(lambda: answers.append(client.chat(**HELLO).content), step=41):
            with visit, client.batch([HELLO, HELLO, HELLO], max_concurrency=1) as batch:
                assert [outcome.error for outcome in batch] == [None] * 3
    assert len(answers) > 20
