"""`tokens_per_minute`: reserved by estimate, settled by the answer."""

import random
from itertools import pairwise
from typing import Any

import anyio
import httpx
import pytest

import omnigate
from omnigate import AsyncClient, Client, MaxWaitError
from omnigate._batch.display import words
from omnigate._batch.pace.address import Address
from omnigate._batch.pace.queue import Flow
from omnigate._batch.pace.tokens import TokenWindow
from omnigate._batch.pace.upstream import Upstream

from ...support.provider import Provider
from ...support.scripted import chat_answer

MODEL = "gpt-4o-mini"

virtual = [pytest.mark.anyio, pytest.mark.virtual_time]


def test_what_fits_into_the_minute_goes_now() -> None:
    window = TokenWindow()
    assert window.ask(5.0, 1_000, 1_000) == 5.0
    window.reserve(5.0, 600)
    assert window.ask(5.5, 400, 1_000) == 5.5
    assert window.ask(5.5, 401, 1_000) == 66.0
    assert window.ask(66.0, 401, 1_000) == 66.0


def test_a_call_waits_only_until_enough_of_the_minute_has_passed() -> None:
    window = TokenWindow()
    for second in range(10):
        window.reserve(second, 100)
    assert window.ask(10.0, 100, 1_000) == 61.0
    assert window.ask(10.0, 250, 1_000) == 63.0
    assert window.ask(10.0, 1_000, 1_000) == 70.0


def test_an_answer_settles_what_was_reserved() -> None:
    window = TokenWindow()
    first = window.reserve(0.0, 900)
    assert window.ask(1.0, 500, 1_000) > 60
    window.settle(first, 100)
    assert window.ask(1.0, 500, 1_000) == 1.0
    window.settle(window.reserve(1.0, 500), 2_000)
    assert window.ask(2.0, 1, 1_000) == 62.0


def test_an_answer_that_comes_after_the_minute_changes_nothing() -> None:
    window = TokenWindow()
    late = window.reserve(0.0, 900)
    assert window.ask(70.0, 900, 1_000) == 70.0
    window.settle(late, 5_000)
    assert window.ask(70.0, 1_000, 1_000) == 70.0


def test_a_call_larger_than_the_limit_goes_alone() -> None:
    window = TokenWindow()
    assert window.ask(0.0, 5_000, 1_000) == 0.0
    window.reserve(0.0, 10)
    assert window.ask(0.0, 5_000, 1_000) == 61.0
    assert window.ask(61.0, 5_000, 1_000) == 61.0
    window.reserve(61.0, 5_000)
    assert window.ask(62.0, 1, 1_000) == 122.0


def test_no_minute_has_more_than_the_limit_and_memory_is_bounded() -> None:
    chance, window, limit = random.Random(7), TokenWindow(), 1_000
    now, sent = 0.0, []
    for _ in range(5_000):
        tokens = chance.randrange(1, 400)
        moment = window.ask(now, tokens, limit)
        now = max(now, moment) + chance.random() / 10
        if window.ask(now, tokens, limit) <= now:
            window.reserve(now, tokens)
            sent.append((now, tokens))
        assert len(window._sums) <= 62
    assert len(sent) > 1_000
    for number, (start, _) in enumerate(sent):
        within = [tokens for at, tokens in sent[number : number + 1_000] if at < start + 60]
        assert sum(within) <= limit


def test_the_estimate_is_the_request_and_max_tokens_or_the_mean_response() -> None:
    window = TokenWindow()
    assert window.estimate(400, 50) == 150
    assert window.estimate(400, None) == 356
    window.answered(20)
    assert window.estimate(400, None) == 120
    assert window.estimate(0, None) == 20


def test_tokens_are_reserved_from_when_a_call_is_sent() -> None:
    now = 0.0
    upstream = Upstream(Address(lambda: now), MODEL)
    flow = Flow(9, is_auto=True, wake=lambda: True, goes_on=lambda: True, tokens_per_minute=1_000)
    slot = upstream.try_enter(flow, now, 900)
    assert slot is not None
    now = 50.0  # it has waited for the rate window
    upstream.sent(slot, now)
    upstream.free(slot)
    assert upstream.ask(flow, 70.0, 900) == 111.0


class Counting(Provider):
    """Bills "tokens=N" of a prompt, after a tenth of a second, and records what it has billed in each minute."""

    def __init__(self, **headers: str) -> None:
        super().__init__(**headers)
        self.models: list[str] = []
        self.cached = False

    async def _answer(self, prompt: str) -> httpx.Response:
        words = dict(word.partition("=")[::2] for word in prompt.split())
        await anyio.sleep(0.1)
        status = words.get("status", words.get("once") if self.prompts.count(prompt) == 1 else None)
        if status is not None:
            return self.error(int(status))
        tokens = int(words.get("tokens", 100))
        usage = {"prompt_tokens": tokens // 2, "completion_tokens": tokens // 2, "total_tokens": tokens}
        answer = chat_answer(content="x", usage=usage, cached=self.cached)
        answer.headers.update(self.headers)
        return answer


def client_of(provider: Provider) -> AsyncClient:
    return AsyncClient("llmg_x", base_url="http://gateway.test", transport=provider, retries=0)


def most_in_a_minute(times: list[float]) -> int:
    return max(sum(start <= time < start + 60 for time in times) for start in times)


class TestBatch:
    pytestmark = virtual

    async def test_a_batch_keeps_to_its_tokens_per_minute(self) -> None:
        provider = Counting()
        items = [{"prompt": f"tokens=100 {n}", "max_tokens": 80} for n in range(45)]
        async with client_of(provider).batch(items, model=MODEL, tokens_per_minute=1_000) as batch:
            assert [outcome.error async for outcome in batch] == [None] * 45
        assert most_in_a_minute(provider.times) <= 10
        assert provider.times[-1] - provider.times[0] < 5 * 61

    async def test_an_answer_that_used_less_lets_the_next_call_go(self) -> None:
        provider = Counting()
        items = [{"prompt": f"tokens=10 {n}", "max_tokens": 900} for n in range(20)]
        async with client_of(provider).batch(items, model=MODEL, tokens_per_minute=1_500) as batch:
            assert len([outcome async for outcome in batch]) == 20
        assert provider.times[-1] - provider.times[0] < 20

    async def test_stats_and_the_display_say_that_the_token_limit_is_waited_for(self) -> None:
        provider, seen = Counting(), []
        items = [f"tokens=600 {n}" for n in range(3)]
        async with client_of(provider).batch(
            items, model=MODEL, tokens_per_minute=1_000, progress=seen.append
        ) as batch:
            assert len([outcome async for outcome in batch]) == 3
        waiting = [stats for stats in seen if stats.waiting_for == "token limit"]
        assert len(waiting) > 100
        assert all(stats.waiting_until is not None for stats in waiting)
        assert "waiting for the tokens of the next minute, " in words(waiting[0])

    async def test_items_larger_than_the_limit_go_alone(self) -> None:
        provider = Counting()
        items = [{"prompt": f"tokens=5000 {n}", "max_tokens": 4_000} for n in range(3)]
        async with client_of(provider).batch(items, model=MODEL, tokens_per_minute=1_000) as batch:
            assert len([outcome async for outcome in batch]) == 3
        assert provider.most_in_flight == 1
        assert all(later - earlier >= 60 for earlier, later in pairwise(provider.times))

    async def test_each_model_has_a_limit_of_its_own(self) -> None:
        provider = Counting()
        items = [{"prompt": "tokens=900", "model": model} for model in ("gpt-4o", "gpt-4o-mini", "gemini")]
        async with client_of(provider).batch(items, tokens_per_minute=1_000) as batch:
            assert len([outcome async for outcome in batch]) == 3
        assert provider.times[-1] - provider.times[0] < 5

    async def test_two_batches_with_the_limit_count_together(self) -> None:
        provider = Counting()
        client = client_of(provider)
        async with anyio.create_task_group() as group:
            for name in ("one", "two"):
                items = [{"prompt": f"tokens=100 {name} {n}", "max_tokens": 80} for n in range(15)]

                async def run(items: Any = items) -> None:
                    await client.batch(items, model=MODEL, tokens_per_minute=1_000).run()

                group.start_soon(run)
        assert len(provider.times) == 30
        assert most_in_a_minute(provider.times) <= 10

    async def test_what_the_provider_never_saw_is_given_back(self) -> None:
        provider = Counting()
        items = [{"prompt": "tokens=900 once=429", "max_tokens": 850}]
        async with client_of(provider).batch(items, model=MODEL, tokens_per_minute=1_000) as batch:
            assert [outcome.error async for outcome in batch] == [None]
        assert 19 <= provider.times[1] - provider.times[0] < 30

    async def test_responses_from_the_gateways_cache_use_no_tokens(self) -> None:
        provider = Counting()
        provider.cached = True
        async with client_of(provider).batch(
            ["tokens=900"] * 20, model=MODEL, tokens_per_minute=1_000
        ) as batch:
            assert len([outcome async for outcome in batch]) == 20
        assert provider.times[-1] - provider.times[0] < 30

    async def test_waiting_for_the_token_limit_is_limited_by_max_wait_seconds(self) -> None:
        items = [{"prompt": "tokens=900", "max_tokens": 850}] * 2
        async with client_of(Counting()).batch(
            items, model=MODEL, tokens_per_minute=1_000, max_wait_seconds=10, ordered=True
        ) as batch:
            first, second = [outcome async for outcome in batch]
        assert first.error is None
        assert isinstance(second.error, MaxWaitError)
        assert second.error.waited_for == "token limit"
        assert "the provider's token limit (tokens_per_minute)" in str(second.error)

    async def test_leaving_the_batch_while_it_waits_gives_all_slots_back(self) -> None:
        client = client_of(Counting())
        with anyio.fail_after(1_000):
            async with client.batch(["tokens=900"] * 5, model=MODEL, tokens_per_minute=1_000) as batch:
                async for _ in batch:
                    break
            await anyio.sleep(61)
            async with client.batch(["tokens=900"], model=MODEL, tokens_per_minute=1_000) as batch:
                assert [outcome.elapsed < 1 async for outcome in batch] == [True]


def test_the_sync_client_takes_tokens_per_minute() -> None:
    with Client("llmg_x", base_url="http://gateway.test", transport=Provider()) as client:
        assert len(client.chat_many(["x"] * 5, model=MODEL, tokens_per_minute=10_000)) == 5


@pytest.mark.parametrize("value", [0, -5, 1.5])
def test_a_wrong_tokens_per_minute_is_refused(value: Any) -> None:
    with pytest.raises(omnigate.InvalidArgumentError) as raised:
        client_of(Provider()).batch([], tokens_per_minute=value)
    assert str(raised.value) == f"tokens_per_minute must be an integer of at least 1, or None, got {value}"
