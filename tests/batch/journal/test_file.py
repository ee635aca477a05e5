"""The file under a journal: permissions, paths that are not journals, and disks that fail."""

import contextlib
import errno
import os
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from omnigate import JournalError
from omnigate._batch.journal import file as file_module
from omnigate._batch.journal.file import NotCompactedError
from omnigate._batch.journal.journal import Journal
from omnigate._batch.journal.lines import encode_line

from . import DIGEST, failure, fill, ids_in, opened, replayable, start, success, text


@pytest.mark.skipif(sys.platform == "win32", reason="has no such modes")
def test_a_new_journal_is_readable_by_its_owner_only(path: Path) -> None:
    fill(path, failure("a"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    fill(path, success("a"), finished=True)
    assert ids_in(path) == ["a"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(sys.platform == "win32", reason="has no such modes")
def test_compaction_keeps_the_file_mode_of_the_journal(path: Path) -> None:
    fill(path, failure("a"))
    path.chmod(0o640)
    fill(path, success("a"), finished=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_journal_line_is_in_the_file_when_write_returns(path: Path) -> None:
    journal = opened(path)
    for index in range(3):
        journal.claim(str(index), DIGEST, index)
        journal.write(success(str(index), index), DIGEST)
        assert ids_in(path) == [str(number) for number in range(index + 1)]
    journal.close(finished=False)


def test_a_journal_line_is_written_in_one_system_call(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(path)
    writes: list[int] = []
    real = os.write

    def write(fd: int, data: bytes) -> int:
        writes.append(len(data))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    journal.claim("a", DIGEST, 0)
    journal.write(success("a", 0, "x" * 100_000), DIGEST)
    assert writes == [path.stat().st_size]
    journal.close(finished=False)


def test_a_symbolic_link_to_a_journal_is_followed_and_kept(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.jsonl"
    try:
        link.symlink_to(path)
    except OSError:
        pytest.skip("no symbolic links here")
    fill(link, failure("a"))
    fill(link, success("a"), finished=True)
    assert link.is_symlink()
    assert ids_in(path) == ["a"]


def test_a_journal_with_a_relative_path_survives_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fill("journal.jsonl", failure("a"))
    journal = opened("journal.jsonl")
    journal.claim("a", DIGEST, 0)
    journal.write(success("a"), DIGEST)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    journal.close(finished=True)
    assert ids_in(tmp_path / "journal.jsonl") == ["a"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["below", "journal.jsonl"]


def test_closing_a_journal_twice_is_harmless_and_its_repr_tells_the_state(path: Path) -> None:
    journal = Journal(path)
    assert repr(journal) == f"<Journal {str(path)!r}: closed>"
    journal.close(finished=True)
    assert not path.exists()
    journal.open()
    journal.claim("a", DIGEST, 0)
    journal.write(success("a"), DIGEST)
    journal.claim("b", DIGEST, 1)
    assert repr(journal) == f"<Journal {str(path)!r}: open, 1 ids, 1 claimed>"
    journal.close(finished=False)
    journal.close(finished=True)
    assert repr(journal) == f"<Journal {str(path)!r}: closed>"


# Paths that are not journals. File modes are not tested: root ignores them.


def test_a_directory_is_refused_as_a_journal(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="is a directory"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("below", "code"), [("file/journal.jsonl", errno.ENOTDIR), ("missing/journal.jsonl", errno.ENOENT)]
)
def test_a_journal_path_that_cannot_be_opened_is_an_error_with_the_systems_reason(
    tmp_path: Path, below: str, code: int
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(JournalError, match=rf"Cannot open the journal '.*': {os.strerror(code)}\.") as caught:
        opened(tmp_path / below)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_journal_path_with_a_nul_character_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be the path of a journal"):
        opened(f"{tmp_path}/a\0b")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's")
def test_a_device_is_refused_as_a_journal() -> None:
    with pytest.raises(JournalError, match="is not a regular file"):
        opened("/dev/full")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no such files")
def test_a_named_pipe_is_refused_as_a_journal_without_blocking(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(JournalError, match="is not a regular file"):
        opened(path)


@pytest.mark.skipif(not os.path.exists("/proc/version"), reason="Linux's")
def test_a_journal_path_without_write_permission_is_an_error() -> None:
    with pytest.raises(JournalError, match="/proc/version"):
        opened("/proc/version")


# Disks that fail.

# A limit on the file size acts like a full disk: the write that reaches it is cut short.
FULL_DISK = """
import resource, sys
from omnigate import JournalError
from tests.batch.journal import DIGEST, failure, opened, success

path, limit = sys.argv[1], int(sys.argv[2])
journal = opened(path)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
index = 0
while True:
    id = str(index)
    journal.claim(id, DIGEST, index)
    try:
        journal.write(success(id, index, "x" * 300), DIGEST)
    except JournalError as error:
        print(index, error, type(error.__cause__).__name__)
        break
    index += 1
try:  # the item has not ended: a shorter line may still find room
    journal.write(failure(id, index), DIGEST)
except JournalError:
    print("no room")
else:
    print("room")
journal.close(finished=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
@pytest.mark.parametrize(
    ("lines", "spare", "fits"), [(5, 350, True), (5, 50, False), (5, 0, False), (0, 1, False)]
)
def test_a_full_disk_is_a_journal_error_and_loses_no_completed_line(
    path: Path, lines: int, spare: int, fits: bool
) -> None:
    a_line = encode_line(success("0", 0, "x" * 300), DIGEST, created=1_795_000_000)
    limit = lines * len(a_line) + spare
    ran = subprocess.run(
        [sys.executable, "-c", FULL_DISK, path, str(limit)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert ran.returncode == 0, ran.stderr
    first, second = ran.stdout.splitlines()
    done = int(first.split()[0])
    assert f"Cannot write to the journal {str(path)!r}: File too large." in first
    assert first.endswith("OSError")
    assert second == ("room" if fits else "no room")
    assert ids_in(path) == [str(number) for number in range(done + fits)]
    journal = opened(path)
    assert replayable(journal) == done == lines
    journal.close(finished=False)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
def test_a_short_write_to_the_journal_is_completed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(path)
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:100]))
    journal.claim("a", DIGEST, 0)
    journal.write(success("a"), DIGEST)
    journal.close(finished=False)
    assert ids_in(path) == ["a"]


def test_a_journal_that_becomes_read_only_takes_no_more_lines(path: Path) -> None:
    journal = opened(path)
    journal.claim("a", DIGEST, 0)
    journal.write(success("a"), DIGEST)
    assert journal._file is not None
    read_only = os.open(path, os.O_RDONLY)
    os.dup2(read_only, journal._file._fd)  # as if the file system had been remounted read-only
    os.close(read_only)
    journal.claim("b", DIGEST, 1)
    with pytest.raises(JournalError, match=rf"Cannot write to the journal .*: {os.strerror(errno.EBADF)}"):
        journal.write(success("b", 1), DIGEST)
    # It could not even be shortened, so nothing may be put behind what may be half a line.
    with pytest.raises(JournalError, match="takes no more lines: it ends with a partial line"):
        journal.write(success("b", 1), DIGEST)
    journal.close(finished=False)
    assert ids_in(path) == ["a"]


def test_a_journal_takes_no_more_lines_after_an_interrupted_write(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened(path)
    real = os.write

    def write(fd: int, data: bytes) -> int:
        real(fd, data)
        raise KeyboardInterrupt  # as Python does, once the system call has returned

    journal.claim("a", DIGEST, 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(KeyboardInterrupt):
            journal.write(success("a"), DIGEST)
    journal.claim("b", DIGEST, 1)
    with pytest.raises(JournalError, match="writing was interrupted"):
        journal.write(success("b", 1), DIGEST)
    journal.close(finished=False)
    assert ids_in(path) == ["a"]


# Processes.

HOLDER = """
import os, sys, time
from tests.batch.journal import DIGEST, opened, success

journal = opened(sys.argv[1])
index = 0
while True:
    journal.claim(str(index), DIGEST, index)
    journal.write(success(str(index), index), DIGEST)
    if index == 0:
        print("ready", flush=True)
    index += 1
    if sys.argv[2] == "one":
        sys.stdin.read()
"""


def test_a_journal_in_use_by_another_process_is_refused_until_that_process_dies(path: Path) -> None:
    with start(HOLDER, path, "one") as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            with pytest.raises(JournalError, match="is in use by another process"):
                opened(path)
            assert ids_in(path) == ["0"]
        finally:
            holder.kill()
            holder.wait()
        journal = opened(path)
        assert journal.claim("0", DIGEST, 0) is not None
        journal.close(finished=False)


def test_a_journal_in_use_by_this_process_is_refused(path: Path) -> None:
    first = opened(path)
    with pytest.raises(JournalError, match="or by another batch of this one"):
        opened(path)
    first.close(finished=False)
    opened(path).close(finished=False)


@pytest.mark.proof
def test_processes_killed_while_writing_leave_only_whole_journal_lines(path: Path) -> None:
    known = 0
    for _ in range(5):
        path.unlink(missing_ok=True)
        with start(HOLDER, path, "many") as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            while path.stat().st_size < 100_000:
                pass
            holder.kill()
            holder.wait()
        journal = opened(path)
        known = len(journal)
        assert known == replayable(journal) >= 100
        assert ids_in(path) == [str(number) for number in range(known)]
        journal.close(finished=False)


# A file that others change meanwhile. A lock does not prevent that.


def rotate(path: Path) -> None:
    path.rename(path.with_suffix(".1"))
    path.touch()


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "deleted": (Path.unlink, "was deleted or moved while it was in use"),
    "moved": (lambda path: path.rename(path.with_suffix(".1")), "was deleted or moved while it was in use"),
    "rotated": (rotate, "was replaced by another file while it was in use"),
    "truncated": (lambda path: os.truncate(path, 0), "was truncated by another program while it was in use"),
}


@pytest.mark.skipif(sys.platform == "win32", reason="keeps others from changing an open file")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", ["sync", "close", "finish"])
def test_a_journal_that_others_change_is_noticed_when_it_is_synced_and_closed(
    path: Path, change: str, how: str
) -> None:
    act, words = CHANGES[change]
    fill(path, failure("a"))
    journal = opened(path)
    journal.claim("a", DIGEST, 0)
    journal.write(success("a"), DIGEST)
    act(path)
    with pytest.raises(JournalError, match=words):
        journal.sync() if how == "sync" else journal.close(finished=how == "finish")
    if how == "sync":
        with pytest.raises(JournalError, match=words):
            journal.close(finished=True)


@pytest.mark.parametrize(
    ("change", "how"), [(b"", "truncated"), (b"x" * 10_000, "written to"), (None, "written to")]
)
def test_a_journal_that_others_write_to_is_noticed_at_the_next_line(
    path: Path, change: bytes | None, how: str
) -> None:
    journal = opened(path)
    journal.claim("a", DIGEST, 0)
    journal.write(success("a"), DIGEST)
    if change is None:
        with path.open("ab") as file:
            file.write(b"more\n")
    else:
        os.truncate(path, 0)
        path.write_bytes(change)
    journal.claim("b", DIGEST, 1)
    with pytest.raises(JournalError, match=f"was {how} by another program while it was in use"):
        journal.write(success("b", 1), DIGEST)
    assert path.read_bytes().endswith(text(success("b", 1))[-20:])  # it was paid for
    with pytest.raises(JournalError, match="takes no more lines"):
        journal.write(success("b", 1), DIGEST)
    with contextlib.suppress(JournalError):
        journal.close(finished=False)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such owners")
def test_compaction_by_root_keeps_the_owner_of_the_journal(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(path, failure("a"))
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
        fill(path, success("a"), finished=True)
        assert ids_in(path) == ["a"]
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)
    owner = path.stat()

    def fchown(fd: int, uid: int, gid: int) -> None:
        assert (uid, gid) == (owner.st_uid, owner.st_gid)
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    fill(path, success("a"))
    before = path.read_bytes()
    if os.geteuid() == 0:
        monkeypatch.setattr(os, "fchown", fchown)
        with pytest.raises(NotCompactedError, match="Cannot compact"):  # rather than to take it away
            opened(path).close(finished=True)
        assert path.read_bytes() == before


# File systems without locks.


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_an_error_that_names_the_way_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def lock(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(file_module, "lock_file", lock)
    with pytest.raises(JournalError, match=r"its file system has no locks \(.*\).* pass journal_lock=False"):
        opened(path)
    journal = Journal(path, lock=False)
    journal.open()
    journal.claim("a", DIGEST, 0)
    journal.write(failure("a"), DIGEST)
    journal.close(finished=False)
    journal.open()
    journal.claim("a", DIGEST, 0)
    journal.write(success("a"), DIGEST)
    journal.close(finished=True)
    assert ids_in(path) == ["a"]
    assert os.listdir(path.parent) == [path.name]


# Forked processes.

FORK = """
import os, sys, time
from tests.batch.journal import DIGEST, failure, opened, success

path, is_killed = sys.argv[1], sys.argv[2] == "killed"
journal = opened(path)
journal.claim("a", DIGEST, 0)
journal.write(success("a"), DIGEST)
if os.fork() == 0:
    try:
        journal.claim("b", DIGEST, 1)
        journal.write(success("b", 1), DIGEST)
    except Exception as error:
        os.write(1, f"child: {type(error).__name__}\\n".encode())  # in one piece
    journal.close(finished=True)
    sys.stdin.read()
    os._exit(0)
if not is_killed:
    journal.close(finished=False)
    opened(path).close(finished=False)
os.write(1, b"parent\\n")
sys.stdin.read() if not is_killed else os._exit(1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="does not fork")
@pytest.mark.parametrize("ending", ["closed", "killed"])
def test_a_forked_child_keeps_no_lock_of_a_journal_and_writes_nothing(path: Path, ending: str) -> None:
    with start(FORK, path, ending) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        printed = {process.stdout.readline(), process.stdout.readline()}
        assert printed == {"parent\n", "child: JournalError\n"}
        if ending == "killed":
            process.wait(60)
        journal = opened(path)  # while the child lives
        assert ids_in(path) == ["a"]
        journal.close(finished=False)
        process.stdin.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="does not fork")
def test_a_forked_child_leaves_its_parent_the_lock(path: Path) -> None:
    journal = opened(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking a process that has threads
        child = os.fork()
    if child == 0:
        journal.close(finished=True)
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(JournalError, match="is in use"):
        opened(path)
    journal.close(finished=False)
