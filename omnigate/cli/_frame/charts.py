"""Bar charts of a series in time, as lines of text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

_HEIGHT: Final = 8

_WIDEST_BAR: Final = 6

_BARS: Final = " ▁▂▃▄▅▆▇█"

_ASCII_BARS: Final = "     ####"

_MOST_COLUMNS: Final = 200

STEPS: Final = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}
"""The lengths of the granularities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Sums over equal steps of time.

    Attributes:
        start: when the first step begins.
        step: the length of a step.
        values: the sum of each step.
    """

    start: datetime
    step: timedelta
    values: Sequence[float]


def series(
    points: Sequence[tuple[datetime, float]], start: datetime, end: datetime, step: timedelta, most: int
) -> Series:
    """Return the sums of points over at most `most` equal steps; steps without points are 0.

    Args:
        points: times and values.
        start: when the range begins.
        end: when it ends.
        step: the shortest step; several are taken together if there are too many.
        most: the most steps.
    """
    start = _floor(min([start, *(when for when, _ in points)]), step)
    count = max(1, math.ceil((end - start) / step))
    together = math.ceil(count / min(most, _MOST_COLUMNS))
    step *= together
    values = [0.0] * math.ceil(count / together)
    for when, value in points:
        place = int((when - start) / step)
        values[min(place, len(values) - 1)] += value
    return Series(start=start, step=step, values=values)


def chart_lines(
    title: str,
    points: Sequence[tuple[datetime, float]],
    start: datetime,
    end: datetime,
    step: timedelta,
    *,
    columns: int,
    label: Callable[[float], str],
    is_ascii: bool = False,
) -> list[str]:
    """Return a bar chart as lines.

    Args:
        title: what the bars are, before "per hour".
        points: times and values; steps without a value are 0.
        start: when the chart begins.
        end: when it ends.
        step: the time between two points.
        columns: the width to fit, in columns of the terminal.
        label: how values are written.
        is_ascii: whether the output cannot show block characters.
    """
    margin = 0
    while True:  # steps taken together have higher sums, whose labels may be longer
        shown = series(points, start, end, step, max(1, columns - margin))
        highest = max(shown.values)
        needed = len(label(highest)) + 2
        if needed <= margin:
            break
        margin = needed
    bar = max(1, min(_WIDEST_BAR, (columns - margin) // len(shown.values)))
    bars = _ASCII_BARS if is_ascii else _BARS
    lines = [f"{title} per {_words(shown.step)}"]
    for row in range(_HEIGHT - 1, -1, -1):
        text = label(highest) if row == _HEIGHT - 1 else ("0" if row == 0 else "")
        line = "".join(_bar(value, highest, row, bars) * bar for value in shown.values)
        lines.append(f"{text:>{margin - 2}} {'|' if is_ascii else '│'}{line}".rstrip())
    ends = shown.start + shown.step * len(shown.values)
    room = bar * len(shown.values)
    left, right = _time(shown.start), _time(ends)
    between = room - len(left) - len(right)
    under = f"{left}{' ' * between}{right}" if between > 0 else f"{left} to {right}"
    lines.append(f"{'':{margin}}{under} UTC" if margin + len(under) + 4 <= columns else under)
    return lines


def _bar(value: float, highest: float, row: int, bars: str) -> str:
    """Return the character of a bar in a row of the chart; whatever is above 0 can be seen."""
    if value <= 0:
        return " "
    eighths = max(1, round(value / highest * _HEIGHT * 8))
    return bars[min(8, max(0, eighths - row * 8))]


def _floor(when: datetime, step: timedelta) -> datetime:
    day = when.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day + (when - day) // step * step


def _words(step: timedelta) -> str:
    for name, length in reversed(STEPS.items()):
        count, rest = divmod(step, length)
        if count and not rest:
            return name if count == 1 else f"{count} {name}s"
    return str(step)


def _time(when: datetime) -> str:
    return when.strftime("%m-%d %H:%M")
