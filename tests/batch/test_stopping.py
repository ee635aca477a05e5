"""What ends a batch and what does not: stop_on, waits that are too long, cancellations that are not meant for it."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from omnigate import (
    AsyncClient,
    AuthError,
    GatewayError,
    Outcome,
    RateLimitError,
    RetryConfig,
)

from ..support.provider import Provider

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

MODEL = "gpt-4o-mini"


class Limiting(Provider):
    """Answers the first calls with the gateway's own 429, with these headers each."""

    def __init__(self, *rejections: dict[str, str]) -> None:
        super().__init__()
        self._rejections = list(rejections)

    async def _answer(self, prompt: str) -> httpx.Response:
        if self._rejections:
            await anyio.lowlevel.checkpoint()
            headers = self._rejections.pop(0)
            return httpx.Response(429, json={"detail": "Rate limit exceeded"}, headers=headers)
        return await super()._answer(prompt)


def client_of(provider: httpx.AsyncBaseTransport, **arguments: Any) -> AsyncClient:
    arguments.setdefault("retry_config", RetryConfig(jitter=0))
    return AsyncClient("llmg_x", base_url="http://gateway.test", transport=provider, **arguments)


# The gateway's own 429


async def test_a_wait_that_is_too_long_ends_its_batch_and_holds_back_no_other() -> None:
    provider = Limiting({"retry-after": "7200"}, {"retry-after": "7300"})
    client = client_of(provider)
    for seconds in (7_200, 7_300):
        with pytest.raises(RateLimitError) as raised:
            async with client.batch(["a"], model=MODEL) as batch:
                async for _ in batch:
                    pass
        assert raised.value.retry_after == seconds
        assert batch.stats.waiting_until is None
    with anyio.fail_after(5):
        assert len(await client.chat_many(["b", "c"], model=MODEL)) == 2
    assert provider.prompts == ["a", "a", "b", "c"]
    assert anyio.current_time() - provider.times[0] == 0


async def test_a_wait_that_is_too_long_for_one_batch_is_not_imposed_on_another_by_it() -> None:
    provider = Limiting({"retry-after": "30"}, {"retry-after": "40"})
    client = client_of(provider)
    with pytest.raises(RateLimitError):
        await client.chat_many(["a"], model=MODEL, max_wait_seconds=10)
    assert len(await client.chat_many(["b"], model=MODEL)) == 1
    assert provider.times[1] == provider.times[0]
    assert 40 <= provider.times[2] - provider.times[1] < 41


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 60),
        ({"retry-after": "-5"}, 60),
        ({"retry-after": "soon"}, 60),
        ({"retry-after": "99999999999"}, 60),
        ({"x-ratelimit-limit": "60", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "17"}, 17),
        ({"retry-after": "-5", "x-ratelimit-reset": "17"}, 17),
        ({"x-ratelimit-reset": "4000"}, 60),
    ],
)
async def test_a_429_that_does_not_say_how_long_is_waited_out_and_uses_up_no_retries(
    headers: dict[str, str], seconds: float
) -> None:
    provider = Limiting(headers, headers, headers, headers)
    async with client_of(provider, retries=0, retry_config=None).batch(["a"], model=MODEL) as batch:
        outcomes = [outcome async for outcome in batch]
    assert [outcome.error for outcome in outcomes] == [None]
    assert outcomes[0].attempts == 5
    waits = [later - earlier for earlier, later in zip(provider.times, provider.times[1:], strict=False)]
    assert all(seconds <= wait < seconds + 2 for wait in waits), waits


async def test_a_429_that_does_not_say_how_long_is_too_long_where_a_window_is() -> None:
    with pytest.raises(RateLimitError):
        await client_of(Limiting({})).chat_many(["a"], model=MODEL, max_wait_seconds=59)


# stop_on


class Asked:
    """A stop_on that notes what it is asked about."""

    def __init__(self, answer: Callable[[GatewayError], bool] = lambda error: False) -> None:
        self.errors: list[GatewayError] = []
        self._answer = answer

    def __call__(self, error: GatewayError) -> bool:
        self.errors.append(error)
        return self._answer(error)


async def test_a_callable_is_asked_once_about_each_failure_that_ends_an_item() -> None:
    asked = Asked()
    items: list[Any] = ["a", "status=400", "once=500 b", 7, "once=429 c", "status=401"]
    async with client_of(Provider()).batch(items, model=MODEL, stop_on=asked) as batch:
        outcomes = [outcome async for outcome in batch]
    failed = [outcome.error for outcome in outcomes if outcome.error is not None]
    assert asked.errors == failed
    assert {outcome.index for outcome in outcomes if outcome.error is not None} == {1, 3, 5}


async def test_a_callable_is_asked_once_about_the_failure_that_it_stops_for() -> None:
    asked = Asked(lambda error: True)
    with pytest.raises(AuthError) as raised:
        async with client_of(Provider()).batch(["status=401"], model=MODEL, stop_on=asked) as batch:
            async for _ in batch:
                pass
    assert asked.errors == [raised.value]


@pytest.mark.parametrize("headers", [{"retry-after": "0"}, {}])
async def test_a_callable_is_not_asked_about_a_429_that_is_waited_out(headers: dict[str, str]) -> None:
    asked = Asked(lambda error: True)
    async with client_of(Limiting(headers, headers)).batch(["a"], model=MODEL, stop_on=asked) as batch:
        assert [outcome.error async for outcome in batch] == [None]
    assert asked.errors == []


async def test_a_wait_that_is_too_long_ends_the_batch_whatever_a_callable_would_say() -> None:
    asked = Asked()
    seen: list[Outcome] = []
    with pytest.raises(RateLimitError) as raised:
        async with client_of(Limiting({"retry-after": "7200"})).batch(
            ["a"], model=MODEL, stop_on=asked
        ) as batch:
            async for outcome in batch:
                seen.append(outcome)
    assert [outcome.error for outcome in seen] == [raised.value]
    assert asked.errors == []


@pytest.mark.parametrize("kind", [RateLimitError, (AuthError, RateLimitError), GatewayError])
async def test_types_end_the_batch_also_at_a_429_that_could_be_waited_out(kind: Any) -> None:
    provider = Provider()
    with pytest.raises(RateLimitError):
        async with client_of(provider).batch(["once=429 a", "b"], model=MODEL, stop_on=kind) as batch:
            assert [outcome.index async for outcome in batch] == [0]
    assert provider.prompts == ["once=429 a"]


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_stop_on_that_raises_ends_the_batch_after_the_outcome_was_kept(
    ordered: bool, tmp_path: Path
) -> None:
    journal = tmp_path / "journal.jsonl"

    def broken(error: GatewayError) -> bool:
        raise LookupError("broken stop_on")

    seen: list[Outcome] = []
    with pytest.raises(LookupError, match="broken stop_on"):
        async with client_of(Provider()).batch(
            ["a", "status=400", "b"],
            model=MODEL,
            stop_on=broken,
            max_concurrency=1,
            journal=journal,
            ordered=ordered,
        ) as batch:
            async for outcome in batch:
                seen.append(outcome)
    assert [outcome.index for outcome in seen] == [0, 1]
    assert seen[1].error is not None
    assert batch.stats.failed == 1
    assert [json.loads(line)["custom_id"] for line in journal.read_bytes().splitlines()] == ["0", "1"]


# Nothing is sent once the batch stops


async def test_a_call_that_waits_for_the_first_one_is_not_sent_if_that_one_stops_the_batch() -> None:
    provider = Provider()
    client = client_of(provider)
    with pytest.raises(AuthError):
        async with client.batch(["status=401", "b", "c"], model=MODEL) as batch:
            assert [outcome.index async for outcome in batch] == [0]
    assert provider.prompts == ["status=401"]
    with anyio.fail_after(5):  # what it had passed the gate with was given back
        assert len(await client.chat_many(["d", "e"], model=MODEL)) == 2


async def test_an_item_that_comes_just_when_the_batch_stops_is_not_sent() -> None:
    provider = Provider()
    arrived = anyio.Event()

    async def source() -> AsyncIterator[str]:
        yield "first"
        yield "sleep=1 status=401"
        await arrived.wait()
        yield "late"

    def stop_on(error: GatewayError) -> bool:
        arrived.set()
        return True

    with pytest.raises(AuthError):
        async with client_of(provider).batch(source(), model=MODEL, stop_on=stop_on) as batch:
            assert [outcome.index async for outcome in batch] == [0, 1]
    assert provider.prompts == ["first", "sleep=1 status=401"]


async def test_a_backoff_that_ends_just_when_the_batch_stops_is_not_followed_by_a_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider = Provider()
    over = anyio.Event()
    sleep = anyio.sleep

    async def sleep_or_wait(seconds: float) -> None:
        await (over.wait() if seconds == 77 else sleep(seconds))

    def stop_on(error: GatewayError) -> bool:
        over.set()
        return True

    monkeypatch.setattr(anyio, "sleep", sleep_or_wait)
    items = ["first", "sleep=1 status=401", "sleep=0.5 once=500"]
    config = RetryConfig(backoff_base=77, backoff_max=77, jitter=0)
    with pytest.raises(AuthError):
        async with client_of(provider, retry_config=config).batch(
            items, model=MODEL, stop_on=stop_on
        ) as batch:
            assert [outcome.index async for outcome in batch] == [0, 1]
    assert sorted(provider.prompts) == sorted(items)
