"""Outcomes as rows: in a file of each format, in a frame of each library, in the order of the input."""

import csv
import datetime
import decimal
import errno
import io
import json
import os
import pickle
import stat
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest

import omnigate
from omnigate import (
    AsyncClient,
    BudgetExceededError,
    Client,
    GatewayError,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    NotStartedError,
    Outcome,
    read_journal,
    write_outcomes,
)
from omnigate._batch import replacing
from omnigate._batch.rows import RESULT_COLUMNS
from omnigate._data.cells import plain_cell
from omnigate._data.columns import Columns
from omnigate._data.ordering import Ordering
from omnigate.models import ChatRequest

from ..support.provider import Provider
from .journal import failure, success, text

MODEL = "gpt-4o"
RESULTS = list(RESULT_COLUMNS)
SUFFIXES = [
    ".csv",
    ".tsv",
    ".jsonl",
    ".ndjson",
    ".csv.gz",
    ".csv.bz2",
    ".tsv.xz",
    ".jsonl.zst",
    ".parquet",
    ".pq",
]


def with_item(index: int, item: dict[str, Any] | None, content: str = "hi", **fields: Any) -> Outcome:
    made = success(str(index), index, content, **fields)
    return Outcome(
        index=index,
        id=made.id,
        request=made.request,
        response=made.response,
        attempts=2,
        elapsed=1.5,
        item=item,
    )


def rows_in(path: Path) -> list[dict[str, Any]]:
    """Read a file back, as another program would."""
    name, data = path.name, path.read_bytes()
    if name.endswith((".parquet", ".pq")):
        return list(pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist())
    if name.endswith(".gz"):
        import gzip

        data = gzip.decompress(data)
    elif name.endswith(".bz2"):
        import bz2

        data = bz2.decompress(data)
    elif name.endswith(".xz"):
        import lzma

        data = lzma.decompress(data)
    elif name.endswith(".zst"):
        data = pytest.importorskip(
            "backports.zstd" if sys.version_info < (3, 14) else "compression.zstd"
        ).decompress(data)
    if "json" in name:
        return [json.loads(line) for line in data.splitlines()]
    delimiter = "\t" if ".tsv" in name else ","
    return list(csv.DictReader(io.StringIO(data.decode(), newline=""), delimiter=delimiter))


class TestFormats:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_outcomes_are_written_in_the_order_of_the_input(self, suffix: str, tmp_path: Path) -> None:
        if suffix.endswith(("zst", "parquet", "pq")):
            pytest.importorskip("pyarrow")
        path = tmp_path / f"out{suffix}"
        outcomes = [with_item(n, {"name": f'row "{n}",\nü', "n": n}, cost_usd=8e-05) for n in (2, 0, 1)]
        assert write_outcomes(outcomes, path) == 3
        rows = rows_in(path)
        assert list(rows[0]) == ["name", "n", *RESULTS]
        assert [row["name"] for row in rows] == [f'row "{n}",\nü' for n in range(3)]
        assert [int(row["n"]) for row in rows] == [0, 1, 2]
        first = rows[0]
        assert (first["content"], first["error"] or None, int(first["total_tokens"])) == ("hi", None, 3)
        assert (float(first["cost_usd"]), int(first["attempts"]), first["request_id"]) == (8e-05, 2, "req-1")

    def test_csv_shows_money_without_an_exponent_and_missing_values_as_empty_cells(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "out.csv"
        write_outcomes([with_item(0, {"a": None, "b": True}, cost_usd=8e-05)], path)
        assert path.read_text().splitlines()[1] == ",true,hi,,1,2,3,0.00008,0,2,req-1"

    def test_a_failed_outcome_has_its_error_and_no_answer(self, tmp_path: Path) -> None:
        path = tmp_path / "out.jsonl"
        write_outcomes(
            [failure("x", 0, omnigate.AuthError("no key", status_code=401, request_id="req-7"))], path
        )
        (row,) = rows_in(path)
        assert row["error"] == "AuthError: [401] no key"
        assert (row["content"], row["cost_usd"], row["attempts"], row["request_id"]) == (
            None,
            None,
            3,
            "req-7",
        )

    def test_items_that_were_no_rows_have_their_id_and_prompt_or_messages(self, tmp_path: Path) -> None:
        path = tmp_path / "out.csv"
        messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
        long = success("b", 1)
        request = ChatRequest(model="m", messages=messages)
        outcomes = [
            success("a", 0),
            Outcome(index=1, id="b", request=request, response=long.response),
            Outcome(index=2, id="c", request=None, error=InvalidArgumentError("no")),
        ]
        write_outcomes(outcomes, path)
        rows = rows_in(path)
        assert [row["id"] for row in rows] == ["a", "b", "c"]
        assert [row["prompt"] for row in rows] == ["hello", "", ""]
        assert json.loads(rows[1]["messages"]) == messages

    def test_columns_of_the_input_with_the_name_of_a_results_get_a_prefix(self, tmp_path: Path) -> None:
        path = tmp_path / "out.csv"
        item = {"content": "mine", "input_content": "theirs", "error": "old", "x": 1}
        write_outcomes([with_item(0, item)], path)
        (row,) = rows_in(path)
        assert list(row)[:4] == ["input_input_content", "input_content", "input_error", "x"]
        assert (row["content"], row["input_input_content"], row["input_content"]) == ("hi", "mine", "theirs")

    def test_rows_with_different_columns_share_one_table(self, tmp_path: Path) -> None:
        for suffix in (".csv", ".parquet"):
            path = tmp_path / f"out{suffix}"
            write_outcomes([with_item(1, {"b": 2, "c": "x"}), with_item(0, {"a": 1})], path)
            rows = rows_in(path)
            assert set(rows[0]) == {"a", "b", "c", *RESULTS}
            assert [row["c"] or None for row in rows] == [None, "x"]

    def test_parquet_columns_have_the_types_of_their_values(self, tmp_path: Path) -> None:
        pyarrow = pytest.importorskip("pyarrow")
        now = datetime.datetime(2026, 1, 2, 3, 4, 5)
        item = {
            "text": "t",
            "int": 1,
            "float": 1.5,
            "both": 1,
            "bool": True,
            "bytes": b"\xff",
            "moment": now,
            "utc": now.replace(tzinfo=datetime.UTC),
            "date": now.date(),
            "time": now.time(),
            "duration": datetime.timedelta(seconds=5),
            "list": [1, "a"],
            "dict": {"k": None},
            "mixed": 1,
            "huge": 2**70,
            "decimal": decimal.Decimal("1.10"),
            "none": None,
        }
        other = {**item, "both": 2.5, "mixed": "text", "int": None}
        path = tmp_path / "out.parquet"
        write_outcomes([with_item(0, item), with_item(1, other)], path)
        table = pytest.importorskip("pyarrow.parquet").read_table(path)
        types = {name: str(table.schema.field(name).type) for name in item}
        assert types == {
            "text": "string",
            "int": "int64",
            "float": "double",
            "both": "double",
            "bool": "bool",
            "bytes": "binary",
            "moment": "timestamp[us]",
            "utc": "timestamp[us, tz=UTC]",
            "date": "date32[day]",
            "time": "time64[us]",
            "duration": "duration[us]",
            "list": "string",
            "dict": "string",
            "mixed": "string",
            "huge": "string",
            "decimal": "string",
            "none": "string",
        }
        first, second = table.to_pylist()
        assert (first["list"], first["dict"], first["mixed"], second["mixed"]) == (
            '[1,"a"]',
            '{"k":null}',
            "1",
            "text",
        )
        assert (first["huge"], first["decimal"], first["both"], second["int"]) == (
            str(2**70),
            "1.10",
            1.0,
            None,
        )
        assert (first["bytes"], first["moment"], first["date"]) == (b"\xff", now, now.date())
        assert table.schema.field("cost_usd").type == pyarrow.float64()

    def test_parquet_without_rows_has_the_columns_of_the_results(self, tmp_path: Path) -> None:
        pytest.importorskip("pyarrow")
        path = tmp_path / "out.parquet"
        assert write_outcomes([], path) == 0
        table = pytest.importorskip("pyarrow.parquet").read_table(path)
        assert (table.num_rows, table.column_names) == (0, RESULTS)

    def test_values_of_other_libraries_become_plain_ones(self, tmp_path: Path) -> None:
        numpy = pytest.importorskip("numpy")
        pandas = pytest.importorskip("pandas")

        class Odd:
            def __str__(self) -> str:
                return "odd"

        nested: list[Any] = []
        nested.append(nested)
        assert plain_cell(numpy.int64(3)) == 3
        assert plain_cell(numpy.array([1, 2])) == [1, 2]
        assert plain_cell(numpy.datetime64("2026-01-02")) == datetime.date(2026, 1, 2)
        assert plain_cell(pandas.Timestamp("2026-01-02")) == datetime.datetime(2026, 1, 2)
        assert plain_cell(pandas.NaT) is None
        assert plain_cell(pandas.NA) is None
        assert plain_cell(Odd()) == "odd"
        assert plain_cell({1: (2, {3})}) == {"1": [2, [3]]}
        assert plain_cell("\ud800") == "\\ud800"
        assert plain_cell(bytearray(b"x")) == b"x"
        assert pickle.dumps(plain_cell(nested))  # nested within itself: cut off
        item = {"id": uuid.UUID(int=5), "odd": Odd(), "lone": "\ud800", "nan": float("nan"), "b": b"\xff"}
        for suffix in (".csv", ".jsonl", ".parquet"):
            path = tmp_path / f"out{suffix}"
            write_outcomes([with_item(0, item)], path)
            (row,) = rows_in(path)
            assert (row["id"], row["odd"], row["lone"]) == (str(uuid.UUID(int=5)), "odd", "\\ud800")

    def test_formulas_are_quoted_for_spreadsheets_only_when_asked_for(self, tmp_path: Path) -> None:
        formulas = ["=1+1", "+1", "-1", "@x", "\tx", "\rx"]
        outcomes = [with_item(n, {"=name": text, "n": -1}, "- a list") for n, text in enumerate(formulas)]
        path = tmp_path / "out.csv"
        write_outcomes(outcomes, path)
        assert [row["=name"] for row in rows_in(path)] == formulas
        write_outcomes(outcomes, path, spreadsheet_safe=True)
        rows = rows_in(path)
        assert [row["'=name"] for row in rows] == [f"'{text}" for text in formulas]
        assert [(row["n"], row["content"]) for row in rows] == [("-1", "'- a list")] * 6

    def test_a_table_of_too_many_columns_is_refused(self) -> None:
        columns = Columns({})
        with pytest.raises(
            InvalidArgumentError, match=r"more than 10,000 different columns: write them as .jsonl"
        ):
            for n in range(10_001):
                columns.see({f"c{n}": 1})


WRITES = """
import resource, sys
from omnigate import Outcome, write_outcomes
from tests.batch.journal import success

made = success(text="x" * 500)

def outcomes(count):
    for n in range(count):
        index = n ^ 511  # nearly in order, as the outcomes of a batch are
        item = {"text": "y" * 200 + str(index), "n": index}
        yield Outcome(index=index, id=str(index), request=made.request, response=made.response, item=item)

assert write_outcomes(outcomes(int(sys.argv[1])), sys.argv[2]) == int(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.proof
@pytest.mark.skipif(sys.platform != "linux", reason="measures in Linux's units")
@pytest.mark.parametrize("suffix", [".csv", ".jsonl.gz", ".parquet"])
def test_writing_many_outcomes_takes_no_more_memory_than_writing_a_few(suffix: str, tmp_path: Path) -> None:
    kib = []
    for count in (51_200, 204_800):
        command = [sys.executable, "-c", WRITES, str(count), str(tmp_path / f"out{suffix}")]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, timeout=50)
        kib.append(int(done.stdout))
    assert kib[1] - kib[0] < 40 * 1024


class TestOrdering:
    def test_rows_come_back_by_place_and_equal_places_in_the_order_they_were_added(self) -> None:
        ordering = Ordering()
        ordering.add([(5, {"n": 1}), (2, {"n": 2}), (5, {"n": 3})])
        ordering.add([(0, {"n": 4})])
        assert [row["n"] for row in ordering] == [4, 2, 1, 3]
        ordering.close()

    def test_a_full_disk_is_an_os_error(self) -> None:
        ordering = Ordering()
        ordering._database.execute("PRAGMA max_page_count = 10")
        with pytest.raises(OSError, match="cannot put the rows in order"):
            ordering.add([(n, {"text": "x" * 10_000}) for n in range(100)])
        ordering.close()


class TestArguments:
    @pytest.mark.parametrize(
        "name", ["out", "out.txt", "out.json", "out.parquet.gz", "out.gz", "out.csv.lz4", ".csv"]
    )
    def test_a_path_of_an_unknown_format_is_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgumentError, match=r"path must end in .csv, .tsv, .jsonl or .ndjson"):
            write_outcomes([], tmp_path / name)
        assert os.listdir(tmp_path) == []

    def test_bad_arguments_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgumentTypeError, match="path must be a path, got 3"):
            write_outcomes([], 3)  # type: ignore[arg-type]
        with pytest.raises(
            InvalidArgumentTypeError, match="outcomes must be an iterable of outcomes, got 'a'"
        ):
            write_outcomes(["a"], tmp_path / "out.csv")  # type: ignore[list-item]
        with pytest.raises(InvalidArgumentTypeError, match=r"await batch\.write\(path\)"):
            write_outcomes(AsyncClient("llmg_x").batch([]), tmp_path / "out.csv")  # type: ignore[arg-type]
        (tmp_path / "dir.csv").mkdir()
        with pytest.raises(
            InvalidArgumentError, match="path must be the path of a regular file, existing or new"
        ):
            write_outcomes([], tmp_path / "dir.csv")
        path = tmp_path / "nowhere" / "out.csv"
        with pytest.raises(FileNotFoundError) as nowhere:
            write_outcomes([], path)
        assert nowhere.value.filename == str(path)
        assert os.listdir(tmp_path) == ["dir.csv"]

    def test_a_missing_library_is_an_error_that_names_the_extra(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        with pytest.raises(
            ImportError, match=r"writing Parquet needs pyarrow: pip install 'omnigate\[data\]'"
        ):
            write_outcomes([], tmp_path / "out.parquet")
        if sys.version_info < (3, 14):
            monkeypatch.setitem(sys.modules, "backports.zstd", None)
            with pytest.raises(ImportError, match=r"needs backports: pip install 'omnigate\[data\]'"):
                write_outcomes([], tmp_path / "out.csv.zst")
        assert os.listdir(tmp_path) == []


class TestReplacing:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "out.csv"
        path.write_text("old")
        return path

    def test_a_new_file_is_readable_by_its_owner_only(self, tmp_path: Path) -> None:
        write_outcomes([success()], tmp_path / "out.csv")
        assert stat.S_IMODE((tmp_path / "out.csv").stat().st_mode) == 0o600

    def test_a_replaced_file_keeps_its_mode_and_a_link_its_target(self, path: Path, tmp_path: Path) -> None:
        path.chmod(0o644)
        link = tmp_path / "link.csv"
        link.symlink_to(path)
        write_outcomes([success()], link)
        assert link.is_symlink()
        assert path.read_text().startswith("id,prompt,content")
        assert stat.S_IMODE(path.stat().st_mode) == 0o644

    @pytest.mark.parametrize("where", ["writing", "flushing"])
    def test_a_full_disk_leaves_the_old_file(
        self, where: str, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        if where == "flushing":
            monkeypatch.setattr(replacing, "flush", full)
        else:
            monkeypatch.setattr(csv, "writer", lambda *_, **__: type("Full", (), {"writerow": full}))
        with pytest.raises(OSError, match="No space left"):
            write_outcomes([success()], path)
        assert path.read_text() == "old"
        assert os.listdir(path.parent) == ["out.csv"]

    def test_an_error_of_the_source_leaves_the_old_file_and_writes_what_there_is_to_another(
        self, path: Path
    ) -> None:
        def outcomes() -> Iterator[Outcome]:
            yield success("a", 1)
            yield success("b", 0)
            raise LookupError("broken")

        with pytest.raises(LookupError) as raised:
            write_outcomes(outcomes(), path)
        partial = path.with_name("out.partial.csv")
        assert raised.value.__notes__ == [f"the 2 outcomes before are in {str(partial)!r}"]
        assert path.read_text() == "old"
        assert [row["id"] for row in rows_in(partial)] == ["b", "a"]
        assert sorted(os.listdir(path.parent)) == ["out.csv", "out.partial.csv"]

    def test_an_error_before_the_first_outcome_writes_nothing(self, path: Path) -> None:
        def outcomes() -> Iterator[Outcome]:
            raise LookupError("broken")
            yield

        with pytest.raises(LookupError) as raised:
            write_outcomes(outcomes(), path)
        assert not hasattr(raised.value, "__notes__")
        assert os.listdir(path.parent) == ["out.csv"]

    def test_an_interrupt_leaves_the_old_file(self, path: Path) -> None:
        def outcomes() -> Iterator[Outcome]:
            yield success()
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_outcomes(outcomes(), path)
        assert path.read_text() == "old"
        assert os.listdir(path.parent) == ["out.csv"]


def test_a_journal_is_written_as_a_table(tmp_path: Path) -> None:
    journal = tmp_path / "answers.jsonl"
    journal.write_bytes(text(success("b", 1)) + text(failure("a", 0)))
    assert write_outcomes(read_journal(journal), tmp_path / "out.csv") == 2
    rows = rows_in(tmp_path / "out.csv")
    assert [(row["id"], row["content"], row["error"]) for row in rows] == [
        ("a", "", "GatewayError: broken"),
        ("b", "hi", ""),
    ]


def client_of(provider: Provider) -> AsyncClient:
    return AsyncClient("llmg_x", base_url="http://gateway.test", transport=provider)


class TestAsyncBatch:
    pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]  # noqa: RUF012 - pytest takes a list

    async def test_write_runs_the_batch_and_writes_its_outcomes_in_order(self, tmp_path: Path) -> None:
        path = tmp_path / "out.jsonl"
        items = [f"sleep={600 - n} {n}" for n in range(600)]
        stats = await client_of(Provider()).batch(items, model=MODEL).write(path)
        assert stats.succeeded == 600
        assert [row["prompt"] for row in rows_in(path)] == items

    async def test_the_rows_of_a_file_are_written_with_their_columns(self, tmp_path: Path) -> None:
        rows = tmp_path / "rows.csv"
        rows.write_text("name,content\na,x\nstatus=400,y\n")
        batch = client_of(Provider()).batch(rows, model=MODEL, prompt="{name}")
        stats = await batch.write(tmp_path / "out.csv")
        assert (stats.total, stats.succeeded, stats.failures) == (2, 1, {"APIError": 1})
        first, second = rows_in(tmp_path / "out.csv")
        assert list(first) == ["name", "input_content", *RESULTS]
        assert (first["name"], first["input_content"], first["content"]) == ("a", "x", "a")
        assert (second["input_content"], second["content"]) == ("y", "")

    async def test_write_inside_the_block_writes_the_outcomes_that_were_not_read(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "out.jsonl"
        async with client_of(Provider()).batch(["a", "b", "c"], model=MODEL, ordered=True) as batch:
            await anext(batch)
            assert (await batch.write(path)).succeeded == 3
        assert [row["content"] for row in rows_in(path)] == ["b", "c"]

    async def test_an_error_that_ends_the_batch_is_raised_and_the_answers_are_kept(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "out.csv"
        batch = client_of(Provider()).batch(
            ["a", "sleep=1 status=402 b", "c"], model=MODEL, max_concurrency=1
        )
        with pytest.raises(BudgetExceededError) as raised:
            await batch.write(path)
        partial = path.with_name("out.partial.csv")
        assert f"the 2 outcomes before are in {str(partial)!r}" in raised.value.__notes__
        assert [row["content"] for row in rows_in(partial)] == ["a", ""]
        assert os.listdir(tmp_path) == ["out.partial.csv"]

    async def test_a_cancelled_write_leaves_no_file(self, tmp_path: Path) -> None:
        batch = client_of(Provider()).batch(["a", "sleep=100 b"], model=MODEL)
        with anyio.move_on_after(5) as scope:
            await batch.write(tmp_path / "out.csv")
        assert scope.cancelled_caught
        assert os.listdir(tmp_path) == []

    async def test_a_write_cancelled_as_its_file_is_made_leaves_none_either(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_file, looked = tempfile.mkstemp, threading.Event()

        def cancel_meanwhile(*args: Any) -> tuple[int, str]:
            made = make_file(*args)
            anyio.from_thread.run_sync(scope.cancel)
            looked.wait(0.2)  # a write that does not wait for this thread has returned by then
            return made

        monkeypatch.setattr(tempfile, "mkstemp", cancel_meanwhile)
        provider = Provider()
        with anyio.CancelScope() as scope:
            await client_of(provider).batch(["a"], model=MODEL).write(tmp_path / "out.csv")
        left = os.listdir(tmp_path)
        looked.set()
        assert scope.cancelled_caught
        assert left == []
        assert provider.prompts == []

    async def test_a_path_that_cannot_be_written_costs_no_calls(self, tmp_path: Path) -> None:
        provider = Provider()
        with pytest.raises(InvalidArgumentError):
            await client_of(provider).batch(["a"], model=MODEL).write(tmp_path / "out.txt")
        with pytest.raises(FileNotFoundError):
            await client_of(provider).batch(["a"], model=MODEL).write(tmp_path / "nowhere" / "out.csv")
        assert provider.prompts == []

    @pytest.mark.parametrize("kind", ["pandas", "polars", "arrow"])
    async def test_to_frame_runs_the_batch_and_returns_its_outcomes_in_order(self, kind: Any) -> None:
        library = pytest.importorskip("pyarrow" if kind == "arrow" else kind)
        items = ["sleep=3 a", "sleep=1 status=400 b", "sleep=2 c"]
        frame = await client_of(Provider()).batch(items, model=MODEL).to_frame(kind)
        assert isinstance(frame, library.Table if kind == "arrow" else library.DataFrame)
        columns = frame.column_names if kind == "arrow" else list(frame.columns)
        assert columns == ["id", "prompt", *RESULTS]
        rows = {"pandas": "to_dict", "polars": "to_dicts", "arrow": "to_pylist"}[kind]
        got = getattr(frame, rows)(*(["records"] if kind == "pandas" else []))
        assert [row["prompt"] for row in got] == items
        assert [row["attempts"] for row in got] == [1, 1, 1]
        assert (got[0]["total_tokens"], got[0]["cost_usd"]) == (3, 0.000004)
        assert got[1]["error"].startswith("APIError: [400]")

    async def test_to_frame_called_again_after_an_error_returns_the_outcomes_before_it(self) -> None:
        pytest.importorskip("pandas")
        batch = client_of(Provider()).batch(
            ["a", "sleep=1 status=402 b", "c"], model=MODEL, max_concurrency=1
        )
        with pytest.raises(BudgetExceededError) as raised:
            await batch.to_frame()
        assert "to_frame() returns the 2 outcomes before when it is called again" in raised.value.__notes__
        assert list((await batch.to_frame())["prompt"]) == ["a", "sleep=1 status=402 b"]
        with pytest.raises(NotStartedError):
            await batch.to_frame()

    async def test_to_frame_of_an_unknown_kind_or_without_its_library_costs_no_calls(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        provider = Provider()
        with pytest.raises(
            InvalidArgumentError, match="kind must be 'pandas', 'polars' or 'arrow', got 'excel'"
        ):
            await client_of(provider).batch(["a"], model=MODEL).to_frame("excel")  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "polars", None)
        with pytest.raises(ImportError, match=r"to_frame\(kind='polars'\) needs polars: pip install polars"):
            await client_of(provider).batch(["a"], model=MODEL).to_frame("polars")
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(ImportError, match=r"needs pyarrow: pip install 'omnigate\[data\]'"):
            await client_of(provider).batch(["a"], model=MODEL).to_frame("arrow")
        assert provider.prompts == []


class TestFrames:
    @pytest.mark.parametrize("kind", ["pandas", "polars", "arrow"])
    def test_nested_and_mixed_columns_of_any_shape_become_a_frame(self, kind: Any) -> None:
        pytest.importorskip("pyarrow" if kind == "arrow" else kind)
        from omnigate._batch.writing import frame_of

        items: list[dict[str, Any]] = [
            {
                "even": [1, 2],
                "odd": [1, "a"],
                "mixed": 1,
                "gap": True,
                "utc": datetime.datetime.now(datetime.UTC),
            },
            {"even": [3], "odd": {"k": [1]}, "mixed": "x", "none": None, "day": datetime.date(2026, 1, 2)},
        ]
        frame = frame_of([with_item(n, item) for n, item in enumerate(items)], kind)
        rows = {"pandas": "to_dict", "polars": "to_dicts", "arrow": "to_pylist"}[kind]
        first, second = getattr(frame, rows)(*(["records"] if kind == "pandas" else []))
        assert list(first["even"]) == [1, 2]
        assert first["odd"] == ([1, "a"] if kind == "pandas" else '[1,"a"]')
        assert (first["mixed"], second["mixed"], first["gap"]) == ("1", "x", True)


class TestSyncBatch:
    @pytest.fixture
    def client(self) -> Iterator[Client]:
        with Client("llmg_x", base_url="http://gateway.test", transport=Provider()) as client:
            yield client

    def test_write_and_write_outcomes_write_the_same_file(self, client: Client, tmp_path: Path) -> None:
        items = ["a", "status=400 b", "c"]
        assert client.batch(items, model=MODEL).write(tmp_path / "one.csv").succeeded == 2
        with client.batch(items, model=MODEL) as batch:
            assert write_outcomes(batch, tmp_path / "two.csv") == 3
        assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()

    def test_to_frame_returns_the_outcomes_and_after_an_error_those_before_it(self, client: Client) -> None:
        pytest.importorskip("pandas")
        assert list(client.batch(["a", "b"], model=MODEL).to_frame()["content"]) == ["a", "b"]
        batch = client.batch(["a", "sleep=0.01 status=402 b", "c"], model=MODEL, max_concurrency=1)
        with pytest.raises(BudgetExceededError):
            batch.to_frame()
        assert list(batch.to_frame()["prompt"]) == ["a", "sleep=0.01 status=402 b"]

    def test_an_error_that_ends_the_batch_leaves_the_answers_in_another_file(
        self, client: Client, tmp_path: Path
    ) -> None:
        with pytest.raises(GatewayError) as raised:
            client.batch(["a", "status=402 b"], model=MODEL, max_concurrency=1).write(tmp_path / "out.jsonl")
        assert any("out.partial.jsonl" in note for note in raised.value.__notes__)
        assert os.listdir(tmp_path) == ["out.partial.jsonl"]

    def test_stats_of_a_sync_batch_tell_its_total(self, client: Client) -> None:
        with client.batch(["a", "b"], model=MODEL) as batch:
            assert batch.stats.total == 2
            assert batch.run().percent == 100.0
