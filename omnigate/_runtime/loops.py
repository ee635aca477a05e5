"""Event-loop identity: the running loop, whether one has ended, calls into one, a value per loop."""

from __future__ import annotations

import asyncio
import sys
import time
from asyncio import get_running_loop
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def in_trio() -> bool:
    """Return whether the caller runs under trio, without importing it.

    Trio tells sniffio when it runs a task. As a guest it shares its thread with asyncio's tasks, so
    it is not enough to ask whether it runs in the thread.
    """
    sniffio = sys.modules.get("sniffio")  # trio imports it
    return sniffio is not None and bool(sniffio.thread_local.name == "trio")


def current_loop() -> Any:
    """Return the identity of the running event loop: asyncio's loop object, or trio's token.

    Raises:
        RuntimeError: no loop is running.
    """
    sniffio = sys.modules.get("sniffio")  # as in `in_trio`; every call passes here
    if sniffio is not None and sniffio.thread_local.name == "trio":
        return _token_of_trio()()
    return get_running_loop()


@cache
def _token_of_trio() -> Callable[[], Any]:
    token: Callable[[], Any] = sys.modules["trio"].lowlevel.current_trio_token
    return token


def is_in_loop() -> bool:
    """Return whether an event loop is running in this thread."""
    return in_trio() or asyncio._get_running_loop() is not None


def clock_of(loop: Any) -> Callable[[], float]:
    """Return the clock that the running event loop's timers use, with as few calls as possible.

    Args:
        loop: the loop, as returned by `current_loop`.
    """
    if not isinstance(loop, asyncio.AbstractEventLoop):
        clock: Callable[[], float] = sys.modules["trio"].lowlevel.current_clock().current_time
        return clock
    return time.monotonic if type(loop).time is asyncio.BaseEventLoop.time else loop.time


def has_ended(loop: Any) -> bool:
    """Return whether an event loop, as returned by `current_loop`, will never run again."""
    if isinstance(loop, asyncio.AbstractEventLoop):
        return loop.is_closed()
    try:
        loop.run_sync_soon(_do_nothing, idempotent=True)
    except RuntimeError:  # trio.RunFinishedError
        return True
    return False


def call_soon(loop: Any, func: Callable[[], object]) -> None:
    """Schedule a call of `func` in `loop`, from any thread.

    Raises:
        RuntimeError: the loop has ended (trio.RunFinishedError is a RuntimeError).
    """
    if isinstance(loop, asyncio.AbstractEventLoop):
        loop.call_soon_threadsafe(func)
    else:
        loop.run_sync_soon(func)


class PerLoop(Generic[T]):
    """One value per event loop, created on first use in that loop; never None.

    Values of ended loops are dropped when a new loop first asks for one. Safe to use from any thread, signal
    handler or finalizer without a lock: each step is a single dict operation, which nothing can interrupt,
    and a loop's value is created only in the loop's own thread.
    """

    __slots__ = ("_drop", "_make", "_values")

    def __init__(self, make: Callable[[Any], T], *, drop: Callable[[T], object] | None = None) -> None:
        """Start without values.

        Args:
            make: creates a value for the given loop. It may be discarded unused, so it must own nothing yet.
            drop: called with each value whose loop has ended; must not raise.
        """
        self._make = make
        self._drop = drop
        self._values: dict[Any, T] = {}

    def current(self) -> T:
        """Return the running loop's value.

        Raises:
            RuntimeError: no loop is running.
        """
        loop = current_loop()
        try:
            return self._values[loop]
        except KeyError:
            pass
        for other in list(self._values):
            if has_ended(other):
                self._discard(other)
        value = self._make(loop)
        return self._values.setdefault(loop, value)  # a signal handler may have made one meanwhile

    def pop(self) -> T | None:
        """Remove the running loop's value and return it; None if there is none.

        Raises:
            RuntimeError: no loop is running.
        """
        return self._values.pop(current_loop(), None)

    def values(self) -> list[T]:
        """Return a snapshot of all values."""
        return list(self._values.values())

    def end(self, func: Callable[[T], object]) -> None:
        """Call `func` with each value in the value's own loop, and remove all values.

        The running loop's call is immediate; those in other loops run on their next iteration. Values of
        ended loops are dropped. After an interruption this can be repeated; `func` may see a value twice.

        Raises:
            RuntimeError: no loop is running.
        """
        running = current_loop()
        for loop, value in self._values.copy().items():
            if loop is running:
                func(value)
            else:
                try:
                    call_soon(loop, partial(func, value))
                except RuntimeError:
                    self._discard(loop)  # the loop has ended
            self._values.pop(loop, None)

    def _discard(self, loop: Any) -> None:
        value = self._values.pop(loop, None)  # another thread may have been first
        if value is not None and self._drop is not None:
            self._drop(value)

    def __repr__(self) -> str:
        return f"<PerLoop: {self.values()!r}>"


def _do_nothing() -> None:
    pass
