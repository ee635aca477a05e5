"""Merges the journals of many workers into one that has one line for each id.

The rules:

1. An id's last line in a file counts, as everywhere, but for one thing: a failure never replaces a success.
   The same holds from file to file, in the order given. Of two successes the first is kept, so what has been
   merged once stays. What the target already has comes first.
2. Two files that contradict each other about an id are a conflict: they have different requests under it, or
   different answers to the same. That is reported, since an outcome is left out.
3. Nothing is lost: the target is replaced atomically, the other files are only read. A journal in use, one
   that is damaged and one that changes meanwhile are errors that leave the target as it was.
4. Memory: some 25 bytes for each id, as much again for each id of the longest file, and a few open files.
   Each file is read three times: for its own index, to compare it with the others, and to be written.

To the index all files are one, one after another: its offsets are `base` of the file plus that in the file.
"""

from __future__ import annotations

import contextlib
import os
import stat
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final, Literal, TypeAlias, cast

import msgspec

from omnigate._batch.journal.disk import open_flags, unlock
from omnigate._batch.journal.file import JournalFile, NotCompactedError, take_lock
from omnigate._batch.journal.index import SUCCEEDED, JournalIndex, make_entry, offset_of
from omnigate._batch.journal.journal import JournalWarning
from omnigate._batch.journal.lines import Line, decode_id, decode_line, is_torn, split_lines
from omnigate._runtime.frames import warn
from omnigate._wire.checks import BE_BOOL, refusal
from omnigate.exceptions import InvalidArgumentError, JournalError

__all__ = ["JournalConflict", "JournalMerge", "merge_journals"]

_CONFLICTS_MAX: Final = 1_000

_OPEN_FILES_MAX: Final = 64  # of the usual limit of 1,024, or 256 on macOS

_READ_BYTES: Final = 4096

Reason: TypeAlias = Literal["request", "answer"]


class JournalConflict(msgspec.Struct, frozen=True, kw_only=True):
    """Two journals that contradict each other about an id.

    Attributes:
        id: the item's id.
        reason: "request" if they have different requests under it, so that one of two items is lost; "answer"
            if both have an answer to the same request, so that one was paid for twice.
        kept: path of the journal whose line was kept.
        dropped: path of the other.

    """

    id: str
    reason: str
    kept: str
    dropped: str


class JournalMerge(msgspec.Struct, frozen=True, kw_only=True):
    """What `merge_journals` did.

    Attributes:
        succeeded: ids that succeeded; each has one line in the merged journal.
        failed: ids that failed; each has one line, too.
        journals: how many files were merged, the target included if it had lines.
        dropped: lines that were left out, because a better or a later one has the same id.
        conflict_count: how often two journals contradicted each other.
        conflicts: these contradictions, the first 1,000.

    """

    succeeded: int
    failed: int
    journals: int
    dropped: int
    conflict_count: int
    conflicts: list[JournalConflict]


def merge_journals(
    paths: Iterable[str | os.PathLike[str]], into: str | os.PathLike[str], *, journal_lock: bool = True
) -> JournalMerge:
    """Merge journals into one with one line for each id; a success replaces failures.

    Of several failures the last is kept, of several successes the first, in the order of `paths`. If `into`
    exists, its lines take part as the first. Conflicts (the same id with different requests, or with
    different answers) are in the result, and a `JournalWarning` gives their number. The files are read in the
    calling thread: in an event loop, call this with `to_thread`.

    Args:
        paths: paths of the journals. They are only read. None may be in use.
        into: path of the merged journal: a new one, which only its owner can read, or an existing one, which
            may be one of `paths`. It is replaced atomically.
        journal_lock: False to take no locks, on a file system that has none.

    Returns:
        How many ids it has, how many lines were left out, and the conflicts.

    Raises:
        JournalError: there is no such file, it cannot be read, is in use, changes meanwhile, or has a line
            that is damaged or not understood; or `into` cannot be written. `into` is unchanged.

    """
    checked = _check_paths(paths)
    if not isinstance(cast("object", into), str | os.PathLike):
        raise refusal("into", into, "be a path", is_type=True)
    if not isinstance(cast("object", journal_lock), bool):
        raise refusal("journal_lock", journal_lock, BE_BOOL, is_type=True)
    is_new = not os.path.lexists(into)
    for path in checked:  # before `into` is created
        if not os.path.isfile(path):
            raise JournalError(f"Cannot merge the journal {path!r}: there is no such file.")
    target = JournalFile.open(into, lock=journal_lock)
    try:
        merge = _Merge(target)
        try:
            merge.add(target.path, lock=False)  # is locked
            for path in checked:
                merge.add(path, lock=journal_lock)
            result = merge.write()
        finally:
            merge.close()
    except BaseException:
        if is_new and target.size == 0 and target.find_change() is None:  # not merged into yet
            with contextlib.suppress(OSError):
                os.unlink(target.path)
        raise
    finally:
        target.close()
    if result.conflict_count:
        example = result.conflicts[0]
        warn(
            f"{result.conflict_count:,} conflicts between the journals merged into {target.path!r}: the id "
            f"{example.id!r}, for example, has different {example.reason}s in {example.kept!r} and in "
            f"{example.dropped!r}, and the former's line was kept. See the result's `conflicts`",
            JournalWarning,
        )
    return result


def _check_paths(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    given: object = paths
    if isinstance(given, str | bytes | os.PathLike) or not isinstance(given, Iterable):
        raise refusal("paths", paths, "be an iterable of paths", is_type=True)
    checked: list[str] = []
    for index, path in enumerate(paths):
        if not isinstance(cast("object", path), str | os.PathLike):
            raise refusal(f"paths[{index}]", path, "be a path", is_type=True)
        checked.append(os.fsdecode(path))
    if not checked:
        raise InvalidArgumentError("paths must have at least one path, got none")
    return checked


class _Part:
    """One of the files: where it is, and how long it was when it was opened."""

    __slots__ = ("base", "id", "modified_ns", "path", "size", "whole")

    def __init__(self, path: str, status: os.stat_result, base: int) -> None:
        self.path = path
        self.id = status.st_dev, status.st_ino
        self.size = status.st_size
        self.modified_ns = status.st_mtime_ns
        self.base = base
        self.whole = self.size  # without a torn last line


class _Parts:
    """All files, as one; few of them are open."""

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self._bases: list[int] = []
        self._open: OrderedDict[str, int] = OrderedDict()
        self._ids: set[tuple[int, int]] = set()

    def __iter__(self) -> Iterator[_Part]:
        return iter(self._parts)

    def add(self, path: str, *, lock: bool) -> _Part | None:
        """Add a file; return None if it is one already."""
        fd = self._fd(path)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise JournalError(f"Cannot merge the journal {path!r}: it is not a regular file.")
            last = self._parts[-1] if self._parts else None
            part = _Part(path, status, 0 if last is None else last.base + last.size + 1)
            if part.id in self._ids:
                return None
            if lock:
                take_lock(fd, path)  # whether a run is using it; a run that begins later is noticed
                unlock(fd)
        except OSError as error:
            raise _failed(path, error) from error
        self._ids.add(part.id)
        self._parts.append(part)
        self._bases.append(part.base)
        return part

    def part_at(self, offset: int) -> _Part:
        """Return the file that an offset of the index is in."""
        return self._parts[bisect_right(self._bases, offset) - 1]

    def read(self, part: _Part, offset: int, size: int) -> bytes:
        """Return up to `size` bytes of the whole lines of a file."""
        size = min(size, part.whole - offset)
        if size <= 0:
            return b""
        try:
            fd = self._fd(part.path)
            os.lseek(fd, offset, os.SEEK_SET)
            return os.read(fd, size)
        except OSError as error:
            raise _failed(part.path, error) from error

    def line_at(self, offset: int) -> Line:
        """Return the line at an offset of the index."""
        part = self.part_at(offset)
        offset -= part.base
        size, raw = _READ_BYTES, b""
        while b"\n" not in raw and (more := self.read(part, offset + len(raw), size)):
            raw += more
            size *= 2
        line = decode_line(raw.partition(b"\n")[0])
        if line is None:
            raise _changed(part)
        return line

    def check(self) -> None:
        """Check that no file has changed since it was added."""
        for part in self._parts:
            try:
                status = os.stat(part.path)
            except OSError as error:
                raise _failed(part.path, error) from error
            now = (status.st_dev, status.st_ino), status.st_size, status.st_mtime_ns
            if now != (part.id, part.size, part.modified_ns):
                raise _changed(part)

    def close(self) -> None:
        while self._open:
            _, fd = self._open.popitem()
            os.close(fd)

    def _fd(self, path: str) -> int:
        fd = self._open.get(path)
        if fd is not None:
            self._open.move_to_end(path)
            return fd
        if len(self._open) >= _OPEN_FILES_MAX:
            _, oldest = self._open.popitem(last=False)
            os.close(oldest)
        try:
            fd = self._open[path] = os.open(path, os.O_RDONLY | open_flags)
        except OSError as error:
            raise _failed(path, error) from error
        return fd


class _Merge:
    """One merge: the files that have been read, and for each id the line that is to be kept."""

    def __init__(self, target: JournalFile) -> None:
        self._target = target
        self._parts = _Parts()
        self._index = JournalIndex(self._id_at)
        self._counts = [0, 0]  # of failures and successes
        self._lines = 0
        self._conflict_count = 0
        self._conflicts: list[JournalConflict] = []

    def add(self, path: str, *, lock: bool) -> None:
        """Read a file, and decide for each of its ids which line to keep."""
        part = self._parts.add(path, lock=lock)
        if part is None:
            return
        own = self._read(part)
        for offset, raw in self._split(part):
            if (id := decode_id(raw)) is not None and own.has(id, offset):
                line = decode_line(raw)
                if line is None:
                    raise _changed(part)
                self._decide(part, offset, line)

    def write(self) -> JournalMerge:
        """Replace the target with the lines that are to be kept."""
        parts, kept = self._parts, 0

        def lines() -> Iterator[bytes]:
            nonlocal kept
            for part in parts:
                for offset, raw in self._split(part):
                    if (id := decode_id(raw)) is not None and self._index.has(id, offset):
                        kept += 1
                        yield raw + b"\n"

        def check() -> None:
            parts.check()
            parts.close()  # Windows cannot replace an open file
            if kept != len(self._index):
                raise JournalError("Journals were changed while they were merged. Nothing was written.")

        try:
            self._target.replace(lines(), check)
        except NotCompactedError as error:
            raise JournalError(
                f"Cannot merge journals into {self._target.path!r}: {error.__cause__ or error}"
            ) from error
        return JournalMerge(
            succeeded=self._counts[True],
            failed=self._counts[False],
            journals=sum(part.size > 0 for part in parts),
            dropped=self._lines - len(self._index),
            conflict_count=self._conflict_count,
            conflicts=self._conflicts,
        )

    def close(self) -> None:
        self._parts.close()

    def _read(self, part: _Part) -> JournalIndex:
        """Return the index of a file: for each of its ids the line that counts."""
        index = JournalIndex(self._id_at)
        for number, (offset, raw) in enumerate(self._split(part), 1):
            begin = offset - part.base
            end = begin + len(raw)
            line = decode_line(raw)
            if line is None and end == part.size and (line := decode_line(raw.rstrip(b"\0"))):
                part.whole = begin + len(raw.rstrip(b"\0"))  # before zeros where its newline never arrived
            if line is None:
                if end + 1 < part.size or not is_torn(raw, has_newline=end < part.size):
                    raise _not_a_journal(part, number)
                part.whole = begin
                break
            self._lines += 1
            new = make_entry(offset, succeeded=line.succeeded, seen=False)
            old = index.find(line.custom_id)
            if old is None:
                index.add(line.custom_id, new)
            elif line.succeeded or not old & SUCCEEDED:
                index.replace(line.custom_id, old, new)
                if old & SUCCEEDED:  # journals were concatenated
                    before = self._parts.line_at(offset_of(old))
                    self._report(_difference(line, before), line.custom_id, part, part)
        return index

    def _decide(self, part: _Part, offset: int, line: Line) -> None:
        id = line.custom_id
        new = make_entry(offset, succeeded=line.succeeded, seen=False)
        old = self._index.find(id)
        if old is None:
            self._index.add(id, new)
            self._counts[line.succeeded] += 1
            return
        other, before = self._parts.part_at(offset_of(old)), self._parts.line_at(offset_of(old))
        reason = _difference(line, before)
        if before.succeeded:
            self._report(reason, id, other, part)
            return
        self._index.replace(id, old, new)
        self._counts[False] -= 1
        self._counts[line.succeeded] += 1
        self._report(reason, id, part, other)

    def _report(self, reason: Reason | None, id: str, kept: _Part, dropped: _Part) -> None:
        if reason is None:
            return
        self._conflict_count += 1
        if self._conflict_count <= _CONFLICTS_MAX:
            self._conflicts.append(
                JournalConflict(id=id, reason=reason, kept=kept.path, dropped=dropped.path)
            )

    def _split(self, part: _Part) -> Iterator[tuple[int, bytes]]:
        """Yield the lines of a file, with their offsets in the index."""
        for offset, raw in split_lines(lambda offset, size: self._parts.read(part, offset, size)):
            yield part.base + offset, raw

    def _id_at(self, offset: int) -> str:
        return self._parts.line_at(offset).custom_id


def _difference(line: Line, other: Line) -> Reason | None:
    """Return in what two lines of an id contradict each other, if they do."""
    is_known = all(each.digest or not each.succeeded for each in (line, other))
    if is_known and line.digest != other.digest:
        return "request"
    source, other_source = line.omnigate.source, other.omnigate.source
    if isinstance(source, str) and isinstance(other_source, str) and source != other_source:
        return "request"  # the id is the number of a row, in different files
    if line.succeeded and other.succeeded and line.response != other.response:
        return "answer"
    return None


def _failed(path: str, error: OSError) -> JournalError:
    return JournalError(f"Cannot merge the journal {path!r}: {error.strerror or error}.")


def _changed(part: _Part) -> JournalError:
    return JournalError(
        f"The journal {part.path!r} was changed while it was merged; nothing was written. Merge journals "
        "after the runs that write to them have ended."
    )


def _not_a_journal(part: _Part, number: int) -> JournalError:
    return JournalError(
        f"{part.path!r}, line {number}, is not a line of a journal that this version understands: it was "
        "damaged, or another program wrote it, or a later version. Nothing was changed. After a crash of the "
        f"machine, call omnigate.recover_journal({part.path!r}), which keeps all lines that are whole."
    )
