"""How many calls an address can have in flight before this machine runs out of descriptors.

Sans-I/O. "Too many open files" bounds the calls in flight to those that have a connection, less a reserve for
the program's own files. The bound is raised again by a twentieth every ten seconds, since other parts of the
program may have closed theirs.
"""

from __future__ import annotations

import math
from typing import Final

_RESERVE: Final = 0.05

_RAISE: Final = 1.05

_RAISE_SECONDS: Final = 10.0


class Descriptors:
    """The number of calls that may be in flight, after descriptors have run out.

    Attributes:
        limit: that number; `math.inf` while they have not.
    """

    def __init__(self) -> None:
        self.limit: float = math.inf
        self._changed_at = -math.inf

    def exhausted(self, now: float, in_flight: int) -> None:
        """Record that there were none left, with so many other calls in flight."""
        usable = max(1, math.floor(in_flight * (1 - _RESERVE)))
        self._changed_at = now
        self.limit = min(self.limit, usable)

    def succeeded(self, now: float, in_flight: int) -> None:
        """Record a success: raise the limit if it is used up and has held for a while."""
        if now - self._changed_at >= _RAISE_SECONDS and in_flight >= self.limit - 1:
            self._changed_at = now
            self.limit = max(self.limit + 1, math.floor(self.limit * _RAISE))

    def __repr__(self) -> str:
        return f"<Descriptors limit={self.limit}>"
