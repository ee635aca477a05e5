"""Frames and tables in memory, known by what they can do: none of their libraries is imported here.

polars and pandas frames are read in slices, Arrow's tables and readers in batches, Hugging Face datasets in
batches of columns. Any other table says itself how to read it, by the Arrow PyCapsule interface or the
dataframe interchange protocol, which needs pyarrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, Final, cast

from omnigate._data.readers import BATCH_ROWS, check_columns, rows_of_batches
from omnigate._data.rows import Origin, Row
from omnigate._runtime.extras import extra

ORIGIN: Final = Origin("", is_table=True)


class Table:
    """The rows of a frame or table.

    Args:
        given: what `is_table` accepts.

    Attributes:
        is_repeatable: whether it can be read more than once.
    """

    def __init__(self, given: Any) -> None:
        self._given = given
        self._read: Callable[[Any], Iterator[Row]] = _reader_of(given) or _read_foreign
        self.is_repeatable: bool = not _is_stream(given)

    def rows(self) -> Iterator[Row]:
        """Yield the rows."""
        return self._read(self._given)

    def count(self) -> int | None:
        """Return how many rows there are, if that is known."""
        count = getattr(self._given, "num_rows", None)
        if isinstance(count, int):
            return count
        return len(self._given) if hasattr(type(cast("object", self._given)), "__len__") else None


def is_table(given: Any) -> bool:
    """Return whether something is a table that can be read, and not a column or an array."""
    kind = type(cast("object", given))
    if _reader_of(given) is not None:
        return True
    has_columns = hasattr(kind, "columns") or hasattr(kind, "column_names")
    return hasattr(kind, "__dataframe__") or (hasattr(kind, "__arrow_c_stream__") and has_columns)


def _reader_of(given: Any) -> Callable[[Any], Iterator[Row]] | None:
    kind = type(cast("object", given))
    if hasattr(kind, "iter_slices") and hasattr(kind, "to_dicts"):
        return _read_polars
    if hasattr(kind, "iloc") and hasattr(kind, "itertuples"):
        return _read_pandas
    if hasattr(kind, "num_rows") and hasattr(kind, "to_pylist") and hasattr(kind, "schema"):
        return _read_arrow
    if hasattr(kind, "read_next_batch"):
        return _read_batches
    if hasattr(kind, "iter_batches") and hasattr(kind, "schema_arrow"):
        return _read_arrow
    if hasattr(kind, "to_batches") and (hasattr(kind, "schema") or hasattr(kind, "projected_schema")):
        return _read_arrow
    if hasattr(kind, "iter") and hasattr(kind, "column_names") and hasattr(kind, "features"):
        return _read_dataset
    return None


def _is_stream(given: Any) -> bool:
    """Return whether reading a table uses it up."""
    kind = type(cast("object", given))
    is_dataset = hasattr(kind, "features") and not hasattr(kind, "__len__")  # an iterable one
    return hasattr(kind, "read_next_batch") or is_dataset


def _read_polars(frame: Any) -> Iterator[Row]:
    number = 0
    for part in frame.iter_slices(BATCH_ROWS):
        for fields in part.to_dicts():
            number += 1
            yield Row(fields, ORIGIN, number)


def _read_pandas(frame: Any) -> Iterator[Row]:
    """Yield the rows of a pandas frame; NaN, NaT and NA become None."""
    names = [str(name) for name in frame.columns]
    check_columns(names, ORIGIN)
    number = 0
    for start in range(0, len(frame), BATCH_ROWS):
        part = frame.iloc[start : start + BATCH_ROWS]
        part = part.astype(object).where(part.notna(), None)
        for values in part.itertuples(index=False, name=None):
            number += 1
            yield Row(dict(zip(names, values, strict=True)), ORIGIN, number)


def _read_arrow(table: Any) -> Iterator[Row]:
    if hasattr(table, "schema_arrow"):  # a Parquet file of pyarrow
        return rows_of_batches(table.iter_batches(batch_size=BATCH_ROWS), ORIGIN)
    if hasattr(table, "to_batches"):  # a table, a data set, a scanner
        return rows_of_batches(iter(table.to_batches()), ORIGIN)
    return rows_of_batches(iter([table]), ORIGIN)  # a record batch


def _read_batches(reader: Any) -> Iterator[Row]:
    return rows_of_batches(iter(reader), ORIGIN)


def _read_dataset(dataset: Any) -> Iterator[Row]:
    number = 0
    for columns in dataset.iter(batch_size=BATCH_ROWS):
        names = list(columns)
        for values in zip(*columns.values(), strict=True):
            number += 1
            yield Row(dict(zip(names, values, strict=True)), ORIGIN, number)


def _read_foreign(table: Any) -> Iterator[Row]:
    with extra("data", f"reading a {type(table).__name__}"):
        pyarrow: Any = import_module("pyarrow")
        interchange: Any = import_module("pyarrow.interchange")
    if hasattr(table, "__arrow_c_stream__"):
        return _read_batches(pyarrow.RecordBatchReader.from_stream(table))
    return _read_arrow(interchange.from_dataframe(table))
