"""Runs blocking functions in worker threads that a cancelled caller abandons."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.to_thread

from omnigate._runtime.isolation import CLOSE_SECONDS, bounded

T = TypeVar("T")

Args = TypeVarTuple("Args")


def is_exiting() -> bool:
    """Return whether the main thread has ended: the interpreter is about to exit.

    Executors then accept no more work, asyncio's name look-ups included, and Python 3.12 starts no thread.
    """
    # The flag is set before the executors' threads are joined, when the main thread still counts as alive.
    has_ended = getattr(threading, "_SHUTTING_DOWN", False) or not threading.main_thread().is_alive()
    return has_ended or sys.is_finalizing()


async def in_thread(
    func: Callable[[Unpack[Args]], T],
    *args: *Args,
    dispose: Callable[[T], None] | None = None,
    lingers: bool = False,
    limiter: anyio.CapacityLimiter | None = None,
) -> T:
    """Run `func(*args)` in a worker thread; a cancelled caller does not wait for it.

    Args:
        func: the blocking function. Not called if the caller is cancelled before a thread is free.
        args: its arguments.
        dispose: called in a worker thread with the result if the caller was cancelled.
        lingers: whether a cancelled caller still waits for the thread, for at most a second.
        limiter: bounds the number of threads; anyio's default if omitted.
    """
    decided = threading.Lock()  # acquired once: by the cancelled caller or by the finished thread
    begun, done = threading.Event(), threading.Event()
    results: list[T] = []

    def work() -> None:
        begun.set()
        try:
            if decided.locked():
                return
            results.append(func(*args))
            if not decided.acquire(blocking=False) and dispose is not None:
                dispose(results[0])
        finally:
            done.set()

    async def end() -> None:
        await anyio.to_thread.run_sync(done.wait, CLOSE_SECONDS, abandon_on_cancel=True)

    async def dispose_in_thread() -> None:
        if dispose is not None:
            await anyio.to_thread.run_sync(dispose, results[0], abandon_on_cancel=True)

    try:
        await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)
    except BaseException:
        if decided.acquire(blocking=False):
            if lingers and begun.is_set() and not done.is_set():
                await bounded(end)
        else:
            await bounded(dispose_in_thread)
        raise
    return results[0]
