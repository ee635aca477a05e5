"""The sync batch: reads the source in the caller's thread, and runs the rest in the portal's loop.

Crossing threads costs more than handling an item, so items and outcomes cross in groups. The async batch runs
in a portal task while the block is open. Its source is a `_Feed`, which stands in for the caller's and says
how many items could start; the caller reads that many, or as many as arrive within a few milliseconds, and
passes them on without waiting. The caller waits only if there is no outcome.

Nothing crosses as a call's argument or result, which Ctrl-C could lose: items and outcomes stay in queues
shared by both sides until they are taken. The part in the loop, `_Inside`, holds no reference to the caller's
side, so a batch whose `__exit__` was prevented by an interrupt still ends when it is dropped.
"""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, Generic, Self, cast

import anyio

from omnigate import _homes
from omnigate._batch.batch import Batch
from omnigate._batch.items import SyncBatchSource, open_source
from omnigate._batch.outcomes import AnyOutcome, BatchStats, OutcomeOf
from omnigate._batch.progress import Reading
from omnigate._batch.source import length_of
from omnigate._batch.tables import Drained
from omnigate._batch.writing import OutcomeFile, frame_of
from omnigate._data.frames import FrameKind, load_library
from omnigate._data.inspection import Facts
from omnigate._data.source import DataSource, data_source, is_data
from omnigate._runtime.frames import warn
from omnigate._sync.portal import Portal
from omnigate._wire.pickling import UnpicklableReader
from omnigate._wire.results import ParsedT_co
from omnigate.exceptions import ClientClosedError, NotStartedError

_MOST: Final = 256
"""Items or outcomes that cross together."""

_READ_SECONDS: Final = 0.005


class _Feed:
    """The async iterator that feeds the batch with items from the caller's thread."""

    def __init__(self) -> None:
        self.read: deque[Any] = deque()  # filled by the caller, emptied by `accept`
        self.end: BaseException | None = None  # how the source ended; set by the caller after the last item
        self._items: deque[Any] = deque()
        self._end: BaseException | None = None
        self._event: anyio.Event | None = None
        self.on_empty: Callable[[], None] = lambda: None

    @property
    def is_wanted(self) -> bool:
        """Whether the batch is waiting for an item."""
        return self._event is not None and not self._items and self._end is None

    def accept(self) -> None:
        """Accept the items the caller has read. Call it in the loop."""
        end = self.end  # read before the items: the caller may be adding more
        while self.read:
            self._items.append(self.read.popleft())
        self._end = end
        if self._event is not None and not self.is_wanted:
            self._event.set()

    def count(self) -> int:
        """Return how many items the batch has not taken yet."""
        return len(self.read) + len(self._items)

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


class _Inside:
    """The part of the batch in the portal's loop. Call its methods there, except `leave_soon`."""

    def __init__(self, make: Callable[[Any], Batch]) -> None:
        self.feed = _Feed()
        self.batch = make(self.feed)
        self.outcomes: deque[AnyOutcome] = deque()  # emptied by the caller
        self.wanted = 0
        self.has_ended = False
        self._call_soon: Callable[[Callable[[], object]], None]
        self._entered: anyio.Event
        self._leaving: anyio.Event
        self._left: anyio.Event | None = None  # set once the batch is entered
        self._error: BaseException | None = None

    async def enter(self, portal: Portal) -> None:
        """Enter the batch in its own task."""
        if self._left is not None:
            raise NotStartedError("a batch can be entered only once; create a new one")
        self._call_soon = portal.scheduler()
        left = anyio.Event()
        portal.start(partial(self._run, left))
        self._entered, self._leaving, self._left = anyio.Event(), anyio.Event(), left
        self._error = None
        await self._entered.wait()
        if self._error is not None:
            self._left = None  # it has not started, so entering may be retried
            raise self._error

    async def leave(self) -> None:
        """Leave the batch and wait for its end."""
        if self._left is None:
            return  # it has not started
        self._leaving.set()
        await self._left.wait()
        self.raise_error()

    def raise_error(self) -> None:
        """Raise the error that the end of the batch raised, if any."""
        if self._error is not None:
            raise self._error

    def leave_soon(self) -> None:
        """Leave the batch without waiting, from any other thread or a finalizer."""
        self.soon(self._set_leaving)

    def soon(self, func: Callable[[], object]) -> None:
        """Call `func()` in the loop while the batch is open, from any other thread or a signal handler."""
        if self._left is not None and not self._left.is_set():
            with suppress(RuntimeError):  # the loop has ended
                self._call_soon(func)

    def _set_leaving(self) -> None:
        self._leaving.set()

    async def exchange(self) -> None:
        """Accept items, then wait for outcomes or until more items are wanted."""
        batch, outbox = self.batch, self.batch._outbox
        self.feed.accept()
        while True:
            self.outcomes.extend(outbox.take(_MOST))
            self.wanted = max(1, min(batch._room(), _MOST)) if self.feed.is_wanted else 0
            if self.outcomes or self.wanted:
                return
            if not (batch._lifecycle.is_open or self._leaving.is_set()):
                raise ClientClosedError("the client was closed during the batch")
            if not await outbox.wait():
                self.has_ended = True
                return

    async def count_items(self) -> int:
        """Return how many items the batch has been given, read or not."""
        return self.batch._source.count + self.feed.count()

    async def stats(self) -> BatchStats:
        """Return the batch's progress."""
        return self.batch.stats

    async def _run(self, left: anyio.Event) -> None:
        """Hold the batch open."""
        try:
            async with self.batch as batch:
                self.feed.on_empty = batch._outbox.notify
                self._entered.set()
                await self._leaving.wait()
                batch._outbox.is_read = True  # the caller's thread warns if it has not begun to read
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            self._error = error
        finally:
            self._entered.set()
            left.set()


class SyncBatch(UnpicklableReader, Generic[ParsedT_co]):
    """A batch: `with client.batch(…) as batch: for outcome in batch: …`.

    Yields exactly one `Outcome` per item, unless the batch ends before the item is sent; in the order they
    complete, or in the order of the source with `ordered=True`. The source is iterated in the caller's
    thread, and only one thread at a time may read the batch. Leaving the block early cancels the calls in
    flight and returns only when all of them have ended.

    Iterating raises, after the last outcome: the error that matched `stop_on`; the source's exception; or
    `JournalError`. If the block is left before that, a failure to write an outcome is raised at the end of
    the block, or added as a note to the block's own exception. A journal that could not be compacted is only
    a `JournalWarning`: nothing is lost. A batch that is left before an outcome was read is a
    `RuntimeWarning`; `run` runs one whose outcomes nobody reads.
    """

    def __init__(self, portal: Portal, requests: SyncBatchSource, make: Callable[[Any], Batch]) -> None:
        """Prepare; `make` returns an async batch for a source."""
        self._portal = portal
        self._requests: SyncBatchSource | DataSource = requests
        self._inside = _Inside(make)
        self._inside.batch._source.facts = Facts(length_of(requests))  # not of the feed
        self._inside.batch._options.recipe.check(requests)
        self._source: Iterator[Any] | None = None
        self._is_open = False
        self._is_read = False
        self._drained = Drained()
        # for an interrupt outside our code, e.g. just as `__exit__` is called
        weakref.finalize(self, self._inside.leave_soon).atexit = False

    @property
    def stats(self) -> BatchStats:
        """The batch's progress so far; readable at any time, even in a callback."""
        if self._is_open and not self._portal.is_own_thread():
            with suppress(ClientClosedError):  # the loop has ended, and the batch with it
                return self._portal.call(self._inside.stats)
        return self._inside.batch.stats

    def __repr__(self) -> str:
        return f"<SyncBatch {self._inside.batch._description()}>"

    def __enter__(self) -> Self:
        inside, portal = self._inside, self._portal
        options = inside.batch._options
        if is_data(self._requests):
            data = self._requests = data_source(self._requests)
            reading = Reading(options.progress)
            try:
                inside.batch._source.facts = options.recipe.inspect(
                    data,
                    has_journal=options.journal is not None,
                    counted=lambda rows: reading.update(lambda: BatchStats(counted=rows)),
                )
            finally:
                reading.end()
        source = cast("Iterator[Any]", open_source(self._requests))
        try:
            portal.call(partial(inside.enter, portal))
            self._source = source
            self._is_open = True
        except Exception:
            raise
        except BaseException as interrupt:  # just as it started: `__exit__` will not run
            self._leave_at(interrupt)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._is_open = False
            self._source = None
            self._inside.outcomes.clear()
            if kind is GeneratorExit or self._portal.is_own_thread():  # perhaps in a finalizer
                self._inside.leave_soon()
                self._portal.settle(self._inside.leave)
            else:
                self._leave()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(str(failure))
        except BaseException as interrupt:  # possibly before that call
            self._leave_at(interrupt)
            raise
        else:
            if error is None and not self._is_read:
                unread = self._inside.batch._unread()
                warn(unread, RuntimeWarning)

    def stop(self) -> None:
        """Start no more calls; those in flight are completed and handed out, then the iteration ends.

        Items that wait to be sent are not started: with a journal, a later run continues with them. It
        returns immediately, and may be called in any thread and in a signal handler. Calling it again, or
        outside the block, does nothing.
        """
        self._inside.soon(self._inside.batch.stop)

    def run(self) -> BatchStats:
        """Run the batch to its end and return its stats: `stats = client.batch(…, journal=…).run()`.

        The outcomes are not kept, so pass a `journal`. Enters and leaves the batch itself, unless called
        inside its block.

        Raises:
            GatewayError: an error that ended the batch, as iterating raises it.
            NotStartedError: it was left before.

        """
        self._drain(lambda outcome: None)
        return self.stats

    def to_frame(self, kind: FrameKind = "pandas") -> Any:
        """Run the batch to its end and return its outcomes as a frame, in the order of the input.

        Each outcome is a row, with the columns of `write_outcomes`. Lists and dicts stay such, unless their
        shapes differ: polars and Arrow then get JSON text. Enters and leaves the batch itself, unless called
        inside its block; outcomes that were read before are not in the frame. All are kept in memory.

        An error that ends the batch is raised, as iterating raises it. Nothing that was paid for is lost:
        another call of `to_frame` then returns the outcomes before the error.

        Args:
            kind: "pandas", "polars" or "arrow" (a `pyarrow.Table`); the library must be installed.

        Raises:
            GatewayError: an error that ended the batch, as iterating raises it.
            InvalidArgumentError: there is no such kind; nothing was sent.
            MissingExtraError: the library is not installed; nothing was sent.
            NotStartedError: the batch was left before.

        """
        load_library(kind)
        drained = self._drained
        if drained.is_wanting:
            try:
                self._drain(drained.outcomes.append)
            except Exception as error:
                drained.note(error)
                raise
        frame = frame_of(drained.outcomes, kind)
        drained.outcomes = []
        return frame

    def write(self, path: str | os.PathLike[str], *, spreadsheet_safe: bool = False) -> BatchStats:
        """Run the batch to its end, write its outcomes to a file in the order of the input; return its stats.

        The file, its columns and the arguments are those of `write_outcomes`, which also says what an error
        leaves. Enters and leaves the batch itself, unless called inside its block; outcomes that were read
        before are not in the file.

        Args:
            path: of the file; its suffix tells the format, such as `.csv`, `.jsonl.gz` or `.parquet`.
            spreadsheet_safe: put a single quote before text that a spreadsheet program would run.

        Raises:
            GatewayError: an error that ended the batch, as iterating raises it. The outcomes before it are in
                another file, which a note on the error names.
            InvalidArgumentError: the path is not allowed; nothing was sent.
            OSError: the file cannot be written.
            NotStartedError: the batch was left before.

        """
        output = OutcomeFile(path, spreadsheet_safe=spreadsheet_safe)
        try:
            try:
                self._drain(output.take)
            except Exception as error:
                output.finish_after(error)
                raise
            output.finish()
        finally:
            output.discard()
        return self.stats

    def _drain(self, take: Callable[[AnyOutcome], None]) -> None:
        """Pass all outcomes to `take`; enter and leave the batch unless it is open."""
        if not self._is_open:
            with self:
                self._drain(take)
            return
        for outcome in self:
            take(outcome)

    def _is_of_source(self, error: BaseException) -> bool:
        """Return whether the source raised the error."""
        return self._inside.batch._is_of_source(error)

    def _count_items(self) -> int:
        """Return how many items there are, once the batch has ended; reads those that were not sent."""
        count = self._portal.call(self._inside.count_items)
        if self._source is not None and self._inside.feed.end is None:
            try:
                count += sum(1 for _ in self._source)
            except Exception as error:  # noqa: BLE001 - the batch has ended for another reason
                self._inside.feed.end = error
        return count

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> OutcomeOf[ParsedT_co]:
        if not self._is_open:
            raise NotStartedError("a batch can only be iterated inside its `with` block")
        self._is_read = True
        inside = self._inside
        outcomes = inside.outcomes
        while not outcomes:
            if inside.has_ended:
                raise StopIteration
            self._read()
            self._portal.call(inside.exchange)
            if inside.wanted and outcomes:  # start more items while the caller handles its outcomes
                self._read()
                if inside.feed.read:
                    self._portal.post(inside.feed.accept)
        outcome = cast("OutcomeOf[ParsedT_co]", outcomes[0])
        del outcomes[0]  # not `popleft()`: Ctrl-C as that call returns would lose the outcome
        return outcome

    def _leave(self) -> None:
        """Leave the batch and wait for its end; quietly if the client was closed, which has ended it."""
        try:
            self._portal.call(self._inside.leave)
        except ClientClosedError:
            self._portal.close()  # waits, if another thread is still closing it
            self._inside.raise_error()

    def _leave_at(self, interrupt: BaseException) -> None:
        self._is_open = False
        self._inside.leave_soon()  # first, since another interrupt would end the wait below
        try:
            self._portal.call(self._inside.leave)
        except Exception as failure:  # noqa: BLE001 - the interrupt is raised
            interrupt.add_note(str(failure))

    def _read(self) -> None:
        """Read as many items as are wanted, or as arrive within `_READ_SECONDS`."""
        inside, feed, source = self._inside, self._inside.feed, self._source
        wanted, inside.wanted = inside.wanted, 0
        if source is None or feed.end is not None or wanted <= 0:
            return
        until = time.monotonic() + _READ_SECONDS
        try:
            for item in source:
                feed.read.append(item)
                wanted -= 1
                if wanted <= 0 or time.monotonic() > until:
                    return
        except Exception as error:  # noqa: BLE001 - raised by the batch, after the outcomes of the calls in flight
            feed.end = error
        else:
            feed.end = StopAsyncIteration()


_homes.settle(__name__)
