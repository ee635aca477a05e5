"""Compaction leaves one line per id at the end of a finished run, whatever happens on the way."""

import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from omnigate import JournalError
from omnigate._batch.journal.file import NotCompactedError, _second

from . import DIGEST, failure, fill, ids_in, opened, replayable, start, success, text


def test_compaction_keeps_one_line_per_id_in_completion_order(path: Path) -> None:
    path.write_bytes(
        b"".join(map(text, [failure("a"), success("b"), failure("c"), failure("a"), success("d")]))
    )
    journal = opened(path)
    for index, id in enumerate("abcd"):
        if journal.claim(id, DIGEST, index) is None:
            journal.write(success(id, index) if id == "a" else failure(id, index), DIGEST)
    journal.close(finished=True)
    assert ids_in(path) == ["b", "d", "a", "c"]
    journal = opened(path)
    assert (len(journal), replayable(journal)) == (4, 3)
    journal.close(finished=False)


def test_compaction_keeps_ids_that_only_earlier_runs_had(path: Path) -> None:
    fill(path, failure("a"), success("other"))
    fill(path, success("a"), finished=True)
    assert ids_in(path) == ["other", "a"]


def test_a_journal_of_a_run_left_early_is_not_compacted(path: Path) -> None:
    fill(path, failure("a"))
    fill(path, success("a"), finished=False)
    assert ids_in(path) == ["a", "a"]


def test_a_journal_with_one_line_per_id_is_not_rewritten(path: Path) -> None:
    fill(path, success("a"), success("b", 1))
    inode = path.stat().st_ino
    opened(path).close(finished=True)
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("finished", [True, False])
def test_closing_a_journal_flushes_its_lines_and_a_new_files_directory_entry(
    path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.append(os.fstat(fd).st_ino))
    opened(path).close(finished=finished)
    assert flushed == []  # nothing was written
    fill(path, success("a"), finished=finished)
    assert flushed == [path.stat().st_ino, path.parent.stat().st_ino]
    fill(path, success("b"), finished=finished)
    assert flushed[2:] == [path.stat().st_ino]


def test_a_journal_is_flushed_again_only_after_another_line(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.append(os.fstat(fd).st_ino))
    journal = opened(path)
    for index in range(3):
        journal.claim(str(index), DIGEST, index)
        journal.write(success(str(index), index), DIGEST)
        journal.sync()
        journal.sync()
    journal.close(finished=False)
    journal.sync()
    assert flushed.count(path.stat().st_ino) == 3


def test_a_failing_fsync_is_a_journal_error_and_releases_the_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    fill(path, success("a"))
    journal = opened(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(JournalError, match=f"Cannot write to the journal .*: {os.strerror(errno.EIO)}"):
            journal.close(finished=True)
    opened(path).close(finished=True)  # closed and unlocked anyway


def test_compaction_copies_lines_of_other_tools_byte_for_byte(path: Path) -> None:
    spaced = json.dumps({"more": 1, **json.loads(text(success("b")))}).encode() + b"\r\n"
    path.write_bytes(text(failure("a")) + spaced + text(success("a")))
    opened(path).close(finished=True)
    assert path.read_bytes() == spaced + text(success("a"))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("function", ["open", "fsync", "replace", "fchmod", "unlink"])
@pytest.mark.parametrize(
    "raised", [OSError(errno.ENOSPC, "No space left on device"), Killed()], ids=["OSError", "Killed"]
)
def test_a_failed_compaction_leaves_the_journal_unchanged(
    path: Path, monkeypatch: pytest.MonkeyPatch, function: str, raised: BaseException
) -> None:
    fill(path, failure("a"), success("b", 1))
    journal = opened(path)
    journal.claim("a", DIGEST, 0)
    journal.write(success("a"), DIGEST)
    before = path.read_bytes()
    with monkeypatch.context() as patch:

        def fail(*_: Any, **__: Any) -> Any:
            patch.undo()  # once
            raise raised

        patch.setattr(os, function, fail)
        expected = NotCompactedError if isinstance(raised, OSError) else Killed
        with pytest.raises(expected) as caught:
            journal.close(finished=True)
    if isinstance(caught.value, JournalError):
        assert "Cannot compact the journal" in str(caught.value)
        assert "No space left on device" in str(caught.value)
        assert "Nothing is lost" in caught.value.__notes__[0]
        assert caught.value.__cause__ is raised
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    opened(path).close(finished=True)  # closed and unlocked; now it works
    assert ids_in(path) == ["b", "a"]


@pytest.mark.parametrize(
    "name", ["journal.jsonl", "x" * 100, "x" * 101, "x" * 255, "ü" * 127, "\udcff" * 255]
)
def test_the_next_run_removes_the_leftover_of_a_killed_compaction_for_any_file_name(
    path: Path, name: str
) -> None:
    path = path.with_name(name)
    fill(path, failure("a"))
    second = Path(_second(str(path)))
    assert len(os.fsencode(second.name)) <= 143
    second.write_bytes(b"half of it")
    other = path.with_name("another's")
    other.write_bytes(b"not ours")
    opened(path).close(finished=False)
    assert {file.name for file in path.parent.iterdir()} == {name, other.name}


def test_journals_in_one_directory_have_distinct_temporary_files(path: Path) -> None:
    names = ["x" * 101, "x" * 102, "a", "b"]
    assert len({_second(str(path.with_name(name))) for name in names}) == 4


def test_a_failed_compaction_still_syncs_the_journal_to_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(path, failure("a"))
    journal = opened(path)
    journal.claim("a", DIGEST, 0)
    journal.write(success("a"), DIGEST)
    inode, synced = path.stat().st_ino, []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
        patch.setattr(os, "replace", lambda *_: exec("raise OSError(5, 'no')"))
        with pytest.raises(NotCompactedError):
            journal.close(finished=True)
    assert synced[-1] == inode


KILLED_COMPACTION = """
import os, signal, sys
from tests.batch.journal import DIGEST, opened, success

path, function, when = sys.argv[1:]
journal = opened(path)
journal.claim("a", DIGEST, 0)
journal.write(success("a"), DIGEST)
real = getattr(os, function)

def die(*arguments, **keywords):
    if when == "after":
        real(*arguments, **keywords)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(os, function, die)
journal.close(finished=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("function", ["open", "fsync", "replace"])
@pytest.mark.proof
def test_a_killed_compaction_leaves_the_old_journal_or_the_new_one_whole(
    path: Path, function: str, when: str
) -> None:
    fill(path, failure("a"), success("b", 1))
    with start(KILLED_COMPACTION, path, function, when) as process:
        assert process.wait() == -signal.SIGKILL
    whole = ids_in(path)
    assert whole == (["b", "a"] if (function, when) == ("replace", "after") else ["a", "b", "a"])
    journal = opened(path)  # opening removes the leftover
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert (len(journal), replayable(journal)) == (2, 2)
    journal.close(finished=True)
    assert ids_in(path) == ["b", "a"]


def test_opening_a_journal_during_its_compaction_reports_it_in_use(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(path, failure("a"))
    journal = opened(path)
    journal.claim("a", DIGEST, 0)
    journal.write(success("a"), DIGEST)
    real, tried = os.replace, []

    def replace(source: str, target: str) -> None:
        for step in ("before", "after"):
            with pytest.raises(JournalError, match="is in use"):
                opened(path)
            tried.append(step)
            if step == "before":
                real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    journal.close(finished=True)
    assert tried == ["before", "after"]
    assert ids_in(path) == ["a"]


@pytest.mark.skipif(sys.platform == "win32", reason="replaces no open file")
def test_a_journal_replaced_between_open_and_lock_is_reopened(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    fill(path, success("old"))
    real = fcntl.flock

    def flock(fd: int, operation: int) -> None:
        monkeypatch.undo()
        other = path.with_suffix(".other")
        fill(other, success("new"))
        other.replace(path)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    journal = opened(path)
    assert journal.claim("new", DIGEST, 0) is not None
    assert journal.claim("old", DIGEST, 1) is None
    journal.close(finished=False)


@pytest.mark.skipif(sys.platform == "win32", reason="moves no open file")
@pytest.mark.parametrize("replaced", [False, True])
def test_compaction_of_a_moved_journal_does_not_overwrite_what_took_its_place(
    path: Path, replaced: bool
) -> None:
    fill(path, failure("a"))
    journal = opened(path)
    journal.claim("a", DIGEST, 0)
    journal.write(success("a"), DIGEST)
    moved = path.rename(path.with_suffix(".moved"))
    if replaced:
        path.write_bytes(b"somebody else's")
    with pytest.raises(JournalError, match="replaced by another file" if replaced else "deleted or moved"):
        journal.close(finished=True)
    assert ids_in(moved) == ["a", "a"]
    assert path.read_bytes() == b"somebody else's" if replaced else not path.exists()


def test_a_journal_changed_by_another_program_is_not_compacted(path: Path) -> None:
    fill(path, failure("a"), success("b", 1))
    journal = opened(path)
    journal.claim("a", DIGEST, 0)
    journal.write(success("a"), DIGEST)
    data = path.read_bytes()
    changed = data.replace(b'"b"', b'"x"')
    path.write_bytes(changed)
    with pytest.raises(JournalError, match="was changed by another program"):
        journal.close(finished=True)
    assert path.read_bytes() == changed


def test_claiming_an_id_whose_line_was_truncated_is_an_error(path: Path) -> None:
    fill(path, success("a"), success("b", 1))
    journal = opened(path)
    os.truncate(path, 10)
    with pytest.raises(JournalError, match="was changed by another program"):
        journal.claim("a", DIGEST, 0)
    with pytest.raises(JournalError, match="was truncated by another program"):
        journal.close(finished=False)
