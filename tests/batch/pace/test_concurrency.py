"""The adaptive limit: tables of outcomes and simulated providers in virtual time."""

import random
from collections.abc import Callable

import pytest

from omnigate._batch.pace.concurrency import AdaptiveConcurrency

from ...support.gateway_model import AdaptiveClient, Connections, Events, Provider

Work = Callable[[random.Random], float]

WORK: dict[str, Work] = {
    "0.3 s": lambda dice: 0.3,
    "5 to 40 s": lambda dice: dice.uniform(5, 40),
    "2 s, heavy-tailed": lambda dice: 2 * dice.lognormvariate(0, 0.5),
}


def succeed(
    limit: AdaptiveConcurrency, rounds: int, *, latency: float = 1.0, in_flight: int | None = None
) -> None:
    for number in range(rounds):
        for _ in range(limit.limit):
            limit.succeeded(1_000.0 + number, latency, limit.limit if in_flight is None else in_flight)


def run(events: Events, client: AdaptiveClient, calls: int) -> None:
    client.pump()
    until = client.succeeded + calls
    while client.succeeded < until:
        events.run_until(events.now + 1)


def mean_limit(client: AdaptiveClient, since: float) -> float:
    shares = client.shares(since)
    return sum(limit * seconds for limit, seconds in shares.items()) / sum(shares.values())


def simulate(
    capacity: int, exponent: float, work: Work, *, seed: int, calls: int
) -> tuple[float, AdaptiveClient]:
    """Return the mean limit over the second half of the calls, and the client."""
    dice, events = random.Random(seed), Events()
    provider = Provider(events, capacity, exponent)
    client = AdaptiveClient(
        events, lambda done, failed: provider.call(work(dice), done), AdaptiveConcurrency()
    )
    run(events, client, calls // 2)
    half = events.now
    run(events, client, calls // 2)
    return mean_limit(client, half), client


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize(
    ("capacity", "exponent", "calls"),
    [(8, 2.0, 12_000), (40, 2.0, 16_000), (40, 1.5, 16_000), (200, 1.5, 40_000)],
)
def test_adaptive_concurrency_settles_within_15_percent_of_an_unknown_capacity(
    capacity: int, exponent: float, calls: int, work: str
) -> None:
    mean, _ = simulate(capacity, exponent, WORK[work], seed=capacity, calls=calls)
    assert 0.85 * capacity <= mean <= 1.15 * capacity


@pytest.mark.parametrize("work", WORK)
def test_adaptive_concurrency_does_not_overload_a_gateway_with_15_database_connections(work: str) -> None:
    dice, events = random.Random(3), Events()
    pool = Connections(events, 15)
    client = AdaptiveClient(
        events, lambda done, failed: pool.call(WORK[work](dice), done, failed), AdaptiveConcurrency()
    )
    run(events, client, 10_000)
    half, failed = events.now, client.failed
    run(events, client, 10_000)
    shares = client.shares(half)
    assert client.failed == failed
    assert shares.most_common(1)[0][0] <= 15
    assert sum(seconds for limit, seconds in shares.items() if limit > 15) < 0.25 * sum(shares.values())
    assert max(shares) <= 17  # an occasional probe: one or two calls wait
    assert 0.85 * 15 <= mean_limit(client, half) <= 15.5


@pytest.mark.parametrize(
    ("before", "after", "calls"), [(40, 20, 10_000), (20, 40, 10_000), (200, 50, 30_000)]
)
def test_adaptive_concurrency_follows_a_changing_capacity(before: int, after: int, calls: int) -> None:
    dice, events = random.Random(2), Events()
    provider = Provider(events, before, 1.5)
    client = AdaptiveClient(
        events, lambda done, failed: provider.call(dice.uniform(0.25, 0.35), done), AdaptiveConcurrency()
    )
    run(events, client, 10_000)
    provider.set_capacity(after)
    run(events, client, calls)
    changed = events.now
    run(events, client, 10_000)
    assert 0.85 * after <= mean_limit(client, changed) <= 1.15 * after


def test_scattered_failures_do_not_erode_the_concurrency_limit() -> None:
    dice, events = random.Random(1), Events()
    provider = Provider(events, 60, 1.5)
    client = AdaptiveClient(
        events,
        lambda done, failed: provider.call(dice.uniform(0.2, 0.4), failed if dice.random() < 0.01 else done),
        AdaptiveConcurrency(),
    )
    run(events, client, 15_000)
    half = events.now
    run(events, client, 15_000)
    assert client.failed > 200
    assert 0.75 * 60 <= mean_limit(client, half) <= 1.15 * 60


def test_an_outage_lowers_the_concurrency_limit_and_its_end_restores_it() -> None:
    dice, events = random.Random(1), Events()
    provider = Provider(events, 60, 1.5)
    is_out = False

    def call(done: Callable[[], None], failed: Callable[[], None]) -> None:
        if is_out:
            events.after(0.05, failed)
        else:
            provider.call(dice.uniform(1, 3), done)

    client = AdaptiveClient(events, call, AdaptiveConcurrency())
    run(events, client, 10_000)
    assert client.concurrency.limit > 50
    is_out = True
    events.run_until(events.now + 30)
    assert client.concurrency.limit == 1
    is_out = False
    run(events, client, 500)
    assert client.concurrency.limit > 30


def test_the_concurrency_limit_doubles_up_to_its_maximum_while_latency_is_stable() -> None:
    limit = AdaptiveConcurrency(initial=8, maximum=100)
    seen = {limit.limit}
    for _ in range(200):
        succeed(limit, 1)
        seen.add(limit.limit)
    assert {8, 16, 32, 64, 100} <= seen
    assert max(seen) == 100


def test_the_concurrency_limit_doubles_although_more_calls_are_long_than_before() -> None:
    limit, number = AdaptiveConcurrency(initial=8, maximum=64), 0
    while limit.limit < 64:
        number += 1
        assert number < 2_000, limit
        is_long = number % 10 < (3 if limit.limit == 8 else 5)
        limit.succeeded(1_000.0 + number, 30.0 if is_long else 0.5, limit.limit)


def test_an_unused_concurrency_limit_does_not_grow() -> None:
    limit = AdaptiveConcurrency(initial=8)
    succeed(limit, 200, in_flight=5)
    assert limit.limit == 8


def test_adaptive_concurrency_leaves_a_level_that_only_adds_latency() -> None:
    limit = AdaptiveConcurrency(initial=8)
    for _ in range(400):
        succeed(limit, 1, latency=max(1.0, limit.limit / 8))
    assert 7 <= limit.limit <= 9


def test_rising_latency_lowers_a_constant_concurrency_limit() -> None:
    limit = AdaptiveConcurrency(initial=8, maximum=32)
    succeed(limit, 400)
    while limit.limit < 32:
        succeed(limit, 1)
    levels = []
    for _ in range(10):  # long before a regular probe would step down
        succeed(limit, 1, latency=3.0 * limit.limit / 32)
        levels.append(limit.limit)
    assert min(levels) <= 24


def test_adaptive_concurrency_seldom_probes_away_from_a_proven_limit() -> None:
    limit = AdaptiveConcurrency(initial=8)
    levels = []
    for _ in range(600):
        succeed(limit, 1, latency=max(1.0, limit.limit / 40))
        levels.append(limit.limit)
    levels = levels[300:]
    assert levels.count(max(set(levels), key=levels.count)) >= 0.6 * len(levels)


@pytest.mark.parametrize(("failures", "limits"), [(1, 98), (5, 90), (25, 50), (100, 50)])
def test_overload_cuts_the_concurrency_limit_by_twice_the_failures_and_at_most_by_half(
    failures: int, limits: int
) -> None:
    limit = AdaptiveConcurrency(initial=100)
    for number in range(failures):
        limit.overloaded(10.0 + number / 1_000, sent_at=5.0)
    assert limit.limit == limits


def test_only_failures_of_calls_sent_after_a_cut_cut_the_concurrency_limit_again() -> None:
    limit = AdaptiveConcurrency(initial=100)
    for _ in range(100):
        limit.overloaded(10.0, sent_at=5.0)
    assert limit.limit == 50
    limit.overloaded(20.0, sent_at=9.0)
    assert limit.limit == 50
    limit.overloaded(20.0, sent_at=15.0)
    assert limit.limit == 48


def test_the_concurrency_limit_never_falls_below_its_minimum() -> None:
    limit = AdaptiveConcurrency(initial=8, minimum=3)
    for number in range(50):
        limit.overloaded(10.0 * number + 5, sent_at=10.0 * number)
    assert limit.limit == 3


@pytest.mark.parametrize(
    ("arguments", "expected"), [({}, 8), ({"initial": 50, "maximum": 20}, 20), ({"initial": 0}, 1)]
)
def test_the_initial_concurrency_limit_is_clamped_to_its_bounds(
    arguments: dict[str, int], expected: int
) -> None:
    assert AdaptiveConcurrency(**arguments).limit == expected


def test_latency_from_the_clients_own_work_is_not_taken_for_congestion() -> None:
    """Responses of a cache or a local gateway take milliseconds, and more with every call in flight."""
    limiter = AdaptiveConcurrency()
    now = 0.0
    for _ in range(20_000):
        latency = 0.00005 * limiter.limit
        now += latency / limiter.limit
        limiter.succeeded(now, latency, limiter.limit)
    assert limiter.limit >= 900  # it probes one step down now and then
