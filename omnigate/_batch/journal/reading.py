"""Reads a journal back without running anything: its outcomes, or the items to run again.

The file is only read, and takes no lock, so a run may be writing to it: what it has written when reading
begins is read, up to the last whole line. An id's last line counts, so the file is read twice: once for the
index, which takes 17 to 26 bytes for each id, and once for the outcomes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, cast

import msgspec

from omnigate import _homes
from omnigate._batch.journal.index import JournalIndex, make_entry
from omnigate._batch.journal.journal import JournalWarning
from omnigate._batch.journal.lines import Line, decode_id, decode_line, is_torn, split_lines
from omnigate._batch.outcomes import AnyOutcome, BatchStats, Outcome
from omnigate._batch.progress import ProgressArgument, Reading, check_progress
from omnigate._batch.spending import Spending
from omnigate._data.rows import Again
from omnigate._runtime.frames import warn
from omnigate._wire.checks import refusal
from omnigate.exceptions import JournalError

_ID_BYTES = 4096


def read_journal(path: str | os.PathLike[str], *, progress: ProgressArgument = False) -> Iterator[AnyOutcome]:
    """Iterate over the outcomes in a journal, without running anything; each id's last, in the file's order.

    Their `replayed` is True and their `request` None: a journal has no prompts of items that succeeded. An
    error has the type, text and plain attributes that it had. A last line that a crash has torn, or that a
    run is just writing, is left out. Memory: some 25 bytes for each id. The file is read in the calling
    thread: in an event loop, a long one is better read with `to_thread`.

    Args:
        path: path of the journal. It is only read, also while a run writes to it.
        progress: True for a live display (needs the extra `cli`); or a callable that is called with
            `BatchStats` several times a second.

    Raises:
        JournalError: there is no such file, it cannot be read, or has a line that is damaged or not
            understood; raised by this call, or by the iteration.

    """
    lines = _Lines(path, progress)
    return cast("Iterator[AnyOutcome]", (_outcome(line) for line in lines))


def failed(
    path: str | os.PathLike[str], *, model: str | None = None, progress: ProgressArgument = False
) -> Iterator[dict[str, Any]]:
    """Iterate over the items of a journal that failed, to run them again: `client.batch(failed(path), …)`.

    A row of data is returned with its columns, so that it takes another `prompt=`; any other item as the
    fields of its request. Each keeps its id, whatever `id=` is, so that the new run may use the same journal
    or another one; a copy of the dict does not.
    Items that are not in the journal, because they never were valid requests or an earlier version wrote
    their line, are left out, with a `JournalWarning` at the end.

    Args:
        path: path of the journal.
        model: model of all the items; by default each keeps its own. A row of data has none, unless it is a
            column: then pass `model` to `client.batch`.
        progress: as in `read_journal`.

    Raises:
        JournalError: as in `read_journal`.

    """
    if model is not None and not isinstance(cast("object", model), str):
        raise refusal("model", model, "be text, or None", is_type=True)
    return _failed(_Lines(path, progress), model)


def _failed(lines: _Lines, model: str | None) -> Iterator[dict[str, Any]]:
    missing = 0
    for line in lines:
        if line.succeeded:
            continue
        fields = _fields_of(line, model)
        if fields is None:
            missing += 1
        else:
            yield fields
    if missing:
        warn(
            f"{missing:,} failed items are not in the journal {lines.path!r}, only their errors: they were "
            "never valid requests, or an earlier version wrote their lines. Run those from their source",
            JournalWarning,
        )


def _fields_of(line: Line, model: str | None) -> dict[str, Any] | None:
    """Return what to run again; None if the line does not have it."""
    extra = line.omnigate
    item, request = extra.item, extra.request
    fields: Mapping[str, Any]
    if not isinstance(item, msgspec.UnsetType):
        fields = item
    elif not isinstance(request, msgspec.UnsetType) and "messages" in request:
        fields = {"id": line.custom_id, **request}
    else:
        return None
    again = Again(fields, line.custom_id)
    if model is not None:
        if isinstance(body := fields.get("body"), dict):  # a request of OpenAI's batch input
            again["body"] = {**cast("dict[str, Any]", body), "model": model}
        else:
            again["model"] = model
    return again


def _outcome(line: Line) -> Outcome:
    extra = line.omnigate
    return Outcome(
        index=extra.index,
        id=line.custom_id,
        request=None,
        response=line.chat_response() if line.succeeded else None,
        error=None if line.succeeded else line.gateway_error(),
        attempts=extra.attempts,
        elapsed=extra.elapsed,
        replayed=True,
        item=None if isinstance(extra.item, msgspec.UnsetType) else extra.item,
    )


class _Lines:
    """Iterates over the last line of each id.

    Args:
        path: path of the journal.
        progress: whether and how to show how much has been read.
    """

    def __init__(self, path: str | os.PathLike[str], progress: ProgressArgument) -> None:
        if not isinstance(cast("object", path), str | os.PathLike):
            raise refusal("path", path, "be a path", is_type=True)
        check_progress(progress)
        self.path = os.fsdecode(path)
        if not os.path.isfile(self.path):
            raise JournalError(f"Cannot read the journal {self.path!r}: there is no such file.")
        self._progress = progress

    def __iter__(self) -> Iterator[Line]:
        try:
            with open(self.path, "rb") as file:
                yield from _ReadingFile(self.path, file).lines(Reading(self._progress))
        except OSError as error:
            raise JournalError(
                f"Cannot read the journal {self.path!r}: {error.strerror or error}."
            ) from error


class _ReadingFile:
    """The lines of an open journal, as long as it is now."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._index = JournalIndex(self._id_at)
        self._counts = [0, 0]  # of failures and of successes
        self._spent = Spending()

    def lines(self, reading: Reading) -> Iterator[Line]:
        """Yield the last line of each id."""
        try:
            for offset in self._fill_index():
                reading.update(lambda: self._stats(50 * offset / self._size))  # noqa: B023 - called right there
            for offset, raw in split_lines(self._read_at):
                id = decode_id(raw)
                if id is None or not self._index.has(id, offset):
                    continue
                line = decode_line(raw)
                assert line is not None, "changed meanwhile"
                self._count(line)
                reading.update(lambda: self._stats(50 + 50 * offset / self._size))  # noqa: B023
                yield line
        finally:
            reading.close(self._stats(None))

    def _fill_index(self) -> Iterator[int]:
        """Index the lines; yield the offset of each."""
        index = self._index
        for number, (offset, raw) in enumerate(split_lines(self._read_at), 1):
            end = offset + len(raw)
            line = decode_line(raw)
            if line is None and end == self._size:  # zeros where its newline never arrived
                self._size = offset + len(raw.rstrip(b"\0"))
                line = decode_line(raw.rstrip(b"\0"))
            if line is None:
                if end + 1 < self._size or not is_torn(raw, has_newline=end < self._size):
                    raise self._not_a_journal(number)
                self._size = offset  # the second reading ends before it
                return
            id = line.custom_id
            old, new = index.find(id), make_entry(offset, succeeded=False, seen=False)
            if old is None:
                index.add(id, new)
            else:
                index.replace(id, old, new)
            yield offset

    def _count(self, line: Line) -> None:
        self._counts[line.succeeded] += 1
        self._spent.add(line.usage, line.cost_usd)

    def _stats(self, percent: float | None) -> BatchStats:
        failures, successes = self._counts
        spent = self._spent
        return BatchStats(
            succeeded=successes,
            failed=failures,
            prompt_tokens=spent.prompt_tokens,
            completion_tokens=spent.completion_tokens,
            total_tokens=spent.total_tokens,
            cost_usd=spent.cost_usd,
            total=len(self._index),
            reading_percent=percent,
        )

    def _not_a_journal(self, number: int) -> JournalError:
        return JournalError(
            f"{self._path!r}, line {number}, is not a line of a journal that this version understands: it "
            "was damaged, or another program wrote it, or a later version. After a crash of the machine, "
            f"call omnigate.recover_journal({self._path!r}), which keeps all lines that are whole."
        )

    def _read_at(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(min(size, self._size - offset))

    def _id_at(self, offset: int) -> str:
        size, raw = _ID_BYTES, b""
        while b"\n" not in raw and (more := self._read_at(offset + len(raw), size)):
            raw += more
            size *= 2
        id = decode_id(raw.partition(b"\n")[0])
        assert id is not None, "changed meanwhile"
        return id


_homes.settle(__name__)
