"""Connecting: one look-up for many, addresses raced, zones, and what is said when no more can be opened."""

import errno
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from omnigate import AsyncClient, ConnectionError, TimeoutError
from omnigate._transport import sockets
from omnigate._transport.anyio_transport import AnyIOTransport
from omnigate._transport.connector import _interleaved

from ..support.raw_server import chat_bytes
from ..support.servers import OK, open_sockets, serving, until

pytestmark = pytest.mark.anyio

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}


async def get(transport: AnyIOTransport, url: str) -> bytes:
    response = await transport.handle_async_request(httpx.Request("GET", url))
    return await response.aread()


class Names:
    """Resolves every name to 127.0.0.1, when it is allowed to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.may_answer = anyio.Event()
        self.error: OSError | None = None
        monkeypatch.setattr(anyio, "getaddrinfo", self)

    async def __call__(self, host: str, port: int, **_: object) -> list[Any]:
        self.asked.append(host)
        await self.may_answer.wait()
        await anyio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]


async def test_simultaneous_lookups_of_one_name_share_one_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    async with serving() as server:
        transport = AnyIOTransport()
        async with anyio.create_task_group() as group:
            for host in ("a.test", "b.test") * 20:
                group.start_soon(get, transport, f"http://{host}:{server.port}/")
            await until(lambda: len(names.asked) == 2)
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            names.may_answer.set()
        assert sorted(names.asked) == ["a.test", "b.test"]
        assert server.accepted == 40
        (lookups,) = transport._connect._lookups.values()
        assert lookups == {}  # nothing is remembered
        await transport.aclose()


async def test_name_is_resolved_anew_for_each_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    names.may_answer.set()
    async with serving(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok") as server:
        transport = AnyIOTransport()
        for _ in range(3):
            await get(transport, f"http://a.test:{server.port}/")
        assert names.asked == ["a.test"] * 3
        await transport.aclose()


async def test_lookup_is_taken_over_when_the_call_that_began_it_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = Names(monkeypatch)
    async with serving() as server:
        transport = AnyIOTransport()
        url = f"http://a.test:{server.port}/"
        scope = anyio.CancelScope()

        async def first() -> None:
            with scope:
                await get(transport, url)

        async with anyio.create_task_group() as group:
            group.start_soon(first)
            await until(lambda: len(names.asked) == 1)
            for _ in range(5):
                group.start_soon(get, transport, url)
            await until(lambda: transport.stats()["opening"] == 6)
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            scope.cancel()
            await until(lambda: len(names.asked) == 2)
            names.may_answer.set()
        assert names.asked == ["a.test"] * 2
        assert server.accepted == 5
        await transport.aclose()


async def test_failed_lookup_fails_each_call_that_waits_for_it_with_an_error_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = Names(monkeypatch)
    names.error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    errors: list[BaseException | None] = []

    async def one(transport: AnyIOTransport) -> None:
        with pytest.raises(httpx.ConnectError, match=r"a\.test:80: .*Name or service not known") as caught:
            await get(transport, "http://a.test/")
        errors.append(caught.value.__context__)

    transport = AnyIOTransport()
    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(one, transport)
        await until(lambda: transport.stats()["opening"] == 4)
        names.may_answer.set()
    assert len({id(error) for error in errors}) == 4
    assert names.asked == ["a.test"]


async def test_host_that_is_no_name_raises_a_connect_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise UnicodeError("label empty or too long")

    monkeypatch.setattr(anyio, "getaddrinfo", refuse)
    with pytest.raises(httpx.ConnectError, match="not the name of a host: label empty or too long"):
        await get(AnyIOTransport(), "http://a..test/")


@pytest.mark.parametrize(
    ("found", "tried"),
    [
        ([], []),
        ([(6, "a"), (6, "b"), (4, "c"), (4, "d"), (4, "e")], ["a", "c", "b", "d", "e"]),
        ([(4, "c"), (4, "c"), (6, "a")], ["c", "a"]),
    ],
)
async def test_addresses_are_tried_with_their_families_in_turns(
    found: list[tuple[int, str]], tried: list[str]
) -> None:
    assert _interleaved(found) == tried


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def resolve_to(*found: str) -> None:
        async def answer(host: str, port: int, **_: object) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

        monkeypatch.setattr(anyio, "getaddrinfo", answer)

    return resolve_to


async def test_all_addresses_of_a_host_that_refuse_are_named(addresses: Callable[..., None]) -> None:
    async with serving() as server:
        pass
    addresses("127.0.0.1", "127.0.0.2")
    with pytest.raises(httpx.ConnectError, match="127.0.0.1.*127.0.0.2|efused"):
        await get(AnyIOTransport(), f"http://a.test:{server.port}/")


async def test_second_address_is_tried_while_the_first_is_silent(
    addresses: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sockets._connect_to
    cancelled: list[str] = []

    async def slow(host: str, port: int) -> Any:
        if host == "127.0.0.1":
            return await connect(host, port)
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(host)

    monkeypatch.setattr(sockets, "_connect_to", slow)
    monkeypatch.setattr("omnigate._transport.sockets._NEXT_ADDRESS_SECONDS", 0.01)
    addresses("192.0.2.1", "192.0.2.2", "127.0.0.1")
    before = open_sockets()
    async with serving() as server:
        transport = AnyIOTransport()
        with anyio.fail_after(5):
            assert await get(transport, f"http://a.test:{server.port}/") == OK[-2:]
        assert sorted(cancelled) == ["192.0.2.1", "192.0.2.2"]
        await transport.aclose()
    await until(lambda: open_sockets() == before)


def link_local() -> str | None:
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        return None
    for raw, _, _, scope, _, name in map(str.split, lines):
        if scope == "20":
            return f"{socket.inet_ntop(socket.AF_INET6, bytes.fromhex(raw))}%{name}"
    return None


@pytest.mark.skipif(link_local() is None, reason="needs an IPv6 address with a zone")
@pytest.mark.parametrize("sign", ["%25", "%"], ids=["encoded", "bare"])
@pytest.mark.filterwarnings("ignore:the key will be sent")
async def test_zone_of_an_ipv6_address_chooses_the_interface_and_is_not_sent(sign: str) -> None:
    address = link_local()
    assert address is not None
    async with serving(chat_bytes(), host=address) as server:
        host = address.replace("%", sign)
        async with AsyncClient("k", base_url=f"http://[{host}]:{server.port}") as client:
            assert (await client.chat(**HELLO)).content == "hello"
        async with httpx.AsyncClient(transport=AnyIOTransport()) as other:
            await other.get(f"http://[{host}]:{server.port}/")
        for received in server.received:
            assert received.header("host") == f"[{address.partition('%')[0]}]:{server.port}"
        assert len(server.received) == 2


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open no more files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("host", ["127.0.0.1", "gateway.test"])
@pytest.mark.filterwarnings("ignore:the key will be sent")
async def test_too_many_open_files_are_the_stated_reason_of_a_failed_call(host: str) -> None:
    async with AsyncClient("k", base_url=f"http://{host}:9", retries=0) as client:
        with pytest.raises(ConnectionError) as caught, no_more_files():
            await client.chat(**HELLO)
    error = caught.value
    assert error.reason == (
        "too many open files in this process (the limit is 0: `ulimit -n`); "
        "raise the limit, or lower max_connections"
    )
    assert (error.was_sent, error.is_permanent) == (False, False)


async def test_too_many_open_files_are_recognised_in_another_transports_error() -> None:
    class Full(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            try:
                raise OSError("All attempts failed") from ExceptionGroup("", [OSError(errno.ENFILE, "full")])
            except OSError as error:
                raise httpx.ConnectError("All attempts failed") from error

    async with AsyncClient("k", base_url="http://127.0.0.1:1", transport=Full(), retries=0) as client:
        with pytest.raises(ConnectionError, match="too many open files in the whole system"):
            await client.chat(**HELLO)


@pytest.mark.virtual_time
async def test_wait_for_a_connection_is_named_when_it_times_out() -> None:
    async with serving(lambda peer: peer.closed()) as server:
        transport = AnyIOTransport(max_connections=1)
        async with AsyncClient(
            "k", base_url=server.url, transport=transport, retries=0, timeout=httpx.Timeout(None, pool=3)
        ) as client:
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: client.chat(**HELLO))
                await until(lambda: transport.stats()["in_use"] == 1)
                with pytest.raises(
                    TimeoutError,
                    match=r"no connection became free within 3 s: 1 were in use \(max_connections\)",
                ):
                    await client.chat(**HELLO)
                group.cancel_scope.cancel()


@pytest.mark.virtual_time
async def test_wait_for_a_connection_leaves_the_whole_timeout_to_the_answer() -> None:
    """Four calls of 0.7 s on one connection with a timeout of 1 s would be impossible if the waits counted."""

    async def slow(peer: Any) -> None:
        while True:
            await peer.request()
            await anyio.sleep(0.7)
            await peer.send(chat_bytes())

    async with serving(slow) as server:
        transport = AnyIOTransport(max_connections=1)
        timeout = httpx.Timeout(1.0, pool=10.0)
        async with AsyncClient(
            "k", base_url=server.url, transport=transport, retries=0, timeout=timeout
        ) as client:
            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(lambda: client.chat(**HELLO))
        assert (server.accepted, transport.stats()["waiting"]) == (1, 0)
