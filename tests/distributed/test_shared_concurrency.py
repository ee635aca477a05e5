"""The adaptive limit of a model that many workers share: the sum fits the provider, the parts are fair."""

import random
import statistics

import msgspec
import pytest

from omnigate._batch.pace.concurrency import AdaptiveConcurrency
from omnigate._batch.pace.messages import LATENCIES_MAX, ModelReport
from omnigate._batch.pace.shared_concurrency import SharedConcurrency
from omnigate.distributed._models import ModelState, SharedModel
from tests.support.gateway_model import Events, Provider


class Worker:
    """A batch of one model without end of items, in flight as its part of the limit allows; reports once a second."""

    def __init__(
        self, name: str, events: Events, provider: Provider, shared: SharedModel, dice: random.Random
    ) -> None:
        self.name, self.in_flight, self.done = name, 0, 0
        self.bound = 1 << 30
        self.concurrency = SharedConcurrency("m", AdaptiveConcurrency(), uniform=dice.uniform)
        self._events, self._provider, self._shared, self._dice = events, provider, shared, dice
        events.after(dice.uniform(0, 1), self._report)

    def pump(self) -> None:
        while self.in_flight < min(self.bound, self.concurrency.limit):
            self._send()

    def _send(self) -> None:
        self.in_flight += 1
        sent_at, in_flight = self._events.now, self.in_flight

        def done() -> None:
            self.in_flight -= 1
            self.done += 1
            now = self._events.now
            self.concurrency.succeeded(now, now - sent_at, in_flight)
            self.pump()

        self._provider.call(self._dice.uniform(0.7, 1.3), done)

    def _report(self) -> None:
        is_full = self.in_flight >= self.concurrency.limit
        report = self.concurrency.report(self._events.now, self.in_flight, is_full=is_full)
        self.concurrency.granted(self._shared.exchange(self.name, report, self._events.now))
        self.pump()
        self._events.after(1.0, self._report)


def run(
    workers: int, capacity: int, *, bound: int | None = None, seed: int = 0
) -> tuple[float, float, list[int]]:
    """Run for ten minutes.

    Returns:
        Of the last five: calls a second, calls in flight on average, and how many each worker made.
    """
    dice, events = random.Random(seed), Events()
    provider = Provider(events, capacity, exponent=1.2)
    shared = SharedModel(ModelState(events.now))
    all_of_them = [Worker(f"w{number}", events, provider, shared, dice) for number in range(workers)]
    if bound is not None:
        all_of_them[0].bound = bound
    for worker in all_of_them:
        worker.pump()
    levels: list[int] = []
    events.run_until(events.now + 300)
    before = [worker.done for worker in all_of_them]
    for _ in range(300):
        events.run_until(events.now + 1)
        levels.append(sum(worker.in_flight for worker in all_of_them))
    made = [worker.done - count for worker, count in zip(all_of_them, before, strict=True)]
    return sum(made) / 300, statistics.mean(levels), made


@pytest.mark.parametrize(
    ("workers", "capacity"),
    [(2, 20), pytest.param(4, 100, marks=pytest.mark.proof), pytest.param(16, 200, marks=pytest.mark.proof)],
)
def test_workers_together_find_the_providers_capacity_and_share_it_fairly(
    workers: int, capacity: int
) -> None:
    rate, in_flight, made = run(workers, capacity)
    assert rate >= 0.75 * capacity
    assert in_flight <= 1.7 * capacity
    assert min(made) >= 0.7 * statistics.mean(made)


def test_a_worker_that_uses_little_leaves_the_rest_to_the_others() -> None:
    rate, _, made = run(2, 20, bound=4)
    assert rate >= 0.75 * 20
    assert made[1] > 2 * made[0]


def begun(limit: int, workers: str) -> SharedModel:
    """Return a model whose workers have told their limits, which come to this together."""
    shared = SharedModel(ModelState(0.0))
    for place, name in enumerate(workers):
        own = limit * (place + 1) // len(workers) - limit * place // len(workers)
        assert shared.exchange(name, ModelReport("m", 0, 0, own), 1.0) == 0
    return shared


@pytest.mark.parametrize(
    ("limit", "wants", "parts"),  # wants: (in flight, whether it could use more)
    [
        (32, [(8, True)] * 4, [8, 8, 8, 8]),
        (34, [(8, True)] * 4, [8, 9, 8, 9]),
        (32, [(2, False), (8, True), (8, True), (8, True)], [8, 10, 10, 10]),
        (32, [(30, True), (1, True)], [16, 2]),
        (8, [(1, True)] * 10, [1] * 10),
        (40, [(16, False), (20, True)], [20, 24]),
        (40, [(30, False), (5, True)], [34, 10]),
    ],
)
def test_the_limit_is_divided_by_need(limit: int, wants: list[tuple[int, bool]], parts: list[int]) -> None:
    names = "abcdefghij"[: len(wants)]
    shared = begun(limit, names)
    granted: list[int] = []
    for _ in range(2):  # the second time all are known
        granted = [
            shared.exchange(
                name, ModelReport("m", in_flight, 2 * in_flight if is_full else in_flight, 8), 4.0
            )
            for name, (in_flight, is_full) in zip(names, wants, strict=True)
        ]
    assert granted == parts


def test_a_worker_that_has_died_or_left_has_no_part() -> None:
    shared = begun(40, "abc")
    for _ in range(2):
        parts = [shared.exchange(name, ModelReport("m", 10, 99, 10), 4.0) for name in "abc"]
    assert parts == [13, 13, 14]
    del shared.state.members["b"]
    shared.exchange("c", ModelReport("m", 0, 0, 10), 4.0)
    assert shared.exchange("a", ModelReport("m", 10, 99, 10), 4.0) == 40  # c does not call
    shared.exchange("c", ModelReport("m", 10, 99, 10), 4.0)
    assert shared.exchange("a", ModelReport("m", 10, 99, 10), 4.1) == 20
    assert shared.exchange("a", ModelReport("m", 10, 99, 10), 9.2) == 40


def test_overload_cuts_the_limit_of_all_and_forgiving_restores_it() -> None:
    shared = begun(80, "ab")
    fine = ModelReport("m", 40, 80, 40, latencies=[0.5] * 50)
    for _ in range(2):
        shared.exchange("a", fine, 5.0)
    before = shared.exchange("b", fine, 5.0)
    shared.exchange("a", ModelReport("m", 40, 80, 40, overloads=[0.4] * 20), 8.0)
    cut = shared.exchange("b", ModelReport("m", 40, 80, 40), 8.0)
    assert cut <= 0.6 * before
    shared.exchange("a", ModelReport("m", 40, 80, 40, is_forgiven=True), 9.0)
    assert shared.exchange("b", ModelReport("m", 40, 80, 40), 9.0) >= max(1.3 * cut, 0.65 * before)


def test_a_worker_cuts_its_part_itself_and_only_once_until_the_next_grant() -> None:
    concurrency = SharedConcurrency("m", AdaptiveConcurrency())
    concurrency.granted(20)
    for _ in range(5):
        concurrency.overloaded(10.0, 9.5)
    assert concurrency.limit == 14
    report = concurrency.report(11.0, 14, is_full=True)
    assert report.overloads == [1.5] * 5
    concurrency.granted(16)
    concurrency.overloaded(12.0, 11.5)
    assert concurrency.limit == 11


def test_without_a_part_its_own_limit_counts_which_has_learnt_all_along() -> None:
    concurrency = SharedConcurrency("m", AdaptiveConcurrency())
    concurrency.granted(30)
    for number in range(100):
        concurrency.succeeded(number * 0.1, 0.5, 30)
    assert concurrency.limit == 30
    concurrency.granted(0)
    assert concurrency.limit == concurrency.own.limit > 8


def test_a_report_has_a_bounded_sample_of_the_latencies() -> None:
    concurrency = SharedConcurrency("m", AdaptiveConcurrency(), uniform=random.Random(3).uniform)
    for number in range(10_000):
        concurrency.succeeded(0.0, float(number), 8)
    latencies = concurrency.report(0.0, 8, is_full=True).latencies
    assert len(latencies) == LATENCIES_MAX
    assert 2_000 < statistics.median(latencies) < 3_700  # as none is longer than an hour
    assert concurrency.report(0.0, 8, is_full=False).latencies == []


def test_what_is_known_of_a_model_can_be_stored() -> None:
    dice = random.Random(4)
    shared = begun(40, "ab")
    now = 4.0
    for _ in range(400):
        now += 0.25
        name = dice.choice("ab")
        overloads = [0.2] * dice.choice([0] * 20 + [1, 3])
        latencies = [dice.uniform(0.5, 0.7) for _ in range(20)]
        report = ModelReport("m", 20, 40, 20, latencies=latencies, overloads=overloads)
        shared.store()
        stored = msgspec.msgpack.encode(shared.state)
        twin = SharedModel(msgspec.msgpack.decode(stored, type=ModelState))
        assert twin.exchange(name, report, now) == shared.exchange(name, report, now)
        twin.store()
        shared.store()
        assert msgspec.msgpack.encode(twin.state) == msgspec.msgpack.encode(shared.state)
