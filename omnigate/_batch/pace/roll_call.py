"""How paced processes count each other: see `share`. Sans-I/O."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

__all__ = ["ROLL_BEGIN", "ROLL_END", "ROLL_LONG", "ROLL_PHASE", "ROLL_SHORT", "RollCalls", "heard"]

# The roll call, in parts of a window: from when on, the first call's random delay, and the two intervals.
ROLL_BEGIN: Final = 1.2 / 60

ROLL_PHASE: Final = 0.8 / 60

ROLL_SHORT: Final = 1 / 60

ROLL_LONG: Final = 3 / 60

ROLL_END: Final = ROLL_BEGIN + ROLL_PHASE + ROLL_SHORT + ROLL_LONG

_ROLL_CALLS: Final = 5  # results that are kept


def heard(first: float, second: float, third: float) -> float:
    """Return how many peers, ourselves included, the counts that our three calls got tell of."""
    short, long = second - first, third - second
    return min(long, (ROLL_LONG * short - ROLL_SHORT * long) / (ROLL_LONG - ROLL_SHORT))


class RollCalls:
    """The results of the last roll calls, and what to believe of them.

    Attributes:
        peers: how many paced processes there are, this one included; 0 if unknown.
    """

    __slots__ = ("_results", "peers")

    def __init__(self) -> None:
        self.peers = 0.0
        self._results: deque[float] = deque(maxlen=_ROLL_CALLS)

    def __len__(self) -> int:
        return len(self._results)

    def clear(self) -> None:
        self._results.clear()
        self.peers = 0.0

    def add(self, peers: float) -> None:
        results = self._results
        results.append(peers)
        if len(results) > 1 and abs(results[-1] - results[-2]) <= max(1.0, 0.15 * peers):
            self.peers = (results[-1] + results[-2]) / 2
            return
        mean = sum(results) / len(results)
        if len(results) > 1:
            variance = sum((result - mean) ** 2 for result in results) / (len(results) - 1)
            mean -= math.sqrt(variance / len(results))
        self.peers = max(1.0, min(mean, sorted(results)[(len(results) - 1) // 2]))
