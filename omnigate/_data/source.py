"""Sources of rows: the files or the table that `requests` names, read lazily and in order."""

from __future__ import annotations

import glob
import os
from collections.abc import Generator, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

from omnigate._data.opening import Input
from omnigate._data.readers import count_parquet, read_rows
from omnigate._data.rows import InvalidRow, Row
from omnigate._data.tables import Table, is_table
from omnigate._wire.checks import refusal
from omnigate.exceptions import InvalidArgumentError

Rows: TypeAlias = Generator[Row | InvalidRow]

_BLOCK_BYTES: Final = 1 << 20

_DIGEST_BYTES: Final = 16


class Files:
    """The rows of one file or several.

    Args:
        inputs: the files.
        name: what messages call them.
        most: how many rows to read, from the first; None for all.

    Attributes:
        is_repeatable: whether they can be read more than once.
    """

    def __init__(self, inputs: Sequence[Input], name: str, most: int | None = None) -> None:
        self.inputs: Sequence[Input] = inputs
        self.name: str = name
        self._most = most
        self.is_repeatable: bool = all(given.is_repeatable for given in inputs)

    def rows(self, columns: Sequence[str] | None = None) -> Rows:
        """Yield the rows of all files, in order.

        Args:
            columns: the only columns wanted, where reading fewer is cheaper.

        Raises:
            InvalidArgumentError: at the end, if there were none, and that could not be known before.
        """
        left, is_empty = self._most, True
        for given in self.inputs:
            if left == 0:
                return
            with given.open() as opened:
                for row in read_rows(opened, columns):
                    is_empty = False
                    yield row
                    if left is not None:
                        left -= 1
                        if left == 0:
                            break
        if is_empty and not self.is_repeatable:
            raise self.no_rows()

    def no_rows(self) -> InvalidArgumentError:
        """Return the error for files without rows."""
        hint = "unless it is JSON, its first line is a header"
        return InvalidArgumentError(f"requests: {self.name} is empty: there are no rows in it ({hint})")

    def limited(self, most: int) -> Files:
        """Return the first rows of the same files.

        Args:
            most: how many rows, at least 1.
        """
        return Files(self.inputs, self.name, most)

    def firsts(self) -> Iterator[Row]:
        """Yield the first valid row of each file."""
        for given in self.inputs:
            with given.open() as opened:
                first = next((row for row in read_rows(opened) if isinstance(row, Row)), None)
            if first is not None:
                yield first

    def count(self) -> int | None:
        """Return how many rows there are, if that is known without reading them."""
        count = 0
        for given in self.inputs:
            with given.open() as opened:
                if opened.kind != "parquet":
                    return None
                count += count_parquet(opened)
        return count if self._most is None else min(count, self._most)

    def digest(self) -> str:
        """Return the BLAKE2b of the files' bytes, as 32 hex digits."""
        hashed = blake2b(digest_size=_DIGEST_BYTES)
        for given in self.inputs:
            with given.raw() as stream:
                while block := stream.read(_BLOCK_BYTES):
                    hashed.update(block)
        return hashed.hexdigest()


class TableSource:
    """The rows of a frame or table in memory.

    Attributes:
        name: what messages call it.
        is_repeatable: whether it can be read more than once.
    """

    def __init__(self, given: Any) -> None:
        kind = type(cast("object", given))
        self.name: str = f"the {kind.__module__.partition('.')[0]}.{kind.__name__}"
        self._table = Table(given)
        self.is_repeatable: bool = self._table.is_repeatable

    def rows(self, columns: Sequence[str] | None = None) -> Rows:
        """Yield the rows."""
        yield from self._table.rows()

    def firsts(self) -> Iterator[Row]:
        """Yield the first row."""
        yield from islice(self._table.rows(), 1)

    def count(self) -> int | None:
        """Return how many rows there are, if that is known without reading them."""
        return self._table.count()

    def digest(self) -> None:
        """Return None: what is in memory has no bytes that a later run could compare."""


DataSource: TypeAlias = Files | TableSource


def is_data(requests: object) -> bool:
    """Return whether something is read as rows of data: a path or several, an open file, a frame or table."""
    return (
        isinstance(requests, os.PathLike | Files | TableSource)
        or _is_paths(requests)
        or is_open_file(requests)
        or is_table(requests)
    )


def data_source(requests: Any) -> DataSource:
    """Return the source of rows that `requests`, which `is_data` accepts, names.

    Make it once: it knows where an open file stood.

    Raises:
        InvalidArgumentError: several paths are not paths alone, or a pattern matches no file.
    """
    if isinstance(requests, Files | TableSource):
        return requests
    if isinstance(requests, os.PathLike):
        inputs = [Input(path) for path in _expanded(cast("os.PathLike[Any]", requests))]
        return Files(inputs, repr(os.fsdecode(cast("os.PathLike[Any]", requests))))
    if _is_paths(requests):
        for index, path in enumerate(requests):
            if not isinstance(path, os.PathLike):
                raise refusal(
                    f"requests[{index}]", path, "be a pathlib.Path, as the first one is", is_type=True
                )
        paths = [found for path in requests for found in _expanded(path)]
        name = repr(os.fsdecode(paths[0])) if len(paths) == 1 else f"each of the {len(paths)} files"
        return Files([Input(path) for path in paths], name)
    if is_open_file(requests):
        given = Input(requests)
        return Files([given], repr(given.name))
    return TableSource(requests)


def is_open_file(requests: object) -> bool:
    """Return whether something is an open file that is read without awaiting."""
    # Of the instance, not of its class: temporary files pass calls on to a file.
    read, readline = getattr(requests, "read", None), getattr(requests, "readline", None)
    return not hasattr(type(requests), "__aiter__") and callable(read) and callable(readline)


def _is_paths(requests: object) -> bool:
    """Return whether something is a list of paths."""
    if not isinstance(requests, list | tuple):
        return False
    given = cast("Sequence[object]", requests)
    return bool(given) and isinstance(given[0], os.PathLike)


def _expanded(path: os.PathLike[Any]) -> Iterator[os.PathLike[Any]]:
    """Yield a path, or, if it is a pattern and no file, the files that match it, sorted."""
    text = os.fsdecode(path)
    if not glob.has_magic(text) or os.path.lexists(text):
        yield path
        return
    found = sorted(glob.glob(text, recursive=True))
    if not found:
        raise InvalidArgumentError(f"requests: no file matches {text!r}")
    for name in found:
        yield Path(name)
