"""The display of a batch's progress: live in a terminal or a notebook, lines in a log.

In a terminal it takes as many lines as its width needs, and is drawn by rich, from the extra `cli`. Where
standard error is no terminal, or one that understands no escape sequences, a line with the time of day is
printed now and then, which keeps log files readable. Everything goes to stderr: stdout is the program's own.

It never harms the batch. When stderr cannot be written any more (its pipe or terminal is gone, or it is
closed), it falls silent, with one line in the log.
"""

from __future__ import annotations

import contextlib
import errno
import html
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from omnigate._batch.outcomes import BatchStats, words_of
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
        """Set up; `console` is a rich console, by default on stderr."""
        self._console = console
        self._live: Live | None = None
        self._notebook: Any = None
        self._stats = BatchStats()
        self._started_at: float | None = None
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
            if self._started_at is None:
                self._started_at = self._console.get_time()
            func(self._console, stats)
        except Exception as error:  # noqa: BLE001 - a display must not end work that is paid for
            self._is_silent = True
            self._give_streams_back()
            with contextlib.suppress(ValueError):  # from logging's own report of a stderr that is closed
                logger.warning(
                    "the progress of a batch is not shown any more: %s: %s", type(error).__name__, error
                )

    def _show(self, console: Console, stats: BatchStats) -> None:
        if console.is_jupyter:
            self._show_in_notebook(console, stats)
        elif _can_draw(console):
            self._draw(console, stats)
        else:
            now = console.get_time()
            if self._printed_at is None or now - self._printed_at >= _LOG_SECONDS:
                self._printed_at = now
                _print(console, stats)

    def _close(self, console: Console, stats: BatchStats) -> None:
        if console.is_jupyter:
            self._show_in_notebook(console, stats)
        elif _can_draw(console):
            self._draw(console, stats)
            if self._live is not None:
                self._live.stop()
        else:
            _print(console, stats)

    def _show_in_notebook(self, console: Console, stats: BatchStats) -> None:
        """Update an output of the cell: IPython's own, since rich's needs ipywidgets."""
        text = "\n".join(self.lines(console, stats, _NOTEBOOK_COLUMNS))
        shown = {"text/plain": text, "text/html": f"<pre>{html.escape(text)}</pre>"}
        if self._notebook is None:
            display: Any = import_module("IPython.display").display
            self._notebook = display(shown, raw=True, display_id=True)
        else:
            self._notebook.update(shown, raw=True)

    def _draw(self, console: Console, stats: BatchStats) -> None:
        self._stats = stats
        if self._live is None:
            from rich.live import Live

            self._live = Live(
                self,
                console=console,
                auto_refresh=False,  # refreshing automatically takes a thread
                redirect_stdout=_is_terminal(sys.stdout),  # what goes to a file must not go to our stderr
                redirect_stderr=_is_terminal(sys.stderr),
            )
            self._streams = sys.stdout, sys.stderr
            self._live.start()
        self._live.refresh()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the stats at the present width."""
        from rich.text import Text

        for text in self._texts(console, self._stats, options.max_width):
            yield Text.assemble(*text, no_wrap=True, overflow="crop", end="\n")

    def lines(self, console: Console, stats: BatchStats, columns: int) -> list[str]:
        """Return the display as lines of text, none wider than so many columns."""
        return ["".join(text for text, _ in line) for line in self._texts(console, stats, columns)]

    def _texts(self, console: Console, stats: BatchStats, columns: int) -> list[list[tuple[str, str]]]:
        """Return the display's lines, each as pieces of text with their styles."""
        elapsed = console.get_time() - (self._started_at or 0.0)
        found = fitted(parts(stats), columns, _LINES_MOST)
        made = [_line(line) for line in found]
        if stats.percent is not None:
            can_draw = _can_encode(console, "━─")
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
            room = columns + len(_GAP) - 1  # a line's last comma, but not the space after it
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
    time = f"  {duration(elapsed)}"
    if len(told) + len(time) > columns:
        return [(told.strip()[:columns], "")]
    length = min(_BAR_MOST, columns - len(told) - len(time))
    full, empty = ("━", "─") if can_draw else ("#", "-")
    done = int(length * percent / 100)
    return [(full * done, "green"), (empty * (length - done), "bright_black"), (told, ""), (time, "")]


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


def _print(console: Console, stats: BatchStats) -> None:
    time = datetime.now().astimezone().strftime("%H:%M:%S")
    console.print(f"{time} {words(stats)}", highlight=False, soft_wrap=True, markup=False, style=None)


def _can_draw(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal


def _can_encode(console: Console, text: str) -> bool:
    try:
        text.encode(console.encoding)
    except (LookupError, UnicodeEncodeError):
        return False
    return True


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
