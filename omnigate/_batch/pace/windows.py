"""When the gateway's rate windows begin and end, told from the answers. Sans-I/O.

The gateway says in each answer how many whole seconds were left of the window when the request *arrived*,
and an answer may come a minute later. Its clock is not ours, and nobody says which window an answer is
about.

1. An answer dates its window from its send: the window ends after `sent + reset - 1` and not after
   `received + reset`. The bounds of all answers are intersected. Where delays differ, the request that
   arrived quickest gives the latest lower bound, and the end lies within a second of it, however late the
   answers come.
2. Windows follow each other without a gap and have one length, so an answer about a window that is over
   still tells where the present one ends. The length is taken for a minute, and shortened to the longest
   one that fits when answers show ends in between. A wrong guess only ever waits too long; the next answer
   mends it.
3. A window is at most a minute long: an answer that says otherwise is not believed.
4. The gateway's windows are UTC's minutes, so a clock that is right says exactly when one ends. It is
   believed within the bounds, and only where a second matters, but no call depends on it.
5. The clocks drift against each other, so the bounds widen a little with every window that passes.
"""

from __future__ import annotations

import math
from typing import Final

__all__ = ["RATE_WINDOW_SECONDS", "Windows"]

RATE_WINDOW_SECONDS: Final = 60
"""The length of the gateway's rate window: a UTC minute."""

_GUARD_BEFORE_SECONDS: Final = 0.25  # a send this close before a window's end may arrive after it

_GUARD_AFTER_SECONDS: Final = 0.1  # jitter of the way to the gateway

_DRIFT: Final = 1e-4  # of the clocks against each other

_PRESENT: Final = (0, False)

_SHIFT: Final = 1 / 12  # an end less out of step than this part of a window: a clock that was set


class Windows:
    """The sequence of windows, as seen from the present one.

    Attributes:
        period: the length of a window in seconds.
        end: the latest lower bound of the present window's end, and close to it.
        end_low: what is sent from then on may arrive in the next window.
        end_high: what is sent from then on arrives in the next window.
        is_known: whether an answer has told of any window.
    """

    __slots__ = ("_dated", "_strict", "end", "end_high", "end_low", "period")

    def __init__(self) -> None:
        self.period: float = RATE_WINDOW_SECONDS
        # The end lies after `end` and not after `_strict`.
        self.end = self._strict = self.end_low = self.end_high = math.nan
        self._dated = math.nan  # `end` of the window that the last answer told of

    def values(self) -> list[float]:
        """Return all that is known as numbers, for `of`."""
        return [self.period, self.end, self._strict, self.end_low, self.end_high, self._dated]

    @classmethod
    def of(cls, values: list[float]) -> Windows:
        """Return the windows that `values` have described."""
        windows = cls()
        windows.period, windows.end, windows._strict = values[:3]
        windows.end_low, windows.end_high, windows._dated = values[3:]
        return windows

    def suppose(self, period: float) -> None:
        """Before the first answer: take windows for at most so many seconds long, until answers show more."""
        self.period = min(self.period, period)

    @property
    def is_known(self) -> bool:
        return self.end == self.end

    def begin(self, age: int = 0) -> float:
        """Return from when on what was sent may have arrived in the window before the last `age` ends."""
        return self.end_low - self.period * (age + 1)

    def certain_begin(self, age: int = 0) -> float:
        """Return from when on what was sent has not arrived before that window."""
        return self.end_high - self.period * (age + 1)

    def number(self, utc_ahead: float) -> int:
        """Return how many windows after 1970 the present one ends: the same for all clients.

        Args:
            utc_ahead: seconds since 1970, less the time of our own clock.
        """
        return round((self.end + utc_ahead) / self.period)

    def likely_end(self, utc_ahead: float) -> float:
        """Return what UTC tells of the present window's end, as far as the answers allow it.

        Args:
            utc_ahead: as in `number`.
        """
        end = self.number(utc_ahead) * self.period - utc_ahead
        return min(max(end, self.end), self._strict)

    def date(self, at: float, now: float, reset: int) -> tuple[int, bool]:
        """Learn from an answer about the window that a request arrived in.

        Args:
            at: when the request was sent.
            now: when its answer came.
            reset: seconds that were left of its window when it arrived.

        Returns:
            How many windows ago that was, and whether all that was known before is void.
        """
        low, high = at + reset - 1, now + reset
        if not self.is_known:
            self._restart(low, high, max(self.period, reset))
            return 0, True
        period, end = self.period, self.end
        if end <= high and low <= self.end_high and reset <= period and abs(end - low) < period / 2:
            # As usual, it may have been the present window, and no other is closer.
            if low > end or high < self._strict:
                self.end = max(end, low)
                self._strict = max(min(self._strict, high), self.end)
                self._bound()
            self._dated = self.end
            return _PRESENT
        latest = math.floor((self.end_high - low) / period + 1e-9)  # how many windows ago it may have been
        earliest = math.ceil((self.end - high) / period - 1e-9)
        windows = round((self.end - low) / period)
        if earliest <= latest and reset <= period:
            age = min(max(windows, earliest), latest)
            behind = age * period
            if low + behind > self.end or high + behind < self._strict:
                self.end = max(self.end, low + behind)
                self._strict = max(min(self._strict, high + behind), self.end)
                self._bound()
            self._dated = self.end - behind
            return age, False
        # Windows of another length than was thought, or a clock that was set.
        gap = abs(low - self._dated)
        expected = max(1 if at >= self._dated and gap > 1.5 else 0, round(gap / period)) * period
        shorter = min(period - 1, math.floor(gap + 1))
        if reset <= period and abs(gap - expected) < period * _SHIFT:
            self.end, self._strict, self._dated = low + windows * period, high + windows * period, low
            self._bound()
            return windows, False
        if max(1, reset) <= shorter and gap < shorter + 1.5:
            self._restart(low, high, shorter)
        else:
            self._restart(low, high, RATE_WINDOW_SECONDS)
        return 0, True

    def advance(self, now: float) -> None:
        """Go on to the next window, or if it has been over for long to the one that `now` is in."""
        passed = max(1, math.floor((now - self.end_high) / self.period))
        drift = min(1.0, _DRIFT * self.period * passed)
        self.end += self.period * passed - drift
        self._strict += self.period * passed + drift
        self._bound()

    def _restart(self, low: float, high: float, period: float) -> None:
        self.period = period
        self.end, self._strict, self._dated = low, high, low
        self._bound()

    def _bound(self) -> None:
        self.end_low = self.end - _GUARD_BEFORE_SECONDS
        self.end_high = min(self._strict, self.end + 1 + _GUARD_AFTER_SECONDS)
