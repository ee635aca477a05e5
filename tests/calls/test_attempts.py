"""One loop makes the attempts of every kind of call: a call, an item of a batch, a stream's opening."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import httpx
import pytest

from omnigate import AsyncClient, ClientClosedError, RetryConfig, TimeoutError
from omnigate.exceptions import APIError

from ..support.scripted import ScriptedTransport, chat_answer, error_answer
from ..support.servers import until

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}
UNAVAILABLE = error_answer(503, "openai circuit is open", retry_after="50")
UNAVAILABLE_SHORTLY = error_answer(503, "busy")

Use = Callable[..., Awaitable[Any]]


async def chat(client: AsyncClient, **options: Any) -> None:
    await client.chat(**HELLO, **options)


async def item(client: AsyncClient, **options: Any) -> None:
    async with client.batch([HELLO], **options) as batch:
        async for outcome in batch:
            outcome.unwrap()


async def stream(client: AsyncClient, **options: Any) -> None:
    async with client.chat_stream(**HELLO, **options):
        pass


every_kind = pytest.mark.parametrize("use", [chat, item, stream])


def client_over(*steps: Any, **options: Any) -> tuple[AsyncClient, ScriptedTransport]:
    transport = ScriptedTransport(*steps)
    return AsyncClient("k", base_url="http://a.test", transport=transport, **options), transport


@every_kind
async def test_a_retry_that_could_only_start_after_the_deadline_is_not_waited_for(use: Use) -> None:
    client, transport = client_over(UNAVAILABLE)
    before = anyio.current_time()
    with pytest.raises(TimeoutError, match="deadline_seconds=10 ") as caught:
        await use(client, deadline_seconds=10)
    assert anyio.current_time() == before
    assert isinstance(caught.value.__cause__, APIError)
    assert (caught.value.attempts, len(transport.requests)) == (1, 1)


@every_kind
async def test_a_deadline_that_passes_shows_the_last_failure_and_the_wait_it_asked_for(use: Use) -> None:
    client, _ = client_over(error_answer(429, "OpenAI error 429: slow down", retry_after="30"))
    with pytest.raises(TimeoutError) as caught:
        await use(client, deadline_seconds=10)
    assert str(caught.value).endswith(
        "(1 attempt); the last failure: [429] OpenAI error 429: slow down (Retry-After: 30 s)"
    )


@pytest.mark.parametrize("use", [chat, stream])
async def test_a_gateways_own_429_beyond_the_deadline_is_shown(use: Use) -> None:
    client, _ = client_over(error_answer(429, "Rate limit exceeded", retry_after="30"))
    with pytest.raises(TimeoutError, match=r"\[429\] Rate limit exceeded \(Retry-After: 30 s\)"):
        await use(client, deadline_seconds=10)


async def test_a_deadline_that_passes_during_a_later_attempt_shows_the_failure_before() -> None:
    async def silent(_: httpx.Request) -> httpx.Response:
        await anyio.sleep(1_000)
        raise AssertionError

    client, _ = client_over(UNAVAILABLE_SHORTLY, silent)
    with pytest.raises(TimeoutError, match=r"\(2 attempts\); the last failure: \[503\] busy$"):
        await chat(client, deadline_seconds=10)


@every_kind
async def test_a_wait_between_two_attempts_ends_when_the_client_is_closed(use: Use) -> None:
    client, transport = client_over(UNAVAILABLE)
    errors: list[ClientClosedError] = []

    async def one() -> None:
        with pytest.raises(ClientClosedError, match="the client was closed during the call") as caught:
            await use(client)
        errors.append(caught.value)

    before = anyio.current_time()
    async with anyio.create_task_group() as group:
        group.start_soon(one)
        await anyio.sleep(1)  # of the 50 that are to be waited
        await client.aclose()
    assert anyio.current_time() - before == pytest.approx(1)
    assert isinstance(errors[0].__cause__, APIError)
    assert (errors[0].attempts, len(transport.requests)) == (1, 1)


@every_kind
async def test_the_attempts_of_all_kinds_of_calls_are_as_many_and_as_far_apart(use: Use) -> None:
    config = RetryConfig(max_retries=3, backoff_base=1, jitter=0)
    client, transport = client_over(error_answer(500, "oops"), retry_config=config)
    with pytest.raises(APIError, match="oops") as caught:
        await use(client)
    assert caught.value.attempts == 4
    times = [time - transport.times[0] for time in transport.times]
    assert times == [pytest.approx(seconds, abs=0.01) for seconds in (0, 1, 3, 7)]


@every_kind
async def test_an_unexpected_exception_is_raised_unchanged_and_not_retried(use: Use) -> None:
    raised = KeyError("a bug")
    client, transport = client_over(raised)
    with pytest.raises(KeyError) as caught:
        await use(client)
    assert caught.value is raised
    assert len(transport.requests) == 1


async def test_a_hedged_copy_is_not_sent_once_the_client_is_closed() -> None:
    async def answer_late(_: httpx.Request) -> httpx.Response:
        await anyio.sleep(10)
        return chat_answer()

    client, transport = client_over(answer_late)
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: client.chat(**HELLO, hedge_after=5))
        await until(lambda: bool(transport.requests))
        await client.aclose()
    assert len(transport.requests) == 1
