"""The file of a journal: locked, appended to in whole lines, replaced atomically. All I/O is here.

The rules:

1. One process. An OS lock on the file, which the system releases however the process dies. Once it is taken,
   the path must still lead to the locked file: a compaction may have replaced it in between. A forked child
   closes its copy of the descriptor, with which it would hold the lock after the parent's end.
2. Whole lines. A line is one `write` to a descriptor in append mode, with no user-space buffer: when it
   returns, the kernel has the line, and it survives a crash of the process. It survives a crash of the
   machine once `sync` has returned.
3. A line that was written only in part is cut off again. If that fails too, nothing more is written, so
   that a partial line is always the last one, where it is recognised.
4. Nothing is overwritten in place. `replace` writes a second file, locked like the first, syncs it to
   disk, and then renames it over the first, which is atomic: at any instant the path leads to a whole
   journal. A second file left by a killed process is removed at the next open.
5. Changes by others are noticed. After each write the file must end where expected; `find_change` checks
   that the path still leads to the file. A lock does not prevent it from being removed or rotated.

`sync`, `find_change` and `close` may be called in another thread than the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import threading
import weakref
from collections.abc import Callable, Iterable

from omnigate._batch.journal.disk import NO_LOCKS, flush, open_flags, sync_directory, unlock
from omnigate._batch.journal.disk import lock as lock_file
from omnigate.exceptions import JournalError

_MODE = 0o600  # prompts and responses are private

_NAME_BYTES = 100  # the limit for a name is 255, on some file systems 143

_COPY_BYTES = 256 * 1024

_in_use: weakref.WeakSet[JournalFile] = weakref.WeakSet()


class NotCompactedError(JournalError):
    """A journal could not be compacted to the last line of each id; it is unchanged."""


class JournalFile:
    """A file, open, locked and append-only. Created by `JournalFile.open`.

    Attributes:
        path: the file's absolute path, symbolic links resolved.
        size: length in bytes, whole lines only.

    """

    __slots__ = (
        "__weakref__",
        "_broken",
        "_fd",
        "_guard",
        "_is_entry_synced",
        "_is_locked",
        "_synced",
        "path",
        "size",
    )

    def __init__(self, path: str, fd: int) -> None:
        self.path: str = path
        self._fd = fd
        self._guard = threading.RLock()  # of `sync` and `find_change` against `close`
        self._is_locked = False
        self._broken: str | None = None
        _in_use.add(self)
        self.size: int = os.fstat(fd).st_size
        self._synced = 0  # what a killed run has written may not be on the disk yet
        self._is_entry_synced = self.size > 0

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, lock: bool = True) -> JournalFile:
        """Open and lock a file; create it, readable by its owner only, if it does not exist.

        Args:
            path: its path.
            lock: False to take no lock, where the file system has none.

        Raises:
            JournalError: it is not a regular file, cannot be opened or locked, or is in use.

        """
        try:
            resolved = os.path.realpath(os.fsdecode(path))
        except ValueError as error:  # a NUL in it
            raise JournalError(f"{path!r} cannot be the path of a journal: {error}.") from error
        while True:
            file = cls(resolved, _open(resolved))
            try:
                if lock:
                    file._take_lock()
                if _is_at(file._fd, resolved):
                    break
            except BaseException:
                file.close()
                raise
            file.close()  # a compaction has replaced the file: open the new one
        if lock:
            with contextlib.suppress(OSError):
                os.unlink(_second(resolved))
        return file

    def _take_lock(self) -> None:
        take_lock(self._fd, self.path)
        self._is_locked = True

    @property
    def is_open(self) -> bool:
        """Whether the file is open."""
        return self._fd != -1

    def read_at(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes at `offset`; b"" at the end."""
        try:
            os.lseek(self._fd, offset, os.SEEK_SET)  # writes append anyway (O_APPEND); Windows has no pread
            return os.read(self._fd, size)
        except OSError as error:
            raise _failed("read", self.path, error) from error

    def append(self, line: bytes) -> int:
        """Append a whole line; return its offset.

        Raises:
            JournalError: the write failed, for the reason in the message. The file ends with the previous
                line. Or another program has changed the file: it ends with this line, and takes no more.

        """
        if self._broken is not None:
            raise JournalError(f"The journal {self.path!r} takes no more lines: {self._broken}")
        offset = self.size
        try:
            written = os.write(self._fd, line)
            while written < len(line):  # a full disk takes part of it first, and fails on the rest
                written += os.write(self._fd, line[written:])
            end = os.lseek(self._fd, 0, os.SEEK_CUR)
            self.size = offset + written
        except OSError as error:
            self._cut_off(offset)
            raise _failed("write to", self.path, error) from error
        except BaseException:  # Ctrl-C after the system call: the state of the file's end is unknown
            self._broken = "writing was interrupted"
            raise
        if end != self.size:
            self._broken = "another program has changed it"
            raise JournalError(self._words_of_size(end))
        return offset

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes.

        Raises:
            JournalError: the file cannot be truncated.

        """
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise _failed("shorten", self.path, error) from error
        self.size = size

    def sync(self) -> None:
        """Flush everything written to disk, and with it the entry of a new file in its directory.

        Raises:
            JournalError: the flush failed.

        """
        with self._guard:
            size = self.size
            if self._fd == -1 or size == self._synced:
                return
            try:
                flush(self._fd)
            except OSError as error:
                raise _failed("write to", self.path, error) from error
            self._synced = size
            if not self._is_entry_synced:
                sync_directory(self.path)
                self._is_entry_synced = True

    def find_change(self) -> str | None:
        """Return what another program did to the file, as a sentence; None if nothing."""
        with self._guard:
            if self._fd == -1:
                return None
            size = self.size  # before the file's own, which may be growing
            try:
                here = os.fstat(self._fd)
                there = os.stat(self.path)
            except FileNotFoundError:
                return (
                    f"The journal {self.path!r} was deleted or moved while it was in use: what was written "
                    "since is not there."
                )
            except OSError as error:
                return str(_failed("look for", self.path, error))
        if not os.path.samestat(here, there):
            return (
                f"The journal {self.path!r} was replaced by another file while it was in use (rotated?): "
                "what was written since is not there."
            )
        return self._words_of_size(here.st_size) if here.st_size < size else None

    def _words_of_size(self, size: int) -> str:
        how = "truncated" if size < self.size else "written to"
        return f"The journal {self.path!r} was {how} by another program while it was in use."

    def replace(self, lines: Iterable[bytes], check: Callable[[], None]) -> None:
        """Replace the file with one of these lines, or leave it unchanged.

        At any time the path leads to one of the two files, locked. This object stays with the old one: close
        it.

        Args:
            lines: whole lines, with their newlines.
            check: called once all are written; an exception leaves the file unchanged.

        Raises:
            NotCompactedError: an I/O error, or the path leads to another file by now.

        """
        second = _second(self.path)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(second)
            fd = os.open(second, os.O_RDWR | os.O_CREAT | os.O_EXCL | open_flags, _MODE)
            try:
                if self._is_locked:
                    lock_file(fd)
                _write_all(fd, lines)
                check()
                self._adopt_owner_and_mode(fd)
                flush(fd)
                if not _is_at(self._fd, self.path):
                    raise NotCompactedError(
                        f"The journal {self.path!r} was moved or deleted while it was in use, so it was not "
                        "compacted."
                    )
                if sys.platform == "win32":  # which cannot rename an open file
                    self.sync()
                    os.close(fd)
                    fd = -1
                    self.close()
                os.replace(second, self.path)
                sync_directory(self.path)
            finally:
                if fd != -1:
                    unlock(fd)
                    os.close(fd)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(second)
            if isinstance(error, OSError):
                failure = _failed("compact", self.path, error, NotCompactedError)
                failure.add_note("Nothing is lost: it has every outcome, plus older lines of some ids.")
                raise failure from error
            raise

    def close(self) -> None:
        """Close the file and release its lock."""
        with self._guard:
            fd, self._fd = self._fd, -1
            if fd != -1:
                if self._is_locked:
                    unlock(fd)
                os.close(fd)

    def close_in_child(self) -> None:
        """Close a forked child's copy of the descriptor; the parent keeps its lock."""
        self._guard = threading.RLock()  # a thread that is not in the child may hold the old one
        fd, self._fd = self._fd, -1
        if fd != -1:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _cut_off(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            self._broken = f"it ends with a partial line that cannot be cut off ({error.strerror})"

    def _adopt_owner_and_mode(self, fd: int) -> None:
        # Run by root, a compaction must not take the journal away from its owner. If the journal's mode was
        # widened for others, that was intended.
        if sys.platform != "win32":
            old, new = os.fstat(self._fd), os.fstat(fd)
            if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
                os.fchown(fd, old.st_uid, old.st_gid)
            os.fchmod(fd, stat.S_IMODE(old.st_mode))


def take_lock(fd: int, path: str) -> None:
    """Lock an open journal.

    Raises:
        JournalError: it is in use, or its file system has no locks.

    """
    try:
        lock_file(fd)
    except (BlockingIOError, PermissionError) as error:
        raise JournalError(
            f"The journal {path!r} is in use by another process, or by another batch of this one. "
            "Wait until that one has ended, or pass another path."
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise _failed("lock", path, error) from error
        raise JournalError(
            f"The journal {path!r} cannot be locked, its file system has no locks "
            f"({error.strerror}). Pass a path on another one; or, if no other run uses this journal at "
            "the same time, pass journal_lock=False."
        ) from error


def _close_in_child() -> None:
    for file in list(_in_use):
        file.close_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _open(path: str) -> int:
    try:
        if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
            what = "a directory" if os.path.isdir(path) else "not a regular file"
            raise JournalError(
                f"The journal {path!r} is {what}. Pass the path of a regular file, existing or new."
            )
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | open_flags, _MODE)
    except OSError as error:
        raise _failed("open", path, error) from error


def _is_at(fd: int, path: str) -> bool:
    """Return whether the path leads to the file that is open as `fd`."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _second(path: str) -> str:
    """Return the path of the second file, always the same, so that a leftover is found."""
    directory, name = os.path.split(path)
    encoded = os.fsencode(name)
    if len(encoded) > _NAME_BYTES:  # with the prefix and suffix it might exceed the limit
        name = hashlib.blake2b(encoded, digest_size=16).hexdigest()
    return os.path.join(directory, f".{name}.compacting")


def _write_all(fd: int, lines: Iterable[bytes]) -> None:
    with open(fd, "wb", buffering=_COPY_BYTES, closefd=False) as stream:
        stream.writelines(lines)


def _failed(verb: str, path: str, error: OSError, kind: type[JournalError] = JournalError) -> JournalError:
    return kind(f"Cannot {verb} the journal {path!r}: {error.strerror or error}.")
