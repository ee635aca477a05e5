"""What was sent when, and which of it the gateway's answers have confirmed. Sans-I/O, in bounded memory."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from typing import Final

__all__ = ["SendRecord"]

_TICK_SECONDS: Final = 0.02  # resolution of the totals

_TICKS: Final = 20_000  # of them at most; three quarters are five minutes of sends without a pause

_BUCKET_SECONDS: Final = 0.25  # resolution of what is unconfirmed

_BUCKETS: Final = 2_400  # ten minutes of them: more than the windows that are kept


class SendRecord:
    """Counts of sends by the time they were sent at.

    Attributes:
        total: all sends, ever.
    """

    __slots__ = ("_base", "_lost", "_tick_end", "_ticks", "_totals", "_unconfirmed", "total")

    def __init__(self) -> None:
        self.total = 0
        self._ticks = [-math.inf]  # when something was sent ...
        self._totals = [0]  # ... and how many had been sent by the end of that tick
        self._tick_end = -math.inf  # until then a send counts in the last tick and the last bucket
        self._base = 0  # the first bucket's number
        self._unconfirmed: list[int] = []
        self._lost: dict[int, int] = {}  # of those: what may never have arrived

    def add(self, now: float) -> None:
        self.total = total = self.total + 1
        if now < self._tick_end:
            self._totals[-1] = total
            self._unconfirmed[-1] += 1
            return
        if now - self._ticks[-1] < _TICK_SECONDS:
            self._totals[-1] = total
        else:
            self._ticks.append(now)
            self._totals.append(total)
            if len(self._ticks) > _TICKS:
                del self._ticks[: _TICKS // 4], self._totals[: _TICKS // 4]
        bucket = int(now / _BUCKET_SECONDS)
        self._tick_end = min(self._ticks[-1] + _TICK_SECONDS, (bucket + 1) * _BUCKET_SECONDS)
        place = bucket - self._base
        unconfirmed = self._unconfirmed
        try:
            unconfirmed[place] += 1
        except IndexError:
            self._extend(place)

    def _extend(self, place: int) -> None:
        unconfirmed = self._unconfirmed
        if place - len(unconfirmed) > _BUCKETS or not unconfirmed:
            self._base += place
            unconfirmed[:] = [1]
            return
        unconfirmed.extend([0] * (place - len(unconfirmed)))
        unconfirmed.append(1)
        if len(unconfirmed) > 2 * _BUCKETS:
            old = len(unconfirmed) - _BUCKETS
            del unconfirmed[:old]
            self._base += old

    def confirm(self, at: float) -> None:
        """Register that the gateway has counted what was sent then."""
        place = int(at / _BUCKET_SECONDS) - self._base
        if place >= 0 and self._unconfirmed[place] > 0:
            self._unconfirmed[place] -= 1

    def lose(self, at: float) -> None:
        """Register that what was sent then may never have arrived."""
        bucket = int(at / _BUCKET_SECONDS)
        self._lost[bucket] = self._lost.get(bucket, 0) + 1
        if len(self._lost) > _BUCKETS:
            del self._lost[next(iter(self._lost))]

    @property
    def has_lost(self) -> bool:
        return bool(self._lost)

    def forget(self, before: float) -> None:
        """Forget what was sent before a time, but for what is unconfirmed."""
        old = bisect_right(self._ticks, before) - 1
        if old > 0:
            del self._ticks[:old], self._totals[:old]
        if self._lost:
            first = int(before / _BUCKET_SECONDS)
            self._lost = {bucket: lost for bucket, lost in self._lost.items() if bucket >= first}

    def by(self, time: float) -> int:
        """Return how many were sent up to a time, up to a tick more."""
        return self._totals[bisect_right(self._ticks, time) - 1]

    def before(self, time: float) -> int:
        """Return how many were sent up to a time, up to a tick less."""
        return self._totals[bisect_right(self._ticks, time - _TICK_SECONDS) - 1]

    def time_of(self, number: int) -> float:
        """Return when that many had been sent."""
        return self._ticks[bisect_left(self._totals, number)]

    def unconfirmed_within(self, since: float, until: float) -> int:
        """Return how many of those sent between two times are not confirmed, up to a bucket's more."""
        first = max(0, int(since / _BUCKET_SECONDS) - self._base)
        return sum(self._unconfirmed[first : max(0, int(until / _BUCKET_SECONDS) - self._base + 1)])

    def surely_unconfirmed_within(self, since: float, until: float) -> int:
        """Return the same, up to a bucket's less."""
        first = max(0, int(since / _BUCKET_SECONDS) - self._base + 1)
        return sum(self._unconfirmed[first : max(0, int(until / _BUCKET_SECONDS) - self._base)])

    def lost_within(self, since: float, until: float) -> int:
        """Return how many of those sent between two times may never have arrived, up to a bucket's less."""
        if not self._lost:
            return 0
        first, last = int(since / _BUCKET_SECONDS) + 1, int(until / _BUCKET_SECONDS)
        return sum(self._lost.get(bucket, 0) for bucket in range(first, last))
