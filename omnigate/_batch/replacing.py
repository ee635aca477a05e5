"""Writes a file so that its path always leads to a whole one: the old, until the new one is complete."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from typing import BinaryIO, Final

from omnigate._batch.journal.disk import flush, sync_directory
from omnigate._wire.checks import refusal

_NAME_LENGTH: Final = 40


class Replacement:
    """A new file in the directory of a path, until `commit` renames it.

    It is readable by its owner only, as prompts and responses are private, unless it replaces a file: then it
    gets that one's mode and owner.

    Args:
        path: the path. Symbolic links are followed.

    Attributes:
        file: the new file, open for writing.

    Raises:
        InvalidArgumentError: the path leads to something that is not a regular file.
        OSError: the directory does not exist or cannot be written.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.realpath(path)
        if os.path.exists(self._path) and not os.path.isfile(self._path):
            raise refusal("path", path, "be the path of a regular file, existing or new")
        directory, name = os.path.split(self._path)
        try:
            fd, self._new = tempfile.mkstemp(".writing", f".{name[:_NAME_LENGTH]}.", directory)
        except OSError as error:
            error.filename = path  # the caller knows this one
            raise
        self.file: BinaryIO = os.fdopen(fd, "wb")

    def commit(self) -> None:
        """Flush the new file to the disk and rename it to the path.

        Raises:
            OSError: the disk is full, say; the path leads to the old file.
        """
        self.file.flush()
        fd = self.file.fileno()
        if sys.platform != "win32" and os.path.exists(self._path):
            old, new = os.stat(self._path), os.fstat(fd)
            if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
                os.fchown(fd, old.st_uid, old.st_gid)
            os.fchmod(fd, stat.S_IMODE(old.st_mode))
        flush(fd)
        self.file.close()
        os.replace(self._new, self._path)
        sync_directory(self._path)

    def discard(self) -> None:
        """Delete the new file, unless it was renamed."""
        with contextlib.suppress(OSError):  # the disk is full: what is buffered cannot be written
            self.file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._new)
