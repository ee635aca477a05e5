"""Isolation of foreign code from native cancellation, and clean-up that is bounded and not cut short.

Native cancellation is asyncio's own `Task.cancel()`. Libraries written on anyio guard their clean-up with
shielded scopes, but a native cancellation goes through those: `httpx.AsyncHTTPTransport` loses a pool slot
each time one happens inside its clean-up. In a child task of an anyio task group it arrives as an ordinary
scope's cancellation, which shields do hold against. On trio there is no other kind, and nothing is done.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack, cast

import anyio
import httpx

from omnigate._runtime.loops import in_trio

T = TypeVar("T")

Args = TypeVarTuple("Args")

CLOSE_SECONDS: Final = 1.0
"""How long a clean-up may take although its caller is cancelled."""

_closing: set[asyncio.Task[None]] = set()  # asyncio itself holds its tasks weakly


def is_cancelled() -> bool:
    """Return whether the running task is being cancelled; else a cancellation came of another task."""
    return anyio.current_effective_deadline() == -math.inf


def is_cancellation(error: BaseException) -> bool:
    """Return whether an error that is about to leave a task is a cancellation meant for that task."""
    return isinstance(error, anyio.get_cancelled_exc_class()) and is_cancelled()


async def isolated(func: Callable[[Unpack[Args]], Awaitable[T]], *args: *Args) -> T:
    """Await `func(*args)`, on asyncio in a task of its own.

    Its own cancellation, which is not the caller's, is raised as an httpx.ReadError.

    If the caller is cancelled natively just when `func` has returned, its result is lost: a `func`
    whose result owns something must keep it where the caller's clean-up finds it.
    """
    if in_trio():
        try:
            return await func(*args)
        except BaseExceptionGroup as failure:
            cancellation = _cancellation_of(failure)
            if cancellation is None:
                raise
            raise cancellation from None
    results: list[T] = []
    errors: list[BaseException] = []

    async def child() -> None:
        try:
            results.append(await func(*args))
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            # The caller is not cancelled: something that `func` waited for was.
            errors.append(httpx.ReadError("what the call waited for was cancelled"))
            errors[0].__cause__ = error
        except BaseException as error:  # noqa: BLE001 - raised again below, outside of the group
            errors.append(error)  # even a KeyboardInterrupt, which would stop the loop from within a task

    async with anyio.create_task_group() as group:
        group.start_soon(child)
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()  # breaks the cycle of the error, its traceback and this frame
    return results[0]


def _cancellation_of(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """Return a cancellation, if `group` is of nothing else, as trio's nurseries raise it."""
    if group.split(anyio.get_cancelled_exc_class())[1] is not None:
        return None
    first = group.exceptions[0]
    if isinstance(first, BaseExceptionGroup):
        return _cancellation_of(cast("BaseExceptionGroup[BaseException]", first))
    return first


async def bounded(clean_up: Callable[[], Awaitable[None]]) -> None:
    """Await a clean-up although the caller may be cancelled, for at most a second."""

    async def shielded() -> None:
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await clean_up()

    with anyio.CancelScope(shield=True):  # a native cancellation goes through this one
        await isolated(shielded)


def close_soon(loop: Any, clean_up: Callable[[], Awaitable[None]]) -> None:
    """Have `clean_up` awaited in `loop`, from any thread and from a finalizer.

    If the loop has ended, nothing is done: what was open in it has ended, too.
    """

    async def close() -> None:
        await bounded(clean_up)

    try:
        if isinstance(loop, asyncio.AbstractEventLoop):
            loop.call_soon_threadsafe(_start_in_asyncio, loop, close)
        else:
            loop.run_sync_soon(sys.modules["trio"].lowlevel.spawn_system_task, close)
    except RuntimeError:
        pass  # the loop has ended (trio.RunFinishedError is a RuntimeError, too)


def _start_in_asyncio(
    loop: asyncio.AbstractEventLoop, close: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    task = loop.create_task(close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)
