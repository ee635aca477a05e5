"""The file of a journal: locked, appended to in whole lines, replaced atomically. All I/O is here.

The rules:

1. One process. An OS lock on the file, which the system releases however the process dies. Once it is taken,
   the path must still lead to the locked file: a compaction may have replaced it in between.
2. Whole lines. A line is one `write` to a descriptor in append mode, with no user-space buffer: when it
   returns, the kernel has the line, and it survives a crash of the process. (It survives a crash of the
   machine once the kernel has written it out, within half a minute or so; `sync` waits for that.)
3. A line that was written only in part is cut off again. If that fails too, nothing more is written, so
   that a partial line is always the last one, where it is recognised.
4. Nothing is overwritten in place. `replace` writes a second file, locked like the first, syncs it to
   disk, and then renames it over the first, which is atomic: at any instant the path leads to a whole
   journal. A second file left by a killed process is removed at the next open.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
from collections.abc import Callable, Iterable

from omnigate.exceptions import JournalError

if sys.platform == "win32":
    import msvcrt

    _flags = os.O_BINARY | os.O_NOINHERIT

    def _lock(fd: int) -> None:
        # The lock is on a range of bytes, which others then cannot read, so it lies far beyond the end.
        os.lseek(fd, 2**62, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(fd, 0, os.SEEK_SET)

else:
    import fcntl

    _flags = os.O_CLOEXEC

    def _lock(fd: int) -> None:
        # Not lockf(): those locks do not exclude the same process, and closing any descriptor of the
        # file releases them.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


_MODE = 0o600  # prompts and responses are private

_NAME_BYTES = 100  # the limit for a name is 255, on some file systems 143

_COPY_BYTES = 256 * 1024


class NotCompactedError(JournalError):
    """A journal could not be compacted to the last line of each id; it is unchanged."""


class JournalFile:
    """A file, open, locked and append-only. Created by `JournalFile.open`.

    Attributes:
        path: the file's absolute path, symbolic links resolved.
        size: length in bytes, whole lines only.

    """

    __slots__ = ("_broken", "_fd", "path", "size")

    def __init__(self, path: str, fd: int) -> None:
        self.path: str = path
        self.size: int = os.fstat(fd).st_size
        self._fd = fd
        self._broken: str | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> JournalFile:
        """Open and lock a file; create it, readable by its owner only, if it does not exist.

        Raises:
            JournalError: it is not a regular file, cannot be opened, or is in use.

        """
        try:
            resolved = os.path.realpath(os.fsdecode(path))
        except ValueError as error:  # a NUL in it
            raise JournalError(f"{path!r} cannot be the path of a journal: {error}.") from error
        while True:
            fd = _open(resolved)
            try:
                _take_lock(fd, resolved)
                if _is_at(fd, resolved):
                    file = cls(resolved, fd)
                    break
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # a compaction has replaced the file: open the new one
        with contextlib.suppress(OSError):
            os.unlink(_second(resolved))
        return file

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
                line.

        """
        if self._broken is not None:
            raise JournalError(f"The journal {self.path!r} takes no more lines: {self._broken}")
        offset = self.size
        try:
            written = os.write(self._fd, line)
            while written < len(line):  # a full disk takes part of it first, and fails on the rest
                written += os.write(self._fd, line[written:])
            self.size = offset + written
        except OSError as error:
            self._cut_off(offset)
            raise _failed("write to", self.path, error) from error
        except BaseException:  # Ctrl-C after the system call: the state of the file's end is unknown
            self._broken = "writing was interrupted"
            raise
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
        """Flush everything written to disk.

        Raises:
            JournalError: the flush failed.

        """
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise _failed("write to", self.path, error) from error

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
            fd = os.open(second, os.O_RDWR | os.O_CREAT | os.O_EXCL | _flags, _MODE)
            try:
                _lock(fd)
                _write_all(fd, lines)
                check()
                self._adopt_mode(fd)
                os.fsync(fd)
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
                _sync_directory(self.path)
            finally:
                if fd != -1:
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
        fd, self._fd = self._fd, -1
        if fd != -1:
            os.close(fd)

    def _cut_off(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            self._broken = f"it ends with a partial line that cannot be cut off ({error.strerror})"

    def _adopt_mode(self, fd: int) -> None:
        # If the journal's mode was widened for others, that was intended.
        if sys.platform != "win32":
            os.fchmod(fd, stat.S_IMODE(os.fstat(self._fd).st_mode))


def _open(path: str) -> int:
    try:
        if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
            what = "a directory" if os.path.isdir(path) else "not a regular file"
            raise JournalError(
                f"The journal {path!r} is {what}. Pass the path of a regular file, existing or new."
            )
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _flags, _MODE)
    except OSError as error:
        raise _failed("open", path, error) from error


def _take_lock(fd: int, path: str) -> None:
    try:
        _lock(fd)
    except (BlockingIOError, PermissionError) as error:
        raise JournalError(
            f"The journal {path!r} is in use by another process, or by another batch of this one. "
            "Wait until that one has ended, or pass another path."
        ) from error
    except OSError as error:
        raise _failed("lock", path, error) from error


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


def _sync_directory(path: str) -> None:
    if sys.platform == "win32":  # cannot open directories
        return
    # Some file systems cannot. Then a crash of the machine may bring back the old file, which is whole as
    # well.
    with contextlib.suppress(OSError):
        fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _failed(verb: str, path: str, error: OSError, kind: type[JournalError] = JournalError) -> JournalError:
    return kind(f"Cannot {verb} the journal {path!r}: {error.strerror or error}.")
