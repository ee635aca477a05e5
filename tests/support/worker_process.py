"""A worker of its own process that runs one part of a batch, as plain processes do.

Run as `python -m tests.support.worker_process KIND ADDRESS LOOP URL KEY JOURNAL FIRST LAST`; prints how many have succeeded
and failed.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio

from omnigate import AsyncClient, Client
from omnigate.distributed import RedisPacer, SocketPacer


def start(*arguments: object) -> "subprocess.Popen[str]":
    """Start a worker."""
    command = [sys.executable, "-m", __name__, *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )


def link_to(kind: str, address: str) -> Any:
    if kind == "socket":
        return SocketPacer(address)
    return RedisPacer(address) if kind == "redis" else None


def main(kind: str, address: str, loop: str, url: str, key: str, journal: str, first: str, last: str) -> None:
    items = [{"id": str(number), "messages": f"q{number}"} for number in range(int(first), int(last))]
    options = {"model": "gpt-4o-mini", "journal": journal, "pacer": link_to(kind, address)}
    if loop == "sync":
        with Client(key, base_url=url) as client:
            stats = client.batch(items, **options).run()
    else:

        async def run() -> Any:
            async with AsyncClient(key, base_url=url) as client, client.batch(items, **options) as batch:
                async for _ in batch:
                    pass
                return batch.stats

        stats = anyio.run(run, backend=loop)
    print(stats.succeeded + stats.replayed, stats.failed)


if __name__ == "__main__":
    main(*sys.argv[1:])
