"""Batches on real days, in virtual time: outages, bad items, providers with limits of their own, shared keys."""

import random
from collections import Counter
from typing import Any

import anyio
import httpx
import pytest

import omnigate
from omnigate import AsyncClient, Outcome

from ..support.event_loops import BOTH, backend_of
from ..support.model_gateway import Handler, ModelGateway, Reply

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time, pytest.mark.proof]


every_seed = pytest.mark.parametrize("seed", [1, 2, 3])


@pytest.fixture(params=BOTH)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return backend_of(request)


def client_of(gateway: httpx.AsyncBaseTransport, key: str = "llmg_x") -> AsyncClient:
    return AsyncClient(key, base_url="http://gateway.test", transport=gateway)


def prompts(count: int, name: str = "q") -> list[str]:
    return [f"{name}{number}" for number in range(count)]


def number_of(prompt: str) -> int:
    return int("".join(letter for letter in prompt if letter.isdigit()))


async def run(
    gateway: ModelGateway, items: Any, **options: Any
) -> tuple[list[Outcome], float, omnigate.BatchStats]:
    """Run a batch; return its outcomes, its seconds and its final stats."""
    start = anyio.current_time()
    async with client_of(gateway).batch(items, **{"model": "gpt", **options}) as batch:
        outcomes = [outcome async for outcome in batch]
    return outcomes, anyio.current_time() - start, batch.stats


def failures(outcomes: list[Outcome]) -> Counter[str]:
    return Counter(type(outcome.error).__name__ for outcome in outcomes if outcome.error is not None)


# What limits what


async def test_a_client_with_a_new_key_does_not_wait_for_the_old_keys_window() -> None:
    gateways = {"llmg_a": ModelGateway(lambda *_: Reply(0.5), limit=10)}
    gateways["llmg_b"] = ModelGateway(lambda *_: Reply(0.5), limit=600)

    class Both(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return await gateways[request.headers["x-api-key"]].handle_async_request(request)

    async with client_of(Both(), "llmg_a") as client:
        await client.chat_many(prompts(10), model="gpt")
        client.api_key = "llmg_b"
        start = anyio.current_time()
        await client.chat_many(prompts(100), model="gpt")
        assert anyio.current_time() - start < 15
        client.api_key = "llmg_a"
        await client.chat_many(prompts(10), model="gpt")
    assert gateways["llmg_a"].rejected == gateways["llmg_b"].rejected == 0


@every_seed
async def test_one_model_that_is_overloaded_does_not_slow_another_of_the_same_batch(seed: int) -> None:
    def handle(model: str, prompt: str, gateway: ModelGateway) -> Reply:
        if model == "slow" and gateway.in_flight["slow"] > 2:
            return Reply(0.1, 429, "OpenAI error 429: slow down")
        return Reply(10.0 if model == "slow" else 1.0)

    items = [
        {"model": "fast" if number % 20 else "slow", "messages": f"q{number}"} for number in range(2_000)
    ]
    gateway = ModelGateway(handle, seed=seed)
    outcomes, seconds, _ = await run(gateway, items)
    assert not failures(outcomes)
    last_fast = max(time for time, model, _ in gateway.log if model == "fast")
    assert seconds < 900, "100 slow ones of 10 s, two at a time, take 500 s"
    assert last_fast < seconds - 1


@every_seed
async def test_a_batch_that_comes_later_gets_its_share_of_a_models_slots(seed: int) -> None:
    dice = random.Random(seed)

    def handle(model: str, prompt: str, gateway: ModelGateway) -> Reply:
        return Reply(dice.uniform(1.6, 2.4) * max(1.0, gateway.in_flight[model] / 16) ** 1.5)

    ends = {}
    async with client_of(ModelGateway(handle)) as client:

        async def one(name: str, count: int, delay: float) -> None:
            await anyio.sleep(delay)
            await client.chat_many(prompts(count, name), model="gpt")
            ends[name] = anyio.current_time() - delay

        async with anyio.create_task_group() as group:
            group.start_soon(one, "big", 3_000, 0.0)
            group.start_soon(one, "small", 400, 120.0)
    assert ends["small"] < 140, "with half of sixteen slots it takes about 100 s"


@every_seed
async def test_a_batch_that_retries_all_the_time_leaves_a_healthy_one_its_share(seed: int) -> None:
    def handle(model: str, prompt: str, gateway: ModelGateway) -> Reply:
        return Reply(1.0, 500, "OpenAI error 500: no") if prompt.startswith("bad") else Reply(1.0)

    gateway = ModelGateway(handle, limit=60, seed=seed)
    async with client_of(gateway) as client:
        async with anyio.create_task_group() as group:

            async def one(name: str) -> None:
                async with client.batch(prompts(2_000, name), model="gpt", max_concurrency=64) as batch:
                    async for _ in batch:
                        pass

            group.start_soon(one, "bad")
            group.start_soon(one, "good")
            await anyio.sleep(1_200)
            group.cancel_scope.cancel()
    good = sum(prompt.startswith("good") for _, _, prompt in gateway.log)
    assert 0.4 < good / len(gateway.log) < 0.6


@every_seed
async def test_slots_that_a_batch_frees_are_used_by_another_whose_own_calls_are_long(seed: int) -> None:
    gateway = ModelGateway(lambda model, prompt, gateway: Reply(300.0 if prompt == "b0" else 1.0), seed=seed)
    async with client_of(gateway) as client:
        async with anyio.create_task_group() as group:

            async def one(name: str, count: int, delay: float) -> None:
                await anyio.sleep(delay)
                await client.chat_many(prompts(count, name), model="gpt")

            group.start_soon(one, "a", 1_500, 0.0)
            group.start_soon(one, "b", 60, 4.3)
    sent = sorted(time for time, _, prompt in gateway.log if prompt.startswith("b"))
    assert sent[-1] < 30


# Load or not load


@pytest.mark.parametrize("share", [0.01, 0.02, 0.05])
@pytest.mark.parametrize(("status", "seed"), [(500, 3), (502, 4), (500, 5)])
async def test_items_that_always_fail_do_not_cut_the_concurrency(
    share: float, status: int, seed: int
) -> None:
    dice = random.Random(seed)
    bad = {f"q{number}" for number in range(2_000) if dice.random() < share}

    def handle(model: str, prompt: str, gateway: ModelGateway) -> Reply:
        return Reply(2.0, status, "OpenAI error 500: no") if prompt in bad else Reply(2.0)

    outcomes, seconds, _ = await run(ModelGateway(handle, seed=seed), prompts(2_000))
    assert {
        outcome.request.messages[0].content for outcome in outcomes if outcome.error and outcome.request
    } == bad
    assert seconds < 150, "37 s without bad items"


@pytest.mark.parametrize("retry_after", [None, "1", "10"])
@pytest.mark.parametrize(("rate", "seed"), [(5, 1), (5, 2), (20, 3), (20, 4), (100, 5)])
async def test_a_proxys_429_slows_a_batch_and_fails_no_item(
    rate: int, retry_after: str | None, seed: int
) -> None:
    tokens, at = float(rate), 0.0

    def handle(model: str, prompt: str, gateway: ModelGateway) -> Reply:
        nonlocal tokens, at
        tokens, at = min(float(rate), tokens + (gateway.now - at) * rate), gateway.now
        if tokens < 1:
            headers = {"content-type": "text/html"} | ({"retry-after": retry_after} if retry_after else {})
            return Reply(0.0, 429, b"<html><title>429 Too Many Requests</title></html>", headers)
        tokens -= 1
        return Reply(1.0)

    outcomes, seconds, stats = await run(ModelGateway(handle, seed=seed), prompts(rate * 60))
    assert not failures(outcomes)
    assert seconds < 100, "60 s at the proxy's rate"
    assert stats.rejections < 0.15 * len(outcomes)


@every_seed
@pytest.mark.parametrize("status", [429, 503])
async def test_concurrency_recovers_within_a_minute_of_the_end_of_sustained_trouble(
    status: int, seed: int
) -> None:
    dice = random.Random(seed)

    def handle(model: str, prompt: str, gateway: ModelGateway) -> Reply:
        if 200 <= gateway.now < 400 and dice.random() < 0.5:
            return Reply(0.2, status, "OpenAI error: not now")
        return Reply(2.0 * max(1.0, gateway.in_flight[model] / 24) ** 1.5)

    limits = {}
    async with client_of(ModelGateway(handle, seed=seed)).batch(iter(prompts(100_000)), model="gpt") as batch:
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                for second in (199, 460):
                    await anyio.sleep(second - anyio.current_time())
                    limits[second] = batch.stats.concurrency_limits["gpt"]
                group.cancel_scope.cancel()

            group.start_soon(watch)
            async for outcome in batch:
                assert outcome.error is None or status == 503
    assert limits[460] >= 0.5 * limits[199]


# Below one at a time


@pytest.mark.parametrize("options", [{}, {"max_concurrency": 16}])
@every_seed
async def test_a_provider_of_20_a_minute_loses_no_item_of_300(options: dict[str, Any], seed: int) -> None:
    counts: Counter[int] = Counter()

    def handle(model: str, prompt: str, gateway: ModelGateway) -> Reply:
        counts[int(gateway.now // 60)] += 1
        if counts[int(gateway.now // 60)] > 20:
            return Reply(0.1, 429, "OpenAI error 429: Rate limit reached")
        return Reply(1.0)

    outcomes, seconds, stats = await run(ModelGateway(handle, seed=seed), prompts(300), **options)
    assert not failures(outcomes)
    assert seconds < 30 * 60, "15 minutes at the provider's rate"
    assert stats.rejections < 300


# Outages


def refused(start: float, seconds: float) -> Handler:
    def handle(model: str, prompt: str, gateway: ModelGateway) -> Reply:
        if start <= gateway.now < start + seconds:
            raise httpx.ConnectError("connection refused")
        return Reply(1.0)

    return handle


def circuit(start: float, seconds: float) -> Handler:
    """A provider that is down behind the gateway's own breaker: five failures, then 30 s, then one trial."""
    failed, opened = 0, -1.0

    def handle(model: str, prompt: str, gateway: ModelGateway) -> Reply:
        nonlocal failed, opened
        if gateway.now < opened:
            return Reply(0.0, 503, "openai circuit is open")
        if start <= gateway.now < start + seconds:
            failed += 1
            if failed >= 5:
                opened = gateway.now + 30
            return Reply(1.0, 502, "OpenAI request failed: ")
        failed = 0
        return Reply(1.0)

    return handle


def page(start: float, seconds: float) -> Handler:
    def handle(model: str, prompt: str, gateway: ModelGateway) -> Reply:
        if start <= gateway.now < start + seconds:
            return Reply(0.01, 503, b"<html><title>503 Service Unavailable</title></html>")
        return Reply(1.0)

    return handle


@pytest.mark.parametrize("outage", [refused, circuit, page])
@pytest.mark.parametrize("seconds", [10, 60])
@pytest.mark.parametrize(
    ("max_concurrency", "seed"), [("auto", 1), ("auto", 2), ("auto", 3), (64, 4), (64, 5), (1, 6)]
)
async def test_an_outage_loses_no_item_and_ends_soon_after_its_end(
    outage: Any, seconds: int, max_concurrency: Any, seed: int
) -> None:
    count = 60 if max_concurrency == 1 else 1_200
    gateway = ModelGateway(outage(20, seconds), limit=600, seed=seed)
    outcomes, _, _ = await run(gateway, prompts(count), max_concurrency=max_concurrency)
    assert not failures(outcomes)
    meanwhile = sum(22 <= time < 20 + seconds for time, _, _ in gateway.log)
    assert meanwhile < 150, "one probe at a time"
    assert min(time for time, _, _ in gateway.log if time >= 20 + seconds) < 20 + seconds + 31
    assert gateway.rejected <= 2


@every_seed
@pytest.mark.parametrize("outage", [refused, circuit])
async def test_calls_that_began_before_an_outage_do_not_let_others_try_again(outage: Any, seed: int) -> None:
    handle = outage(50, 60)

    def handle_slowly(model: str, prompt: str, gateway: ModelGateway) -> Reply:
        reply: Reply = handle(model, prompt, gateway)
        return reply if reply.status != 200 else reply._replace(seconds=20.0 * reply.seconds)

    gateway = ModelGateway(handle_slowly, seed=seed)
    outcomes, _, _ = await run(gateway, prompts(600), max_concurrency=100)
    assert not failures(outcomes)
    assert sum(55 <= time < 110 for time, _, _ in gateway.log) < 20, "one probe at a time"


@every_seed
async def test_a_gateway_that_is_down_when_a_batch_begins_is_waited_for(seed: int) -> None:
    outcomes, seconds, _ = await run(ModelGateway(refused(0, 45), seed=seed), prompts(100))
    assert not failures(outcomes)
    assert 45 < seconds < 90


@every_seed
async def test_an_outage_of_one_model_does_not_hold_up_another(seed: int) -> None:
    def handle(model: str, prompt: str, gateway: ModelGateway) -> Reply:
        if model == "down" and gateway.now < 300:
            return Reply(0.0, 503, "anthropic circuit is open")
        return Reply(1.0)

    items = [{"model": ("up", "down")[number % 2], "messages": f"q{number}"} for number in range(100)]
    gateway = ModelGateway(handle, seed=seed)
    outcomes, seconds, _ = await run(gateway, items)
    assert not failures(outcomes)
    assert max(time for time, model, _ in gateway.log if model == "up") < 60
    assert 300 < seconds < 360


@pytest.mark.parametrize(
    ("reply", "error", "waited_for"),
    [
        (Reply(0.1, 503, "openai circuit is open"), omnigate.ProviderError, "outage"),
        (Reply(0.1, 429, "OpenAI error 429: quota"), omnigate.ProviderRateLimitError, "the provider"),
        (None, omnigate.ConnectionError, "outage"),
    ],
)
async def test_an_item_fails_with_what_it_waited_for_after_max_wait_seconds(
    reply: Reply | None, error: type[Exception], waited_for: str
) -> None:
    def handle(model: str, prompt: str, gateway: ModelGateway) -> Reply:
        if reply is None:
            raise httpx.ConnectError("connection refused")
        return reply

    gateway = ModelGateway(handle)
    outcomes, seconds, _ = await run(gateway, prompts(3), max_wait_seconds=600)
    assert {type(outcome.error) for outcome in outcomes} <= {error, omnigate.MaxWaitError}
    sent = [outcome.error for outcome in outcomes if isinstance(outcome.error, error)]
    assert sent
    assert all(waited_for in note for failure in sent for note in failure.__notes__[-1:])
    assert 500 < seconds < 700
    assert len(gateway.log) < 200


@every_seed
async def test_a_429_that_never_ends_is_sent_seldom(seed: int) -> None:
    gateway = ModelGateway(lambda *_: Reply(0.05, 429, "OpenAI error 429: quota"), seed=seed)
    outcomes, seconds, _ = await run(gateway, prompts(30), max_concurrency=8)
    assert failures(outcomes).keys() <= {"ProviderRateLimitError", "MaxWaitError"}
    assert 3_000 < seconds < 4_000
    assert len(gateway.log) < 1_000


async def test_a_batch_that_waits_only_shortly_ends_while_another_waits_for_the_window() -> None:
    gateway = ModelGateway(lambda *_: Reply(0.1), limit=10)
    results: dict[str, list[Outcome]] = {}
    async with client_of(gateway) as client:

        async def one(name: str, delay: float, **options: Any) -> None:
            await anyio.sleep(delay)
            async with client.batch(prompts(15, name), model="gpt", **options) as batch:
                results[name] = [outcome async for outcome in batch]

        async with anyio.create_task_group() as group:
            group.start_soon(one, "patient", 0.0)
            group.start_soon(lambda: one("hasty", 5.0, max_wait_seconds=10))
    assert not failures(results["patient"])
    assert failures(results["hasty"]).keys() == {"MaxWaitError"}
    error = next(outcome.error for outcome in results["hasty"])
    assert isinstance(error, omnigate.MaxWaitError)
    assert error.waited_for == "rate window"


# What a first failure says


@pytest.mark.parametrize(
    "first", [Reply(0.05, 400, "No anthropic key configured"), Reply(1.0, 502, "OpenAI request failed: ")]
)
@every_seed
async def test_a_first_call_that_fails_releases_no_burst(first: Reply, seed: int) -> None:
    calls = 0

    def handle(model: str, prompt: str, gateway: ModelGateway) -> Reply:
        nonlocal calls
        calls += 1
        return first if calls == 1 else Reply(1.0)

    gateway = ModelGateway(handle, limit=60, seed=seed)
    outcomes, _, _ = await run(gateway, prompts(100), max_concurrency=256)
    assert gateway.rejected == 0
    assert len(outcomes) == 100


# To be seen


async def test_a_batch_logs_its_begin_its_end_its_closed_gate_and_its_concurrency(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", logger="omnigate"):
        await run(ModelGateway(refused(5, 20)), prompts(400))
    lines = "\n".join(record.getMessage() for record in caplog.records)
    assert "batch: began, max_concurrency='auto'" in lines
    assert "batch: concurrency for model 'gpt' changed from 8 to 16" in lines
    assert "batch: closed the gate for the gateway: Could not reach the gateway" in lines
    assert "next probe at " in lines
    assert "batch: opened the gate for the gateway again" in lines
    assert "batch: ended: 400 done" in lines
    assert "llmg_x" not in lines


async def test_the_stats_say_what_a_batch_waits_for_and_its_limits() -> None:
    def handle(model: str, prompt: str, gateway: ModelGateway) -> Reply:
        if 100 <= gateway.now < 150:
            raise httpx.ConnectError("connection refused")
        if 200 <= gateway.now < 260:
            return Reply(0.1, 429, "OpenAI error 429: slow down")
        return Reply(3.0)

    seen: dict[int, omnigate.BatchStats] = {}
    gateway = ModelGateway(handle, limit=300)
    async with client_of(gateway).batch(prompts(3_000), model="gpt", max_concurrency=64) as batch:
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                for second in (1, 40, 130, 250):
                    await anyio.sleep(second - anyio.current_time())
                    seen[second] = batch.stats
                group.cancel_scope.cancel()

            group.start_soon(watch)
            async for _ in batch:
                pass
    assert seen[40].waiting_for == "rate window"
    assert seen[130].waiting_for == "outage"
    assert seen[250].waiting_for == "provider"
    assert all(seen[second].waiting_until is not None for second in (40, 250))
    assert seen[250].rejections > 0
    assert seen[250].retries > 0
    assert 0 < seen[250].concurrency_limits["gpt"] <= 1
    assert seen[40].concurrency_limits["gpt"] >= 8


# Latencies that are not load


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["sorted", "reversed", "two kinds"])
async def test_latencies_that_differ_by_prompt_do_not_hold_the_concurrency_down(kind: str, seed: int) -> None:
    dice, count = random.Random(seed), 3_000

    def handle(model: str, prompt: str, gateway: ModelGateway) -> Reply:
        place = number_of(prompt) / count
        if kind == "two kinds":
            return Reply(30.0 if dice.random() < 0.1 else 0.5)
        return Reply((0.5 + 10 * (place if kind == "sorted" else 1 - place)) * dice.lognormvariate(0, 0.3))

    _, seconds, _ = await run(ModelGateway(handle), prompts(count))
    assert seconds < {"sorted": 200, "reversed": 320, "two kinds": 150}[kind]


@pytest.mark.parametrize("seed", [2, 4, 5])
async def test_a_few_long_calls_among_short_ones_do_not_keep_the_concurrency_from_growing(seed: int) -> None:
    dice = random.Random(seed)
    gateway = ModelGateway(lambda *_: Reply(30.0 if dice.random() < 0.3 else 0.5))
    _, seconds, _ = await run(gateway, prompts(6_000))
    assert seconds < 350, (
        "seven times doubled, once per long call, it takes 210 s until the limit is at its highest"
    )
