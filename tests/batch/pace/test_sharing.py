"""Paced processes that share a key by headers alone, and a client that is alone but whose requests arrive late."""

import random
import tracemalloc
from collections.abc import Callable

import pytest

from omnigate._batch.pace.pacer import Pacer
from omnigate._limits import RateLimit
from tests.support.gateway_model import Events, Gateway, HeedlessClient, PacedClient, bursts

pytestmark = pytest.mark.proof

Latency = Callable[[random.Random], float]

LATENCIES: dict[str, Latency] = {"0.3 s": lambda dice: 0.3, "5 to 40 s": lambda dice: dice.uniform(5, 40)}


def new_pacer() -> Pacer:
    return Pacer(utc=lambda: 0.0, uniform=lambda low, high: low)


def way_of(dice: random.Random) -> Callable[[], float]:
    return lambda: dice.uniform(0.3, 1.0) if dice.random() < 0.002 else dice.uniform(0.005, 0.06)


def late_way_of(dice: random.Random, part: float, most: float) -> Callable[[], float]:
    return lambda: dice.uniform(0.5, most) if dice.random() < part else dice.uniform(0.005, 0.06)


def share(
    processes: int, limit: int, latency: Latency, *, seed: int, apart: float = 0.05
) -> tuple[list[float], list[int]]:
    """Run processes that begin so many seconds apart.

    Returns:
        Rejections a window, as parts of the limit, and each process's calls in ten windows, from the fifth
        after the last one has begun on.
    """
    dice, events = random.Random(seed), Events()
    gateway = Gateway(events, limit, phase=events.now - dice.uniform(0, 60))
    names = [f"process {number}" for number in range(processes)]
    for number, name in enumerate(names):
        client = PacedClient(
            gateway, dice, lambda: latency(dice), concurrency=2 * limit + 50, way=way_of(dice), name=name
        )
        events.at(events.now + apart * number, client.pump)
    first = gateway.window() + 5 + int(apart * processes / 60)
    windows = range(first, first + 10)
    events.run_until(gateway.begin(windows.stop))
    rejected = [sum(gateway.rejected[name, window] for name in names) / limit for window in windows]
    return rejected, [sum(gateway.admitted[name, window] for window in windows) for name in names]


@pytest.mark.parametrize("latency", LATENCIES)
@pytest.mark.parametrize(
    ("processes", "limit", "seeds"),
    [
        (2, 60, 4),
        (4, 60, 4),
        (8, 60, 8),
        (16, 60, 4),
        (8, 200, 4),
        (25, 200, 4),
        (2, 600, 1),
        (4, 600, 1),
        (16, 600, 1),
        (100, 600, 1),
        (4, 6_000, 1),
    ],
)
def test_processes_that_share_a_key_unawares_have_few_rejections_and_fair_shares(
    processes: int, limit: int, seeds: int, latency: str
) -> None:
    for seed in range(seeds):
        rejected, admitted = share(processes, limit, LATENCIES[latency], seed=seed)
        assert sum(rejected) / len(rejected) <= 0.02
        assert min(admitted) >= 0.5 * sum(admitted) / processes
        assert sum(admitted) >= 0.8 * limit * 10


@pytest.mark.parametrize(
    ("processes", "limit", "latency"),
    [
        (2, 60, "0.3 s"),
        (2, 60, "5 to 40 s"),
        (4, 60, "0.3 s"),
        (4, 60, "5 to 40 s"),
        (8, 60, "0.3 s"),
        (8, 60, "5 to 40 s"),
        (16, 60, "0.3 s"),
        (16, 60, "5 to 40 s"),
        (16, 200, "0.3 s"),
        (16, 200, "5 to 40 s"),
        (40, 200, "0.3 s"),
        (40, 200, "5 to 40 s"),
        (16, 600, "0.3 s"),
        (16, 600, "5 to 40 s"),
        (50, 600, "0.3 s"),
        (50, 600, "5 to 40 s"),
        (100, 600, "0.3 s"),
        (100, 600, "5 to 40 s"),
    ],
)
def test_processes_that_begin_one_after_the_other_come_to_fair_shares(
    processes: int, limit: int, latency: str
) -> None:
    for seed in range(12 if processes == 2 else 4 if limit == 60 else 2):
        rejected, admitted = share(processes, limit, LATENCIES[latency], seed=seed, apart=7.0)
        assert sum(rejected) / len(rejected) <= 0.02
        assert min(admitted) >= 0.5 * sum(admitted) / processes
        assert sum(admitted) >= 0.8 * limit * 10


@pytest.mark.parametrize("apart", [0.05, 7.0])
@pytest.mark.parametrize("latency", LATENCIES)
@pytest.mark.parametrize(("processes", "limit"), [(64, 200), (100, 200), (64, 600)])
def test_a_crowd_has_few_rejections_and_fair_shares(
    processes: int, limit: int, latency: str, apart: float
) -> None:
    for seed in range(4):
        rejected, admitted = share(processes, limit, LATENCIES[latency], seed=seed, apart=apart)
        assert sum(rejected) / len(rejected) <= 0.02
        assert min(admitted) >= 0.5 * sum(admitted) / processes
        assert sum(admitted) >= 0.75 * limit * 10


@pytest.mark.parametrize("apart", [0.05, 7.0])
@pytest.mark.parametrize("latency", LATENCIES)
@pytest.mark.parametrize(
    # The most that a run may have rejected, and the least that it must use, as parts of the limit.
    ("processes", "most", "used"),
    [
        (25, 0.02, 0.6),
        (40, 0.02, 0.6),
        (50, 0.02, 0.6),
        (57, 0.02, 0.6),
        (64, 0.04, 0.6),
        (80, 0.04, 0.6),
        (100, 0.04, 0.75),
    ],
)
def test_a_crowd_with_about_one_call_each_has_few_rejections_and_fair_shares(
    processes: int, most: float, used: float, latency: str, apart: float
) -> None:
    rejections, least = [], []
    for seed in range(8):
        rejected, admitted = share(processes, 60, LATENCIES[latency], seed=seed, apart=apart)
        rejections.append(sum(rejected) / len(rejected))
        least.append(min(admitted) / sum(admitted) * processes)
        assert sum(admitted) >= used * 60 * 10
    # One call of five to ten in these windows is much: single runs may be outside of it.
    assert sum(rejections) / len(rejections) <= 0.02
    assert max(rejections) <= most
    assert sum(least) / len(least) >= 0.5
    assert min(least) >= 0.4


def part_among_four_others(latency: Latency, seed: int) -> float:
    """Return the part of a limit of 60 that a client gets among four that would use it up alone."""
    dice, events = random.Random(seed), Events()
    gateway = Gateway(events, 60, phase=events.now - dice.uniform(0, 60))
    for number in range(4):
        HeedlessClient(gateway, f"other {number}", lambda now: now + dice.expovariate(1.0), waiting_max=10)
    client = PacedClient(gateway, dice, lambda: latency(dice), concurrency=200, way=way_of(dice))
    events.at(events.now + 30, client.pump)
    windows = range(gateway.window() + 5, gateway.window() + 25)
    events.run_until(gateway.begin(windows.stop))
    return sum(gateway.admitted["paced", window] for window in windows) / 60 / len(windows)


@pytest.mark.parametrize("latency", LATENCIES)
def test_a_client_keeps_some_of_a_limit_that_four_others_would_use_up_alone(latency: str) -> None:
    parts = [part_among_four_others(LATENCIES[latency], seed) for seed in range(6)]
    assert sum(parts) / len(parts) >= 0.05


def parts_among_heedless(
    heedless: int, paced: int, limit: int, latency: Latency, *, seed: int, clock_error: float = 0.0
) -> tuple[float, float]:
    """Run paced processes among clients of which each alone would use up the limit; these stop after a while.

    Returns:
        The part of the limit that the paced ones got together in twenty windows, and the part of it that they
        had rejected in ten windows long after the others' end.
    """
    dice, events = random.Random(seed), Events()
    gateway = Gateway(events, limit, phase=events.now - dice.uniform(0, 60))
    others = [
        HeedlessClient(
            gateway, f"other {number}", lambda now: now + dice.expovariate(limit / 60), waiting_max=limit // 6
        )
        for number in range(heedless)
    ]
    names = [f"process {number}" for number in range(paced)]
    for number, name in enumerate(names):
        client = PacedClient(
            gateway,
            dice,
            lambda: latency(dice),
            concurrency=2 * limit + 50,
            way=way_of(dice),
            name=name,
            clock_error=dice.uniform(-clock_error, clock_error),
        )
        events.at(events.now + 30 + 0.05 * number, client.pump)
    windows = range(gateway.window() + 15, gateway.window() + 35)
    events.run_until(gateway.begin(windows.stop))
    for other in others:
        other.is_on = False
    calm = range(windows.stop + 20, windows.stop + 30)
    events.run_until(gateway.begin(calm.stop))
    return (
        sum(gateway.admitted[name, window] for name in names for window in windows) / limit / len(windows),
        sum(gateway.rejected[name, window] for name in names for window in calm) / limit / len(calm),
    )


@pytest.mark.parametrize("latency", LATENCIES)
@pytest.mark.parametrize(
    ("heedless", "paced", "limit", "least"),  # on average: what racing at once, for a third, gave them
    [
        (1, 1, 60, 0.29),
        (1, 2, 60, 0.55),
        (2, 2, 60, 0.55),
        (4, 1, 60, 0.19),
        (4, 4, 60, 0.29),
        (1, 1, 600, 0.30),
        (2, 2, 600, 0.57),
        (4, 1, 600, 0.18),
        (4, 4, 600, 0.26),
    ],
)
def test_paced_processes_hold_their_claim_against_heedless_clients_and_make_peace_after_them(
    heedless: int, paced: int, limit: int, least: float, latency: str
) -> None:
    seeds = 4 if limit == 60 else 2
    parts, rejected = zip(
        *(
            parts_among_heedless(heedless, paced, limit, LATENCIES[latency], seed=seed)
            for seed in range(seeds)
        ),
        strict=True,
    )
    assert sum(parts) / seeds >= least
    assert sum(rejected) / seeds <= 0.02


@pytest.mark.parametrize("latency", LATENCIES)
def test_clocks_that_differ_by_less_than_half_a_minute_do_no_harm(latency: str) -> None:
    for seed in range(2):
        part, rejected = parts_among_heedless(2, 2, 60, LATENCIES[latency], seed=seed, clock_error=25.0)
        assert part >= 0.4
        assert rejected <= 0.02


def part_among_bursts(limit: int, latency: Latency, seed: int) -> float:
    """Return the part of the limit that a client gets among two that send half of it twice a minute each."""
    dice, events = random.Random(seed), Events()
    gateway = Gateway(events, limit, phase=events.now - dice.uniform(0, 60))
    for name in ("first", "second"):
        HeedlessClient(gateway, name, bursts(dice, limit // 2, 30), waiting_max=limit // 6)
    client = PacedClient(gateway, dice, lambda: latency(dice), concurrency=2 * limit + 50, way=way_of(dice))
    events.at(events.now + 30, client.pump)
    windows = range(gateway.window() + 7, gateway.window() + 27)
    events.run_until(gateway.begin(windows.stop))
    return sum(gateway.admitted["paced", window] for window in windows) / limit / len(windows)


@pytest.mark.parametrize("limit", [60, 600])
@pytest.mark.parametrize("latency", LATENCIES)
def test_bursts_of_clients_that_know_no_limit_are_not_taken_for_a_crowd_for_long(
    latency: str, limit: int
) -> None:
    parts = [part_among_bursts(limit, LATENCIES[latency], seed) for seed in range(6)]
    assert min(parts) >= 0.1
    assert sum(parts) / len(parts) >= 0.2


@pytest.mark.parametrize("latency", LATENCIES)
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("part", "most"), [(0.2, 3.0), (0.5, 5.0), (1.0, 4.0)])
@pytest.mark.parametrize("limit", [60, 600])
def test_a_client_alone_whose_requests_arrive_seconds_late_uses_its_limit_unrejected(
    limit: int, part: float, most: float, latency: str, seed: int
) -> None:
    dice, events = random.Random(seed), Events()
    gateway = Gateway(events, limit, phase=events.now - dice.uniform(0, 60))
    way = late_way_of(dice, part, most)
    client = PacedClient(gateway, dice, lambda: LATENCIES[latency](dice), concurrency=2 * limit + 50, way=way)
    events.at(events.now, client.pump)
    windows = range(gateway.window() + 3, gateway.window() + 13)
    events.run_until(gateway.begin(windows.stop))
    assert sum(gateway.admitted["paced", window] for window in windows) >= 0.97 * limit * 10
    assert sum(gateway.rejected["paced", window] for window in windows) < 10


def test_requests_that_are_slow_on_their_way_are_not_given_back() -> None:
    pacer = new_pacer()
    pacer.answered(pacer.sent(30.0), 30.1, RateLimit(60, 59, 30))  # the window ends at 60
    confirmed = [pacer.sent(60.1) for _ in range(8)]
    for place, send in enumerate(confirmed):
        pacer.answered(send, 60.3, RateLimit(60, 59 - place, 60))
    for _ in range(8):
        pacer.sent(60.4)  # on their way until 63
    pacer.answered(pacer.sent(61.0), 61.25, RateLimit(60, 51, 59))  # counted before them
    sent, now = 17, 61.3
    while now < 62.9:
        while pacer.ask(now) <= now:
            pacer.sent(now)
            sent += 1
        now += 0.1
    assert sent == 60


def test_requests_that_arrive_after_the_windows_end_are_not_taken_for_those_of_others() -> None:
    pacer = new_pacer()
    pacer.answered(pacer.sent(30.0), 30.1, RateLimit(60, 59, 30))  # the window ends at 60
    late = [pacer.sent(58.5) for _ in range(3)]
    assert pacer.ask(60.1) <= 60.1
    new = [pacer.sent(60.1) for _ in range(8)]
    for place, send in enumerate(late):
        pacer.answered(send, 60.4, RateLimit(60, 59 - place, 60))
    for place, send in enumerate(new):
        pacer.answered(send, 60.5, RateLimit(60, 56 - place, 60))
    sent, now = 0, 60.6
    while now < 62.0:
        while pacer.ask(now) <= now:
            pacer.sent(now)
            sent += 1
        now += 0.05
    assert sent == 49


def test_a_gateway_without_headers_makes_no_record_grow() -> None:
    pacer, now = new_pacer(), 0.0
    pacer.answered(pacer.sent(now), 0.3, None)
    sizes = []
    tracemalloc.start()
    try:
        for seconds in (900, 1_800):
            while now < seconds:
                now += 0.025
                pacer.answered(pacer.sent(now), now, None)
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[1] < 1.2 * sizes[0]
    assert sizes[1] < 4_000_000
