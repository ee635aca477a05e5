"""The journal of a batch: each item's outcome, on file before another call takes its place.

A file of lines (`lines`), written through (`file`) and looked up by id (`index`). A batch killed at any
instant resumes from it. The rules:

1. An item is claimed when it is read, and written when it has ended. In between it is in `_claimed`, which
   is as large as the number of items in flight; besides that, only the index is in memory.
2. An id's last line counts. A success is not called again; a failure is.
3. An id is claimed once per run, and identifies one request: a different request under a recorded id, or a
   repeated id, is an error in the input, raised when that item is read. A line without a digest comes from
   an invalid item; any request may follow under its id.
4. Only the last line may be damaged: a crash leaves that, and it is cut off. (A last line that lacks only
   its newline is kept, and gets one.) A damaged line before others has another cause: it is an error that
   names the line, and the file stays unchanged.
5. A finished run leaves one line for each id, in the order they ended. If compacting fails, the older lines
   stay: nothing is lost, so the run still returns its results.

Plain synchronous code, for one thread at a time. Opening, and closing a finished run, read the whole file;
other calls take microseconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import msgspec

from omnigate._batch.journal.file import JournalFile, NotCompactedError
from omnigate._batch.journal.index import SEEN, SUCCEEDED, JournalIndex, make_entry, offset_of
from omnigate._batch.journal.lines import Line, decode_id, decode_line, encode_line, is_torn, split_lines
from omnigate._batch.outcomes import Outcome
from omnigate.exceptions import JournalError
from omnigate.models import ChatResponse

__all__ = ["Journal", "JournalWarning", "NotCompactedError", "Replay"]

_READ_BYTES = 4096


class JournalWarning(UserWarning):
    """A finished run's journal could not be compacted. It has every outcome, plus older lines of some ids."""


class Replay(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A success of an earlier run.

    Attributes:
        response: the response; None if not asked for.
        attempts: how many times the item was sent in that run.
        elapsed: how many seconds it took.

    """

    response: ChatResponse | None
    attempts: int
    elapsed: float


class Journal:
    """The outcomes of a batch in a file, for this run and later ones.

    Lines survive a crash of the process. They survive a crash of the machine once the system has flushed them
    to disk, which `close(finished=True)` waits for.

    Args:
        path: path of the file, created readable by its owner only if it does not exist.

    """

    __slots__ = ("_claimed", "_file", "_index", "_last_read", "_path", "_superseded")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fsdecode(path)
        self._file: JournalFile | None = None
        self._index = JournalIndex(self._id_at)
        self._claimed: dict[str, int | None] = {}  # ids in flight, with the entry of an earlier failure
        self._last_read: tuple[int, Line] | None = None
        self._superseded = 0  # lines of ids that have a later one

    def __len__(self) -> int:
        """Return how many ids have a line."""
        return len(self._index)

    def __repr__(self) -> str:
        state = "closed" if self._file is None else f"open, {len(self)} ids, {len(self._claimed)} claimed"
        return f"<Journal {self._path!r}: {state}>"

    def open(self) -> None:
        """Open and lock the file, creating it if needed, and read it.

        Raises:
            JournalError: it cannot be opened, is in use, is not a journal, or a line before the last one is
                damaged. The file is unchanged.

        """
        assert self._file is None, "opened twice"
        self._file = JournalFile.open(self._path)
        try:
            self._read()
        except BaseException:
            self.close(finished=False)
            raise

    def claim(self, id: str, digest: str, index: int, *, want_response: bool = True) -> Replay | None:
        """Claim an item that was read; return its earlier success, or None if it has to be called.

        Args:
            id: the item's id.
            digest: `digest_of` its request; "" if it is not a valid one.
            index: its position in the input, for messages.
            want_response: whether to rebuild the response of an earlier success.

        Raises:
            JournalError: the id was claimed before in this run, is recorded with another request, or is not
                valid Unicode.

        """
        entry = self._index.find(id)
        if id in self._claimed or (entry is not None and entry & SEEN):
            raise JournalError(
                f"Item {index}: the id {id!r} is used twice. Give each item its own id; items without "
                "one get their index."
            )
        if entry is None:
            _check_writable(id, index)
            self._claimed[id] = None
            return None
        line = self._line_at(offset_of(entry))
        if line.digest and line.digest != digest:
            raise JournalError(
                f"Item {index}: the id {id!r} belongs to another request in the journal {self._path!r}. "
                "Give it another id, or pass another journal. (Items without an id get their index; "
                "if items were added, removed or reordered, give all of them ids.)"
            )
        if not entry & SUCCEEDED:
            self._claimed[id] = entry
            return None
        self._index.replace(id, entry, entry | SEEN)
        response = line.chat_response() if want_response else None
        return Replay(response, line.omnigate.attempts, line.omnigate.elapsed)

    def write(self, outcome: Outcome, digest: str) -> None:
        """Write the outcome of an item; the line is complete in the file when this returns.

        Args:
            outcome: outcome of a claimed item.
            digest: the digest it was claimed with.

        Raises:
            JournalError: the write failed (a full disk, a quota, …: the reason is in the message, the
                `OSError` is its cause). Earlier lines are whole, and the write may be retried.

        """
        assert self._file is not None, "not open"
        id = outcome.id
        line = encode_line(outcome, digest, created=int(time.time()))
        offset = self._file.append(line)
        new = make_entry(offset, succeeded=outcome.response is not None, seen=True)
        old = self._claimed.pop(id) if id in self._claimed else self._index.find(id)
        if old is None:
            self._index.add(id, new)
        else:
            self._index.replace(id, old, new)
            self._superseded += 1

    def close(self, *, finished: bool) -> None:
        """Close and unlock the file; idempotent.

        Args:
            finished: whether all items have ended. If so, the file is compacted to the last line of each
                id, by an atomic replacement, and flushed to disk before this returns.

        Raises:
            NotCompactedError: everything is on disk, only compacting failed.
            JournalError: the flush failed. In either case the journal has all its lines, and is closed.

        """
        file, self._file = self._file, None
        if file is None:
            return
        try:
            if finished and self._superseded:
                try:
                    self._compact(file)
                except NotCompactedError:
                    if file.is_open:
                        file.sync()
                    raise
            elif finished:
                file.sync()
        finally:
            file.close()
            self._index = JournalIndex(self._id_at)
            self._claimed.clear()
            self._last_read = None
            self._superseded = 0

    def _read(self) -> None:
        file = self._file
        assert file is not None
        index = self._index
        damaged: tuple[int, int, bytes] | None = None
        end = file.size
        if end and file.read_at(0, 1) not in b"{\0":
            raise self._not_a_journal(1)
        for number, (offset, raw) in enumerate(split_lines(file.read_at), 1):
            if damaged is not None:
                raise self._not_a_journal(damaged[0])
            line = decode_line(raw)
            if line is None and offset + len(raw) == end and (line := decode_line(raw.rstrip(b"\0"))):
                raw = raw.rstrip(b"\0")  # a whole line, before zeros where its newline never arrived
                end = offset + len(raw)
                file.truncate(end)
            if line is None:
                damaged = number, offset, raw
                continue
            self._last_read = offset, line
            id = line.custom_id
            new = make_entry(offset, succeeded=line.succeeded, seen=False)
            old = index.find(id)
            if old is None:
                index.add(id, new)
            else:
                index.replace(id, old, new)
                self._superseded += 1
            if offset + len(raw) == end:
                file.append(b"\n")
        if damaged is not None:
            number, offset, raw = damaged
            if number == 1 and not is_torn(raw):
                raise self._not_a_journal(1)
            file.truncate(offset)

    def _not_a_journal(self, number: int) -> JournalError:
        return JournalError(
            f"{self._path!r}, line {number}, is not a line of a journal: this is another kind of file, or it "
            "was damaged. Nothing in it was changed. Pass another path, or remove that line."
        )

    def _compact(self, file: JournalFile) -> None:
        kept = 0

        def lines() -> Iterator[bytes]:
            nonlocal kept
            for offset, raw in split_lines(file.read_at):
                id = decode_id(raw)
                if id is not None and self._index.has(id, offset):
                    kept += 1
                    yield raw + b"\n"

        def check() -> None:
            if kept != len(self._index):
                raise NotCompactedError(
                    f"The journal {self._path!r} was changed by another program while it was in use, so it "
                    "was not compacted."
                )

        file.replace(lines(), check)

    def _id_at(self, offset: int) -> str:
        return self._line_at(offset).custom_id

    def _line_at(self, offset: int) -> Line:
        if self._last_read is not None and self._last_read[0] == offset:
            return self._last_read[1]
        assert self._file is not None, "not open"
        size, raw = _READ_BYTES, b""
        while b"\n" not in raw and (more := self._file.read_at(offset + len(raw), size)):
            raw += more
            size *= 2
        line = decode_line(raw[: raw.find(b"\n") + 1])
        if line is None:
            raise JournalError(
                f"The journal {self._path!r} was changed by another program while it was in use: there is no "
                f"line at byte {offset} any more."
            )
        self._last_read = offset, line
        return line


def _check_writable(id: str, index: int) -> None:
    if not id.isascii():
        try:
            id.encode()
        except UnicodeEncodeError as error:
            raise JournalError(f"Item {index}: the id {id!r} is not valid Unicode text.") from error
