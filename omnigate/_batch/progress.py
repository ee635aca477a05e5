"""The progress of a batch, told several times a second: to a `Display`, or to a user's callable.

An exception of the user's callable ends the batch; a display never does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any, Final, TypeAlias, cast

import anyio

from omnigate._batch.display import Display
from omnigate._batch.outcomes import BatchStats
from omnigate._wire.checks import check_not_async, check_not_awaitable, refusal
from omnigate.exceptions import GatewayError

Show: TypeAlias = Callable[[BatchStats], object]

_CALLABLE: Final = "a callable that takes BatchStats"

ProgressArgument: TypeAlias = bool | Show

_SECONDS: Final = 0.25


def check_progress(progress: Any) -> None:
    """Check a batch's argument `progress`.

    Raises:
        InvalidArgumentTypeError: it is neither a bool nor a callable, or is async.
        GatewayError: it is True and rich is not installed.
    """
    if not isinstance(progress, bool) and not callable(progress):
        raise refusal("progress", progress, f"be True, False, or {_CALLABLE}", is_type=True)
    check_not_async(progress, "progress", _CALLABLE)
    if progress is True and find_spec("rich") is None:  # not imported, since only a terminal needs it
        raise GatewayError("progress=True needs rich: pip install 'omnigate[cli]'")


class Progress:
    """Shows the stats of a batch while it runs, and once more at its end."""

    def __init__(self, progress: bool | Show, stats: Callable[[], BatchStats]) -> None:
        self._stats = stats
        self._display = None if callable(progress) else Display()
        self._show: Show = progress if callable(progress) else cast("Display", self._display).show
        self._has_failed = False

    async def run(self) -> None:
        """Show the stats periodically, until cancelled."""
        while True:
            self._update()
            await anyio.sleep(_SECONDS)

    async def show_while(self, func: Callable[[], Awaitable[None]]) -> None:
        """Await `func()` and show the stats periodically until it ends; not at all if that is soon."""
        errors: list[BaseException] = []  # collected, since the group would wrap them
        over = anyio.Event()
        scope = anyio.CancelScope()

        async def show() -> None:
            try:
                while True:
                    with anyio.move_on_after(_SECONDS):
                        await over.wait()
                        return
                    self._update()
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.append(error)
                scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(show)
            try:
                with scope:
                    await func()
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.append(error)
            finally:
                over.set()
        if errors:
            try:
                raise errors[0]
            finally:
                errors.clear()  # breaks the cycle of the error, its traceback and this frame

    def close(self) -> None:
        """Show the stats one last time, unless the callable has failed before."""
        if self._display is not None:
            self._display.close(self._stats())
        elif not self._has_failed:
            self._update()

    def _update(self) -> None:
        try:
            result = self._show(self._stats())
            if not asyncio.isfuture(result):  # a task started by the callable is its own business
                check_not_awaitable(result, "progress")
        except BaseException:
            self._has_failed = True
            raise


class Reading:
    """Shows how much of a file has been read, in the thread that reads it."""

    def __init__(self, progress: ProgressArgument) -> None:
        self._show: Show | None = None
        self._display = None
        if callable(progress):
            self._show = progress
        elif progress:
            self._display = Display()
            self._show = self._display.show
        self._is_due_at = time.monotonic() + _SECONDS
        self._last: BatchStats | None = None

    def update(self, stats: Callable[[], BatchStats]) -> None:
        """Show the stats that `stats` returns, if it is time."""
        if self._show is not None and time.monotonic() >= self._is_due_at:
            self._last = stats()
            self._show(self._last)
            self._is_due_at = time.monotonic() + _SECONDS

    def end(self) -> None:
        """Leave what was shown last on screen."""
        if self._display is not None and self._last is not None:
            self._display.close(self._last)

    def close(self, stats: BatchStats) -> None:
        """Show the stats one last time."""
        if self._display is not None:
            self._display.close(stats)
        elif self._show is not None:
            self._show(stats)
