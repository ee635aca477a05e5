"""The file under a journal: locked, appended to in whole lines, replaced as a whole. All I/O is here.

The rules:

1. One process. An OS lock on the file, which dies with its process however that dies. After it is taken,
   the path must still lead to the file locked: a compaction may have replaced it in between.
2. Whole lines. A line is one `write` to a descriptor in append mode, with no buffer in this process: when
   it returns, the kernel has the line, and the death of the process cannot take it back. (The death of
   the machine can, until the kernel has written it out, in half a minute or so; `sync` waits for that.)
3. A line that could only be written in part is cut off again. If that fails too, nothing is written any
   more, so that half a line never stands before a whole one: at the end it is recognised.
4. Nothing is overwritten in place. `replace` writes a second file, locked like the first, has it on the
   disk, and then gives it the name of the first, which is atomic: at any instant the name leads to a
   whole journal. A second file that a killed process left is removed by the next one that opens.
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
        # The lock is on bytes and keeps others from reading them, so it is put where none ever are.
        os.lseek(fd, 2**62, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(fd, 0, os.SEEK_SET)

else:
    import fcntl

    _flags = os.O_CLOEXEC

    def _lock(fd: int) -> None:
        # Not lockf(): those locks do not hold against the same process, and closing any descriptor
        # of the file, whoever opened it, drops them.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


_MODE = 0o600  # prompts and answers are nobody else's business

_NAME_BYTES = 100  # of the 255, or on some file systems 143, that a name may have

_COPY_BYTES = 256 * 1024


class NotCompactedError(JournalError):
    """A journal could not be replaced by one without the lines that have a later one; it is as it was."""


class JournalFile:
    """A file that is open, locked and appended to. Made by `JournalFile.open`.

    Attributes:
        path: the file's absolute path, symbolic links resolved.
        size: its length in bytes, whole lines only.

    """

    __slots__ = ("_broken", "_fd", "path", "size")

    def __init__(self, path: str, fd: int) -> None:
        self.path: str = path
        self.size: int = os.fstat(fd).st_size
        self._fd = fd
        self._broken: str | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> JournalFile:
        """Open and lock a file; make it, readable by its owner only, if there is none.

        Raises:
            JournalError: it is not a file, cannot be opened, or is in use.

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
            os.close(fd)  # a compaction put another file in its place: that one, then
        with contextlib.suppress(OSError):
            os.unlink(_second(resolved))
        return file

    @property
    def is_open(self) -> bool:
        """Whether it has not been closed."""
        return self._fd != -1

    def read_at(self, offset: int, size: int) -> bytes:
        """Return at most `size` bytes from `offset` on; b"" at the end."""
        try:
            os.lseek(self._fd, offset, os.SEEK_SET)  # writes go to the end all the same; Windows has no pread
            return os.read(self._fd, size)
        except OSError as error:
            raise _failed("read", self.path, error) from error

    def append(self, line: bytes) -> int:
        """Write a line at the end, complete when this returns; return its offset.

        Raises:
            JournalError: the system refused, for the reason in the message. The file ends with the line
                before.

        """
        if self._broken is not None:
            raise JournalError(f"The journal {self.path!r} takes no more lines: {self._broken}")
        offset = self.size
        try:
            written = os.write(self._fd, line)
            while written < len(line):  # a disk that is full takes a part first and says why next
                written += os.write(self._fd, line[written:])
            self.size = offset + written
        except OSError as error:
            self._cut_off(offset)
            raise _failed("write to", self.path, error) from error
        except BaseException:  # Ctrl-C after the system call: what the end of the file is like is not known
            self._broken = "writing was interrupted"
            raise
        return offset

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes.

        Raises:
            JournalError: the system refused.

        """
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise _failed("shorten", self.path, error) from error
        self.size = size

    def sync(self) -> None:
        """Return when the disk has all that was written.

        Raises:
            JournalError: it has not.

        """
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise _failed("write to", self.path, error) from error

    def replace(self, lines: Iterable[bytes], check: Callable[[], None]) -> None:
        """Put a file of these lines in this one's place, or leave this one as it is.

        Whoever opens the path finds either file, locked. This object stays with the old file: close it.

        Args:
            lines: whole lines, with their newlines.
            check: called when all are written; what it raises leaves the file as it is.

        Raises:
            NotCompactedError: the system refused, or the path leads to another file by now.

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
                if sys.platform == "win32":  # which renames no open file
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
                failure.add_note("Nothing is lost: it has all outcomes, and older lines of some ids besides.")
                raise failure from error
            raise

    def close(self) -> None:
        """Give the file and its lock back."""
        fd, self._fd = self._fd, -1
        if fd != -1:
            os.close(fd)

    def _cut_off(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            self._broken = f"half a line is at its end and cannot be cut off ({error.strerror})"

    def _adopt_mode(self, fd: int) -> None:
        # Who opened the journal's mode to others meant it.
        if sys.platform != "win32":
            os.fchmod(fd, stat.S_IMODE(os.fstat(self._fd).st_mode))


def _open(path: str) -> int:
    try:
        if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
            what = "a directory" if os.path.isdir(path) else "not a regular file"
            raise JournalError(f"The journal {path!r} is {what}. Pass the path of a file, or of none yet.")
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _flags, _MODE)
    except OSError as error:
        raise _failed("open", path, error) from error


def _take_lock(fd: int, path: str) -> None:
    try:
        _lock(fd)
    except (BlockingIOError, PermissionError) as error:
        raise JournalError(
            f"The journal {path!r} is in use by another process, or by another batch of this one. "
            "Wait until that has ended, or pass another path."
        ) from error
    except OSError as error:
        raise _failed("lock", path, error) from error


def _is_at(fd: int, path: str) -> bool:
    """Tell whether the path leads to the file that is open as `fd`."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _second(path: str) -> str:
    """Return the path of the second file: always the same, so that one that was left behind is found."""
    directory, name = os.path.split(path)
    encoded = os.fsencode(name)
    if len(encoded) > _NAME_BYTES:  # with more around it, it might be longer than a name may be
        name = hashlib.blake2b(encoded, digest_size=16).hexdigest()
    return os.path.join(directory, f".{name}.compacting")


def _write_all(fd: int, lines: Iterable[bytes]) -> None:
    with open(fd, "wb", buffering=_COPY_BYTES, closefd=False) as stream:
        stream.writelines(lines)


def _sync_directory(path: str) -> None:
    if sys.platform == "win32":  # opens no directories
        return
    # Some file systems cannot. Then a crash of the machine may bring the old file back: whole, too.
    with contextlib.suppress(OSError):
        fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _failed(verb: str, path: str, error: OSError, kind: type[JournalError] = JournalError) -> JournalError:
    return kind(f"Cannot {verb} the journal {path!r}: {error.strerror or error}.")
