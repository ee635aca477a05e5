"""A row of data, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from omnigate.exceptions import InvalidArgumentError


class Origin(NamedTuple):
    """The file or table that rows come from.

    Attributes:
        name: for messages: the file's name; "" for a table in memory.
        is_table: whether all rows have the same columns. Columns that a request has no use for are then
            data; in a JSON object they are a mistake.
        unit: what the numbers of its rows count: "row" or "line", from 1.
    """

    name: str
    is_table: bool
    unit: str = "row"

    def place(self, number: int) -> str:
        """Return the place of a row, for messages."""
        return f"{self.name}, {self.unit} {number}" if self.name else f"{self.unit} {number}"


class Row(NamedTuple):
    """One row: its fields by name, and its place."""

    fields: dict[str, Any]
    origin: Origin
    number: int

    @property
    def place(self) -> str:
        """Where the row is, for messages."""
        return self.origin.place(self.number)


class InvalidRow(NamedTuple):
    """A row that cannot be read; the others can."""

    error: InvalidArgumentError


class Again(dict[str, Any]):
    """A row, or the fields of a request, that is run again under the id it had.

    Attributes:
        id: the id, whatever the fields are.
    """

    def __init__(self, fields: Mapping[str, Any], id: str) -> None:
        super().__init__(fields)
        self.id = id


def names_of(names: Any, most: int = 10) -> str:
    """Return the names of fields for a message, at most so many of them."""
    listed = [repr(name) for name in names]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more if listed else "none"
