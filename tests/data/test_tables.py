"""Frames and tables are read as rows, with None for what is missing, and without importing their libraries."""

import datetime
import io
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from omnigate import InvalidArgumentError
from omnigate._data.rows import Row
from omnigate._data.source import data_source, is_data

COLUMNS: dict[str, list[Any]] = {
    "id": [1, 2, 3],
    "text": ["a", None, "c"],
    "score": [0.5, None, 1.0],
    "day": [datetime.date(2026, 1, 1), None, datetime.date(2026, 1, 3)],
}
ROWS = [dict(zip(COLUMNS, values, strict=True)) for values in zip(*COLUMNS.values(), strict=True)]


def pandas_frame() -> Any:
    return pytest.importorskip("pandas").DataFrame(COLUMNS)


def polars_frame() -> Any:
    return pytest.importorskip("polars").DataFrame(COLUMNS)


def arrow_table() -> Any:
    return pytest.importorskip("pyarrow").table(COLUMNS)


def arrow_batch() -> Any:
    return arrow_table().to_batches()[0]


def arrow_reader() -> Any:
    return arrow_table().to_reader()


def arrow_dataset() -> Any:
    table = arrow_table()
    from pyarrow import dataset

    return dataset.dataset(table)


def arrow_scanner() -> Any:
    return arrow_dataset().scanner()


def parquet_file() -> Any:
    table, file = arrow_table(), io.BytesIO()
    from pyarrow import parquet

    parquet.write_table(table, file)
    return parquet.ParquetFile(file)


class Dataset:
    """A Hugging Face dataset, as far as it is used: batches of columns, and rows."""

    features: Any = None
    column_names = tuple(COLUMNS)

    def __len__(self) -> int:
        return 3

    def iter(self, batch_size: int) -> Iterator[dict[str, list[Any]]]:
        yield {name: values[:2] for name, values in COLUMNS.items()}
        yield {name: values[2:] for name, values in COLUMNS.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        raise AssertionError("row by row is slow")


class Capsule:
    """A table of another library, known by the Arrow PyCapsule interface alone."""

    columns = tuple(COLUMNS)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return arrow_table().__arrow_c_stream__(requested_schema)


class Interchange:
    """A frame of another library, known by the dataframe interchange protocol alone."""

    def __dataframe__(self, nan_as_null: bool = False, allow_copy: bool = True) -> Any:
        return arrow_table().select(["id", "text", "score"]).__dataframe__(nan_as_null, allow_copy)


@pytest.mark.parametrize(
    "make",
    [
        pandas_frame,
        polars_frame,
        arrow_table,
        arrow_batch,
        arrow_reader,
        arrow_dataset,
        arrow_scanner,
        parquet_file,
        Dataset,
        Capsule,
        Interchange,
    ],
)
def test_a_frame_or_table_is_read_as_rows(make: Any) -> None:
    given = make()
    assert is_data(given)
    rows = [row for row in data_source(given).rows() if isinstance(row, Row)]
    wanted = [{name: row[name] for name in rows[0].fields} for row in ROWS]
    assert [row.fields for row in rows] == wanted
    assert len(wanted[0]) >= 3
    assert [row.place for row in rows] == ["row 1", "row 2", "row 3"]


def test_a_table_that_only_arrow_can_read_names_the_extra_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = r"reading a Capsule needs pyarrow: pip install 'omnigate\[data\]'"
    with pytest.raises(ImportError, match=message):
        list(data_source(Capsule()).rows())


@pytest.mark.parametrize("make", [pandas_frame, polars_frame, arrow_table])
def test_a_long_frame_is_read_in_slices_with_the_numbers_of_all_rows(make: Any) -> None:
    frame = make()
    kind = type(frame)
    many = range(5_000)
    if kind.__module__.startswith("pyarrow"):
        frame = pytest.importorskip("pyarrow").table({"n": list(many)})
    else:
        frame = kind({"n": list(many)})
    rows = [row for row in data_source(frame).rows() if isinstance(row, Row)]
    assert [row.fields["n"] for row in rows] == list(many)
    assert rows[-1].number == 5_000


def test_columns_of_pandas_that_are_no_text_get_their_text() -> None:
    frame = pytest.importorskip("pandas").DataFrame([["a", "b"]])
    assert [row.fields for row in data_source(frame).rows() if isinstance(row, Row)] == [{"0": "a", "1": "b"}]


@pytest.mark.parametrize("library", ["pandas", "pyarrow"])
def test_a_table_with_a_column_twice_is_refused(library: str) -> None:
    module = pytest.importorskip(library)
    if library == "pandas":
        table = module.DataFrame([["a", "b"]], columns=["text", "text"])
    else:
        table = module.Table.from_arrays([module.array(["a"])] * 2, names=["text", "text"])
    with pytest.raises(InvalidArgumentError, match="the table has more than one column 'text'"):
        list(data_source(table).rows())


@pytest.mark.parametrize("library", ["pandas", "polars", "numpy"])
def test_a_column_is_a_list_of_items_and_no_table(library: str) -> None:
    module = pytest.importorskip(library)
    column = module.array(["a", "b"]) if library == "numpy" else module.Series(["a", "b"])
    assert not is_data(column)
    assert [str(item) for item in column] == ["a", "b"]


def test_reading_a_table_imports_no_library_of_tables() -> None:
    script = (
        "import sys, omnigate\n"
        "from omnigate._data.source import is_data\n"
        "assert not is_data(['a']) and not is_data(iter(()))\n"
        "print(*{'pandas', 'polars', 'pyarrow', 'datasets', 'ijson', 'backports.zstd'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []
