"""The small rules of pacing, as tables: breaker, interval, blame, descriptors, turns, signs."""

import errno
import math
import random
import ssl

import httpx
import pytest

from omnigate._batch.pace.blame import Blame
from omnigate._batch.pace.breaker import Breaker
from omnigate._batch.pace.descriptors import Descriptors
from omnigate._batch.pace.interval import Interval
from omnigate._batch.pace.queue import FairQueue, Flow, Waiter
from omnigate._batch.pace.signs import Sign, sign_of
from omnigate._calls.failures import connection_error
from omnigate.exceptions import GatewayError, classify


def new_breaker() -> Breaker:
    return Breaker(uniform=lambda low, high: low)


def test_a_breaker_opens_after_three_failures_in_a_row() -> None:
    breaker = new_breaker()
    assert [breaker.failed(number, 10.0, "down") for number in (1, 2, 3)] == [False, False, True]
    assert (breaker.is_open, breaker.reason) == (True, "down")


def test_a_success_between_failures_keeps_a_breaker_closed() -> None:
    breaker = new_breaker()
    for number in range(0, 30, 3):
        breaker.failed(number, 10.0, "down")
        breaker.failed(number + 1, 10.0, "down")
        breaker.succeeded(number + 2)
    assert not breaker.is_open


def test_failures_of_calls_older_than_the_latest_success_do_not_open_a_breaker() -> None:
    breaker = new_breaker()
    breaker.succeeded(10)
    for number in range(10):
        breaker.failed(number, 10.0, "down")
    assert not breaker.is_open


@pytest.mark.parametrize(("is_for_all", "is_certain"), [(True, False), (False, True)])
def test_successes_of_calls_sent_before_an_outage_do_not_end_it(is_for_all: bool, is_certain: bool) -> None:
    breaker = Breaker(is_for_all=is_for_all)
    for number in (10, 11, 12):
        breaker.failed(number, 0.0, "refused", is_certain=is_certain)
        assert not breaker.succeeded(number - 8)
    assert breaker.is_open
    breaker.sent(13)
    assert breaker.succeeded(13)
    assert not breaker.is_open


def test_an_open_breaker_lets_one_probe_pass_at_a_time_with_backoff_up_to_30_seconds() -> None:
    breaker = new_breaker()
    breaker.failed(1, 0.0, "down", is_certain=True)
    now, waits = 0.0, []
    for number in range(2, 12):
        moment = breaker.ask(now)
        waits.append(moment - now)
        now = moment
        breaker.sent(number)
        assert breaker.ask(now) == math.inf
        breaker.failed(number, now, "down")
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]
    breaker.sent(12)
    assert breaker.succeeded(12)
    assert breaker.ask(now) <= now


def test_a_probe_that_says_nothing_is_followed_by_another() -> None:
    breaker = new_breaker()
    breaker.failed(1, 0.0, "down", is_certain=True)
    breaker.sent(2)
    breaker.ended(2, 0.7)
    assert breaker.ask(0.7) == 0.7


def test_an_interval_settles_at_the_rate_a_provider_allows() -> None:
    interval, now, sent, accepted = Interval(), 0.0, 0, 0
    at, tokens = 0.0, 1.0
    interval.rejected(0.0, 0.0, 1.0)
    while now < 1_200:
        now = max(now + 0.5, interval.ask(now))
        interval.sent_at = now
        sent += 1
        tokens, at = min(1.0, tokens + (now - at) / 3), now
        if tokens >= 1:
            tokens -= 1
            accepted += 1
            interval.succeeded(now, 0.5)
        else:
            interval.rejected(now, now, 0.5)
    assert accepted > 0.6 * 400
    assert sent < 2.5 * accepted


def test_an_interval_is_dropped_soon_after_the_last_rejection() -> None:
    interval, now = Interval(), 0.0
    for _ in range(20):
        interval.rejected(now, now, 1.0)
        now += interval.seconds
    assert interval.seconds == 15
    end = now
    while interval.seconds:
        interval.sent_at = now
        now = interval.ask(now)
        interval.succeeded(now, 1.0)
    assert now - end < 45


@pytest.mark.parametrize("share", [0.02, 0.05, 0.2, 0.6])
@pytest.mark.parametrize("seed", range(5))
def test_failures_that_cutting_does_not_change_are_excused(share: float, seed: int) -> None:
    dice, blame = random.Random(seed), Blame()
    signs = 0
    for now in range(4_000):
        if dice.random() < share:
            signs += blame.failed(now, now - 0.5) and now > 1_000
        else:
            blame.succeeded(now - 0.5)
    assert signs < 0.15 * share * 3_000


@pytest.mark.parametrize("seed", range(5))
def test_failures_that_cutting_ends_are_signs_of_load_every_time(seed: int) -> None:
    dice, blame = random.Random(seed), Blame()
    for episode in range(5):
        start, signs = episode * 1_000, 0
        for now in range(start, start + 50):
            if dice.random() < 0.5:
                signs += blame.failed(now, now - 0.5)
            else:
                blame.succeeded(now - 0.5)
        assert signs > 5
        for now in range(start + 50, start + 1_000):
            blame.succeeded(now - 0.5)


def test_exhausted_descriptors_bound_calls_to_those_that_have_one_less_a_reserve() -> None:
    descriptors = Descriptors()
    for in_flight in range(200, 59, -1):
        descriptors.exhausted(5.0, in_flight)
    assert descriptors.limit == 57
    descriptors.succeeded(6.0, 57)
    assert descriptors.limit == 57
    descriptors.succeeded(16.0, 57)
    assert descriptors.limit == 59
    descriptors.succeeded(60.0, 5)
    assert descriptors.limit == 59, "it is not used up"


def new_flow(most: int = 9) -> Flow:
    return Flow(most, is_auto=True, wake=lambda: True, goes_on=lambda: True)


def test_flows_take_turns_and_send_again_before_they_send_anew() -> None:
    queue, one, other = FairQueue(is_bounded=True), new_flow(), new_flow()
    waiters = {
        "one new": Waiter(one, is_again=False),
        "one new too": Waiter(one, is_again=False),
        "one again": Waiter(one, is_again=True),
        "other new": Waiter(other, is_again=False),
        "other again": Waiter(other, is_again=True),
    }
    for waiter in waiters.values():
        queue.add(waiter)
    order = []
    while queue.count:
        first = queue.first()
        assert first is not None
        order.append(next(name for name, waiter in waiters.items() if waiter is first))
        queue.remove(first, has_passed=True)
    assert order == ["one again", "other again", "one new", "other new", "one new too"]
    assert not one.queues
    assert not other.queues


def test_a_flow_that_has_all_its_calls_in_flight_is_passed_over() -> None:
    queue, full, other = FairQueue(is_bounded=True), new_flow(1), new_flow()
    full.in_flight = 1
    queue.add(Waiter(full, is_again=False))
    waiter = Waiter(other, is_again=False)
    queue.add(waiter)
    assert queue.first() is waiter


def unreachable(cause: BaseException | None) -> GatewayError:
    error = httpx.ConnectError("no")
    error.__cause__ = cause
    failure = connection_error(error, "http://gateway.test", 1)
    failure.__cause__ = error
    return failure


def read_timeout() -> GatewayError:
    error = httpx.ReadTimeout("slow")
    failure = connection_error(error, "http://gateway.test", 1)
    failure.__cause__ = error
    return failure


@pytest.mark.parametrize(
    ("error", "sign"),
    [
        (classify(429, "Rate limit exceeded"), Sign.WINDOW),
        (classify(429, "OpenAI error 429: slow down"), Sign.REJECTED),
        (classify(429, "<html>429</html>"), Sign.REJECTED),
        (classify(503, "openai circuit is open"), Sign.CIRCUIT),
        (classify(502, "OpenAI request failed: "), Sign.DOWN),
        (classify(503, "<html>"), Sign.DOWN),
        (classify(504, None), Sign.DOWN),
        (classify(500, "Internal Server Error"), Sign.LOAD),
        (classify(400, "no"), Sign.OWN),
        (classify(401, "Invalid API key"), Sign.OWN),
        (unreachable(None), Sign.UNREACHABLE),
        (unreachable(ConnectionRefusedError()), Sign.UNREACHABLE),
        (unreachable(OSError(errno.EMFILE, "too many")), Sign.DESCRIPTORS),
        (unreachable(ExceptionGroup("all failed", [OSError(errno.EMFILE, "too many")])), Sign.DESCRIPTORS),
        (unreachable(ssl.SSLCertVerificationError("expired")), Sign.OWN),
        (read_timeout(), Sign.LOAD),
    ],
)
def test_the_sign_of_a_failure_is_what_it_says(error: GatewayError, sign: Sign) -> None:
    assert sign_of(error) is sign
