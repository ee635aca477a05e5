"""Fan-out: any number of requests through one client, exactly one outcome for each.

Parts. `Source` reads the items, `pace` says when they may be sent, `Caller` makes their calls, `Outbox` hands
out their outcomes, `Record` keeps the journal, `Enough` counts the failures, `Caps` what is spent, and
`lifecycle` holds the state. This module drives them.

Structure. `async with` owns one task, and nothing runs outside its group of workers. A worker takes the turn,
prepares an item, passes the turn on by starting another worker if there is room for one, makes the call, and
starts over. There is a single turn, so at most one item has been read without being called; a worker that
finds the turn taken exits. While nothing has to wait, an item therefore costs no task, lock or hand-over.

The holder of the turn waits for room (the number of items read and not yet handed out is bounded), for the
source, for a slot of the item's model, and for the gate (the gateway's rate limit). If the slots are used up
by calls, no worker waits: the next call that ends wakes one. If the items name several models, an item that
must wait for a slot gives up the turn, so that it does not hold up those of other models; a bounded number of
them do. A worker with a call waits for the response, between two attempts, and for a slot and the gate again.

Cancellation. The group belongs to the block, so a cancellation reaches every worker; an item cancelled during
its call has no outcome. Outcomes are handed over and journalled without an await. Leaving the block cancels a
second group, nested one task deeper: anyio counts its own cancellation of a child task as one of the group's
host, and would undo a native asyncio cancellation of the host that arrives at that moment.

On asyncio, a source that awaits a task cancelled elsewhere raises CancelledError, just as if the worker had
been cancelled. If no scope around the worker is cancelled, it is treated as an ordinary error of the source.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Self

import anyio
import anyio.lowlevel

from omnigate import _homes
from omnigate._batch.caller import Caller, Entry, Ready, prepare
from omnigate._batch.caps import Caps
from omnigate._batch.enough import Enough
from omnigate._batch.estimate import Census
from omnigate._batch.items import Item
from omnigate._batch.journal.file import NotCompactedError
from omnigate._batch.journal.journal import JournalWarning, RepeatedIdError, Replay
from omnigate._batch.lifecycle import Lifecycle, State
from omnigate._batch.options import BatchOptions
from omnigate._batch.outbox import Outbox
from omnigate._batch.outcomes import BatchStats, Outcome, OutcomeOf, Tally, words_of
from omnigate._batch.pace.gate import Gate, Gates
from omnigate._batch.pace.messages import key_digest
from omnigate._batch.pace.patience import OutOfPatienceError, Reason
from omnigate._batch.pace.queue import Flow
from omnigate._batch.pace.upstream import Upstream
from omnigate._batch.progress import Progress
from omnigate._batch.record import Record
from omnigate._batch.repeats import Repeat, Repeats
from omnigate._batch.source import END, Source
from omnigate._batch.tables import Drained, frame_of_all, write_all
from omnigate._calls.attempts import Call
from omnigate._calls.structured import MisfitError, ResponseFormat, complete
from omnigate._data.frames import FrameKind
from omnigate._runtime.frames import warn
from omnigate._runtime.isolation import is_cancellation
from omnigate._transport.messages import Origin
from omnigate._wire.arguments import key_in
from omnigate._wire.pickling import UnpicklableReader
from omnigate._wire.results import ParsedT_co
from omnigate.exceptions import GatewayError, InvalidArgumentError, JournalError, NotStartedError
from omnigate.models import ChatRequest, ChatResponse

if TYPE_CHECKING:
    from omnigate._calls.session import Session

logger: Final = logging.getLogger("omnigate")

_SPARE: Final = 64
"""How many more items than twice the concurrency limit may be read and not yet handed out."""

_CHECKPOINT_EVERY: Final = 32

_MOST: Final = 1 << 30

_PARKED_MAX: Final = 64
"""How many items of a batch with several models may wait for a slot of theirs."""

_FIRST_LIMIT: Final = 8
"""The concurrency limit to reckon with before the first item is read."""


class Batch(UnpicklableReader, Generic[ParsedT_co]):
    """A batch: `async with client.batch(…) as batch: async for outcome in batch: …`.

    Yields exactly one `Outcome` per item, unless the batch ends before the item is sent; in the order they
    complete, or in the order of the source with `ordered=True`. Leaving the block early cancels the calls in
    flight and returns only when all of them have ended.

    Iterating raises, after the last outcome: the error that matched `stop_on`; the source's exception,
    unwrapped; `JournalError`; `TooManyFailuresError`; `BatchLimitError`. If the block is left before that, a
    failure to write an outcome is still raised at the end of the block, or added as a note to the block's own
    exception: that response was billed and is missing from the journal. Other failures at the end
    (`progress`, the disk) are reported the same way. A journal that could not be compacted is only a
    `JournalWarning`: nothing is lost. A batch that is left before an outcome was read is a
    `RuntimeWarning`; `run` runs one whose outcomes nobody reads.
    """

    def __init__(self, session: Session, gates: Gates, options: BatchOptions) -> None:
        self._session = session
        self._gates = gates
        self._options = replace(options, requests=())
        self._read_item = options.recipe.read
        self._is_auto = options.max_concurrency == "auto"
        limits = (options.max_concurrency, session.carrier.max_connections)
        self._most = min((limit for limit in limits if isinstance(limit, int)), default=_MOST)
        # What `_bound` returns, unless that changes with the adaptive limit: asked twice for each item.
        self._fixed_bound = None if self._is_auto else 2 * self._most + _SPARE
        self._lifecycle = Lifecycle()
        self._source = Source(options.requests)
        self._outbox = Outbox(self._lifecycle, ordered=options.ordered)
        # Without replay, too, a success is read if it has to fit a type.
        wants = options.replay or options.response_format is not None
        self._record = Record(options.journal, lock=options.journal_lock, want_response=wants)
        self._repeats = Repeats(self._record, options.response_format) if options.dedupe else None
        self._has_journal = options.journal is not None
        self._in_flight = 0
        self._called = 0
        self._parked = 0  # of those in flight: wait for their first slot
        self._is_turn_taken = False
        self._gate: Gate | None = None  # of the last item
        self._headers: dict[bytes, bytes] | None = None  # of the last item; the same object for the same key
        self._origin: Origin | None = None
        self._sharing: set[Gate] = set()  # those whose limit a shared pacer leases out
        self._upstreams: dict[Upstream, None] = {}  # those in use, the one used last at the end
        self._flow = Flow(
            self._most,
            is_auto=self._is_auto,
            wake=self._wake,
            goes_on=self._follows,
            tokens_per_minute=options.tokens_per_minute,
        )
        self._enough = Enough(options.stop_after_failures)
        self._caps = Caps(options) if options.has_caps else None
        self._call_ended: anyio.Event | None = None  # for an item that has no room within the caps
        self._last_stats: BatchStats | None = BatchStats()  # while it is not open
        self._progress: Progress | None = None
        self._drained = Drained()
        self._caller: Caller
        self._clock: Callable[[], float]
        self._tally: Tally
        self._group: anyio.abc.TaskGroup
        self._running: anyio.CancelScope  # that of the workers
        self._workers: anyio.abc.TaskGroup

    @property
    def stats(self) -> BatchStats:
        """The batch's progress so far; readable at any time, even before it starts and after it ends."""
        if self._last_stats is not None:
            return self._last_stats
        return self._stats(self._in_flight)

    def _stats(self, in_flight: int) -> BatchStats:
        waiting_for, seconds = self._waiting() if in_flight or self._lifecycle.is_reading else _NOT
        caller = self._caller
        return self._tally.stats(
            in_flight=in_flight,
            waiting_until=None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds),
            waiting_for=waiting_for,
            rejections=caller.rejections,
            retries=caller.retries,
            concurrency_limits={upstream.model: upstream.limit for upstream in self._upstreams},
            total=self._source.total,
            waits_in_journal=self._record.waiting,
            journal=self._record.spending,
            reading_percent=self._record.read_percent,
            counted=self._source.counted,
        )

    def _waiting(self) -> tuple[Reason | None, float | None]:
        """Return what the next item waits for, and for how many seconds, if that is known."""
        gate, flow = self._gate, self._flow
        if gate is None:
            return _NOT
        seconds = gate.waiting_seconds()
        if seconds is not None:
            return "rate window", seconds
        now = self._clock()
        waiting: Reason | None = None
        for upstream in self._upstreams:
            reason = upstream.waits_for(flow)
            if reason is not None and reason != "concurrency":
                until = upstream.held_until(now)
                return reason, None if until is None else until - now
            waiting = waiting or reason
        if waiting is None and flow.in_flight >= flow.most:
            waiting = "concurrency"
        return waiting, None

    def __repr__(self) -> str:
        return f"<Batch {self._description()}>"

    def _description(self) -> str:
        """Describe the batch's state; callable from any thread, without an event loop."""
        lifecycle = self._lifecycle
        if lifecycle.state is State.NEW:
            return str(lifecycle)
        parts = [f"{self._in_flight:,} in flight"] if self._in_flight or lifecycle.state < State.ENDED else []
        parts += words_of(self._tally)
        opens_at = None if self._gate is None else self._gate.opens_at
        if opens_at is not None and lifecycle.state < State.ENDED and opens_at > datetime.now(UTC):
            parts.append(f"waiting until {opens_at.astimezone():%H:%M:%S}")
        return f"{lifecycle}: {', '.join(parts)}"

    def _prepare_caller(self) -> None:
        self._clock = self._gates.clock()
        self._caller = Caller(self._session, self._flow, self._options, self._clock)
        self._tally = Tally(self._clock)

    async def __aenter__(self) -> Self:
        lifecycle = self._lifecycle
        if lifecycle.state is not State.NEW:
            raise NotStartedError("a batch can be entered only once; create a new one")
        self._prepare_caller()
        if self._options.progress is not False:
            self._progress = Progress(self._options.progress, self._progress_stats)
        try:
            if self._has_journal:
                await self._shown(self._record.open)
            await self._shown(self._inspect)
            self._record.identify(self._source.facts.digest)
            self._source.open()
            self._running = anyio.CancelScope()
            self._group = anyio.create_task_group()
            await self._group.__aenter__()
        except BaseException as error:
            await self._record.close_after(error)
            raise
        lifecycle.advance(State.OPEN)
        self._last_stats = None
        logger.info("batch: began, max_concurrency=%r", self._options.max_concurrency)
        self._group.start_soon(self._run)
        return self

    async def _inspect(self) -> None:
        await self._source.inspect(self._options.recipe, has_journal=self._has_journal)

    async def _shown(self, func: Callable[[], Awaitable[None]]) -> None:
        """Await `func()`, which reads the journal or the input, and show how far it is."""
        await (func() if self._progress is None else self._progress.show_while(func))

    def _progress_stats(self) -> BatchStats:
        """Return the stats to show; before the start, those that tell how much has been read."""
        return self._stats(0) if self._lifecycle.state is State.NEW else self.stats

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lifecycle = self._lifecycle
        is_finished = lifecycle.state is State.ENDED and lifecycle.error is None and self._source.is_exhausted
        lifecycle.advance(State.LEFT)
        failures: list[BaseException] = []  # added as notes to another error, if there is one
        try:
            try:
                await self._leave_group(error)
            finally:
                self._last_stats = self._stats(0)
                logger.info("batch: ended: %s", ", ".join(words_of(self._tally)))
                self._outbox.notify()
                self._collect_untold(failures)
                self._close_progress(failures)
                await self._close_source(failures)
            await self._end_record(is_finished, error, failures)
        except BaseException as cancelled:
            await self._record.close_after(cancelled)
            _note(cancelled, failures)
            raise
        finally:
            self._record.close()  # in case this was interrupted before the thread started
            if isinstance(lifecycle.error, anyio.get_cancelled_exc_class()):
                lifecycle.forget_error()
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
        elif not self._outbox.is_read:
            warn(self._unread(), RuntimeWarning)

    def _unread(self) -> str:
        """Describe a batch that was left before an outcome was read."""
        called = self._called
        what = f"{called:,} items were called, and their outcomes dropped" if called else "nothing was sent"
        return f"the batch was left before an outcome was read: {what}. Iterate over it, or call its run()"

    async def _leave_group(self, error: BaseException | None) -> None:
        """Cancel the workers and wait until they have ended."""
        self._running.cancel()
        # The group would wrap the block's exception in a group of its own, so it only sees cancellations.
        if isinstance(error, anyio.get_cancelled_exc_class()) and error is not self._lifecycle.error:
            await self._group.__aexit__(type(error), error, error.__traceback__)
        else:
            await self._group.__aexit__(None, None, None)

    def _collect_untold(self, failures: list[BaseException]) -> None:
        """Collect the errors that iteration has not raised yet."""
        lifecycle, unwritten = self._lifecycle, self._record.unwritten
        if unwritten is not None and not (lifecycle.is_told and unwritten is lifecycle.error):
            failures.append(unwritten)
        error = None if lifecycle.is_told else lifecycle.error
        if error is not None and not isinstance(error, (Exception, anyio.get_cancelled_exc_class())):
            failures.append(error)  # a KeyboardInterrupt in a worker, say

    def _close_progress(self, failures: list[BaseException]) -> None:
        """Show the final stats."""
        if self._progress is not None:
            try:
                self._progress.close()
            except Exception as failure:  # noqa: BLE001 - raised at the end of the block
                failures.append(failure)

    async def _close_source(self, failures: list[BaseException]) -> None:
        try:
            await self._source.close()
        except Exception as failure:  # noqa: BLE001 - raised at the end of the block
            failures.append(failure)

    async def _end_record(
        self, is_finished: bool, error: BaseException | None, failures: list[BaseException]
    ) -> None:
        try:
            await self._record.end(is_finished=is_finished)
        except NotCompactedError as failure:
            if error is not None or failures:
                failures.append(failure)
            else:
                warn(str(failure), JournalWarning)
        except JournalError as failure:
            failures.append(failure)

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[OutcomeOf[ParsedT_co]]:
        return self._outbox.next()

    def stop(self) -> None:
        """Start no more calls; those in flight are completed and handed out, then the iteration ends.

        Items that wait to be sent are not started: with a journal, a later run continues with them. Calling
        it again, or outside the block, does nothing.
        """
        if self._lifecycle.is_open:
            self._stop(None)
            self._settle()

    async def run(self) -> BatchStats:
        """Run the batch to its end and return its stats: `stats = await client.batch(…, journal=…).run()`.

        The outcomes are not kept, so pass a `journal`. Enters and leaves the batch itself, unless called
        inside its block.

        Raises:
            GatewayError: an error that ended the batch, as iterating raises it.
            NotStartedError: it was left before.

        """
        await self._drain(lambda outcome: None)
        return self.stats

    async def to_frame(self, kind: FrameKind = "pandas") -> Any:
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
        return await frame_of_all(self._drain, self._drained, kind)

    async def write(self, path: str | os.PathLike[str], *, spreadsheet_safe: bool = False) -> BatchStats:
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
        await write_all(self._drain, path, spreadsheet_safe=spreadsheet_safe)
        return self.stats

    async def _drain(self, take: Callable[[Outcome], Awaitable[None] | None]) -> None:
        """Pass all outcomes to `take`; enter and leave the batch unless it is open."""
        if self._lifecycle.state is State.NEW:
            async with self:
                await self._drain(take)
            return
        async for outcome in self:
            taking = take(outcome)
            if taking is not None:
                await taking

    def _census(self, sample: int) -> Census:
        """Return what counts the items of this batch, which is not entered."""
        options = self._options
        return Census(self._read, options.response_format, sample, dedupe=options.dedupe)

    def _read(self, raw: object, index: int) -> Item:
        """Return an item, with its error if it cannot be sent; callable from any thread."""
        item = self._read_item(raw, index)
        if item.request is not None:
            try:
                prepare(self._session, item.request, self._options)
            except InvalidArgumentError as refused:
                return Item(item.index, item.id, None, refused, item.row)
        return item

    def _rate_limit(self, request: ChatRequest) -> int | None:
        """Return the rate limit of a request's key, in calls per minute; None if it is not known."""
        return self._gate_of(prepare(self._session, request, self._options)).rate_limit

    def _is_of_source(self, error: BaseException) -> bool:
        """Return whether the source raised the error."""
        return error is self._source.error

    async def _count_items(self) -> int:
        """Return how many items there are, once the batch has ended; reads those that were not sent."""
        return await self._source.count_all()

    # Limits

    def _room(self) -> int:
        """Return how many more items could start now."""
        gate = self._gate
        room = min(self._limit() - self._flow.in_flight, self._bound() - self._outbox.pending)
        return room if gate is None else min(room, gate.room())

    def _limit(self) -> int:
        """Return how many of its calls may be in flight."""
        if not self._is_auto:
            return self._most
        limit = 0
        for upstream in self._upstreams:
            limit += upstream.concurrency.limit
        return min(limit or _FIRST_LIMIT, self._most)

    def _is_full(self) -> bool:
        """Return whether no item need be read now, because a call that ends will wake the batch."""
        flow, upstreams = self._flow, self._upstreams
        if flow.in_flight >= flow.most:
            flow.has_wish = True
            return True
        if len(upstreams) > 1:
            return self._parked >= _PARKED_MAX
        if flow.is_auto:
            for upstream in upstreams:
                return upstream.is_full(flow)
        return False

    def _bound(self) -> int:
        """Return how many items may be read and not yet handed out."""
        return self._fixed_bound or 2 * self._limit() + _SPARE

    # Dispatch

    async def _run(self) -> None:
        try:
            async with anyio.create_task_group() as self._workers:
                before, self._running = self._running, self._workers.cancel_scope
                if before.cancel_called:  # the block was left before this began
                    self._running.cancel()
                if self._progress is not None:
                    self._workers.start_soon(self._guarded, self._progress.run)
                if self._has_journal:
                    self._workers.start_soon(self._guarded, self._record.run)
                if self._caps is not None:
                    self._caps.start(self._clock())
                    if self._caps.has_time_limit:
                        self._workers.start_soon(self._guarded, self._watch_time)
                self._workers.start_soon(self._guarded, self._take_turns)
        except BaseException as error:  # cancellations too: the reader may be shielded from them
            self._stop(error)
            raise
        finally:
            self._lifecycle.advance(State.ENDED)  # however it ended, there are no more outcomes
            self._outbox.notify()

    def _wake(self) -> bool:
        """Start a worker, since there is a slot; return whether there is use for one."""
        if not self._follows():
            return False
        self._go_on()
        return True

    def _go_on(self) -> None:
        """Have the next item read: by a worker that waits for room, once there is some, else by a new one."""
        if not self._outbox.is_awaited:
            self._workers.start_soon(self._guarded, self._take_turns)

    def _follows(self) -> bool:
        """Return whether a worker that has made a call can read the next item immediately."""
        if not self._lifecycle.is_reading or self._is_turn_taken:
            return False
        return self._outbox.pending < (self._fixed_bound or self._bound())

    async def _guarded(self, func: Callable[[], Awaitable[None]]) -> None:
        """Await `func()`; an exception ends the batch, and is raised unwrapped."""
        try:
            await func()
        except BaseException as error:
            self._stop(error)  # raised where the batch is iterated
            if is_cancellation(error):
                raise
        finally:
            self._settle()

    def _settle(self) -> None:
        """End the batch if no more outcomes can arrive."""
        if self._lifecycle.state > State.OPEN:
            self._outbox.release_workers()
            for upstream in self._upstreams:
                upstream.withdraw(self._flow)
        is_winding_down = State.OPEN < self._lifecycle.state < State.ENDED
        if is_winding_down and self._in_flight == 0 and not self._is_turn_taken:
            self._settle_caps()
            self._lifecycle.advance(State.ENDED)
        self._outbox.notify()

    def _settle_caps(self) -> None:
        """Tell what the batch has spent, if a cap has ended it; it has not if every item has its outcome."""
        caps, lifecycle = self._caps, self._lifecycle
        if caps is None or caps.error is None or lifecycle.error is not caps.error:
            return
        read, tally = self._outbox.read, self._tally
        is_all = self._source.is_exhausted or read == self._source.total
        if is_all and tally.succeeded + tally.failed + tally.replayed == read:
            lifecycle.forget_error()
        else:
            caps.tell(self._clock())

    async def _watch_time(self) -> None:
        """End the batch once its time is over, even while all items wait."""
        assert self._caps is not None
        while (left := self._caps.seconds_left(self._clock())) > 0:  # noqa: ASYNC110 - it changes meanwhile
            await anyio.sleep(left)
        if self._lifecycle.state < State.ENDED:
            self._has_reached_cap()

    def _has_reached_cap(self) -> bool:
        """Return whether no further item may start because of a cap; the batch ends then."""
        reached = None if self._caps is None else self._caps.reached(self._clock())
        if reached is None:
            return False
        self._stop(reached)
        return True

    async def _fits_caps(self) -> bool:
        """Wait until one more item fits within the caps; False if none will, or the batch was stopped."""
        caps = self._caps
        while caps is not None and not self._has_reached_cap():
            if self._caller.is_abandoned:
                return False
            if caps.has_room(self._in_flight):
                return True
            self._call_ended = anyio.Event()
            if await self._caller.pause(self._call_ended.wait) is None:
                return False
        return caps is None

    async def _take_turns(self) -> None:
        lifecycle, outbox = self._lifecycle, self._outbox
        while lifecycle.is_reading and not self._is_turn_taken:
            if outbox.pending >= (self._fixed_bound or self._bound()):
                await outbox.wait_for_room()
                continue
            self._is_turn_taken = True
            try:
                found = await self._dispatch()
            finally:
                self._is_turn_taken = False
            if found is None:
                return
            ready, entry = found
            self._in_flight += 1
            self._called += 1
            try:
                if entry is None:
                    entry = await self._park(ready)
                    if entry is None:
                        continue
                if not self._is_full():
                    self._go_on()
                started_at = 0.0 if self._caps is None else self._clock()
                outcome = await self._caller.call(ready, entry)
                if self._caps is not None:
                    self._caps.took(self._clock() - started_at)
            finally:
                self._in_flight -= 1
                if self._call_ended is not None:
                    self._call_ended.set()
                if entry is not None and not entry[0].is_free:
                    ready.upstream.free(entry[0])
            if outcome is not None:
                self._end(outcome, ready.digest, ready.read_at)

    async def _dispatch(self) -> tuple[Ready, Entry | None] | None:
        """Return the next item once it may be sent; None if there is none, or no room for one.

        There is no entry if the item must wait without the turn.
        """
        lifecycle, source, outbox = self._lifecycle, self._source, self._outbox
        for round in itertools.count():
            if round:  # the item before needed no call
                while outbox.pending >= self._bound():
                    if await self._caller.pause(outbox.wait_for_room) is None:
                        return None
                if round % _CHECKPOINT_EVERY == 0:
                    await anyio.lowlevel.checkpoint()
            if self._is_full() or not lifecycle.is_reading:
                return None
            raw = await source.next(self._caller.pause) if source.is_async else source.read()
            if raw is END:
                if source.has_ended:
                    lifecycle.advance(State.DRAINING, source.error)
                return None
            if not lifecycle.is_reading:  # by now
                return None
            item = self._read_item(raw, outbox.read)
            outbox.expect()
            read_at = self._clock()
            prepared = self._prepare(item)
            if prepared is None:
                continue
            if self._repeats is not None and self._is_repeat(Repeat(item, prepared[1], read_at)):
                continue
            if self._caps is not None and not await self._fits_caps():
                return None
            ready = self._ready(item, *prepared, read_at)
            entry = self._caller.try_enter(ready, read_at if self._caps is None else self._clock())
            if entry is not None:
                return ready, entry
            if len(self._upstreams) > 1:
                return ready, None
            entry = await self._enter(ready)
            if entry is not None:
                return ready, entry
            if self._caller.is_abandoned:
                return None
        raise AssertionError("unreachable")

    def _ready(self, item: Item, call: Call, digest: str, read_at: float) -> Ready:
        """Return an item with where it goes: the gate of its key, and its model."""
        request = item.request
        assert request is not None
        gate = self._gate
        if gate is None or call.headers is not self._headers or call.origin is not self._origin:
            self._headers, self._origin = call.headers, call.origin
            gate = self._gate = self._gate_of(call)
        upstream = gate.upstream(request.model)
        upstreams = self._upstreams
        if upstream not in upstreams:
            if len(upstreams) >= _PARKED_MAX:  # so many models: forget the oldest
                next(iter(upstreams)).withdraw(self._flow)
                del upstreams[next(iter(upstreams))]
            upstreams[upstream] = None
        # An item that was not read because nothing got through has waited with those that were.
        stalled = 0.0 if upstream.stalled_at is None else read_at - upstream.stalled_at
        return Ready(item, call, digest, gate, upstream, read_at, stalled, self._options.max_wait_seconds)

    def _gate_of(self, call: Call) -> Gate:
        """Return the gate of a call's key."""
        key = key_in(call.headers)
        gate = self._gates.of(call.origin, key)
        pacer = self._options.pacer
        if pacer is not None and gate not in self._sharing:
            self._sharing.add(gate)
            correspondence = gate.join_shared_pacer(key_digest(call.origin, key))
            self._workers.start_soon(self._guarded, functools.partial(correspondence.run, pacer))
        return gate

    async def _park(self, ready: Ready) -> Entry | None:
        """Wait without the turn, so that items of other models can be sent meanwhile."""
        self._parked += 1
        try:
            if not self._is_full():
                self._go_on()
            return await self._enter(ready)
        finally:
            self._parked -= 1

    async def _enter(self, ready: Ready) -> Entry | None:
        """Wait until an item may be sent; None if it was given up, by the batch or for waiting too long."""
        try:
            entry = await self._caller.enter(ready, is_again=False)
        except OutOfPatienceError:
            error = self._caller.out_of_patience(ready)
        else:
            if entry is not None and self._has_reached_cap():  # while it waited
                slot, send = entry
                ready.upstream.free(slot)
                ready.gate.ended(send)
                return None
            return entry
        read_at = ready.read_at
        self._end(self._caller.outcome(ready.item, read_at, 0, None, error), ready.digest, read_at)
        return None

    def _prepare(self, item: Item) -> tuple[Call, str] | None:
        """Return the item's call and digest; None if it ended without a call."""
        format, call = self._options.response_format, None
        if item.request is not None:
            try:
                request = item.request if format is None else format.instruct(item.request)
                call = prepare(self._session, request, self._options)
            except InvalidArgumentError as refused:
                item = Item(item.index, item.id, None, refused, item.row)
        digest: str | None
        try:
            digest, found = self._record.claim(item) if self._has_journal else ("", None)
        except RepeatedIdError as repeated:  # the journal's line is that of the first item with this id
            call = digest = found = None
            item = Item(item.index, item.id, item.request, InvalidArgumentError(str(repeated)), item.row)
        if found is not None and _fits(found, format):
            if self._repeats is not None and digest:
                self._repeats.replayed(item, digest)
            self._replay(item, found)
        elif call is not None and digest is not None:
            return call, digest
        else:
            ended = Outcome(
                index=item.index, id=item.id, request=item.request, error=item.error, item=item.row
            )
            self._end(ended, digest, self._clock())
        return None

    def _replay(self, item: Item, found: Replay) -> None:
        """Hand out a success of an earlier run, if wanted."""
        self._tally.replayed += 1
        if not self._options.replay:
            self._outbox.leave_out(item.index)
            return
        self._outbox.put(
            Outcome(
                index=item.index,
                id=item.id,
                request=item.request,
                response=found.response,
                attempts=found.attempts,
                elapsed=found.elapsed,
                replayed=True,
                item=item.row,
            )
        )

    def _end(self, outcome: Outcome, digest: str | None, read_at: float) -> None:
        """Record the outcome of an item of this run unless the digest is None, and hand it out."""
        self._tally.add(outcome, read_at)
        if self._caps is not None:
            self._caps.add(outcome)
        error = outcome.error
        try:
            stops = error is not None and self._options.stops(error)
        except BaseException as raised:  # noqa: BLE001 - from stop_on; raised where the batch is iterated
            self._stop(raised)
            stops = False
        if stops:
            self._stop(error)
        elif digest is not None:
            if self._has_journal:
                try:
                    self._record.write(outcome, digest)
                except JournalError as failure:
                    self._stop(failure)
            enough = None if self._enough.is_over else self._enough.count(error)
            if enough is not None:
                self._stop(enough)
        self._outbox.put(outcome)
        if self._repeats is not None:
            is_recorded = self._record.is_open and self._record.unwritten is None
            waited = self._repeats.ended(outcome, is_recorded=is_recorded)
            if error is None or self._lifecycle.state < State.STOPPING:
                for repeat, result in waited:
                    self._end_repeat(repeat, result)

    def _is_repeat(self, repeat: Repeat) -> bool:
        """Return whether an item's request is that of an earlier one, which then gives it its outcome."""
        assert self._repeats is not None
        result = self._repeats.find(repeat)
        if result is None:
            return self._repeats.has_joined(repeat)
        self._end_repeat(repeat, result)
        return True

    def _end_repeat(self, repeat: Repeat, result: ChatResponse | GatewayError) -> None:
        """Record and hand out the outcome of an item that was not called, since an equal one was.

        A failure does not count for `stop_on` and `stop_after_failures`: that of the first item did.
        """
        error = result if isinstance(result, GatewayError) else None
        response = None if isinstance(result, GatewayError) else result
        outcome = self._caller.outcome(repeat.item, repeat.read_at, 0, response, error)
        self._tally.add(outcome, repeat.read_at)
        try:
            self._record.write(outcome, repeat.digest)
        except JournalError as failure:
            self._stop(failure)
        self._outbox.put(outcome)

    def _stop(self, error: BaseException | None) -> None:
        """Start no more calls, abandon waiting sends, and raise `error` after the last outcome."""
        self._lifecycle.advance(State.STOPPING, error)
        self._caller.abandon()
        self._outbox.release_workers()


def _fits(found: Replay, format: ResponseFormat[Any] | None) -> bool:
    """Return whether a success of an earlier run fits the batch's `response_type`, and give it its value."""
    response = found.response
    if format is None or response is None:
        return True
    try:
        complete(response, format.read(response.content))
    except MisfitError:
        return False
    return True


_NOT: Final = (None, None)


def _note(error: BaseException, failures: Sequence[BaseException]) -> None:
    """Add further failures to an error as notes."""
    for failure in failures:
        if failure is not error:
            error.add_note(f"also failed at the end of the batch: {type(failure).__name__}: {failure}")


_homes.settle(__name__)
