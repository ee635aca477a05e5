"""Rows as a frame of pandas or polars, or as an Arrow table. The libraries are imported when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Final, Literal, TypeAlias, get_args

from omnigate._data.columns import Columns, Kind, flat
from omnigate._data.writers import arrow_type
from omnigate._runtime.extras import MissingExtraError
from omnigate._wire.checks import one_of, refusal

FrameKind: TypeAlias = Literal["pandas", "polars", "arrow"]

_PACKAGES: Final[Mapping[FrameKind, tuple[str, str]]] = {
    "pandas": ("pandas", "pandas"),
    "polars": ("polars", "polars"),
    "arrow": ("pyarrow", "'omnigate[data]'"),
}


def load_library(kind: FrameKind) -> None:
    """Import the library for a kind of frame.

    Raises:
        InvalidArgumentError: there is no such kind.
        MissingExtraError: it is not installed.
    """
    if kind not in get_args(FrameKind):
        raise refusal("kind", kind, f"be {one_of(get_args(FrameKind))}")
    package, install = _PACKAGES[kind]
    try:
        import_module(package)
    except ImportError as error:
        if error.name != package:
            raise
        raise MissingExtraError(
            f"to_frame(kind={kind!r}) needs {package}: pip install {install}", name=package
        ) from None


def make_frame(kind: FrameKind, rows: Sequence[Mapping[str, Any]], columns: Columns) -> Any:
    """Return rows of plain values as a frame.

    Args:
        kind: of frame.
        rows: in order.
        columns: that have seen all of them.
    """
    make: Callable[[str, list[Any], Kind], Any] = {"pandas": _pandas, "polars": _polars, "arrow": _arrow}[
        kind
    ]
    made = {
        name: make(name, [columns.cell(row, name) for row in rows], columns.kind(name))
        for name in columns.names
    }
    if kind == "pandas":
        return import_module("pandas").DataFrame(made)
    if kind == "polars":
        return import_module("polars").DataFrame(list(made.values()))
    return import_module("pyarrow").Table.from_arrays(list(made.values()), names=list(made))


def _pandas(name: str, cells: list[Any], kind: Kind) -> Any:
    pandas = import_module("pandas")
    dtypes: dict[Kind, Any] = {"float": "float64", "nested": "object", "bytes": "object"}
    has_missing = any(cell is None for cell in cells)
    dtypes["int"] = "Int64" if has_missing else "int64"
    dtypes["bool"] = "boolean" if has_missing else "bool"
    return pandas.Series(cells, name=name, dtype=dtypes.get(kind))


def _polars(name: str, cells: list[Any], kind: Kind) -> Any:
    polars = import_module("polars")
    types: dict[Kind, Any] = {
        "bool": polars.Boolean,
        "int": polars.Int64,
        "float": polars.Float64,
        "bytes": polars.Binary,
        "moment": polars.Datetime("us"),
        "utc": polars.Datetime("us", "UTC"),
        "date": polars.Date,
        "time": polars.Time,
        "duration": polars.Duration("us"),
    }
    if kind == "nested":
        try:
            return polars.Series(name, cells)
        except (TypeError, ValueError, polars.exceptions.PolarsError):
            cells = [flat(cell) for cell in cells]  # their shapes differ: as JSON text
    return polars.Series(name, cells, dtype=types.get(kind, polars.String))


def _arrow(name: str, cells: list[Any], kind: Kind) -> Any:
    pyarrow = import_module("pyarrow")
    if kind == "nested":
        try:
            return pyarrow.array(cells)
        except (pyarrow.ArrowException, OverflowError):
            cells = [flat(cell) for cell in cells]  # their shapes differ: as JSON text
    return pyarrow.array(cells, arrow_type(kind))
