"""A queue of outcomes: their order, their bound, and the wake-ups of readers."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
import anyio.lowlevel

from omnigate._batch.lifecycle import Lifecycle, State
from omnigate._batch.outcomes import AnyOutcome, Outcome
from omnigate._runtime.isolation import cancellation_check
from omnigate.exceptions import NotStartedError

_CHECKPOINT_EVERY: Final = 32

_CHECK_EVERY: Final = 4
"""How many outcomes are handed out between two looks at whether the reader is cancelled."""


class Outbox:
    """Queues outcomes until they are taken.

    Counts items from the moment they are read, for backpressure on the source.

    Args:
        lifecycle: the batch's state.
        ordered: whether to hand out outcomes in the order of the items.

    Attributes:
        read: how many items have been read.
        pending: how many of them have been neither handed out nor skipped.
        is_read: whether reading has begun.
    """

    def __init__(self, lifecycle: Lifecycle, *, ordered: bool) -> None:
        self.read = 0
        self.pending = 0
        self.is_read = False
        self._lifecycle = lifecycle
        self._is_ordered = ordered
        self._check: Callable[[], Awaitable[None]]  # raises if the reader is cancelled
        self._ready: deque[Any] = deque()  # of `Outcome`
        self._held: dict[int, Outcome | None] = {}  # if ordered: waiting for an earlier one; None: skipped
        self._next_index = 0  # if ordered: index of the next outcome to hand out
        self._left_to_take = 0  # before yielding to other tasks
        self._changed: anyio.Event | None = None  # for readers
        self._waiting: deque[anyio.Event] = deque()  # workers that wait for room
        self._woken = 0  # those that were woken and have not resumed yet

    def expect(self) -> None:
        """Count an item as read."""
        self.read += 1
        self.pending += 1

    def put(self, outcome: Outcome) -> None:
        """Add an outcome and wake the readers."""
        if self._is_ordered:
            self._held[outcome.index] = outcome
            self._release_in_order()
        else:
            self._ready.append(outcome)
        if self._changed is not None or self._held:
            self.notify()

    def leave_out(self, index: int) -> None:
        """Skip an item that has no outcome."""
        self.pending -= 1
        if self._is_ordered:
            self._held[index] = None
            self._release_in_order()

    def take(self, most: int) -> list[AnyOutcome]:
        """Return up to `most` outcomes, without waiting."""
        ready = self._ready
        taken: list[AnyOutcome] = [ready.popleft() for _ in range(min(most, len(ready)))]
        self.pending -= len(taken)
        if self._waiting:
            self.wake_workers(len(taken))
        return taken

    async def next(self) -> Any:
        """Wait for an outcome and return it.

        Yields to other tasks once as many were taken as were ready, so that the reader does not fall behind.

        Raises:
            StopAsyncIteration: there are no more.
            BaseException: the error that ended the batch, after its last outcome.
        """
        if not self.is_read:
            self.is_read, self._check = True, cancellation_check()
        if self._ready:
            if self._left_to_take > 0:
                if self._left_to_take % _CHECK_EVERY == 0:
                    await self._check()
            else:
                await anyio.lowlevel.checkpoint()
                self._left_to_take = max(len(self._ready), _CHECKPOINT_EVERY)
        while not self._ready:
            if not await self.wait():
                raise StopAsyncIteration
            self._left_to_take = max(len(self._ready), _CHECKPOINT_EVERY)
        self._left_to_take -= 1
        self.pending -= 1
        if self._waiting:
            self.wake_workers(1)
        return self._ready.popleft()

    async def wait(self) -> bool:
        """Wait for a change; return whether there may be more outcomes.

        Raises:
            BaseException: the error that ended the batch, after its last outcome.
        """
        lifecycle = self._lifecycle
        if not lifecycle.is_open:
            raise NotStartedError("a batch can only be iterated inside its `async with` block")
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

    @property
    def is_awaited(self) -> bool:
        """Whether a worker waits for room, or has just been woken."""
        return bool(self._waiting or self._woken)

    async def wait_for_room(self) -> None:
        """Wait until outcomes have been taken, each of which wakes one that waits; or until released."""
        room = anyio.Event()
        self._waiting.append(room)
        try:
            await room.wait()
        except BaseException:
            if not room.is_set():
                self._waiting.remove(room)
            else:
                self._woken -= 1
                self.wake_workers(1)  # another takes its place
            raise
        self._woken -= 1

    def wake_workers(self, most: int) -> None:
        """Wake up to `most` of those that wait for room."""
        for _ in range(min(most, len(self._waiting))):
            self._waiting.popleft().set()
            self._woken += 1

    def release_workers(self) -> None:
        """Wake all that wait for room: there is no more use in waiting."""
        self.wake_workers(len(self._waiting))

    def notify(self) -> None:
        """Wake the readers; after the end, release outcomes held for one that will never arrive."""
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
