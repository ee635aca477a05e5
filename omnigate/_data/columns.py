"""The columns of rows: their order, and one type for each, found while the rows pass by.

A column's type is that of its values: text, integers of 64 bits, numbers (integers among them are
converted), truth values, bytes, dates, times, or moments with or without a time zone. Lists and dicts are
nested. A column whose values differ otherwise is text: text stays as it is, and anything else becomes its
JSON.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, cast

from omnigate._data.cells import json_of, text_of
from omnigate.exceptions import InvalidArgumentError

Kind: TypeAlias = Literal[
    "text", "bool", "int", "float", "bytes", "moment", "utc", "date", "time", "duration", "nested", "mixed"
]

_COLUMNS_MAX: Final = 10_000

_KINDS: Final[Mapping[type, Kind]] = {
    str: "text",
    bool: "bool",
    float: "float",
    bytes: "bytes",
    datetime.date: "date",
    datetime.time: "time",
    datetime.timedelta: "duration",
    list: "nested",
    dict: "nested",
}

_INT64: Final = range(-(2**63), 2**63)


class Columns:
    """The columns of the rows seen so far.

    Args:
        last: columns that come last, in this order, with their kinds; every row has them.
    """

    def __init__(self, last: Mapping[str, Kind]) -> None:
        self._last = last
        self._first: dict[str, Kind | None] = {}  # None: nothing but missing values so far

    @property
    def names(self) -> Sequence[str]:
        """The names of the columns in order: as they first appeared, and then the last ones."""
        return [*self._first, *self._last]

    def see(self, row: Mapping[str, object]) -> None:
        """Record the columns of a row of plain values.

        Raises:
            InvalidArgumentError: there are too many columns to write as a table.
        """
        first, last = self._first, self._last
        for name, value in row.items():
            if name in last:
                continue
            known = first.get(name)
            if known is None and name not in first:
                if len(first) >= _COLUMNS_MAX:
                    raise InvalidArgumentError(
                        f"the rows have more than {_COLUMNS_MAX:,} different columns: write them as .jsonl"
                    )
                first[name] = None
            if value is None or known == "mixed":
                continue
            kind = _kind_of(value)
            if known is None:
                first[name] = kind
            elif known != kind:
                first[name] = "float" if {known, kind} == {"int", "float"} else "mixed"

    def kind(self, name: str) -> Kind:
        """Return what the values of a column are."""
        return self._last[name] if name in self._last else self._first[name] or "text"

    def cell(self, row: Mapping[str, Any], name: str) -> Any:
        """Return a row's value in a column, converted to the column's kind; nested ones stay as they are."""
        value = row.get(name)
        if value is None:
            return None
        kind = self.kind(name)
        if kind == "mixed":
            return text_of(value)
        return float(value) if kind == "float" else value


def _kind_of(value: object) -> Kind:
    if type(value) is int:
        return "int" if value in _INT64 else "mixed"
    if isinstance(value, datetime.datetime):
        return "moment" if value.tzinfo is None else "utc"
    return _KINDS.get(type(value), "mixed")


def flat(value: Any) -> Any:
    """Return a nested value as JSON; any other as it is."""
    return json_of(cast("object", value)) if isinstance(value, list | dict) else value
