"""The journal of a batch: each item's outcome, in a file before the next call starts in its slot.

A file of lines (`lines`), written through (`file`) and looked up by id (`index`). A batch killed at any
instant resumes from it. The rules:

1. An item is claimed when it is read, and written when it has ended. In between it is in `_claimed`, which
   is as large as the number of items in flight; besides that, only the index is in memory.
2. An id's last line counts. A success is not called again; a failure is.
3. An id is claimed once per run; a second item with it is refused. A success identifies its request: a
   different one under its id is an error in the input, raised when that item is read. After a failure any
   request may follow.
4. Only the last line may be torn: a crash leaves that, and it is cut off. (A last line that lacks only its
   newline is kept, and gets one.) A whole line that is not understood, or a damaged one before others, has
   another cause: it is an error that names the line, and the file stays unchanged. `recover_journal` then
   keeps the lines that are whole.
5. A finished run leaves one line for each id, in the order they ended. If compacting fails, the older lines
   stay: nothing is lost, so the run still returns its results.

Plain synchronous code, for one thread at a time (`sync` may run in another). Opening, and closing a finished
run, read the whole file; `sync` waits for the disk; other calls take microseconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import msgspec

from omnigate import _homes
from omnigate._batch.journal.file import JournalFile, NotCompactedError
from omnigate._batch.journal.index import SEEN, SUCCEEDED, JournalIndex, make_entry, offset_of
from omnigate._batch.journal.lines import (
    Line,
    Settings,
    decode_id,
    decode_line,
    digest_with,
    encode_line,
    is_torn,
    settings_of,
    split_lines,
)
from omnigate._batch.outcomes import Outcome, billed_answers
from omnigate._batch.spending import Spending
from omnigate._wire.redaction import shown
from omnigate.exceptions import InvalidArgumentError, JournalError
from omnigate.models import ChatRequest, ChatResponse

__all__ = ["Journal", "JournalWarning", "NotCompactedError", "RepeatedIdError", "Replay"]

_READ_BYTES = 4096

_SOURCES_MAX = 64


class JournalWarning(UserWarning):
    """Something about a journal that should be known, and that has not cost any result of this run.

    For example: all results are there, but the journal could not be compacted; or journals that were merged
    contradict each other.
    """


class RepeatedIdError(InvalidArgumentError):
    """An id that an earlier item of this run already has."""


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
    to disk, which `sync` and `close` wait for.

    Args:
        path: path of the file, created readable by its owner only if it does not exist.
        lock: False to take no lock, on a file system that has none.

    Attributes:
        read_percent: how much of the file has been read, while `open` reads it; else None.
        spending: tokens and cost of the responses in it, those of this run included.
        waiting: how many of its successes have not been claimed in this run.

    """

    __slots__ = (
        "_claimed",
        "_file",
        "_index",
        "_last_read",
        "_lock",
        "_path",
        "_settings",
        "_source",
        "_sources",
        "_superseded",
        "read_percent",
        "spending",
        "waiting",
    )

    def __init__(self, path: str | os.PathLike[str], *, lock: bool = True) -> None:
        self._path = os.fsdecode(path)
        self._lock = lock
        self._file: JournalFile | None = None
        self._index = JournalIndex(self._id_at)
        self._claimed: dict[str, int | None] = {}  # ids in flight, with the entry of an earlier failure
        self._last_read: tuple[int, Line] | None = None
        self._settings = Settings()
        self._superseded = 0  # lines of ids that have a later one
        self.read_percent: float | None = None
        self.spending = Spending()
        self.waiting: int = 0
        self._source: str | None = None
        self._sources: set[str] = set()  # of the lines

    def __len__(self) -> int:
        """Return how many ids have a line."""
        return len(self._index)

    def __repr__(self) -> str:
        state = "closed" if self._file is None else f"open, {len(self)} ids, {len(self._claimed)} claimed"
        return f"<Journal {self._path!r}: {state}>"

    def open(self) -> None:
        """Open and lock the file, creating it if needed, and read it.

        Raises:
            JournalError: it cannot be opened, is in use, is not a journal, or has a line that is damaged or
                not understood, and is not just the torn last one. The file is unchanged.

        """
        assert self._file is None, "opened twice"
        self._file = JournalFile.open(self._path, lock=self._lock)
        try:
            self._read()
        except BaseException:
            self.close(finished=False)
            raise
        finally:
            self.read_percent = None

    def identify(self, source: str) -> None:
        """Say which files the items of this run come from, since their ids are the numbers of rows.

        Args:
            source: digest of the files; each line of this run names it.

        Raises:
            JournalError: lines name other files: the same number may be another row.

        """
        if self._sources and source not in self._sources:
            raise JournalError(
                f"The journal {self._path!r} is of another file, or of this one before it was changed, and "
                "its rows are identified by their numbers. Restore the file, or pass another journal. (With "
                "id= the rows of a file that changes keep their identity.)"
            )
        self._source = source

    def claim(
        self,
        id: str,
        digest: str,
        index: int,
        *,
        request: ChatRequest | None = None,
        want_response: bool = True,
    ) -> Replay | None:
        """Claim an item that was read; return its earlier success, or None if it has to be called.

        Args:
            id: the item's id.
            digest: `digest_of` its request; "" if it is not a valid one.
            index: its position in the input, for messages.
            request: its request, for messages.
            want_response: whether to rebuild the response of an earlier success.

        Raises:
            RepeatedIdError: the id was claimed before in this run.
            JournalError: the id is that of a success with another request, or is not valid Unicode.

        """
        entry = self._index.find(id)
        if id in self._claimed or (entry is not None and entry & SEEN):
            raise RepeatedIdError(
                f"item {index} (id {shown(id)}): an earlier item has the same id. Give each item its own id; "
                "items without one get their index"
            )
        if entry is None:
            _check_writable(id, index)
            self._claimed[id] = None
            return None
        if not entry & SUCCEEDED:
            self._claimed[id] = entry
            return None
        line = self._line_at(offset_of(entry))
        if line.digest and line.digest != digest:
            raise JournalError(
                f"Item {index}: the id {id!r} belongs to another request, which succeeded, in the journal "
                f"{self._path!r}{_difference(line, request)}. Give the item another id, or pass another "
                "journal. (Items without an id get their index; if items were added, removed or reordered, "
                "give all of them ids.)"
            )
        self._index.replace(id, entry, entry | SEEN)
        self.waiting -= 1
        response = line.chat_response() if want_response else None
        return Replay(response, line.omnigate.attempts, line.omnigate.elapsed)

    def response_of(self, id: str) -> ChatResponse | None:
        """Return the response of an id's success; None if there is none.

        Raises:
            JournalError: another program has changed the file.

        """
        entry = self._index.find(id)
        if entry is None or not entry & SUCCEEDED:
            return None
        return self._line_at(offset_of(entry)).chat_response()

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
        line = encode_line(
            outcome, digest, created=int(time.time()), source=self._source, settings=self._settings
        )
        offset = self._file.append(line)
        response = outcome.response
        new = make_entry(offset, succeeded=response is not None, seen=True)
        for billed in billed_answers(outcome):
            self.spending.add(billed.usage, billed.cost_usd)
        old = self._claimed.pop(id) if id in self._claimed else self._index.find(id)
        if old is None:
            self._index.add(id, new)
        else:
            self._index.replace(id, old, new)
            self._superseded += 1

    def sync(self) -> None:
        """Flush all lines to the disk; callable in another thread.

        Raises:
            JournalError: the flush failed, or the file was deleted, moved, replaced or truncated.

        """
        file = self._file
        if file is not None:
            _sync(file)

    def close(self, *, finished: bool) -> None:
        """Flush all lines to the disk, close and unlock the file; idempotent.

        Args:
            finished: whether all items have ended. If so, the file is compacted to the last line of each
                id, by an atomic replacement.

        Raises:
            NotCompactedError: everything is on disk, only compacting failed.
            JournalError: the flush failed, or the file was deleted, moved, replaced or truncated. In any case
                the journal is closed.

        """
        file, self._file = self._file, None
        if file is None:
            return
        try:
            if finished and self._superseded and file.find_change() is None:
                try:
                    self._compact(file)
                except NotCompactedError:
                    file.sync()
                    raise
            else:
                _sync(file)
        finally:
            file.close()
            self._index = JournalIndex(self._id_at)
            self._claimed.clear()
            self._last_read = None
            self._superseded = 0
            self._source = None
            self._sources.clear()

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
            self.read_percent = 100 * offset / max(end, 1)
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
            source = line.omnigate.source
            if isinstance(source, str) and len(self._sources) < _SOURCES_MAX:
                self._sources.add(source)
            new = make_entry(offset, succeeded=line.succeeded, seen=False)
            old = index.find(id)
            if old is None:
                index.add(id, new)
            else:
                if old & SUCCEEDED:  # two journals were concatenated, say
                    replaced = self._line_at(offset_of(old))
                    self.waiting -= 1
                    self.spending.subtract(replaced.usage, replaced.cost_usd)
                index.replace(id, old, new)
                self._superseded += 1
            self.waiting += line.succeeded
            self.spending.add(line.usage, line.cost_usd)
            if offset + len(raw) == end:
                file.append(b"\n")
        if damaged is not None:
            number, offset, raw = damaged
            if not is_torn(raw, has_newline=offset + len(raw) < end):
                raise self._not_a_journal(number)
            file.truncate(offset)

    def _not_a_journal(self, number: int) -> JournalError:
        return JournalError(
            f"{self._path!r}, line {number}, is not a line of a journal that this version understands: it "
            "was damaged, or another program wrote it, or a later version. Nothing in the file was changed. "
            "Pass another path; or remove that line; or, after a crash of the machine, call "
            f"omnigate.recover_journal({self._path!r}), which keeps all lines that are whole."
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


def _sync(file: JournalFile) -> None:
    """Flush a file to disk, and check that no other program has changed it."""
    file.sync()
    if (change := file.find_change()) is not None:
        raise JournalError(change)


def _difference(line: Line, request: ChatRequest | None) -> str:
    """Describe the fields in which a request differs from that of a line."""
    then = line.omnigate.request
    if request is None or isinstance(then, msgspec.UnsetType):  # a line of an earlier version
        return ""
    now = settings_of(request)
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    found = [f"{name} was {shown(then.get(name))}, is {shown(now.get(name))}" for name in names]
    if digest_with(request, then) != line.digest:
        found.append("messages differs")
    return f": {', '.join(found)}"


def _check_writable(id: str, index: int) -> None:
    if not id.isascii():
        try:
            id.encode()
        except UnicodeEncodeError as error:
            raise JournalError(f"Item {index}: the id {id!r} is not valid Unicode text.") from error


_homes.settle(__name__)
