"""Every kind of transport plugs in: async, sync, httpx2's, and the default one in several event loops."""

import asyncio
import gc
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import httpx2
import pytest

from omnigate import (
    AdminClient,
    AnyIOTransport,
    AsyncAdminClient,
    AsyncClient,
    Client,
    ConnectionError,
    GatewayError,
    InvalidArgumentError,
    RetryConfig,
    TimeoutError,
)
from omnigate._transport.adapters import ThreadedTransport
from omnigate._transport.httpx_pool import PerLoopTransport
from omnigate._transport.proxies import environment_proxy
from omnigate.testing import LocalGateway

from ..support.raw_server import RawServer, chat_bytes
from ..support.scripted import chat_answer

pytestmark = pytest.mark.anyio

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}
ONCE = RetryConfig(max_retries=0)


class SyncOnly(httpx.BaseTransport):
    """A sync-only transport that notes which threads it ran in."""

    def __init__(self, response: Any = chat_answer) -> None:
        self.threads: set[int] = set()
        self.response = response
        self.closed = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.threads.add(threading.get_ident())
        answer: httpx.Response = self.response(request)
        return answer

    def close(self) -> None:
        self.closed = True


class SyncChunks(httpx.SyncByteStream):
    def __init__(self, *chunks: bytes | Exception) -> None:
        self.chunks = chunks
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    def close(self) -> None:
        self.closed = True


async def test_sync_only_transport_runs_in_worker_threads() -> None:
    transport = SyncOnly()
    async with AsyncClient("k", transport=transport) as client:
        assert (await client.chat(**HELLO)).content == "hello"
    assert transport.threads
    assert threading.get_ident() not in transport.threads
    assert transport.closed


async def test_sync_response_stream_is_read_and_closed() -> None:
    body = SyncChunks(b"a", b"b")
    client = AsyncClient("k", transport=SyncOnly(lambda _: httpx.Response(200, stream=body)))
    async with client, client.chat_stream(**HELLO) as stream:
        assert [piece async for piece in stream] == ["a", "b"]
    assert body.closed


async def test_broken_sync_response_stream_raises_a_connection_error() -> None:
    body = SyncChunks(b"a", httpx.ReadError("reset"))
    async with AsyncClient("k", transport=SyncOnly(lambda _: httpx.Response(200, stream=body))) as client:
        with pytest.raises(ConnectionError, match="reset"):
            await client.chat_stream(**HELLO).text()
    assert body.closed


async def test_cancelled_call_leaves_its_worker_thread_to_close_the_response() -> None:
    entered, release = threading.Event(), threading.Event()
    body = SyncChunks(b"late")
    closed = threading.Event()
    body.close = closed.set  # type: ignore[method-assign]

    def slow(_: httpx.Request) -> httpx.Response:
        entered.set()
        assert release.wait(10)
        return httpx.Response(200, stream=body)

    async with AsyncClient("k", transport=SyncOnly(slow)) as client:
        async with anyio.create_task_group() as group:
            group.start_soon(client.me)
            await anyio.to_thread.run_sync(entered.wait, 10)
            group.cancel_scope.cancel()
        assert not closed.is_set()
        release.set()
        assert await anyio.to_thread.run_sync(closed.wait, 10)


async def test_abandoned_read_in_a_worker_thread_closes_its_stream_even_if_it_fails() -> None:
    entered, release, closed = threading.Event(), threading.Event(), threading.Event()

    class Stuck(SyncChunks):
        def __iter__(self) -> Iterator[bytes]:
            yield b"first"
            entered.set()
            assert release.wait(10)
            raise httpx.ReadError("reset")

        def close(self) -> None:
            closed.set()

    async def read() -> None:
        async with client.chat_stream(**HELLO) as stream:
            async for _ in stream:
                pass

    transport = SyncOnly(lambda _: httpx.Response(200, stream=Stuck()))
    async with AsyncClient("k", transport=transport) as client:
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            assert await anyio.to_thread.run_sync(entered.wait, 10)
            group.cancel_scope.cancel()
        assert not closed.is_set()
        release.set()
        assert await anyio.to_thread.run_sync(closed.wait, 10)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_transport_that_cancels_itself_raises_a_connection_error_instead_of_cancelling_the_caller() -> (
    None
):
    async def answer(request: httpx.Request) -> httpx.Response:
        inner = asyncio.ensure_future(anyio.sleep(10))
        inner.cancel()
        await inner
        raise AssertionError("unreachable")

    async with AsyncClient("k", transport=httpx.MockTransport(answer), retry_config=ONCE) as client:
        with pytest.raises(ConnectionError, match="cancelled") as caught:
            await client.health()
        assert caught.value.was_sent
        with pytest.raises(ConnectionError, match="cancelled"):
            await client.chat_stream(**HELLO).text()


async def test_sync_only_transport_leaves_the_applications_worker_threads_free() -> None:
    transport = SyncOnly()
    async with AsyncClient("k", transport=transport) as client, anyio.create_task_group() as group:
        for _ in range(100):
            group.start_soon(lambda: client.chat(**HELLO))
        assert await anyio.to_thread.run_sync(lambda: "free") == "free"


async def test_mock_transport_works_with_sync_and_async_handlers_and_streams() -> None:
    async def async_handler(request: httpx.Request) -> httpx.Response:
        return chat_answer()

    for handler in (chat_answer, async_handler):
        async with AsyncClient("k", transport=httpx.MockTransport(handler)) as client:
            assert (await client.chat(**HELLO)).content == "hello"

    async def async_content() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    for content in ([b"a", b"b"], async_content()):
        transport = httpx.MockTransport(lambda _, content=content: httpx.Response(200, content=content))  # type: ignore[misc]
        async with AsyncClient("k", transport=transport) as client:
            assert await client.chat_stream(**HELLO).text() == "ab"


async def test_mock_transport_handler_receives_a_complete_httpx_request() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/chat"
        assert request.read() == request.content
        assert b"hello" in request.content
        return chat_answer()

    async with AsyncClient("k", transport=httpx.MockTransport(handler)) as client:
        await client.chat(**HELLO)


async def test_httpx2_async_transport_carries_calls_and_streams() -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        assert isinstance(request, httpx2.Request)
        assert b"hello" in request.content
        if b'"stream":true' in request.content:
            return httpx2.Response(200, content=[b"a", b"b"])
        return httpx2.Response(200, json=chat_answer().json(), headers={"x-request-id": "r"})

    async with AsyncClient("k", transport=httpx2.MockTransport(handler)) as client:  # type: ignore[arg-type]
        response = await client.chat(**HELLO)
        assert (response.content, response.meta.request_id) == ("hello", "r")
        assert await client.chat_stream(**HELLO).text() == "ab"


async def test_httpx2_sync_only_transport_works_and_its_errors_are_translated() -> None:
    class Failing(httpx2.BaseTransport):
        closed = False

        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            raise httpx2.ConnectTimeout("too slow")

        def close(self) -> None:
            self.closed = True

    transport = Failing()
    async with AsyncClient("k", transport=transport, retry_config=ONCE) as client:  # type: ignore[arg-type]
        with pytest.raises(TimeoutError) as caught:
            await client.chat(**HELLO)
        assert caught.value.was_sent is False
        assert isinstance(caught.value.__cause__, httpx.ConnectTimeout)
    assert transport.closed


@pytest.mark.parametrize(
    "kind", [httpx.AsyncHTTPTransport, httpx2.AsyncHTTPTransport, httpx.HTTPTransport, None]
)
async def test_own_and_httpx_transports_carry_calls_and_streams(kind: Any) -> None:
    async with RawServer(chat_bytes()) as server:
        transport = None if kind is None else kind()
        async with AsyncClient("k", base_url=server.url, transport=transport) as client:
            for _ in range(3):
                assert (await client.chat(**HELLO)).content == "hello"
            async with client.chat_stream(**HELLO) as stream:
                assert "hello" in await stream.text()


async def read_chat(client: AsyncClient) -> None:
    await client.chat(**HELLO)


async def read_text_stream(client: AsyncClient) -> None:
    async with client.chat_stream(**HELLO) as stream:
        async for _ in stream:
            pass


async def read_half_a_stream(client: AsyncClient) -> None:
    async with client.chat_stream(**HELLO, include_usage=True) as stream:
        await anext(stream)


async def read_event_stream(client: AsyncClient) -> None:
    async with client.completions_stream(**HELLO) as stream:
        async for _ in stream:
            pass


@pytest.mark.proof
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("use", [read_chat, read_text_stream, read_half_a_stream, read_event_stream])
async def test_native_cancellation_at_any_point_loses_no_slot_of_httpxs_pool(use: Any) -> None:
    limits = httpx.Limits(max_connections=2)
    async with LocalGateway() as gateway:
        transport = httpx.AsyncHTTPTransport(limits=limits)
        client = AsyncClient(
            gateway.api_key, base_url=gateway.url, transport=transport, timeout=5, retry_config=ONCE
        )
        async with client:
            before = asyncio.all_tasks()
            completed = 0
            for steps in range(400):
                task = asyncio.create_task(use(client))
                for _ in range(steps % 100):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                completed += not task.cancelled()
            assert completed < 400
            with anyio.fail_after(10):
                for _ in range(4):
                    await use(client)
            assert asyncio.all_tasks() == before


@pytest.mark.parametrize("library", [httpx, httpx2])
@pytest.mark.proof
async def test_calls_cancelled_while_queued_for_httpxs_pool_lose_no_slot(library: Any) -> None:
    """All are cancelled simultaneously, so that each one hands its connection to another cancelled call."""
    async with LocalGateway() as gateway:
        transport = library.AsyncHTTPTransport(limits=library.Limits(max_connections=2))
        client = AsyncClient(
            gateway.api_key, base_url=gateway.url, transport=transport, timeout=5, retry_config=ONCE
        )
        async with client:
            for turns in range(1, 40):
                async with anyio.create_task_group() as group:
                    for _ in range(6):
                        group.start_soon(read_chat, client)
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    group.cancel_scope.cancel()
                pool = transport._pool
                assert not pool._requests
                assert all(connection.is_idle() for connection in pool.connections), (turns, pool)
            with anyio.fail_after(10):
                await read_chat(client)


@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
async def test_race_survives_a_transport_whose_nursery_wraps_its_cancellation_in_a_group() -> None:
    import trio

    class Nested(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            async with trio.open_nursery() as nursery:
                if b"slow" in await request.aread():
                    nursery.start_soon(trio.sleep_forever)
                    await trio.sleep_forever()
            await anyio.lowlevel.checkpoint()
            return chat_answer()

    async with AsyncClient("k", transport=Nested()) as client:
        response = await client.race(models=["gpt-slow", "gpt-4o-mini"], messages="hello")
        assert response.content == "hello"


async def test_connection_error_names_the_unreachable_address_and_the_reason_in_one_error() -> None:
    with anyio.fail_after(10):
        async with AsyncClient("k", base_url="http://127.0.0.1:9", retry_config=ONCE) as client:
            with pytest.raises(ConnectionError, match=r"http://127.0.0.1:9 \(1 attempt\): ") as caught:
                await client.health()
    assert "refused" in str(caught.value).lower() or "Connect call failed" in str(caught.value)
    shown = traceback.format_exception(caught.value)
    assert "".join(shown).count("Traceback") == 1  # how sockets report it adds nothing


def run_in_new_loop(client: AsyncClient, backend: str) -> str:
    async def one_call() -> str:
        return (await client.chat(**HELLO)).content

    return anyio.run(one_call, backend=backend)


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning"
)  # asyncio warns about sockets left open when their loop was closed
async def test_client_works_in_successive_and_simultaneous_event_loops() -> None:
    async with RawServer(chat_bytes()) as server:
        client = AsyncClient("k", base_url=server.url)
        for backend in ("asyncio", "trio", "asyncio", "asyncio", "trio"):
            assert await anyio.to_thread.run_sync(run_in_new_loop, client, backend) == "hello"
        contents: list[str] = []

        async def in_thread(backend: str, client: AsyncClient) -> None:
            contents.append(await anyio.to_thread.run_sync(run_in_new_loop, client, backend))

        async with anyio.create_task_group() as group:
            for backend in ("asyncio", "trio") * 4:
                group.start_soon(in_thread, backend, client)
        assert contents == ["hello"] * 8
        assert len(client._session.carrier.transport._pools.values()) <= 9  # type: ignore[attr-defined]
        assert (await client.chat(**HELLO)).content == "hello"
        await client.aclose()
        del client
        gc.collect()


async def test_per_loop_transport_drops_the_transport_of_an_ended_loop() -> None:
    made: list[httpx.MockTransport] = []

    def make() -> httpx.MockTransport:
        made.append(httpx.MockTransport(chat_answer))
        return made[-1]

    transport = PerLoopTransport(make)
    client = AsyncClient("k", base_url="http://gateway.test", transport=transport)
    for backend in ("asyncio", "trio", "asyncio"):
        assert await anyio.to_thread.run_sync(run_in_new_loop, client, backend) == "hello"
        assert transport._transports.values() == [made[-1]]
    for _ in range(2):
        assert (await client.chat(**HELLO)).content == "hello"
    assert len(made) == 4
    await client.aclose()
    assert not transport._transports.values()


async def test_unused_client_starts_no_thread_and_opens_no_connection() -> None:
    threads = threading.active_count()
    client = AsyncClient("k")
    assert threading.active_count() == threads
    assert repr(client._session.carrier.transport) == "<AnyIOTransport without connections>"


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({}, "http://gateway.test", None),
        ({"HTTP_PROXY": "http://proxy:1"}, "http://gateway.test", "http://proxy:1"),
        ({"HTTP_PROXY": "proxy:1"}, "http://gateway.test", "http://proxy:1"),
        ({"http_proxy": "http://proxy:1"}, "https://gateway.test", None),
        ({"HTTPS_PROXY": "http://proxy:1"}, "https://gateway.test", "http://proxy:1"),
        ({"ALL_PROXY": "http://proxy:1"}, "https://gateway.test", "http://proxy:1"),
        ({"ALL_PROXY": "http://proxy:1", "NO_PROXY": "gateway.test"}, "https://gateway.test", None),
        ({"ALL_PROXY": "http://proxy:1", "NO_PROXY": ".test"}, "https://gateway.test", None),
        ({"ALL_PROXY": "http://proxy:1", "NO_PROXY": "*"}, "https://gateway.test", None),
        ({"ALL_PROXY": "http://proxy:1", "NO_PROXY": "other.test"}, "https://gateway.test", "http://proxy:1"),
        ({"ALL_PROXY": "http://proxy:1", "HTTP_PROXY": "http://proxy:1"}, "http://127.0.0.1:5", None),
        ({"ALL_PROXY": "http://proxy:1"}, "https://LOCALHOST", None),
        ({"ALL_PROXY": "http://proxy:1"}, "http://[::1]:5", None),
        ({"ALL_PROXY": "http://proxy:1"}, "http://api.localhost", None),
        ({"ALL_PROXY": "http://proxy:1"}, "http://127.0.0.1.evil.test", "http://proxy:1"),
    ],
)
async def test_environment_proxy_follows_the_proxy_variables_and_skips_localhost(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], url: str, proxy: str | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert environment_proxy(httpx.URL(url)) == proxy


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        (
            "ALL_PROXY",
            "socks5://me:hunter2@proxy:1",
            "got a SOCKS address, which needs the package socksio: pip install 'httpx[socks]'",
        ),
        ("HTTPS_PROXY", "ftp://me:hunter2@proxy:1", "got no address, or one of an unknown kind"),
        ("https_proxy", "http://me:hunter2/@proxy", "got no address"),
        ("all_proxy", "http://me:hunter2@proxy:99999", "got no address"),
        ("HTTPS_PROXY", "http://", "got no address"),
        ("HTTPS_PROXY", "http://xn--a", "got no address"),
    ],
)
async def test_unusable_environment_proxy_is_rejected_when_the_client_is_constructed(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)  # type: ignore[arg-type]
    monkeypatch.setenv(variable, value)
    for make in (AsyncClient, AsyncAdminClient, Client, AdminClient):
        with pytest.raises(InvalidArgumentError) as caught:
            make("k", base_url="https://gateway.test")
        message = str(caught.value)
        assert message.startswith(f"{variable} must be the address of a proxy for gateway.test, ")
        assert words in message
        assert "http://, https://, socks5:// or socks5h:// and host[:port]" in message
        assert "hunter2" not in message
        make("k", base_url="https://localhost")
        make("k", base_url="https://gateway.test", transport=AnyIOTransport())
        with monkeypatch.context() as patch:
            patch.setenv("NO_PROXY", "gateway.test")
            make("k", base_url="https://gateway.test")


async def test_repr_of_a_threaded_transport_names_the_wrapped_transport() -> None:
    assert "SyncOnly" in repr(ThreadedTransport(SyncOnly()))


async def test_unexpected_error_in_a_worker_thread_reaches_the_caller() -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise ZeroDivisionError

    async with AsyncClient("k", transport=SyncOnly(fail)) as client:
        with pytest.raises(ZeroDivisionError):
            await client.health()
        with pytest.raises((GatewayError, ZeroDivisionError)):
            await client.chat_stream(**HELLO).text()
