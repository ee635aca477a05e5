"""Progress display of a batch: a bar in a terminal or notebook, lines in a log, or a user's callable.

The bar is rich's, from the extra `cli`. Where the output is neither a terminal nor a notebook, a line is
printed now and then, which keeps log files readable. Everything goes to stderr: stdout is the program's own.

The display never harms the batch. When stderr cannot be written any more (its pipe or terminal is gone, or it
is closed), it falls silent, with one line in the log. An exception of the user's callable does end the batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import anyio

from omnigate._batch.outcomes import BatchStats, words_of
from omnigate._wire.checks import check_not_async, check_not_awaitable, refusal
from omnigate._wire.money import shown_usd
from omnigate.exceptions import GatewayError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

logger: Final = logging.getLogger("omnigate")

Show: TypeAlias = Callable[[BatchStats], object]

_CALLABLE: Final = "a callable that takes BatchStats"

ProgressArgument: TypeAlias = bool | Show

_SECONDS: Final = 0.25

_LOG_SECONDS: Final = 30.0


def check_progress(progress: Any) -> None:
    """Check a batch's argument `progress`.

    Raises:
        InvalidArgumentTypeError: it is neither a bool nor a callable, or is async.
        GatewayError: it is True and rich is not installed.
    """
    if not isinstance(progress, bool) and not callable(progress):
        raise refusal("progress", progress, f"be True, False, or {_CALLABLE}", is_type=True)
    check_not_async(progress, "progress", _CALLABLE)
    if progress is True:
        try:
            import rich.progress  # noqa: F401  # pyright: ignore[reportUnusedImport]
        except ModuleNotFoundError as error:
            raise GatewayError("progress=True needs rich: pip install 'omnigate[cli]'") from error


class Progress:
    """Shows the stats of a batch while it runs, and once more at its end."""

    def __init__(self, progress: bool | Show, stats: Callable[[], BatchStats]) -> None:
        self._stats = stats
        self._bar = None if callable(progress) else Bar()
        self._show: Show = progress if callable(progress) else cast("Bar", self._bar).show
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
        if self._bar is not None:
            self._bar.close(self._stats())
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
        self._bar = None
        if callable(progress):
            self._show = progress
        elif progress:
            self._bar = Bar()
            self._show = self._bar.show
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
        if self._bar is not None and self._last is not None:
            self._bar.close(self._last)

    def close(self, stats: BatchStats) -> None:
        """Show the stats one last time."""
        if self._bar is not None:
            self._bar.close(stats)
        elif self._show is not None:
            self._show(stats)


class Bar:
    """rich's live display; plain lines where the output is no terminal or notebook; silent once it fails."""

    def __init__(self, console: Console | None = None) -> None:
        """Set up; `console` is a rich console, by default on stderr."""
        self._console = console
        self._live: RichProgress | None = None
        self._printed_at: float | None = None
        self._is_silent = False
        self._streams = sys.stdout, sys.stderr

    def show(self, stats: BatchStats) -> None:
        """Show the stats."""
        self._try(self._show, stats)

    def close(self, stats: BatchStats) -> None:
        """Show the final stats, and leave them on screen."""
        self._try(self._close, stats)

    def _try(self, func: Callable[[Console, BatchStats], None], stats: BatchStats) -> None:
        if self._is_silent:
            return
        try:
            if self._console is None:
                self._console = _stderr()
            func(self._console, stats)
        except Exception as error:  # noqa: BLE001 - a display must not end work that is paid for
            self._is_silent = True
            self._give_streams_back()
            with contextlib.suppress(ValueError):  # from logging's own report of a stderr that is closed
                logger.warning(
                    "the progress of a batch is not shown any more: %s: %s", type(error).__name__, error
                )

    def _show(self, console: Console, stats: BatchStats) -> None:
        if console.is_terminal or console.is_jupyter:
            self._show_live(console, stats)
            return
        now = console.get_time()
        if self._printed_at is None or now - self._printed_at >= _LOG_SECONDS:
            self._printed_at = now
            _print(console, stats)

    def _close(self, console: Console, stats: BatchStats) -> None:
        if console.is_terminal or console.is_jupyter:
            self._show_live(console, stats)
            cast("RichProgress", self._live).stop()
        else:
            _print(console, stats)

    def _show_live(self, console: Console, stats: BatchStats) -> None:
        if self._live is None:
            from rich.progress import Progress as RichProgress
            from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

            self._live = RichProgress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                TimeElapsedColumn(),
                console=console,
                auto_refresh=False,  # refreshing automatically takes a thread
                redirect_stdout=_is_terminal(sys.stdout),  # what goes to a file must not go to our stderr
                redirect_stderr=_is_terminal(sys.stderr),
            )
            self._live.add_task("")
            self._streams = sys.stdout, sys.stderr
            self._live.start()
        self._live.update(self._live.task_ids[0], description=words(stats), refresh=True)

    def _give_streams_back(self) -> None:
        """Restore the streams that rich has replaced to print above its display."""
        for name, stream in zip(("stdout", "stderr"), self._streams, strict=True):
            if type(getattr(sys, name)).__module__.startswith("rich."):
                setattr(sys, name, stream)


def _stderr() -> Console:
    """Return a console on stderr whose errors are only raised."""
    from rich.console import Console

    class Raising(Console):
        def on_broken_pipe(self) -> None:
            # rich would send the program's stdout to the null device, and exit
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    return Raising(stderr=True)


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):  # there is none, or it is closed
        return False


def _print(console: Console, stats: BatchStats) -> None:
    console.print(words(stats), highlight=False, soft_wrap=True, markup=False)


_WAITS: Final = {
    "rate window": "the next window",
    "token limit": "the tokens of the next minute",
    "provider": "the provider",
    "outage": "the end of an outage",
    "concurrency": "a free slot",
}


def words(stats: BatchStats, *, now: datetime | None = None) -> str:
    """Format the stats as a line of text, as of `now`; by default the present moment."""
    if stats.reading_percent is not None:
        return f"reading the journal, {stats.reading_percent:.0f} %"
    if stats.counted is not None:
        return f"counting the items, {stats.counted:,} so far"
    parts = [
        *words_of(stats),
        f"{stats.in_flight:,} in flight",
        f"{stats.calls_per_second:,.1f}/s",
        f"{stats.total_tokens:,} tokens",
        _cost(stats),
    ]
    if stats.percent is not None:
        parts[0] = f"{stats.percent:.0f} % of {stats.total:,}: {parts[0]}"
    if stats.seconds_left:
        parts.append(f"{duration(stats.seconds_left)} left")
    if stats.waiting_until is not None:
        seconds = max(0.0, (stats.waiting_until - (now or datetime.now(UTC))).total_seconds())
        parts.append(f"waiting for {_WAITS[stats.waiting_for or 'rate window']}, {duration(seconds)}")
    return ", ".join(parts)


def _cost(stats: BatchStats) -> str:
    projected = stats.projected_cost_usd
    spent = shown_usd(stats.cost_usd)
    return (
        spent if projected is None or not stats.seconds_left else f"{spent} of about {shown_usd(projected)}"
    )


def duration(seconds: float) -> str:
    """Return a length of time in its two largest units, rounded up to whole seconds."""
    left = math.ceil(seconds)
    minutes, hours, days = left // 60, left // 3_600, left // 86_400
    if minutes == 0:
        return f"{left} s"
    if hours == 0:
        return f"{minutes} min {left % 60:02} s"
    if days == 0:
        return f"{hours} h {minutes % 60:02} min"
    return f"{days} d {hours % 24} h"
