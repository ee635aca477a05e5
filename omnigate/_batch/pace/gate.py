"""The gate that every send of a batch goes through: the pacer's verdicts turned into waiting.

One for each client and event loop; all batches of a client share it, and with it the gateway's limit.
Waiters queue FIFO, resends before new sends. Only the first in line watches the clock; when it has passed, or
is cancelled, it wakes the next. Nothing runs in the background.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio

from omnigate._batch.pace.concurrency import AdaptiveConcurrency
from omnigate._batch.pace.pacer import RATE_WINDOW_SECONDS, Pacer, Send
from omnigate._limits import RateLimit
from omnigate._runtime.loops import PerLoop
from omnigate.exceptions import GatewayError, ProviderRateLimitError, RateLimitError


def seconds_at_limit(error: GatewayError) -> float | None:
    """Return for how many seconds the gateway's own limit asks to wait; None if an error is not about it.

    Only the detail tells it from a provider's limit (docs/protocol.md, "Errors"). Where `Retry-After` is
    missing or makes no sense, a proxy's doing, it is over when the window is: `reset` says when, else it is
    at most the length of one. Retries in quick succession would all be in the same window, and the item lost.
    """
    if (
        not isinstance(error, RateLimitError)
        or isinstance(error, ProviderRateLimitError)
        or error.detail != "Rate limit exceeded"
    ):
        return None
    if error.retry_after is not None:
        return error.retry_after
    reset = None if error.rate_limit is None else error.rate_limit.reset_seconds
    return reset if reset is not None and 1 <= reset <= RATE_WINDOW_SECONDS else RATE_WINDOW_SECONDS


class Gate:
    """Lets sends pass at the pacer's pace.

    Attributes:
        clock: the event loop's clock, which the pacer's times are of.
        concurrency: the limit that all batches with `max_concurrency="auto"` share.
        in_flight: how many calls of those batches there are.
        opens_at: until when (UTC) the first in line last began to wait; None if it never did. For reprs,
            which may be asked for in any thread.
    """

    def __init__(self, loop: Any) -> None:
        is_asyncio = isinstance(loop, asyncio.AbstractEventLoop)
        self.clock: Callable[[], float] = loop.time if is_asyncio else sys.modules["trio"].current_time
        self.concurrency: AdaptiveConcurrency = AdaptiveConcurrency()
        self.in_flight = 0
        self.opens_at: datetime | None = None
        self._pacer = Pacer()
        self._again: deque[anyio.Event] = deque()
        self._new: deque[anyio.Event] = deque()

    def try_pass(self) -> Send | None:
        """Return a send that may go now, if it may and nobody waits."""
        if self._again or self._new:
            return None
        now = self.clock()
        return self._pacer.sent(now) if self._pacer.ask(now) <= now else None

    async def wait(self, *, is_again: bool) -> Send:
        """Wait in line and return a send that may go now.

        Args:
            is_again: whether it was sent before, and so comes before those that were not.
        """
        line = self._again if is_again else self._new
        event = anyio.Event()
        line.append(event)
        try:
            while True:
                moment = math.inf
                if self._first() is event:
                    now = self.clock()
                    moment = self._pacer.ask(now)
                    if moment <= now:
                        return self._pacer.sent(now)
                    self.opens_at = (
                        None if moment == math.inf else datetime.now(UTC) + timedelta(seconds=moment - now)
                    )
                with anyio.CancelScope(deadline=moment):
                    await event.wait()
                if event.is_set():
                    fresh = anyio.Event()
                    line[line.index(event)] = fresh
                    event = fresh
        finally:
            line.remove(event)
            self._wake()

    def answered(self, send: Send, limit: RateLimit | None) -> None:
        """Record what an answer says of the limit; None if nothing."""
        self._pacer.answered(send, self.clock(), limit)
        self._wake()

    def rejected(self, send: Send, retry_after: float, limit: RateLimit | None) -> None:
        """Record that the gateway's own limit was exceeded."""
        self._pacer.rejected(send, self.clock(), retry_after, limit)
        self._wake()

    def ended(self, send: Send) -> None:
        """Record that a send got no answer, or none that says anything."""
        self._pacer.ended(send, self.clock())
        self._wake()

    def room(self) -> int:
        """Return how many sends could go at once."""
        return 0 if self._again or self._new else self._pacer.room(self.clock())

    def waiting_seconds(self) -> float | None:
        """Return for how many seconds more all sends are held back; None if they are not."""
        now = self.clock()
        until = self._pacer.waiting_until(now)
        return None if until is None else until - now

    def __repr__(self) -> str:
        waiting = f"{len(self._again)} resends and {len(self._new)} new sends waiting"
        return f"<Gate: {self.in_flight} in flight, {waiting}, {self._pacer!r}, {self.concurrency!r}>"

    def _first(self) -> anyio.Event | None:
        return self._again[0] if self._again else self._new[0] if self._new else None

    def _wake(self) -> None:
        first = self._first()
        if first is not None:
            first.set()


class Gates(PerLoop[Gate]):
    """A client's gates, one for each event loop, made when a batch begins."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(Gate)
