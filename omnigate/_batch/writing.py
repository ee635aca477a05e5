"""Writes outcomes to a file, in the order of the input, whatever the order in which they arrive.

The rows wait in a temporary database (`Ordering`), so memory is bounded, and all columns are known before the
first row is written. The file is written next to its path and renamed once it is complete (`Replacement`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, cast

from omnigate import _homes
from omnigate._batch.outcomes import Outcome
from omnigate._batch.replacing import Replacement
from omnigate._batch.rows import RESULT_COLUMNS, row_of
from omnigate._data.columns import Columns
from omnigate._data.frames import FrameKind, make_frame
from omnigate._data.ordering import Ordering
from omnigate._data.writers import Format
from omnigate._wire.checks import check_bool, refusal

ADD_TOGETHER: Final = 256
"""How many outcomes are added to a file together."""


def write_outcomes(
    outcomes: Iterable[Outcome], path: str | os.PathLike[str], *, spreadsheet_safe: bool = False
) -> int:
    """Write outcomes to a file, one row each, in the order of the input; return how many.

    `outcomes` is a sync batch inside its `with` block, a list, or `read_journal(…)`. For an async batch, or
    to run a batch and write its outcomes in one go, use its method `write`.

    The columns are those of the input (`outcome.item`), and `content`, `error`, `prompt_tokens`,
    `completion_tokens`, `total_tokens`, `cost_usd`, `latency_ms` (in the gateway), `attempts` and
    `request_id`. A column of the input with one of these names is called `input_content`, say. An item that
    was not a row of data has the columns `id` and `prompt`, or `messages` if there are several.

    The file appears, or replaces the old one, when it is complete: an error, a full disk or a crash leaves
    the old one (a killed process also leaves a hidden file named `.writing`). It is readable by its owner
    only, unless it replaces a file. If iterating raises an error, the outcomes so far are written to another
    file, `answers.partial.csv` for `answers.csv`, which a note on the error names. Memory is bounded: some
    20 MiB, for Parquet about 100 MiB; rows wait for their turn in SQLite's directory for temporary files.

    Args:
        outcomes: the outcomes, in any order.
        path: its suffix tells the format: `.csv`, `.tsv`, `.jsonl` (or `.ndjson`), each of which may be
            followed by `.gz`, `.bz2`, `.xz` or `.zst`; or `.parquet`. Parquet and `.zst` need the extra
            `data`. Text is UTF-8. Lists and dicts are JSON text in CSV, TSV and Parquet. In CSV a missing
            value is an empty cell.
        spreadsheet_safe: put a single quote before text in CSV and TSV that begins with `=`, `+`, `-`, `@`, a
            tab or a carriage return, which spreadsheet programs would run as a formula. Off by default, since
            other programs would see the quote in ordinary answers, such as lists that begin with a dash.

    Raises:
        InvalidArgumentError: the suffix is none of these, or the path is not that of a regular file.
        MissingExtraError: a library for the format is not installed.
        OSError: the file cannot be written.

    """
    if not isinstance(cast("object", outcomes), Iterable):
        hint = "for an async batch: await batch.write(path)"
        raise refusal("outcomes", outcomes, "be an iterable of outcomes", is_type=True, hint=hint)
    output = OutcomeFile(path, spreadsheet_safe=spreadsheet_safe)
    try:
        source = iter(outcomes)
        is_more = True
        while is_more:
            some: list[Outcome] = []
            try:
                is_more = _take(source, some)
            except Exception as error:
                output.finish_after(error, some)
                raise
            output.add(some)
        output.finish()
    finally:
        output.discard()
    return output.count


def _take(source: Iterator[Outcome], some: list[Outcome]) -> bool:
    """Fill `some` with outcomes; return whether there may be more."""
    for outcome in source:
        some.append(outcome)
        if len(some) >= ADD_TOGETHER:
            return True
    return False


class OutcomeFile:
    """A file of outcomes being written. Call `discard` in the end, which does nothing to a finished one.

    Its methods may be called in any thread. `discard` ends a `finish` that runs in another one.

    Args:
        path: of the file.
        spreadsheet_safe: as in `write_outcomes`.

    Attributes:
        count: how many outcomes were added.

    Raises:
        InvalidArgumentError, MissingExtraError, OSError: as in `write_outcomes`.
    """

    def __init__(self, path: str | os.PathLike[str], *, spreadsheet_safe: bool = False) -> None:
        if not isinstance(cast("object", path), str | os.PathLike):
            raise refusal("path", path, "be a path", is_type=True)
        self.count = 0
        self._path = os.fsdecode(path)
        self._is_safe = check_bool(spreadsheet_safe, "spreadsheet_safe")
        self._format = Format.of(self._path)
        self._lock = threading.Lock()
        self._is_discarded = False
        self._taken: list[Outcome] = []  # not added yet
        self._columns = Columns(RESULT_COLUMNS)
        self._replacement = Replacement(self._path)  # now: a path that cannot be written must cost no calls
        try:
            self._rows = Ordering()
        except BaseException:
            self._replacement.discard()
            raise

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Add outcomes.

        Raises:
            OSError: the disk for temporary files is full.
        """
        rows: list[tuple[int, dict[str, Any]]] = []
        for outcome in outcomes:
            if not isinstance(cast("object", outcome), Outcome):
                raise refusal("outcomes", outcome, "be an iterable of outcomes", is_type=True)
            row = row_of(outcome)
            if self._format.layout != "jsonl":
                self._columns.see(row)
            rows.append((outcome.index, row))
        with self._lock:
            if not self._is_discarded:
                self._rows.add(rows)
                self.count += len(rows)

    def take(self, outcome: Outcome) -> None:
        """Add an outcome, together with others: `finish` and `finish_after` add the last. In one thread only.

        Raises:
            OSError: the disk for temporary files is full.
        """
        self._taken.append(outcome)
        if len(self._taken) >= ADD_TOGETHER:
            self._add_taken()

    def _add_taken(self) -> None:
        self.add(self._taken)
        self._taken.clear()

    def finish(self, last: Sequence[Outcome] = ()) -> None:
        """Add the last outcomes, write the rows in order, and let the path lead to the file.

        Raises:
            OSError: it cannot be written.
        """
        self._add_taken()
        self.add(last)
        with self._lock:
            self._write(self._replacement)

    def finish_after(self, error: Exception, last: Sequence[Outcome] = ()) -> None:
        """Add the last outcomes, and write all to another file, after an error that ended the batch.

        The error gets a note that says so.
        """
        path = self._path[: len(self._path) - len(self._format.suffix)]
        path = f"{path}.partial{self._path[len(path) :]}"
        try:
            self._add_taken()
            self.add(last)
            if not self.count:
                return
            with self._lock:
                partial = Replacement(path)
                try:
                    self._write(partial)
                finally:
                    partial.discard()
        except OSError as failure:
            error.add_note(f"the {self.count:,} outcomes before could not be written: {failure}")
        else:
            error.add_note(f"the {self.count:,} outcomes before are in {path!r}")

    def discard(self) -> None:
        """Delete what is not finished."""
        self._is_discarded = True
        with self._lock:
            self._rows.close()
            self._replacement.discard()

    def _write(self, replacement: Replacement) -> None:
        self._format.write(
            replacement.file, self._rows_in_order(), self._columns, spreadsheet_safe=self._is_safe
        )
        if not self._is_discarded:
            replacement.commit()

    def _rows_in_order(self) -> Iterable[dict[str, Any]]:
        for row in self._rows:
            if self._is_discarded:
                return
            yield row


def frame_of(outcomes: Iterable[Outcome], kind: FrameKind) -> Any:
    """Return outcomes as a frame, in the order of the input."""
    columns = Columns(RESULT_COLUMNS)
    rows: list[dict[str, Any]] = []
    for outcome in sorted(outcomes, key=lambda outcome: outcome.index):
        rows.append(row_of(outcome))
        columns.see(rows[-1])
    return make_frame(kind, rows, columns)


_homes.settle(__name__)
