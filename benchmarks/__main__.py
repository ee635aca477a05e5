"""Run all benchmarks, one after another: python -m benchmarks [--quick] [--json FILE]."""

from __future__ import annotations

from benchmarks import batches, calls, data, streams, sync_calls
from benchmarks.harness import Check, Result, main, report


def benchmark(quick: bool) -> tuple[str, list[Result], list[Check]]:
    """Run all benchmarks; leave the last one's report to the caller."""
    results: list[Result] = []
    checks: list[Check] = []
    title = ""
    for module in (calls, streams, sync_calls, batches, data):
        if checks:
            report(title, checks)
        title, more, checks = module.benchmark(quick)
        results += more
    return title, results, checks


main(benchmark)
