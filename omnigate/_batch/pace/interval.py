"""Below one call in flight: an interval between sends, for a provider that allows fewer.

Sans-I/O. With one call in flight, only the time between sends is left to adapt. A rejection makes it half as
long again (multiplicative decrease of the rate), once per interval, and a success a little shorter. Limits
are usually per minute, so the successes of the last minute say what is possible: the interval never gets much
longer than they allow, or a single full window would make it 15 s. Once it is shorter than a call, it is
dropped.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

_LONGER: Final = 1.5

_SHORTER: Final = 0.93

_QUIET_SECONDS: Final = 10.0

_SHORTER_QUIET: Final = 0.5

_MAX_SECONDS: Final = 15.0

_MEMORY_SECONDS: Final = 60.0

_REMEMBERED: Final = 600

_SLACK: Final = 1.5  # how many times longer than the last minute's successes suggest


class Interval:
    """The least time between two sends.

    Times are seconds of any monotonic clock.

    Attributes:
        seconds: the interval; 0 if sends need not be spaced.
        sent_at: when the last call was sent.
    """

    def __init__(self) -> None:
        self.seconds: float = 0.0
        self.sent_at: float = -math.inf
        self._lengthened_at = -math.inf
        self._rejected_at = -math.inf
        self._successes: deque[float] = deque(maxlen=_REMEMBERED)

    def ask(self, now: float) -> float:
        """Return when the next call may be sent; up to `now` means go."""
        return self.sent_at + self.seconds if self.seconds else now

    def rejected(self, now: float, sent_at: float, latency: float) -> None:
        """Record a rejection while one call was in flight.

        Args:
            now: the current time in seconds.
            sent_at: when the call was sent.
            latency: of a typical call, in seconds.
        """
        self._rejected_at = now
        if sent_at < self._lengthened_at:
            return  # sent before the interval was lengthened
        self._lengthened_at = now
        while self._successes and self._successes[0] < now - _MEMORY_SECONDS:
            self._successes.popleft()
        longest = min(_MAX_SECONDS, _SLACK * _MEMORY_SECONDS / max(1, len(self._successes)))
        self.seconds = max(latency, min(longest, _LONGER * max(self.seconds, latency)))

    def succeeded(self, now: float, latency: float) -> None:
        """Record a success.

        Args:
            now: the current time in seconds.
            latency: of a typical call, in seconds.
        """
        self._successes.append(now)
        if self.seconds:
            self.seconds *= _SHORTER if now - self._rejected_at < _QUIET_SECONDS else _SHORTER_QUIET
            if self.seconds < latency:
                self.seconds = 0.0

    def __repr__(self) -> str:
        return f"<Interval {self.seconds:.2f} s>"
