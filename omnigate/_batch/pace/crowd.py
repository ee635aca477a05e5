"""How much each of so many processes sends that they cannot count each other. Sans-I/O.

Everyone sends a little less than one call in a window, or a few of them, at times of its own, and changes
this rate by what its answers tell of the use of the whole limit. Two forces act on its logarithm. The use
moves it up or down: all see nearly the same, so all move together, and the use settles below the limit. A
weak pull towards a rate that all know keeps them together: without it, each one's misreadings would add up,
and some would starve. The use that it settles at depends on the number of processes only by its sixth root.
Far below the limit all catch up by the same factor, without a pull.

The common rate is the part of the limit that each has in a large crowd; everyone begins with it. Where the
use drives a process far below it, the others do not yield and are no crowd.
"""

from __future__ import annotations

import math
from typing import Final

__all__ = ["Crowd"]

_SIZE: Final = 85  # processes in the crowd whose part of the limit is the common rate

_USE: Final = 0.83  # of the limit, by a crowd of that size

_STEEPNESS: Final = 6.0  # how much stronger than the pull to the common rate the use acts

_STEP: Final = 0.08  # of the way to what a reading asks for; times `_STEEPNESS` about 1/2, or it would swing

_IDLE: Final = 0.6  # of the limit, at most: there it is enough to ...

_CATCH_UP_MAX: Final = 1.5  # ... multiply the rate, at most by that

_LEAST: Final = 0.3  # of the common rate; where the use drives us below it, the others are no crowd ...

_MOST: Final = 1 / 6  # ... nor if so much of the limit is left for one

_DENIED_WINDOWS: Final = 30  # that is believed for so long, and the next time for twice as long


class Crowd:
    """The rate of one process in a crowd.

    Attributes:
        rate: calls in a window; 0 outside of a crowd.
    """

    __slots__ = ("_denial", "_denied", "_limit", "rate")

    def __init__(self) -> None:
        self.rate = 0.0
        self._limit = 0
        self._denied = 0
        self._denial = _DENIED_WINDOWS

    def enter(self, limit: int) -> bool:
        """Begin to behave as in a crowd, unless this has been in vain lately."""
        if self.rate or self._denied > 0:
            return False
        self._limit = limit
        self.rate = _USE * limit / _SIZE
        return True

    def window_began(self) -> None:
        self._denied -= 1

    def read(self, use: float, certainty: float) -> None:
        """Correct the rate by a reading; leave the crowd if it is none.

        Args:
            use: of the limit, by all processes.
            certainty: of the reading, from 0 to 1.
        """
        if use < _IDLE:
            self.rate *= min(_CATCH_UP_MAX, _USE / use)
        else:
            pull = math.log(_USE * self._limit / _SIZE / self.rate)
            self.rate *= math.exp(_STEP * certainty * (pull + _STEEPNESS * math.log(_USE / use)))
        if self.rate < _LEAST * _USE * self._limit / _SIZE or self.rate > _MOST * self._limit:
            self.rate = 0.0
            self._denied = self._denial
            self._denial *= 2
