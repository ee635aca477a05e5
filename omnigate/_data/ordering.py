"""Puts any number of rows in order, in bounded memory: a temporary database on disk holds those that wait.

SQLite keeps up to 16 MiB of it in memory and deletes the file when it is closed, or the process dies.
"""

from __future__ import annotations

import errno
import pickle
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

_CACHE_KIB: Final = 16 * 1024


class Ordering:
    """Rows by their places; those with equal places in the order they were added."""

    def __init__(self) -> None:
        import sqlite3  # when it is needed: some builds of Python lack it

        self._error = sqlite3.Error
        with self._as_os_error():
            # Each of its calls may come from another thread, one at a time.
            self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
            for statement in (
                f"PRAGMA cache_size = -{_CACHE_KIB}",
                "PRAGMA journal_mode = OFF",
                "PRAGMA synchronous = OFF",
                "CREATE TABLE rows (place INTEGER, row BLOB)",
                "BEGIN",
            ):
                self._database.execute(statement)

    def add(self, rows: Iterable[tuple[int, dict[str, Any]]]) -> None:
        """Add rows of plain values with their places.

        Raises:
            OSError: the disk is full.
        """
        with self._as_os_error():
            self._database.executemany(
                "INSERT INTO rows VALUES (?, ?)",
                ((place, pickle.dumps(row, protocol=5)) for place, row in rows),
            )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self._as_os_error():
            self._database.execute("CREATE INDEX places ON rows (place)")
            query = "SELECT row FROM rows ORDER BY place, rowid"
            with closing(self._database.execute(query)) as found:
                for (row,) in found:
                    yield pickle.loads(row)  # noqa: S301 - our own, from a file that has no name

    def close(self) -> None:
        """Delete the rows."""
        self._database.close()

    @contextmanager
    def _as_os_error(self) -> Generator[None]:
        try:
            yield
        except self._error as error:
            message = f"cannot put the rows in order on the disk for temporary files: {error}"
            raise OSError(errno.EIO, message) from error
