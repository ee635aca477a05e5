"""The adaptive limit of one model for all workers, and each worker's part of it. Sans-I/O.

One `AdaptiveConcurrency` learns from the calls of all workers. Its limit is divided by need: what some
workers do not use is given to those that could have more calls in flight. A worker may still take up an equal
part, or a little more than it uses, at any time: for a second, all together may then exceed the limit. No
worker gets less than one; below that, each has its own interval between calls.

At first every worker brings the limit that it has: what the workers had found before goes on to count.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from omnigate._batch.pace.concurrency import AdaptiveConcurrency
from omnigate._batch.pace.messages import ModelReport

__all__ = ["ModelState", "SharedModel"]

_MAXIMUM: Final = 1 << 16

_BEGINNING_SECONDS: Final = 3.5  # all workers have reported within it

_SILENT_SECONDS: Final = 5.0  # a worker that has not reported for so long has no part

_SLACK: Final = 8  # of what a worker uses, it may use one in so many more


class Member(msgspec.Struct, array_like=True, gc=False):
    """A worker that calls the model."""

    seen_at: float
    in_flight: int = 0
    want: int = 0
    limit: int = 0


class ModelState(msgspec.Struct, array_like=True):
    """All that is known of a model, as plain numbers.

    Attributes:
        begun_at: when it was first heard of.
        values: those of its `AdaptiveConcurrency`; None at first.
        members: the workers that call it.
    """

    begun_at: float
    values: dict[str, Any] | None = None
    members: dict[str, Member] = msgspec.field(default_factory=dict[str, Member])


class SharedModel:
    """Divides the limit of one model.

    Args:
        state: what is known; it is changed, but for its `values` (see `store`).
    """

    def __init__(self, state: ModelState) -> None:
        self.state: ModelState = state
        self._concurrency = AdaptiveConcurrency(maximum=_MAXIMUM)
        if state.values is not None:
            self._concurrency = AdaptiveConcurrency.of(state.values)

    def store(self) -> None:
        """Bring the state up to date."""
        self.state.values = self._concurrency.values()

    def exchange(self, worker: str, report: ModelReport, now: float) -> int:
        """Learn from a report, and return how many calls its worker may have in flight; 0 if it must say."""
        members = self.state.members
        for name in [name for name, old in members.items() if now > old.seen_at + _SILENT_SECONDS]:
            del members[name]
        members[worker] = Member(now, report.in_flight, report.want, report.limit)
        if now < self.state.begun_at + _BEGINNING_SECONDS:
            together = sum(member.limit for member in members.values())
            if together > self._concurrency.limit:
                self._concurrency = AdaptiveConcurrency(initial=together, maximum=_MAXIMUM)
            return 0
        self._learn(report, now)
        return self._part(worker)

    def _learn(self, report: ModelReport, now: float) -> None:
        concurrency = self._concurrency
        in_flight = sum(
            member.in_flight if member.want <= member.in_flight else max(member.in_flight, member.limit)
            for member in self.state.members.values()
        )
        if report.is_forgiven:
            concurrency.forgive()
        for latency in report.latencies:
            concurrency.succeeded(now, latency, in_flight)
        for age in report.overloads:
            concurrency.overloaded(now, now - age)

    def _part(self, worker: str) -> int:
        members, limit = self.state.members, self._concurrency.limit
        own = members[worker]
        if own.want <= own.in_flight:
            return max(1, limit // len(members), min(limit, own.in_flight + own.in_flight // _SLACK + 1))
        needs = [member.in_flight for member in members.values() if member.want <= member.in_flight]
        full = [name for name, member in members.items() if member.want > member.in_flight]
        level = fair_level(limit, needs, len(members))
        place = full.index(worker)
        # The remainders are given to some of them, so that all parts together are the limit.
        part = math.floor(level * (place + 1) + 1e-9) - math.floor(level * place + 1e-9)
        return max(1, min(part, own.want))


def fair_level(total: int, needs: list[int], count: int) -> float:
    """Return the most that anyone gets of a total divided max-min fairly; inf if there is enough for all.

    Args:
        total: what is divided.
        needs: of those who need a certain number.
        count: how many they are, together with those who take whatever they get.
    """
    for need in sorted(needs):
        if need * count >= total:
            break
        total -= need
        count -= 1
    return total / count if count else math.inf
