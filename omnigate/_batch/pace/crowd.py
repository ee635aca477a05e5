"""How much each process of a crowd sends: of so many that their roll calls would use up the limit. Sans-I/O.

Everyone follows one plan. A process that may send at least one call in a window sends one, its *hello*, in
the first seconds; one that may send less says hello only in some windows. Everything else follows within the
next seconds, before the calls of other clients blur the readings.

**One rate for all.** The answer to a hello tells how many calls were counted before it. Divided by the part
of the hello phase that was over, this is the number of hellos in the window, and all read about the same.
The rate is a fixed function of that number: the wanted number of calls divided by it while everyone says
hello, and falling steeply above that. So all processes have the same rate without knowing how many they are,
as generators share a load by the frequency of the grid (droop control), and no error lasts. If each process
multiplied its own rate by its readings instead, all rates would change alike, and unequal ones would stay
unequal. A reading below the expected number counts for less than one above it: speeding up after a window
with few calls would move processes into the next window, which has many.

**Turns.** Below one call in a window, the fractions add up until a hello is due. What is left over determines
when in the phase it is sent, so hellos arrive in the order of the leftovers, and the count tells a process
how many come before its own. It moves its leftover a little towards the place that it should have. Leftovers
spread evenly that way, and all windows get about the same number of calls. The places rotate with the number
of the window, since an early hello reads little.

**Doubt.** Now and then a process holds a roll call instead, paid for by what it would have sent. If most of
the others hold roll calls, too, or few are left, they are no crowd. It also holds one in the next window if
more was counted after the hellos than the plan has, or far fewer hellos than expected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from omnigate._batch.pace.roll_call import ROLL_BEGIN, ROLL_END, ROLL_PHASE

__all__ = ["Crowd"]

_FREE: Final = 2.5  # times the square root of the limit is left free: numbers of calls vary by as much ...

_FREE_LEAST: Final = 1.1  # ... or that, where all have one call at least, and fractions alone vary:

_NEAR_ONE: Final = 1.1  # at rates between this ...

_SURELY_MORE: Final = 1.65  # ... and this, it changes from one to the other

_HELLO_BEGIN: Final = ROLL_BEGIN + ROLL_PHASE / 3  # after the first calls of most roll calls

_SEND_END: Final = 15 / 60  # the part of a window within which a crowd sends

_READABLE: Final = 0.25  # of the hellos are over, at least, when one is a reading

_GAIN: Final = 0.35  # of a reading of the number of hellos, weighted by the part that was over ...

_GAIN_LOW: Final = 0.12  # ... or that much, of a number lower than expected

_CHANGE_MOST: Final = 1.5  # a reading counts for no more than that times the number expected

_OVERFULL: Final = 1.1  # of the limit, at least, was sent where one was rejected

_STEEPNESS: Final = 2.6  # the rate falls by that power of the number of hellos, if more than are wanted

_CROWD_MOST: Final = 125  # processes in the greatest crowd that is looked for: each keeps this part ...

_RATE_BEGIN: Final = 0.6  # of a process that knows only that they are many

_ORDER: Final = 0.4  # of the difference between its place and the right one, by which a turn is corrected

_TURN_AGAIN: Final = 0.7  # of a turn is given back if the hello was rejected

_TURNS_MOST: Final = 2.0  # that are saved up

_PLACES: Final = (3 - math.sqrt(5)) / 2  # by which places move from one window to the next: the golden angle

_RATE_MOST: Final = 4.0  # calls in a window; with more there is room for roll calls

_RATE_LEAST: Final = 0.1  # if readings drive us below, the others do not yield and are no crowd ...

_DENIED_WINDOWS: Final = 30  # ... and none is believed in for so long, and the next time for twice as long

_SHUT_OUT: Final = 3  # rejected hellos in a row, or two with an early one: others take all, and are no crowd

_EARLY: Final = 0.5  # of the hellos are over: before that, they alone do not use up the limit

_ROLL_CALLS: Final = 0.025  # in a window, at a rate of 1 ...

_ROLL_CALLS_MOST: Final = 1 / 8  # ... and at most

_DOUBT: Final = 0.75  # of the size that later calls read: if hellos read less, the others may hold roll calls

_DOUBT_LOW: Final = 0.5  # the same, at rates below one, where only roll calls are later

_FEW: Final = 0.7  # of the hellos that were expected: with fewer than that, they may not be a crowd

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
        "_later_size",
        "_limit",
        "_shut_out",
        "_target",
        "_turn",
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
        self._turn = self._calls = 0.0  # what we may send: hellos and others; the fractions are kept
        self._hellos = 1.0  # by all in a window, as expected
        self._hello_size = self._later_size = 1.0  # the same, by what hellos alone and later calls alone read
        self._windows = 0  # since the last doubt
        self._shut_out = 0  # hellos in a row that were rejected; early ones count twice
        self._denied = 0
        self._denial = _DENIED_WINDOWS

    @property
    def size(self) -> float:
        """How many processes there seem to be."""
        return self._hellos / min(1.0, self.rate) if self.rate else self._later_size

    def enter(self, limit: int, size: float) -> bool:
        """Begin to behave as in a crowd, unless this has been in vain lately.

        Args:
            limit: calls allowed in a window.
            size: number of processes, as far as is known.
        """
        if self.rate or self._denied > 0:
            return False
        self._limit = limit
        self._target = limit - _FREE * math.sqrt(limit)
        self._hellos = min(size, self._target / _RATE_BEGIN ** (1 / _STEEPNESS))
        self.rate = min(_RATE_MOST, self._rate())
        self.is_doubted = False
        self._hello_size = self._later_size = self._hellos
        self._windows = self._shut_out = 0
        self._turn, self._calls = self._uniform(0, 1), self._uniform(0, 1)
        return True

    def leave(self) -> None:
        self.rate = 0.0
        self.is_doubted = False

    def doubt(self) -> None:
        """Have the next windows hold a roll call."""
        self.is_doubted = True
        self._windows = 0

    def confirm(self, size: float) -> None:
        """End a doubt: a roll call has heard a crowd, of about that many processes."""
        self.is_doubted = False
        if size < _FEW * self._hellos:
            self._hellos = self._hello_size = self._later_size = max(1.0, size)
            self.rate = self._rate()

    def window_began(self) -> None:
        """Leave the crowd if it is none."""
        self._denied -= 1
        if not self.rate:
            return
        self._windows += 1
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
            if self._hello_size < max(doubt * self._later_size, _FEW * self._hellos):
                self.doubt()

    def plan(self, number: int) -> tuple[float, ...] | None:
        """Return when to send in a window, as parts of it; None: hold a roll call.

        Args:
            number: of the window, the same for all processes.
        """
        uniform = self._uniform
        hellos, roll_calls, calls = _plan(self.rate)
        if self.is_doubted or uniform(0, 1) < roll_calls:
            return None
        self._turn += hellos / (1 - roll_calls)
        self._calls += calls / (1 - roll_calls)
        times: list[float] = []
        if self._turn >= 1:
            self._turn -= 1
            place = (_PLACES * number - self._turn / min(1.0, self.rate)) % 1
            times.append(_HELLO_BEGIN + place * ROLL_PHASE)
        more = max(0, int(self._calls + uniform(-_JITTER, _JITTER)))
        self._calls -= more
        phase = uniform(0, 1)
        times.extend(ROLL_END + (place + phase) / more * (_SEND_END - ROLL_END) for place in range(more))
        return tuple(times)

    def hear(self, part: float, counted: int, rate: float) -> None:
        """Register what was counted when a call arrived.

        Args:
            part: the part of the window that was over when it was sent.
            counted: what the answer told; more than the limit: it was rejected.
            rate: what was planned for that window.
        """
        if not self.rate:
            return
        said = min(1.0, (part - _HELLO_BEGIN) / ROLL_PHASE)  # the part of the hellos
        is_rejected = counted > self._limit
        if part < ROLL_END:
            self._keep_order(said, counted, rate)
            if self._shut_out >= _SHUT_OUT:
                self.leave()
                return
        if said < _READABLE:
            return
        done = max(0.0, part - ROLL_END) / (_SEND_END - ROLL_END)  # the part of the calls after them
        hellos = counted / (said + max(0.0, rate - 1) * min(1.0, done))
        if is_rejected:
            hellos = max(hellos, _OVERFULL * self._limit / max(1.0, rate))
        if done:
            self._later_size += (1 - _MEMORY) * (hellos - self._later_size)
        elif not is_rejected:
            self._hello_size += (1 - _MEMORY) * (hellos - self._hello_size)
        gain = _GAIN if hellos > self._hellos else _GAIN_LOW
        self._hellos += gain * said * (min(hellos, _CHANGE_MOST * self._hellos) - self._hellos)
        self.rate = self._rate()

    def _keep_order(self, said: float, counted: int, rate: float) -> None:
        """Correct our turn by what was counted when our hello arrived."""
        if counted <= self._limit:
            self._shut_out = 0
            self._turn -= _ORDER * min(1.0, self.rate) * (counted / self._hellos - said)
            return
        self._shut_out += 1 if said >= _EARLY else 2
        if rate <= 1 and self._hellos <= self._limit:
            self._turn = min(_TURNS_MOST, self._turn + _TURN_AGAIN)

    def _rate(self) -> float:
        """Return everyone's rate where there are so many hellos."""
        part = self._target / self._hellos
        if part >= 1:
            more = (_FREE - _FREE_LEAST) * math.sqrt(self._limit) / self._hellos
            return part + more * min(1.0, max(0.0, (part - _NEAR_ONE) / (_SURELY_MORE - _NEAR_ONE)))
        least = self._limit / _CROWD_MOST
        return max(
            math.pow(part, _STEEPNESS), least * math.pow(min(1.0, self._limit / self._hellos), _STEEPNESS)
        )


def _plan(rate: float) -> tuple[float, float, float]:
    """Return how many hellos, roll calls and other calls there are in a window."""
    roll_calls = min(_ROLL_CALLS_MOST, _ROLL_CALLS * rate)
    calls = rate - 3 * roll_calls
    hellos = min(1 - roll_calls, calls)
    return hellos, roll_calls, calls - hellos
