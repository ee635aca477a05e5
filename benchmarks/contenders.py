"""Measures one contender on one case, in a process of its own.

    python benchmarks/contenders.py CONTENDER '{"what": "calls", "url": …}'

Prints a JSON object of the measurements. This package is imported only if it is the contender, or a
floor: 0.1.0 has the same import name and runs in its own interpreter.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

clients: Any = importlib.import_module("clients")  # next to this file
sys.path.pop(0)  # so that no library sees this folder's modules

Call = Callable[[], Awaitable[object]]
Case = dict[str, Any]

CLIENTS, KEY, MODEL, MESSAGES = clients.CLIENTS, clients.KEY, clients.MODEL, clients.MESSAGES


def run(function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
    """Run a coroutine function in the event loop of its case, the last argument."""
    backend = args[-1]["backend"]
    if backend == "trio":
        import trio

        return trio.run(function, *args)
    if backend == "uvloop":
        import uvloop

        return uvloop.run(function(*args))
    return asyncio.run(function(*args))


async def _workers(call: Call, calls: int, concurrency: int, backend: str) -> int:
    """Make `calls` calls, `concurrency` at a time."""

    async def worker() -> None:
        for _ in range(calls // concurrency):
            await call()

    if backend == "trio":
        import trio

        async with trio.open_nursery() as nursery:
            for _ in range(concurrency):
                nursery.start_soon(worker)
    else:
        await asyncio.gather(*(worker() for _ in range(concurrency)))
    return calls // concurrency * concurrency


async def measure_calls(contender: str, case: Case) -> dict[str, float]:
    """Return the client's CPU time per chat, in microseconds."""
    backend, concurrency = case["backend"], case["concurrency"]
    async with CLIENTS[contender](case) as call:
        await _workers(call, concurrency, concurrency, backend)  # opens the connections
        await _workers(call, min(case["calls"], 512), min(concurrency, 512), backend)
        gc.collect()
        start = time.process_time()
        made = await _workers(call, case["calls"], concurrency, backend)
        return {"microseconds": (time.process_time() - start) / made * 1e6}


async def measure_memory(contender: str, case: Case) -> dict[str, float]:
    """Return the resident memory that a call in flight adds, in kilobytes; the server answers late."""
    async with CLIENTS[contender](case) as call:
        await _workers(call, 16, 16, case["backend"])
        gc.collect()
        before = _resident_kilobytes()
        made = await _workers(call, case["calls"], case["calls"], case["backend"])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"kilobytes": max(peak - before, 0) / made}


def _resident_kilobytes() -> float:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize() / 1024


def measure_import(contender: str, case: Case) -> dict[str, float]:
    """Return the CPU time of the import of a client's package, in milliseconds."""
    start = time.process_time()
    importlib.import_module(case["module"])
    return {"milliseconds": (time.process_time() - start) * 1e3}


# Streams


async def measure_first_chunk(contender: str, case: Case) -> dict[str, float]:
    """Return the median time until a stream's first chunk, and the CPU time of a whole short stream."""
    async with CLIENTS[contender](case) as stream:
        waited: list[float] = []

        async def read() -> None:
            start = time.perf_counter()
            first = True
            async for _ in stream():
                if first:
                    waited.append(time.perf_counter() - start)
                    first = False

        for _ in range(10):
            await read()
        waited.clear()
        start = time.process_time()
        for _ in range(case["streams"]):
            await read()
        spent = time.process_time() - start
    assert len(waited) == case["streams"]
    return {
        "first_microseconds": statistics.median(waited) * 1e6,
        "microseconds": spent / case["streams"] * 1e6,
    }


async def measure_stream(contender: str, case: Case) -> dict[str, float]:
    """Return the client's CPU time per chunk of a text stream, in microseconds."""
    async with CLIENTS[contender](case) as stream:

        async def streams(count: int) -> int:
            length = 0
            for _ in range(count):
                async for piece in stream():
                    length += len(piece)
            return length

        await streams(1)
        start = time.process_time()
        length = await streams(case["streams"])
        spent = time.process_time() - start
    return _per_chunk(length, spent, case)


def measure_sync_stream(contender: str, case: Case) -> dict[str, float]:
    """The same with the sync client."""
    with _sync_client(contender, case) as client:

        def streams(count: int) -> int:
            length = 0
            for _ in range(count):
                for piece in client.chat_stream(model=MODEL, messages=MESSAGES):
                    length += len(piece)
            return length

        streams(1)
        start = time.process_time()
        length = streams(case["streams"])
        spent = time.process_time() - start
    return _per_chunk(length, spent, case)


def _per_chunk(length: int, spent: float, case: Case) -> dict[str, float]:
    chunks = length / len(" words ")
    assert chunks == case["streams"] * case["chunks"], (chunks, case)
    return {"microseconds": spent / chunks * 1e6}


# Sync calls


@contextmanager
def _sync_client(contender: str, case: Case) -> Iterator[Any]:
    from omnigate import Client

    options = {"backend": case["backend"]} if contender == "ours" else {}
    with Client(KEY, base_url=case["url"], **options) as client:
        yield client


def measure_sync_calls(contender: str, case: Case) -> dict[str, float]:
    """Return the sync client's chats per second, from a number of threads."""
    with _sync_client(contender, case) as client:

        def run(calls: int) -> None:
            def work() -> None:
                for _ in range(calls // case["threads"]):
                    client.chat(model=MODEL, messages=MESSAGES)

            threads = [threading.Thread(target=work) for _ in range(case["threads"])]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        run(4 * case["threads"])
        start, cpu = time.perf_counter(), time.process_time()
        run(case["calls"])
        made = case["calls"] // case["threads"] * case["threads"]
        return {
            "calls_per_second": made / (time.perf_counter() - start),
            "microseconds": (time.process_time() - cpu) / made * 1e6,
        }


# Fan-out


async def batch_of_ours(case: Case) -> int:
    """`client.batch`, iterated to its end; return how many items succeeded."""
    from omnigate import AnyIOTransport, AsyncClient

    prompts = (f"number {index}" for index in range(case["items"]))
    transport = AnyIOTransport(max_connections=None)
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder, "journal.jsonl") if case["journal"] else None
        async with (
            AsyncClient(KEY, base_url=case["url"], transport=transport) as client,
            client.batch(prompts, model=MODEL, max_concurrency=case["concurrency"], journal=journal) as batch,
        ):
            return sum([outcome.error is None async for outcome in batch])


def sync_batch_of_ours(case: Case) -> int:
    """The same with the sync client."""
    prompts = (f"number {index}" for index in range(case["items"]))
    with (
        _sync_client("ours", case) as client,
        client.batch(prompts, model=MODEL, max_concurrency=case["concurrency"]) as batch,
    ):
        return sum(outcome.error is None for outcome in batch)


async def batch_by_hand(contender: str, case: Case) -> int:
    """The floors in workers; the others with `asyncio.gather` and a semaphore, as commonly written."""
    async with CLIENTS[contender](case) as call:
        if contender in ("protocol", "trio_socket", "bare"):
            return await _workers(call, case["items"], case["concurrency"], case["backend"])
        semaphore = asyncio.Semaphore(case["concurrency"])

        async def one() -> bool:
            async with semaphore:
                return await call() is not None

        return sum(await asyncio.gather(*(one() for _ in range(case["items"]))))


def measure_batch(contender: str, case: Case) -> dict[str, float]:
    """Return the cost per item, items per second, and peak memory."""
    # So that imports are not measured; ours happen when a name of the package is first used.
    module = importlib.import_module(contender if contender in ("openai", "litellm") else "omnigate")
    if contender == "ours":
        _ = module.AnyIOTransport, module.AsyncClient, module.Client, module.Batch
    start, cpu = time.perf_counter(), time.process_time()
    if contender == "ours" and case["what"] == "sync_batch":
        succeeded = sync_batch_of_ours(case)
    elif contender == "ours":
        succeeded = run(batch_of_ours, case)
    else:
        succeeded = run(batch_by_hand, contender, case)
    spent, took = time.process_time() - cpu, time.perf_counter() - start
    assert succeeded >= case["items"] // case["concurrency"] * case["concurrency"], (succeeded, case)
    return {
        "microseconds": spent / succeeded * 1e6,
        "items_per_second": succeeded / took,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


ASYNC = {
    "calls": measure_calls,
    "memory": measure_memory,
    "first_chunk": measure_first_chunk,
    "stream": measure_stream,
}
SYNC = {
    "sync_calls": measure_sync_calls,
    "sync_stream": measure_sync_stream,
    "batch": measure_batch,
    "sync_batch": measure_batch,
    "import": measure_import,
}


def main() -> None:
    contender, case = sys.argv[1], json.loads(sys.argv[2])
    what = case["what"]
    if what.startswith("data"):
        sys.path.insert(0, str(Path(__file__).parents[1]))  # on it is this script's folder
        from benchmarks import data

        measures = {"data": data.measure_data, "data_batch": data.measure_data_batch}
        result = measures[what](contender, case)
    else:
        result = run(ASYNC[what], contender, case) if what in ASYNC else SYNC[what](contender, case)
    print(json.dumps(result), flush=True)
    os._exit(0)  # all is measured; some clients take seconds to end, and pyqwest's runtime may abort then


if __name__ == "__main__":
    main()
