"""The adaptive limit of a model that many workers share, as one of them sees it. Sans-I/O.

Used by an `Upstream` in place of its `AdaptiveConcurrency`, which goes on to learn from this worker's calls.
While the shared pacer answers, its part of the limit of all workers counts instead; on overload the worker
cuts its part itself, once, until the next grant says what all workers' failures have come to.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final

from omnigate._batch.pace.concurrency import AdaptiveConcurrency
from omnigate._batch.pace.messages import COUNT_MAX, LATENCIES_MAX, ModelReport

__all__ = ["SharedConcurrency"]

_CUT: Final = 0.7

_SECONDS_MAX: Final = 3_600.0


class SharedConcurrency:
    """One worker's part of the limit of a model.

    Args:
        model: its name.
        own: the limit it would have alone.
        uniform: draws a number between two, evenly.
    """

    def __init__(
        self,
        model: str,
        own: AdaptiveConcurrency,
        *,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._uniform = uniform
        self.own: AdaptiveConcurrency = own
        self.model: str = model
        self._part = 0  # 0: the shared pacer has not said
        self._latencies: list[float] = []
        self._seen = 0  # since the last report
        self._overloads: list[float] = []  # when those calls were sent
        self._is_cut = False
        self._is_forgiven = False

    @property
    def limit(self) -> int:
        """How many calls may be in flight."""
        return self._part or self.own.limit

    def succeeded(self, now: float, latency: float, in_flight: int) -> None:
        """Record a call that got a response, as `AdaptiveConcurrency.succeeded`."""
        self.own.succeeded(now, latency, in_flight)
        self._seen += 1
        latency = min(latency, _SECONDS_MAX)
        if len(self._latencies) < LATENCIES_MAX:
            self._latencies.append(latency)
        else:  # a fair sample (Vitter's algorithm R, 1985)
            place = math.floor(self._uniform(0, self._seen))
            if place < LATENCIES_MAX:
                self._latencies[place] = latency

    def overloaded(self, now: float, sent_at: float) -> None:
        """Record a call that failed from overload, as `AdaptiveConcurrency.overloaded`."""
        self.own.overloaded(now, sent_at)
        if len(self._overloads) < LATENCIES_MAX:
            self._overloads.append(sent_at)
        if self._part and not self._is_cut:
            self._is_cut = True
            self._part = max(1, int(self._part * _CUT))

    def forgive(self) -> None:
        """Undo the cuts, as `AdaptiveConcurrency.forgive`."""
        self.own.forgive()
        self._is_forgiven = True

    def report(self, now: float, in_flight: int, *, is_full: bool) -> ModelReport:
        """Return what has happened since the last report.

        Args:
            now: the current time in seconds.
            in_flight: calls in flight.
            is_full: whether more would be if the limit were higher.
        """
        report = ModelReport(
            model=self.model,
            in_flight=in_flight,
            want=min(COUNT_MAX, 2 * max(in_flight, self.limit) if is_full else in_flight),
            limit=min(self.limit, COUNT_MAX),
            latencies=self._latencies,
            overloads=[min(_SECONDS_MAX, max(0.0, now - at)) for at in self._overloads],
            is_forgiven=self._is_forgiven,
        )
        self._latencies, self._overloads, self._seen = [], [], 0
        self._is_forgiven = False
        return report

    def granted(self, limit: int) -> None:
        """Take this worker's part of the limit; 0 if there is none any more."""
        self._part = limit
        self._is_cut = False

    def __repr__(self) -> str:
        return f"<SharedConcurrency limit={self.limit} own={self.own!r}>"
