"""What sharing a limit costs, and how calls a second grow with processes.

    python -m benchmarks.distributed [--quick]

Each process runs a batch against a server of canned responses, which has no limit, and counts its messages to
a pacer in a process of its own. The pacer's cost is that of its decisions for one call, over those of a batch
without one. Where answers take a while, one process is bound by its calls in flight, as with real models.
"""

from __future__ import annotations

import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio

from benchmarks.harness import HERE, server
from omnigate import AsyncClient
from omnigate._batch.pace.lease import LeasePacer
from omnigate._batch.pace.messages import VERSION, Grant
from omnigate._batch.pace.pacer import Pacer
from omnigate._limits import RateLimit
from omnigate.distributed import SocketPacer

CALLS = 20_000
PROCESSES = (1, 2, 4)
CONCURRENCY = 64
DECISIONS = 200_000


class Counting:
    """A link that counts what it carries."""

    def __init__(self, link: SocketPacer) -> None:
        self._link = link
        self.messages = 0

    async def exchange(self, report: bytes) -> bytes:
        self.messages += 1
        return await self._link.exchange(report)

    async def aclose(self) -> None:
        await self._link.aclose()


async def work(url: str, address: str, calls: int) -> None:
    """Run a worker: say that it is ready, wait for a line, run its batch, and print the figures."""
    link = Counting(SocketPacer(address)) if address else None
    async with AsyncClient("llmg_key", base_url=url) as client:

        async def batch(count: int) -> None:
            items = ({"id": str(number), "messages": "Say hi"} for number in range(count))
            options: dict[str, Any] = {"model": "gpt-4o-mini", "max_concurrency": CONCURRENCY, "pacer": link}
            async with client.batch(items, **options) as running:
                async for outcome in running:
                    outcome.unwrap()

        await batch(200)
        print("ready", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)
        if link is not None:
            link.messages = 0
        begun, used = time.perf_counter(), time.process_time()
        await batch(calls)
        seconds, used = time.perf_counter() - begun, time.process_time() - used
    print(calls / seconds, 1e6 * used / calls, 0 if link is None else link.messages / seconds, flush=True)


def measure(url: str, address: str, processes: int, calls: int) -> tuple[float, float, float]:
    """Return calls a second of all processes, and of each microseconds a call and messages a second."""
    command = [sys.executable, "-m", "benchmarks.distributed", "work", url, address, str(calls)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE.parent)
        for _ in range(processes)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        rows = [tuple(map(float, worker.communicate(timeout=600)[0].split())) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    rates, costs, messages = zip(*rows, strict=True)
    return sum(rates), statistics.mean(costs), max(messages)


@contextmanager
def pacer_server() -> Iterator[str]:
    """Run the command that serves a pacer; yield its address."""
    before = os.environ.get("OMNIGATE_PACER_SECRET")
    os.environ["OMNIGATE_PACER_SECRET"] = before or secrets.token_urlsafe()
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{Path(folder, 'pacer.sock')}"
        command = [sys.executable, "-m", "omnigate.distributed", address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline()
                yield address
            finally:
                process.terminate()


def decide(pacer: Pacer | LeasePacer, count: int) -> float:
    """Return the microseconds that the decisions for a call take."""
    limit = RateLimit(100_000_000, 90_000_000, 30)
    begun = time.process_time()
    for number in range(count):
        now = 1 + number * 1e-5
        assert pacer.ask(now) <= now
        pacer.answered(pacer.sent(now), now + 1e-6, limit)
    return 1e6 * (time.process_time() - begun) / count


def cost_of_a_call(count: int) -> tuple[float, float]:
    """Return the microseconds that a call's decisions take without and with leases."""
    alone, leased = [], []
    for _ in range(5):
        alone.append(decide(Pacer(utc=time.time), count))
        pacer = LeasePacer(b"a digest of a key", "worker", Pacer(utc=time.time))
        pacer.link(0.0)
        pacer.report(0.0)
        grant = Grant(VERSION, 1, 0.0, 1, 100_000_000, 50.0, 3.0, 0.25, 0.0, 100_000_000, 55.0)
        pacer.granted(grant, 0.001)
        leased.append(decide(pacer, count))
    return min(alone), min(leased)


def main() -> None:
    """Measure and print tables."""
    is_quick = "--quick" in sys.argv
    calls = CALLS // (100 if is_quick else 1)
    alone, leased = cost_of_a_call(DECISIONS // (100 if is_quick else 1))
    print(f"Decisions for a call: {alone:.1f} µs without a shared pacer, {leased:.1f} µs with one.\n")
    print("| answer after | processes | pacer | calls a second | µs of CPU a call | messages a second |")
    print("| ---: | ---: | --- | ---: | ---: | ---: |")
    for delay, count in ((0.0, calls), (0.25, calls // 10)):
        with server("--unlimited", "--delay", str(delay)) as port, pacer_server() as address:
            url = f"http://127.0.0.1:{port}"
            for processes in PROCESSES:
                for shown, used in (("none", ""), ("socket", address)):
                    rate, cost, messages = measure(url, used, processes, count)
                    row = f"{delay} s | {processes} | {shown} | {rate:,.0f} | {cost:.0f} | {messages:.1f}"
                    print(f"| {row} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        anyio.run(work, sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
