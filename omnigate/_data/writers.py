"""Writers of rows: CSV, TSV, JSON lines and Parquet, compressed or not, by the suffix of the file's name."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any, BinaryIO, Final, Literal, TypeAlias, cast

import msgspec

from omnigate._data.cells import text_of
from omnigate._data.columns import Columns, Kind, flat
from omnigate._runtime.extras import extra
from omnigate._wire.checks import refusal

Layout: TypeAlias = Literal["csv", "tsv", "jsonl", "parquet"]

_LAYOUTS: Final[Mapping[str, Layout]] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}

_COMPRESSED: Final = (".gz", ".bz2", ".xz", ".zst")

_MUST: Final = (
    "end in .csv, .tsv, .jsonl or .ndjson, each of which may be followed by .gz, .bz2, .xz or .zst; or in "
    ".parquet"
)

_GROUP_ROWS: Final = 10_000

_GROUP_TEXT: Final = 1 << 23

_FORMULAS: Final = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class Format:
    """How rows are written to a file.

    Attributes:
        layout: how they are laid out.
        suffix: what the file's name ends in, for both the layout and the compression.
        compression: the suffix of the compression, or "".
    """

    layout: Layout
    suffix: str
    compression: str

    @classmethod
    def of(cls, path: str) -> Format:
        """Return the format that a file's name asks for, once it is known that it can be written.

        Raises:
            InvalidArgumentError: there is no such format.
            MissingExtraError: a library for it is missing.
        """
        name = os.path.basename(path).lower()
        stem, compression = os.path.splitext(name)
        if compression not in _COMPRESSED:
            stem, compression = name, ""
        suffix = os.path.splitext(stem)[1]
        layout = _LAYOUTS.get(suffix)
        if layout is None or (layout == "parquet" and compression):
            raise refusal("path", path, _MUST)
        if layout == "parquet":
            with extra("data", "writing Parquet"):
                import_module("pyarrow.parquet")
        if compression == ".zst":
            _zstd()
        return cls(layout, name[len(name) - len(suffix) - len(compression) :], compression)

    def write(
        self, file: BinaryIO, rows: Iterable[dict[str, Any]], columns: Columns, *, spreadsheet_safe: bool
    ) -> None:
        """Write rows to an open file.

        Args:
            file: open for writing.
            rows: of plain values.
            columns: that have seen all of them.
            spreadsheet_safe: whether text in CSV and TSV that a spreadsheet would run gets a quote before it.
        """
        with _compressor(self.compression, file) as sink:
            if self.layout == "jsonl":
                _write_json_lines(sink, rows)
            elif self.layout == "parquet":
                _write_parquet(sink, rows, columns)
            else:
                _write_csv(sink, rows, columns, "\t" if self.layout == "tsv" else ",", spreadsheet_safe)


def _compressor(compression: str, file: BinaryIO) -> AbstractContextManager[BinaryIO]:
    """Return a file that compresses what is written to it; closing it leaves `file` open."""
    made: Any
    if compression == ".gz":
        import gzip

        made = gzip.GzipFile(filename="", mode="wb", fileobj=file)
    elif compression == ".bz2":
        import bz2

        made = bz2.BZ2File(file, "wb")
    elif compression == ".xz":
        import lzma

        made = lzma.LZMAFile(file, "wb")  # noqa: SIM115 - the caller closes it
    elif compression == ".zst":
        made = _zstd().ZstdFile(file, "wb")
    else:
        return nullcontext(file)
    return cast("AbstractContextManager[BinaryIO]", made)


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        return import_module("compression.zstd")
    with extra("data", "writing .zst files"):
        return import_module("backports.zstd")


def _write_json_lines(sink: BinaryIO, rows: Iterable[dict[str, Any]]) -> None:
    encode = msgspec.json.Encoder().encode
    for row in rows:
        sink.write(encode(row) + b"\n")


def _write_csv(
    sink: BinaryIO, rows: Iterable[dict[str, Any]], columns: Columns, delimiter: str, is_safe: bool
) -> None:
    names = columns.names
    text = io.TextIOWrapper(sink, encoding="utf-8", newline="", write_through=False)
    try:
        writer = csv.writer(text, delimiter=delimiter)  # ends lines as RFC 4180 says, and so quotes \r
        written: Callable[[Any], str] = _safe_text if is_safe else _text
        writer.writerow([written(name) for name in names])
        for row in rows:
            writer.writerow([written(row.get(name)) for name in names])
        text.flush()
    finally:
        text.detach()


def _text(value: Any) -> str:
    return "" if value is None else text_of(value)


def _safe_text(value: Any) -> str:
    """Return a cell's text, with a quote before what a spreadsheet would take for a formula."""
    text = _text(value)
    return f"'{text}" if isinstance(value, str) and text.startswith(_FORMULAS) else text


def _write_parquet(sink: BinaryIO, rows: Iterable[dict[str, Any]], columns: Columns) -> None:
    pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    schema = pyarrow.schema([(name, arrow_type(columns.kind(name))) for name in columns.names])
    with parquet.ParquetWriter(sink, schema, compression="zstd") as writer:
        for group in _groups(rows):
            arrays = [
                pyarrow.array([flat(columns.cell(row, name)) for row in group], schema.field(name).type)
                for name in columns.names
            ]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows in groups, each bounded in rows and text."""
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += sum(len(value) for value in row.values() if isinstance(value, str | bytes))
        if len(group) >= _GROUP_ROWS or size >= _GROUP_TEXT:
            yield group
            group, size = [], 0
    if group:
        yield group


def arrow_type(kind: Kind) -> Any:
    """Return Arrow's type for the values of a column; nested ones as JSON text."""
    pyarrow = import_module("pyarrow")
    types: dict[Kind, Any] = {
        "bool": pyarrow.bool_(),
        "int": pyarrow.int64(),
        "float": pyarrow.float64(),
        "bytes": pyarrow.binary(),
        "moment": pyarrow.timestamp("us"),
        "utc": pyarrow.timestamp("us", tz="UTC"),
        "date": pyarrow.date32(),
        "time": pyarrow.time64("us"),
        "duration": pyarrow.duration("us"),
    }
    return types.get(kind, pyarrow.string())
