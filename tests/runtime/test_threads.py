"""A worker thread that a cancelled caller leaves behind: what it made is used, or disposed of, exactly once."""

import threading
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from omnigate._runtime.threads import in_thread

from ..support.cancellation import LOOPS_AND_WAYS, cancelled_at_every_checkpoint
from ..support.servers import until

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("lingers", [False, True])
@pytest.mark.parametrize(("anyio_backend", "way"), LOOPS_AND_WAYS, indirect=["anyio_backend"])
async def test_a_result_is_used_or_disposed_of_once_wherever_the_caller_is_cancelled(
    way: str, lingers: bool
) -> None:
    made: list[object] = []
    used: list[object] = []
    disposed: list[object] = []

    def make() -> object:
        made.append(object())
        return made[-1]

    async def use() -> None:
        used.append(await in_thread(make, dispose=disposed.append, lingers=lingers))

    async with aclosing(cancelled_at_every_checkpoint(use, way)) as points:
        async for _ in points:
            await until(lambda: len(made) == len(used) + len(disposed))
            assert set(map(id, made)) == set(map(id, used + disposed))
    assert used


async def test_a_cancelled_caller_goes_on_and_the_thread_disposes_of_what_comes_too_late() -> None:
    begun, may_end = threading.Event(), threading.Event()
    disposed: list[Any] = []

    def work() -> bool:
        begun.set()
        return may_end.wait(10)

    async def cancel_once_begun() -> None:
        await until(begun.is_set)
        scope.cancel()

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            group.start_soon(cancel_once_begun)
            await in_thread(work, dispose=disposed.append)
    assert scope.cancelled_caught
    assert not disposed
    may_end.set()
    await until(lambda: disposed == [True])


async def test_what_is_not_begun_when_the_caller_leaves_is_not_done() -> None:
    limiter = anyio.CapacityLimiter(1)
    limiter.acquire_on_behalf_of_nowait("another")
    called: list[bool] = []
    with anyio.move_on_after(0.01):
        await in_thread(called.append, True, limiter=limiter)
    limiter.release_on_behalf_of("another")
    await in_thread(bool, limiter=limiter)
    assert not called


async def test_an_error_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 1, 0, dispose=print, lingers=True)
