"""How long an item has waited in all, and for what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import anyio
import msgspec

Reason: TypeAlias = Literal["rate window", "provider", "token limit", "outage", "concurrency"]
"""What is waited for. A wait for "concurrency", a free slot, costs no patience."""

_SLOT: Final = "concurrency"


class OutOfPatienceError(Exception):
    """An item has waited for `max_wait_seconds`; internal to the batch."""


_SLOT_SECONDS: Final = 60.0
"""After this long, a wait for a slot asks again what is waited for."""


class Patience(msgspec.Struct, eq=False, gc=False):  # made faster than another object
    """The time an item may still wait.

    Attributes:
        limit: seconds in all.
        left: seconds.
        reason: what was waited for last.
    """

    limit: float
    left: float
    reason: Reason = _SLOT

    async def wait(
        self, event: anyio.Event, clock: Callable[[], float], until: float, reason: Callable[[], Reason]
    ) -> None:
        """Wait for an event, until a time, or until patience has run out.

        Args:
            event: what ends the wait.
            clock: the event loop's.
            until: a time of it.
            reason: tells what is waited for; asked before and after.

        Raises:
            OutOfPatienceError: it has run out.
        """
        start = clock()
        before = reason()
        if before != _SLOT:
            self.reason = before
            if self.left <= 0:
                raise OutOfPatienceError
        longest = max(self.left, 1.0)
        if before == _SLOT:
            longest = min(
                longest, _SLOT_SECONDS
            )  # what is waited for may change meanwhile, and then it counts
        with anyio.CancelScope(deadline=min(until, start + longest)):
            await event.wait()
        if before != _SLOT and reason() != _SLOT:
            self.left -= clock() - start

    def spend(self, seconds: float, reason: Reason) -> None:
        """Count a wait that is about to begin.

        Raises:
            OutOfPatienceError: it would be too long.
        """
        self.reason = reason
        if seconds > self.left:
            raise OutOfPatienceError
        self.left -= seconds
