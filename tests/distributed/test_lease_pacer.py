"""A worker's side of a shared limit on its own: when it sends, what it reports, when it does without."""

import math
from typing import Any

import pytest

from omnigate._batch.pace.lease import LeasePacer
from omnigate._batch.pace.messages import UNLIMITED, VERSION, Grant, Report
from omnigate._batch.pace.pacer import UNLIMITED as ANY_NUMBER
from omnigate._batch.pace.pacer import Pacer, Send
from omnigate._limits import RateLimit

SILENT_SECONDS = 5.0

OFFSET = 5_000.0  # of the shared pacer's clock


def new_pacer() -> Pacer:
    return Pacer(uniform=lambda low, high: low, utc=lambda: 0.0)


class Link:
    """A worker, and a shared pacer that answers as the test says."""

    def __init__(self) -> None:
        self.now = 100.0
        self.woken = 0
        self.lease = 0
        self.pacer = LeasePacer(b"a digest", "w", new_pacer(), uniform=lambda low, high: low)
        self.pacer.link(self.now)
        self.pacer.wake = self.wake

    def wake(self) -> None:
        self.woken += 1

    def exchange(self, sends: int = 0, *, epoch: int = 7, seconds: float = 0.0, **more: Any) -> Report:
        """Report, and take an answer that comes so many seconds later; return the report."""
        report = self.pacer.report(self.now)
        self.lease += 1
        told = self.now + OFFSET + seconds / 2
        self.now += seconds
        terms = {"valid_seconds": 30.0, "ask_seconds": 2.5, "again_seconds": 0.25, "limit": 60, **more}
        self.pacer.granted(Grant(VERSION, epoch, told, self.lease, sends, **terms), self.now)
        return report

    def send(self, count: int = 1) -> list[Send]:
        return [self.pacer.sent(self.now) for _ in range(count)]

    def answer(self, send: Send, *, counted: int = 1, left: int = 40) -> None:
        self.pacer.answered(send, self.now, RateLimit(60, 60 - counted, left))

    @property
    def may_send(self) -> bool:
        may = self.pacer.ask(self.now) <= self.now
        assert may == (self.pacer.room(self.now) > 0)
        return may


def test_it_sends_only_under_a_lease_and_no_more_than_that() -> None:
    link = Link()
    assert not link.may_send
    link.exchange(2)
    assert link.pacer.room(link.now) == 2
    link.send(2)
    assert not link.may_send


def test_a_lease_ends_counted_from_when_its_report_was_sent() -> None:
    link = Link()
    link.exchange(2, seconds=1.5, valid_seconds=4.0)
    link.now = 103.9
    assert link.may_send
    link.now = 104.0
    assert not link.may_send
    assert link.exchange().returned == 0  # it is void anyway


def test_what_is_left_of_a_lease_is_added_to_the_next_one_but_not_if_it_has_ended() -> None:
    link = Link()
    link.exchange(3, valid_seconds=10.0)
    link.send()
    link.exchange(2, valid_seconds=10.0)
    assert link.pacer.room(link.now) == 4
    link.now += 10
    link.exchange(1)
    assert link.pacer.room(link.now) == 1


def test_a_call_that_waits_makes_the_next_report_due() -> None:
    link = Link()
    assert link.pacer.due_at <= link.now
    link.exchange(1)
    assert link.pacer.due_at == pytest.approx(link.now + 2.5)
    link.send()
    assert link.woken == 0
    assert not link.may_send
    assert link.woken == 1
    assert link.pacer.due_at == pytest.approx(link.now + 0.25)
    assert not link.may_send
    assert link.woken == 1
    report = link.exchange()
    assert report.is_hungry
    assert report.want >= 8


def test_one_that_is_busy_wants_twice_as_many_each_time() -> None:
    link = Link()
    wants = []
    for _ in range(4):
        assert not link.may_send
        report = link.exchange(1_000)
        wants.append(report.want)
        link.send(report.want)
        link.pacer._left = 0
    assert wants == [8, 16, 32, 64]


def test_what_is_not_used_is_given_back_a_second_later() -> None:
    link = Link()
    link.exchange(30)
    link.send(2)
    assert link.exchange().returned == 28 - 8
    link.now += 1.1
    assert link.exchange().returned == 8
    assert not link.may_send


def test_the_last_report_gives_back_everything() -> None:
    link = Link()
    link.exchange(30)
    link.send(2)
    report = link.pacer.report(link.now, is_leaving=True)
    assert (report.returned, report.is_leaving, report.want) == (28, True, 0)


def test_it_paces_itself_while_there_is_no_answer_and_tells_how_many_it_sent() -> None:
    link = Link()
    link.exchange(1)
    link.answer(link.send()[0])
    link.now += 2.5 + SILENT_SECONDS - 0.01
    assert not link.may_send
    assert link.pacer.ask(link.now) == pytest.approx(link.now + 0.01)
    link.now += 0.02
    assert link.may_send
    assert link.pacer.is_silent(link.now)
    link.send(3)
    report = link.exchange(0)
    assert (report.unleased, report.spent) == (3, 4)
    assert not link.may_send


def test_one_that_never_gets_an_answer_paces_itself_from_the_beginning() -> None:
    link = Link()
    waits = []
    for _ in range(20):
        link.pacer.report(link.now)
        link.pacer.failed(link.now)
        waits.append(round(link.pacer.due_at - link.now, 6))
        link.now = link.pacer.due_at
    assert waits[0] < 0.3
    assert waits == sorted(waits)
    assert waits[-1] <= 5.0
    assert link.may_send


def test_what_a_report_without_an_answer_told_is_told_again() -> None:
    link = Link()
    link.exchange(1)
    link.answer(link.send()[0])
    link.now += 20
    link.send(2)
    first = link.pacer.report(link.now)
    link.pacer.failed(link.now)
    link.send(1)
    again = link.pacer.report(link.now)
    assert (first.unleased, again.unleased) == (2, 3)
    assert len(first.heads) == 1
    assert again.heads == first.heads


def test_what_was_sent_without_a_lease_in_a_window_that_is_over_is_not_told() -> None:
    link = Link()
    link.exchange(0, window_seconds=30.0)
    link.now += 20
    link.send(5)
    link.now += 11
    assert link.exchange().unleased == 0


def test_answers_are_told_by_the_pacers_clock_within_the_time_a_message_takes() -> None:
    link = Link()
    link.exchange(2, seconds=0.4)
    first, second = link.send(2)
    sent_at = link.now + OFFSET
    link.now += 1.0
    link.answer(first)
    report = link.exchange(0, seconds=0.1)
    (head,) = report.heads
    assert sent_at - 0.25 < head.sent_at < sent_at
    assert sent_at + 1.0 < head.received_at < sent_at + 1.25
    link.answer(second, counted=2)  # now that it is known better
    (head,) = link.exchange().heads
    assert sent_at - 0.06 < head.sent_at < sent_at
    assert (head.limit, head.counted, head.reset_seconds) == (60, 2, 40)


def test_a_clock_that_stood_still_is_noticed() -> None:
    link = Link()
    link.exchange(1)
    send = link.send()[0]
    told = link.now + OFFSET + 100  # as after a machine was suspended
    link.pacer.report(link.now)
    link.pacer.granted(Grant(VERSION, 7, told, 9, 0, ask_seconds=2.5), link.now)
    link.answer(send)
    (head,) = link.exchange().heads
    assert head.sent_at == pytest.approx(link.now + OFFSET + 100, abs=0.01)


def test_of_many_answers_three_at_most_are_told() -> None:
    link = Link()
    link.exchange(50)
    sends = link.send(50)
    for counted, send in enumerate(sends, 1):
        link.now += 0.1
        link.answer(send, counted=counted, left=max(1, 40 - counted // 10))
    heads = link.exchange().heads
    assert 1 <= len(heads) <= 3
    assert max(head.counted for head in heads) == 50
    assert link.exchange().heads == []


def test_another_pacer_is_told_what_this_one_knew() -> None:
    link = Link()
    link.exchange(10)
    link.answer(link.send()[0], counted=33)
    link.send(2)
    assert len(link.exchange(0, window_seconds=35.0).heads) == 1
    link.now += 1
    report = link.exchange(0, epoch=8)
    assert (report.epoch, report.spent) == (7, 3)
    assert report.spent_seconds == pytest.approx(34.0)
    assert not link.may_send  # the old lease is void
    assert link.pacer.due_at <= link.now
    report = link.exchange(0, epoch=8)
    assert report.epoch == 8
    assert [head.counted for head in report.heads] == [33]


def test_what_was_sent_while_another_pacer_answered_is_told_to_it() -> None:
    link = Link()
    link.exchange(10)
    report = link.pacer.report(link.now)
    assert report.spent == 0
    link.send(2)
    link.pacer.granted(Grant(VERSION, 8, link.now, 1, 0, ask_seconds=2.5, again_seconds=0.25), link.now)
    assert link.pacer.report(link.now).unleased == 2


def test_a_rejection_closes_the_gate_here_and_is_reported_soon() -> None:
    link = Link()
    link.exchange(10)
    send = link.send()[0]
    link.now += 0.3
    link.pacer.rejected(send, link.now, 20.0, RateLimit(60, 0, 20))
    assert link.woken == 1
    assert not link.may_send
    assert link.pacer.waiting_until(link.now) == pytest.approx(link.now + 20)
    assert link.pacer.due_at <= link.now + 0.25
    report = link.exchange()
    assert report.closed_seconds == pytest.approx(20.0)
    assert report.returned == 9
    assert report.heads[0].counted == 61
    link.now += 20
    link.exchange(1)
    assert link.may_send


@pytest.mark.parametrize("seconds", [-1.0, math.inf, math.nan])
def test_a_rejection_for_no_usable_time_does_not_close_it(seconds: float) -> None:
    link = Link()
    link.exchange(10)
    link.pacer.rejected(link.send()[0], link.now, seconds, None)
    assert link.may_send
    assert link.exchange().closed_seconds == 0


def test_until_the_next_window_it_tells_for_how_long_it_waits() -> None:
    link = Link()
    link.exchange(0, closed_seconds=12.0)
    assert link.pacer.ask(link.now) == pytest.approx(link.now + 12)
    assert link.pacer.waiting_until(link.now) == pytest.approx(link.now + 12)
    link.exchange(0)
    assert link.pacer.waiting_until(link.now) is None


def test_without_a_limit_it_is_free_while_the_lease_lasts() -> None:
    link = Link()
    link.exchange(UNLIMITED, limit=0, valid_seconds=10.0)
    assert link.pacer.room(link.now) == ANY_NUMBER
    link.send(1_000)
    assert link.may_send
    link.now += 10
    assert not link.may_send


def test_the_first_success_without_headers_tells_that_there_is_no_limit() -> None:
    link = Link()
    link.exchange(1, limit=0)
    send = link.send()[0]
    assert not link.exchange(0, limit=0).is_free
    link.pacer.answered(send, link.now, None)
    assert link.pacer.due_at <= link.now
    assert link.exchange(UNLIMITED, limit=0).is_free


def test_a_call_ends_once() -> None:
    link = Link()
    link.exchange(2)
    send, other = link.send(2)
    link.answer(send)
    link.answer(send)
    link.pacer.ended(send, link.now)
    link.pacer.rejected(send, link.now, 5.0, None)
    assert link.exchange().in_flight == 1
    link.pacer.ended(other, link.now)
    assert link.exchange().in_flight == 0


def test_a_call_that_was_sent_before_there_was_a_link_may_end_after() -> None:
    pacer = new_pacer()
    sends = [pacer.sent(99.0) for _ in range(3)]
    link = Link()
    link.pacer.inner = pacer
    link.answer(sends[0])
    link.pacer.ended(sends[1], link.now)
    link.pacer.rejected(sends[2], link.now, 0.0, None)
    assert link.exchange().in_flight == 0


def test_unlinked_it_paces_itself_and_linked_again_it_waits_for_leases() -> None:
    link = Link()
    link.exchange(5)
    link.answer(link.send()[0])
    link.pacer.unlink()
    assert link.may_send
    link.send(2)
    link.pacer.link(link.now)
    assert not link.may_send
    assert link.exchange().unleased == 2


def test_its_repr_tells_the_state_and_no_key() -> None:
    link = Link()
    link.exchange(5)
    assert repr(link.pacer).startswith("<LeasePacer: 5 sends leased, <Pacer: ")
    link.pacer.report(link.now)
    link.pacer.failed(link.now)
    assert "1 reports without an answer" in repr(link.pacer)
    assert "digest" not in repr(link.pacer)
