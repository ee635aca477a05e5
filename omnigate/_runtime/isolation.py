"""Isolates foreign code from native cancellation, and runs clean-up uninterrupted but bounded in time.

Native cancellation is asyncio's own `Task.cancel()`. Libraries written on anyio protect their clean-up with
shielded scopes, which native cancellation ignores: `httpx.AsyncHTTPTransport` loses a pool slot each time one
hits its clean-up. In a child task of an anyio task group it arrives as an ordinary scope cancellation, which
shields do stop. Trio has only scope cancellation, so nothing is needed there.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack, cast

import anyio
import anyio.lowlevel
import httpx

from omnigate._runtime.loops import in_trio

T = TypeVar("T")

Args = TypeVarTuple("Args")

CLOSE_SECONDS: Final = 1.0
"""How long clean-up may delay a cancelled caller."""

_find_backend: Final[Callable[[], object] | None] = getattr(anyio.lowlevel, "get_async_backend", None)
"""Not part of anyio's interface, so perhaps not there."""

_closing: set[asyncio.Task[None]] = set()  # asyncio itself holds its tasks weakly


def is_cancelled() -> bool:
    """Return whether the running task itself is being cancelled, rather than a task it waits for."""
    return anyio.current_effective_deadline() == -math.inf


def cancellation_check() -> Callable[[], Awaitable[None]]:
    """Return a function of the running event loop that raises, when awaited, if its caller is cancelled.

    `anyio.lowlevel.checkpoint_if_cancelled` looks up the kind of event loop each time, which on asyncio is a
    twentieth of the cost of a whole call.
    """
    if in_trio():
        check: Callable[[], Awaitable[None]] = sys.modules["trio"].lowlevel.checkpoint_if_cancelled
        return check
    if _find_backend is None:
        return anyio.lowlevel.checkpoint_if_cancelled
    return getattr(_find_backend(), "checkpoint_if_cancelled", anyio.lowlevel.checkpoint_if_cancelled)


def is_cancellation(error: BaseException) -> bool:
    """Return whether `error` is a cancellation of the running task itself."""
    return isinstance(error, anyio.get_cancelled_exc_class()) and is_cancelled()


async def isolated(func: Callable[[Unpack[Args]], Awaitable[T]], *args: *Args) -> T:
    """Await `func(*args)`, on asyncio in a child task.

    If something inside `func` is cancelled but the caller is not, raise an httpx.ReadError.

    If the caller is cancelled natively just after `func` has returned, the result is lost: if the result
    owns a resource, `func` must also store it where the caller's clean-up can find it.
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
            # Not the caller's cancellation: something that `func` waited for was cancelled.
            errors.append(httpx.ReadError("what the call waited for was cancelled"))
            errors[0].__cause__ = error
        except BaseException as error:  # noqa: BLE001 - raised again below, outside the group
            errors.append(error)  # even a KeyboardInterrupt, which raised inside a task would stop the loop

    async with anyio.create_task_group() as group:
        group.start_soon(child)
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()  # break the reference cycle of error, traceback and frame
    return results[0]


def _cancellation_of(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """Return a cancellation if `group`, as raised by a trio nursery, contains nothing else."""
    if group.split(anyio.get_cancelled_exc_class())[1] is not None:
        return None
    first = group.exceptions[0]
    if isinstance(first, BaseExceptionGroup):
        return _cancellation_of(cast("BaseExceptionGroup[BaseException]", first))
    return first


async def bounded(clean_up: Callable[[], Awaitable[None]]) -> None:
    """Await `clean_up` to its end even if the caller is cancelled, but at most `CLOSE_SECONDS`."""

    async def shielded() -> None:
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await clean_up()

    with anyio.CancelScope(shield=True):  # does not stop native cancellation, hence `isolated`
        await isolated(shielded)


def close_soon(loop: Any, clean_up: Callable[[], Awaitable[None]]) -> None:
    """Schedule `clean_up` in `loop`; callable from any thread and from a finalizer.

    Does nothing if the loop has ended, since its connections have ended with it.
    """

    async def close() -> None:
        await bounded(clean_up)

    try:
        if isinstance(loop, asyncio.AbstractEventLoop):
            loop.call_soon_threadsafe(_start_in_asyncio, loop, close)
        else:
            loop.run_sync_soon(sys.modules["trio"].lowlevel.spawn_system_task, close)
    except RuntimeError:
        pass  # the loop has ended (trio.RunFinishedError is a RuntimeError)


def _start_in_asyncio(
    loop: asyncio.AbstractEventLoop, close: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    task = loop.create_task(close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)
