"""Tables and lists of fields as plain text, fitted to the terminal; in a pipe nothing is cut off."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from omnigate._runtime.terminals import is_terminal
from omnigate.cli._frame.terminal import emit, safe, styled, width

_GAP: Final = "  "

_SHORTEST: Final = 8
"""To how many columns a text may be cut."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading.
        is_number: whether to align it to the right.
        can_shrink: whether its cells may be cut off to make the table fit the terminal.
    """

    title: str
    is_number: bool = False
    can_shrink: bool = False


def emit_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to standard output; in a terminal that is too narrow, a block of fields for each row."""
    fits = width() if is_terminal(sys.stdout) else None
    for line in table_lines(columns, rows, fits):
        emit(line)


def emit_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Write fields to standard output, one on a line."""
    for line in _field_lines(fields, width() if is_terminal(sys.stdout) else None):
        emit(line)


def table_lines(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], fits: int | None = None
) -> list[str]:
    """Return a table as lines.

    Args:
        columns: the columns.
        rows: the cells of each row.
        fits: the width to fit, in columns of the terminal; None for any.
    """
    cells = [[safe(cell) for cell in row] for row in rows]
    widths = [
        max([cells_of(column.title), *(cells_of(row[place]) for row in cells)])
        for place, column in enumerate(columns)
    ]
    excess = 0 if fits is None else sum(widths) + len(_GAP) * (len(widths) - 1) - fits
    if excess > 0:
        excess = _shrink(columns, widths, excess)
    if excess > 0:
        return _blocks(columns, cells, fits)
    lines = [styled(_line(columns, [column.title for column in columns], widths), bold=True)]
    return lines + [_line(columns, row, widths) for row in cells]


def _shrink(columns: Sequence[Column], widths: list[int], excess: int) -> int:
    """Make columns narrower, the widest first, and return by how much the table is still too wide."""
    while excess > 0:
        places = [
            place for place, column in enumerate(columns) if column.can_shrink and widths[place] > _SHORTEST
        ]
        if not places:
            break
        widths[max(places, key=widths.__getitem__)] -= 1
        excess -= 1
    return excess


def _line(columns: Sequence[Column], row: Sequence[str], widths: Sequence[int]) -> str:
    padded: list[str] = []
    for column, cell, most in zip(columns, row, widths, strict=True):
        cell = _cut(cell, most)
        space = " " * (most - cells_of(cell))
        padded.append(space + cell if column.is_number else cell + space)
    return _GAP.join(padded).rstrip()


def _blocks(columns: Sequence[Column], rows: Sequence[Sequence[str]], fits: int | None) -> list[str]:
    lines: list[str] = []
    titles = [column.title for column in columns]
    for row in rows:
        if lines:
            lines.append("")
        lines += _field_lines(list(zip(titles, row, strict=True)), fits)
    return lines


def _field_lines(fields: Sequence[tuple[str, str]], fits: int | None) -> list[str]:
    most = max((cells_of(title) for title, _ in fields), default=0)
    lines: list[str] = []
    for title, text in fields:
        first, *rest = _wrapped(safe(text), None if fits is None else fits - most - len(_GAP))
        lines.append(f"{styled(title + ' ' * (most - cells_of(title)), bold=True)}{_GAP}{first}".rstrip())
        lines += [" " * (most + len(_GAP)) + line for line in rest]
    return lines


def _wrapped(text: str, fits: int | None) -> list[str]:
    """Return a text as lines of whole words; words that are too long are not cut off."""
    if fits is None or cells_of(text) <= fits:
        return [text]
    lines: list[str] = []
    for word in text.split(" "):
        if lines and cells_of(lines[-1]) + 1 + cells_of(word) <= fits:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def cells_of(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(_cells_of_character(character) for character in text)


def _cells_of_character(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _cut(text: str, most: int) -> str:
    """Return a text cut off to a number of columns."""
    if cells_of(text) <= most:
        return text
    kept, used = "", 0
    for character in text:
        used += _cells_of_character(character)
        if used > most - 1:
            break
        kept += character
    return kept + "…"
