"""Time limits that cost little, since every call has one and hardly any is reached.

A scope of anyio takes 6 to 9 µs, a good part of a whole call, a timer of asyncio 3. On asyncio, therefore,
one timer watches all connections of a pool: it is set for the earliest deadline that it has been told of,
and when it goes off it looks which deadlines still hold. A call that ends in time costs it nothing. The
connection whose time is up is closed, and what waits for it fails. On trio, where nothing runs but tasks, it
is trio's own scope. A limit can be moved while it runs: from writing the request to reading the response.
"""

from __future__ import annotations

import asyncio
import math
import sys
import weakref
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final, Protocol, TypeVar, TypeVarTuple

import httpx

T = TypeVar("T")

Args = TypeVarTuple("Args")

_WORDS: Final[dict[type[httpx.TimeoutException], str]] = {
    httpx.WriteTimeout: "the request could not be written",
    httpx.ReadTimeout: "nothing came",
}


class Limited(Protocol):
    """What a limit is of, and what is closed when it is reached."""

    limit: Limit

    def close(self) -> None: ...


class Watch:
    """The deadlines of a pool's connections, in an event loop of asyncio.

    Its timer holds no reference to it: a transport that is dropped is not kept by it.
    """

    __slots__ = ("__weakref__", "_connections", "_loop", "_next", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, connections: Iterable[Limited]) -> None:
        """Begin; `connections` are those to look at, whichever they are when the timer goes off."""
        self._loop = loop
        self._connections = connections
        self._timer: asyncio.TimerHandle | None = None
        self._next = math.inf

    def deadline(self, seconds: float) -> float:
        """Return the deadline that is `seconds` from now, and watch it."""
        deadline = self._loop.time() + seconds
        if deadline < self._next:
            self._set(deadline)
        return deadline

    def stop(self) -> None:
        """Watch nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._next = None, math.inf

    def _set(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = deadline
        self._timer = self._loop.call_at(deadline, partial(_look, weakref.ref(self)))

    def look(self) -> None:
        """Close the connections whose time is up, and set the timer for the next one."""
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


class Limit:
    """A time limit for what is awaited on one connection, one thing after another.

    Attributes:
        kind: what is raised when it is reached.
        deadline: when it is, by asyncio's clock; infinity while nothing is awaited, and on trio.
    """

    __slots__ = ("_reached", "_scope", "_seconds", "_watch", "deadline", "kind")

    def __init__(self, watch: Watch | None) -> None:
        """Begin, on asyncio with the pool's watch."""
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
        """Await `func(*args)` for at most `seconds`; None is no limit, unless it is moved meanwhile.

        Raises:
            httpx.TimeoutException: of this kind. The connection is of no more use then.
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
        except Exception as error:
            if self._reached is not None:  # perhaps just as the await before this one ended
                raise _timeout(*self._reached) from error
            raise
        finally:
            self.deadline = math.inf

    def move(self, kind: type[httpx.TimeoutException], seconds: float | None) -> None:
        """Let the limit be `seconds` from now on, while `run` runs."""
        watch = self._watch
        if watch is not None and self._reached is None:
            self.deadline = math.inf if seconds is None else watch.deadline(seconds)
        elif watch is None and not self._scope.cancel_called:
            trio = sys.modules["trio"]
            self._scope.deadline = math.inf if seconds is None else trio.current_time() + seconds
        else:
            return  # it was reached before
        self.kind = kind
        self._seconds = seconds

    def expire(self, connection: Limited) -> None:
        """Fail what is awaited on `connection`: its time is up."""
        self._reached = (self.kind, self._seconds)
        self.deadline = math.inf
        connection.close()


def _timeout(kind: type[httpx.TimeoutException], seconds: float | None) -> httpx.TimeoutException:
    return kind(f"{_WORDS[kind]} within {seconds:g} s")
