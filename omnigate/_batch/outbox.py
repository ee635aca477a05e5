"""The outcomes of a batch until they are taken: their order, how many there may be, and the wake-ups."""

from __future__ import annotations

from collections import deque
from typing import Final, cast

import anyio
import anyio.lowlevel

from omnigate._batch.lifecycle import Lifecycle, State
from omnigate._batch.outcomes import AnyOutcome, Outcome
from omnigate.exceptions import NotStartedError

_CHECKPOINT_EVERY: Final = 32


class Outbox:
    """Holds outcomes until they are taken.

    It counts items from when they are read, so that reading can wait while too many are not handed out.

    Args:
        lifecycle: the batch's.
        ordered: whether outcomes are handed out in the order of their items.

    Attributes:
        read: how many items have been read.
        pending: how many of them have not been handed out or left out.
    """

    def __init__(self, lifecycle: Lifecycle, *, ordered: bool) -> None:
        self.read = 0
        self.pending = 0
        self._lifecycle = lifecycle
        self._is_ordered = ordered
        self._ready: deque[Outcome] = deque()
        self._held: dict[int, Outcome | None] = {}  # if ordered: ended before one in front; None: left out
        self._next_index = 0  # if ordered: of the next outcome
        self._taken_without_pause = 0
        self._changed: anyio.Event | None = None  # for readers
        self._has_room: anyio.Event | None = None  # for the one that reads items

    def expect(self) -> None:
        """Count an item as read."""
        self.read += 1
        self.pending += 1

    def put(self, outcome: Outcome) -> None:
        """Hand an outcome over, and wake the readers."""
        if self._is_ordered:
            self._held[outcome.index] = outcome
            self._release_in_order()
        else:
            self._ready.append(outcome)
        self.notify()

    def leave_out(self, index: int) -> None:
        """Count an item that has no outcome."""
        self.pending -= 1
        if self._is_ordered:
            self._held[index] = None
            self._release_in_order()

    def take(self, most: int) -> list[AnyOutcome]:
        """Return outcomes that are there, `most` of them at most."""
        ready = self._ready
        taken = [ready.popleft() for _ in range(min(most, len(ready)))]
        self.pending -= len(taken)
        if self._has_room is not None:
            self._has_room.set()
        return cast("list[AnyOutcome]", taken)

    async def next(self, in_flight: int) -> AnyOutcome:
        """Wait for an outcome and return it.

        Args:
            in_flight: how many calls there are: so many outcomes may be taken before others get to run.

        Raises:
            StopAsyncIteration: there are no more.
            BaseException: what ended the batch, once its outcomes are all taken.
        """
        if self._ready:
            self._taken_without_pause += 1
            if self._taken_without_pause < max(in_flight, _CHECKPOINT_EVERY):
                await anyio.lowlevel.checkpoint_if_cancelled()
            else:  # let others run, but not so often that this falls behind them
                self._taken_without_pause = 0
                await anyio.lowlevel.checkpoint()
        while not self._ready:
            self._taken_without_pause = 0
            if not await self.wait():
                raise StopAsyncIteration
        return self.take(1)[0]

    async def wait(self) -> bool:
        """Wait until something has changed; return whether there may still be outcomes.

        Raises:
            BaseException: what ended the batch, once its outcomes are all taken.
        """
        lifecycle = self._lifecycle
        if not lifecycle.is_open:
            raise NotStartedError("a batch is iterated inside of its `async with` block")
        if lifecycle.state is State.ENDED and not self._ready:
            await anyio.lowlevel.checkpoint()
            if lifecycle.error is not None:
                lifecycle.is_told = True
                raise lifecycle.error
            return False
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()
        return True

    async def wait_for_take(self) -> None:
        """Wait until outcomes have been taken."""
        self._has_room = anyio.Event()
        await self._has_room.wait()

    def notify(self) -> None:
        """Wake the readers; at the end release outcomes that were held for one that will not come."""
        if self._held and self._lifecycle.state >= State.ENDED:
            rest = [self._held.pop(index) for index in sorted(self._held)]
            self._ready.extend(outcome for outcome in rest if outcome is not None)
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def _release_in_order(self) -> None:
        while self._next_index in self._held:
            outcome = self._held.pop(self._next_index)
            self._next_index += 1
            if outcome is not None:
                self._ready.append(outcome)
