"""Recovering a journal that a crash of the machine has damaged in the middle."""

import errno
import os
from pathlib import Path

import pytest

import omnigate
from omnigate import JournalError, recover_journal

from . import failure, fill, ids_in, opened, success, text

LINES = [text(success(str(index), index, "paid " * 40)) for index in range(100)]


def test_a_page_of_zeros_in_a_journal_costs_only_the_lines_in_it(path: Path) -> None:
    data = bytearray(b"".join(LINES))
    data[8192:12288] = bytes(4096)
    path.write_bytes(data)
    with pytest.raises(JournalError, match=r"omnigate\.recover_journal"):
        opened(path)
    lost, offset = set(), 0
    for index, line in enumerate(LINES):
        if offset < 12288 and offset + len(line) - 1 > 8192:
            lost.add(str(index))
        offset += len(line)
    found = recover_journal(path)
    assert 5 < len(lost) < 20
    assert ids_in(path) == [str(index) for index in range(100) if str(index) not in lost]
    assert (found.kept, found.dropped) == (100 - len(lost), 1)
    assert found.backup == f"{path}.damaged"
    assert Path(found.backup).read_bytes() == data
    assert sorted(os.listdir(path.parent)) == [path.name, f"{path.name}.damaged"]
    journal = opened(path)
    assert len(journal) == 100 - len(lost)
    journal.close(finished=True)


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (b"\0" * 50, ["0", "1", "2", "3"]),
        (LINES[2][:-1] + b"\0" * 50 + b"\n", ["0", "1", "2", "2", "3"]),  # only its newline is missing
        (LINES[2][:60] + b"\0" * 50, ["0", "1", "2", "3"]),
        (LINES[2][:60] + b"\n", ["0", "1", "2", "3"]),
        (b"\n\n", ["0", "1", "2", "3"]),
        (b"# not ours\n", ["0", "1", "2", "3"]),
    ],
)
def test_recovery_keeps_every_whole_line_around_the_damage(
    path: Path, damage: bytes, kept: list[str]
) -> None:
    path.write_bytes(LINES[0] + LINES[1] + damage + LINES[2] + LINES[3])
    found = recover_journal(path)
    assert ids_in(path) == kept
    assert found.kept == len(kept)
    assert found.dropped >= 1


def test_recovery_of_a_whole_journal_does_nothing(path: Path) -> None:
    fill(path, success("a"), failure("b", 1))
    before = path.stat()
    assert recover_journal(path) == omnigate.JournalRecovery(kept=2, dropped=0, backup=None)
    assert (path.stat().st_ino, path.stat().st_size) == (before.st_ino, before.st_size)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0" * 5000, "no line of it is a whole line of a journal"),
        (b"hello\n", "no line of it is a whole line of a journal"),
        (
            LINES[0] + b'{"of": "a later version"}\n' + LINES[1],
            "line 2 is whole, but is not a line of a journal",
        ),
    ],
)
def test_recovery_of_what_it_does_not_understand_is_an_error_that_changes_nothing(
    path: Path, content: bytes, message: str
) -> None:
    path.write_bytes(content)
    with pytest.raises(JournalError, match=message):
        recover_journal(path)
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


def test_recovery_never_overwrites_an_earlier_backup(path: Path) -> None:
    backup = path.with_name(f"{path.name}.damaged")
    backup.write_bytes(b"earlier")
    path.write_bytes(LINES[0] + b"\0\n" + LINES[1])
    with pytest.raises(
        JournalError, match=r"journal\.jsonl\.damaged', from an earlier recovery, is in the way"
    ):
        recover_journal(path)
    assert backup.read_bytes() == b"earlier"


def test_recovery_copies_the_original_where_it_cannot_link_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: str, target: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    content = LINES[0] + b"\0\n" + LINES[1]
    path.write_bytes(content)
    found = recover_journal(path)
    assert ids_in(path) == ["0", "1"]
    assert Path(str(found.backup)).read_bytes() == content


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_recovery_that_fails_leaves_the_journal_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    content = LINES[0] + b"\0\n" + LINES[1]
    path.write_bytes(content)
    monkeypatch.setattr(os, function, fail)
    with pytest.raises(JournalError, match=r"Cannot recover the journal .*No space left on device"):
        recover_journal(path)
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


def test_a_journal_in_use_is_not_recovered(path: Path) -> None:
    journal = opened(path)
    with pytest.raises(JournalError, match="is in use"):
        recover_journal(path)
    journal.close(finished=False)


def test_recovery_of_a_missing_file_is_an_error_and_creates_none(path: Path) -> None:
    with pytest.raises(JournalError, match="there is no such file"):
        recover_journal(path)
    assert not path.exists()
