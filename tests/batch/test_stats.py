"""What a batch tells while it runs: its total, the time left, the projected cost, and the whole journal."""

import threading
from pathlib import Path
from typing import Any

import pytest

from omnigate import AsyncClient, BatchStats
from omnigate._batch.recipe import Recipe

from ..support import virtual_time
from ..support.provider import Provider

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

MODEL = "gpt-4o"
COST = 0.000004  # of a call to the provider of the tests


def client() -> AsyncClient:
    return AsyncClient("llmg_x", base_url="http://gateway.test", transport=Provider())


async def test_stats_of_a_sized_source_tell_the_share_the_time_left_and_the_projected_cost() -> None:
    items = [f"sleep=1 {n}" for n in range(100)]
    async with client().batch(items, model=MODEL, max_concurrency=1) as batch:
        assert (batch.stats.total, batch.stats.percent) == (100, 0.0)
        assert batch.stats.projected_cost_usd is None
        async for outcome in batch:
            if outcome.index == 24:
                break
        stats = batch.stats
    assert stats.percent == 25.0
    assert stats.projected_cost_usd == pytest.approx(100 * COST)
    assert stats.seconds_left == pytest.approx(75, rel=0.1)


async def test_stats_of_a_source_without_a_length_have_a_total_once_it_has_ended() -> None:
    items = (f"sleep=1 {n}" for n in range(3))
    async with client().batch(items, model=MODEL, max_concurrency=1) as batch:
        await anext(batch)
        assert (batch.stats.total, batch.stats.percent, batch.stats.seconds_left) == (None, None, None)
        async for _ in batch:
            pass
    assert (batch.stats.total, batch.stats.percent, batch.stats.seconds_left) == (3, 100.0, 0.0)
    assert batch.stats.projected_cost_usd == batch.stats.cost_usd


async def test_a_source_whose_length_cannot_be_told_has_no_total() -> None:
    class Odd:
        def __iter__(self) -> Any:
            return iter(["sleep=1 a", "sleep=1 b"])

        def __len__(self) -> int:
            raise TypeError("an iterable data set has no length")

    async with client().batch(Odd(), model=MODEL, max_concurrency=1) as batch:
        await anext(batch)
        assert batch.stats.total is None


async def test_the_items_of_a_file_are_counted_before_the_first_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(b'{"prompt": "sleep=9 a"}\n\n' * 5_000)
    shown, inspect = threading.Event(), Recipe.inspect
    counts: set[int | None] = set()

    def show(stats: BatchStats) -> None:
        counts.add(stats.counted)
        if stats.counted:
            shown.set()

    def inspect_slowly(recipe: Recipe, source: Any, *, counted: Any, **options: Any) -> Any:
        found = inspect(recipe, source, counted=counted, **options)
        shown.wait(5)
        return found

    monkeypatch.setattr(Recipe, "inspect", inspect_slowly)
    monkeypatch.setattr(virtual_time, "THREAD_SECONDS", 0)  # the thread waits for the clock
    async with client().batch(path, model=MODEL, max_concurrency=1, progress=show) as batch:
        assert batch.stats.total == 5_000
        await anext(batch)
        assert (batch.stats.counted, batch.stats.percent) == (None, 0.02)
    seen = counts - {None}
    assert seen
    assert seen <= set(range(1_024, 5_000, 1_024))  # those that were shown


async def test_failures_are_counted_by_kind() -> None:
    items: list[Any] = ["status=400 a", "status=400 b", "status=402 c", {"nonsense": 1}]
    async with client().batch(items, model=MODEL, stop_on=()) as batch:
        async for _ in batch:
            pass
    assert batch.stats.failures == {"APIError": 2, "BudgetExceededError": 1, "InvalidArgumentTypeError": 1}
    assert sum(batch.stats.failures.values()) == batch.stats.failed


async def test_stats_tell_the_tokens_and_cost_of_this_run_and_of_the_whole_journal(tmp_path: Path) -> None:
    journal = tmp_path / "answers.jsonl"
    assert (await client().batch(["a", "b"], model=MODEL, journal=journal).run()).journal_tokens == 6
    async with client().batch(["a", "b", "sleep=1 c", "sleep=1 d"], model=MODEL, journal=journal) as batch:
        assert (batch.stats.journal_tokens, batch.stats.journal_cost_usd) == (6, 2 * COST)
        async for _ in batch:
            pass
    stats = batch.stats
    assert (stats.replayed, stats.total_tokens, stats.cost_usd) == (2, 6, 2 * COST)
    assert (stats.journal_tokens, stats.journal_cost_usd) == (12, 4 * COST)


async def test_successes_in_the_journal_do_not_count_to_the_projected_cost(tmp_path: Path) -> None:
    journal = tmp_path / "answers.jsonl"
    items = [f"sleep=1 {n}" for n in range(20)]
    await client().batch(items[10:], model=MODEL).run()
    rows = [{"id": f"row-{n}", "prompt": item} for n, item in enumerate(items)]
    await client().batch(rows[10:], model=MODEL, journal=journal).run()
    async with client().batch(rows, model=MODEL, journal=journal, max_concurrency=1) as batch:
        await anext(batch)
        stats = batch.stats
    assert stats.projected_cost_usd == pytest.approx(10 * COST)


async def test_a_concatenated_journal_counts_an_id_once(tmp_path: Path) -> None:
    journal = tmp_path / "answers.jsonl"
    await client().batch(["a", "b"], model=MODEL, journal=journal).run()
    journal.write_bytes(journal.read_bytes() * 2)
    async with client().batch(["a", "b"], model=MODEL, journal=journal) as batch:
        assert batch.stats.journal_tokens == 6
        async for _ in batch:
            pass
