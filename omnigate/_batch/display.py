"""The display of a batch's progress: live in a terminal or a notebook, lines in a log.

In a terminal it takes as many lines as its width needs, and is drawn by rich, from the extra `cli`. Where
standard error is no terminal, or one that understands no escape sequences, a line with the time of day is
printed now and then, which keeps log files readable. Everything goes to stderr: stdout is the program's own.

It never harms the batch. When stderr cannot be written any more (its pipe or terminal is gone, or it is
closed), it falls silent, with one line in the log.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import html
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from omnigate._batch.outcomes import BatchStats, words_of
from omnigate._runtime.terminals import can_encode, is_terminal
from omnigate._wire.money import shown_usd

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

logger: Final = logging.getLogger("omnigate")

_LOG_SECONDS: Final = 30.0

_LINES_MOST: Final = 4

_BAR_MOST: Final = 40

_NOTEBOOK_COLUMNS: Final = 100

_GAP: Final = ", "

_WAITS: Final = {
    "rate window": "the next window",
    "token limit": "the tokens of the next minute",
    "provider": "the provider",
    "outage": "the end of an outage",
    "concurrency": "a free slot",
}


class Part(NamedTuple):
    """One fact of a display.

    Attributes:
        text: the words.
        rank: what is left out first where there is no room for all; lower goes first.
        style: rich's, for a terminal.
    """

    text: str
    rank: int
    style: str = ""


class Display:
    """Shows the stats of one batch; silent once it fails."""

    def __init__(self, console: Console | None = None) -> None:
        """Set up; `console` is a rich console, by default on stderr if that is a terminal."""
        self._console = console
        self._kind: Literal["terminal", "notebook", "log"] | None = None
        self._clock: Callable[[], float] = time.monotonic if console is None else console.get_time
        self._live: Live | None = None
        self._notebook: Any = None
        self._stats = BatchStats()
        self._started_at = 0.0
        self._printed_at: float | None = None
        self._is_out = False  # the last stats: waiting for the end of an outage
        self._is_silent = False
        self._streams = sys.stdout, sys.stderr

    def show(self, stats: BatchStats) -> None:
        """Show the stats."""
        self._try(stats, is_last=False)

    def close(self, stats: BatchStats) -> None:
        """Show the final stats, and leave them on screen."""
        self._try(stats, is_last=True)

    def _try(self, stats: BatchStats, *, is_last: bool) -> None:
        if self._is_silent:
            return
        try:
            if self._kind is None:
                self._start()
            self._stats = stats
            if self._kind == "terminal":
                self._draw(is_last=is_last)
            elif self._kind == "notebook":
                self._show_in_notebook()
            else:
                self._log(is_last=is_last)
        except Exception as error:  # noqa: BLE001 - a display must not end work that is paid for
            self._is_silent = True
            self._give_streams_back()
            with contextlib.suppress(ValueError):  # from logging's own report of a stderr that is closed
                logger.warning(
                    "the progress of a batch is not shown any more: %s: %s", type(error).__name__, error
                )

    def _start(self) -> None:
        """Find out where the display is shown."""
        console = self._console
        if console is None:
            self._kind = "notebook" if _in_notebook() else "terminal" if _can_draw_on_stderr() else "log"
            if self._kind == "terminal":
                self._console = _stderr()
        elif console.is_jupyter:
            self._kind = "notebook"
        else:
            self._kind = "terminal" if console.is_terminal and not console.is_dumb_terminal else "log"
        self._started_at = self._clock()

    def _log(self, *, is_last: bool) -> None:
        """Print a line, if it is time, or an outage has begun, or it is the last."""
        now = self._clock()
        stats, was_out = self._stats, self._is_out
        self._is_out = stats.waiting_for == "outage" and stats.waiting_until is not None
        is_news = is_last or (self._is_out and not was_out)
        if not is_news and self._printed_at is not None and now - self._printed_at < _LOG_SECONDS:
            return
        self._printed_at = now
        file = sys.stderr if self._console is None else self._console.file
        if file is None:  # `print` would take stdout then
            raise ValueError("there is no stderr")
        moment = datetime.now().astimezone().strftime("%H:%M:%S")
        print(f"{moment} {words(self._stats)}", file=file, flush=True)

    def _show_in_notebook(self) -> None:
        """Update an output of the cell: IPython's own, since rich's needs ipywidgets."""
        text = "\n".join("".join(text for text, _ in line) for line in self._texts(_NOTEBOOK_COLUMNS))
        shown = {"text/plain": text, "text/html": f"<pre>{html.escape(text)}</pre>"}
        if self._notebook is None:
            display: Any = import_module("IPython.display").display
            self._notebook = display(shown, raw=True, display_id=True)
        else:
            self._notebook.update(shown, raw=True)

    def _draw(self, *, is_last: bool) -> None:
        if self._live is None:
            from rich.live import Live

            self._live = Live(
                self,
                console=self._console,
                auto_refresh=False,  # refreshing automatically takes a thread
                redirect_stdout=is_terminal(sys.stdout),  # what goes to a file must not go to our stderr
                redirect_stderr=is_terminal(sys.stderr),
            )
            self._streams = sys.stdout, sys.stderr
            self._live.start()
        self._live.refresh()
        if is_last:
            self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the stats at the present width."""
        from rich.text import Text

        for text in self._texts(options.max_width, can_encode(console, "━─")):
            yield Text.assemble(*text, no_wrap=True, overflow="crop", end="\n")

    def _texts(self, columns: int, can_draw: bool = True) -> list[list[tuple[str, str]]]:
        """Return the display's lines, none wider than so many columns, as styled pieces of text."""
        stats = self._stats
        made = [_line(line) for line in fitted(parts(stats), columns, _LINES_MOST)]
        if stats.percent is not None:
            elapsed = self._clock() - self._started_at
            made.insert(0, _bar(stats.percent, stats.total or 0, elapsed, columns, can_draw=can_draw))
        return made

    def _give_streams_back(self) -> None:
        """Restore the streams that rich has replaced to print above its display."""
        for name, stream in zip(("stdout", "stderr"), self._streams, strict=True):
            if type(getattr(sys, name)).__module__.startswith("rich."):
                setattr(sys, name, stream)


def parts(stats: BatchStats, *, now: datetime | None = None) -> list[Part]:
    """Return what a display tells, in order.

    Args:
        stats: the stats.
        now: the present moment, by default the real one.
    """
    if stats.reading_percent is not None:
        return [Part(f"reading the journal, {stats.reading_percent:.0f} %", 9)]
    if stats.counted is not None:
        return [Part(f"counting the items, {stats.counted:,} so far", 9)]
    styles = {"failed": "red"}
    found = [Part(text, 7, styles.get(text.split(" ")[-1], "")) for text in words_of(stats)]
    found += [
        Part(f"{stats.in_flight:,} in flight", 1),
        Part(f"{stats.calls_per_second:,.1f}/s", 3),
        Part(f"{stats.total_tokens:,} tokens", 2),
        Part(_cost(stats), 4),
    ]
    if stats.seconds_left:
        found.append(Part(f"{duration(stats.seconds_left)} left", 5))
    if stats.waiting_until is not None:
        seconds = max(0.0, (stats.waiting_until - (now or datetime.now(UTC))).total_seconds())
        words = f"waiting for {_WAITS[stats.waiting_for or 'rate window']}, {duration(seconds)}"
        found.append(Part(words, 9, "yellow"))
    return found


def fitted(given: Sequence[Part], columns: int, lines: int) -> list[list[Part]]:
    """Return parts as at most so many lines, none wider than so many columns.

    Those of the lowest rank are left out first; one that is too wide for a line is cut off.
    """
    kept = [part._replace(text=part.text[:columns]) for part in given]
    while len(found := _wrapped(kept, columns)) > lines:
        kept.remove(min(kept, key=lambda part: part.rank))
    return found


def _wrapped(given: Sequence[Part], columns: int) -> list[list[Part]]:
    """Return parts as lines, broken between parts."""
    found: list[list[Part]] = []
    room = 0
    for part in given:
        needed = len(part.text) + len(_GAP)
        if not found or needed > room:
            found.append([])
            room = columns + len(_GAP) - 1  # the last part has no gap after it; a column stays free
        found[-1].append(part)
        room -= needed
    return found


def _line(line: Sequence[Part]) -> list[tuple[str, str]]:
    pieces: list[tuple[str, str]] = []
    for part in line:
        if pieces:
            pieces.append((_GAP, ""))
        pieces.append((part.text, part.style))
    return pieces


def _bar(
    percent: float, total: int, elapsed: float, columns: int, *, can_draw: bool
) -> list[tuple[str, str]]:
    """Return the line with the bar, the share that has ended, and the time since the start."""
    told = f" {percent:3.0f} % of {total:,}"
    clock = f"  {duration(elapsed)}"
    if len(told) + len(clock) > columns:
        return [(told.strip()[:columns], "")]
    length = min(_BAR_MOST, columns - len(told) - len(clock))
    full, empty = ("━", "─") if can_draw else ("#", "-")
    done = int(length * percent / 100)
    return [(full * done, "green"), (empty * (length - done), "bright_black"), (told, ""), (clock, "")]


def words(stats: BatchStats, *, now: datetime | None = None) -> str:
    """Format the stats as a line of text, as of `now`; by default the present moment."""
    text = _GAP.join(part.text for part in parts(stats, now=now))
    if stats.failures:
        kind = max(stats.failures, key=lambda name: stats.failures[name])
        text = text.replace(" failed", f" failed (most often {kind})", 1)
    if stats.percent is not None and stats.reading_percent is None and stats.counted is None:
        text = f"{stats.percent:.0f} % of {stats.total:,}: {text}"
    return text


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


def _cost(stats: BatchStats) -> str:
    projected = stats.projected_cost_usd
    spent = shown_usd(stats.cost_usd)
    return (
        spent if projected is None or not stats.seconds_left else f"{spent} of about {shown_usd(projected)}"
    )


def _in_notebook() -> bool:
    """Return whether this is a kernel of Jupyter."""
    shell: Any = getattr(builtins, "get_ipython", None)
    return shell is not None and type(shell()).__name__ == "ZMQInteractiveShell"


def _can_draw_on_stderr() -> bool:
    """Return whether stderr is a terminal that understands escape sequences."""
    return is_terminal(sys.stderr) and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def _stderr() -> Console:
    """Return a console on stderr whose errors are only raised."""
    from rich.console import Console

    class Raising(Console):
        def on_broken_pipe(self) -> None:
            # rich would send the program's stdout to the null device, and exit
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    return Raising(stderr=True)
