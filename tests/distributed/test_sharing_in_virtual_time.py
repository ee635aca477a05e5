"""Workers that share one pacer, in virtual time: the whole limit, hardly a rejection, nobody starved, on bad days, too.

Each worker has a clock of its own, up to a minute off and up to 1e-4 too fast or slow.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.support.gateway_model import Events, Gateway, HeedlessClient
from tests.support.shared_pacer_model import Server, Worker

Latency = Callable[[random.Random], float]

LATENCIES: dict[str, Latency] = {"0.3 s": lambda dice: 0.3, "5 to 40 s": lambda dice: dice.uniform(5, 40)}

WINDOWS = 10


class Result(NamedTuple):
    """Of each window: calls admitted and rejected, as parts of the limit and in numbers; and of each worker."""

    admitted: list[float]
    rejected: list[int]
    by_worker: dict[str, int]
    messages: float  # a second and worker

    @property
    def total(self) -> float:
        return sum(self.admitted) / len(self.admitted)

    def check(self, *, least: float = 0.97) -> None:
        assert self.total >= least
        assert sum(self.rejected) < len(self.rejected)


class Cluster:
    """Workers without end of items, a gateway and a shared pacer."""

    def __init__(
        self, workers: int, limit: int, latency: str, *, seed: int = 0, apart: float = 0.05, period: int = 60
    ) -> None:
        self.dice, self.events = random.Random(seed), Events()
        self.gateway = Gateway(
            self.events, limit, phase=self.events.now - self.dice.uniform(0, period), period=period
        )
        self.server = Server(self.events, self.dice)
        self._latency = LATENCIES[latency]
        self._concurrency = min(2 * limit + 50, 6 * limit // workers + 50)
        self.workers: list[Worker] = []
        for number in range(workers):
            self.events.at(self.events.now + apart * number, self.new_worker().start)
        self.first = self.gateway.window() + 2 + int(apart * workers / period)

    def new_worker(self) -> Worker:
        dice = self.dice
        worker = Worker(
            self.gateway,
            self.server,
            dice,
            lambda: self._latency(dice),
            name=f"worker {len(self.workers)}",
            concurrency=self._concurrency,
            way=lambda: dice.uniform(0.3, 1.0) if dice.random() < 0.002 else dice.uniform(0.005, 0.06),
            link_way=lambda: dice.uniform(0.0005, 0.01),
        )
        self.workers.append(worker)
        return worker

    def at(self, window: int, seconds: float, action: Callable[[], None]) -> None:
        """Do something so many seconds after the beginning of a window that is looked at."""
        self.events.at(self.gateway.begin(self.first + window) + seconds, action)

    def alive(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.is_alive]

    def replace(self, worker: Worker, seconds: float) -> None:
        """Start another worker, later."""
        self.events.after(seconds, self.new_worker().start)

    def run(self, windows: int = WINDOWS) -> Result:
        gateway, names = self.gateway, [worker.name for worker in self.workers]
        within = range(self.first, self.first + windows)
        self.events.run_until(gateway.begin(within.start))
        before = self.server.messages
        self.events.run_until(gateway.begin(within.stop))
        names = [worker.name for worker in self.workers]
        seconds = windows * gateway.period * len(names)
        return Result(
            [sum(gateway.admitted[name, window] for name in names) / gateway.limit for window in within],
            [sum(gateway.rejected[name, window] for name in names) for window in within],
            {name: sum(gateway.admitted[name, window] for window in within) for name in names},
            (self.server.messages - before) / seconds,
        )


@pytest.mark.parametrize("latency", LATENCIES)
@pytest.mark.parametrize(
    ("workers", "limit"),
    [
        (1, 60),
        (2, 60),
        (16, 60),
        pytest.param(100, 60, marks=pytest.mark.proof),
        pytest.param(1_000, 60, marks=pytest.mark.proof),
        (2, 600),
        pytest.param(16, 600, marks=pytest.mark.proof),
        pytest.param(100, 600, marks=pytest.mark.proof),
        pytest.param(1_000, 600, marks=pytest.mark.heavy),
    ],
)
def test_workers_use_the_whole_limit_without_rejections_and_fairly(
    workers: int, limit: int, latency: str
) -> None:
    result = Cluster(workers, limit, latency).run()
    result.check(least=1.0)
    if limit >= 10 * workers:
        mean = limit * WINDOWS / workers
        assert min(result.by_worker.values()) >= 0.9 * mean
    assert result.messages <= 4


@pytest.mark.parametrize(
    ("workers", "latency", "windows"),
    [
        pytest.param(2, "0.3 s", 2, marks=pytest.mark.proof),
        pytest.param(16, "5 to 40 s", 2, marks=pytest.mark.proof),
        pytest.param(100, "0.3 s", 2, marks=pytest.mark.proof),
        pytest.param(1_000, "5 to 40 s", 2, marks=pytest.mark.proof),
        *(
            pytest.param(workers, latency, WINDOWS, marks=[pytest.mark.heavy, pytest.mark.timeout(300)])
            for workers in (2, 16, 100, 1_000)
            for latency in LATENCIES
        ),
    ],
)
def test_sixty_thousand_a_minute_are_used_up_with_few_messages(
    workers: int, latency: str, windows: int
) -> None:
    result = Cluster(workers, 60_000, latency).run(windows)
    result.check(least=1.0)
    assert min(result.by_worker.values()) >= 0.9 * 60_000 * windows / workers
    assert result.messages <= 4


CLUSTERS = pytest.mark.parametrize(
    ("workers", "limit", "latency"),
    [
        (2, 60, "0.3 s"),
        pytest.param(2, 60, "5 to 40 s", marks=pytest.mark.proof),
        pytest.param(16, 60, "0.3 s", marks=pytest.mark.proof),
        pytest.param(16, 60, "5 to 40 s", marks=pytest.mark.proof),
        pytest.param(16, 600, "0.3 s", marks=pytest.mark.proof),
        pytest.param(16, 600, "5 to 40 s", marks=pytest.mark.proof),
        pytest.param(100, 600, "0.3 s", marks=pytest.mark.proof),
        pytest.param(100, 600, "5 to 40 s", marks=pytest.mark.proof),
    ],
)


@CLUSTERS
def test_a_worker_that_dies_in_each_window_costs_its_lease_at_most(
    workers: int, limit: int, latency: str
) -> None:
    cluster = Cluster(workers, limit, latency, seed=1)

    def kill() -> None:
        worker = cluster.dice.choice(cluster.alive())
        worker.dies_when_granted = True
        cluster.replace(worker, 20)

    for window in range(WINDOWS):
        cluster.at(window, cluster.dice.uniform(1, 6), kill)
    cluster.run().check()


@CLUSTERS
def test_workers_may_come_and_go_at_any_time(workers: int, limit: int, latency: str) -> None:
    cluster = Cluster(workers, limit, latency, seed=2)
    dice = cluster.dice

    def change() -> None:
        alive = cluster.alive()
        if len(alive) > 1:
            worker = dice.choice(alive)
            (worker.leave if dice.random() < 0.5 else worker.die)()
            cluster.replace(worker, dice.uniform(0, 10))

    for _ in range(60):
        cluster.at(0, dice.uniform(0, 60 * WINDOWS), change)
    cluster.run().check(least=0.99)


@CLUSTERS
@pytest.mark.parametrize("down_seconds", [0.0, 1.0])
def test_a_pacer_that_restarts_knowing_nothing_goes_on_where_the_old_one_was(
    workers: int, limit: int, latency: str, down_seconds: float
) -> None:
    cluster = Cluster(workers, limit, latency, seed=3)
    for window, seconds in ((1, 3.0), (3, 0.5), (5, 30), (7, 59.5)):
        cluster.at(window, seconds, cluster.server.stop)
        cluster.at(window, seconds + down_seconds, cluster.server.restart)
    cluster.run().check(least=0.99)


@pytest.mark.proof
@pytest.mark.parametrize("latency", LATENCIES)
@pytest.mark.parametrize("workers", [2, 16])
def test_without_the_pacer_workers_pace_themselves_and_return_to_it(workers: int, latency: str) -> None:
    cluster = Cluster(workers, 600, latency, seed=4)
    cluster.at(1, 20, cluster.server.stop)
    cluster.at(4, 20, cluster.server.restart)
    result = cluster.run()
    assert result.total >= 0.9
    assert min(result.admitted) >= 0.5  # as header pacing does, once it has heard how many they are
    assert sum(result.rejected[6:]) < 4
    assert min(result.admitted[6:]) >= 0.97


@pytest.mark.parametrize("workers", [2, pytest.param(16, marks=pytest.mark.proof)])
def test_a_worker_that_needs_little_leaves_the_rest_to_the_others(workers: int) -> None:
    cluster = Cluster(workers, 600, "5 to 40 s", seed=5)
    for worker in cluster.workers[::2]:
        worker.concurrency = 1
    result = cluster.run()
    result.check(least=0.99)
    most = max(result.by_worker.values())
    assert most >= 1.9 * 600 * WINDOWS / workers


@pytest.mark.proof
@pytest.mark.parametrize("latency", LATENCIES)
def test_others_with_the_same_key_are_left_room_for(latency: str) -> None:
    cluster = Cluster(4, 60, latency, seed=6)
    dice = cluster.dice
    HeedlessClient(cluster.gateway, "other", lambda now: now + 5 * dice.uniform(0.7, 1.3), waiting_max=10)
    result = cluster.run()
    others = [cluster.gateway.admitted["other", cluster.first + window] for window in range(WINDOWS)]
    assert min(others[2:]) >= 10  # of about twelve in each window
    assert sum(result.rejected[2:]) <= WINDOWS
    assert sum(result.admitted) * 60 + sum(others) >= 0.95 * 60 * WINDOWS


@pytest.mark.parametrize("times", [0.8, 3])
def test_a_third_of_the_limit_is_kept_from_another_that_takes_all_it_can(times: float) -> None:
    """It sends so many times the limit."""
    cluster = Cluster(4, 60, "0.3 s", seed=6)
    dice = cluster.dice
    HeedlessClient(cluster.gateway, "other", lambda now: now + dice.uniform(0.7, 1.3) / times, waiting_max=10)
    result = cluster.run()
    assert min(result.admitted) >= 1 / 3
    assert sum(result.rejected) <= WINDOWS


@pytest.mark.parametrize("period", [2, 5, 10])
def test_short_windows_are_used_up_as_well(period: int) -> None:
    cluster = Cluster(4, 120, "0.3 s", period=period)
    cluster.run().check()


@pytest.mark.parametrize("period", [4, 6])
@pytest.mark.parametrize("seconds", [0.5, 1.3, 3.9])
def test_a_pacer_that_restarts_is_told_that_windows_are_short(period: int, seconds: float) -> None:
    """Else it takes them for a minute, and what was counted in one of them for the calls of others in another."""
    cluster = Cluster(4, 200, "0.3 s", seed=7, period=period)
    cluster.at(2, seconds, cluster.server.stop)
    cluster.at(2, seconds + 0.5, cluster.server.restart)
    result = cluster.run()
    assert sum(result.rejected) == 0
    assert min(result.admitted[5:]) == 1  # in the two or three before it listened


def test_a_gateway_without_a_limit_is_not_paced() -> None:
    cluster = Cluster(4, 1_000_000, "0.3 s")
    cluster.gateway.has_headers = False
    for worker in cluster.workers:
        worker.concurrency = 3
    cluster.events.run_until(cluster.events.now + 30)
    for worker in cluster.workers:
        calls = sum(cluster.gateway.admitted[worker.name, cluster.gateway.window() - age] for age in (0, 1))
        assert calls >= 3 * 27 / 0.45  # as many as three slots can make
