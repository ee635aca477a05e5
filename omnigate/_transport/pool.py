"""The connection pool: assigns connections to requests and queues the rest. Synchronous except for waiting.

A slot is the right to have one connection; there are `max_connections` of them, taken before a connection is
opened and returned when it is closed. Idle connections keep their slots. Taking and returning take constant
time, or time for each origin at a limit: each origin's idle connections form a stack. The most recently used
is taken first, since it is the least likely to have been closed; the oldest, at the bottom, expires first.
Waiters are served FIFO. A waiter owns what it is given immediately: if it is cancelled before it resumes, it
passes it on.

A connection ends in three ways besides: it was idle for too long, the server closed it, or it is so old that
its name may have other addresses by now. That is noticed on its next use, and by an alarm, which is set while
there are idle connections, so that none outlives the idle timeout. Origins without connections are forgotten
then, too.

For a sync client one idle connection may be parked: lent to the threads that make calls. A thread takes it by
removing it from `parked`, in one step. It is among those in use. A call in the event loop takes it back
first, so that nothing waits for it, and so does the alarm, so that the rules above apply to it, too.
"""

from __future__ import annotations

import math
import random
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio

from omnigate._runtime.isolation import cancellation_check
from omnigate._runtime.loops import call_soon, clock_of, has_ended
from omnigate._transport.byte_stream import ByteStream
from omnigate._transport.connection import Connection
from omnigate._transport.direct import Parked
from omnigate._transport.http11 import ResponseReader
from omnigate._transport.messages import Origin
from omnigate._transport.timers import Alarm, Limit, current_watch

_MANY: Final = 64

READERS_MAX: Final = 8
"""How many spare readers are kept: most responses arrive whole, so one serves all connections in turn."""

_SHORTEST_AGE: Final = 0.8
"""The part of the maximum age that every connection reaches: those opened together do not end together."""

_LEAST_SECONDS: Final = 0.001
"""The alarm's least delay: a clock that is not the loop's may differ from it by a rounding error."""

_MOST_SECONDS: Final = 60.0
"""How long a connection that the server has closed is kept, at most, whatever the idle timeout."""


class Waiter:
    """A request that waits for a connection, or for a slot to open one."""

    __slots__ = ("abandoned", "connection", "event", "origin", "served")

    def __init__(self, origin: Origin) -> None:
        self.origin: Origin = origin
        self.event: anyio.Event = anyio.Event()
        self.served: bool = False
        self.abandoned: bool = False
        self.connection: Connection | None = None


class Pool:
    """The connections of one event loop.

    Attributes:
        loop: the event loop.
        in_use: the connections in use.
        checkpoint_if_cancelled: raises if the caller is cancelled.
        opening: cancel scopes of the requests that are opening a connection.
        parked: the connection, at most one, that other threads may take.
        readers: at most `READERS_MAX` that may be restarted.
    """

    def __init__(
        self,
        max_connections: int | None,
        max_idle_connections: int | None,
        idle_timeout_seconds: float,
        max_age_seconds: float | None,
        clock: Callable[[], float] | None,
        loop: Any,
    ) -> None:
        """Start without connections; ages are measured by `clock`, by default the loop's."""
        self._max_connections = max_connections
        self._max_idle = max_idle_connections
        self._idle_timeout = idle_timeout_seconds
        self._max_age = max_age_seconds
        self._clock = clock or clock_of(loop)
        self._may_park = clock is None  # other threads tell the time by the system's clock
        self.parked: list[Parked] = []
        self.readers: list[ResponseReader] = []
        self._last_parked: weakref.ref[Parked] | None = None
        self._idle: dict[Origin, deque[Connection]] = {}
        self.in_use: set[Connection] = set()
        self.checkpoint_if_cancelled: Callable[[], Awaitable[None]] = cancellation_check()
        self.loop = loop
        self.opening: set[anyio.CancelScope] = set()
        self._watch = current_watch()
        self._watch.add(self)
        self._alarm = Alarm(loop, self._close_stale, "close idle connections")
        self._slots = 0
        self._waiters: deque[Waiter] = deque()
        self._waiting = 0

    def take(self, origin: Origin) -> Connection | bool:
        """Return an idle connection, or True with a slot to open one, or False if the request must wait."""
        if self.parked:
            self.unpark()
        if self._waiting:
            return False  # earlier requests are waiting
        stack = self._idle.get(origin)
        if stack:
            now = self._clock()
            oldest_allowed = now - self._idle_timeout
            while stack and stack[0].idle_since < oldest_allowed:
                self._drop(stack.popleft())
            while stack:
                connection = stack.pop()
                if (
                    connection.idle_since >= oldest_allowed
                    and connection.expires > now
                    and connection.stream.is_quiet()
                ):
                    connection.state = "in use"
                    self.in_use.add(connection)
                    return connection
                self._drop(connection)
        if self._max_connections is None or self._slots < self._max_connections:
            self._slots += 1
            return True
        if any(self._idle.values()):  # of another origin: reuse its slot here
            self._drop(self._oldest_idle())
            self._slots += 1
            return True
        return False

    async def wait(self, origin: Origin) -> Connection | None:
        """Wait in the queue and return a connection, or None with a slot to open one."""
        waiter = Waiter(origin)
        self._waiters.append(waiter)
        self._waiting += 1
        self.unpark()  # parked since `take`: only now do other threads see that it is waited for
        try:
            await waiter.event.wait()
        except BaseException:
            if waiter.served:
                self._pass_on(waiter.connection)
            else:
                waiter.abandoned = True  # removed when it reaches the front of the queue,
                self._waiting -= 1
                if len(self._waiters) > 2 * self._waiting + _MANY:  # or when too many are abandoned
                    self._waiters = deque(waiter for waiter in self._waiters if not waiter.abandoned)
            raise
        return waiter.connection

    def add(self, stream: ByteStream, origin: Origin) -> Connection:
        """Add a newly opened connection that has a slot, and return it, in use."""
        expires = math.inf
        if self._max_age is not None:
            expires = self._clock() + self._max_age * random.uniform(_SHORTEST_AGE, 1)  # noqa: S311
        connection = Connection(stream, origin, Limit(self._watch), expires, self.loop)
        self.in_use.add(connection)
        return connection

    def give_back(self, connection: Connection) -> None:
        """Return a reusable connection to the pool."""
        now = self._clock()
        if connection.state != "in use" or connection.expires <= now:
            self.discard(connection)
            return
        self.in_use.discard(connection)
        connection.used = True
        if self._waiting:
            self._pass_on(connection)
            return
        connection.state = "idle"
        connection.idle_since = now
        stack = self._idle.get(connection.origin)
        if stack is None:
            stack = self._idle[connection.origin] = deque()
        stack.append(connection)
        if self._alarm.timer is None:
            self._alarm.set(min(self._idle_timeout, _MOST_SECONDS))
        if self._max_idle is not None and self._count_idle() > self._max_idle:
            self._drop(self._oldest_idle())

    def discard(self, connection: Connection) -> None:
        """Close a connection in use and free its slot; idempotent."""
        if connection in self.in_use:
            self.in_use.discard(connection)
            connection.close()
            self.free_slot()

    def keep_slot(self, connection: Connection) -> None:
        """Close a connection in use, but keep its slot for opening another."""
        self.in_use.discard(connection)
        connection.close()

    def drop_idle(self, origin: Origin) -> None:
        """Close an origin's idle connections: one was found dead, and the rest are at least as old."""
        stack = self._idle.get(origin)
        while stack:
            self._drop(stack.popleft())

    def park(self, origin: Origin) -> None:
        """Park the idle connection that was used last, unless other connections are in use."""
        stack = self._idle.get(origin)
        if not stack or self.parked or self.in_use or self._waiting or not self._may_park:
            return
        connection = stack[-1]
        descriptor = connection.stream.lend()
        if descriptor is None:
            return
        stack.pop()
        connection.state = "in use"
        self.in_use.add(connection)
        now, system_now = self._clock(), time.monotonic()
        parked = Parked(
            descriptor,
            connection,
            weakref.WeakMethod(self.discard),
            since=system_now - (now - connection.idle_since),
            expires=system_now + (connection.expires - now),
        )
        self._last_parked = weakref.ref(parked)
        self.parked.append(parked)

    def unpark(self) -> None:
        """Take back the parked connection, if it is there."""
        try:
            parked = self.parked.pop()
        except IndexError:  # none, or it is in use in another thread
            return
        connection = parked.take_back()
        if connection.state == "in use":
            self.give_back(connection)
            connection.idle_since -= time.monotonic() - parked.since

    def is_good(self, parked: Parked, origin: Origin) -> bool:
        """Return whether a connection that was parked may carry a request, in any thread."""
        return parked.connection.origin == origin and parked.is_fresh(self._idle_timeout)

    def note_parked(self) -> None:
        """Look for waiters, in any thread, after a connection was parked again."""
        if self._waiting:  # either this sees the waiter, or the waiter sees the connection
            call_soon(self.loop, self.unpark)

    def free_slot(self) -> None:
        """Return a slot that has no connection."""
        self._pass_on(None)

    def close(self) -> None:
        """Close all connections and cancel those being opened; waiters wake and find the transport closed.

        In a loop that has ended there are no waiters, and nothing is being opened.
        """
        self._alarm.stop()
        self.parked.clear()
        if has_ended(self.loop):
            self._waiters.clear()
            self._waiting = 0
            self.opening.clear()
        for scope in list(self.opening):
            scope.cancel()
        for origin in self._idle:
            self.drop_idle(origin)
        for connection in list(self.in_use):
            self.discard(connection)
        self._watch.remove(self)
        while self._waiting:
            self._slots += 1
            self._pass_on(None)

    def stats(self) -> dict[str, Any]:
        """Return the counts of connections idle, in use and opening, and of waiting requests; by origin, too.

        Callable from any thread: copying a collection to a list is atomic, iterating over it is not.
        """
        origins: dict[Origin, dict[str, int]] = {}
        parked = [parked.connection for parked in list(self.parked)]
        for origin, stack in list(self._idle.items()):
            origins.setdefault(origin, {"idle": 0, "in_use": 0, "waiting": 0})["idle"] = len(stack)
        for connection in list(self.in_use):
            name = "idle" if connection in parked else "in_use"
            origins.setdefault(connection.origin, {"idle": 0, "in_use": 0, "waiting": 0})[name] += 1
        for waiter in list(self._waiters):
            if not waiter.abandoned:
                origins.setdefault(waiter.origin, {"idle": 0, "in_use": 0, "waiting": 0})["waiting"] += 1
        idle = self._count_idle()
        return {
            "idle": idle + len(parked),
            "in_use": len(self.in_use) - len(parked),
            "opening": self._slots - idle - len(self.in_use),
            "waiting": self._waiting,
            "origins": {
                f"{s}://{h}:{p}": numbers for (s, h, p), numbers in origins.items() if any(numbers.values())
            },
        }

    def __repr__(self) -> str:
        stats = self.stats()
        numbers = (
            f"{stats[name]} {name.replace('_', ' ')}" for name in ("idle", "in_use", "opening", "waiting")
        )
        return f"<Pool: {', '.join(numbers)}>"

    def _pass_on(self, connection: Connection | None) -> None:
        """Give a connection in use, or a free slot, to the first waiter; without waiters, release it."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if waiter.abandoned:
                continue
            self._waiting -= 1
            waiter.served = True
            if connection is not None and (
                connection.origin != waiter.origin or connection.state != "in use"
            ):
                self.in_use.discard(connection)
                connection.close()
                connection = None  # the waiter gets its slot
            if connection is not None:
                self.in_use.add(connection)
            waiter.connection = connection
            waiter.event.set()
            return
        if connection is None:
            self._slots -= 1
        else:
            self.give_back(connection)

    def _close_stale(self) -> None:
        """Close the idle connections that cannot be used any more, and forget origins without any."""
        self.unpark()
        now = self._clock()
        oldest_allowed = now - self._idle_timeout
        earliest = math.inf
        parked = None if self._last_parked is None else self._last_parked()
        if parked is not None and not parked.is_back:  # in use in another thread, which will park it again
            earliest = now + self._idle_timeout
        for origin, stack in list(self._idle.items()):
            for _ in range(len(stack)):  # each in turn, which keeps their order
                connection = stack.popleft()
                if (
                    connection.idle_since > oldest_allowed
                    and connection.expires > now
                    and connection.is_quiet()
                ):
                    stack.append(connection)
                    earliest = min(earliest, connection.idle_since + self._idle_timeout, connection.expires)
                else:
                    self._drop(connection)
            if not stack:
                del self._idle[origin]
        if earliest < math.inf:
            self._alarm.set(min(max(earliest - now, _LEAST_SECONDS), _MOST_SECONDS))

    def _count_idle(self) -> int:
        return sum(map(len, list(self._idle.values())))

    def _oldest_idle(self) -> Connection:
        stack = min((stack for stack in self._idle.values() if stack), key=lambda stack: stack[0].idle_since)
        return stack.popleft()

    def _drop(self, connection: Connection) -> None:
        connection.close()
        self._slots -= 1
