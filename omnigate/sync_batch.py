"""The sync face of a batch: the source is read in the caller's thread, the rest happens in the portal's loop.

Crossing the border costs more than an item, so items and outcomes cross in groups. The async batch runs in a
task of the portal for as long as the block is open, and is fed by `_Feed`, which stands for the caller's
source. It says how many items could be started; so many are read, or as many as come within a few
milliseconds, and handed over without waiting. The caller waits only if there is no outcome.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, cast

import anyio

from omnigate.batch import Batch
from omnigate.batch_items import BatchItem, open_source
from omnigate.exceptions import NotStartedError
from omnigate.outcome import BatchStats, Outcome
from omnigate.portal import Portal

_MOST: Final = 256
"""Items or outcomes that cross at once."""
_READ_SECONDS: Final = 0.005


class _Feed:
    """The async iterator that the batch reads from; what is in it comes from the caller's thread."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._end: BaseException | None = None
        self._event: anyio.Event | None = None
        self.on_empty: Callable[[], None] = lambda: None

    @property
    def is_wanted(self) -> bool:
        """Whether the batch waits for an item."""
        return self._event is not None and not self._items and self._end is None

    def put(self, items: list[Any], end: BaseException | None) -> None:
        """Take items in, and, at the end of the source, what ended it."""
        self._items.extend(items)
        self._end = self._end or end
        if self._event is not None:
            self._event.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while not self._items:
            if self._end is not None:
                raise self._end
            self._event = anyio.Event()
            try:
                self.on_empty()
                await self._event.wait()
            finally:
                self._event = None
        return self._items.popleft()


class _News(NamedTuple):
    """What crosses to the caller."""

    outcomes: list[Outcome]
    wanted: int
    has_ended: bool


class SyncBatch:
    """A batch, to be used as `with client.batch(…) as batch: for outcome in batch: …`.

    It mirrors `Batch`; the source is iterated in the caller's thread. Not to be read by two threads at once.
    """

    def __init__(
        self, portal: Portal, requests: Iterable[BatchItem] | Path, make: Callable[[Any], Batch]
    ) -> None:
        """Prepare; `make` returns the async batch of a source."""
        self._portal = portal
        self._requests = requests
        self._feed = _Feed()
        self._batch = make(self._feed)
        self._source: Iterator[Any] | None = None
        self._is_open = False
        self._unsent: list[Any] = []
        self._outcomes: deque[Outcome] = deque()
        self._wanted = 0
        self._has_ended = False
        # in the portal's loop
        self._entered: anyio.Event
        self._leaving: anyio.Event
        self._left: anyio.Event | None = None
        self._error: BaseException | None = None

    @property
    def stats(self) -> BatchStats:
        """Where the batch stands; at any time once it has started, also after its end."""
        return self._portal.call(self._stats) if self._is_open else self._batch.stats

    def __enter__(self) -> Self:
        self._source = cast("Iterator[Any]", open_source(self._requests))
        try:
            self._portal.call(self._enter)
        except Exception:
            raise
        except BaseException:  # Ctrl-C just when it had begun: there will be no `__exit__`
            self._portal.call(self._leave)
            raise
        self._is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_open = False
        self._source = None
        self._outcomes.clear()
        try:
            self._portal.call(self._leave)
        except Exception as failure:
            if error is None:
                raise
            error.add_note(str(failure))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Outcome:
        if not self._is_open:
            raise NotStartedError("a batch is iterated inside of its `with` block")
        while not self._outcomes:
            if self._has_ended:
                raise StopIteration
            self._read()
            items, self._unsent = self._unsent, []
            news: _News = self._portal.call(lambda: self._exchange(items))  # noqa: B023 - called at once
            self._outcomes.extend(news.outcomes)
            self._wanted, self._has_ended = news.wanted, news.has_ended
            if self._outcomes and self._wanted:  # let them start while the caller sees to its outcomes
                self._read()
                items, self._unsent = self._unsent, []
                if items:
                    self._portal.post(lambda: self._feed.put(items, None))  # noqa: B023
        return self._outcomes.popleft()

    def _read(self) -> None:
        """Read as many items as are wanted, or as there are without waiting long."""
        source = self._source
        wanted, self._wanted = self._wanted, 0
        if source is None or wanted <= 0:
            return
        until = time.monotonic() + _READ_SECONDS
        try:
            for item in source:
                self._unsent.append(item)
                if len(self._unsent) >= wanted or time.monotonic() > until:
                    return
        except Exception as error:  # noqa: BLE001 - raised by the batch, once what is in flight was handed out
            self._end_source(error)
        else:
            self._end_source(StopAsyncIteration())

    def _end_source(self, end: BaseException) -> None:
        self._source = None
        items, self._unsent = self._unsent, []
        self._portal.post(lambda: self._feed.put(items, end))

    # In the portal's loop

    async def _enter(self) -> None:
        self._entered, self._leaving, self._left = anyio.Event(), anyio.Event(), anyio.Event()
        self._portal.start(partial(self._run, self._left))
        await self._entered.wait()
        if self._error is not None:
            raise self._error

    async def _run(self, left: anyio.Event) -> None:
        """Hold the batch open."""
        try:
            async with self._batch as batch:
                self._feed.on_empty = batch.notify
                self._entered.set()
                await self._leaving.wait()
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            self._error = error
        finally:
            self._entered.set()
            left.set()

    async def _stats(self) -> BatchStats:
        return self._batch.stats

    async def _leave(self) -> None:
        if self._left is None:
            return  # it had not begun
        self._leaving.set()
        await self._left.wait()
        if self._error is not None:
            raise self._error

    async def _exchange(self, items: list[Any]) -> _News:
        """Take items in, and wait for outcomes, or until more items are wanted."""
        batch, feed = self._batch, self._feed
        if items:
            feed.put(items, None)
        while True:
            outcomes = batch.take(_MOST)
            wanted = max(1, min(batch.room(), _MOST)) if feed.is_wanted else 0
            if outcomes or wanted:
                return _News(outcomes, wanted, False)
            if not await batch.wait():
                return _News([], 0, True)
