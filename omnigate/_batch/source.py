"""The source of a batch while it is read: opened, asked for the next item, closed, and what ended it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Final, cast

import anyio

from omnigate._batch.items import BatchSource, is_async_source, open_source
from omnigate._runtime.isolation import bounded, is_cancellation

END: Final = object()
"""In place of an item: none comes now."""


class Source:
    """Reads the raw items of a batch, one at a time.

    Attributes:
        is_exhausted: whether all items were read.
        error: what the source raised, or None.
    """

    def __init__(self, requests: BatchSource) -> None:
        self.is_exhausted = False
        self.error: BaseException | None = None
        self._requests: BatchSource = requests
        self._is_async = False
        self._is_own = False  # a generator over a file, which is not the user's
        self._items: Any = None

    @property
    def has_ended(self) -> bool:
        """Whether no further item comes."""
        return self.is_exhausted or self.error is not None

    def open(self) -> None:
        """Begin; what the user's `__iter__` raises is raised."""
        self._is_async = is_async_source(self._requests)
        self._is_own = isinstance(self._requests, Path)
        self._items = open_source(self._requests)
        self._requests = ()  # the iterator holds what is still to come

    async def next(self, pause: Callable[..., Awaitable[tuple[Any] | None]]) -> Any:
        """Return the next raw item; `END` if there is none, if the source failed, or if waiting was given up.

        Args:
            pause: awaits a function with its arguments, and returns None if that was given up.
        """
        try:
            if self._is_async:
                found = await pause(_anext, self._items)
                if found is None:
                    return END
                raw = found[0]
            else:
                raw = next(cast("Iterator[Any]", self._items), END)
        except (Exception, anyio.get_cancelled_exc_class()) as error:
            if is_cancellation(error):
                raise
            self.error = error
            return END
        if raw is END:
            self.is_exhausted = True
        return raw

    async def close(self) -> None:
        """Close what may have been left in the middle, unless that is its owner's business."""
        items, self._items = self._items, None
        if isinstance(items, AsyncGenerator):
            await bounded(cast("AsyncGenerator[Any, None]", items).aclose)
        elif self._is_own:  # and its file
            cast("Generator[Any, None, None]", items).close()


async def _anext(source: AsyncIterator[Any]) -> Any:
    return await anext(source, END)
