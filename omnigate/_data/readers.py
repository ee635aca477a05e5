"""Readers of the formats of files: each yields the rows of one stream, lazily and in bounded memory."""

from __future__ import annotations

import codecs
import csv
import io
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from typing import Any, Final

import msgspec

from omnigate._data.opening import ENCODE, Opened
from omnigate._data.rows import InvalidRow, Origin, Row
from omnigate._runtime.extras import extra
from omnigate._wire.redaction import shown
from omnigate._wire.structs import decoder_for
from omnigate.exceptions import InvalidArgumentError

LINE_MAX: Final = 64 << 20
"""Bytes of the longest line that is read."""

_ARRAY_MAX: Final = 16 << 20
"""Bytes of the longest JSON array that is read as a whole, for want of a library that reads parts of it."""

BATCH_ROWS: Final = 1024


def read_rows(opened: Opened, columns: Sequence[str] | None = None) -> Iterator[Row | InvalidRow]:
    """Yield the rows of an open file.

    Args:
        opened: the file.
        columns: the only columns wanted, where reading fewer is cheaper.

    Raises:
        InvalidArgumentError: it cannot be read as what it is.
    """
    if opened.kind == "jsonl":
        return read_json_lines(opened)
    if opened.kind == "json":
        return read_json_array(opened)
    if opened.kind == "parquet":
        return read_parquet(opened, columns)
    return read_csv(opened)


def read_json_lines(opened: Opened) -> Iterator[Row | InvalidRow]:
    """Yield JSON objects, one per line. Skips empty lines, and a byte order mark at the start."""
    decode = decoder_for(dict[str, Any]).decode
    origin = Origin(opened.name, is_table=False, unit="line")
    readline = opened.stream.readline
    number, is_begun = 0, False
    while line := readline(LINE_MAX + 1):
        number += 1
        if len(line) > LINE_MAX:
            raise InvalidArgumentError(f"{origin.place(number)}, is longer than {LINE_MAX >> 20} MiB")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        try:
            fields = decode(line)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            line.decode()  # text that is not UTF-8 is an error of the file
            if not is_begun and opened.name.lower().endswith(".json"):
                what = "one JSON object, or damaged (it must be an array of objects, or one object per line)"
                raise InvalidArgumentError(f"requests: {opened.name!r} is {what}") from None
            is_begun = True
            yield _not_an_object(origin, number, error)
            continue
        is_begun = True
        yield Row(fields, origin, number)


def read_json_array(opened: Opened) -> Iterator[Row | InvalidRow]:
    """Yield the objects of a JSON array, one at a time where ijson is installed."""
    origin = Origin(opened.name, is_table=False)
    if opened.stream.peek(len(codecs.BOM_UTF8)).startswith(codecs.BOM_UTF8):
        opened.stream.read(len(codecs.BOM_UTF8))
    for number, fields in enumerate(_elements(opened), 1):
        if isinstance(fields, dict):
            yield Row(fields, origin, number)
        else:
            yield _not_an_object(origin, number, f"got {shown(fields)}")


def _elements(opened: Opened) -> Iterator[Any]:
    try:
        ijson: Any = import_module("ijson")
    except ImportError:
        text = opened.stream.read(_ARRAY_MAX + 1)
        if len(text) > _ARRAY_MAX:
            with extra("data", f"reading a JSON array of more than {_ARRAY_MAX >> 20} MiB"):
                raise
        try:
            yield from msgspec.json.decode(text, type=list[Any])
        except (msgspec.MsgspecError, RecursionError) as error:
            raise _not_json(opened, error) from None
        return
    try:
        yield from ijson.items(opened.stream, "item", use_float=True)
    except ijson.JSONError as error:
        if "utf" in str(error).lower():
            raise InvalidArgumentError(f"requests: {opened.name!r} is not UTF-8 ({ENCODE})") from None
        raise _not_json(opened, error) from None


def _not_json(opened: Opened, error: Exception) -> InvalidArgumentError:
    text = " ".join(str(error).split())
    return InvalidArgumentError(f"requests: {opened.name!r} is not a JSON array, or truncated: {text}")


def _not_an_object(origin: Origin, number: int, why: object) -> InvalidRow:
    return InvalidRow(InvalidArgumentError(f"{origin.place(number)}, is not a JSON object: {why}"))


def read_csv(opened: Opened) -> Iterator[Row | InvalidRow]:
    """Yield the rows below the header of a CSV or TSV file.

    A header without a comma and with semicolons or tabs says that these separate the fields, as Excel writes
    them in much of the world. Quotes are read strictly: one that is not closed would swallow the rows that
    follow.
    """
    origin = Origin(opened.name, is_table=True)
    delimiter = "\t" if opened.kind == "tsv" else _delimiter(opened.stream)
    text = io.TextIOWrapper(opened.stream, "utf-8-sig", newline="")
    try:
        lines = iter(partial(text.readline, LINE_MAX), "")
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        number = 0
        try:
            header = next(reader, list[str]())
            while not header and (found := next(reader, None)) is not None:
                header = found  # below empty lines
            check_columns(header, origin)
            count = len(header)
            for values in reader:
                if len(values) == count:
                    number += 1
                    yield Row(dict(zip(header, values, strict=True)), origin, number)
                elif values:
                    number += 1
                    problem = f"has {len(values)} fields, the header has {count}"
                    yield InvalidRow(
                        InvalidArgumentError(f"{origin.place(number)} (line {reader.line_num}): {problem}")
                    )
        except csv.Error as error:
            hint = " (csv.field_size_limit(n) allows longer ones)" if "field limit" in str(error) else ""
            place = f"{opened.name}, line {reader.line_num}"
            raise InvalidArgumentError(f"{place}, cannot be read as CSV: {error}{hint}") from None
    finally:
        text.detach()  # else it would close the file


def _delimiter(stream: io.BufferedReader) -> str:
    line = stream.peek(1).removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")[0]
    if b"," in line:
        return ","
    return ";" if b";" in line else "\t" if b"\t" in line else ","


def check_columns(names: Sequence[str], origin: Origin) -> None:
    """Check that no two columns have the same name, since a row could have only one of them.

    Raises:
        InvalidArgumentError: two have.
    """
    repeated = next((name for name, count in Counter(names).items() if name and count > 1), None)
    if repeated is not None:
        what = repr(origin.name) if origin.name else "the table"
        raise InvalidArgumentError(f"requests: {what} has more than one column {repeated!r}")


def read_parquet(opened: Opened, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a Parquet file, read in batches."""
    origin = Origin(opened.name, is_table=True)
    with ExitStack() as stack:
        file = _parquet(opened, stack)
        names: list[str] = file.schema_arrow.names
        check_columns(names, origin)
        wanted = [name for name in columns or () if name in names] or None  # rows without columns are none
        batches = file.iter_batches(batch_size=BATCH_ROWS, columns=wanted, use_threads=False)
        yield from rows_of_batches(batches, origin)


def count_parquet(opened: Opened) -> int:
    """Return how many rows a Parquet file has, by its footer."""
    with ExitStack() as stack:
        count: int = _parquet(opened, stack).metadata.num_rows
        return count


def _parquet(opened: Opened, stack: ExitStack) -> Any:
    with extra("data", "reading Parquet files"):
        parquet: Any = import_module("pyarrow.parquet")
    stream: Any = opened.stream
    if not isinstance(stream.raw, io.FileIO) or not stream.seekable():  # compressed, or a pipe
        unpacked = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
        shutil.copyfileobj(stream, unpacked)
        unpacked.seek(0)
        stream = unpacked
    # Neither whole column chunks nor the pages of all columns are held in memory.
    return parquet.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)


def rows_of_batches(batches: Iterator[Any], origin: Origin) -> Iterator[Row]:
    """Yield the rows of Arrow's record batches."""
    number = 0
    for batch in batches:
        names: list[str] = batch.schema.names
        if not number:
            check_columns(names, origin)
        for start in range(0, batch.num_rows, BATCH_ROWS):
            part = batch.slice(start, BATCH_ROWS)
            columns = [column.to_pylist() for column in part.columns]
            for values in zip(*columns, strict=True):
                number += 1
                yield Row(dict(zip(names, values, strict=True)), origin, number)
