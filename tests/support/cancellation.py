"""Cancel an operation at its first, second, third, … checkpoint, in every way there is, until it completes.

Checkpoints of its child tasks count as well: a hedged copy of a call, the workers of a batch, a foreign transport in
isolation. A task factory counts them on asyncio, an instrument on trio; a context variable, which a task inherits from
the one that starts it, distinguishes them from those of the test, such as its server's.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

T = TypeVar("T")

Operation = Callable[[], Awaitable[object]]

WAYS_OF_ASYNCIO = (
    "scope",
    "task",
    "woken",
    "twice",
    "timeout",
    *(["eager"] if sys.version_info >= (3, 12) else []),
)
"""By an anyio scope; by `Task.cancel()`, just before the task waits; just after what it waits for is there, before it
knows; at two checkpoints in a row; by `asyncio.timeout()`; by `Task.cancel()` where the loop starts tasks eagerly."""

WAYS_OF_TRIO = ("scope", "woken")
"""By a scope, while the task waits; when what it waits for is there."""

LOOPS_AND_WAYS = [
    *(("asyncio", way) for way in WAYS_OF_ASYNCIO),
    *(("asyncio+uvloop", way) for way in WAYS_OF_ASYNCIO),
    *(("trio", way) for way in WAYS_OF_TRIO),
    *(("trio+served", way) for way in WAYS_OF_TRIO),
]
"""Every combination: event loops as the fixture `anyio_backend` names them, each with its ways."""

TRIED: Counter[str] = Counter()
"""How many cancellations were tried in this process, by event loop and way."""

_SYSTEM_TASKS = {"omnigate: close idle connections", "omnigate: watch deadlines", "omnigate: receive"}

_MOST = 5_000


_RUN: ContextVar["_Points | None"] = ContextVar("_RUN", default=None)
"""The counter of this task's checkpoints."""


class _Points:
    """Counts the checkpoints of all tasks of one run, and acts at one of them."""

    def __init__(self, point: int, act: Callable[[], object], *, way: str) -> None:
        self.count = 0
        self._point = point
        self._act = act
        self._when_woken = way == "woken"
        self._last = point + 1 if way == "twice" else point

    def waits(self, trap: Any = None) -> None:
        """Count a checkpoint: a task gives up control until `trap` is done."""
        self.count += 1
        if self._point <= self.count <= self._last:
            if self._when_woken and isinstance(trap, asyncio.Future):
                trap.add_done_callback(lambda _: self._act())  # called before the task's own step
            else:
                self._act()


class _Counted(Coroutine[Any, Any, T]):
    """A coroutine that reports each of its waits, and its end."""

    def __init__(self, inner: Coroutine[Any, Any, T], points: _Points) -> None:
        self._inner = inner
        self._points = points

    def send(self, value: Any) -> Any:
        return self._step(self._inner.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._inner.throw, *error)

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, T]:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:  # anyio reads cr_running and the like
        return getattr(self._inner, name)

    def _step(self, step: Callable[..., Any], *arguments: Any) -> Any:
        try:
            trap = step(*arguments)
        except BaseException:
            self._points.waits()
            raise
        self._points.waits(trap)
        return trap


async def _run_in_asyncio(operation: Operation, point: int, way: str) -> int:
    loop = asyncio.get_running_loop()
    acts: list[Callable[[], object]] = []  # the last one is what cancels
    points = _Points(point, lambda: acts[-1]() if acts else None, way=way)

    def new_task(coroutine: Any, *, loop: asyncio.AbstractEventLoop, **options: Any) -> asyncio.Task[Any]:
        context = options.get("context") or copy_context()
        if context.get(_RUN) is points:
            coroutine = _Counted(coroutine, points)
        return asyncio.Task(coroutine, loop=loop, **options)

    async def run() -> None:
        if way == "scope":
            with anyio.CancelScope() as scope:
                acts.append(scope.cancel)
                await operation()
        elif way == "timeout":
            try:
                async with asyncio.timeout(None) as timeout:
                    acts.append(lambda: timeout.reschedule(0))
                    await operation()
                    acts.clear()
            except TimeoutError:
                if not timeout.expired():
                    raise
        else:
            task = asyncio.current_task()
            assert task is not None
            acts.append(task.cancel)
            await operation()

    factory: Any = lambda loop, coroutine, **options: new_task(coroutine, loop=loop, **options)  # noqa: E731
    is_eager = way == "eager"
    if is_eager and isinstance(
        loop, asyncio.BaseEventLoop
    ):  # uvloop and asyncio's factory do not agree everywhere
        factory = asyncio.create_eager_task_factory(new_task)  # type: ignore[attr-defined]
    loop.set_task_factory(factory)
    try:
        context = copy_context()
        context.run(_RUN.set, points)
        options: dict[str, Any] = {"eager_start": True} if is_eager else {}
        root = new_task(run(), loop=loop, context=context, **options)
        await asyncio.wait([root])
    finally:
        loop.set_task_factory(None)
    acts.clear()
    if not root.cancelled():
        root.result()
        is_native = way not in ("scope", "timeout")
        assert not is_native or points.count <= point, (
            f"the cancellation at {point} of {points.count} was swallowed"
        )
    return points.count


async def _run_in_trio(operation: Operation, point: int, way: str) -> int:
    import trio

    class WhenItWaits(trio.abc.Instrument):
        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            if task.context.get(_RUN) is points:
                points.waits()

    class WhenWoken(trio.abc.Instrument):
        def task_scheduled(self, task: trio.lowlevel.Task) -> None:
            if task.context.get(_RUN) is points:
                points.waits()

    with anyio.CancelScope() as scope:
        points = _Points(point, scope.cancel, way=way)
        instrument = WhenWoken() if way == "woken" else WhenItWaits()
        trio.lowlevel.add_instrument(instrument)
        before = _RUN.set(points)
        try:
            await operation()
        finally:
            _RUN.reset(before)
            trio.lowlevel.remove_instrument(instrument)
    return points.count


async def cancelled_at_every_checkpoint(operation: Operation, way: str) -> AsyncGenerator[int, None]:
    """Run `operation` again and again, cancelled one checkpoint later each time; yield after each.

    Args:
        operation: the function to run.
        way: how to cancel it: one of `WAYS_OF_ASYNCIO` or `WAYS_OF_TRIO`.

    """
    try:
        name = type(asyncio.get_running_loop()).__module__.partition(".")[0]
        run = _run_in_asyncio
    except RuntimeError:
        name = "trio"
        run = _run_in_trio
    point = 0
    while True:
        point += 1
        with anyio.fail_after(20):
            count = await run(operation, point, way)
        TRIED[f"{name}-{way}"] += count >= point  # the last run was not cancelled
        yield point
        if count < point:
            return
        assert point < _MOST, "the operation never completes"


def count_tasks() -> int:
    """Return how many tasks the event loop has, without our own system tasks on trio."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return sum(name not in _SYSTEM_TASKS for name in _names_in_trio())


def count_system_tasks(name: str) -> int:
    """Return how many tasks of trio have the name of one of our system tasks."""
    assert name in _SYSTEM_TASKS
    return sum(found == name for found in _names_in_trio())


def _names_in_trio() -> list[str]:
    import trio

    root = trio.lowlevel.current_root_task()
    assert root is not None
    found = [root]
    for task in found:  # grows meanwhile
        found += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return [task.name for task in found]
