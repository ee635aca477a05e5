"""Client CPU time per chat: python -m benchmarks.calls [--quick] [--json FILE]."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import Check, Result, certificates, main, run, server

CONCURRENCIES = (1, 64, 512, 2_048)
CALLS = 6_144


def benchmark(quick: bool) -> tuple[str, list[Result], list[Check]]:
    """Measure and compare all contenders."""
    results: dict[tuple[str, str, int, bool], Result] = {}

    def add(contender: str, backend: str, concurrency: int, url: str, rounds: int, **more: Any) -> None:
        slow = contender in ("published", "openai")
        calls = max(concurrency, 256) if quick or slow else max(CALLS, 3 * concurrency)
        case = {
            "what": "calls",
            "url": url,
            "backend": backend,
            "concurrency": concurrency,
            "calls": calls,
            **more,
        }
        key = (contender, backend, concurrency, "authority" in more)
        results[key] = Result(contender, case, 1 if quick else rounds)

    with server() as port:
        url = f"http://127.0.0.1:{port}"
        for concurrency in CONCURRENCIES:
            for backend in ("asyncio", "trio"):
                add("bare", backend, concurrency, url, 5)
                add("ours", backend, concurrency, url, 5)
            if concurrency > 1:
                add("aiohttp", "asyncio", concurrency, url, 5)
        for concurrency in (64, 512):
            add("published", "asyncio", concurrency, url, 2)
            add("openai", "asyncio", concurrency, url, 2)
        run(list(results.values()))
    plain = set(results)
    with certificates() as (authority, identity), server("--tls", identity) as port:  # each keeps a core busy
        for contender, backend in (("ours", "asyncio"), ("ours", "trio"), ("aiohttp", "asyncio")):
            add(contender, backend, 64, f"https://127.0.0.1:{port}", 5, authority=authority)
        run([result for key, result in results.items() if key not in plain])

    def figure(contender: str, backend: str, concurrency: int, secure: bool = False) -> float:
        return results[contender, backend, concurrency, secure].figures["microseconds"]

    checks = [
        Check(
            f"{backend}, {concurrency:,} in flight, against the bare loop",
            figure("ours", backend, concurrency),
            figure("bare", backend, concurrency),
            1.6,
        )
        for backend in ("asyncio", "trio")
        for concurrency in CONCURRENCIES
    ]
    for concurrency, limit in ((64, 1 / 10), (512, 1 / 30)):
        for contender, name in (("published", "omnigate 0.1.0"), ("openai", "the OpenAI SDK")):
            checks += [
                Check(
                    f"{backend}, {concurrency:,} in flight, against {name}",
                    figure("ours", backend, concurrency),
                    figure(contender, "asyncio", concurrency),
                    limit,
                )
                for backend in ("asyncio", "trio")
            ]
    checks += [
        Check(
            f"asyncio, {concurrency:,} in flight, against aiohttp",
            figure("ours", "asyncio", concurrency),
            figure("aiohttp", "asyncio", concurrency),
            1.0,
        )
        for concurrency in CONCURRENCIES[1:]
    ]
    checks += [
        Check(
            f"{backend}, 64 in flight, TLS, against aiohttp",
            figure("ours", backend, 64, True),
            figure("aiohttp", "asyncio", 64, True),
            1.0,
        )
        for backend in ("asyncio", "trio")
    ]
    return "Client CPU time per chat", list(results.values()), checks


if __name__ == "__main__":
    main(benchmark)
