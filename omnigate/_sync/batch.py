"""The sync face of a batch: the source is read in the caller's thread, the rest happens in the portal's loop.

Crossing the border costs more than an item, so items and outcomes cross in groups. The async batch runs in a
task of the portal for as long as the block is open, and is fed by `_Feed`, which stands for the caller's
source. It says how many items could be started; so many are read, or as many as come within a few
milliseconds, and handed over without waiting. The caller waits only if there is no outcome.

Nothing crosses as the argument or the result of a call, which Ctrl-C could lose: items and outcomes lie in
queues that both sides see, and are in one of them until they are taken. What runs in the loop, `_Inside`,
does not know the caller's side, so that a batch whose `__exit__` an interrupt kept from running ends when it
is dropped.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

import anyio

from omnigate._batch.batch import Batch
from omnigate._batch.items import BatchItem, open_source
from omnigate._batch.outcomes import AnyOutcome, BatchStats
from omnigate._runtime.loops import call_soon, current_loop
from omnigate._sync.portal import Portal
from omnigate.exceptions import ClientClosedError, NotStartedError

_MOST: Final = 256
"""Items or outcomes that cross at once."""

_READ_SECONDS: Final = 0.005


class _Feed:
    """The async iterator that the batch reads from; what is in it comes from the caller's thread."""

    def __init__(self) -> None:
        self.read: deque[Any] = deque()  # put in by the caller, for `take_in`
        self.end: BaseException | None = None  # what ended the source, set by the caller after the last item
        self._items: deque[Any] = deque()
        self._end: BaseException | None = None
        self._event: anyio.Event | None = None
        self.on_empty: Callable[[], None] = lambda: None

    @property
    def is_wanted(self) -> bool:
        """Whether the batch waits for an item."""
        return self._event is not None and not self._items and self._end is None

    def take_in(self) -> None:
        """Take in what the caller has read; to be called in the loop."""
        end = self.end  # looked at before the items, as the caller may be reading on
        while self.read:
            self._items.append(self.read.popleft())
        self._end = end
        if self._event is not None and not self.is_wanted:
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


class _Inside:
    """What of the batch is in the portal's loop. Its methods are called there, but for `leave_soon`."""

    def __init__(self, make: Callable[[Any], Batch]) -> None:
        self.feed = _Feed()
        self.batch = make(self.feed)
        self.outcomes: deque[AnyOutcome] = deque()  # taken out by the caller
        self.wanted = 0
        self.has_ended = False
        self._loop: Any = None
        self._entered: anyio.Event
        self._leaving: anyio.Event
        self._left: anyio.Event | None = None  # there is one from when the batch is entered
        self._error: BaseException | None = None

    async def enter(self, portal: Portal) -> None:
        """Enter the batch, in a task of its own."""
        if self._left is not None:
            raise NotStartedError("a batch can be entered only once; make a new one")
        self._loop = current_loop()
        left = anyio.Event()
        portal.start(partial(self._run, left))
        self._entered, self._leaving, self._left = anyio.Event(), anyio.Event(), left
        self._error = None
        await self._entered.wait()
        if self._error is not None:
            self._left = None  # it has not begun, and may be tried again
            raise self._error

    async def leave(self) -> None:
        """Leave the batch, and wait for its end."""
        if self._left is None:
            return  # it had not begun
        self._leaving.set()
        await self._left.wait()
        if self._error is not None:
            raise self._error

    def leave_soon(self) -> None:
        """Have the batch left, without waiting for it, from any other thread and from a finalizer."""
        if self._left is not None and not self._left.is_set():
            with suppress(RuntimeError):  # the loop has ended
                call_soon(self._loop, self._leaving.set)

    async def exchange(self) -> None:
        """Take items in, and wait for outcomes, or until more items are wanted."""
        batch, outbox = self.batch, self.batch._outbox
        self.feed.take_in()
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

    async def stats(self) -> BatchStats:
        """Return where the batch stands."""
        return self.batch.stats

    async def _run(self, left: anyio.Event) -> None:
        """Hold the batch open."""
        try:
            async with self.batch as batch:
                self.feed.on_empty = batch._outbox.notify
                self._entered.set()
                await self._leaving.wait()
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            self._error = error
        finally:
            self._entered.set()
            left.set()


class SyncBatch:
    """A batch, to be used as `with client.batch(…) as batch: for outcome in batch: …`.

    Each item of the source ends in exactly one `Outcome`, unless the batch ends before the item was sent.
    Outcomes come in the order in which they end, or with `ordered=True` in that of the source. The caller's
    thread iterates the source, and only one thread at a time may read the batch. Leaving the block early
    cancels what is in flight, and returns only when nothing runs any more.

    After the last outcome, iterating raises the error that `stop_on` was given for, what the source raised,
    or a `JournalError`. If the block is left before that, an outcome that could not be written is raised at
    its end, or noted on what the block raised. A journal that could not be compacted is a `JournalWarning`:
    nothing is lost.
    """

    def __init__(
        self, portal: Portal, requests: Iterable[BatchItem] | Path, make: Callable[[Any], Batch]
    ) -> None:
        """Prepare; `make` returns the async batch of a source."""
        self._portal = portal
        self._requests = requests
        self._inside = _Inside(make)
        self._source: Iterator[Any] | None = None
        self._is_open = False
        # for an interrupt where no code of this sees it: just as `__exit__` is called, say
        weakref.finalize(self, self._inside.leave_soon).atexit = False

    @property
    def stats(self) -> BatchStats:
        """Where the batch stands: once it has started, after its end, and in a callback."""
        if self._is_open and not self._portal.is_own_thread():
            return self._portal.call(self._inside.stats)
        return self._inside.batch.stats

    def __repr__(self) -> str:
        return f"<SyncBatch {self._inside.batch._description()}>"

    def __enter__(self) -> Self:
        inside, portal = self._inside, self._portal
        source = cast("Iterator[Any]", open_source(self._requests))
        try:
            portal.call(partial(inside.enter, portal))
            self._source = source
            self._is_open = True
        except Exception:
            raise
        except BaseException as interrupt:  # just when it had begun: there will be no `__exit__`
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
            self._portal.call(self._inside.leave)
        except Exception as failure:
            if error is None:
                raise
            error.add_note(str(failure))
        except BaseException as interrupt:  # perhaps before that call was made
            self._leave_at(interrupt)
            raise

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> AnyOutcome:
        if not self._is_open:
            raise NotStartedError("a batch is iterated inside of its `with` block")
        inside = self._inside
        outcomes = inside.outcomes
        while not outcomes:
            if inside.has_ended:
                raise StopIteration
            self._read()
            self._portal.call(inside.exchange)
            if inside.wanted and outcomes:  # let them start while the caller sees to its outcomes
                self._read()
                if inside.feed.read:
                    self._portal.post(inside.feed.take_in)
        outcome = outcomes[0]
        del outcomes[0]  # not `popleft()`: an interrupt may come as a call returns, and would lose it
        return outcome

    def _leave_at(self, interrupt: BaseException) -> None:
        self._is_open = False
        self._inside.leave_soon()  # in any case, as another interrupt ends the waiting
        try:
            self._portal.call(self._inside.leave)
        except Exception as failure:  # noqa: BLE001 - the interrupt is raised
            interrupt.add_note(str(failure))

    def _read(self) -> None:
        """Read as many items as are wanted, or as there are without waiting long."""
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
        except Exception as error:  # noqa: BLE001 - raised by the batch, once what is in flight was handed out
            feed.end = error
        else:
            feed.end = StopAsyncIteration()
