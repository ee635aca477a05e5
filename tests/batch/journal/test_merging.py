"""Merging the journals of many workers into one."""

import errno
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omnigate import InvalidArgumentError, JournalError, JournalWarning, merge_journals, read_journal
from omnigate._batch.journal import merging
from omnigate._batch.journal.lines import encode_line
from omnigate._batch.outcomes import Outcome

from . import failure, fill, ids_in, opened, success, text


def write(path: Path, *outcomes: Outcome | bytes) -> Path:
    path.write_bytes(b"".join(each if isinstance(each, bytes) else text(each) for each in outcomes))
    return path


def of(outcome: Outcome, digest: str, source: str | None = None) -> bytes:
    """Return the line of an outcome of another request, or of a row of a file."""
    return encode_line(outcome, digest, created=0, source=source)


def contents(path: Path) -> dict[str, str]:
    return {
        each.id: each.response.content if each.response else str(each.error) for each in read_journal(path)
    }


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return tmp_path / "a.jsonl"


@pytest.fixture
def b(tmp_path: Path) -> Path:
    return tmp_path / "b.jsonl"


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "all.jsonl"


def test_the_merged_journal_has_the_lines_of_all_in_the_order_of_the_paths(
    a: Path, b: Path, into: Path
) -> None:
    write(a, success("1", 1), failure("2", 2))
    write(b, failure("4", 4), success("3", 3))
    result = merge_journals([b, a], into)
    assert ids_in(into) == ["4", "3", "1", "2"]
    assert (result.succeeded, result.failed, result.journals, result.dropped) == (2, 2, 2, 0)
    assert (result.conflict_count, result.conflicts) == (0, [])
    assert into.stat().st_mode & 0o777 == 0o600
    assert into.read_bytes() == b.read_bytes() + a.read_bytes()
    assert sorted(os.listdir(into.parent)) == ["a.jsonl", "all.jsonl", "b.jsonl"]


@pytest.mark.parametrize("order", [0, 1])
def test_a_success_replaces_a_failure_wherever_it_is(a: Path, b: Path, into: Path, order: int) -> None:
    write(a, success("x", text="paid"))
    write(b, failure("x"))
    result = merge_journals([a, b] if order else [b, a], into)
    assert contents(into) == {"x": "paid"}
    assert (result.succeeded, result.failed, result.dropped, result.conflict_count) == (1, 0, 1, 0)


def test_a_failure_in_a_file_does_not_replace_an_earlier_success_in_it(a: Path, into: Path) -> None:
    write(a, success("x", text="paid"), failure("x"))
    merge_journals([a], into)
    assert contents(into) == {"x": "paid"}


def test_of_several_failures_the_last_is_kept(a: Path, b: Path, into: Path) -> None:
    write(a, failure("x", 1), failure("x", 2))
    write(b, failure("x", 3))
    result = merge_journals([a, b], into)
    (outcome,) = read_journal(into)
    assert outcome.index == 3
    assert (result.failed, result.dropped, result.conflict_count) == (1, 2, 0)


def test_two_answers_to_one_request_are_a_conflict_and_the_first_is_kept(
    a: Path, b: Path, into: Path
) -> None:
    write(a, success("x", text="first"), success("y"))
    write(b, success("x", text="second"), success("y"))  # y is the same line: the journal was copied
    with pytest.warns(JournalWarning, match=r"1 conflicts .* id 'x', for example, has different answers in"):
        result = merge_journals([a, b], into)
    assert contents(into) == {"x": "first", "y": "hi"}
    (conflict,) = result.conflicts
    assert (conflict.id, conflict.reason) == ("x", "answer")
    assert (conflict.kept, conflict.dropped) == (str(a), str(b))


@pytest.mark.parametrize(
    ("one", "other", "kept"),
    [
        (of(success("0", text="one"), "d1"), of(success("0", text="other"), "d2"), "one"),
        (of(success("0", text="one"), "d1"), of(failure("0"), "d2"), "one"),
        (of(failure("0"), "d1"), of(success("0", text="other"), "d2"), "other"),
        (of(failure("0"), "d1"), of(failure("0", error=JournalError("later")), "d2"), "later"),
        (of(failure("0"), ""), of(success("0", text="other"), "d2"), "other"),  # was not a valid request
        (of(success("0"), "d", "file1"), of(success("0"), "d", "file2"), "hi"),  # the same row of two files
    ],
)
def test_an_id_with_different_requests_in_two_journals_is_a_conflict(
    a: Path, b: Path, into: Path, one: bytes, other: bytes, kept: str
) -> None:
    write(a, one)
    write(b, other)
    with pytest.warns(JournalWarning, match="1 conflicts"):
        result = merge_journals([a, b], into)
    assert contents(into) == {"0": kept}
    (conflict,) = result.conflicts
    assert (conflict.id, conflict.reason) == ("0", "request")
    first_is_kept = kept in ("one", "hi")
    assert (conflict.kept, conflict.dropped) == (
        str(a if first_is_kept else b),
        str(b if first_is_kept else a),
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (of(failure("x"), "d1") + of(success("x"), "d2"), of(success("x"), "d2")),  # run again with another
        (of(success("x"), ""), of(success("x"), "d")),  # a line that does not tell its request
        (of(success("x"), "d", "file"), of(success("x"), "d", "file")),
        (of(success("x"), "d", "file"), of(success("x"), "d")),
    ],
)
def test_what_is_no_contradiction_is_no_conflict(
    a: Path, b: Path, into: Path, one: bytes, other: bytes
) -> None:
    write(a, one)
    write(b, other)
    assert merge_journals([a, b], into).conflict_count == 0
    assert len(ids_in(into)) == 1


def test_conflicts_within_a_file_of_concatenated_journals_are_reported(a: Path, into: Path) -> None:
    write(a, success("x", text="first"), success("x", text="second"))
    with pytest.warns(JournalWarning):
        result = merge_journals([a], into)
    assert contents(into) == contents(a) == {"x": "second"}
    assert (result.conflicts[0].kept, result.conflicts[0].dropped) == (str(a), str(a))


def test_conflicts_beyond_the_first_are_only_counted(
    a: Path, b: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "_CONFLICTS_MAX", 3)
    for path in (a, b):
        write(path, *(success(str(number), text=path.name) for number in range(10)))
    with pytest.warns(JournalWarning, match="10 conflicts"):
        result = merge_journals([a, b], into)
    assert result.conflict_count == 10
    assert [conflict.id for conflict in result.conflicts] == ["0", "1", "2"]


def test_merging_again_into_the_same_journal_adds_what_is_new(a: Path, b: Path, into: Path) -> None:
    write(a, success("1"), failure("2"))
    write(b, failure("3"))
    merge_journals([a, b], into)
    write(a, success("1"), success("2", text="now"))
    result = merge_journals([a, b], into)
    assert contents(into) == {"1": "hi", "2": "now", "3": "broken"}
    assert (result.succeeded, result.failed, result.journals) == (2, 1, 3)
    before = into.read_bytes()
    merge_journals([a, b], into)
    assert into.read_bytes() == before


def test_lines_that_only_the_target_has_stay(a: Path, into: Path) -> None:
    write(into, success("old"))
    write(a, success("new"))
    merge_journals([a], into)
    assert ids_in(into) == ["old", "new"]


@pytest.mark.parametrize("name", ["a.jsonl", "link.jsonl"])
def test_the_target_may_be_one_of_the_paths(a: Path, b: Path, name: str) -> None:
    write(a, failure("x"), success("y"))
    write(b, success("x"))
    (a.parent / "link.jsonl").symlink_to(a)
    a.chmod(0o640)
    result = merge_journals([a, b, b], a.parent / name)
    assert ids_in(a) == ["y", "x"]
    assert (result.journals, result.dropped) == (2, 1)
    assert a.stat().st_mode & 0o777 == 0o640
    assert (a.parent / "link.jsonl").is_symlink()


def test_a_merged_journal_is_resumed_from(a: Path, b: Path, into: Path) -> None:
    fill(a, success("1"), failure("2"))
    fill(b, success("3"))
    merge_journals([a, b], into)
    journal = opened(into)
    assert (len(journal), journal.waiting) == (3, 2)
    journal.close(finished=True)


def test_a_torn_last_line_is_left_out(a: Path, b: Path, into: Path) -> None:
    write(a, success("1"), text(success("torn"))[:-20])
    write(b, success("2"), text(success("zeros"))[:60] + b"\0" * 40 + b"\n")
    before = a.read_bytes()
    merge_journals([a, b], into)
    assert ids_in(into) == ["1", "2"]
    assert a.read_bytes() == before


@pytest.mark.parametrize("ending", [b"", b"\0" * 50])
def test_a_last_line_that_lacks_only_its_newline_is_kept(a: Path, b: Path, into: Path, ending: bytes) -> None:
    write(a, success("1"), text(success("2"))[:-1] + ending)
    write(b, success("3"))
    merge_journals([a, b], into)
    assert ids_in(into) == ["1", "2", "3"]


@pytest.mark.parametrize("place", ["source", "target"])
@pytest.mark.parametrize("damage", [b"\0" * 50 + b"\n", b"hello\n", b'{"of": "a later version"}\n'])
def test_a_damaged_line_is_an_error_that_names_it_and_changes_nothing(
    a: Path, into: Path, damage: bytes, place: str
) -> None:
    damaged = write(a if place == "source" else into, success("1"), damage, success("2"))
    write(into if place == "source" else a, success("3"))
    before = into.read_bytes()
    with pytest.raises(
        JournalError, match=rf"{damaged.name}', line 2, .*Nothing was changed.*recover_journal"
    ):
        merge_journals([a], into)
    assert into.read_bytes() == before
    assert sorted(os.listdir(into.parent)) == ["a.jsonl", "all.jsonl"]


@pytest.mark.parametrize("in_use", ["a.jsonl", "all.jsonl"])
def test_a_journal_in_use_is_refused(a: Path, into: Path, in_use: str) -> None:
    write(a, success("1"))
    write(into, success("2"))
    before = into.read_bytes()
    journal = opened(a.parent / in_use)
    with pytest.raises(JournalError, match=rf"{in_use}' is in use"):
        merge_journals([a], into)
    journal.close(finished=False)
    assert into.read_bytes() == before
    assert merge_journals([a], into).succeeded == 2


def _grow(path: Path) -> None:
    fill(path, success("late"))


def _rotate(path: Path) -> None:
    path.rename(path.with_suffix(".old"))
    path.write_bytes(path.with_suffix(".old").read_bytes())


@pytest.mark.parametrize("change", [_grow, _rotate, Path.unlink])
def test_a_journal_that_changes_while_it_is_merged_is_an_error_that_changes_nothing(
    a: Path, b: Path, into: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], Any]
) -> None:
    write(a, success("1"))
    write(b, success("2"))
    write(into, success("3"))
    before = into.read_bytes()
    add = merging._Merge.add

    def add_and_change(self: merging._Merge, path: str, *, lock: bool) -> None:
        add(self, path, lock=lock)
        if path == str(b):
            change(a)

    monkeypatch.setattr(merging._Merge, "add", add_and_change)
    with pytest.raises(JournalError, match=r"a\.jsonl.*(was changed while it was merged|No such file)"):
        merge_journals([a, b], into)
    assert into.read_bytes() == before


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("is_new", [True, False])
def test_a_full_disk_leaves_the_target_as_it_was(
    a: Path, into: Path, monkeypatch: pytest.MonkeyPatch, function: str, is_new: bool
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write(a, success("1"))
    if not is_new:
        write(into, success("2"))
    before = {path.name: path.read_bytes() for path in into.parent.iterdir()}
    monkeypatch.setattr(os, function, fail)
    with pytest.raises(JournalError, match=r"Cannot merge journals into .*No space left on device"):
        merge_journals([a], into)
    assert {path.name: path.read_bytes() for path in into.parent.iterdir()} == before


def test_a_full_disk_is_noticed_while_lines_are_written(
    a: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    write(a, *(success(str(number), text="long " * 100) for number in range(100)))
    write(into, success("old"))
    before = into.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(JournalError, match="File too large"):
            merge_journals([a], into)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert into.read_bytes() == before
    assert sorted(os.listdir(into.parent)) == ["a.jsonl", "all.jsonl"]


def test_a_missing_journal_is_an_error_and_no_target_is_created(a: Path, b: Path, into: Path) -> None:
    write(a, success("1"))
    with pytest.raises(JournalError, match=r"b\.jsonl': there is no such file"):
        merge_journals([a, b], into)
    assert not into.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.jsonl", "b.jsonl"), r"paths must be an iterable of paths, got 'a\.jsonl'"),
        ((5, "b.jsonl"), "paths must be an iterable of paths, got 5"),
        (([], "b.jsonl"), "paths must have at least one path, got none"),
        ((["a", 5], "b.jsonl"), r"paths\[1\] must be a path, got 5"),
        ((["a"], 5), "into must be a path, got 5"),
    ],
)
def test_a_bad_argument_is_named(arguments: Any, message: str) -> None:
    with pytest.raises((InvalidArgumentError, TypeError), match=message):
        merge_journals(*arguments)


def test_more_journals_than_may_be_open_are_merged(
    tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "_OPEN_FILES_MAX", 3)
    paths = [
        write(tmp_path / f"{part}.jsonl", failure("common"), success(f"own-{part}")) for part in range(20)
    ]
    descriptors = len(os.listdir("/dev/fd"))
    result = merge_journals((path for path in paths), into)
    assert (result.succeeded, result.failed, result.dropped) == (20, 1, 19)
    assert len(os.listdir("/dev/fd")) == descriptors


@pytest.mark.proof
def test_merging_takes_a_few_dozen_bytes_for_each_id(tmp_path: Path, into: Path) -> None:
    count = 24_000
    paths = []
    for part in range(3):
        paths.append(tmp_path / f"{part}.jsonl")
        line = text(success("%07d", text="an answer of some length " * 20))
        with paths[-1].open("wb") as file:
            for number in range(part * count // 3, (part + 1) * count // 3):
                file.write(line.replace(b"%07d", b"%07d" % number))
    tracemalloc.start()
    result = merge_journals(paths, into)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.succeeded == count
    assert peak / count < 60, "the files have 1,000 bytes for each id"
