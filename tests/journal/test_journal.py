"""The journal as a batch uses it: claimed, written, resumed, locked, compacted, and what may go wrong."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omnigate import ChatResponse, InvalidArgumentError, JournalError
from omnigate.journal import Journal
from omnigate.journal_lines import digest_of, encode_line
from omnigate.outcome import Outcome

from . import DIGEST, ask, failure, fill, opened, success

ROOT = Path(__file__).parents[2]  # from where the processes started here find the tests
OTHER = digest_of(ask("another"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def ids_in(path: Path) -> list[str]:
    """Return the ids of the lines; every one of them must be whole."""
    data = path.read_bytes()
    assert data == b"" or data.endswith(b"\n")
    return [json.loads(line)["custom_id"] for line in data.splitlines()]


def text(outcome: Outcome) -> bytes:
    return encode_line(outcome, DIGEST, created=0)


# What a run finds of the runs before.


def test_a_new_item_is_to_be_called(path: Path) -> None:
    journal = opened(path)
    assert journal.claim("a", DIGEST, 0) is None
    assert len(journal) == journal.replayable == 0
    journal.close(finished=True)
    assert path.read_bytes() == b""


def test_a_success_is_replayed_as_it_was(path: Path) -> None:
    before = success("a", 0, "the answer", cost_usd=0.5, latency_ms=7)
    fill(path, before)
    journal = opened(path)
    assert (len(journal), journal.replayable) == (1, 1)
    replay = journal.claim("a", DIGEST, 0)
    assert replay is not None
    assert replay.response == before.response
    assert replay.response is not None
    assert replay.response.meta.request_id == "req-1"
    assert (replay.attempts, replay.elapsed) == (2, 1.5)
    journal.close(finished=False)


def test_a_success_that_is_not_to_be_handed_out_is_known_without_its_response(path: Path) -> None:
    fill(path, success("a"))
    journal = opened(path)
    replay = journal.claim("a", DIGEST, 0, want_response=False)
    assert replay is not None
    assert replay.response is None
    journal.close(finished=False)


def test_a_failure_is_tried_again_and_its_new_end_counts(path: Path) -> None:
    fill(path, failure("a"), success("b", 1))
    journal = opened(path)
    assert (len(journal), journal.replayable) == (2, 1)
    assert journal.claim("a", DIGEST, 0) is None
    journal.write(success("a"), DIGEST)
    journal.close(finished=False)
    assert ids_in(path) == ["a", "b", "a"]
    journal = opened(path)
    assert (len(journal), journal.replayable) == (2, 2)
    assert journal.claim("a", DIGEST, 0) is not None
    journal.close(finished=False)


def test_the_last_line_of_an_id_counts(path: Path) -> None:
    path.write_bytes(text(success("a")) + text(success("b")) + text(failure("a")))
    journal = opened(path)
    assert (len(journal), journal.replayable) == (2, 1)
    assert journal.claim("a", DIGEST, 0) is None
    assert journal.claim("b", DIGEST, 1) is not None
    journal.close(finished=False)


def test_the_length_of_a_line_is_no_limit(path: Path) -> None:
    long = success("long", 1, "é" * 1_500_000)
    fill(path, success("a"), long, success("b", 2))
    journal = opened(path)
    replay = journal.claim("long", DIGEST, 1)
    assert replay is not None
    assert replay.response == long.response
    assert journal.claim("b", DIGEST, 2) is not None
    journal.close(finished=False)


def test_an_invalid_item_stands_for_no_request_and_may_be_mended(path: Path) -> None:
    journal = opened(path)
    journal.claim("a", "", 0)
    journal.write(Outcome(index=0, id="a", request=None, error=InvalidArgumentError("no")), "")
    journal.close(finished=False)
    journal = opened(path)
    assert journal.claim("a", DIGEST, 0) is None
    journal.write(success("a"), DIGEST)
    journal.close(finished=True)
    assert ids_in(path) == ["a"]


@pytest.mark.parametrize("id", ["", "\0", "\n", '"', "é", "\U0001f600", "x" * 10_000])
def test_any_text_is_an_id(path: Path, id: str) -> None:
    fill(path, success(id))
    journal = opened(path)
    assert journal.claim(id, DIGEST, 0) is not None
    journal.close(finished=False)


# What contradicts the journal.


@pytest.mark.parametrize("written", [False, True])
def test_an_id_that_comes_twice_is_an_error(path: Path, written: bool) -> None:
    journal = opened(path)
    journal.claim("twin", DIGEST, 3)
    if written:
        journal.write(success("twin", 3), DIGEST)
    with pytest.raises(JournalError, match=r"Item 8: the id 'twin' comes a second time"):
        journal.claim("twin", DIGEST, 8)
    journal.close(finished=False)


@pytest.mark.parametrize("earlier", [success("twin"), failure("twin")], ids=["success", "failure"])
def test_an_id_of_an_earlier_run_that_comes_twice_is_an_error(path: Path, earlier: Outcome) -> None:
    fill(path, earlier)
    journal = opened(path)
    journal.claim("twin", DIGEST, 3)
    with pytest.raises(JournalError, match=r"Item 8: the id 'twin' comes a second time"):
        journal.claim("twin", DIGEST, 8)
    journal.close(finished=False)


@pytest.mark.parametrize("earlier", [success("a"), failure("a")], ids=["success", "failure"])
@pytest.mark.parametrize("digest", [OTHER, ""], ids=["another request", "no valid request"])
@pytest.mark.parametrize("want_response", [True, False])
def test_an_id_that_stood_for_another_request_is_an_error(
    path: Path, earlier: Outcome, digest: str, want_response: bool
) -> None:
    fill(path, earlier)
    journal = opened(path)
    with pytest.raises(
        JournalError, match=r"Item 5: the id 'a' stands for another request .*another journal"
    ):
        journal.claim("a", digest, 5, want_response=want_response)
    journal.close(finished=False)
    assert ids_in(path) == ["a"]


def test_an_id_that_cannot_be_written_is_an_error(path: Path) -> None:
    journal = opened(path)
    with pytest.raises(JournalError, match="Item 4: the id .* is not valid Unicode"):
        journal.claim("\ud800", DIGEST, 4)
    journal.close(finished=False)


# What is left of a run that was killed.

THREE = [success("a", 0, "first"), failure("b", 1), success("c", 2, "öäü 😀")]


def test_a_journal_cut_at_any_byte_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # a thousand times
    lines = [text(outcome) for outcome in THREE]
    whole = b"".join(lines)
    ends = [sum(map(len, lines[:number])) for number in range(4)]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        journal = opened(path)
        # A line that lacks nothing but its newline is whole.
        left = sum(cut >= end - 1 for end in ends[1:])
        assert len(journal) == left
        for outcome in THREE:
            replay = journal.claim(outcome.id, DIGEST, outcome.index)
            if outcome.index < left and outcome.response is not None:
                assert replay is not None
                assert replay.response == outcome.response
            else:
                assert replay is None
                journal.write(success(outcome.id, outcome.index), DIGEST)
        journal.close(finished=True)
        assert sorted(ids_in(path)) == ["a", "b", "c"]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    runs=st.lists(
        st.tuples(
            st.lists(st.tuples(st.text(max_size=3), st.booleans(), st.text(max_size=20)), max_size=8),
            st.floats(0, 1),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_runs_cut_anywhere_never_lose_a_line_before_the_cut(path: Path, runs: list[Any]) -> None:
    path.unlink(missing_ok=True)
    for items, cut, finished in runs:
        journal = opened(path)
        successes: dict[str, ChatResponse] = {}
        for index, (id, succeeds, content) in enumerate({item[0]: item for item in items}.values()):
            replay = journal.claim(id, DIGEST, index)
            if replay is not None:
                assert replay.response is not None
                successes[id] = replay.response
                continue
            outcome = success(id, index, content) if succeeds else failure(id, index)
            journal.write(outcome, DIGEST)
            if outcome.response is not None:
                successes[id] = outcome.response
        journal.close(finished=finished)
        if finished:
            assert len(ids_in(path)) == len(set(ids_in(path)))
        journal = opened(path)
        for id, response in successes.items():
            replay = journal.claim(id, DIGEST, 0)
            assert replay is not None
            assert replay.response == response
        journal.close(finished=False)
        data = path.read_bytes()
        kept = data[: round(len(data) * cut)]
        path.write_bytes(kept)
        journal = opened(path)
        journal.close(finished=False)
        before = path.read_bytes()
        assert before.startswith(kept[: kept.rfind(b"\n") + 1])


@pytest.mark.parametrize(
    "tail",
    [
        b"\0" * 5000,
        b"\0" * 5000 + b"\n",
        b"rubbish",
        b"rubbish\n",
        text(failure("c"))[:-40],
        b"\n",
        b"\xff\n",
        b"{}\n",
    ],
)
def test_rubbish_at_the_end_is_cut_off(path: Path, tail: bytes) -> None:
    good = text(success("a")) + text(success("b", 1))
    path.write_bytes(good + tail)
    journal = opened(path)
    assert path.read_bytes() == good
    assert len(journal) == 2
    journal.close(finished=False)


@pytest.mark.parametrize("left", [b"\0" * 5000, text(success("a"))[:40], b'{"id'])
def test_a_journal_that_has_nothing_but_half_a_line_is_begun_again(path: Path, left: bytes) -> None:
    path.write_bytes(left)
    fill(path, success("a"))
    assert ids_in(path) == ["a"]


@pytest.mark.parametrize(
    "damage", [b"rubbish\n", b"\0\0\n", b"\n", text(success("c"))[:-40] + b"\n", b"{}\n"]
)
def test_rubbish_before_other_lines_is_an_error_that_names_its_line(path: Path, damage: bytes) -> None:
    before, after = text(success("a")) + text(success("b", 1)), text(success("d", 3))
    path.write_bytes(before + damage + after)
    with pytest.raises(JournalError, match=r"journal\.jsonl', line 3, is not a line of a journal"):
        opened(path)
    assert path.read_bytes() == before + damage + after
    path.write_bytes(before + after)  # as the message says; and the lock was given back
    opened(path).close(finished=False)


@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        b"hello\nworld\n",
        b"\x89PNG\r\n\x1a\n",
        b"{}",
        b'{"messages": "a prompt"}\n',
        b'{"custom_id":"a","method":"POST","url":"/v1/chat","body":{}}\n' * 3,
        b'{"id":"batch_req_1","custom_id":"a","response":null,"error":{"code":"x","message":"y"}}\n',
        b"\xef\xbb\xbf" + text(success("a")),
        os.urandom(3_000_000).replace(b"\n", b"x"),
    ],
)
def test_another_kind_of_file_is_refused_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(JournalError, match=r"line 1, is not a line of a journal"):
        opened(path)
    assert path.read_bytes() == content


# The file.


@pytest.mark.skipif(sys.platform == "win32", reason="has no such modes")
def test_only_the_owner_can_read_it(path: Path) -> None:
    fill(path, failure("a"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    fill(path, success("a"), finished=True)
    assert ids_in(path) == ["a"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(sys.platform == "win32", reason="has no such modes")
def test_compaction_keeps_the_mode_its_owner_gave_it(path: Path) -> None:
    fill(path, failure("a"))
    path.chmod(0o640)
    fill(path, success("a"), finished=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_line_is_in_the_file_when_write_returns(path: Path) -> None:
    journal = opened(path)
    for index in range(3):
        journal.claim(str(index), DIGEST, index)
        journal.write(success(str(index), index), DIGEST)
        assert ids_in(path) == [str(number) for number in range(index + 1)]
    journal.close(finished=False)


def test_a_line_is_one_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_symbolic_link_is_followed_and_stays_one(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.jsonl"
    try:
        link.symlink_to(path)
    except OSError:
        pytest.skip("no symbolic links here")
    fill(link, failure("a"))
    fill(link, success("a"), finished=True)
    assert link.is_symlink()
    assert ids_in(path) == ["a"]


def test_a_change_of_directory_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_closing_twice_is_closing_once_and_a_repr_tells_the_state(path: Path) -> None:
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


# Paths that do not lead to a journal. Modes are no use here: they do not hold for root.


def test_a_directory_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="is a directory"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("below", "code"), [("file/journal.jsonl", errno.ENOTDIR), ("missing/journal.jsonl", errno.ENOENT)]
)
def test_a_path_that_cannot_be_opened_is_an_error_with_the_systems_reason(
    tmp_path: Path, below: str, code: int
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(JournalError, match=rf"Cannot open the journal '.*': {os.strerror(code)}\.") as caught:
        opened(tmp_path / below)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_path_with_a_nul_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be the path of a journal"):
        opened(f"{tmp_path}/a\0b")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's")
def test_a_device_is_no_journal() -> None:
    with pytest.raises(JournalError, match="is not a regular file"):
        opened("/dev/full")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no such files")
def test_a_pipe_is_no_journal_and_is_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(JournalError, match="is not a regular file"):
        opened(path)


@pytest.mark.skipif(not os.path.exists("/proc/version"), reason="Linux's")
def test_a_path_that_nobody_can_write_is_an_error() -> None:
    with pytest.raises(JournalError, match="/proc/version"):
        opened("/proc/version")


# Disks that do not take it.

# A limit on the size of files stops a write where a full disk does: part of it is taken first.
FULL_DISK = """
import resource, sys
from omnigate import JournalError
from tests.journal import DIGEST, failure, opened, success

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
def test_a_full_disk_is_an_error_and_loses_nothing_that_was_done(
    path: Path, lines: int, spare: int, fits: bool
) -> None:
    a_line = encode_line(success("0", 0, "x" * 300), DIGEST, created=1_795_000_000)
    limit = lines * len(a_line) + spare
    ran = subprocess.run(
        [sys.executable, "-c", FULL_DISK, path, str(limit)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert ran.returncode == 0, ran.stderr
    first, second = ran.stdout.splitlines()
    done = int(first.split()[0])
    assert f"Cannot write to the journal {str(path)!r}: File too large." in first
    assert first.endswith("OSError")
    assert second == ("room" if fits else "no room")
    assert ids_in(path) == [str(number) for number in range(done + fits)]
    journal = opened(path)
    assert journal.replayable == done == lines
    journal.close(finished=False)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
def test_a_write_that_the_system_splits_is_completed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(path)
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:100]))
    journal.claim("a", DIGEST, 0)
    journal.write(success("a"), DIGEST)
    journal.close(finished=False)
    assert ids_in(path) == ["a"]


def test_a_file_that_has_become_unwritable_gets_no_half_lines(path: Path) -> None:
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
    with pytest.raises(JournalError, match="takes no more lines: half a line is at its end"):
        journal.write(success("b", 1), DIGEST)
    journal.close(finished=False)
    assert ids_in(path) == ["a"]


def test_after_an_interrupted_write_nothing_is_written_any_more(
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
from tests.journal import DIGEST, opened, success

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


def start(source: str, *arguments: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", source, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_journal_in_use_by_another_process_is_refused_until_that_dies(path: Path) -> None:
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


def test_processes_killed_while_they_write_leave_whole_lines(path: Path) -> None:
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
        assert known == journal.replayable >= 100
        assert ids_in(path) == [str(number) for number in range(known)]
        journal.close(finished=False)


# Compaction.


def test_a_finished_run_leaves_one_line_an_id_in_the_order_they_ended(path: Path) -> None:
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
    assert (len(journal), journal.replayable) == (4, 3)
    journal.close(finished=False)


def test_ids_of_earlier_runs_that_this_one_did_not_have_are_kept(path: Path) -> None:
    fill(path, failure("a"), success("other"))
    fill(path, success("a"), finished=True)
    assert ids_in(path) == ["other", "a"]


def test_a_run_that_is_left_early_keeps_all_lines(path: Path) -> None:
    fill(path, failure("a"))
    fill(path, success("a"), finished=False)
    assert ids_in(path) == ["a", "a"]


def test_a_journal_with_one_line_an_id_is_not_written_again(path: Path) -> None:
    fill(path, success("a"), success("b", 1))
    inode = path.stat().st_ino
    opened(path).close(finished=True)
    assert path.stat().st_ino == inode


def test_lines_are_kept_byte_by_byte_whoever_wrote_them(path: Path) -> None:
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
def test_a_compaction_that_fails_leaves_the_journal_as_it_was(
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
        expected = JournalError if isinstance(raised, OSError) else Killed
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


KILLED_COMPACTION = """
import os, signal, sys
from tests.journal import DIGEST, opened, success

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
def test_a_compaction_that_is_killed_leaves_one_journal_or_the_other(
    path: Path, function: str, when: str
) -> None:
    fill(path, failure("a"), success("b", 1))
    with start(KILLED_COMPACTION, path, function, when) as process:
        assert process.wait() == -signal.SIGKILL
    whole = ids_in(path)
    assert whole == (["b", "a"] if (function, when) == ("replace", "after") else ["a", "b", "a"])
    journal = opened(path)  # which removes what was left
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert (len(journal), journal.replayable) == (2, 2)
    journal.close(finished=True)
    assert ids_in(path) == ["b", "a"]


def test_whoever_opens_during_a_compaction_finds_the_journal_in_use(
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
def test_a_file_that_is_replaced_between_its_opening_and_its_lock_is_opened_again(
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
def test_a_journal_that_was_moved_away_is_not_compacted_over_another(path: Path, replaced: bool) -> None:
    fill(path, failure("a"))
    journal = opened(path)
    journal.claim("a", DIGEST, 0)
    journal.write(success("a"), DIGEST)
    moved = path.rename(path.with_suffix(".moved"))
    if replaced:
        path.write_bytes(b"somebody else's")
    with pytest.raises(JournalError, match="moved or deleted"):
        journal.close(finished=True)
    assert ids_in(moved) == ["a", "a"]
    assert path.read_bytes() == b"somebody else's" if replaced else not path.exists()


def test_a_journal_that_another_program_wrote_to_is_not_compacted(path: Path) -> None:
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


def test_a_line_that_is_gone_when_it_is_needed_is_an_error(path: Path) -> None:
    fill(path, success("a"), success("b", 1))
    journal = opened(path)
    os.truncate(path, 10)
    with pytest.raises(JournalError, match="was changed by another program"):
        journal.claim("a", DIGEST, 0)
    journal.close(finished=False)
