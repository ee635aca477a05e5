"""Fan-out: any number of requests through one client, each of which ends in exactly one outcome.

Structure. `async with` owns one task; the workers in its group are all that ever runs. A worker takes the
turn, gets an item ready to be sent, hands the turn on by starting another worker if there is room for one,
makes the call, and begins again. There is one turn, so at most one item is read that is not being called; a
worker that finds it taken ends. So while nothing has to be waited for, an item costs no task, no lock and no
hand-over.

The turn's holder waits for room (only a bounded number of items are read and not handed out), for the source,
and for the gate (the gateway's limit). A worker with a call waits for its answer, for the time between two
attempts, and for the gate again.

What an await leaves behind when it is cancelled there: the group is the block's, so a cancellation reaches
every worker; an item whose call is cancelled has no outcome. Outcomes are handed over and journalled without
an await. What is cancelled when the block is left, the workers' own group, is one task further down: anyio
counts a cancellation of its own in a task below as one of the group's host, and would take back asyncio's
own cancellation of the host at that moment.

On asyncio the source, awaiting a task that somebody else cancelled, raises what a cancellation of the worker
looks like. It is none if no scope around the worker is cancelled, and then it is an error like any other.
"""

from __future__ import annotations

import itertools
import warnings
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, TypeVarTuple, cast

import anyio
import anyio.lowlevel
import anyio.to_thread

from omnigate._batch.caller import Caller, Ready
from omnigate._batch.items import BatchSource, Item, is_async_source, open_source, read_item
from omnigate._batch.journal.file import NotCompactedError
from omnigate._batch.journal.journal import Journal, JournalWarning
from omnigate._batch.journal.lines import digest_of
from omnigate._batch.options import BatchOptions
from omnigate._batch.outcomes import BatchStats, Outcome, Tally
from omnigate._batch.pace.gate import Gate, Gates
from omnigate._batch.progress import Progress
from omnigate._calls.attempts import Call
from omnigate._runtime.frames import level_of_caller
from omnigate._runtime.isolation import bounded, is_cancelled, isolated
from omnigate._runtime.threads import in_thread
from omnigate._wire import endpoints
from omnigate.exceptions import InvalidArgumentError, JournalError, NotStartedError

if TYPE_CHECKING:
    from omnigate._calls.session import Session

T = TypeVar("T")

Args = TypeVarTuple("Args")

_SPARE: Final = 64
"""Items that may wait to be handed out, beside one for each call that may be in flight."""

_CHECKPOINT_EVERY: Final = 32

_MOST: Final = 1 << 30

_OVERLOADED: Final = frozenset({500, 502, 503, 504})

_END: Final = object()


class Batch:
    """A batch, to be used as `async with client.batch(…) as batch: async for outcome in batch: …`.

    Each item of the source ends in exactly one `Outcome`, in the order in which they end, or with
    `ordered=True` in that of the source; unless the batch ends before the item was sent. Leaving the block
    early cancels what is in flight, and returns only when nothing runs any more.

    Iterating raises, once all outcomes there are have been handed out: the error that `stop_on` was given
    for; what the source raised, as itself; `JournalError`. If the block is left before that, an outcome that
    could not be written is raised at its end all the same, or noted on what the block raised: that answer was
    billed and is not in the journal. What goes wrong at the end otherwise (`progress`, the disk) likewise. A
    journal that could not be compacted is a `JournalWarning`: nothing is lost.
    """

    def __init__(self, session: Session, gates: Gates, options: BatchOptions) -> None:
        self._session = session
        self._gates = gates
        self._requests: BatchSource = options.requests
        self._options = replace(options, requests=())
        self._is_auto = options.max_concurrency == "auto"
        limits = (options.max_concurrency, session.carrier.max_connections)
        self._most = min((limit for limit in limits if isinstance(limit, int)), default=_MOST)
        self._outcomes: deque[Outcome] = deque()
        self._out_of_order: dict[int, Outcome | None] = {}  # with `ordered`: ended before one in front of it
        self._next_index = 0  # with `ordered`: of the next outcome
        self._read = 0
        self._handed_out = 0
        self._in_flight = 0
        self._is_dispatching = False
        self._is_exhausted = False
        self._is_stopping = False
        self._error: BaseException | None = None
        self._is_told = False  # the error, by raising it where the batch is iterated
        self._unwritten: JournalError | None = None  # why an outcome is not in the journal
        self._state = "new"  # "open", "closed"
        self._last_stats: BatchStats | None = BatchStats()  # while it is not open
        self._changed: anyio.Event | None = None  # for who waits for outcomes, or their end
        self._has_room: anyio.Event | None = None  # for the turn's holder
        self._taken_at_once = 0
        self._journal: Journal | None = None
        self._source: Any = None
        self._is_async = self._is_own_source = False
        self._gate: Gate
        self._caller: Caller
        self._tally: Tally
        self._group: anyio.abc.TaskGroup
        self._running: anyio.CancelScope
        self._workers: anyio.abc.TaskGroup
        self._progress: Progress | None = None

    @property
    def stats(self) -> BatchStats:
        """Where the batch stands; at any time once it has started, also after its end."""
        if self._last_stats is not None:
            return self._last_stats
        seconds = self._gate.waiting_seconds()
        until = None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
        return self._tally.stats(in_flight=self._in_flight, waiting_until=until)

    @property
    def is_open(self) -> bool:
        """Whether its block has been entered and not left."""
        return self._state == "open"

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise NotStartedError("a batch can be entered only once; make a new one")
        options = self._options
        self._gate = self._gates.current()
        self._caller = Caller(self._session, self._gate, options)
        self._tally = Tally(self._gate.clock)
        if options.journal is not None:
            await self._open_journal(Journal(options.journal))
        try:
            self._is_async = is_async_source(self._requests)
            self._is_own_source = isinstance(self._requests, Path)
            self._source = open_source(self._requests)
            self._running = anyio.CancelScope()
            self._group = anyio.create_task_group()
            await self._group.__aenter__()
        except BaseException:
            self._close_journal()
            raise
        self._state, self._requests = "open", ()
        self._last_stats = None
        if options.progress is not False:
            self._progress = Progress(options.progress, lambda: self.stats)
        self._group.start_soon(self._run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        is_finished = self._is_exhausted and not self._is_stopping and self._has_ended
        self._state = "closed"
        failures: list[BaseException] = []  # which hide no other: noted on it if there is one
        try:
            try:
                await self._leave_group(error)
            finally:
                self._last_stats = self._tally.stats(in_flight=0, waiting_until=None)
                self.notify()
                self._show_last(failures)
                await self._close_source(failures)
            await self._end_journal(is_finished, error, failures)
        except BaseException as cancelled:
            _note(cancelled, failures)
            raise
        finally:
            self._close_journal()  # if this was cancelled before the thread had begun
            if isinstance(self._error, anyio.get_cancelled_exc_class()):
                self._error = None  # its traceback leads back here
        if error is not None:
            _note(error, failures)
        elif failures:
            first, *others = failures
            _note(first, others)
            try:
                raise first
            finally:
                del first, others  # breaks the cycle of the error, its traceback and this frame
                failures.clear()

    async def _leave_group(self, error: BaseException | None) -> None:
        """Cancel what runs, and wait for its end."""
        self._running.cancel()
        # It is not told of the block's exception, which it would wrap, unless that is a cancellation.
        if isinstance(error, anyio.get_cancelled_exc_class()) and error is not self._error:
            await self._group.__aexit__(type(error), error, error.__traceback__)
        else:
            await self._group.__aexit__(None, None, None)

    def _show_last(self, failures: list[BaseException]) -> None:
        """Collect what nobody was told of, and show the last stats."""
        if self._unwritten is not None and not (self._is_told and self._unwritten is self._error):
            failures.append(self._unwritten)
        error = None if self._is_told else self._error
        if error is not None and not isinstance(error, (Exception, anyio.get_cancelled_exc_class())):
            failures.append(error)  # a KeyboardInterrupt in a worker, say
        if self._progress is not None:
            try:
                self._progress.close()
            except Exception as failure:  # noqa: BLE001 - raised at the end of the block
                failures.append(failure)

    async def _close_source(self, failures: list[BaseException]) -> None:
        """Close what may have been left in the middle, if it is not for its owner to close."""
        source, self._source = self._source, None
        if isinstance(source, AsyncGenerator):
            try:
                await bounded(cast("AsyncGenerator[Any, None]", source).aclose)
            except Exception as failure:  # noqa: BLE001 - raised at the end of the block
                failures.append(failure)
        elif self._is_own_source:  # and its file
            cast("Generator[Any, None, None]", source).close()

    async def _end_journal(
        self, is_finished: bool, error: BaseException | None, failures: list[BaseException]
    ) -> None:
        """Close the journal; of a run that has finished, once it is on the disk."""
        try:
            if is_finished and self._journal is not None:
                await isolated(anyio.to_thread.run_sync, self._close_journal, True)
            else:
                self._close_journal()
        except NotCompactedError as failure:
            if error is not None or failures:
                failures.append(failure)
            else:
                warnings.warn(str(failure), JournalWarning, stacklevel=level_of_caller())
        except JournalError as failure:
            failures.append(failure)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        if self._outcomes:
            self._taken_at_once += 1
            if self._taken_at_once < max(self._in_flight, _CHECKPOINT_EVERY):
                await anyio.lowlevel.checkpoint_if_cancelled()
            else:  # let others run, but not so often that this falls behind them
                self._taken_at_once = 0
                await anyio.lowlevel.checkpoint()
        while not self._outcomes:
            self._taken_at_once = 0
            if not await self.wait():
                raise StopAsyncIteration
        return self.take(1)[0]

    async def wait(self) -> bool:
        """Wait until something has changed; return whether there may still be outcomes.

        Raises:
            BaseException: what ended the batch, once its outcomes are all taken.
        """
        if not self.is_open:
            raise NotStartedError("a batch is iterated inside of its `async with` block")
        if self._has_ended and not self._outcomes:
            await anyio.lowlevel.checkpoint()
            if self._error is not None:
                self._is_told = True
                raise self._error
            return False
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()
        return True

    def take(self, most: int) -> list[Outcome]:
        """Return outcomes that are there, `most` of them at most."""
        outcomes = self._outcomes
        taken = [outcomes.popleft() for _ in range(min(most, len(outcomes)))]
        self._handed_out += len(taken)
        if self._has_room is not None:
            self._has_room.set()
        return taken

    def room(self) -> int:
        """Return how many items could be started at once, were they there."""
        free = self._limit() - (self._gate.in_flight if self._is_auto else self._in_flight)
        return min(free, self._bound() - (self._read - self._handed_out), self._gate.room())

    # Dispatch

    @property
    def _has_ended(self) -> bool:
        return (self._is_exhausted or self._is_stopping) and self._in_flight == 0 and not self._is_dispatching

    def _limit(self) -> int:
        """Return how many calls there may be: of this batch, or, with "auto", of all such batches."""
        return min(self._gate.concurrency.limit, self._most) if self._is_auto else self._most

    def _is_full(self) -> bool:
        in_flight = self._gate.in_flight if self._is_auto else self._in_flight
        return self._in_flight > 0 and in_flight >= self._limit()

    def _bound(self) -> int:
        return 2 * self._limit() + _SPARE

    async def _run(self) -> None:
        try:
            with self._running:
                async with anyio.create_task_group() as self._workers:
                    if self._progress is not None:
                        self._workers.start_soon(self._guarded, self._progress.run)
                    self._workers.start_soon(self._work)
        except BaseException as error:  # also a cancellation, which who iterates may be shielded from
            self._stop(error)
            raise
        finally:
            self._is_stopping |= not self._has_ended  # whatever it was, nothing comes any more
            self.notify()

    async def _work(self) -> None:
        await self._guarded(self._take_turns)

    async def _guarded(self, func: Callable[[], Awaitable[None]]) -> None:
        """Await `func()`; what it raises ends the batch, as itself and not in a group."""
        try:
            await func()
        except BaseException as error:
            self._stop(error)  # raised where the batch is iterated
            if _is_cancellation(error):
                raise
        finally:
            self.notify()

    async def _take_turns(self) -> None:
        while not (self._is_dispatching or self._is_stopping or self._is_exhausted):
            self._is_dispatching = True
            try:
                ready = await self._dispatch()
            finally:
                self._is_dispatching = False
            if ready is None:
                return
            self._in_flight += 1
            self._gate.in_flight += self._is_auto
            try:
                if not self._is_full():
                    self._workers.start_soon(self._work)
                outcome = await self._caller.call(ready)
            finally:
                self._in_flight -= 1
                self._gate.in_flight -= self._is_auto
            if outcome is not None:
                self._end(outcome, ready.digest)

    async def _dispatch(self) -> Ready | None:
        """Return the next item to send, when it may be; None if there is none, or no room for one."""
        for round in itertools.count(1):
            while self._read - self._handed_out >= self._bound():
                self._has_room = anyio.Event()
                if await self._caller.pause(self._has_room.wait) is None:
                    return None
            if self._is_full():
                return None
            if round % _CHECKPOINT_EVERY == 0:  # so many items had nothing to be sent
                await anyio.lowlevel.checkpoint()
            raw = _END if self._is_stopping else await self._next()
            if raw is _END or self._is_stopping:  # which it may be since just now
                return None
            item = read_item(raw, self._read, self._options.model)
            self._read += 1
            read_at = self._gate.clock()
            prepared = self._prepare(item)
            if prepared is None:
                continue
            send = self._gate.try_pass() or await self._caller.wait(is_again=False)
            return None if send is None else Ready(item, *prepared, send, read_at)
        raise AssertionError("unreachable")

    async def _next(self) -> Any:
        """Return the source's next item, or `_END`."""
        try:
            if self._is_async:
                found = await self._caller.pause(_anext, self._source)
                raw = _END if found is None else found[0]
            else:
                raw = next(self._source, _END)
        except (Exception, anyio.get_cancelled_exc_class()) as error:
            if _is_cancellation(error):
                raise
            self._stop(error, abandon=False)  # the source's own, raised where the batch is iterated
            return _END
        if raw is _END:
            self._is_exhausted = True
        return raw

    def _prepare(self, item: Item) -> tuple[Call, str] | None:
        """Return an item's call and its digest; None if there is nothing to call, and it has ended."""
        request, error = item.request, item.error
        if request is not None:
            options = self._options
            try:
                call = self._session.prepare(
                    endpoints.CHAT, body=request, user_id=options.user_id, options=options.call_options
                )
            except InvalidArgumentError as refused:
                error = refused
            else:
                if self._journal is None:
                    return call, ""
                digest = digest_of(request)
                found = self._journal.claim(item.id, digest, item.index, want_response=options.replay)
                if found is None:
                    return call, digest
                self._tally.replayed += 1
                if not options.replay:
                    self._skip(item.index)
                    return None
                self._hand_over(
                    Outcome(
                        index=item.index,
                        id=item.id,
                        request=request,
                        response=found.response,
                        attempts=found.attempts,
                        elapsed=found.elapsed,
                        replayed=True,
                    )
                )
                return None
        elif self._journal is not None:
            self._journal.claim(item.id, "", item.index, want_response=False)
        self._end(Outcome(index=item.index, id=item.id, request=None, error=error), "")
        return None

    # Outcomes

    def _end(self, outcome: Outcome, digest: str) -> None:
        """Take in how an item of this run ended."""
        self._tally.add(outcome)
        error = outcome.error
        try:
            stops = error is not None and self._options.stops(error)
        except BaseException as raised:  # noqa: BLE001 - by stop_on; raised where the batch is iterated
            self._stop(raised)
            stops = False
        if stops:
            self._stop(error)
        elif self._journal is not None:
            try:
                self._journal.write(outcome, digest)
            except JournalError as failure:
                self._unwritten = failure
                self._close_journal()
                self._stop(failure)
        self._hand_over(outcome)

    def _hand_over(self, outcome: Outcome) -> None:
        if self._options.ordered:
            self._out_of_order[outcome.index] = outcome
            self._put_in_order()
        else:
            self._outcomes.append(outcome)
        self.notify()

    def _skip(self, index: int) -> None:
        """Take in that an item has no outcome."""
        self._handed_out += 1
        if self._options.ordered:
            self._out_of_order[index] = None
            self._put_in_order()

    def _put_in_order(self) -> None:
        while self._next_index in self._out_of_order:
            outcome = self._out_of_order.pop(self._next_index)
            self._next_index += 1
            if outcome is not None:
                self._outcomes.append(outcome)

    def notify(self) -> None:
        """Wake who waits for outcomes; at the end let out those that wait for one that will not come."""
        if self._out_of_order and self._has_ended:
            rest = [self._out_of_order.pop(index) for index in sorted(self._out_of_order)]
            self._outcomes.extend(outcome for outcome in rest if outcome is not None)
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def _stop(self, error: BaseException | None, *, abandon: bool = True) -> None:
        """Start nothing more, and raise `error` in the end. `abandon`: give up what waits to be sent, too."""
        if self._error is None:
            self._error = error
        self._is_stopping = True
        if abandon:
            self._caller.abandon()

    # The journal

    async def _open_journal(self, journal: Journal) -> None:
        """Open it in a thread: there may be much to read.

        When that is cancelled, it is closed again before this returns, so that its lock is free; only to read
        a very long one takes longer.
        """
        await in_thread(journal.open, dispose=lambda _: journal.close(finished=False), lingers=True)
        self._journal = journal

    def _close_journal(self, finished: bool = False) -> None:
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close(finished=finished)


def _is_cancellation(error: BaseException) -> bool:
    """Return whether an error that is about to leave a task is a cancellation that is meant for that task."""
    return isinstance(error, anyio.get_cancelled_exc_class()) and is_cancelled()


def _note(error: BaseException, failures: Sequence[BaseException]) -> None:
    """Note on an error what went wrong besides."""
    for failure in failures:
        if failure is not error:
            error.add_note(f"at the end of the batch, besides: {type(failure).__name__}: {failure}")


async def _anext(source: AsyncIterator[Any]) -> Any:
    return await anext(source, _END)
