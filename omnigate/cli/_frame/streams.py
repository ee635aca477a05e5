"""The standard streams of the process: all three are there, and standard error never fails.

A program may be started with any of them closed (`>&-`). Then Python has None in its place, and the next file
or socket that is opened takes its number. Standard error is for people: a full disk or a closed pipe there
must not end a batch, or keep a key from being shown on standard output.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any


def prepare_streams() -> None:
    """Open the standard streams that are missing, and make standard error drop what it cannot write.

    A missing standard input is empty; writing to a missing standard output is an error; what is written to a
    missing standard error is dropped.
    """
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(_null(0, "r", os.O_RDONLY)), encoding="utf-8")
    if sys.stdout is None:  # opened for reading, so that writing fails
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(_null(1, "w", os.O_RDONLY)), encoding="utf-8")
    encoding = "utf-8" if sys.stderr is None else sys.stderr.encoding
    buffer = _null(2, "w", os.O_WRONLY) if sys.stderr is None else getattr(sys.stderr, "buffer", None)
    if buffer is not None:
        raw = getattr(buffer, "raw", buffer)  # there is no buffer in between if PYTHONUNBUFFERED is set
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(_Dropping(raw)),
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=True,
        )


def _null(descriptor: int, mode: str, flags: int) -> io.FileIO:
    """Return the null device, opened with a number unless something else has been."""
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(os.devnull, flags)
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)
    return io.FileIO(descriptor, mode, closefd=False)


class _Dropping(io.RawIOBase):
    """Writes to another raw stream, and drops what that cannot write."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            written: int | None = self._raw.write(data)
        except OSError:
            written = None
        return len(data) if written is None else written

    def fileno(self) -> int:
        number: int = self._raw.fileno()
        return number

    def isatty(self) -> bool:
        return bool(self._raw.isatty())
