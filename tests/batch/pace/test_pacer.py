"""The pacer: tables of events and responses, and a model of the gateway in virtual time."""

import copy
import math
import random
from collections.abc import Callable

import pytest

from omnigate._batch.pace.pacer import UNLIMITED, Pacer
from omnigate._limits import RateLimit

from ...support.gateway_model import Events, Gateway, HeedlessClient, PacedClient, bursts

Latency = Callable[[random.Random], float]

LATENCIES: dict[str, Latency] = {
    "0.3 s": lambda dice: 0.3,
    "5 to 40 s": lambda dice: dice.uniform(5, 40),
    "20 to 90 s": lambda dice: dice.uniform(20, 90),
}


def new_pacer() -> Pacer:
    return Pacer(utc=lambda: 0.0, uniform=lambda low, high: high)


def informed(*, limit: int = 8, remaining: int = 7, reset: int = 40) -> Pacer:
    """Return a pacer that sent at 100 and received the response at 100.3."""
    pacer = new_pacer()
    pacer.answered(pacer.sent(100.0), 100.3, RateLimit(limit, remaining, reset))
    return pacer


def left(pacer: Pacer, now: float, *, seconds: float = 10.0) -> int:
    """Return how many calls may be sent within some seconds if no response arrives."""
    pacer = copy.deepcopy(pacer)
    sent, until = 0, now + seconds
    while (now := pacer.ask(now)) <= until:
        pacer.sent(now)
        sent += 1
    return sent


# Tables


def test_the_pacer_sends_the_first_call_alone() -> None:
    pacer = new_pacer()
    assert (pacer.ask(100.0), pacer.room(100.0)) == (100.0, 1)
    pacer.sent(100.0)
    assert (pacer.ask(101.0), pacer.room(101.0)) == (math.inf, 0)
    assert pacer.waiting_until(101.0) is None


@pytest.mark.parametrize(
    "values", [(None, None, None), (8, None, 40), (8, 7, None), (None, 7, 40), (0, 0, 40), (8, 7, 10**9)]
)
def test_the_pacer_has_no_limit_until_a_response_states_a_valid_one(
    values: tuple[int | None, int | None, int | None],
) -> None:
    pacer = new_pacer()
    pacer.answered(pacer.sent(100.0), 100.3, RateLimit(*values))
    for _ in range(1_000):
        pacer.sent(100.3)
    assert (pacer.ask(100.3), pacer.room(100.3)) == (100.3, UNLIMITED)


def test_first_calls_that_fail_say_nothing_of_a_limit_and_go_one_at_a_time() -> None:
    pacer = new_pacer()
    for now in (100.0, 105.0, 110.0):
        assert (pacer.ask(now), pacer.room(now)) == (now, 1)
        send = pacer.sent(now)
        assert (pacer.ask(now), pacer.room(now)) == (math.inf, 0)
        pacer.ended(send, now + 4.0)
    pacer.answered(pacer.sent(115.0), 115.3, RateLimit(8, 7, 40))
    assert left(pacer, 116.0) == 7


def test_a_success_without_headers_says_that_there_is_no_limit() -> None:
    pacer = new_pacer()
    pacer.ended(pacer.sent(100.0), 100.3)
    pacer.answered(pacer.sent(101.0), 101.3, RateLimit(None, None, None))
    assert pacer.room(101.3) == UNLIMITED


def test_a_window_of_more_than_a_minute_is_not_believed() -> None:
    pacer = informed(limit=8, remaining=7, reset=40)
    pacer.answered(pacer.sent(110.0), 110.3, RateLimit(8, 0, 3_600))
    assert left(pacer, 111.0) == 6
    assert left(pacer, 141.0) == 8


def test_the_pacer_uses_up_the_window_and_then_waits_for_its_end() -> None:
    pacer = informed(limit=8, remaining=7, reset=40)
    for room in range(7, 0, -1):
        assert (pacer.ask(110.0), pacer.room(110.0)) == (110.0, room)
        assert pacer.waiting_until(110.0) is None
        pacer.sent(110.0)
    until = pacer.ask(110.0)
    assert 140.0 <= until <= 140.3  # it ends within the second after 139, but not after 140.3
    assert (pacer.room(110.0), pacer.waiting_until(110.0)) == (0, until)
    assert (pacer.ask(until), pacer.room(until)) == (until, 8)


def test_asking_the_pacer_has_no_side_effects() -> None:
    pacer = informed()
    assert [pacer.ask(110.0) for _ in range(50)] == [110.0] * 50
    assert [pacer.room(110.0) for _ in range(50)] == [7] * 50


@pytest.mark.parametrize(
    ("answers", "end"),  # (sent, received, reset)
    [
        ([(100.0, 100.3, 40)], 140.1),  # a second and a little after the lower bound
        ([(100.0, 100.05, 40)], 140.05),  # the upper bound
        ([(100.0, 130.0, 40)], 140.1),  # a slow response gives the same bound
        ([(100.0, 130.0, 40), (110.5, 110.7, 30)], 140.6),  # a later lower bound
        ([(100.0, 100.3, 40), (110.5, 110.7, 30)], 140.3),
        ([(100.0, 100.3, 40), (110.1, 110.2, 29)], 139.2),  # an earlier upper bound
        ([(100.0, 130.0, 40), (112.0, 112.02, 28)], 140.02),
        ([(100.0, 100.02, 40), (104.9, 105.2, 36)], 140.02),
    ],
)
def test_the_pacer_intersects_the_window_bounds_of_all_responses(
    answers: list[tuple[float, float, int]], end: float
) -> None:
    pacer = new_pacer()
    sends = [pacer.sent(sent) for sent, _, _ in answers]
    for place, (send, (_, received, reset)) in enumerate(zip(sends, answers, strict=True)):
        pacer.answered(send, received, RateLimit(4, 3 - place, reset))
    for _ in range(4 - len(sends)):
        assert pacer.ask(135.0) == 135.0
        pacer.sent(135.0)
    assert pacer.ask(135.0) == pytest.approx(end)


def test_a_late_response_from_the_last_window_does_not_reduce_this_one() -> None:
    pacer = informed(limit=8, remaining=7, reset=40)
    old = pacer.sent(110.0)
    assert pacer.room(142.0) == 8
    pacer.answered(old, 142.0, RateLimit(8, 6, 30))
    assert pacer.room(142.0) == 8


@pytest.mark.parametrize("received", [139.9, 141.0])
def test_calls_counted_in_the_last_window_are_not_charged_to_the_next(received: float) -> None:
    pacer = informed(limit=8, remaining=7, reset=40)
    sends = [pacer.sent(139.5) for _ in range(7)]  # by then the window may be over
    for place, send in enumerate(sends):
        pacer.answered(send, received, RateLimit(8, 6 - place, 1))
    assert left(pacer, 141.0) == 8


def test_calls_of_other_clients_reduce_what_is_left_of_the_window() -> None:
    pacer = informed(limit=100, remaining=99, reset=60)
    pacer.answered(pacer.sent(110.0), 110.3, RateLimit(100, 48, 50))  # two are ours, fifty are others'
    assert left(pacer, 111.0, seconds=48) == 48


def test_the_pacer_reserves_the_last_usage_of_other_clients_in_the_next_window() -> None:
    pacer = informed(limit=100, remaining=99, reset=60)
    pacer.answered(pacer.sent(158.0), 158.3, RateLimit(100, 48, 2))
    assert 45 <= left(pacer, 161.2, seconds=57) <= 52
    assert left(pacer, 161.2, seconds=10) <= 20


def test_the_pacer_sends_in_small_bursts_while_other_clients_share_the_limit() -> None:
    pacer = informed(limit=600, remaining=599, reset=60)
    pacer.answered(pacer.sent(110.0), 110.3, RateLimit(600, 500, 50))
    assert pacer.room(150.0) == 10
    assert left(pacer, 150.0, seconds=1) <= 120


def test_the_pacer_claims_a_third_of_a_limit_that_others_use_up() -> None:
    pacer = informed(limit=90, remaining=89, reset=60)
    pacer.answered(pacer.sent(158.0), 158.3, RateLimit(90, 0, 2))
    assert 29 <= left(pacer, 161.2, seconds=57) <= 31


def test_the_pacer_counts_calls_in_flight_before_a_response_reports_them() -> None:
    pacer = informed(limit=20, remaining=19, reset=40)
    first = pacer.sent(110.0)
    for step in range(5):
        pacer.sent(111.0 + step)
    pacer.answered(first, 117.0, RateLimit(20, 18, 30))  # as of 110, before five of ours
    assert left(pacer, 117.0) == 13


def test_reordered_requests_are_not_mistaken_for_calls_of_other_clients() -> None:
    pacer = informed(limit=60, remaining=59, reset=40)
    sends = [pacer.sent(110.0) for _ in range(8)]
    for place, send in enumerate(sends):  # the first to be sent was the last to arrive
        pacer.answered(send, 110.4, RateLimit(60, 51 + place, 30))
    assert left(pacer, 111.0) == 51


def test_a_rejection_holds_back_every_call_until_retry_after_has_passed() -> None:
    pacer = informed(limit=8, remaining=7, reset=40)
    pacer.rejected(pacer.sent(110.0), 110.1, 30.0, RateLimit(8, 0, 30))
    until = pacer.ask(110.1)
    assert 140.1 < until <= 140.6
    assert (pacer.room(120.0), pacer.waiting_until(120.0)) == (0, until)
    assert pacer.ask(until) == until


@pytest.mark.parametrize("retry_after", [math.inf, math.nan, -1.0])
def test_an_invalid_retry_after_does_not_hold_back_any_call(retry_after: float) -> None:
    pacer = new_pacer()
    pacer.rejected(pacer.sent(100.0), 100.1, retry_after, None)
    assert pacer.ask(100.1) == 100.1


def test_a_response_reported_twice_to_the_pacer_counts_once() -> None:
    pacer = informed(limit=8, remaining=7, reset=40)
    send = pacer.sent(110.0)
    pacer.ended(send, 111.0)
    pacer.rejected(send, 111.0, 30.0, RateLimit(8, 0, 29))
    pacer.answered(send, 111.0, RateLimit(8, 0, 29))
    assert pacer.room(111.0) == 6


def test_the_next_response_gives_back_calls_that_never_arrived() -> None:
    pacer = informed(limit=20, remaining=19, reset=40)
    for step in range(6):
        pacer.ended(pacer.sent(110.0 + step / 10), 111.0)
    assert left(pacer, 112.0) == 13
    pacer.answered(pacer.sent(112.0), 113.0, RateLimit(20, 18, 28))
    assert left(pacer, 113.0) == 18


def exchange(pacer: Pacer, now: float, counted: int, *, limit: int) -> bool:
    """Send a call that gets this count; return whether its answer was read."""
    assert pacer.ask(now) <= now
    send = pacer.sent(now)
    if pacer.confirmed(send, now + 0.1):
        return False
    pacer.answered(send, now + 0.1, RateLimit(limit, limit - counted, 140 - math.floor(now)))
    return True


def test_one_answer_in_eight_is_read_while_hundreds_of_calls_are_free() -> None:
    pacer = informed(limit=60_000, remaining=59_999, reset=40)
    read = [exchange(pacer, 110 + place / 100, place + 2, limit=60_000) for place in range(80)]
    assert sum(read) == 10
    assert "81 of 60000 sent in this window of 60 s, 0 by others" in repr(pacer)


def test_calls_of_others_are_noticed_by_the_next_answer_that_is_read_and_then_by_every_one() -> None:
    pacer = informed(limit=60_000, remaining=59_999, reset=40)
    assert pacer.ask(110.0) == 110.0
    sends = [pacer.sent(110 + place / 100) for place in range(80)]
    for place, send in enumerate(sends):
        is_read = not pacer.confirmed(send, 111.0)
        assert is_read == (place >= 7)
        if is_read:
            pacer.answered(send, 111.0, RateLimit(60_000, 60_000 - 1_002 - place, 30))
    assert "81 of 60000 sent in this window of 60 s, 1000 by others" in repr(pacer)


def test_every_answer_is_read_when_few_calls_are_free_or_its_window_is_uncertain() -> None:
    pacer = informed(limit=250, remaining=249, reset=40)
    assert all(exchange(pacer, 110 + place / 10, place + 2, limit=250) for place in range(80))
    pacer = informed(limit=60_000, remaining=59_999, reset=40)  # the window ends between 139 and 140.3
    pacer.ask(138.0)
    late = [pacer.sent(138.0) for _ in range(8)]
    assert not any(pacer.confirmed(send, 139.5) for send in late)
    pacer = informed(limit=60_000, remaining=59_999, reset=40)
    early = pacer.sent(79.0)  # perhaps in the window before
    pacer.ask(110.0)
    assert not pacer.confirmed(early, 110.0)


def test_an_answer_that_was_not_read_counts_once() -> None:
    pacer = informed(limit=60_000, remaining=59_999, reset=40)
    for place in range(8):
        exchange(pacer, 110 + place / 100, place + 2, limit=60_000)
    pacer.ask(111.0)
    send = pacer.sent(111.0)
    assert pacer.confirmed(send, 111.1)
    assert not pacer.confirmed(send, 111.1)
    pacer.answered(send, 111.1, RateLimit(60_000, 0, 29))  # ignored
    assert "10 of 60000 sent in this window of 60 s, 0 by others" in repr(pacer)


def test_a_rejection_takes_back_what_was_free() -> None:
    pacer = informed(limit=60_000, remaining=59_999, reset=40)
    assert pacer.ask(110.0) == 110.0
    pacer.rejected(pacer.sent(110.0), 110.2, 5.0, None)
    assert pacer.ask(110.3) >= 115.2
    assert pacer.room(110.3) == 0


def test_the_pacer_uses_a_limit_of_one_call_per_window_fully() -> None:
    pacer = new_pacer()
    now, sent = 100.0, []
    while now < 500:
        send = pacer.sent(now)
        sent.append(now)
        pacer.answered(send, now + 0.1, RateLimit(1, 0, 60 - math.floor(now % 60)))
        now = pacer.ask(now + 0.1)
    assert [math.floor(time) for time in sent] == [100, 120, 180, 240, 300, 360, 420, 480]


def test_the_pacer_remembers_its_limit_after_an_idle_hour() -> None:
    assert left(informed(limit=30, remaining=29, reset=40), 3_745.0, seconds=30) == 30


# Simulations


def way_of(dice: random.Random) -> Callable[[], float]:
    """Return the latency to the gateway: 5 to 60 ms, occasionally up to a second."""
    return lambda: dice.uniform(0.3, 1.0) if dice.random() < 0.002 else dice.uniform(0.005, 0.06)


def simulate(
    limit: int,
    latency: Latency,
    *,
    seed: int,
    windows: int = 10,
    period: int = 60,
    clients: int = 1,
    lost: float = 0.0,
) -> tuple[Gateway, list[PacedClient], range]:
    """Run clients for some windows after the one with the response to the first call."""
    dice, events = random.Random(seed), Events()
    gateway = Gateway(events, limit, phase=events.now - dice.uniform(0, period), period=period)
    paced = [
        PacedClient(
            gateway,
            dice,
            lambda: latency(dice),
            concurrency=2 * limit + 50,
            way=way_of(dice),
            name=f"paced {number}",
            lost=lost,
        )
        for number in range(clients)
    ]
    for number, client in enumerate(paced):
        events.at(events.now + 17 * number, client.pump)
    while (
        any(client.pacer.ask(events.now) == math.inf for client in paced) or events.now < 1_001 + 17 * clients
    ):
        events.run_until(events.now + 1)
    first = gateway.window() + 1
    events.run_until(gateway.begin(first + windows))
    return gateway, paced, range(first, first + windows)


def sums(gateway: Gateway, name: str, windows: range) -> tuple[int, int, int]:
    """Return how many calls of a client were admitted and rejected, and the most admitted in one window."""
    rejected = [gateway.rejected[name, window] for window in windows]
    return sum(gateway.admitted[name, window] for window in windows), sum(rejected), max(rejected)


@pytest.mark.parametrize("latency", LATENCIES)
@pytest.mark.parametrize(
    ("limit", "seeds"),
    [(60, 5), pytest.param(600, 2, marks=pytest.mark.proof), pytest.param(6_000, 1, marks=pytest.mark.proof)],
)
def test_a_single_client_uses_97_percent_of_its_limit_with_under_one_rejection_per_window(
    limit: int, seeds: int, latency: str
) -> None:
    for seed in range(seeds):
        gateway, (client,), windows = simulate(limit, LATENCIES[latency], seed=seed)
        admitted, rejected, _ = sums(gateway, "paced 0", windows)
        assert admitted >= 0.97 * limit * len(windows)
        assert rejected < len(windows)
        assert client.pacer.room(gateway.events.now) <= limit


@pytest.mark.parametrize("period", [2, 3, 7, 20])
def test_the_pacer_learns_windows_shorter_than_a_minute(period: int) -> None:
    gateway, _, windows = simulate(20, LATENCIES["0.3 s"], seed=period, windows=30, period=period)
    admitted, rejected, _ = sums(gateway, "paced 0", windows[10:])
    assert admitted >= 0.9 * 20 * 20
    assert rejected <= 4


@pytest.mark.parametrize("latency", LATENCIES)
def test_lost_calls_neither_stall_the_client_nor_let_it_exceed_the_limit(latency: str) -> None:
    gateway, _, windows = simulate(600, LATENCIES[latency], seed=1, lost=0.05)
    admitted, rejected, _ = sums(gateway, "paced 0", windows)
    assert admitted >= 0.9 * 600 * len(windows)
    assert rejected < len(windows)


@pytest.mark.parametrize("latency", LATENCIES)
def test_three_paced_clients_share_a_limit_evenly(latency: str) -> None:
    gateway, _, windows = simulate(300, LATENCIES[latency], seed=1, windows=16, clients=3)
    for number in range(3):
        admitted, rejected, _ = sums(gateway, f"paced {number}", windows[8:])
        assert 0.25 * 300 * 8 <= admitted <= 0.42 * 300 * 8
        assert rejected <= 8


OTHERS: dict[str, tuple[Callable[[random.Random, int], Callable[[float], float]], float, float]] = {
    # how each of two others sends; the minimum shares of the limit for us and for the two
    "a tenth each, evenly": (lambda dice, limit: lambda now: now + 600 / limit, 0.7, 0.19),
    "a third each, at random": (
        lambda dice, limit: lambda now: now + dice.expovariate(limit / 180),
        0.27,
        0.6,
    ),
    "a fifth each, in bursts": (lambda dice, limit: bursts(dice, limit // 5, 60), 0.4, 0.33),
    "all of it each": (lambda dice, limit: lambda now: now + dice.expovariate(limit / 60), 0.2, 0.6),
    "all of it each, in bursts": (lambda dice, limit: bursts(dice, limit // 2, 30), 0.2, 0.6),
}


@pytest.mark.parametrize("latency", LATENCIES)
@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("limit", [60, pytest.param(600, marks=pytest.mark.proof)])
def test_a_paced_client_shares_a_limit_with_two_unpaced_ones(limit: int, kind: str, latency: str) -> None:
    times, ours, theirs = OTHERS[kind]
    dice, events = random.Random(limit), Events()
    gateway = Gateway(events, limit, phase=events.now - dice.uniform(0, 60))
    names = ["first", "second"]
    for name in names:
        HeedlessClient(gateway, name, times(dice, limit), waiting_max=limit // 6)
    client = PacedClient(
        gateway, dice, lambda: LATENCIES[latency](dice), concurrency=2 * limit + 50, way=way_of(dice)
    )
    events.at(events.now + 30, client.pump)
    windows = range(5, 25)
    events.run_until(gateway.begin(windows.stop))
    admitted, rejected, most = sums(gateway, "paced", windows)
    assert admitted >= ours * limit * len(windows)
    assert sum(sums(gateway, name, windows)[0] for name in names) >= theirs * limit * len(windows)
    assert rejected <= max(1.0, 0.005 * limit) * len(windows)
    assert most <= max(3, 0.03 * limit)
