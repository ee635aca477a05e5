"""Readers that fall behind: the workers wait for room, and none is lost or left."""

from collections.abc import Iterator
from typing import Any

import anyio
import httpx
import pytest

from omnigate import AsyncClient, AuthError

from ..support.provider import Provider

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

MODEL = "gpt-4o-mini"

SPARE = 64  # outcomes that may wait besides two for each call in flight


class Source:
    """Yields prompts, and counts them."""

    def __init__(self, prompts: list[str]) -> None:
        self.read = 0
        self._prompts = prompts

    def __iter__(self) -> Iterator[str]:
        for prompt in self._prompts:
            self.read += 1
            yield prompt


def client_of(provider: httpx.AsyncBaseTransport, **arguments: Any) -> AsyncClient:
    return AsyncClient("llmg_x", base_url="http://gateway.test", transport=provider, **arguments)


@pytest.mark.parametrize("concurrency", [1, 5, 40])
@pytest.mark.parametrize("together", [1, 3, 100])
async def test_a_reader_that_falls_behind_gets_each_outcome_once(concurrency: int, together: int) -> None:
    source = Source([str(number) for number in range(300)])
    provider = Provider()
    before = len(anyio.get_running_tasks())
    most_tasks = 0
    indexes: list[int] = []
    async with client_of(provider).batch(source, model=MODEL, max_concurrency=concurrency) as batch:
        async for outcome in batch:
            indexes.append(outcome.index)
            assert source.read - len(indexes) <= 2 * concurrency + SPARE
            if len(indexes) % together == 0:
                await anyio.sleep(1)  # until nothing moves without the reader
                most_tasks = max(most_tasks, len(anyio.get_running_tasks()) - before)
    assert sorted(indexes) == list(range(300))
    assert provider.most_in_flight <= concurrency
    assert most_tasks <= concurrency + 4


async def test_all_calls_are_in_flight_again_once_a_reader_has_caught_up() -> None:
    provider = Provider()
    prompts = [f"sleep=1 {number}" for number in range(600)]
    async with client_of(provider).batch(prompts, model=MODEL, max_concurrency=20) as batch:
        await anext(batch)
        await anyio.sleep(100)  # until there is no more room
        assert provider.in_flight == 0
        for _ in range(2 * 20 + SPARE - 1):
            await anext(batch)
        await anyio.sleep(0.5)
        assert provider.in_flight == 20
        assert len([outcome async for outcome in batch]) == 600 - 2 * 20 - SPARE


@pytest.mark.parametrize("by", ["leaving", "cancelling", "an error"])
async def test_workers_that_wait_for_room_end_with_the_batch(by: str) -> None:
    provider = Provider()
    prompts = [*[str(number) for number in range(72)], "sleep=50 status=401", *["later"] * 100]
    with anyio.fail_after(1_000), anyio.CancelScope() as scope:
        async with client_of(provider).batch(prompts, model=MODEL, max_concurrency=4) as batch:
            await anext(batch)
            await anyio.sleep(10)
            sent = len(provider.prompts)
            assert sent == 2 * 4 + SPARE + 1
            if by == "cancelling":
                scope.cancel()
            elif by == "an error":
                await anyio.sleep(100)
                with pytest.raises(AuthError):
                    async for outcome in batch:
                        assert outcome.request is not None
    assert batch.stats.in_flight == 0
    assert len(provider.prompts) == sent


async def test_a_cancelled_reader_gets_few_more_outcomes_and_none_is_lost() -> None:
    async with client_of(Provider()).batch(map(str, range(100)), model=MODEL, max_concurrency=10) as batch:
        await anyio.sleep(1)  # until nothing moves without the reader
        indexes: list[int] = []
        with anyio.CancelScope() as scope:
            async for outcome in batch:
                indexes.append(outcome.index)
                if len(indexes) == 10:
                    scope.cancel()
        assert scope.cancelled_caught
        assert 10 <= len(indexes) < 14
        indexes += [outcome.index async for outcome in batch]
    assert sorted(indexes) == list(range(100))
