"""How much each of so many processes sends that roll calls would use up the limit. Sans-I/O."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from omnigate._batch.pace.roll_call import ROLL_BEGIN, ROLL_END, ROLL_PHASE

__all__ = ["Crowd"]

_FREE: Final = 1.9

_HELLO: Final = 1.0

_SEND_END: Final = 15 / 60  # the part of a window within which a crowd sends

_STEEP: Final = 4.0

_EARLY: Final = 1.0

_REJECTED: Final = 0.8

_FIRST: Final = 2

_CLIP: Final = 0.5

_GAIN_LOW: Final = 0.4

_GAIN: Final = 0.4  # of a reading

_OVERFULL: Final = 1.1  # of the limit, at least, was sent where one was rejected

_KNOWN: Final = 9

_JITTER: Final = 0.1

_RATE_MOST: Final = 4.0  # calls in a window; with more there is room for roll calls

_RATE_LEAST: Final = 0.2  # if readings drive us below, the others do not yield and are no crowd ...

_RATE_COMMON: Final = 0.5

_SLACK: Final = 0.4

_PULL: Final = 0.3

_DOWN: Final = 0.15

_OVERFULL_WINDOWS: Final = 4

_CROWD_MOST: Final = 150

_PULL_MOST: Final = 1.2

_GAIN_FIRST: Final = 0.8

_GAIN_EARLY: Final = 0.6

_DENIED_WINDOWS: Final = 30  # ... and none is believed in for so long, and the next time for twice as long

_TEST: Final = 0.025

_TEST_MOST: Final = 1 / 8

_FEW: Final = 0.75

_DOUBT: Final = 0.75

_DOUBT_WINDOWS: Final = 3

_SEEN: Final = 0.4

HELLO_BEGIN: Final = ROLL_BEGIN + ROLL_PHASE / 3

HELLO_END: Final = HELLO_BEGIN + ROLL_PHASE


class Crowd:
    """The rate of one process in a crowd.

    Attributes:
        rate: calls in a window; 0 outside of a crowd.
    """

    __slots__ = (
        "_credit",
        "_denial",
        "_denied",
        "_early",
        "_greeting",
        "_late",
        "_hellos",
        "_limit",
        "_overfull",
        "_readings",
        "_target",
        "_uniform",
        "_windows",
        "is_doubted",
        "rate",
    )

    def __init__(self, uniform: Callable[[float, float], float]) -> None:
        self._uniform = uniform
        self.rate = 0.0
        self._limit = 0
        self._target = 0.0
        self._credit = self._greeting = 0.0
        self._early = self._late = self._hellos = 0.0
        self._windows = self._readings = self._overfull = 0
        self.is_doubted = False
        self._denied = 0
        self._denial = _DENIED_WINDOWS

    def enter(self, limit: int, size: float, *, is_guess: bool) -> bool:
        """Begin to behave as in a crowd of that size, if known, unless this has been in vain lately."""
        if self.rate or self._denied > 0:
            return False
        self._limit = limit
        self._target = limit - _FREE * math.sqrt(limit)
        self.rate = min(_RATE_MOST, self._target / size)
        self._early = self._late = size
        self._hellos = 0.0
        self._windows = self._overfull = 0
        self._readings = 0 if is_guess else _KNOWN
        self.is_doubted = False
        self._credit, self._greeting = self._uniform(0, 1), self._uniform(0, 1)
        return True

    def leave(self) -> None:
        self.rate = 0.0

    def window_began(self) -> None:
        self._denied -= 1
        if not self.rate:
            return
        self._windows += 1
        self._overfull -= 1
        floor = self._limit / _CROWD_MOST
        if self.rate < floor:
            self.rate *= (floor / self.rate) ** _PULL
        elif self._overfull > 0 and self.rate < _PULL_MOST:
            self.rate *= (floor / self.rate) ** _DOWN
        if self.rate > _RATE_MOST:
            self.rate = 0.0
        elif self.rate < _RATE_LEAST:
            self.rate = 0.0
            self._denied = self._denial
            self._denial *= 2
        elif self.rate >= 1 and self._early < _DOUBT * self._late and self._windows >= _DOUBT_WINDOWS:
            self._windows = 0
            self.is_doubted = True

    @property
    def size(self) -> float:
        """Return how many processes were heard."""
        return self._target / self.rate if self.rate else self._late

    def plan(self) -> tuple[float, ...] | None:
        """Return when to send in a window, as parts of it; None: hold a roll call."""
        rate, uniform = self.rate, self._uniform
        hello, test, fill = _plan(rate)
        if self.is_doubted or uniform(0, 1) < test:
            return None
        self._greeting += hello / (1 - test)
        self._credit += fill / (1 - test)
        times: list[float] = []
        if self._greeting + (uniform(-_JITTER, _JITTER) if hello < 1 - test else 0.0) >= 1:
            self._greeting -= 1
            times.append(HELLO_BEGIN + uniform(0, ROLL_PHASE))
        number = max(0, int(self._credit + uniform(-_JITTER, _JITTER)))
        self._credit -= number
        phase = uniform(0, 1)
        times.extend(ROLL_END + (place + phase) / number * (_SEND_END - ROLL_END) for place in range(number))
        return tuple(times)

    def hear(self, part: float, counted: int, rate: float) -> None:
        """Register what was counted when a call arrived.

        Args:
            part: the part of the window that was over when it was sent.
            counted: what the answer told; more than the limit: it was rejected.
            rate: what was planned for that window.
        """
        early = min(1.0, (part - HELLO_BEGIN) / ROLL_PHASE)
        if early < 0.5 or not self.rate:
            return
        hello, test, fill = _plan(rate)
        later = min(1.0, max(0.0, part - ROLL_END) / (_SEND_END - ROLL_END))
        planned = (hello + (3 if later else 1) * test) * early + fill * later
        size = counted / planned
        if counted > self._limit:
            size = max(_OVERFULL * self._limit / planned, self.size)
        if not later and counted <= self._limit:
            hellos = counted / early
            self._hellos += (_SEEN if self._hellos else 1.0) * (hellos - self._hellos)
            if rate < 1 and self.rate < 1 and self._hellos < _FEW * self._target:
                self.rate *= (min(1.5, self._target / self._hellos) / self.rate) ** _GAIN
                return
        if later:
            self._late += _SEEN * (size - self._late)
        elif counted <= self._limit:
            self._early += _SEEN * (size - self._early)
        self._readings += 1
        if counted > self._limit:
            self.rate *= min(_REJECTED, max(_CLIP, self._target / size / self.rate))
            self._overfull = _OVERFULL_WINDOWS
            return
        gain = _GAIN_FIRST if self._readings <= _FIRST else _GAIN if self.rate >= 1 else _GAIN_LOW
        if not later and self._readings > _FIRST:
            gain *= early * _EARLY
        self.rate *= min(1.5, max(_CLIP, self._target / size / self.rate)) ** gain

    @staticmethod
    def size_of(hellos: float, limit: int) -> float:
        """Return how many processes say that many hellos."""
        return hellos


def _plan(rate: float) -> tuple[float, float, float]:
    """Return how many hellos, roll calls and other calls there are in a window."""
    test = min(_TEST_MOST, _TEST * rate)
    hello = (1 - test) if rate >= 1 else _HELLO * rate
    return hello, test, max(0.0, rate - hello - 3 * test)
