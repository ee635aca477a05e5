"""The contenders of the fan-out benchmark, each run in a fresh process; see `contenders.py`.

    python benchmarks/batch_contenders.py CONTENDER '{"url": …}'

Ours is `client.batch`; the others are what people write by hand: as many workers as there may be calls in flight
for the bare loop, `asyncio.gather` and a semaphore for the rest.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import contenders
from contenders import KEY, MODEL, Case


async def ours(case: Case) -> int:
    """`client.batch`, iterated to its end."""
    from omnigate import AnyIOTransport, AsyncClient

    transport = AnyIOTransport(max_connections=None)
    prompts = (f"number {index}" for index in range(case["items"]))
    succeeded = 0
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder, "journal.jsonl") if case.get("journal") else None
        async with (
            AsyncClient(KEY, base_url=case["url"], transport=transport) as client,
            client.batch(prompts, model=MODEL, max_concurrency=case["concurrency"], journal=journal) as batch,
        ):
            async for outcome in batch:
                succeeded += outcome.error is None
    return succeeded


def ours_sync(case: Case) -> int:
    """The same with the sync client."""
    from omnigate import AnyIOTransport, Client

    prompts = (f"number {index}" for index in range(case["items"]))
    transport = AnyIOTransport(max_connections=None)
    with (
        Client(KEY, base_url=case["url"], transport=transport, backend=case["backend"]) as client,
        client.batch(prompts, model=MODEL, max_concurrency=case["concurrency"]) as batch,
    ):
        return sum(outcome.error is None for outcome in batch)


async def bare(case: Case) -> int:
    """Send and receive, httptools, msgspec, in as many workers as there may be calls in flight."""
    async with contenders.bare(case) as call:
        return await contenders._workers(call, case["items"], case["concurrency"])


async def gathered(contender: str, case: Case) -> int:
    """`asyncio.gather` over all items, with a semaphore."""
    async with contenders.ASYNC[contender](case) as call:
        semaphore = asyncio.Semaphore(case["concurrency"])

        async def one() -> bool:
            async with semaphore:
                return await call() is not None

        return sum(await asyncio.gather(*(one() for _ in range(case["items"]))))


def main() -> None:
    contender, case = sys.argv[1], json.loads(sys.argv[2])
    cpu, start = time.process_time(), time.perf_counter()
    succeeded: Any
    if contender == "ours_sync":
        succeeded = ours_sync(case)
    elif contender in ("ours", "bare"):
        import anyio

        succeeded = anyio.run(ours if contender == "ours" else bare, case, backend=case["backend"])
    else:
        succeeded = asyncio.run(gathered(contender, case))
    spent, took = time.process_time() - cpu, time.perf_counter() - start
    assert succeeded >= case["items"] // case["concurrency"] * case["concurrency"], (succeeded, case)
    print(
        json.dumps(
            {
                "microseconds": spent / succeeded * 1e6,
                "items_per_second": succeeded / took,
                "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
