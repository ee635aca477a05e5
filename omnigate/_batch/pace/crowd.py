"""How much each of so many processes sends that roll calls would use up the limit. Sans-I/O.

Everyone follows one plan, which depends on nothing but the number of processes. So what was counted by a
moment, divided by what the plan has one process send by then, is that number; and the limit divided by it is
everyone's rate. Each answer is a reading of it, and each process corrects its rate by its own readings.

The plan has to tell a process with a false rate from the others. So it begins alike for all who may send at
least one call in a window: with one call each, the *hello*, within the first seconds. Where these are most
of what was counted, own rates matter little, and all come to the same. Everything else is sent within the
next seconds, before other clients' calls blur the readings.

With a rate below one call in a window there are only hellos, and not by all: what is counted tells how much
is sent, but no longer by how many, and readings are rare. There all begin with the same rate and change it
by what they all read; rejections lower it, and it is not left much below the part that each has in the
greatest crowd.

Sometimes a process holds a roll call instead, paid for by what it would have sent. If most of its peers hold
roll calls, or few are left, they are no crowd. If more was counted between the hellos and the rest than the
plan has, it does so in the next window.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from omnigate._batch.pace.roll_call import ROLL_BEGIN, ROLL_END, ROLL_PHASE

__all__ = ["Crowd"]

_FREE: Final = 2.2  # times the square root of the limit is left free: numbers of calls vary by as much

_HELLO_BEGIN: Final = ROLL_BEGIN + ROLL_PHASE / 3  # after the first calls of most roll calls

_SEND_END: Final = 15 / 60  # the part of a window within which a crowd sends

_READABLE: Final = 0.5  # of the hellos are over, at least, when one is a reading

_GAIN: Final = 0.4  # of a reading ...

_GAIN_FIRST: Final = 0.8  # ... or that much, of as many ...

_FIRST: Final = 2  # ... where the size of the crowd was only guessed

_CHANGE_LEAST: Final = 0.5  # the rate is multiplied by no less ...

_CHANGE_MOST: Final = 1.5  # ... and no more

_REJECTED: Final = 0.8  # after a rejection by no more than that

_OVERFULL: Final = 1.1  # of the limit, at least, was sent where one was rejected ...

_OVERFULL_WINDOWS: Final = 4  # ... and for so long rates near one call in a window ...

_OVERFULL_RATE: Final = 1.2  # ... or below that ...

_FALL: Final = 0.15  # ... go that part of the way to the floor in each

_CROWD_MOST: Final = 115  # processes in the greatest crowd that is looked for: each has this part, the floor

_RISE: Final = 0.3  # the part of the way that lower rates go to it in a window

_RATE_MOST: Final = 4.0  # calls in a window; with more there is room for roll calls

_RATE_LEAST: Final = 0.2  # if readings drive us below, the others do not yield and are no crowd ...

_DENIED_WINDOWS: Final = 30  # ... and none is believed in for so long, and the next time for twice as long

_SHUT_OUT: Final = 3  # rejected hellos in a row, or two with an early one: others take all, and are no crowd

_FEW: Final = 0.95  # of what all may send: with fewer hellos than that, all may send more than a hello

_ROLL_CALLS: Final = 0.025  # in a window, at a rate of 1 ...

_ROLL_CALLS_MOST: Final = 1 / 8  # ... and at most

_DOUBT: Final = 0.75  # of the size that later calls read: if hellos read less, the others may hold roll calls

_DOUBT_LOW: Final = 0.5  # the same, at rates below one, where only roll calls are later

_DOUBT_WINDOWS: Final = 3  # between two such doubts

_MEMORY: Final = 0.6  # of what earlier readings gave, where they are only compared

_JITTER: Final = 0.1  # of a call, or those whose calls fell into one window would stay together


class Crowd:
    """The rate of one process in a crowd.

    Args:
        uniform: draws a number between two, evenly.

    Attributes:
        rate: calls in a window; 0 outside of a crowd.
        is_doubted: whether the next windows have a roll call, to find out if the others are a crowd.
    """

    __slots__ = (
        "_calls",
        "_denial",
        "_denied",
        "_hello_size",
        "_hellos",
        "_hellos_due",
        "_later_size",
        "_limit",
        "_overfull",
        "_readings",
        "_shut_out",
        "_target",
        "_uniform",
        "_windows",
        "is_doubted",
        "rate",
    )

    def __init__(self, uniform: Callable[[float, float], float]) -> None:
        self._uniform = uniform
        self.rate = 0.0
        self.is_doubted = False
        self._limit = 0
        self._target = 0.0  # calls of all in a window
        self._hellos_due = self._calls = 0.0  # what we may send; the fractions of calls are kept
        self._hellos = 0.0  # by all in a window; 0 if unknown
        self._hello_size = self._later_size = 1.0  # of the crowd, by what hellos and later calls read
        self._readings = 0
        self._windows = 0  # since the last doubt
        self._overfull = 0  # windows that are left until a rejection is forgotten
        self._shut_out = 0  # hellos in a row that were rejected; early ones count twice
        self._denied = 0
        self._denial = _DENIED_WINDOWS

    @property
    def size(self) -> float:
        """How many processes there seem to be."""
        return self._target / self.rate if self.rate else self._later_size

    def enter(self, limit: int, size: float, *, is_guess: bool) -> bool:
        """Begin to behave as in a crowd, unless this has been in vain lately.

        Args:
            limit: calls allowed in a window.
            size: number of processes.
            is_guess: whether the size is a guess, to be corrected quickly.
        """
        if self.rate or self._denied > 0:
            return False
        self._limit = limit
        self._target = limit - _FREE * math.sqrt(limit)
        self.rate = min(_RATE_MOST, self._target / size)
        self.is_doubted = False
        self._hello_size = self._later_size = size
        self._hellos = 0.0
        self._readings = 0 if is_guess else _FIRST
        self._windows = self._overfull = self._shut_out = 0
        self._hellos_due, self._calls = self._uniform(0, 1), self._uniform(0, 1)
        return True

    def leave(self) -> None:
        self.rate = 0.0
        self.is_doubted = False

    def doubt(self) -> None:
        """Have the next windows hold a roll call."""
        self.is_doubted = True
        self._windows = 0

    def window_began(self) -> None:
        """Correct the rate where readings are rare; leave the crowd if it is none."""
        self._denied -= 1
        if not self.rate:
            return
        self._windows += 1
        self._overfull -= 1
        floor = self._limit / _CROWD_MOST
        if self.rate < floor:
            self.rate *= (floor / self.rate) ** _RISE
        elif self._overfull > 0 and self.rate < _OVERFULL_RATE:
            self.rate *= (floor / self.rate) ** _FALL
        if self.rate > _RATE_MOST:
            self.leave()
        elif self.rate < _RATE_LEAST:
            self.leave()
            self._denied = self._denial
            self._denial *= 2
        elif self._windows >= _DOUBT_WINDOWS:
            # Roll calls may have come to nothing, so a doubt ends by itself.
            self.is_doubted = False
            doubt = _DOUBT if self.rate >= 1 else _DOUBT_LOW
            if self._hello_size < doubt * self._later_size:
                self.doubt()

    def plan(self) -> tuple[float, ...] | None:
        """Return when to send in a window, as parts of it; None: hold a roll call."""
        uniform = self._uniform
        hellos, roll_calls, calls = _plan(self.rate)
        if self.is_doubted or uniform(0, 1) < roll_calls:
            return None
        self._hellos_due += hellos / (1 - roll_calls)
        self._calls += calls / (1 - roll_calls)
        times: list[float] = []
        if self._hellos_due + (uniform(-_JITTER, _JITTER) if self.rate < 1 else 0.0) >= 1:
            self._hellos_due -= 1
            times.append(_HELLO_BEGIN + uniform(0, ROLL_PHASE))
        number = max(0, int(self._calls + uniform(-_JITTER, _JITTER)))
        self._calls -= number
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
        said = min(1.0, (part - _HELLO_BEGIN) / ROLL_PHASE)  # the part of the hellos
        if not self.rate:
            return
        if part < ROLL_END:
            # Hellos alone do not use up the limit before half of them are said.
            self._shut_out = 0 if counted <= self._limit else self._shut_out + (1 if said >= _READABLE else 2)
            if self._shut_out >= _SHUT_OUT:
                self.leave()
                return
        if said < _READABLE:
            return
        hellos, roll_calls, calls = _plan(rate)
        done = min(
            1.0, max(0.0, part - ROLL_END) / (_SEND_END - ROLL_END)
        )  # the part of the calls after them
        planned = (hellos + (3 if done else 1) * roll_calls) * said + calls * done
        self._readings += 1
        if counted > self._limit:
            size = max(_OVERFULL * self._limit / planned, self.size)
            self.rate *= min(_REJECTED, max(_CHANGE_LEAST, self._target / size / self.rate))
            self._overfull = _OVERFULL_WINDOWS
            if done:
                self._later_size += (1 - _MEMORY) * (size - self._later_size)
            return
        size = counted / planned
        gain = _GAIN
        if done:
            self._later_size += (1 - _MEMORY) * (size - self._later_size)
        else:
            self._hello_size += (1 - _MEMORY) * (size - self._hello_size)
            heard = counted / said
            self._hellos += (1 - _MEMORY if self._hellos else 1.0) * (heard - self._hellos)
            if max(rate, self.rate) < 1 and self._hellos < _FEW * self._target:
                size = max(self._hellos, self._target / _CHANGE_MOST)  # everyone says hello but we
            else:
                gain *= said
        if self._readings <= _FIRST:
            gain = _GAIN_FIRST
        self.rate *= min(_CHANGE_MOST, max(_CHANGE_LEAST, self._target / size / self.rate)) ** gain


def _plan(rate: float) -> tuple[float, float, float]:
    """Return how many hellos, roll calls and other calls there are in a window."""
    roll_calls = min(_ROLL_CALLS_MOST, _ROLL_CALLS * rate)
    calls = rate - 3 * roll_calls
    hellos = min(1 - roll_calls, calls)
    return hellos, roll_calls, calls - hellos
