"""Closing a client in use: calls in flight and waiting calls fail immediately and say why."""

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from omnigate import AsyncClient, AuthError, ClientClosedError, RateLimitError, RetryConfig
from omnigate._transport import AnyIOTransport

from ..support.fake_streams import FakeNetwork
from ..support.scripted import ScriptedTransport, Step, chat_answer, error_answer
from ..support.servers import until

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}
DURING = "the client was closed during the call"
HALF = b"HTTP/1.1 200 OK\r\ncontent-length: 200\r\n\r\nhalf"

Use = Callable[[AsyncClient], Awaitable[Any]]


async def open_stream(client: AsyncClient) -> None:
    async with client.chat_stream(**HELLO):
        pass


def client_over(
    network: FakeNetwork, retries: int, max_connections: int = 10
) -> tuple[AsyncClient, AnyIOTransport]:
    transport = AnyIOTransport(max_connections=max_connections)
    transport._connect = network  # type: ignore[assignment]
    return AsyncClient("k", base_url="http://a.test", transport=transport, retries=retries), transport


async def closed_meanwhile(client: AsyncClient, use: Use, begun: Callable[[], bool]) -> ClientClosedError:
    """Use a client, close it once the use has begun, and return the error, which must take no virtual time."""
    caught: list[ClientClosedError] = []

    async def one() -> None:
        with pytest.raises(ClientClosedError) as error:
            await use(client)
        caught.append(error.value)

    async with anyio.create_task_group() as group:
        group.start_soon(one)
        await until(begun)
        before = anyio.current_time()
        await client.aclose()
    assert anyio.current_time() == before
    return caught[0]


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize(
    "use",
    [lambda c: c.chat(**HELLO), lambda c: c.health(), lambda c: c.health(deadline_seconds=100), open_stream],
    ids=["post", "get", "deadline", "stream"],
)
@pytest.mark.parametrize("answer", [None, HALF[:30]], ids=["no answer", "half a head"])
async def test_closing_the_client_ends_a_call_in_flight_with_an_error_that_says_so(
    use: Use, retries: int, answer: bytes | None
) -> None:
    network = FakeNetwork(answer=lambda _: answer and [answer])
    client, transport = client_over(network, retries)
    error = await closed_meanwhile(client, use, lambda: bool(network.streams and network.streams[0].sends))
    assert str(error) == DURING
    assert isinstance(error.__cause__, httpx.ReadError)
    assert (network.open, transport.stats()["opening"], transport.stats()["in_use"]) == (0, 0, 0)
    assert len(network.streams) == 1


async def read_stream(client: AsyncClient) -> None:
    async with client.chat_stream(**HELLO) as stream:
        async for _ in stream:
            pass


async def run_batch(client: AsyncClient) -> None:
    async with client.batch(["a"], model="gpt-4o-mini") as outcomes:
        async for outcome in outcomes:
            outcome.unwrap()


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("use", [read_stream, run_batch])
async def test_closing_the_client_ends_an_open_stream_or_a_batch_item(use: Use, retries: int) -> None:
    network = FakeNetwork(HALF)
    client, _ = client_over(network, retries)
    error = await closed_meanwhile(
        client,
        use,
        lambda: bool(network.streams and not network.streams[0].incoming and network.streams[0].sends),
    )
    assert str(error) == DURING
    assert network.open == 0
    assert len(network.streams) == 1


@pytest.mark.parametrize("retries", [0, 2])
async def test_closing_the_client_ends_a_call_whose_body_is_arriving(retries: int) -> None:
    network = FakeNetwork(HALF)
    client, _ = client_over(network, retries)
    error = await closed_meanwhile(
        client,
        lambda c: c.chat(**HELLO),
        lambda: bool(network.streams and not network.streams[0].incoming and network.streams[0].sends),
    )
    assert (str(error), error.attempts) == (DURING, 1)
    assert network.open == 0


@pytest.mark.parametrize("use", [lambda c: c.chat(**HELLO), open_stream], ids=["call", "stream"])
async def test_closing_the_client_ends_calls_that_open_or_wait_for_a_connection(use: Use) -> None:
    network = FakeNetwork()
    network.may_connect = anyio.Event()  # never set
    client, transport = client_over(network, retries=2, max_connections=1)
    errors: list[ClientClosedError] = []

    async def one() -> None:
        with pytest.raises(ClientClosedError, match=DURING) as error:
            await use(client)
        errors.append(error.value)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(one)
        await until(lambda: (transport.stats()["opening"], transport.stats()["waiting"]) == (1, 2))
        await client.aclose()
    assert [str(error.__cause__) for error in errors] == ["the transport was closed"] * 3
    assert transport.stats() == {"idle": 0, "in_use": 0, "opening": 0, "waiting": 0, "origins": {}}
    assert network.streams == []


@pytest.mark.parametrize(
    "use",
    [lambda c: c.chat(**HELLO), lambda c: c.chat(**HELLO, deadline_seconds=100), open_stream],
    ids=["call", "deadline", "stream"],
)
async def test_closing_the_client_ends_a_backoff(use: Use) -> None:
    transport = ScriptedTransport(error_answer(429, "Rate limit exceeded", retry_after="50"), chat_answer)
    client = AsyncClient("k", transport=transport)
    error = await closed_meanwhile(client, use, lambda: any(client._session._pauses._ends.values()))
    assert (str(error), error.attempts) == (DURING, 1)
    assert isinstance(error.__cause__, RateLimitError)
    assert len(transport.requests) == 1
    assert not any(client._session._pauses._ends.values())


@pytest.mark.parametrize("use", [lambda c: c.chat(**HELLO), open_stream], ids=["call", "stream"])
@pytest.mark.parametrize(
    "raised", [RuntimeError("pool closed"), KeyError("x"), httpx.PoolTimeout("late")], ids=repr
)
async def test_any_exception_of_a_closed_foreign_transport_becomes_a_client_closed_error(
    use: Use, raised: Exception
) -> None:
    closing = anyio.Event()

    async def fail(_: httpx.Request) -> httpx.Response:
        await closing.wait()
        raise raised

    class Foreign(ScriptedTransport):
        async def aclose(self) -> None:
            closing.set()

    transport = Foreign(fail)
    client = AsyncClient("k", transport=transport, retries=0)
    error = await closed_meanwhile(client, use, lambda: bool(transport.requests))
    assert (str(error), error.__cause__) == (DURING, raised)


async def test_an_error_before_the_client_was_closed_is_not_masked() -> None:
    async def step(request: httpx.Request) -> httpx.Response:
        await client.aclose()
        return error_answer(401, "Invalid API key")(request)

    client = AsyncClient("k", transport=ScriptedTransport(step))
    with pytest.raises(AuthError):
        await client.me()


async def test_a_closed_client_opens_no_stream_created_before() -> None:
    transport = ScriptedTransport(chat_answer)
    client = AsyncClient("k", transport=transport)
    stream = client.chat_stream(**HELLO)
    await client.aclose()
    with pytest.raises(ClientClosedError, match="the client is closed"):
        await stream.text()
    assert transport.requests == []


@pytest.mark.parametrize("other", ["asyncio", "trio"])
async def test_closing_the_client_ends_a_backoff_in_another_event_loop(other: str) -> None:
    steps: list[Step] = [error_answer(429, "Rate limit exceeded", retry_after="50"), chat_answer]
    client = AsyncClient("k", transport=ScriptedTransport(*steps), retry_config=RetryConfig(jitter=0))
    errors: list[BaseException] = []

    def elsewhere() -> None:
        try:
            anyio.run(lambda: client.me(), backend=other)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    while not any(client._session._pauses._ends.values()):
        assert thread.is_alive()
        await anyio.lowlevel.checkpoint()
    await client.aclose()
    thread.join(10)
    assert not thread.is_alive()
    assert [(type(error), str(error)) for error in errors] == [(ClientClosedError, DURING)]
