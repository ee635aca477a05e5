"""A fair queue: batches take turns, and within a batch resends precede new sends.

Round robin over flows, one send each (Nagle, RFC 970): a batch that came first, or that sends everything
again and again, gets no more than any other that waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio


class Flow:
    """The sends of one batch, as its queues see them.

    Attributes:
        most: how many of its calls may be in flight.
        is_auto: whether the adaptive limits apply to it.
        in_flight: how many are.
        wake: called when a slot is free that the batch has wished for; returns whether it can use one.
        tokens_per_minute: the provider's limit for its calls, or None.
        goes_on: returns whether a call that ends is followed by another immediately.
        has_wish: whether it stopped reading items because `most` of its calls were in flight.
    """

    __slots__ = ("goes_on", "has_wish", "in_flight", "is_auto", "most", "queues", "tokens_per_minute", "wake")

    def __init__(
        self,
        most: int,
        *,
        is_auto: bool,
        wake: Callable[[], bool],
        goes_on: Callable[[], bool],
        tokens_per_minute: int | None = None,
    ) -> None:
        self.most: int = most
        self.is_auto: bool = is_auto
        self.tokens_per_minute: int | None = tokens_per_minute
        self.in_flight: int = 0
        self.goes_on: Callable[[], bool] = goes_on
        self.has_wish: bool = False
        self.wake: Callable[[], bool] = wake
        self.queues: dict[FairQueue, int] = {}  # where it waits, and how many of its sends

    def __repr__(self) -> str:
        return f"<Flow: {self.in_flight} in flight of {self.most}>"


class Waiter:
    """A send in a queue."""

    __slots__ = ("event", "flow", "is_again")

    def __init__(self, flow: Flow, *, is_again: bool) -> None:
        self.event: anyio.Event = anyio.Event()
        self.flow: Flow = flow
        self.is_again: bool = is_again


class FairQueue:
    """Sends that wait, and whose turn it is.

    Attributes:
        count: how many wait.

    Args:
        is_bounded: whether a flow that has as many calls in flight as it may is passed over.
    """

    def __init__(self, *, is_bounded: bool) -> None:
        self._is_bounded = is_bounded
        self._lines: dict[Flow, tuple[deque[Waiter], deque[Waiter]]] = {}  # in turn: resends, new sends
        self.count = 0

    def add(self, waiter: Waiter) -> None:
        """Add a send at the end of its flow's line."""
        flow = waiter.flow
        lines = self._lines.get(flow)
        if lines is None:
            lines = self._lines[flow] = (deque(), deque())
        lines[not waiter.is_again].append(waiter)
        self.count += 1
        flow.queues[self] = flow.queues.get(self, 0) + 1

    def remove(self, waiter: Waiter, *, has_passed: bool) -> None:
        """Remove a send; if it has passed, it is the next flow's turn."""
        flow = waiter.flow
        lines = self._lines[flow]
        lines[not waiter.is_again].remove(waiter)
        self.count -= 1
        flow.queues[self] -= 1
        if not flow.queues[self]:
            del flow.queues[self], self._lines[flow]
        elif has_passed and len(self._lines) > 1:
            self._lines[flow] = self._lines.pop(flow)

    def first(self) -> Waiter | None:
        """Return the send whose turn it is."""
        for flow, (again, new) in self._lines.items():
            if not self._is_bounded or flow.in_flight < flow.most:
                return again[0] if again else new[0]
        return None

    def wake(self) -> bool:
        """Wake the send whose turn it is; return whether there is one."""
        first = self.first()
        if first is None:
            return False
        first.event.set()
        return True

    def __repr__(self) -> str:
        again = sum(len(lines[0]) for lines in self._lines.values())
        return f"{again} resends and {self.count - again} new sends waiting"
