"""Recovers a journal that a crash of the machine has damaged in the middle.

A crash may leave a page of zeros where data never reached the disk, before lines that did. Such a file is
not opened as a journal, since it has lost outcomes; recovery keeps every whole line, and the original file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

import msgspec

from omnigate import _homes
from omnigate._batch.journal.file import JournalFile, NotCompactedError
from omnigate._batch.journal.lines import is_json, split_lines, whole_lines
from omnigate.exceptions import JournalError


class JournalRecovery(msgspec.Struct, frozen=True, kw_only=True):
    """What `recover_journal` found.

    Attributes:
        kept: lines in the journal now.
        dropped: stretches between newlines that were damaged, or are not lines of a journal; of some of them
            a whole line may have been kept.
        backup: path of the unchanged original; None if nothing was damaged, and nothing done.

    """

    kept: int
    dropped: int
    backup: str | None


def recover_journal(path: str | os.PathLike[str], *, journal_lock: bool = True) -> JournalRecovery:
    """Recover a damaged journal: keep every whole line, and drop the rest.

    The items of dropped lines are called, and billed, again by the next run. The original is kept beside the
    journal, as `<name>.damaged`.

    Args:
        path: path of the journal.
        journal_lock: False to take no lock, on a file system that has none.

    Returns:
        How many lines were kept and dropped, and where the original is.

    Raises:
        JournalError: the file cannot be read or written, is in use, has no whole line, an earlier backup
            is in the way, or a whole line is not understood. It is unchanged.

    """
    if not os.path.isfile(path):
        raise JournalError(f"Cannot recover the journal {os.fsdecode(path)!r}: there is no such file.")
    file = JournalFile.open(path, lock=journal_lock)
    try:
        return _recover(file)
    finally:
        file.close()


def _recover(file: JournalFile) -> JournalRecovery:
    kept = dropped = 0

    def lines() -> Iterator[bytes]:
        nonlocal kept, dropped
        kept = dropped = 0
        for number, (_, raw) in enumerate(split_lines(file.read_at), 1):
            found = list(whole_lines(raw))
            if not found and is_json(raw):
                raise JournalError(
                    f"Cannot recover the journal {file.path!r}: line {number} is whole, but is not a line "
                    "of a journal that this version understands. Move it to another file, and try again."
                )
            kept += len(found)
            dropped += found != [raw]
            for line in found:
                yield line + b"\n"

    for _ in lines():
        pass
    if dropped == 0:
        return JournalRecovery(kept=kept, dropped=0, backup=None)
    if kept == 0:
        raise JournalError(f"Cannot recover {file.path!r}: no line of it is a whole line of a journal.")
    backup = f"{file.path}.damaged"
    if os.path.lexists(backup):
        raise JournalError(
            f"Cannot recover the journal {file.path!r}: {backup!r}, from an earlier recovery, is in the way. "
            "Move it, and try again."
        )
    try:
        file.replace(lines(), lambda: _keep(file.path, backup))
    except NotCompactedError as error:
        with contextlib.suppress(OSError):
            os.unlink(backup)
        raise JournalError(f"Cannot recover the journal {file.path!r}: {error.__cause__ or error}") from error
    return JournalRecovery(kept=kept, dropped=dropped, backup=backup)


def _keep(path: str, backup: str) -> None:
    """Give the original a second name, or copy it on a file system without hard links."""
    try:
        os.link(path, backup)
    except OSError:
        with open(path, "rb") as source, open(backup, "xb") as target:
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())


_homes.settle(__name__)
