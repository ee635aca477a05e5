"""The journal of a batch: how each item ended, on disk before another call takes its place.

A file of lines (`journal_lines`), written through (`journal_file`) and found again by id
(`journal_index`). A batch that is killed at any instant goes on with it where it was. The rules:

1. An item is claimed when it is read, and written when it has ended. Between the two it is in `_claimed`,
   which is as large as what is in flight; everything else that is kept in memory is the index.
2. An id's last line counts. A success is not called again; a failure is.
3. An id is claimed once in a run, and stands for one request: another request under the id of a line, or
   an id that comes twice, is an error of the input, raised when that item is read. A line without a
   digest, of an item that was no valid request, stands for none and may be followed by any.
4. Only the last line may be damaged: that is what a crash leaves, and it is cut off. (A last line that is
   whole but for its newline is kept, and gets it.) A damaged line before others is nothing a crash of ours
   leaves: it is an error, which names it, and the file stays as it is.
5. A run that has finished leaves one line for each id, in the order in which they ended. If that cannot be
   done, the older lines stay: nothing is lost, and it is no reason to lose the answers of the run.

Plain synchronous code, for one thread at a time. Opening, and closing a finished run, read the whole file;
the calls in between take microseconds.
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
    """A finished run's journal could not be compacted. It has every outcome, and older lines of some ids."""


class Replay(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A success of an earlier run.

    Attributes:
        response: the answer; None if it was not wanted.
        attempts: how many times the item was sent in its own run.
        elapsed: how many seconds it took there.

    """

    response: ChatResponse | None
    attempts: int
    elapsed: float


class Journal:
    """The outcomes of a batch in a file, for its use and that of later runs.

    What is written survives the death of the process. It survives that of the machine once the system has
    written it out, which `close(finished=True)` waits for.

    Args:
        path: of the file. One that does not exist yet is made, readable by its owner only.

    """

    __slots__ = ("_claimed", "_file", "_index", "_last_read", "_path", "_superseded")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fsdecode(path)
        self._file: JournalFile | None = None
        self._index = JournalIndex(self._id_at)
        self._claimed: dict[str, int | None] = {}  # ids in flight, with the entry of their failure
        self._last_read: tuple[int, Line] | None = None
        self._superseded = 0  # lines of ids that have a later one

    def __len__(self) -> int:
        """Return how many ids have a line."""
        return len(self._index)

    def __repr__(self) -> str:
        state = "closed" if self._file is None else f"open, {len(self)} ids, {len(self._claimed)} claimed"
        return f"<Journal {self._path!r}: {state}>"

    def open(self) -> None:
        """Open and lock the file, make it if there is none, and read what it holds.

        Raises:
            JournalError: it cannot be opened, is in use, is not a journal, or a line before its last one is
                damaged. The file is as it was.

        """
        assert self._file is None, "opened twice"
        self._file = JournalFile.open(self._path)
        try:
            self._read()
        except BaseException:
            self.close(finished=False)
            raise

    def claim(self, id: str, digest: str, index: int, *, want_response: bool = True) -> Replay | None:
        """Say that an item was read; return its success if the journal has one, else None: call it.

        Args:
            id: the item's.
            digest: `digest_of` its request; "" if it is not a valid one.
            index: its place in the input, for messages.
            want_response: whether the success is to bring its response, which has to be built.

        Raises:
            JournalError: the id was claimed before in this run, its line is of another request, or it is
                text that cannot be written.

        """
        entry = self._index.find(id)
        if id in self._claimed or (entry is not None and entry & SEEN):
            raise JournalError(
                f"Item {index}: the id {id!r} comes a second time. Give each item an id of its own; without "
                "ids, items get their index."
            )
        if entry is None:
            _check_writable(id, index)
            self._claimed[id] = None
            return None
        line = self._line_at(offset_of(entry))
        if line.digest and line.digest != digest:
            raise JournalError(
                f"Item {index}: the id {id!r} stands for another request in the journal {self._path!r}. "
                "Give it another id, or pass another journal. (Items without ids get their index as id; "
                "were some added, removed or reordered, give all of them ids.)"
            )
        if not entry & SUCCEEDED:
            self._claimed[id] = entry
            return None
        self._index.replace(id, entry, entry | SEEN)
        response = line.chat_response() if want_response else None
        return Replay(response, line.omnigate.attempts, line.omnigate.elapsed)

    def write(self, outcome: Outcome, digest: str) -> None:
        """Write how an item ended; it is in the file, complete, when this returns.

        Args:
            outcome: of an item that was claimed.
            digest: the one it was claimed with.

        Raises:
            JournalError: the system refused (a full disk, a quota, …: the reason is in the message, the
                `OSError` its cause). The lines before are whole, and this may be tried again.

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
        """Unlock and close the file. Does nothing if it is closed.

        Args:
            finished: whether all items have ended. If so, this returns when everything is on the disk, and
                lines of ids that have a later one are removed, by an atomic replacement of the file.

        Raises:
            NotCompactedError: only the removal failed: everything is on the disk.
            JournalError: it is not sure to be. Either way the journal has all its lines, and is closed.

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
