"""`dedupe=True`: equal requests are called once, and every item gets its outcome."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import pytest

import omnigate
from omnigate import APIError, AsyncClient, AuthError, BatchLimitError, Client, Outcome, TooManyFailuresError

from ..support.provider import Provider
from ..support.scripted import chat_answer

MODEL = "gpt-4o-mini"

virtual = [pytest.mark.anyio, pytest.mark.virtual_time]


class Slow(Provider):
    """Answers after a second, for 0.25 USD; "status=N" in a prompt is an error."""

    async def _answer(self, prompt: str) -> httpx.Response:
        words = dict(word.partition("=")[::2] for word in prompt.split())
        await anyio.sleep(1)
        if "status" in words:
            return self.error(int(words["status"]))
        content = f'{{"name": "{prompt}"}}'
        return chat_answer(content=content, cost_usd=0.25)


def client_of(provider: Provider) -> AsyncClient:
    return AsyncClient("llmg_x", base_url="http://gateway.test", transport=provider, retries=0)


async def run(provider: Provider, items: Any, **arguments: Any) -> tuple[list[Outcome], omnigate.BatchStats]:
    arguments = {"ordered": True, "dedupe": True} | arguments
    async with client_of(provider).batch(items, model=MODEL, **arguments) as batch:
        outcomes = [outcome async for outcome in batch]
    return outcomes, batch.stats


def lines_of(journal: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()]
    return {line["custom_id"]: line for line in lines}


class TestSharing:
    pytestmark = virtual

    async def test_equal_requests_are_called_once_and_each_item_has_its_outcome(self) -> None:
        provider = Slow()
        items = [f"prompt {n % 7}" for n in range(100)]
        outcomes, stats = await run(provider, items)
        assert sorted(provider.prompts) == sorted(set(items))
        assert [(outcome.index, outcome.id) for outcome in outcomes] == [(n, str(n)) for n in range(100)]
        assert [json.loads(outcome.unwrap().content)["name"] for outcome in outcomes] == items
        assert [outcome.attempts for outcome in outcomes] == [1] * 7 + [0] * 93
        assert (stats.succeeded, stats.failed) == (100, 0)

    async def test_the_sum_over_the_outcomes_is_what_was_billed(self) -> None:
        outcomes, stats = await run(Slow(), ["a", "b"] * 10)
        assert sum(outcome.unwrap().cost_usd for outcome in outcomes) == stats.cost_usd == 0.5
        assert sum(outcome.unwrap().usage.total_tokens for outcome in outcomes) == stats.total_tokens == 6

    async def test_items_wait_for_an_equal_one_in_flight_without_a_slot(self) -> None:
        provider = Slow()
        outcomes, _ = await run(provider, ["first", *["a"] * 20, "b", "c"], max_concurrency=3)
        assert (len(provider.prompts), provider.most_in_flight) == (4, 3)
        assert max(outcome.elapsed for outcome in outcomes) < 3

    async def test_requests_that_differ_in_any_field_are_not_equal(self) -> None:
        items = [{"messages": "a", "seed": seed} for seed in (1, 2, 1)]
        items += [{"messages": "a", "seed": 1, "model": "gpt-4o"}]
        provider = Slow()
        await run(provider, items)
        assert len(provider.prompts) == 3

    async def test_without_dedupe_every_item_is_called(self) -> None:
        provider = Slow()
        await run(provider, ["a"] * 5, dedupe=False)
        assert len(provider.prompts) == 5

    async def test_invalid_items_keep_their_own_errors(self) -> None:
        outcomes, _ = await run(Slow(), ["a", 7, "a", 7])
        assert [outcome.error is None for outcome in outcomes] == [True, False, True, False]
        assert "item 3" in str(outcomes[3].error)

    async def test_parsed_values_are_shared_too(self) -> None:
        class Named(msgspec.Struct):
            name: str

        outcomes, _ = await run(Slow(), ["a", "b", "a", "a"], response_type=Named, max_concurrency=1)
        assert [outcome.unwrap().parsed.name for outcome in outcomes] == ["a", "b", "a", "a"]

    async def test_chat_many_takes_dedupe(self) -> None:
        provider = Slow()
        answers = await client_of(provider).chat_many(["a", "b", "a"], model=MODEL, dedupe=True)
        assert [json.loads(answer.content)["name"] for answer in answers] == ["a", "b", "a"]
        assert len(provider.prompts) == 2


class TestFailures:
    pytestmark = virtual

    async def test_a_failure_is_shared_with_items_that_wait_and_with_later_ones(self) -> None:
        provider = Slow()
        outcomes, stats = await run(provider, ["status=500"] * 3 + ["a", "status=500"], max_concurrency=1)
        assert provider.prompts == ["status=500", "a"]
        assert [type(outcome.error).__name__ for outcome in outcomes] == [
            *["ProviderError"] * 3, "NoneType", "ProviderError",
        ]  # fmt: skip
        assert [outcome.attempts for outcome in outcomes] == [1, 0, 0, 1, 0]
        assert (stats.succeeded, stats.failed) == (1, 4)

    async def test_shared_failures_do_not_count_for_stop_after_failures(self) -> None:
        outcomes, _ = await run(Slow(), ["status=404"] * 50 + ["a"])
        assert sum(isinstance(outcome.error, APIError) for outcome in outcomes) == 50
        with pytest.raises(TooManyFailuresError):
            await run(Slow(), ["status=404", "status=404 x"], stop_after_failures=2)

    async def test_a_callable_stop_on_is_called_once_for_a_shared_failure(self) -> None:
        seen: list[Exception] = []
        await run(Slow(), ["status=404"] * 5, stop_on=lambda error: seen.append(error) is not None)
        assert len(seen) == 1

    async def test_items_that_wait_are_not_started_if_the_first_one_ends_the_batch(self) -> None:
        provider, outcomes = Slow(), []
        async with client_of(provider).batch(["status=401"] * 5, model=MODEL, dedupe=True) as batch:
            with pytest.raises(AuthError):
                async for outcome in batch:
                    outcomes.append(outcome)
        assert [outcome.index for outcome in outcomes] == [0]
        assert len(provider.prompts) == 1

    async def test_leaving_the_batch_while_items_wait_leaves_them_not_started(self) -> None:
        provider = Slow()
        async with client_of(provider).batch(["quick", *["a"] * 9], model=MODEL, dedupe=True) as batch:
            async for _ in batch:
                break
        assert Counter(provider.prompts)["a"] <= 1
        assert (batch.stats.succeeded, batch.stats.in_flight) == (1, 0)

    async def test_shared_outcomes_are_not_counted_towards_max_cost_usd(self) -> None:
        outcomes, _ = await run(Slow(), ["a", "b"] * 20, max_cost_usd=0.5)
        assert len(outcomes) == 40
        with pytest.raises(BatchLimitError, match="2 items were called, for 0.5 USD"):
            await run(Slow(), ["a", "a", "b", "b", "c"], max_cost_usd=0.5)


class TestJournal:
    pytestmark = virtual

    async def test_each_item_has_a_line_in_the_journal(self, tmp_path: Path) -> None:
        journal = tmp_path / "journal.jsonl"
        await run(Slow(), ["a", "b", "a", "a"], journal=journal, max_concurrency=1)
        lines = lines_of(journal)
        assert sorted(lines) == ["0", "1", "2", "3"]
        assert [lines[id]["omnigate"]["cost_usd"] for id in "0123"] == [0.25, 0.25, 0, 0]
        assert lines["3"]["response"]["body"]["choices"] == lines["0"]["response"]["body"]["choices"]

    async def test_a_resumed_batch_calls_no_request_that_has_succeeded_before(self, tmp_path: Path) -> None:
        journal, provider = tmp_path / "journal.jsonl", Slow()
        items = ["a", "b", "a", "c", "a"]
        await run(provider, items[:2], journal=journal)
        outcomes, _ = await run(provider, items, journal=journal)
        assert sorted(provider.prompts) == ["a", "b", "c"]
        assert [(outcome.replayed, outcome.attempts) for outcome in outcomes] == [
            (True, 1), (True, 1), (False, 0), (False, 1), (False, 0),
        ]  # fmt: skip
        outcomes, _ = await run(provider, items, journal=journal)
        assert [outcome.replayed for outcome in outcomes] == [True] * 5
        assert len(provider.prompts) == 3

    async def test_successes_that_are_not_replayed_are_shared_too(self, tmp_path: Path) -> None:
        journal, provider = tmp_path / "journal.jsonl", Slow()
        await run(provider, ["a"], journal=journal)
        outcomes, _ = await run(provider, ["a", "b", "a"], journal=journal, replay=False)
        assert [outcome.index for outcome in outcomes] == [1, 2]
        assert json.loads(outcomes[1].unwrap().content)["name"] == "a"
        assert provider.prompts == ["a", "b"]

    async def test_a_shared_failure_is_called_again_by_the_next_run(self, tmp_path: Path) -> None:
        journal, provider = tmp_path / "journal.jsonl", Slow()
        for calls in (1, 2):
            outcomes, _ = await run(provider, ["status=500"] * 3, journal=journal)
            assert (len(outcomes), len(provider.prompts)) == (3, calls)
        assert all(line["error"] is not None for line in lines_of(journal).values())

    async def test_responses_are_not_kept_in_memory_but_read_from_the_journal(self, tmp_path: Path) -> None:
        class Named(msgspec.Struct):
            name: str

        arguments: dict[str, Any] = {"journal": tmp_path / "journal.jsonl", "response_type": Named}
        async with client_of(Slow()).batch(
            ["a", "b", "a"], model=MODEL, dedupe=True, ordered=True, max_concurrency=1, **arguments
        ) as batch:
            outcomes = [outcome async for outcome in batch]
        assert [outcome.unwrap().parsed.name for outcome in outcomes] == ["a", "b", "a"]
        assert batch._repeats is not None
        assert sorted(map(str, batch._repeats._ended.values())) == ["0", "1"]

    async def test_ids_stay_unique_with_equal_requests(self, tmp_path: Path) -> None:
        def items() -> Any:
            yield {"id": "x", "messages": "a"}
            yield {"id": "x", "messages": "a"}
            yield {"id": "y", "messages": "a"}

        outcomes, _ = await run(Slow(), items(), journal=tmp_path / "journal.jsonl")
        assert [outcome.error is None for outcome in outcomes] == [True, False, True]
        assert "an earlier item has the same id" in str(outcomes[1].error)


def test_the_sync_client_takes_dedupe() -> None:
    provider = Provider()
    with Client("llmg_x", base_url="http://gateway.test", transport=provider) as client:
        with client.batch(["a", "b", "a"], model=MODEL, dedupe=True, ordered=True) as batch:
            assert [outcome.unwrap().content for outcome in batch] == ["a", "b", "a"]
    assert sorted(provider.prompts) == ["a", "b"]


def test_a_wrong_dedupe_is_refused() -> None:
    with pytest.raises(omnigate.InvalidArgumentError, match="dedupe must be True or False, got 1"):
        client_of(Provider()).batch([], dedupe=1)  # type: ignore[arg-type]
