"""What a worker tells a shared pacer of the gateway's answers, by the pacer's clock. Sans-I/O.

Of any number of answers the three that say most are told. The shared pacer's clock is known from its grants:
each told a time between the sending of the report and the receipt of the grant. Both bounds are kept, the
narrowest lately (Cristian, 1989).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from omnigate._batch.pace.messages import Head

__all__ = ["Answer", "Heads", "PacerClock"]

_DRIFT: Final = 2e-4  # of two clocks against each other

_MARGIN_SECONDS: Final = 1e-3


class Answer(NamedTuple):
    """What an answer of the gateway says of the limit, by the worker's clock.

    Attributes:
        sent_at: when the request was sent.
        received_at: when the answer came.
        limit: calls allowed in a window.
        counted: how many had been counted.
        reset_seconds: whole seconds that were left of the window.
    """

    sent_at: float
    received_at: float
    limit: int
    counted: int
    reset_seconds: int


class Heads:
    """The answers that say most: three of any number."""

    __slots__ = ("_counted", "_earliest", "_latest")

    def __init__(self) -> None:
        self._latest: Answer | None = None  # of the lower bounds of a window's end
        self._earliest: Answer | None = None  # of the upper bounds
        self._counted: Answer | None = None  # the highest count, of the last window

    def add(self, answer: Answer) -> None:
        """Keep an answer if it says more than those before."""
        at, now, _, counted, reset = answer
        latest, earliest, highest = self._latest, self._earliest, self._counted
        if latest is None or at + reset > latest.sent_at + latest.reset_seconds:
            self._latest = answer
        if (
            earliest is None
            or now + reset < earliest.received_at + earliest.reset_seconds
            or now > earliest.received_at + 30
        ):
            self._earliest = answer
        if (
            highest is None
            or counted >= highest.counted
            or at + reset > highest.sent_at + highest.reset_seconds + 2.5
        ):
            self._counted = answer

    def all(self, since: float) -> list[Answer]:
        """Return those received since a time, each once, in the order they were sent."""
        kept = self._latest, self._earliest, self._counted
        return sorted({answer for answer in kept if answer and answer.received_at >= since})


class PacerClock:
    """What the shared pacer's clock shows, as far as a worker can tell."""

    __slots__ = ("_at", "_high", "_low")

    def __init__(self) -> None:
        self._low = -math.inf  # the pacer's clock is ahead of the worker's by at least this, and ...
        self._high = math.inf  # ... by at most this
        self._at = 0.0

    def synchronize(self, told: float, asked_at: float, now: float) -> None:
        """Learn from a grant.

        Args:
            told: the time that it tells.
            asked_at: when the report was sent that it answers.
            now: when it came.
        """
        low, high = told - now, told - asked_at
        drift = _DRIFT * (now - self._at)
        self._low = max(self._low - drift, low)
        self._high = min(self._high + drift, high)
        if self._low > self._high:  # one of the clocks was set, or stood still
            self._low, self._high = low, high
        self._at = now

    def head(self, answer: Answer) -> Head:
        """Return an answer by the pacer's clock."""
        return Head(
            answer.sent_at + self._low - _MARGIN_SECONDS,
            answer.received_at + self._high + _MARGIN_SECONDS,
            answer.limit,
            answer.counted,
            answer.reset_seconds,
        )
