"""Client CPU time per item of a batch: python -m benchmarks.batches [--quick] [--json FILE]."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import Check, Result, main, run, server

ITEMS = 100_000
CONCURRENCY = 256
DELAY_SECONDS = 0.2
IN_FLIGHT = 1_000


def benchmark(quick: bool) -> tuple[str, list[Result], list[Check]]:
    """Measure and compare all contenders."""
    scale = 100 if quick else 1
    results: dict[tuple[str, ...], Result] = {}

    def add(key: tuple[str, ...], port: str, backend: str = "asyncio", rounds: int = 1, **more: Any) -> None:
        case = {
            "what": "batch",
            "url": f"http://127.0.0.1:{port}",
            "backend": backend,
            "items": ITEMS // scale,
            "concurrency": CONCURRENCY,
            "journal": False,
            **more,
        }
        results[key] = Result(key[0], case, 1 if quick else rounds)

    with server() as port:
        for backend in ("asyncio", "trio"):
            add(("bare", backend), port, backend, rounds=2)
            add(("ours", backend), port, backend, rounds=2)
            add(("ours", backend, "journal"), port, backend, journal=True)
            add(("ours", backend, "sync"), port, backend, what="sync_batch")
            add(("ours", backend, "short"), port, backend, items=10_000 // scale)
            add(("ours", backend, "long"), port, backend, items=1_000_000 // scale)
        add(("aiohttp", "asyncio"), port)
        for contender in ("published", "openai"):
            add((contender, "asyncio"), port, items=max(3_000 // scale, CONCURRENCY))
        run(list(results.values()))
    fast = set(results)
    with server("--delay", str(DELAY_SECONDS)) as port:  # after the other one: each keeps a core busy
        for backend in ("asyncio", "trio"):
            for contender in ("bare", "ours"):
                more = {"items": max(25_000 // scale, IN_FLIGHT), "concurrency": IN_FLIGHT}
                add((contender, backend, "slow"), port, backend, **more)
        run([result for key, result in results.items() if key not in fast])

    def figure(name: str, *key: str) -> float:
        return results[key].figures[name]

    checks: list[Check] = []
    for backend in ("asyncio", "trio"):
        ours, bare = (figure("microseconds", contender, backend) for contender in ("ours", "bare"))
        journalled = figure("microseconds", "ours", backend, "journal")
        checks += [
            Check(f"{backend}, an item against the bare loop", ours, bare, 2.0),
            Check(f"{backend}, with a journal, against the bare loop", journalled, bare, 3.0),
            Check(
                f"sync on {backend}, against the bare loop",
                figure("microseconds", "ours", backend, "sync"),
                bare,
                3.0,
            ),
            Check(
                f"{backend}, peak memory of 1,000,000 items, less 20 MB, against 10,000",
                figure("megabytes", "ours", backend, "long") - 20,
                figure("megabytes", "ours", backend, "short"),
                1.0,
                unit="MB",
            ),
            Check(
                f"{backend}, 1,000 in flight, answers after 200 ms, of what is possible",
                figure("items_per_second", "ours", backend, "slow"),
                min(IN_FLIGHT / DELAY_SECONDS, 1e6 / ours),
                0.85,
                at_least=True,
                unit="calls/s",
            ),
        ]
        checks += [
            Check(f"{backend}, against {name}", ours, figure("microseconds", contender, "asyncio"), 1.0)
            for contender, name in (
                ("aiohttp", "aiohttp by hand"),
                ("openai", "the OpenAI SDK"),
                ("published", "omnigate 0.1.0"),
            )
        ]
    return f"Client CPU time per item, {ITEMS // scale:,} items", list(results.values()), checks


if __name__ == "__main__":
    main(benchmark)
