"""Every format, compressed or not, by path or open, gives the same rows; damage is one clear error."""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omnigate import InvalidArgumentError
from omnigate._data import readers
from omnigate._data.rows import InvalidRow, Row
from omnigate._data.source import data_source, is_data

ROWS = [
    {"id": "a", "text": 'Grüße, "quoted"\nover two lines'},
    {"id": "b", "text": ""},
    {"id": "c", "text": "x" * 1_000},
]


def zst(content: bytes) -> bytes:
    zstd = pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    return bytes(zstd.compress(content))


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zst,
}


def delimited(delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ROWS[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def parquet() -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    return file.getvalue()


CONTENTS: dict[str, Callable[[], bytes]] = {
    "rows.jsonl": lambda: "\n\n".join(map(json.dumps, ROWS)).encode(),
    "rows.ndjson": lambda: "\r\n".join(map(json.dumps, ROWS)).encode(),
    "rows.json": lambda: json.dumps(ROWS, indent=2).encode(),
    "rows.csv": lambda: delimited(","),
    "rows.tsv": lambda: delimited("\t"),
    "rows.parquet": parquet,
}


def rows_of(requests: Any) -> list[dict[str, Any]]:
    assert is_data(requests)
    rows = list(data_source(requests).rows())
    assert all(isinstance(row, Row) for row in rows)
    return [row.fields for row in rows if isinstance(row, Row)]


def written(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_of_each_format_is_read_with_each_compression(
    tmp_path: Path, name: str, compression: str
) -> None:
    path = written(tmp_path, name + compression, COMPRESSIONS[compression](CONTENTS[name]()))
    assert rows_of(path) == ROWS
    with path.open("rb") as file:
        assert rows_of(file) == ROWS
        assert not file.closed


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.json"])
def test_a_compressed_file_under_a_plain_name_is_decompressed(
    tmp_path: Path, name: str, compression: str
) -> None:
    assert rows_of(written(tmp_path, name, COMPRESSIONS[compression](CONTENTS[name]()))) == ROWS


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.tsv"])
def test_an_open_text_file_is_read_whatever_its_encoding(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, CONTENTS[name]().decode().encode("utf-16"))
    with path.open(encoding="utf-16", newline="") as file:
        source = data_source(file)
        assert [row.fields for row in source.rows() if isinstance(row, Row)] == ROWS
        assert [row.fields for row in source.rows() if isinstance(row, Row)] == ROWS, "read a second time"
        assert not file.closed


def test_an_open_file_is_read_from_where_it_stands(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", "a comment\nid,text\n1,x\n")
    with path.open(newline="") as file:
        file.readline()
        assert rows_of(file) == [{"id": "1", "text": "x"}]


class Pipe(io.RawIOBase):
    """An open file that can be read only once."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._content.readinto(buffer)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet"])
def test_a_pipe_is_read_by_what_is_in_it(name: str) -> None:
    source = data_source(Pipe(CONTENTS[name]()))
    assert not source.is_repeatable
    assert [row.fields for row in source.rows() if isinstance(row, Row)] == ROWS


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_is_read_with_the_delimiter_of_its_header(tmp_path: Path, delimiter: str, mark: bytes) -> None:
    assert rows_of(written(tmp_path, "rows.csv", mark + delimited(delimiter))) == ROWS


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_byte_order_mark_is_skipped(tmp_path: Path, name: str) -> None:
    assert rows_of(written(tmp_path, name, codecs.BOM_UTF8 + CONTENTS[name]())) == ROWS


def test_a_temporary_file_is_an_open_file_and_no_list_of_lines() -> None:
    with tempfile.NamedTemporaryFile("w+", suffix=".csv") as file:
        file.write("id,text\n1,x\n")
        file.seek(0)
        assert rows_of(file) == [{"id": "1", "text": "x"}]


def test_several_paths_and_patterns_are_read_in_order(tmp_path: Path) -> None:
    paths = [
        written(tmp_path, f"part-{number}.csv", f"id,text\n{number},x\n".encode()) for number in (2, 1, 3)
    ]
    assert [row["id"] for row in rows_of(paths)] == ["2", "1", "3"]
    assert [row["id"] for row in rows_of(tmp_path / "part-*.csv")] == ["1", "2", "3"]
    assert [row["id"] for row in rows_of([paths[2], tmp_path / "part-[12].csv"])] == ["3", "1", "2"]


def test_a_file_whose_name_looks_like_a_pattern_is_read_itself(tmp_path: Path) -> None:
    assert rows_of(written(tmp_path, "part[1].csv", "id\n7\n")) == [{"id": "7"}]


def test_json_lines_under_the_name_of_an_array_are_read_as_lines(tmp_path: Path) -> None:
    assert rows_of(written(tmp_path, "rows.json", CONTENTS["rows.jsonl"]())) == ROWS


def test_a_json_array_without_ijson_is_read_up_to_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ijson", None)
    path = written(tmp_path, "rows.json", CONTENTS["rows.json"]())
    assert rows_of(path) == ROWS
    monkeypatch.setattr(readers, "_ARRAY_MAX", 10)
    with pytest.raises(ImportError, match=r"needs ijson: pip install 'omnigate\[data\]'"):
        rows_of(path)


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        (
            "rows.parquet",
            "pyarrow.parquet",
            r"reading Parquet files needs pyarrow: pip install 'omnigate\[data\]'",
        ),
        ("rows.csv.zst", "backports.zstd", r"reading \.zst files needs backports: pip install"),
    ],
)
def test_a_missing_library_is_an_error_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, message: str
) -> None:
    if name.endswith(".zst") and sys.version_info >= (3, 14):
        pytest.skip("the standard library reads it")
    plain = name.removesuffix(".zst")
    content = zst(CONTENTS[plain]()) if name.endswith(".zst") else CONTENTS[plain]()
    path = written(tmp_path, name, content)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=message):
        rows_of(path)


LATIN = "id,text\n1,caf\xe9\n".encode("latin-1")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", LATIN, r"is not UTF-8 \(the byte 0xe9 .*\) \(convert it to UTF-8, or pass open\(path, enc"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', r"is not UTF-8 \(the byte 0xe9"),
        ("a.json", b'[{"text": "caf\xe9"}]', "is not UTF-8"),
        ("a.csv", "id,text\n1,x\n".encode("utf-16"), r"is UTF-16 text \(convert it to UTF-8, or pass open"),
        ("a.csv", "id,text\n1,x\n".encode("utf-16-le"), "is not text, or UTF-16 without its mark"),
        ("a.jsonl", '{"a": 1}'.encode("utf-32"), "is UTF-32 text"),
        ("a.csv", b"PK\x03\x04 rest", r"is a zip archive or a spreadsheet \(unpack it, or save its sheet"),
        ("a.csv", b"ARROW1\0\0 rest", r"is an Arrow file \(pass the table"),
        ("a.csv", b'{"prompt": "a"}\n', r"is named \.csv and has JSON in it \(name it \.jsonl\)"),
        ("a.jsonl", b"id,text\n1,a\n", r"is not JSON \(name a file \.csv or \.tsv if it is one\)"),
        ("a.txt", b"id,text\n1,a\n", r"is of no kind that is known: .* \(name it \.csv or \.tsv, if it is"),
        ("a.json", b'{\n "rows": []\n}', "is one JSON object, or damaged"),
        ("a.json", b'[{"a": 1}, {"a"', "is not a JSON array, or truncated"),
        ("a.parquet", b"id,text\n", "is not a Parquet file: damaged, or of another kind"),
        ("a.csv", b"a,b,a\n1,2,3\n", "has more than one column 'a'"),
        ("a.csv", b'id,text\n1,"not closed\n2,x\n', r"a\.csv, line 3, cannot be read as CSV"),
        ("a.csv", b"id,text\n1," + b"x" * 200_000, r"csv\.field_size_limit\(n\) allows longer ones"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        rows_of(written(tmp_path, name, content))


@pytest.mark.parametrize("compression", [name for name in COMPRESSIONS if name])
def test_a_truncated_compressed_file_is_one_clear_error(tmp_path: Path, compression: str) -> None:
    content = COMPRESSIONS[compression](json.dumps(ROWS * 500).encode())
    path = written(tmp_path, "rows.json" + compression, content[: len(content) // 2])
    with pytest.raises(InvalidArgumentError, match=rf"'.*rows\.json\{compression}' is damaged or truncated"):
        rows_of(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_parquet_file_is_one_clear_error(tmp_path: Path, share: float) -> None:
    content = parquet()
    path = written(tmp_path, "rows.parquet", content[: max(4, int(len(content) * share))])
    with pytest.raises(InvalidArgumentError, match=r"'.*rows\.parquet' is damaged or truncated"):
        rows_of(path)


def test_a_row_that_does_not_fit_the_header_is_invalid_and_the_others_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", 'id,text\n1,"two\nlines"\n2,a,b\n3\n\n4,x\n')
    rows = list(data_source(path).rows())
    assert [isinstance(row, Row) for row in rows] == [True, False, False, True]
    assert isinstance(rows[1], InvalidRow)
    assert str(rows[1].error) == "rows.csv, row 2 (line 4): has 3 fields, the header has 2"
    assert isinstance(rows[3], Row)
    assert rows[3].place == "rows.csv, row 4"


def test_an_element_that_is_no_object_is_invalid_and_the_others_are_read(tmp_path: Path) -> None:
    rows = list(data_source(written(tmp_path, "rows.json", '[{"a": 1}, 7, {"a": 2}]')).rows())
    assert isinstance(rows[1], InvalidRow)
    assert str(rows[1].error) == "rows.json, row 2, is not a JSON object: got 7"
    assert isinstance(rows[2], Row)


def test_a_line_without_an_end_is_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "LINE_MAX", 1 << 20)
    path = written(tmp_path, "rows.jsonl", b'{"a": "' + b"x" * (2 << 20))
    with pytest.raises(InvalidArgumentError, match=r"rows\.jsonl, line 1, is longer than 1 MiB"):
        rows_of(path)


def test_a_folder_is_refused_with_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"is a folder \(for the files in it, pass Path"):
        rows_of(tmp_path)


def test_a_pattern_without_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"no file matches '.*\*\.csv'"):
        data_source(tmp_path / "*.csv")


def test_a_list_of_paths_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"requests\[1\] must be a pathlib\.Path, as the first"):
        data_source([tmp_path, "a.csv"])


def test_the_digest_of_files_is_that_of_their_bytes(tmp_path: Path) -> None:
    one, two = written(tmp_path, "1.csv", "id\n1\n"), written(tmp_path, "2.csv", "id\n2\n")
    digest = data_source([one, two]).digest()
    assert digest is not None
    assert len(digest) == 32
    assert digest == data_source([one, two]).digest()
    with one.open("rb") as file:
        assert data_source(file).digest() == data_source(one).digest() != digest
    two.write_text("id\n3\n")
    assert data_source([one, two]).digest() != digest
