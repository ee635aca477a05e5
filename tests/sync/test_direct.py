"""Sync calls and streams that go on in the caller's thread, over a connection that the event loop has lent."""

import builtins
import gc
import gzip
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import pytest

from omnigate import (
    AnyIOTransport,
    APIError,
    AuthError,
    Client,
    ClientClosedError,
    ConnectionError,
    InvalidResponseError,
    ProviderError,
    RetryConfig,
    StreamClosedError,
    TimeoutError,
)
from omnigate._transport.http11 import ResponseReader
from omnigate.exceptions import ForkedClientError

from ..support import interrupts, reentry
from ..support.raw_server import chat_bytes, response_bytes
from ..support.scripted import chat_answer
from ..support.thread_server import Connection, Handler, ThreadServer, answering

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-request-id: r\r\n\r\n"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="nothing is lent there")


@pytest.fixture(autouse=True)
def _no_wait_ends_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a wait that misses its event hang instead of timing out."""
    monkeypatch.setattr("omnigate._sync.loop_thread._INTERRUPT_SECONDS", -1)


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    gc.collect()
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    yield
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "omnigate-portal":  # of a client that was dropped
            thread.join(10)
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before


def client_of(server: ThreadServer, backend: Any, *, warm: bool = True, **arguments: Any) -> Client:
    arguments.setdefault("retry_config", RetryConfig(max_retries=0))
    arguments.setdefault("transport", AnyIOTransport(max_connections=1))
    client = Client("llmg_x", base_url=server.url, backend=backend, **arguments)
    if warm:
        for _ in range(3):
            client.chat(**HELLO)
        assert client._direct._session.is_ready
    return client


@contextmanager
def no_crossing(client: Client) -> Iterator[None]:
    """Let everything fail that goes through the event loop."""

    def put(_: Any) -> None:
        raise AssertionError("it crossed into the event loop")

    inbox = client._portal._running_loop().inbox
    original, inbox.put = inbox.put, put  # type: ignore[method-assign]
    try:
        yield
    finally:
        inbox.put = original  # type: ignore[method-assign]


def after(calls: int, then: Handler) -> Handler:
    """Answer so many calls of each server's first connection, then do something else; later ones are answered."""
    connections: list[Connection] = []

    def handle(connection: Connection) -> None:
        connections.append(connection)
        if len(connections) == 1:
            for _ in range(calls):
                connection.request()
                connection.send(chat_bytes())
            then(connection)
        else:
            answering(connection)

    return handle


def in_use(client: Client) -> int:
    transport = client._async._session.carrier.transport
    assert isinstance(transport, AnyIOTransport)
    return int(transport.stats()["in_use"])


# Calls


def test_a_call_that_follows_others_does_not_cross_into_the_event_loop(backend: Any) -> None:
    with ThreadServer() as server, client_of(server, backend) as client:
        with no_crossing(client):
            for _ in range(5):
                response = client.chat(**HELLO)
                assert (response.content, response.meta.attempts) == ("hello", 1)
        assert server.accepted == 1
        assert in_use(client) == 0
        assert client.chat(**HELLO, deadline_seconds=9).content == "hello"
        assert client.chat(**HELLO, hedge_after=9).content == "hello"
        assert server.accepted == 1


def test_a_large_request_and_a_closed_client_are_left_to_the_event_loop(backend: Any) -> None:
    with ThreadServer() as server, client_of(server, backend) as client:
        assert client.chat(model="gpt-4o-mini", messages="long " * 10_000).content == "hello"
        client.close()
        with pytest.raises(ClientClosedError, match="create a new one"):
            client.chat(**HELLO)


def test_an_invalid_argument_is_refused_before_anything_is_sent(backend: Any) -> None:
    with ThreadServer() as server, client_of(server, backend) as client:
        with pytest.raises(ValueError, match="temperature"):
            client.chat(**HELLO, temperature=3)
        with no_crossing(client):
            assert client.chat(**HELLO).content == "hello"


def test_an_error_response_is_a_typed_error_and_keeps_the_connection(backend: Any) -> None:
    def fails(connection: Connection) -> None:
        connection.request()
        connection.send(response_bytes(b'{"detail": "Invalid API key"}', "401 Unauthorized"))
        answering(connection)

    with ThreadServer(after(3, fails)) as server, client_of(server, backend) as client:
        with pytest.raises(AuthError, match="Invalid API key"):
            client.chat(**HELLO)
        assert client.chat(**HELLO).content == "hello"
        assert server.accepted == 1


def test_a_response_is_read_however_it_arrives(backend: Any) -> None:
    body = chat_answer().content

    def various(connection: Connection) -> None:
        connection.request()
        for byte in chat_bytes():
            connection.send(bytes([byte]))
        connection.request()
        connection.send(STREAM_HEAD)
        connection.send_chunk(body[:9])
        connection.send_chunk(body[9:])
        connection.send_chunk(b"")
        connection.request()
        connection.send(
            b"HTTP/1.1 100 Continue\r\n\r\n" + response_bytes(gzip.compress(body), content_encoding="gzip")
        )
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\n\r\n" + body)  # the end of the connection ends it

    with ThreadServer(after(3, various)) as server, client_of(server, backend) as client:
        for _ in range(5):
            assert client.chat(**HELLO).content == "hello"
        assert server.accepted == 2


def test_a_response_that_is_too_long_is_refused(backend: Any) -> None:
    def long(connection: Connection) -> None:
        connection.request()
        connection.send(response_bytes(b'{"content": "%b"}' % (b"x" * 5_000)))
        answering(connection)

    with ThreadServer(after(3, long)) as server:
        with client_of(server, backend, max_response_bytes=4_000) as client:
            with pytest.raises(InvalidResponseError, match="max_response_bytes=4,000"):
                client.chat(**HELLO)
            assert client.chat(**HELLO).content == "hello"


def test_a_connection_that_the_server_closed_meanwhile_is_not_an_attempt(backend: Any) -> None:
    with ThreadServer(after(3, lambda _: None)) as server, client_of(server, backend) as client:
        server.until_open(0)
        response = client.chat(**HELLO)
        assert (response.content, response.meta.attempts) == ("hello", 1)
        assert server.accepted == 2


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{", b"SMTP\r\n"])
@pytest.mark.parametrize("retries", [0, 1])
def test_a_connection_that_breaks_during_a_call_is_judged_as_ever(
    backend: Any, retries: int, answer: bytes
) -> None:
    def breaks(connection: Connection) -> None:
        connection.request()
        connection.send(answer)

    config = RetryConfig(max_retries=retries, backoff_base=0)
    with ThreadServer(after(3, breaks)) as server, client_of(server, backend, retry_config=config) as client:
        if retries:
            assert client.chat(**HELLO).meta.attempts == 2
        else:
            with pytest.raises(ConnectionError) as caught:
                client.chat(**HELLO)
            assert caught.value.was_sent
            assert caught.value.attempts == 1
        assert client.chat(**HELLO).content == "hello"
        assert in_use(client) == 0


def test_a_response_that_does_not_come_in_time_is_a_timeout(backend: Any) -> None:
    with ThreadServer(after(3, Connection.until_closed)) as server, client_of(server, backend) as client:
        with pytest.raises(TimeoutError, match="no bytes came within the timeout"):
            client.chat(**HELLO, timeout=0.01)
        assert client.chat(**HELLO).content == "hello"


def test_closing_the_client_ends_a_call_in_another_thread(backend: Any) -> None:
    waits = threading.Event()

    def silent(connection: Connection) -> None:
        connection.request()
        waits.set()
        connection.until_closed()

    with ThreadServer(after(3, silent)) as server, ThreadPoolExecutor(1) as threads:
        with client_of(server, backend) as client:
            call = threads.submit(client.chat, **HELLO)
            assert waits.wait(10)
            client.close()
            with pytest.raises(ClientClosedError, match="closed during the call"):
                call.result(10)
        server.until_open(0)


def test_a_thread_that_waits_for_the_only_connection_gets_it_when_a_call_ends(backend: Any) -> None:
    waits, may_answer = threading.Event(), threading.Event()

    def late(connection: Connection) -> None:
        connection.request()
        waits.set()
        assert may_answer.wait(10)
        connection.send(chat_bytes())
        answering(connection)

    with ThreadServer(after(3, late)) as server, client_of(server, backend) as client:
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(client.chat, **HELLO)
            assert waits.wait(10)
            second = threads.submit(client.chat, **HELLO)
            while not client._async._session.carrier.transport.stats()["waiting"]:  # type: ignore[attr-defined]
                assert not second.done()
            may_answer.set()
            assert [call.result(10).content for call in (first, second)] == ["hello", "hello"]
        assert server.accepted == 1


def test_a_parked_connection_is_closed_after_the_idle_timeout(backend: Any) -> None:
    transport = AnyIOTransport(idle_timeout_seconds=0.05)
    with ThreadServer() as server, client_of(server, backend, transport=transport, warm=False) as client:
        for _ in range(4):
            client.chat(**HELLO)
        server.until_open(0)
        assert client.chat(**HELLO).content == "hello"


def test_a_stream_and_a_batch_use_the_parked_connection(backend: Any) -> None:
    with ThreadServer() as server, client_of(server, backend) as client:
        assert client.chat_many([HELLO, HELLO])[0].content == "hello"
        client.chat(**HELLO)
        assert server.accepted == 1


@pytest.mark.blocks  # a sync call blocks the event loop it is made in
def test_a_call_inside_a_running_event_loop_is_left_to_the_portals(backend: Any) -> None:
    async def main() -> None:
        inbox = client._portal._running_loop().inbox
        assert client._direct._session.is_ready
        before = inbox._asked
        assert client.chat(**HELLO).content == "hello"
        assert inbox._asked > before

    with ThreadServer() as server, client_of(server, backend) as client:
        anyio.run(main)
        assert server.accepted == 1


def test_an_interrupt_in_the_parser_is_raised_as_itself(backend: Any) -> None:
    with ThreadServer() as server, client_of(server, backend) as client:
        callbacks = ("on_message_begin", "on_headers_complete", "on_body", "on_message_complete")
        for name in callbacks:
            while not client._direct._session.is_ready:
                client.chat(**HELLO)

            def interrupts(*_: object) -> None:
                raise KeyboardInterrupt

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ResponseReader, name, interrupts)
                with pytest.raises(KeyboardInterrupt):
                    client.chat(**HELLO)
            assert client.chat(**HELLO).content == "hello"
        assert in_use(client) == 0


def test_a_client_that_is_dropped_closes_its_parked_connection(backend: Any) -> None:
    with ThreadServer() as server:
        client = client_of(server, backend)
        del client
        gc.collect()
        server.until_open(0)


def test_a_forked_child_does_not_use_its_parents_connection(backend: Any) -> None:
    with ThreadServer() as server, client_of(server, backend) as client:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.alarm(20)
                with pytest.raises(ForkedClientError):
                    client.chat(**HELLO)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert client.chat(**HELLO).content == "hello"
        assert server.accepted == 1


def test_ctrl_c_anywhere_in_a_direct_call_leaves_a_usable_client_and_no_connection_in_use(
    backend: Any,
) -> None:
    interrupted = 0
    with ThreadServer() as server, client_of(server, backend) as client:
        for interrupt in interrupts.everywhere():
            while not client._direct._session.is_ready:
                assert client.chat(**HELLO).content == "hello"
            try:
                with interrupt:
                    client.chat(**HELLO)
            except (
                KeyboardInterrupt
            ) as error:  # keeps its traceback while the next call waits for the connection
                interrupted += 1
                assert client.chat(**HELLO).content == "hello"
                assert error.__traceback__ is not None
        assert in_use(client) == 0
    assert interrupted > 50


@pytest.mark.parametrize("kind", [builtins.TimeoutError, IndexError, ConnectionError])
def test_an_error_of_a_signal_handler_is_raised_unchanged_out_of_a_direct_call(
    backend: Any, kind: type[Exception]
) -> None:
    raised = kind("alarm")

    def silent(connection: Connection) -> None:
        connection.request()
        os.kill(os.getpid(), signal.SIGUSR1)
        connection.until_closed()

    def handler(*_: object) -> None:
        raise raised

    config = RetryConfig(max_retries=2, backoff_base=0)
    previous = signal.signal(signal.SIGUSR1, handler)
    try:
        with (
            ThreadServer(after(3, silent)) as server,
            client_of(server, backend, retry_config=config) as client,
        ):
            with pytest.raises(kind, match="alarm") as caught:
                client.chat(**HELLO)
            assert caught.value is raised
            assert client.chat(**HELLO).content == "hello"
            assert server.accepted == 2
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_a_signal_handler_may_call_the_client_anywhere_in_a_direct_call(backend: Any) -> None:
    answers: list[str] = []
    with ThreadServer() as server:
        transport = AnyIOTransport(max_connections=2)
        with client_of(server, backend, transport=transport) as client:
            for visit in reentry.everywhere(lambda: answers.append(client.chat(**HELLO).content), step=7):
                while not client._direct._session.is_ready:
                    client.chat(**HELLO)
                with visit:
                    assert client.chat(**HELLO).content == "hello"
            assert in_use(client) == 0
    assert len(answers) > 50
    assert set(answers) == {"hello"}


def test_a_signal_handler_may_close_the_client_anywhere_in_a_direct_call(backend: Any) -> None:
    clients: list[Client] = []
    outcomes: set[str] = set()
    with ThreadServer() as server:
        for visit in reentry.everywhere(lambda: clients[-1].close(), step=23):
            clients.append(client_of(server, backend))
            with visit:
                try:
                    outcomes.add(clients[-1].chat(**HELLO).content)
                except ClientClosedError as error:
                    outcomes.add(str(error))
            clients[-1].close()
        server.until_open(0)
    assert outcomes == {
        "hello",
        "the client is closed; create a new one",
        "the client was closed during the call",
    }


# Streams


def streaming(*chunks: bytes, end: Callable[[Connection], None] | None = None) -> Handler:
    """Answer with a stream, each chunk of which is sent after the one before was read."""

    def handle(connection: Connection) -> None:
        while True:
            connection.request()
            connection.send(STREAM_HEAD)
            for chunk in chunks:
                connection.send_chunk(chunk)
                may_send.acquire()
            if end is not None:
                end(connection)
                return
            connection.send_chunk(b"")

    may_send = threading.Semaphore(0)
    handle.may_send = may_send  # type: ignore[attr-defined]
    return handle


def test_lone_chunks_are_read_without_the_event_loop(backend: Any) -> None:
    handler = streaming(b"one ", b"two ", b"three")
    go_on = handler.may_send.release  # type: ignore[attr-defined]
    with ThreadServer(handler) as server, client_of(server, backend, warm=False) as client:
        for _ in range(2):
            with client.chat_stream(**HELLO) as stream:
                assert next(stream) == "one "
                go_on()
                with no_crossing(client):
                    assert next(stream) == "two "
                    go_on()
                    assert next(stream) == "three"
                go_on()
                assert list(stream) == []
                assert stream.is_closed
        assert server.accepted == 1


def test_the_rest_of_a_directly_read_stream_is_read_as_text(backend: Any) -> None:
    handler = streaming(b"one ", b"two ", b"three")
    with ThreadServer(handler) as server, client_of(server, backend, warm=False) as client:
        with client.chat_stream(**HELLO) as stream:
            pieces = []
            for _ in range(2):
                pieces.append(next(stream))
                handler.may_send.release()  # type: ignore[attr-defined]
            handler.may_send.release()  # type: ignore[attr-defined]
            assert "".join(pieces) + stream.text() == "one two three"


@pytest.mark.parametrize(
    ("ending", "error", "words"),
    [
        (lambda connection: None, ConnectionError, "before the end of the response's body|ended"),
        (lambda connection: connection.send(b"garbage\r\n"), ConnectionError, "not HTTP"),
        (lambda connection: connection.send_chunk(b"\n[error] boom"), ProviderError, "boom"),
        (lambda connection: connection.send_chunk(b"x" * 5_000), InvalidResponseError, "max_response_bytes"),
        (lambda connection: connection.until_closed(), TimeoutError, "no bytes came within the timeout"),
    ],
    ids=["end", "garbage", "sentinel", "too long", "silence"],
)
def test_a_directly_read_stream_that_fails_raises_its_error_after_its_text(
    backend: Any, ending: Any, error: type[Exception], words: str
) -> None:
    def end(connection: Connection) -> None:
        ending(connection)
        if error is ProviderError:
            connection.send_chunk(b"")
            connection.until_closed()

    handler = streaming(b"one ", b"two ", end=end)
    with ThreadServer(handler) as server:
        with client_of(server, backend, warm=False, max_response_bytes=4_000) as client:
            with client.chat_stream(**HELLO, timeout=0.05 if error is TimeoutError else 60) as stream:
                for expected in ("one ", "two "):
                    assert next(stream) == expected
                    handler.may_send.release()  # type: ignore[attr-defined]
                with pytest.raises(error, match=words):
                    next(stream)
            assert stream.is_closed
            assert in_use(client) == 0
        server.until_open(0)


@pytest.mark.parametrize("closes", ["stream", "client"])
def test_closing_a_stream_that_another_thread_reads_directly_ends_its_read(backend: Any, closes: str) -> None:
    handler = streaming(b"one ", end=Connection.until_closed)
    with ThreadServer(handler) as server, ThreadPoolExecutor(1) as threads:
        with client_of(server, backend, warm=False) as client, client.chat_stream(**HELLO) as stream:
            assert next(stream) == "one "
            handler.may_send.release()  # type: ignore[attr-defined]
            read = threads.submit(next, stream)
            while stream._turns:  # it has begun to read
                assert not read.done()
            with pytest.raises(StreamClosedError, match="already being read"):
                next(stream)
            with pytest.raises(StreamClosedError, match="already being read"):
                stream.text()
            (stream if closes == "stream" else client).close()
            with pytest.raises(StreamClosedError if closes == "stream" else ClientClosedError):
                read.result(10)
            assert stream.is_closed
        server.until_open(0)


def test_a_directly_read_stream_that_is_dropped_closes_its_connection_with_a_warning(backend: Any) -> None:
    handler = streaming(b"one ", end=Connection.until_closed)
    with ThreadServer(handler) as server, client_of(server, backend, warm=False) as client:
        stream = client.chat_stream(**HELLO)
        assert next(stream) == "one "
        assert stream._direct is not None
        handler.may_send.release()  # type: ignore[attr-defined]
        with pytest.warns(ResourceWarning, match="was dropped before its end"):
            del stream
            gc.collect()
        server.until_open(0)


@pytest.mark.proof
def test_ctrl_c_anywhere_in_a_directly_read_stream_leaves_no_gap_in_its_text(backend: Any) -> None:
    handler = streaming(b"a", b"b", b"c")
    go_on = handler.may_send.release  # type: ignore[attr-defined]
    transport = AnyIOTransport(max_connections=None)
    interrupted = 0
    with ThreadServer(handler) as server:
        with client_of(server, backend, warm=False, transport=transport) as client:
            for interrupt in interrupts.everywhere():
                pieces = ""
                for _ in range(3):
                    go_on()
                with suppress(StreamClosedError), client.chat_stream(**HELLO) as stream:
                    pieces += next(stream)
                    with interrupt:
                        while True:
                            try:
                                pieces += next(stream)
                            except KeyboardInterrupt:
                                interrupted += 1
                                continue
                            except StopIteration:
                                assert pieces == "abc"
                                break
                assert "abc".startswith(pieces)
                assert stream.is_closed
                del stream
            assert in_use(client) == 0
    assert interrupted > 20


def test_an_error_of_the_gateway_is_an_api_error_in_both_ways(backend: Any) -> None:
    def fails(connection: Connection) -> None:
        while True:
            connection.request()
            connection.send(response_bytes(b'{"detail": "boom"}', "500 Internal Server Error"))

    errors: list[APIError] = []
    with ThreadServer(after(3, fails)) as server, client_of(server, backend) as client:
        for _ in range(2):  # the second goes through the event loop
            with pytest.raises(APIError) as caught:
                client.chat(**HELLO)
            errors.append(caught.value)
    assert str(errors[0]) == str(errors[1])
    assert errors[0].attempts == errors[1].attempts == 1
