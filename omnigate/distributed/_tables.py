"""Partitions as tables: their rows as items of a batch, and the results as further columns.

The input's own columns are kept as they are, types and pandas' index included. Each result column has one
type, whatever its values, since an engine wants the same columns of every partition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, Final, TypeVar, cast

from omnigate._batch.items import ArrowTable
from omnigate._batch.rows import PARSED, RESULT_COLUMNS, free_name
from omnigate._data.columns import Kind, flat
from omnigate._data.readers import check_columns
from omnigate._data.source import is_data
from omnigate._data.tables import ORIGIN, Table
from omnigate._data.writers import arrow_type
from omnigate._wire.checks import refusal

TableT = TypeVar("TableT", bound=ArrowTable)

_BE_ROWS: Final = "be an iterable of rows, a pyarrow.Table or a pandas.DataFrame"

_DTYPES: Final[Mapping[Kind, str]] = {"text": "string", "int": "Int64", "float": "float64"}


def is_pandas(rows: object) -> bool:
    """Return whether rows are a frame of pandas."""
    kind = type(rows)
    return hasattr(kind, "iloc") and hasattr(kind, "itertuples")


def is_arrow(rows: object) -> bool:
    """Return whether rows are a table of Arrow."""
    kind = type(rows)
    return hasattr(kind, "append_column") and hasattr(kind, "schema")


def names_of_columns(rows: object) -> list[str] | None:
    """Return the names of a table's columns; None if `rows` are no table."""
    if is_pandas(rows):
        return [str(name) for name in cast("Any", rows).columns]
    return list(cast("Any", rows).column_names) if is_arrow(rows) else None


def items_of(rows: Any) -> list[Any]:
    """Return the rows of a partition as items for a batch.

    Raises:
        InvalidArgumentError: it is none, or two of a table's columns have the same name.
    """
    names = names_of_columns(rows)
    if names is not None:
        check_columns(names, ORIGIN)
        return list(Table(rows).rows())
    given: object = rows
    if isinstance(given, Mapping):
        hint = "with Ray Data, pass batch_format='pyarrow'; for one row, write [row]"
        raise refusal("rows", cast("object", given), _BE_ROWS, is_type=True, hint=hint)
    if isinstance(given, str | bytes | bytearray) or is_data(given) or not isinstance(given, Iterable):
        raise refusal("rows", given, _BE_ROWS, is_type=True)
    return list(cast("Iterable[Any]", given))


def with_results(rows: Any, results: Sequence[Mapping[str, Any]], *, has_parsed: bool) -> Any:
    """Return a table with its results as further columns.

    Args:
        rows: a table.
        results: of each of its rows, with the columns of `RESULT_COLUMNS`.
        has_parsed: whether there is a column of the answers' values, as JSON text.
    """
    kinds: dict[str, Kind] = {PARSED: "text"} if has_parsed else {}
    kinds |= RESULT_COLUMNS
    cells = {name: [flat(result.get(name)) for result in results] for name in kinds}
    names = names_of_columns(rows) or []
    free = {name: free_name(name, names) for name in names}
    if is_pandas(rows):
        series: Any = import_module("pandas").Series
        columns = {
            name: series(cells[name], dtype=_DTYPES[kind], index=rows.index) for name, kind in kinds.items()
        }
        renamed = {name: other for name, other in free.items() if name != other}
        return (rows.rename(columns=renamed) if renamed else rows).assign(**columns)
    table: Any = rows.rename_columns(list(free.values()))
    pyarrow: Any = import_module("pyarrow")
    for name, kind in kinds.items():
        table = table.append_column(name, pyarrow.array(cells[name], arrow_type(kind)))
    return table
