"""Which failures are load: those that become fewer when fewer calls are in flight.

Sans-I/O. A few per cent of the prompts of a file may fail whatever the load. Cutting the limit for them costs
hours and helps nobody. So a cut is judged: the share of failures among calls sent after it is compared with
the share before. If it has not fallen by half, that share is excused from then on, and only failures well
above it count.
"""

from __future__ import annotations

import math
from typing import Final

_WEIGHT: Final = 0.03  # of one call in the moving average

_JUDGED_AFTER: Final = 30  # calls, at least

_FAILURES_JUDGED: Final = 4  # so many failures are expected in a judged sample, if nothing has changed

_JUDGED_MAX: Final = 400

_EXCUSED_MAX: Final = 0.3  # after one cut

_FUTILE: Final = 0.8  # of the share before: next to no change

_FUTILE_CUTS: Final = 4

_EXCUSED_MIN: Final = 0.03  # of any file's prompts may fail

_TOLERANCE: Final = 2.0  # times the excused share

_MARGIN: Final = 0.05


class Blame:
    """Tells failures that come from load from those that do not.

    Times are seconds of any monotonic clock. Only the first failure of an item is to be recorded.

    Attributes:
        excused: the share of calls that fails whatever the load.
    """

    def __init__(self) -> None:
        self.excused = _EXCUSED_MIN
        self._share = 0.0  # moving average
        self._calls = self._failures = 0  # since the last verdict; the oldest half is forgotten now and then
        self._cut_at = math.inf  # when the cut that is being judged was made
        self._share_before = 0.0
        self._calls_after = self._failures_after = 0
        self._futile = 0  # cuts in a row that changed next to nothing

    def succeeded(self, sent_at: float) -> bool:
        """Record a success; return whether it has shown that cutting does not help."""
        self._share *= 1 - _WEIGHT
        if self.excused > _EXCUSED_MIN and self._share < self.excused / 2:  # what failed so often is over
            self.excused = max(_EXCUSED_MIN, self.excused * (1 - _WEIGHT))
        self._calls += 1
        if self._calls > 2 * _JUDGED_MAX:
            self._halve()
        if sent_at <= self._cut_at:
            return False
        self._calls_after += 1
        return self._judge()

    def failed(self, now: float, sent_at: float) -> bool:
        """Record a failure; return whether it is a sign of load."""
        self._share += _WEIGHT * (1 - self._share)
        self._calls += 1
        self._failures += 1
        if self._calls > 2 * _JUDGED_MAX:
            self._halve()
        if sent_at > self._cut_at:
            self._calls_after += 1
            self._failures_after += 1
        if self._share <= _TOLERANCE * self.excused + _MARGIN:
            return False
        if self._cut_at == math.inf:
            self._cut_at = now
            self._share_before = max(self._failures / self._calls, 1 / _JUDGED_MAX)
            self._calls_after = self._failures_after = 0
        return True

    def _halve(self) -> None:
        self._calls //= 2
        self._failures //= 2

    def _judge(self) -> bool:
        needed = min(_JUDGED_MAX, max(_JUDGED_AFTER, _FAILURES_JUDGED / self._share_before))
        if self._calls_after < needed:
            return False
        share, before = self._failures_after / self._calls_after, self._share_before
        self._futile = self._futile + 1 if share >= _FUTILE * before else 0
        is_excused = 0 < before / 2 <= share <= _EXCUSED_MAX or self._futile >= _FUTILE_CUTS
        if is_excused:
            self.excused, self._futile = max(_EXCUSED_MIN, share), 0
        self._cut_at = math.inf
        self._calls, self._failures = self._calls_after, self._failures_after
        return is_excused

    def __repr__(self) -> str:
        return f"<Blame: {self.excused:.1%} excused, {self._share:.1%} failing>"
