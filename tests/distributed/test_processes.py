"""Four processes share one limit over a socket or a Redis, while one of them and the server are killed.

The local gateway's windows last 4 seconds here, so what takes seconds costs fifteen times as much of a window as it
really does. A new pacer hears its workers for 3.5 seconds, which may cost a whole one. So the windows in which the server
was down or listened are not counted, and that of the worker's death may lack its part, which is kept for it until it is
missed. That both cost hardly anything of a minute is proved in virtual time.
"""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from omnigate import merge_journals, read_journal
from omnigate.distributed._leases import _RECOVERY_SECONDS
from omnigate.testing import LocalGateway
from omnigate.testing._gateway.limits import Admission, RateLimiter

from ..support import worker_process
from ..support.redis_server import redis_server

pytestmark = [pytest.mark.proof, pytest.mark.timeout(180)]

SECRET = "a secret of enough bytes"

WINDOW_SECONDS = 4

LIMIT = 200

WINDOWS = 7

ITEMS = LIMIT * WINDOWS

LOOPS = ("sync", "asyncio", "trio", "asyncio")


class Counted(RateLimiter):
    """Also counts what it has accepted and rejected in each window."""

    def __init__(self) -> None:
        super().__init__(WINDOW_SECONDS)
        self.accepted: Counter[int] = Counter()
        self.rejected: Counter[int] = Counter()

    def admit(self, project_id: str, limit: int, now: float) -> Admission:
        admission = super().admit(project_id, limit, now)
        (self.accepted if admission.allowed else self.rejected)[int(now // WINDOW_SECONDS)] += 1
        return admission

    @property
    def count(self) -> int:
        return self.accepted.total() + self.rejected.total()


class Server(Protocol):
    address: str

    def start(self) -> None: ...
    def kill(self) -> None: ...


class SocketServer:
    """The command that runs a `PacerServer`."""

    def __init__(self, directory: Path) -> None:
        self.address = f"unix:{directory}/p.sock"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "omnigate.distributed", self.address]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == f"Listening at {self.address}\n"

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@contextmanager
def running(kind: str, directory: Path) -> Iterator[Any]:
    if kind == "redis":
        with redis_server() as redis:
            redis.address = redis.url  # type: ignore[attr-defined]
            yield redis
        return
    server = SocketServer(directory)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def wait_until(condition: Callable[[], bool], workers: "list[subprocess.Popen[str]]") -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        for worker in workers:
            assert worker.poll() is None, worker.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["socket", "redis"])
def test_four_processes_keep_one_limit_while_a_worker_and_the_server_are_killed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIGATE_PACER_SECRET", SECRET)
    limiter = Counted()
    gateway = LocalGateway(rate_limit_per_min=LIMIT, rate_window_seconds=WINDOW_SECONDS, latency_seconds=0.1)
    gateway._state.limiter = limiter

    def window(later_seconds: float = 0) -> int:
        return int((gateway._state.clock() + later_seconds) // WINDOW_SECONDS)

    with running(kind, tmp_path) as server, gateway:
        key = gateway.create_project(rate_limit_per_min=LIMIT).api_key
        part = ITEMS // len(LOOPS)

        def start(number: int) -> "subprocess.Popen[str]":
            journal = tmp_path / f"{number}.jsonl"
            items = number * part, (number + 1) * part
            return worker_process.start(
                kind, server.address, LOOPS[number], gateway.url, key, journal, *items
            )

        workers = [start(number) for number in range(len(LOOPS))]
        try:
            wait_until(lambda: limiter.count > 1.3 * LIMIT, workers)
            of_death = {window()}
            workers[0].kill()
            workers[0].communicate()
            of_death.add(window())
            workers[0] = start(0)
            wait_until(lambda: limiter.count > 3.2 * LIMIT, workers)
            killed_at, first = time.monotonic(), window()
            server.kill()
            server.start()
            down_seconds = time.monotonic() - killed_at  # so much later the workers have tried again
            of_restart = range(first, window(down_seconds + _RECOVERY_SECONDS + 1) + 1)
            ends = [worker.communicate(timeout=120) for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()
    assert [worker.returncode for worker in workers] == [0] * len(LOOPS), ends
    assert [out for out, _ in ends] == [f"{part} 0\n"] * len(LOOPS)
    journals = [tmp_path / f"{number}.jsonl" for number in range(len(LOOPS))]
    merged = merge_journals(journals, tmp_path / "all.jsonl")
    assert (merged.succeeded, merged.failed, merged.conflict_count) == (ITEMS, 0, 0)
    ids = [outcome.id for outcome in read_journal(tmp_path / "all.jsonl")]
    assert sorted(map(int, ids)) == list(range(ITEMS))
    figures = f"{dict(limiter.accepted)}, {dict(limiter.rejected)}, {of_death}, {of_restart}"
    whole = set(range(min(limiter.accepted) + 1, max(limiter.accepted) - 1))  # the first and last two are cut
    assert min(limiter.accepted[window] for window in whole & of_death) >= (0.97 - 1 / len(LOOPS)) * LIMIT, (
        figures
    )
    quiet = whole - of_death - set(of_restart)
    used = sum(limiter.accepted[window] for window in quiet) / (LIMIT * len(quiet))
    assert used >= 0.97, figures
    assert limiter.rejected.total() < len(whole), figures
    assert limiter.count < 1.05 * ITEMS, "only what was in flight when a worker was killed is called again"
