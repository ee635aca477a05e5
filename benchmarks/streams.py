"""Client CPU time per chunk of a text stream: python -m benchmarks.streams [--quick] [--json FILE]."""

from __future__ import annotations

from benchmarks.harness import Check, Result, main, run, server
from benchmarks.server import CHUNKS

SPACINGS = {"as fast as they come": 0.0, "one by one": 0.0003}


def benchmark(quick: bool) -> tuple[str, list[Result], list[Check]]:
    """Measure and compare all contenders."""
    results: dict[tuple[str, str, str, str], Result] = {}
    rounds, streams = (1, 1) if quick else (5, 3)
    for spacing, seconds in SPACINGS.items():
        with server("--spacing", str(seconds)) as port:  # one after the other: each keeps a core busy
            for what in ("stream", "sync_stream"):
                for contender, backend in (("ours", "asyncio"), ("ours", "trio"), ("published", "asyncio")):
                    case = {
                        "what": what,
                        "url": f"http://127.0.0.1:{port}",
                        "backend": backend,
                        "streams": streams,
                        "chunks": CHUNKS,
                    }
                    results[contender, backend, what, spacing] = Result(contender, case, rounds)
            run([result for key, result in results.items() if key[3] == spacing])
    checks = [
        Check(
            f"{'sync' if what == 'sync_stream' else 'async'} on {backend}, {spacing}, against 0.1.0",
            results["ours", backend, what, spacing].figures["microseconds"],
            results["published", "asyncio", what, spacing].figures["microseconds"],
            0.25,
        )
        for what in ("stream", "sync_stream")
        for spacing in SPACINGS
        for backend in ("asyncio", "trio")
    ]
    return f"Client CPU time per chunk, {CHUNKS:,} small chunks", list(results.values()), checks


if __name__ == "__main__":
    main(benchmark)
