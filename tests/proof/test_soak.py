"""Load and soak: many calls (some faulty), streams, threads, event loops and forks through one client.

The sizes are small with the marker `proof`; `pytest -m heavy tests/proof/test_soak.py -s` runs the large ones and prints figures.
"""

import gc
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from omnigate import AnyIOTransport, AsyncClient, Client, GatewayError, RetryConfig
from omnigate.testing import LocalGateway

pytestmark = pytest.mark.proof

SERVER = Path(__file__).parent.parent / "support" / "faulty_server.py"
MODEL = "gpt-4o-mini"
FRACTION = 0.01
RETRIES = RetryConfig(max_retries=2, backoff_base=0.01, jitter=0)


@contextmanager
def faulty_server(fraction: float = FRACTION) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the server; yield its address, and a dict that receives its counts when it stops."""
    counts: dict[str, Any] = {}
    command = [sys.executable, str(SERVER), str(fraction), "7"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}", counts
        finally:
            process.stdin.close()
            counts.update(json.loads(process.stdout.readline()))


def sockets() -> int:
    """Return how many sockets this process has open."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except FileNotFoundError:  # the descriptor of the listing itself
            pass
    return count


def resident_megabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


SIZES = [
    pytest.param(10_000, id="10,000"),
    pytest.param(1_000_000, id="1,000,000", marks=[pytest.mark.heavy, pytest.mark.timeout(1_200)]),
]


@pytest.mark.anyio
@pytest.mark.parametrize("calls", SIZES)
async def test_calls_with_faults_of_all_kinds_are_all_accounted_for_and_leak_nothing(calls: int) -> None:
    before = sockets()
    memory: list[float] = []
    open_sockets: list[int] = []
    ends: Counter[str] = Counter()
    attempts = 0
    with faulty_server() as (url, counts):
        transport = AnyIOTransport(max_connections=100)
        client = AsyncClient("llmg_x", base_url=url, timeout=1.0, retry_config=RETRIES, transport=transport)
        async with client:
            async with client.batch(
                (f"{n}" for n in range(calls)), model=MODEL, max_concurrency=64, stop_on=()
            ) as batch:
                async for outcome in batch:
                    attempts += outcome.attempts
                    ends[type(outcome.error).__name__ if outcome.error else outcome.unwrap().content] += 1
                    if sum(ends.values()) % (calls // 10) == 0:
                        memory.append(resident_megabytes())
                        open_sockets.append(sockets())
            stats = transport.stats()
            assert (stats["in_use"], stats["waiting"], stats["opening"]) == (0, 0, 0)
        gc.collect()
    print(f"\n{calls:,} calls, {attempts - calls:,} sent again, {dict(ends)}")
    print(f"MB {[round(value, 1) for value in memory]}, sockets {open_sockets}, faults {counts['made']}")
    assert sum(ends.values()) == calls
    assert counts["requests"] <= attempts  # a connection may have failed before its request arrived
    assert min(counts["made"].values()) > 0
    assert ends["fine"] > calls * 0.99
    # No fault is lost: each one that is never retried fails a call, the others may succeed on a retry.
    made = counts["made"]
    assert ends["ProviderError"] >= made["400"]
    assert ends["InvalidResponseError"] == made["not JSON"] + made["another type"]
    assert max(open_sockets) <= before + 64 + 10
    assert memory[-1] <= memory[1] + 5
    await anyio.lowlevel.checkpoint()
    assert sockets() == before


@pytest.mark.anyio
async def test_two_thousand_concurrent_streams_half_of_them_abandoned_leak_nothing() -> None:
    before = sockets()
    chance = random.Random(11)
    read: Counter[str] = Counter()
    with faulty_server(0) as (url, _):
        transport = AnyIOTransport(max_connections=None)
        async with AsyncClient("llmg_x", base_url=url, transport=transport, timeout=60) as client:

            async def read_stream(stop_after: int | None) -> None:
                async with client.chat_stream(model=MODEL, messages="x") as stream:
                    words = 0
                    async for piece in stream:
                        words += piece.count("word ")
                        if stop_after is not None and words >= stop_after:
                            break
                read["abandoned" if stop_after is not None else "whole"] += 1
                assert stop_after is not None or words == 20

            async with anyio.create_task_group() as group:
                for number in range(2_000):
                    group.start_soon(read_stream, chance.randrange(1, 20) if number % 2 else None)
            stats = transport.stats()
            assert (stats["in_use"], stats["waiting"], stats["opening"]) == (0, 0, 0)
            assert (await client.chat(model=MODEL, messages="next")).content == "fine"
    assert read == {"abandoned": 1_000, "whole": 1_000}
    assert sockets() == before


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_sync_client_serves_64_threads_despite_interrupts(backend: Any) -> None:
    ends: Counter[str] = Counter()
    lock = threading.Lock()
    interrupts = 0
    with LocalGateway(latency_seconds=0.01) as gateway:
        client = Client(gateway.api_key, base_url=gateway.url, backend=backend)

        def work(number: int) -> None:
            for turn in range(10):
                if (number + turn) % 4 == 0:  # leaves the stream midway
                    with client.chat_stream(model=MODEL, messages="a b c d e f") as stream:
                        next(stream)
                    end = "stream"
                else:
                    end = client.chat(model=MODEL, messages="x").content
                with lock:
                    ends[end] += 1

        threads = [threading.Thread(target=work, args=(number,)) for number in range(64)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) or interrupts < 10:
            timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
            try:
                timer.start()
                while True:
                    client.chat(model=MODEL, messages="to be interrupted")
            except KeyboardInterrupt:
                interrupts += 1
            timer.join()
        for thread in threads:
            thread.join(30)
        assert client.chat(model=MODEL, messages="next").content == "echo[gpt-4o-mini]: next"
        transport: Any = client._async._session.carrier.transport
        stats = transport.stats()
        client.close()
    assert ends == {"stream": 160, "echo[gpt-4o-mini]: x": 480}
    assert interrupts >= 10
    assert (stats["in_use"], stats["waiting"], stats["opening"]) == (0, 0, 0)
    assert not [thread for thread in threading.enumerate() if thread.name == "omnigate-portal"]


LOOPS = """
import gc, os, sys, warnings
warnings.simplefilter("ignore", ResourceWarning)  # asyncio's own, of transports whose loop was closed over them
import anyio
import anyio.lowlevel
from omnigate import AsyncClient

client = AsyncClient(sys.argv[1], base_url=sys.argv[2])

async def main():
    answer = await client.chat(model="gpt-4o-mini", messages="x")
    assert answer.content == "echo[gpt-4o-mini]: x"
    async with client.batch(["a", "b"], model="gpt-4o-mini") as batch:
        assert len([outcome async for outcome in batch]) == 2
    async for piece in client.chat_stream(model="gpt-4o-mini", messages="x"):
        pass

counts = []
for turn in range(500):
    anyio.run(main, backend="trio" if turn % 2 else "asyncio")
    if turn % 50 == 49:
        gc.collect()
        counts.append(len(os.listdir("/proc/self/fd")))
print(*counts)
"""


def test_one_client_used_in_500_event_loops_leaks_no_descriptors() -> None:
    with LocalGateway() as gateway:
        done = subprocess.run(
            [sys.executable, "-c", LOOPS, gateway.api_key, gateway.url],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    counts = [int(word) for word in done.stdout.split()]
    assert len(counts) == 10
    assert max(counts) <= counts[0] + 2, counts


FORKS = """
import os, sys, threading
import omnigate

client = omnigate.Client(sys.argv[1], base_url=sys.argv[2])
stop = threading.Event()

def work():
    while not stop.is_set():
        assert client.chat(model="gpt-4o-mini", messages="x").content

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
with client.batch((f"{n}" for n in range(200)), model="gpt-4o-mini") as batch:
    for count, outcome in enumerate(batch):
        outcome.unwrap()
        if count % 40 == 20:
            child = os.fork()
            if child == 0:
                try:
                    client.chat(model="gpt-4o-mini", messages="in the child")
                except omnigate.ForkedClientError:
                    with omnigate.Client(sys.argv[1], base_url=sys.argv[2]) as own:
                        os._exit(0 if own.chat(model="gpt-4o-mini", messages="y").content else 2)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
stop.set()
for thread in threads:
    thread.join()
client.close()
print("done", count + 1)
"""


def test_fork_during_a_batch_raises_in_the_child_and_leaves_the_parent_intact() -> None:
    with LocalGateway() as gateway:
        done = subprocess.run(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS, gateway.api_key, gateway.url],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done 200\n", "")


def test_closing_a_client_ends_all_running_calls_with_client_closed_error() -> None:
    ends: Counter[str] = Counter()
    with LocalGateway(latency_seconds=30) as gateway:
        client = Client(gateway.api_key, base_url=gateway.url)
        begun = threading.Barrier(33)

        def work() -> None:
            begun.wait(10)
            try:
                client.chat(model=MODEL, messages="x")
            except GatewayError as error:
                ends[type(error).__name__] += 1

        threads = [threading.Thread(target=work) for _ in range(32)]
        for thread in threads:
            thread.start()
        begun.wait(10)
        client.close()
        for thread in threads:
            thread.join(15)
        assert not any(thread.is_alive() for thread in threads)
    assert sum(ends.values()) == 32
    assert set(ends) == {"ClientClosedError"}
