"""Waits before the attempts of a call, which closing the client ends early."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import anyio

from omnigate._runtime.loops import PerLoop

T = TypeVar("T")
Args = TypeVarTuple("Args")


class Pauses:
    """The waits of one client's calls before their attempts.

    Attributes:
        is_closed: whether the client is closed: no wait begins any more.
    """

    def __init__(self) -> None:
        self._ends: PerLoop[set[Callable[[], object]]] = PerLoop(lambda loop: set())  # each ends one wait
        self.is_closed: bool = False

    async def wait(self, seconds: float) -> bool:
        """Wait and return True; return False, immediately, once the client is closed."""
        ends, end = self._ends.current(), anyio.Event()
        ends.add(end.set)
        try:
            if not self.is_closed:  # asked after it was added, so that `close` or this sees the other
                with anyio.move_on_after(seconds):
                    await end.wait()
        finally:
            ends.discard(end.set)
        return not self.is_closed

    async def until_closed(self, func: Callable[[*Args], Awaitable[T]], *args: *Args) -> tuple[T] | None:
        """Await a wait of any other kind and return its result; None, immediately, once the client is closed.

        There may be a result although the client is closed: the caller disposes of it.
        """
        ends, result = self._ends.current(), None
        with anyio.CancelScope() as scope:
            ends.add(scope.cancel)
            try:
                if not self.is_closed:
                    result = (await func(*args),)
            finally:
                ends.discard(scope.cancel)
        return result

    def close(self) -> None:
        """End all waits, in every event loop, and prevent new ones."""
        self.is_closed = True
        self._ends.end(_call_all)

    def __repr__(self) -> str:
        waits = sum(len(ends) for ends in self._ends.values())
        return f"<Pauses: {'closed' if self.is_closed else f'{waits} waiting'}>"


def _call_all(ends: set[Callable[[], object]]) -> None:
    for end in list(ends):
        end()
