"""Cheap timeouts: every call sets one, almost none fires.

An anyio cancel scope takes 6 to 9 µs, a good part of a whole call, an asyncio timer 3. Therefore one watch
for each event loop has all deadlines: it is set for the earliest one, and when it goes off it checks which
still apply. A call that ends in time costs nothing more. A connection that has timed out is closed, so that
the read or write waiting on it fails. A limit can be moved while it runs: from writing the request to reading
the response.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import sys
import weakref
from collections.abc import Callable, Collection
from typing import Any, Final, Protocol

import httpx

from omnigate._runtime.loops import PerLoop, clock_of

logger: Final = logging.getLogger("omnigate")

_WORDS: Final[dict[type[httpx.TimeoutException], str]] = {
    httpx.WriteTimeout: "the request could not be written",
    httpx.ReadTimeout: "no data was received",
}


def timed_out(kind: type[httpx.TimeoutException], seconds: float | None) -> httpx.TimeoutException:
    """Return the error for a read or write that took longer than `seconds`."""
    return kind(f"{_WORDS[kind]} within {seconds:g} s")


class Limited(Protocol):
    """An object that has a limit and is closed when the limit is reached."""

    limit: Limit

    def close(self) -> None: ...


class Watched(Protocol):
    """An owner of objects with limits."""

    @property
    def in_use(self) -> Collection[Limited]: ...
    def __hash__(self) -> int: ...


class Watch:
    """Watches the deadlines of all connections in one event loop; holds their pools only weakly.

    Attributes:
        clock: the event loop's.
        next: the deadline that the alarm is set for.
    """

    def __init__(self, loop: Any) -> None:
        """Start without a deadline."""
        self.clock: Callable[[], float] = clock_of(loop)
        self._alarm = Alarm(loop, self.look, "watch deadlines")
        self.next: float = math.inf
        self._pools: weakref.WeakSet[Watched] = weakref.WeakSet()

    def add(self, pool: Watched) -> None:
        """Watch the connections that a pool has in use, from now on."""
        self._pools.add(pool)

    def remove(self, pool: Watched) -> None:
        """Watch a pool no longer; without any deadline left, stop."""
        self._pools.discard(pool)
        if self._earliest() == math.inf:
            self.next = math.inf
            self._alarm.stop()

    def set(self, deadline: float, seconds: float) -> None:
        """Set the alarm for a deadline that is earlier than `next`, in so many seconds."""
        self._alarm.stop()
        self._alarm.set(seconds)
        self.next = deadline if self._alarm.timer is not None else math.inf

    def look(self) -> None:
        """Expire the connections past their deadline, and set the alarm for the next deadline."""
        self.next = math.inf
        now = self.clock()
        for pool in list(self._pools):
            for connection in list(pool.in_use):
                if connection.limit.deadline <= now:
                    connection.limit.expire(connection)
        earliest = self._earliest()
        if earliest < self.next:
            self.set(earliest, max(earliest - now, 0.0))

    def _earliest(self) -> float:
        deadlines = (connection.limit.deadline for pool in list(self._pools) for connection in pool.in_use)
        return min(deadlines, default=math.inf)


_WATCHES: Final = PerLoop(Watch)


def current_watch() -> Watch:
    """Return the watch of the running event loop."""
    return _WATCHES.current()


class Alarm:
    """Calls a method once, after a delay; holds the method's object only weakly.

    On asyncio it is a timer. trio has none, so there it is a system task that sleeps and ends.

    Attributes:
        loop: the event loop that it calls in.
        timer: asyncio's handle, or the task's cancel scope, while a call is scheduled; else None.
    """

    __slots__ = ("_method", "_purpose", "loop", "timer")

    def __init__(self, loop: Any, method: Callable[[], None], purpose: str) -> None:
        """Start unset; `method` is called in `loop`; `purpose` names trio's task."""
        self.loop = loop
        self._purpose = purpose
        self._method = weakref.WeakMethod(method)
        self.timer: Any = None

    def set(self, seconds: float) -> None:
        """Schedule the call; must be called in the loop, and only while none is scheduled."""
        try:
            self.timer = self._start(seconds)
        except RuntimeError:  # the loop is ending, and takes no more timers or tasks
            self.timer = None

    def _start(self, seconds: float) -> Any:
        if isinstance(self.loop, asyncio.AbstractEventLoop):
            # A context of its own: the caller's may hold whole requests.
            return self.loop.call_later(seconds, self._ring, context=contextvars.Context())
        trio = sys.modules["trio"]
        scope = trio.CancelScope(deadline=trio.current_time() + seconds)
        trio.lowlevel.spawn_system_task(self._sleep, scope, name=f"omnigate: {self._purpose}")
        return scope

    def stop(self) -> None:
        """Cancel the scheduled call; must be called in the loop, or after it has ended."""
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()

    def _ring(self) -> None:
        self.timer = None
        method = self._method()
        if method is not None:
            method()

    async def _sleep(self, scope: Any) -> None:
        with scope:
            await sys.modules["trio"].sleep_forever()
        if self.timer is scope:
            try:
                self._ring()
            except Exception:  # an error in a system task would end the whole program
                logger.exception("the task to %s failed", self._purpose)


class Limit:
    """A time limit for the operations on one connection, one at a time.

    Each operation is between `begin` and `end`. If it fails, `overdue` tells whether that was the reason.

    Attributes:
        kind: the exception raised when it is reached.
        deadline: when that is, by the event loop's clock; infinity between operations.
    """

    __slots__ = ("_reached", "_seconds", "_watch", "deadline", "kind")

    def __init__(self, watch: Watch) -> None:
        """Start without a deadline."""
        self._watch = watch
        self._seconds: float | None = None
        self._reached: tuple[type[httpx.TimeoutException], float | None] | None = None
        self.deadline: float = math.inf
        self.kind: type[httpx.TimeoutException] = httpx.ReadTimeout

    def begin(self, kind: type[httpx.TimeoutException], seconds: float | None) -> None:
        """Allow an operation `seconds` from now, None for no limit; also restarts the running limit.

        Once the limit was reached that stays so: it has closed the connection, perhaps just after an await
        had ended, and the next await fails.
        """
        self.kind = kind
        self._seconds = seconds
        if seconds is None:
            self.deadline = math.inf
            return
        watch = self._watch
        self.deadline = deadline = watch.clock() + seconds
        if deadline < watch.next:
            watch.set(deadline, seconds)

    def end(self) -> None:
        """End the operation."""
        self.deadline = math.inf

    def overdue(self) -> httpx.TimeoutException | None:
        """Return the timeout if the limit was reached."""
        if self._reached is None:
            return None
        return timed_out(*self._reached)

    def expire(self, connection: Limited) -> None:
        """Close `connection`, so that its pending operation fails with a timeout."""
        if self._reached is None:
            self._reached = (self.kind, self._seconds)
        self.deadline = math.inf
        connection.close()
