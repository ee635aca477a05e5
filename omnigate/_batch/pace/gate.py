"""The gate that every send of a batch goes through: the pacer's verdicts turned into waiting.

One per client and event loop: all batches of a client share the gateway's limit. Waiters queue FIFO, resends
before new sends. Only the first in line watches the clock; when it passes or is cancelled, it wakes the next.
There is no background task.
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
    """Return the seconds to wait for the gateway's own rate limit; None if the error is not about it.

    Only the detail distinguishes it from a provider's limit (docs/protocol.md, "Errors"). If a proxy has
    removed or garbled `Retry-After`, wait for the end of the window: `reset` says when, else assume a whole
    window. Quick retries would all fall into the same window, and the item would fail.
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
        clock: the event loop's clock, also the pacer's.
        concurrency: the limit shared by all batches with `max_concurrency="auto"`.
        in_flight: calls in flight of those batches.
        opens_at: the time (UTC) until which the first in line was last seen to wait, or None. For reprs,
            which can be called from any thread.
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
        """Return a send if one may go now and no other waits, else None."""
        if self._again or self._new:
            return None
        now = self.clock()
        return self._pacer.sent(now) if self._pacer.ask(now) <= now else None

    async def wait(self, *, is_again: bool) -> Send:
        """Wait in line and return a send that may go now.

        Args:
            is_again: whether this is a resend, which precedes new sends.
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
        """Record a response and the rate limit in its headers, None if they have none."""
        self._pacer.answered(send, self.clock(), limit)
        self._wake()

    def rejected(self, send: Send, retry_after: float, limit: RateLimit | None) -> None:
        """Record that the gateway's own limit was exceeded."""
        self._pacer.rejected(send, self.clock(), retry_after, limit)
        self._wake()

    def ended(self, send: Send) -> None:
        """Record that a send ended without a usable response."""
        self._pacer.ended(send, self.clock())
        self._wake()

    def room(self) -> int:
        """Return how many sends could go immediately."""
        return 0 if self._again or self._new else self._pacer.room(self.clock())

    def waiting_seconds(self) -> float | None:
        """Return for how many more seconds all sends are held back; None if they are not."""
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
    """A client's gates, one per event loop, created when a batch begins."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(Gate)
