"""Batches over real sockets, against the local gateway: restarts, keys, providers' limits, few descriptors."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest

from omnigate import AsyncAdminClient, AsyncClient, BatchStats, Outcome
from omnigate.testing import LocalGateway, RecordedRequest, Status

from ..support.event_loops import BOTH, backend_of

pytestmark = [pytest.mark.anyio, pytest.mark.proof]


@pytest.fixture(params=BOTH)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return backend_of(request)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def run(client: AsyncClient, items: Any, **options: Any) -> tuple[list[Outcome], BatchStats]:
    async with client.batch(items, **{"model": "gpt-4o-mini", **options}) as batch:
        outcomes = [outcome async for outcome in batch]
    return outcomes, batch.stats


async def key_of(gateway: LocalGateway, limit: int) -> str:
    """Return the key of a project that may make so many calls per window."""
    async with AsyncAdminClient(gateway.admin_key, base_url=gateway.url) as admin:
        org = await admin.create_org(name="o")
        project = await admin.create_project(org_id=org.id, name="p", rate_limit_per_min=limit)
    async with AsyncClient(project.api_key, base_url=gateway.url) as client:
        await client.set_provider_key(provider="openai", api_key="sk-12345678")
    return project.api_key


async def restart(seconds: float, count: int) -> None:
    """Stop the gateway in the middle of a batch for some time; no item may be lost."""
    gateway = LocalGateway(port=free_port(), latency_seconds=0.05)
    results: list[Outcome] = []
    async with AsyncClient(gateway.api_key, base_url=f"http://127.0.0.1:{gateway._port}") as client:

        async def all_of_it() -> None:
            outcomes, _ = await run(client, (f"q{number}" for number in range(count)), max_concurrency=16)
            results.extend(outcomes)

        async with anyio.create_task_group() as group:
            async with gateway:
                group.start_soon(all_of_it)
                while len(gateway.requests) < count // 4:
                    await anyio.sleep(0.01)
            await anyio.sleep(seconds)
            async with gateway:
                while len(results) < count:
                    await anyio.sleep(0.01)
    assert [outcome.error for outcome in results] == [None] * count


async def test_a_restart_of_the_gateway_loses_no_item() -> None:
    with anyio.fail_after(50):
        await restart(1.0, 300)


@pytest.mark.heavy
async def test_a_restart_of_ten_seconds_loses_no_item_of_1200() -> None:
    with anyio.fail_after(58):
        await restart(10.0, 1_200)


async def test_batches_of_two_keys_and_two_models_do_not_hold_each_other_back() -> None:
    async with LocalGateway(rate_window_seconds=2) as gateway:
        async with (
            AsyncClient(await key_of(gateway, 40), base_url=gateway.url) as slow,
            AsyncClient(gateway.api_key, base_url=gateway.url) as fast,
        ):
            ends: dict[str, float] = {}
            failed: list[Outcome] = []

            async def one(name: str, client: AsyncClient, count: int, model: str) -> None:
                outcomes, _ = await run(client, [f"q{number}" for number in range(count)], model=model)
                failed.extend(outcome for outcome in outcomes if outcome.error is not None)
                ends[name] = anyio.current_time()

            with anyio.fail_after(50):
                async with anyio.create_task_group() as group:
                    group.start_soon(one, "slow", slow, 160, "gpt-4o-mini")
                    group.start_soon(one, "fast", fast, 160, "gpt-4o-mini")
                    group.start_soon(one, "other model", fast, 160, "gpt-4o")
    assert not failed
    assert max(ends["fast"], ends["other model"]) < ends["slow"]


async def provider_of_20(window: float, count: int, seconds: float) -> None:
    """Run a batch against a provider that allows twenty calls in so many seconds; no item may be lost."""
    counts: Counter[int] = Counter()

    def is_too_many(request: RecordedRequest) -> bool:
        number = int(time.monotonic() // window)
        counts[number] += 1
        return counts[number] > 20

    async with LocalGateway() as gateway:
        gateway.script(
            Status(429, {"detail": "OpenAI error 429: slow down"}), times=1_000_000, when=is_too_many
        )
        async with AsyncClient(gateway.api_key, base_url=gateway.url) as client:
            with anyio.fail_after(seconds):
                outcomes, stats = await run(client, [f"q{number}" for number in range(count)])
    assert [outcome.error for outcome in outcomes] == [None] * count
    assert 0 < stats.rejections < 2 * count


async def test_a_provider_that_allows_few_calls_loses_no_item() -> None:
    """Twenty in two seconds, in place of a minute."""
    await provider_of_20(window=2, count=100, seconds=55)


@pytest.mark.heavy
@pytest.mark.timeout(300)
async def test_a_provider_of_20_a_minute_loses_no_item_of_50() -> None:
    """Fifty take two to three of its minutes."""
    await provider_of_20(window=60, count=50, seconds=290)


_WORKER = textwrap.dedent(
    """
    import asyncio, json, sys
    from omnigate import AsyncClient

    async def main(url, key, count, concurrency):
        async with AsyncClient(key, base_url=url) as client:
            items = [f"q{number}" for number in range(count)]
            async with client.batch(items, model="gpt-4o-mini", max_concurrency=concurrency) as batch:
                errors = [str(outcome.error) async for outcome in batch if outcome.error is not None]
        print(json.dumps([batch.stats.succeeded, errors[:3]]))

    if len(sys.argv) > 5:
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[5]), int(sys.argv[5])))
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    """
)


async def workers(number: int, *arguments: object) -> list[Any]:
    """Run a batch in each of some processes; return what they print."""
    command = [sys.executable, "-c", _WORKER, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}

    def all_of_them() -> list[Any]:
        processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
            for _ in range(number)
        ]
        return [json.loads(process.communicate(timeout=55)[0]) for process in processes]

    return await anyio.to_thread.run_sync(all_of_them)


@pytest.mark.proof
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_four_processes_with_one_key_lose_no_item() -> None:
    async with LocalGateway(rate_window_seconds=2) as gateway:
        results = await workers(4, gateway.url, await key_of(gateway, 100), 200, 32)
    assert results == [[200, []]] * 4


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_batch_with_too_few_descriptors_loses_no_item() -> None:
    async with LocalGateway(latency_seconds=3.0) as gateway:
        results = await workers(1, gateway.url, gateway.api_key, 120, 120, 64)
    assert results == [[120, []]]
