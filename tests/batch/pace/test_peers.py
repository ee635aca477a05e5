"""Who the others are, and how much each process of a crowd sends: tables and exact counts."""

import random

import pytest

from omnigate._batch.pace.crowd import Crowd
from omnigate._batch.pace.peers import Peers

# After the hellos and before anything else is sent; and when all is sent.
AFTER_HELLOS, AFTER_ALL = 5.0 / 60, 20.0 / 60


def new_peers() -> Peers:
    return Peers(lambda low, high: low)


def peers_after(counts: list[float], *, limit: int, censuses: int = 3) -> Peers:
    peers = new_peers()
    for _ in range(censuses):
        peers.called(counts, 0.0, limit, is_census=True)
    return peers


def crowd_of(size: float, *, limit: int = 60) -> Crowd:
    crowd = Crowd(lambda low, high: (low + high) / 2)
    assert crowd.enter(limit, size)
    return crowd


def sent_in(crowd: Crowd, windows: int) -> int:
    sent = 0
    for number in range(windows):
        crowd.window_began()
        plan = crowd.plan(number)
        sent += 3 if plan is None else len(plan)
    return sent


@pytest.mark.parametrize("number", [2, 5, 15])
def test_a_roll_call_counts_the_peers_that_hold_it(number: int) -> None:
    peers = new_peers()
    for _ in range(2):
        peers.called([1, 1 + number, 1 + 2 * number], 0.0, 60, is_census=True)
    assert peers.number == pytest.approx(number)
    assert (peers.are_known, peers.crowd.rate) == (True, 0.0)


def test_calls_that_come_more_often_the_longer_the_interval_are_no_peers() -> None:
    peers = peers_after([5, 15, 45], limit=600)
    assert (peers.are_known, peers.are_among_heedless) == (False, True)


def test_many_more_peers_than_before_are_believed_in_if_both_intervals_agree() -> None:
    peers = peers_after([5, 15, 45], limit=600, censuses=4)
    peers.called([1, 41, 81], 0.0, 600, is_census=True)
    assert peers.number == 40


def test_more_peers_than_roll_calls_have_room_for_are_a_crowd() -> None:
    peers = new_peers()
    peers.called([1, 20, 39], 0.0, 60, is_census=True)
    assert 2 < peers.crowd.rate < 3


def test_hellos_are_taken_for_a_crowd_the_second_time() -> None:
    peers = new_peers()
    peers.called([1, 21, 21], 0.0, 60, is_census=True)
    assert (peers.crowd.rate, peers.is_crowd_near) == (0.0, True)
    peers.called([1, 21, 21], 0.0, 60, is_census=True)
    assert peers.crowd.rate > 1


def test_a_roll_call_that_so_many_calls_kept_from_its_end_shows_a_crowd() -> None:
    peers = new_peers()
    assert not peers.missed(
        [10], 60, was_heard=True, is_census=True
    )  # the second call was rejected a second later
    assert peers.crowd.rate > 0


def test_a_client_that_cannot_have_heard_us_yet_is_taken_for_a_crowd_only_the_second_time() -> None:
    peers = new_peers()
    peers.missed([10], 60, was_heard=False, is_census=True)
    assert peers.crowd.rate == 0.0
    peers.missed([10], 60, was_heard=True, is_census=True)
    assert peers.crowd.rate > 0


def test_a_window_that_was_full_before_the_roll_call_shows_a_crowd_the_second_time() -> None:
    peers = new_peers()
    peers.missed([], 60, was_heard=True, is_census=True)
    assert peers.crowd.rate == 0.0
    peers.missed([], 60, was_heard=True, is_census=True)
    assert 0 < peers.crowd.rate < 1


def test_censuses_that_come_to_nothing_although_no_crowd_was_heard_show_heedless_clients() -> None:
    peers = new_peers()
    shown = []
    for _ in range(3):
        peers.missed([50], 60, was_heard=True, is_census=True)
        shown.append(peers.are_among_heedless)
    assert shown == [False, True, True]
    assert peers.crowd.rate == 0.0


def test_only_censuses_show_heedless_clients() -> None:
    peers = new_peers()
    for _ in range(5):
        peers.missed([50], 60, was_heard=True, is_census=False)
        peers.called([5, 15, 45], 0.0, 600, is_census=False)
    assert not peers.are_among_heedless


def test_the_first_census_that_hears_only_peers_clears_the_others() -> None:
    peers = peers_after([5, 15, 45], limit=600)
    assert peers.are_surely_among_heedless
    peers.called([1, 21, 41], 0.0, 600, is_census=True)
    assert not peers.are_among_heedless


def test_a_census_that_chance_may_have_made_even_clears_the_others_only_with_the_next() -> None:
    peers = peers_after([5, 7, 13], limit=60)
    assert peers.are_surely_among_heedless
    peers.called([5, 9, 13], 0.0, 60, is_census=True)
    assert (peers.are_among_heedless, peers.are_surely_among_heedless) == (True, False)
    peers.called([5, 9, 13], 0.0, 60, is_census=True)
    assert not peers.are_among_heedless


def test_a_process_that_races_during_our_roll_call_is_neither_a_peer_nor_a_sign_of_peace() -> None:
    peers = peers_after([5, 7, 13], limit=600)
    known = peers.number
    peers.called([5, 25, 31], 0.0, 600, is_census=True)
    assert peers.are_surely_among_heedless
    assert peers.number == known


def test_a_crowd_is_left_when_most_of_the_others_hold_roll_calls_twice() -> None:
    peers = new_peers()
    peers.called([1, 20, 39], 0.0, 60, is_census=True)
    for _ in range(2):
        assert peers.crowd.rate > 0
        peers.called([1, 9, 17], 0.0, 60, is_census=True)
    assert (peers.crowd.rate, peers.number) == (0.0, 8)


@pytest.mark.parametrize("size", [25, 40])
def test_the_size_of_a_crowd_is_what_was_counted_for_each_planned_call(size: int) -> None:
    crowd = crowd_of(80)
    for _ in range(40):
        crowd.window_began()
        crowd.hear(AFTER_ALL, round(size * crowd.rate), crowd.rate)
    assert crowd.size == pytest.approx(size, rel=0.1)


def test_a_process_with_more_than_its_part_of_a_crowd_comes_to_that_of_the_others() -> None:
    crowd, size = crowd_of(14), 28  # all others send a hello and half a call more, and it twice as much
    for _ in range(20):
        crowd.window_began()
        crowd.hear(AFTER_HELLOS, size, crowd.rate)
    assert crowd.size == pytest.approx(size, rel=0.15)


@pytest.mark.parametrize("hellos", [20, 45, 55])
def test_all_who_hear_the_same_come_to_the_same_rate(hellos: int) -> None:
    crowds = [crowd_of(size) for size in (25, 40, 100)]
    rates = [crowd.rate for crowd in crowds]
    assert max(rates) > 2 * min(rates)
    for _ in range(40):
        for crowd in crowds:
            crowd.window_began()
            crowd.hear(AFTER_HELLOS, hellos, crowd.rate)
    rates = [crowd.rate for crowd in crowds]
    assert max(rates) < 1.05 * min(rates)


def test_the_rate_in_a_crowd_falls_with_the_number_of_hellos() -> None:
    rates = []
    for hellos in (20, 30, 40, 45, 50, 55, 60):
        crowd = crowd_of(40)
        for _ in range(100):
            crowd.hear(AFTER_HELLOS, hellos, crowd.rate)
        rates.append(crowd.rate)
    assert rates == sorted(rates, reverse=True)
    assert rates[2] >= 1 > rates[3]
    assert 0.45 < rates[-1] < 0.5


def test_a_low_number_of_hellos_counts_for_less_than_a_high_one() -> None:
    low, high = crowd_of(100), crowd_of(100)
    before = low.size * low.rate
    low.hear(AFTER_HELLOS, round(before) - 10, low.rate)
    high.hear(AFTER_HELLOS, round(before) + 10, high.rate)
    assert before - low.size * low.rate < 0.5 * (high.size * high.rate - before)


def test_processes_that_take_turns_come_to_send_equally_many_in_all_windows() -> None:
    dice = random.Random(3)
    crowds = [Crowd(lambda low, high: dice.uniform(0, 0.3) if high == 1 else high) for _ in range(80)]
    for crowd in crowds:
        assert crowd.enter(60, 100)
    sent = []
    for number in range(40):
        hellos = sorted(
            ((plan[0], crowd) for crowd in crowds if (plan := crowd.plan(number))), key=lambda hello: hello[0]
        )
        for counted, (time, crowd) in enumerate(hellos, start=1):
            crowd.hear(time, counted, crowd.rate)
        sent.append(len(hellos))
    assert max(sent[:4]) - min(sent[:4]) > 40  # all had about the same turn
    assert max(sent[-10:]) - min(sent[-10:]) < 20


def test_rejections_lower_the_rate_in_a_crowd() -> None:
    crowd = crowd_of(50)
    before = crowd.rate
    crowd.hear(AFTER_ALL, 61, crowd.rate)
    assert crowd.rate <= 0.8 * before


def test_a_crowd_whose_hellos_are_all_rejected_is_left() -> None:
    crowd = crowd_of(80)
    for _ in range(2):
        crowd.hear(1.8 / 60, 61, crowd.rate)
    assert crowd.rate == 0.0


def test_a_crowd_that_has_few_processes_left_is_left() -> None:
    crowd = crowd_of(30)
    for _ in range(20):
        crowd.window_began()
        crowd.hear(AFTER_ALL, round(4 * crowd.rate), max(crowd.rate, 0.5))
    assert crowd.rate == 0.0


@pytest.mark.parametrize("size", [20, 40, 80])
def test_a_process_of_a_crowd_sends_at_its_rate(size: int) -> None:
    dice = random.Random(size)
    crowd = Crowd(dice.uniform)
    assert crowd.enter(60, size)
    rate = crowd.rate
    assert sent_in(crowd, 200) == pytest.approx(200 * rate, rel=0.15)


def test_calls_of_a_crowd_begin_after_those_of_roll_calls_and_end_early() -> None:
    dice = random.Random(1)
    crowd = Crowd(dice.uniform)
    crowd.enter(60, 15)
    times = [time for number in range(100) for time in crowd.plan(number) or ()]
    assert min(times) > 1.2 / 60
    assert max(times) <= 15 / 60
