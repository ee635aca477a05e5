"""The source of a batch while it is read: open, next item, close, and the error that ended it."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator, Sized
from typing import Any, Final, cast

import anyio
import anyio.lowlevel

from omnigate._batch.items import BatchSource, is_async_source, open_source
from omnigate._batch.recipe import Recipe
from omnigate._data.inspection import Facts
from omnigate._data.source import DataSource, Files, data_source, is_data
from omnigate._runtime.isolation import bounded, is_cancellation
from omnigate._runtime.threads import in_thread

_CHECKPOINT_EVERY: Final = 1024

END: Final = object()
"""Returned instead of an item: there is none."""


class Source:
    """Reads the raw items of a batch, one at a time.

    Attributes:
        is_exhausted: whether all items were read.
        count: how many items were read.
        is_async: whether reading it may wait, so that it has no `read`.
        error: what the source raised, or None.
        facts: what is known of it before it is read.
        counted: how many rows of data have been counted, while they are; else None.
    """

    def __init__(self, requests: BatchSource) -> None:
        self.is_exhausted = False
        self.count = 0
        self.error: BaseException | None = None
        self.facts: Facts = Facts(length_of(requests))
        self.counted: int | None = None
        self._requests: BatchSource | DataSource = requests
        self.is_async = False
        self._is_own = False  # our own generator over rows, not the user's iterator
        self._items: Any = None

    @property
    def has_ended(self) -> bool:
        """Whether there are no more items."""
        return self.is_exhausted or self.error is not None

    @property
    def total(self) -> int | None:
        """How many items there are; None if that is not known, or not yet."""
        return self.count if self.is_exhausted else self.facts.total

    async def inspect(self, recipe: Recipe, *, has_journal: bool) -> None:
        """Read data from end to end, in a thread, to find what is wrong with it before anything is sent.

        Raises:
            InvalidArgumentError: it cannot be read, or the recipe does not fit it.
            OSError: a file cannot be read.
        """
        if is_data(self._requests):
            source: DataSource = await in_thread(data_source, self._requests)
            self._requests = source  # even if it is refused: an open file stands elsewhere then

            def count(rows: int) -> None:
                self.counted = rows

            try:
                self.facts = await in_thread(
                    lambda: recipe.inspect(source, has_journal=has_journal, counted=count), lingers=True
                )
            finally:
                self.counted = None

    def open(self) -> None:
        """Start iterating; an exception of the user's `__iter__` propagates."""
        self.is_async = is_async_source(self._requests)
        self._is_own = is_data(self._requests)
        self._items = open_source(self._requests)
        if isinstance(self._requests, Files) and not self._requests.is_repeatable:
            self.is_async, self._is_own = True, False
            self._items = _Stream(self._items)
        self._requests = ()  # do not keep alive what the iterator has consumed

    async def next(self, pause: Callable[..., Awaitable[tuple[Any] | None]]) -> Any:
        """Return the next raw item; `END` if there is none, the source failed, or the wait was abandoned.

        Args:
            pause: awaits a function with its arguments; returns None if the wait was abandoned.
        """
        if not self.is_async:
            return self.read()
        try:
            found = await pause(_anext, self._items)
        except (Exception, anyio.get_cancelled_exc_class()) as error:
            if is_cancellation(error):
                raise
            self.error = error
            return END
        if found is None:
            return END
        if found[0] is END:
            self.is_exhausted = True
        else:
            self.count += 1
        return found[0]

    def read(self) -> Any:
        """Do what `next` does, for a source that is not async."""
        try:
            raw = next(self._items)
        except StopIteration:
            self.is_exhausted = True
            return END
        except (Exception, anyio.get_cancelled_exc_class()) as error:
            if is_cancellation(error):
                raise
            self.error = error
            return END
        self.count += 1
        return raw

    async def count_all(self) -> int:
        """Read the items that are left, without keeping them; return how many there are in all.

        An exception of the source ends it, too, and is kept in `error`.
        """
        try:
            if self.is_async and not self.has_ended:
                async for _ in cast("AsyncIterator[Any]", self._items):
                    self.count += 1
            elif not self.has_ended:
                for _ in cast("Iterator[Any]", self._items):
                    self.count += 1
                    if self.count % _CHECKPOINT_EVERY == 0:
                        await anyio.lowlevel.checkpoint()
        except Exception as error:  # noqa: BLE001 - the batch has ended for another reason
            self.error = error
        return self.count

    async def close(self) -> None:
        """Close a generator that may be unfinished, unless closing it is up to its owner."""
        items, self._items = self._items, None
        if isinstance(items, _Stream):
            items.close()
        elif isinstance(items, AsyncGenerator):
            await bounded(cast("AsyncGenerator[Any, None]", items).aclose)
        elif self._is_own:  # which closes its file
            cast("Generator[Any, None, None]", items).close()


class _Stream:
    """The rows of a pipe, each read in a thread, since the next one may be a long time coming.

    A read that is abandoned goes on in its thread, which closes the rows once it ends.

    Args:
        rows: a generator.
    """

    def __init__(self, rows: Any) -> None:
        self._rows: Generator[Any, None, None] = rows
        self._lock = threading.Lock()  # held while a row is read
        self._is_closed = False

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> Any:
        row = await in_thread(self._next)
        if row is END:
            raise StopAsyncIteration
        return row

    def _next(self) -> Any:
        with self._lock:
            try:
                return END if self._is_closed else next(self._rows, END)
            finally:
                if self._is_closed:
                    self._rows.close()

    def close(self) -> None:
        """Close the rows, or let the thread that reads one do so."""
        self._is_closed = True
        if self._lock.acquire(blocking=False):
            try:
                self._rows.close()
            finally:
                self._lock.release()


def length_of(requests: object) -> int | None:
    """Return how many items a source has, if that is known without reading it."""
    if not isinstance(requests, Sized) or is_data(requests):
        return None
    try:
        return len(requests)
    except (TypeError, NotImplementedError):
        return None  # the class has `__len__`, for other objects than this one


async def _anext(source: AsyncIterator[Any]) -> Any:
    return await anext(source, END)
