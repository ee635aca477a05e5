"""Cancels an operation at its first, second, third, … await, in every way there is, until it completes."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any

import anyio
import anyio.lowlevel

Operation = Callable[[], Awaitable[object]]

ASYNCIO_WAYS = ("scope", "task", "timeout", "eager" if sys.version_info >= (3, 12) else "task")


class _Stepped:
    """Awaits a coroutine, and calls `at_step` just before it gives up control for the n-th time."""

    def __init__(self, operation: Awaitable[object], step: int, at_step: Callable[[], object]) -> None:
        self.operation = operation
        self.step = step
        self.at_step = at_step
        self.steps = 0

    def __await__(self) -> Generator[Any, Any, object]:
        inner = self.operation.__await__()
        try:
            send: Callable[[], Any] = lambda: inner.send(None)  # type: ignore[attr-defined]  # noqa: E731
            while True:
                try:
                    trap = send()
                except StopIteration as stop:
                    return stop.value
                self.steps += 1
                if self.steps == self.step:
                    self.at_step()
                try:
                    value = yield trap
                except BaseException as error:  # noqa: BLE001 - handed on
                    send = lambda error=error: inner.throw(error)  # type: ignore[attr-defined, misc]  # noqa: E731
                else:
                    send = lambda value=value: inner.send(value)  # type: ignore[attr-defined, misc]  # noqa: E731
        finally:
            inner.close()  # type: ignore[attr-defined]


async def _cancel_scope(operation: Operation, step: int) -> int:
    with anyio.CancelScope() as scope:
        stepped = _Stepped(operation(), step, scope.cancel)
        await stepped
    return stepped.steps


async def _cancel_task(operation: Operation, step: int, **options: Any) -> int:
    task: asyncio.Task[Any]

    async def run() -> None:
        await stepped

    def cancel() -> None:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()

    stepped = _Stepped(operation(), step, cancel)
    task = asyncio.Task(run(), loop=asyncio.get_running_loop(), **options)
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    return stepped.steps


async def _cancel_timeout(operation: Operation, step: int) -> int:
    try:
        async with asyncio.timeout(None) as timeout:
            stepped = _Stepped(operation(), step, lambda: timeout.reschedule(0))
            await stepped
    except TimeoutError:
        if not timeout.expired():
            raise
    return stepped.steps


async def cancelled_everywhere(operation: Operation, way: str = "scope") -> AsyncIterator[int]:
    """Run `operation` again and again, cancelled one await later each time; yield after each.

    Args:
        operation: what is run.
        way: how it is cancelled: by an anyio "scope", or with asyncio's own "task", "timeout" or "eager" task.

    """
    run: Callable[[Operation, int], Awaitable[int]] = {
        "scope": _cancel_scope,
        "task": _cancel_task,
        "timeout": _cancel_timeout,
        "eager": lambda operation, step: _cancel_task(operation, step, eager_start=True),
    }[way]
    step = 0
    while True:
        step += 1
        with anyio.fail_after(20):
            steps = await run(operation, step)
        yield step
        if steps < step:
            return
        assert step < 5_000, "the operation never completes"
