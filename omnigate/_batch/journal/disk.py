"""File locks and flushes to disk, which differ between operating systems."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Final

NO_LOCKS: Final = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})
"""The errors of file systems without locks."""

if sys.platform == "win32":
    import msvcrt

    open_flags = os.O_BINARY | os.O_NOINHERIT

    def lock(fd: int) -> None:
        """Lock an open file exclusively, without waiting; raise an OSError if it is locked already."""
        # The lock is on a range of bytes, which others then cannot read, so it lies far beyond the end.
        os.lseek(fd, 2**62, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(fd, 0, os.SEEK_SET)

    def unlock(fd: int) -> None:
        """Do nothing: the lock ends with the descriptor, which no other process has."""

    def flush(fd: int) -> None:
        """Flush an open file from the cache of the system to disk."""
        os.fsync(fd)

else:
    import fcntl

    open_flags = os.O_CLOEXEC

    def lock(fd: int) -> None:
        """Lock an open file exclusively, without waiting; raise an OSError if it is locked already."""
        # Not lockf(): those locks do not exclude the same process, and closing any descriptor of the
        # file releases them.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def unlock(fd: int) -> None:
        """Release the lock."""
        # Closing would not be enough: processes forked meanwhile share the lock.
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)

    def flush(fd: int) -> None:
        """Flush an open file from the cache of the system to disk."""
        if sys.platform == "darwin":  # whose fsync leaves the data in the drive's cache
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
                return
        os.fsync(fd)


def sync_directory(path: str) -> None:
    """Flush the directory entry of a new or renamed file to disk, if the file system supports it."""
    if sys.platform == "win32":  # cannot open directories
        return
    # Without it, a crash of the machine may bring back the old file, which is whole, too.
    with contextlib.suppress(OSError):
        fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
