"""Chats per second of the sync client: python -m benchmarks.sync_calls [--quick] [--json FILE]."""

from __future__ import annotations

from benchmarks.harness import Check, Result, main, run, server


def benchmark(quick: bool) -> tuple[str, list[Result], list[Check]]:
    """Measure and compare all contenders."""
    results: dict[tuple[str, str, int], Result] = {}
    with server() as port:
        for threads in (1, 32):
            for contender, backend in (("ours", "asyncio"), ("ours", "trio"), ("published", "asyncio")):
                calls = 64 if quick else 2_048 if contender == "published" else 8_192
                case = {
                    "what": "sync_calls",
                    "url": f"http://127.0.0.1:{port}",
                    "backend": backend,
                    "threads": threads,
                    "calls": calls,
                }
                results[contender, backend, threads] = Result(contender, case, 1 if quick else 5)
        run(list(results.values()))
    checks = [
        Check(
            f"{threads} thread{'s' * (threads > 1)}, on {backend}, against 0.1.0",
            results["ours", backend, threads].figures["calls_per_second"],
            results["published", "asyncio", threads].figures["calls_per_second"],
            2.0 if threads == 1 else 10.0,
            at_least=True,
            unit="calls/s",
        )
        for threads in (1, 32)
        for backend in ("asyncio", "trio")
    ]
    return "Chats per second of the sync client", list(results.values()), checks


if __name__ == "__main__":
    main(benchmark)
