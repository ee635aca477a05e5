"""A circuit breaker: during an outage everything waits, except for one probe at a time.

Sans-I/O. Closed, it lets everything pass. A few failures in a row open it: failures of calls sent after the
latest call that succeeded, since older calls say nothing new. Open, it lets one probe pass at a time, the
first after half a second, then after twice as long, up to 30 s. A success closes it, of the probe or of any
other call. It is otherwise in outages that meet every call: long calls that began before such an outage still
succeed during it, and must not let the others try again each time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final

_FIRST_SECONDS: Final = 0.5

_MAX_SECONDS: Final = 30.0

_JITTER: Final = 0.1

_IN_A_ROW: Final = 3


class Breaker:
    """Decides whether calls may be sent, from how the last ones ended.

    Times are seconds of any monotonic clock. Calls are numbered in the order they are sent.

    Attributes:
        is_open: whether there is an outage.
        reason: why, in words; empty if there is none.
        succeeded_number: the number of the latest call that succeeded, -1 if none has.

    Args:
        is_for_all: whether each failure that is recorded would have met any call, as a refused connection
            does. Then calls sent before it say nothing about the present, and their successes are ignored.
        uniform: draws a number between two, evenly.

    """

    def __init__(
        self, *, is_for_all: bool = False, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._is_for_all = is_for_all
        self._uniform = uniform
        self.is_open: bool = False
        self.reason: str = ""
        self.succeeded_number: int = -1
        self._in_a_row = 0
        self._begun = -1  # the number of the first call that met the present outage, or the last one
        self._backoff = 0.0
        self._probe: int | None = None  # the number of the probe in flight
        self._probe_at = -math.inf  # when the next one may go

    def ask(self, now: float) -> float:
        """Return when the next call may be sent; up to `now` means go, `math.inf` when the probe ends."""
        if not self.is_open:
            return now
        return self._probe_at if self._probe is None else math.inf

    def sent(self, number: int) -> None:
        """Record a call."""
        if self.is_open:
            self._probe = number

    def succeeded(self, number: int) -> bool:
        """Record a success; return whether it ended an outage."""
        if number > self.succeeded_number:
            self.succeeded_number = number
        if number < self._begun:
            return False
        self._in_a_row = 0
        if not self.is_open:
            return False
        self.is_open, self.reason, self._probe, self._backoff = False, "", None, 0.0
        return True

    def failed(self, number: int, now: float, reason: str, *, is_certain: bool = False) -> bool:
        """Record a call that met an outage; return whether it opened the breaker.

        Args:
            number: the call's.
            now: the current time in seconds.
            reason: what it met, in words.
            is_certain: whether one such failure is enough, and would have met any call.

        """
        if self.is_open:
            self.reason = reason
            if number == self._probe:
                self._probe = None
                self._back_off(now)
            return False
        if number < self.succeeded_number:
            return False
        if is_certain or (self._is_for_all and not self._in_a_row):
            self._begun = max(self._begun, number)
        self._in_a_row += 1
        if self._in_a_row < _IN_A_ROW and not is_certain:
            return False
        self.is_open, self.reason, self._probe = True, reason, None
        self._back_off(now)
        return True

    def ended(self, number: int, now: float) -> None:
        """Record a call that says nothing about an outage; the next probe may go."""
        if number == self._probe:
            self._probe, self._probe_at = None, now

    def _back_off(self, now: float) -> None:
        self._backoff = min(_MAX_SECONDS, 2 * self._backoff or _FIRST_SECONDS)
        self._probe_at = now + self._backoff * (1 - self._uniform(0, _JITTER))

    def __repr__(self) -> str:
        return f"<Breaker {f'open: {self.reason}' if self.is_open else 'closed'}>"
