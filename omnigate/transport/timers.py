"""Time limits that cost little, since every call has one and hardly any is reached.

anyio's scope takes 6 to 9 µs, a good part of a whole call. On asyncio a timer of the loop does instead: when
it goes off, it closes the connection, and the operation that waits for it fails. On trio it is trio's own
scope. A limit can be moved while it runs: from writing the request to reading the response.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, TypeVarTuple

import httpx

from omnigate.transport.connection import Connection

T = TypeVar("T")
Args = TypeVarTuple("Args")

_WORDS: Final[dict[type[httpx.TimeoutException], str]] = {
    httpx.WriteTimeout: "the request could not be written",
    httpx.ReadTimeout: "nothing came",
}


class Limit:
    """A time limit for what is awaited on one connection.

    Attributes:
        kind: what is raised when it is reached.
    """

    __slots__ = ("_connection", "_is_reached", "_loop", "_scope", "_seconds", "_timer", "kind")

    def __init__(self, loop: Any, connection: Connection, kind: type[httpx.TimeoutException]) -> None:
        self._loop = loop  # asyncio's, or trio's token
        self._connection = connection
        self._timer: asyncio.TimerHandle | None = None
        self._scope: Any = None
        self._seconds: float | None = None
        self._is_reached = False
        self.kind = kind

    async def run(self, seconds: float | None, func: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        """Await `func(*args)` for at most `seconds`; None is no limit, unless it is moved meanwhile.

        Raises:
            httpx.TimeoutException: of this kind. The connection is of no more use then.
        """
        self._seconds = seconds
        if isinstance(self._loop, asyncio.AbstractEventLoop):
            self._timer = None if seconds is None else self._loop.call_later(seconds, self._expire)
            try:
                return await func(*args)
            except Exception as error:
                if self._is_reached:
                    raise self._timeout() from error
                raise
            finally:
                if self._timer is not None:
                    self._timer.cancel()
        trio = sys.modules["trio"]
        deadline = math.inf if seconds is None else trio.current_time() + seconds
        with trio.CancelScope(deadline=deadline) as self._scope:
            return await func(*args)
        raise self._timeout()

    def move(self, seconds: float | None, kind: type[httpx.TimeoutException]) -> None:
        """Let the limit be `seconds` from now on, while `run` runs."""
        self.kind = kind
        self._seconds = seconds
        if self._scope is not None:
            trio = sys.modules["trio"]
            self._scope.deadline = math.inf if seconds is None else trio.current_time() + seconds
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        self._is_reached = True
        self._connection.close()

    def _timeout(self) -> httpx.TimeoutException:
        return self.kind(f"{_WORDS[self.kind]} within {self._seconds:g} s")
