"""How many items a batch has: a source's length, or the lines of its file, counted in a thread meanwhile."""

from __future__ import annotations

import os
from collections.abc import Sized
from pathlib import Path
from typing import Final, cast

from omnigate._batch.files import path_of
from omnigate._runtime.threads import in_thread

_BLOCK_BYTES: Final = 256 * 1024


class Total:
    """The number of a source's items.

    Args:
        requests: the source. It is not kept.

    Attributes:
        value: the number; None if it is not known, or not yet.
        percent: how much of a file has been counted, while it is counted; else None.
    """

    def __init__(self, requests: object) -> None:
        self.value: int | None = None
        self.percent: float | None = None
        self._path: Path | None = None
        self._is_stopped = False
        if isinstance(requests, os.PathLike):
            self._path = path_of(cast("os.PathLike[str]", requests))
        elif isinstance(requests, Sized):
            try:
                self.value = len(requests)
            except (TypeError, NotImplementedError):
                self.value = None  # the class has `__len__`, for other objects than this one

    @property
    def is_to_be_counted(self) -> bool:
        """Whether `count` would count a file."""
        return self._path is not None

    async def count(self) -> None:
        """Count the file's items in a thread; if cancelled, the thread ends soon."""
        try:
            await in_thread(self._count)
        finally:
            self._is_stopped = True

    def _count(self) -> None:
        assert self._path is not None
        try:
            if os.path.isfile(self._path):  # reading a pipe would take its lines away
                self.value = self._count_lines(self._path)
        except OSError:
            self.value = None  # the batch reads the file, too, and reports the error
        self.percent = None

    def _count_lines(self, path: Path) -> int | None:
        """Return how many lines are not empty; None if stopped."""
        lines = at = 0
        has_text = False  # of the line that a block ends in
        with path.open("rb") as file:
            size = max(1, os.fstat(file.fileno()).st_size)
            while block := file.read(_BLOCK_BYTES):
                if self._is_stopped:
                    return None
                first, *others = block.split(b"\n")
                has_text = has_text or bool(first.strip())
                if others:
                    texts = [bool(line.strip()) for line in others]
                    lines += has_text + sum(texts[:-1])
                    has_text = texts[-1]
                at += len(block)
                self.percent = min(100.0, 100 * at / size)
        return lines + has_text
