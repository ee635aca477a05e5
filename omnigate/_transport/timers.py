"""Cheap timeouts: every call sets one, almost none fires.

An anyio cancel scope takes 6 to 9 µs, a good part of a whole call, an asyncio timer 3. On asyncio, therefore,
one timer watches all connections of a pool: it is set for the earliest deadline, and when it fires it checks
which deadlines still apply. A call that ends in time costs nothing more. A connection that has timed out is
closed, so that the read or write waiting on it fails. On trio, which runs nothing but tasks, a limit is
trio's own cancel scope. A limit can be moved while it runs: from writing the request to reading the response.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import sys
import weakref
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final, Protocol, TypeVar, TypeVarTuple

import httpx

T = TypeVar("T")

Args = TypeVarTuple("Args")

logger: Final = logging.getLogger("omnigate")

_WORDS: Final[dict[type[httpx.TimeoutException], str]] = {
    httpx.WriteTimeout: "the request could not be written",
    httpx.ReadTimeout: "no data was received",
}


class Limited(Protocol):
    """An object that has a limit and is closed when the limit is reached."""

    limit: Limit

    def close(self) -> None: ...


class Watch:
    """Watches the deadlines of a pool's connections in an asyncio event loop.

    Its timer refers to it only weakly, so that it does not keep a discarded transport alive.
    """

    __slots__ = ("__weakref__", "_connections", "_loop", "_next", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, connections: Iterable[Limited]) -> None:
        """Start without a timer; `connections` is read anew each time the timer fires."""
        self._loop = loop
        self._connections = connections
        self._timer: asyncio.TimerHandle | None = None
        self._next = math.inf

    def deadline(self, seconds: float) -> float:
        """Return the deadline `seconds` from now and watch it."""
        deadline = self._loop.time() + seconds
        if deadline < self._next:
            self._set(deadline)
        return deadline

    def stop(self) -> None:
        """Cancel the timer and stop watching."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._next = None, math.inf

    def _set(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = deadline
        self._timer = self._loop.call_at(deadline, partial(_look, weakref.ref(self)))

    def look(self) -> None:
        """Expire the connections past their deadline, and set the timer for the next deadline."""
        self._timer, self._next = None, math.inf
        now = self._loop.time()
        earliest = math.inf
        for connection in list(self._connections):
            limit = connection.limit
            if limit.deadline <= now:
                limit.expire(connection)
            elif limit.deadline < earliest:
                earliest = limit.deadline
        if earliest < math.inf:
            self._set(earliest)


def _look(reference: weakref.ref[Watch]) -> None:
    watch = reference()
    if watch is not None:
        watch.look()


class Alarm:
    """Calls a method once, after a delay; holds the method's object only weakly.

    On asyncio it is a timer. trio has none, so there it is a system task that sleeps and ends.

    Attributes:
        loop: the event loop that it calls in.
    """

    __slots__ = ("_method", "_timer", "loop")

    def __init__(self, loop: Any, method: Callable[[], None]) -> None:
        """Start unset; `method` is called in `loop`."""
        self.loop = loop
        self._method = weakref.WeakMethod(method)
        self._timer: Any = None  # asyncio's handle, or the task's cancel scope

    @property
    def is_set(self) -> bool:
        """Whether a call is scheduled."""
        return self._timer is not None

    def set(self, seconds: float) -> None:
        """Schedule the call; must be called in the loop, and only while none is scheduled."""
        try:
            self._timer = self._start(seconds)
        except RuntimeError:  # the loop is ending, and takes no more timers or tasks
            self._timer = None

    def _start(self, seconds: float) -> Any:
        if isinstance(self.loop, asyncio.AbstractEventLoop):
            # A context of its own: the caller's may hold whole requests.
            return self.loop.call_later(seconds, self._ring, context=contextvars.Context())
        trio = sys.modules["trio"]
        scope = trio.CancelScope(deadline=trio.current_time() + seconds)
        trio.lowlevel.spawn_system_task(self._sleep, scope, name="omnigate: close idle connections")
        return scope

    def stop(self) -> None:
        """Cancel the scheduled call; must be called in the loop, or after it has ended."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _ring(self) -> None:
        self._timer = None
        method = self._method()
        if method is not None:
            method()

    async def _sleep(self, scope: Any) -> None:
        with scope:
            await sys.modules["trio"].sleep_forever()
        if self._timer is scope:
            try:
                self._ring()
            except Exception:  # an error in a system task would end the whole program
                logger.exception("closing idle connections failed")


class Limit:
    """A time limit for the operations on one connection, one at a time.

    Attributes:
        kind: the exception raised when it is reached.
        deadline: when that is, by asyncio's clock; infinity between operations, and on trio.
    """

    __slots__ = ("_reached", "_scope", "_seconds", "_watch", "deadline", "kind")

    def __init__(self, watch: Watch | None) -> None:
        """Start without a deadline; `watch` is the pool's on asyncio, None on trio."""
        self._watch = watch
        self._scope: Any = None
        self._seconds: float | None = None
        self._reached: tuple[type[httpx.TimeoutException], float | None] | None = None
        self.deadline: float = math.inf
        self.kind: type[httpx.TimeoutException] = httpx.ReadTimeout

    async def run(
        self,
        kind: type[httpx.TimeoutException],
        seconds: float | None,
        func: Callable[[*Args], Awaitable[T]],
        *args: *Args,
    ) -> T:
        """Await `func(*args)` for at most `seconds`; None for no limit, unless `move` sets one.

        Raises:
            httpx.TimeoutException: of this kind. The connection is then unusable.
        """
        self.kind = kind
        self._seconds = seconds
        watch = self._watch
        if watch is None:
            trio = sys.modules["trio"]
            deadline = math.inf if seconds is None else trio.current_time() + seconds
            with trio.CancelScope(deadline=deadline) as self._scope:
                return await func(*args)
            raise _timeout(self.kind, self._seconds)
        if seconds is not None:
            self.deadline = watch.deadline(seconds)
        try:
            return await func(*args)
        except Exception:
            if self._reached is not None:  # perhaps just after the previous await ended
                raise _timeout(*self._reached) from None
            raise
        finally:
            self.deadline = math.inf

    def move(self, kind: type[httpx.TimeoutException], seconds: float | None) -> None:
        """Restart the running limit with `seconds` from now."""
        watch = self._watch
        if watch is not None and self._reached is None:
            self.deadline = math.inf if seconds is None else watch.deadline(seconds)
        elif watch is None and not self._scope.cancel_called:
            trio = sys.modules["trio"]
            self._scope.deadline = math.inf if seconds is None else trio.current_time() + seconds
        else:
            return  # already reached
        self.kind = kind
        self._seconds = seconds

    def expire(self, connection: Limited) -> None:
        """Close `connection`, so that its pending operation fails with a timeout."""
        self._reached = (self.kind, self._seconds)
        self.deadline = math.inf
        connection.close()


def _timeout(kind: type[httpx.TimeoutException], seconds: float | None) -> httpx.TimeoutException:
    return kind(f"{_WORDS[kind]} within {seconds:g} s")
