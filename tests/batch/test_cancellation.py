"""A batch cancelled at every await, in every way: nothing keeps running or is held, and no outcome comes twice."""

import json
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from omnigate import AnyIOTransport, AsyncClient, RetryConfig
from omnigate.testing import LocalGateway

from ..support.cancellation import WAYS_OF_ASYNCIO, WAYS_OF_TRIO, cancelled_at_every_checkpoint, count_tasks
from ..support.provider import Provider

MODEL = "gpt-4o-mini"
WAYS = [("asyncio", way) for way in WAYS_OF_ASYNCIO] + [("trio", way) for way in WAYS_OF_TRIO]


@pytest.mark.anyio
@pytest.mark.parametrize(("anyio_backend", "way"), WAYS, ids=[f"{backend}-{way}" for backend, way in WAYS])
@pytest.mark.parametrize(
    "kind",
    [
        "plain",
        "journal",
        *(pytest.param(kind, marks=pytest.mark.proof) for kind in ("ordered", "slow source", "chat_many")),
    ],
)
async def test_a_batch_cancelled_at_every_checkpoint_leaves_no_call_or_task_behind(
    kind: str, way: str, tmp_path: Path, anyio_backend: str
) -> None:
    provider = Provider()
    client = AsyncClient("llmg_x", base_url="http://gateway.test", transport=provider)
    journal = tmp_path / "journal.jsonl"
    closed = 0

    async def source() -> Any:
        nonlocal closed
        try:
            for n in range(5):
                await anyio.lowlevel.checkpoint()
                yield f"{n}"
        finally:
            closed += 1

    async def run() -> None:
        if kind == "chat_many":
            await client.chat_many([f"{n}" for n in range(5)], model=MODEL, max_concurrency=2)
            return
        async with client.batch(
            source() if kind == "slow source" else [f"{n}" for n in range(5)],
            model=MODEL,
            max_concurrency=2,
            ordered=kind == "ordered",
            journal=journal if kind == "journal" else None,
        ) as batch:
            async for outcome in batch:
                outcome.unwrap()

    before = count_tasks()
    points = 0
    async for _ in cancelled_at_every_checkpoint(run, way):
        points += 1
        assert provider.in_flight == 0
        await anyio.lowlevel.checkpoint()  # the cancelled task is done, but asyncio only forgets it now
        assert count_tasks() == before
        if journal.exists():
            ids = [json.loads(line)["custom_id"] for line in journal.read_bytes().splitlines()]
            assert len(ids) == len(set(ids))
            journal.unlink()
        assert (await client.chat_many(["next"], model=MODEL))[0].content == "next"
    assert points >= 6
    assert closed <= points


@pytest.mark.anyio
@pytest.mark.parametrize("is_journalled", [False, True])
async def test_a_batch_cancelled_after_any_number_of_loop_turns_hands_out_each_outcome_once(
    is_journalled: bool, tmp_path: Path
) -> None:
    """The workers, which have awaits of their own, may be anywhere at that moment."""
    provider = Provider()
    client = AsyncClient(
        "llmg_x", base_url="http://gateway.test", transport=provider, retry_config=RetryConfig(backoff_base=0)
    )
    called: list[int] = []

    async def run(scope: anyio.CancelScope, journal: Path | None) -> None:
        with scope:
            async with client.batch(
                ["a", "once=500 b", "c", 7, "status=400", "d"],
                model=MODEL,
                max_concurrency=3,
                journal=journal,
            ) as batch:
                async for outcome in batch:
                    called.append(outcome.index)

    for turns in range(10_000):
        called.clear()
        provider.prompts.clear()
        scope = anyio.CancelScope()
        journal = tmp_path / f"{turns}.jsonl" if is_journalled else None
        async with anyio.create_task_group() as group:
            group.start_soon(run, scope, journal)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            is_done = not scope.cancelled_caught and len(called) == 6 and provider.in_flight == 0
            scope.cancel()
        assert provider.in_flight == 0
        assert len(called) == len(set(called))
        if is_done:
            break
    assert turns >= 8
    assert sorted(called) == list(range(6))


@pytest.mark.anyio
@pytest.mark.parametrize(("anyio_backend", "way"), WAYS, ids=[f"{backend}-{way}" for backend, way in WAYS])
async def test_a_batch_cancelled_at_every_checkpoint_leaves_no_connection_in_use(
    way: str, anyio_backend: str
) -> None:
    async with LocalGateway() as gateway:
        transport = AnyIOTransport(max_connections=3)
        async with AsyncClient(gateway.api_key, base_url=gateway.url, transport=transport) as client:

            async def run() -> None:
                async with client.batch([f"{n}" for n in range(6)], model=MODEL, max_concurrency=3) as batch:
                    async for outcome in batch:
                        outcome.unwrap()

            async for _ in cancelled_at_every_checkpoint(run, way):
                stats = transport.stats()
                assert (stats["in_use"], stats["waiting"], stats["opening"]) == (0, 0, 0)
                assert stats["idle"] <= 3


@pytest.mark.anyio
async def test_a_batch_cancelled_over_httpx_transport_leaks_no_pool_slot() -> None:
    async with LocalGateway() as gateway:
        transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=2))
        async with AsyncClient(gateway.api_key, base_url=gateway.url, transport=transport) as client:

            async def run() -> None:
                async with client.batch([f"{n}" for n in range(3)], model=MODEL, max_concurrency=2) as batch:
                    async for outcome in batch:
                        outcome.unwrap()

            async for _ in cancelled_at_every_checkpoint(run, "scope"):
                pass
            with anyio.fail_after(10):
                assert len(await client.chat_many(["a", "b", "c"], model=MODEL)) == 3
