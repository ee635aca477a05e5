"""The call of an item of a batch: the attempts of any call, and what a batch does besides.

Each attempt takes a slot of its model and passes the gate of its key. What comes back teaches both. Only what
is the item's own doing uses up its attempts (`pace` has the policy): the gateway's 429 and those of others do
not, and what met an outage does only once another call, sent after it, has succeeded. Whatever an item waits
for counts towards `max_wait_seconds`. A 429 that ends the batch teaches the pacer nothing: other batches must
not wait for what this one did not.

After a stop nothing is sent, even by a worker whose wait has just finished.

An answer that does not fit the batch's `response_type` is asked for again: a further send with a slot and a
gate of its own. If that send does not happen, the item fails with what was billed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, TypeVarTuple

import anyio
import msgspec

from omnigate._batch.items import Item
from omnigate._batch.options import BatchOptions
from omnigate._batch.outcomes import Outcome
from omnigate._batch.pace.gate import Gate
from omnigate._batch.pace.pacer import Send
from omnigate._batch.pace.patience import OutOfPatienceError, Patience, Reason
from omnigate._batch.pace.queue import Flow
from omnigate._batch.pace.signs import Sign, seconds_at_limit, sign_of
from omnigate._batch.pace.upstream import Slot, Upstream
from omnigate._calls.attempts import Call, Decoding
from omnigate._calls.retry import compute_delay, should_retry
from omnigate._calls.structured import Asks
from omnigate._transport.carrier import Answer
from omnigate._wire import endpoints
from omnigate.exceptions import (
    APIError,
    ClientClosedError,
    GatewayError,
    MaxWaitError,
)
from omnigate.models import ChatRequest, ChatResponse

if TYPE_CHECKING:
    from omnigate._calls.session import Session

T = TypeVar("T")

Args = TypeVarTuple("Args")

_OUTAGE_BACKOFF_MAX: Final = 30.0
"""Seconds between the attempts of an item that meets an outage which no other item meets."""


class _Stopped(Exception):
    """The batch was stopped before an item could be sent again."""


class Ready(msgspec.Struct, eq=False, gc=False):  # made faster than a named tuple
    """An item that may be sent once it has a slot.

    Attributes:
        item: the item.
        call: its request.
        digest: of the request, for the journal.
        gate: of its key.
        upstream: its model behind that key.
        read_at: when the item was read, by the event loop's clock.
    """

    item: Item
    call: Call
    digest: str
    gate: Gate
    upstream: Upstream
    read_at: float
    _stalled: float  # seconds that nothing had got through when it was read: it has waited with the others
    _max_wait: float
    _patience: Patience | None = None

    @property
    def patience(self) -> Patience:
        """How long it may still wait; made when it first has to."""
        if self._patience is None:
            self._patience = Patience(self._max_wait, self._max_wait - self._stalled)
        return self._patience


Entry: TypeAlias = tuple[Slot, Send]
"""What one attempt needs: a slot, and a send that the gate let pass."""


class Caller:
    """Makes the calls of a batch.

    Attributes:
        flow: the batch's sends, as the queues see them.
        options: the batch's.
        clock: the event loop's.
        is_abandoned: whether the batch has been stopped.
        rejections: how many 429s came back.
        retries: how many times an item was sent again.
    """

    def __init__(
        self, session: Session, flow: Flow, options: BatchOptions, clock: Callable[[], float]
    ) -> None:
        self.flow: Flow = flow
        self.options: BatchOptions = options
        self.clock: Callable[[], float] = clock
        self.is_abandoned = False
        self.rejections = 0
        self.retries = 0
        self._session = session
        self._pauses: set[anyio.CancelScope] = set()

    async def call(self, ready: Ready, entry: Entry) -> Outcome | None:
        """Make the call of an item, with its deadline; None if it was given up before it was sent again."""
        attempts = _ItemAttempts(self, self._session, ready, entry)
        asks = None if self.options.response_format is None else self._asks_of(ready)
        response: ChatResponse | None = None
        failure: GatewayError | None = None
        try:
            while response is None:
                result = await (attempts.repeat() if attempts.deadline == math.inf else attempts.run())
                if attempts.slot.reservation is not None:
                    self._settle_tokens(ready, attempts.slot, result)
                if asks is None or asks.settles(result, attempts.call.secrets):
                    response = result
                else:
                    await self._ask_again(ready, attempts, asks)
        except (_Stopped, OutOfPatienceError) as stopped:
            if asks is None or not asks.rejected:
                return None
            failure = asks.unsettled()
            failure.add_note(
                "not asked again: the batch was stopped"
                if isinstance(stopped, _Stopped)
                else self.gave_up(ready.patience)
            )
        except GatewayError as error:
            failure = error
            if asks is not None:
                error.billed = asks.rejected
        finally:
            if not attempts.slot.is_free:
                ready.upstream.free(attempts.slot)
        try:
            return self.outcome(ready.item, ready.read_at, attempts.count, response, failure)
        finally:
            del failure  # breaks the cycle of the error, its traceback and this frame

    def _tokens(self, ready: Ready) -> int:
        """Return how many tokens to reserve for an attempt; 0 if the batch has no limit of them."""
        request, content = ready.item.request, ready.call.content
        if self.flow.tokens_per_minute is None or request is None or content is None:
            return 0
        return ready.upstream.tokens.estimate(len(content), request.max_tokens)

    def _settle_tokens(self, ready: Ready, slot: Slot, response: ChatResponse) -> None:
        """Record how many tokens of the provider's limit a response has used; from a cache it uses none."""
        ready.upstream.settle(slot, 0 if response.cached else response.usage.total_tokens)
        ready.upstream.tokens.answered(response.usage.completion_tokens)

    def _asks_of(self, ready: Ready) -> Asks[Any] | None:
        """Return the asks of an item, if its answer has to fit a type."""
        format, request = self.options.response_format, ready.item.request
        if format is None or request is None:
            return None
        return Asks(request, format, self.options.response_retries)

    async def _ask_again(self, ready: Ready, attempts: _ItemAttempts, asks: Asks[Any]) -> None:
        """Wait until an item may be sent again with its next ask.

        Raises:
            _Stopped: the batch was stopped meanwhile.
            OutOfPatienceError: the item has waited for too long.
            ClientClosedError: the client was closed meanwhile.
            TimeoutError: the item's deadline has passed.
        """
        call = prepare(self._session, asks.request, self.options)
        with anyio.CancelScope(deadline=attempts.deadline):
            again = msgspec.structs.replace(ready, call=call, _patience=ready.patience)
            entry = await self.enter(again, is_again=True)
            if entry is None:
                raise _Stopped
            attempts.ask_again(call, entry)
            return
        raise attempts.overdue()

    def outcome(
        self,
        item: Item,
        read_at: float,
        attempts: int,
        response: ChatResponse | None,
        error: GatewayError | None,
    ) -> Outcome:
        """Return the outcome of an item that ends now."""
        return Outcome(
            index=item.index,
            id=item.id,
            request=item.request,
            response=response,
            error=error,
            attempts=attempts,
            elapsed=self.clock() - read_at,
            item=item.row,
        )

    def try_enter(self, ready: Ready, now: float) -> Entry | None:
        """Return an entry for a new item if it need not wait, else None."""
        tokens = 0 if self.flow.tokens_per_minute is None else self._tokens(ready)
        slot = ready.upstream.try_enter(self.flow, now, tokens)
        if slot is None:
            return None
        send = ready.gate.try_pass(now)
        if send is None:
            ready.upstream.free(slot, is_followed=True)  # by `enter`
            return None
        return slot, send

    async def enter(self, ready: Ready, *, is_again: bool) -> Entry | None:
        """Wait for a slot, and at the gate; None if the batch was stopped meanwhile.

        Raises:
            OutOfPatienceError: the item has waited for too long.
            ClientClosedError: the client was closed meanwhile.
        """
        pauses = self._session.means[2]
        passed = await self.pause(pauses.until_closed, self._enter, ready, is_again)
        if passed is None:
            return None
        if passed[0] is None:
            raise ClientClosedError("the client is closed; create a new one")
        slot, send = passed[0][0]
        if self.is_abandoned:  # just as it passed
            ready.upstream.free(slot)
            ready.gate.ended(send)
            return None
        return slot, send

    async def _enter(self, ready: Ready, is_again: bool) -> Entry:
        slot = await ready.upstream.enter(self.flow, ready.patience, self._tokens(ready), is_again=is_again)
        try:
            send = ready.gate.try_pass(self.clock()) or await ready.gate.wait(
                self.flow, ready.patience, is_again=is_again
            )
        except BaseException:
            ready.upstream.free(slot)
            raise
        return slot, send

    def gave_up(self, patience: Patience) -> str:
        """Describe why an item is not waited for any longer."""
        return (
            f"gave up after waiting for {_WORDS[patience.reason]}, {patience.limit:g} s in all"
            " (max_wait_seconds)"
        )

    def out_of_patience(self, ready: Ready) -> MaxWaitError:
        """Return the error of an item that could not be sent within `max_wait_seconds`."""
        upstream, address = ready.upstream, ready.gate.address
        error = MaxWaitError(self.gave_up(ready.patience))
        error.waited_for = ready.patience.reason
        error.attempts = 0
        cause = address.breaker.reason or upstream.breaker.reason
        if cause and error.waited_for == "outage":
            error.add_note(f"the last failure there: {cause}")
        return error

    async def pause(self, func: Callable[[*Args], Awaitable[T]], *args: *Args) -> tuple[T] | None:
        """Await what is given up when the batch stops, and return its result; None if it was given up.

        There is a result, too, if the batch stopped just when it came.
        """
        if self.is_abandoned:
            return None
        result: tuple[T] | None = None
        with anyio.CancelScope() as scope:
            self._pauses.add(scope)
            try:
                result = (await func(*args),)
            finally:
                self._pauses.discard(scope)
        return result

    def abandon(self) -> None:
        """Give up all that is waited for through `pause`, now and later."""
        self.is_abandoned = True
        for scope in self._pauses:
            scope.cancel()


def prepare(session: Session, request: ChatRequest, options: BatchOptions) -> Call:
    """Return the call of a request, with the batch's options.

    Raises:
        InvalidArgumentError: it cannot be sent.
        ClientClosedError: the client is closed.
    """
    return session.prepare(
        endpoints.CHAT, body=request, user_id=options.user_id, options=options.call_options
    )


class _ItemAttempts(Decoding[ChatResponse]):
    """The attempts of an item's call.

    Attributes:
        slot: the one of the current attempt, or of the last.
    """

    _kind = ChatResponse

    __slots__ = ("_caller", "_failed", "_ready", "_rejected", "_send", "_sign", "_unproven", "_used", "slot")

    def __init__(self, caller: Caller, session: Session, ready: Ready, entry: Entry) -> None:
        # As in `Fetching`.
        Decoding.__init__(self, ready.call, session.means)  # pyright: ignore[reportUnknownMemberType]
        self._caller = caller
        self._ready = ready
        self.slot: Slot
        self._send: Send
        self.slot, self._send = entry
        self._sign: Sign  # what the last failure says, once there is one
        self._rejected = 0  # attempts that met the gateway's own limit
        self._failed = 0  # attempts that failed, but for the gateway's own limit
        self._used = 0  # those that were the item's own doing
        self._unproven: tuple[int, ...] = ()  # the numbers of those that may have been, or met an outage

    def begin(self) -> None:
        """Begin an attempt, which has a slot and has passed the gate."""
        if self._pauses.is_closed:
            self._ready.gate.ended(self._send)
            raise self.closed()
        self.count += 1
        if self.count > 1:
            self._caller.retries += 1
        self._ready.upstream.sent(self.slot, self._send.at)

    def received(self, result: Answer) -> Answer:
        """Learn from an answer, and return it."""
        if not 200 <= result.status < 300:
            return super().received(result)
        caller, ready, slot = self._caller, self._ready, self.slot
        now = caller.clock()
        ready.gate.succeeded(self._send, result.head, now)
        ready.upstream.succeeded(slot, now)
        # An item that asks again stands in line: it does not take this slot again for certain.
        ready.upstream.free(slot, is_followed=caller.options.response_format is None)
        return result

    def ask_again(self, call: Call, entry: Entry) -> None:
        """Continue with another ask of the item, which has as many attempts as the first."""
        self.follow(self, self.count)
        self.call = call
        self.slot, self._send = entry
        self._rejected = self._failed = self._used = 0
        self._unproven = ()

    def judge(self, error: BaseException) -> GatewayError | None:
        """Learn from a failure, and return it."""
        failure = super().judge(error)
        gate, upstream, slot = self._ready.gate, self._ready.upstream, self.slot
        if failure is None:  # a bug or a cancellation
            gate.ended(self._send)
            upstream.free(slot)
            return None
        limit = failure.rate_limit if isinstance(failure, APIError) else None
        sign = self._sign = sign_of(failure)
        if sign in _BEFORE_PROVIDER:
            upstream.settle(slot, 0)
        if sign is Sign.WINDOW:
            self._caller.rejections += 1
            upstream.stalled()
            upstream.reached(slot)
            seconds = self._seconds_at_limit(failure)
            if seconds is not None:
                self._rejected += 1
                if seconds < self._config.backoff_base:  # "Retry-After: 0", or a date in the past
                    seconds = compute_delay(self._rejected, self._config, seconds)
                gate.rejected(self._send, seconds, limit)
            elif limit is not None:
                gate.answered(self._send, limit, self._caller.clock())
            else:
                gate.ended(self._send)
            upstream.free(slot)
            return failure
        if limit is not None:
            gate.answered(self._send, limit, self._caller.clock())
        else:
            gate.ended(self._send)
        self._failed += 1
        if sign is Sign.REJECTED:
            self._caller.rejections += 1
        elif sign in (Sign.DOWN, Sign.CIRCUIT):
            self._unproven = (*self._unproven, slot.number)
        elif not sign.is_outage:
            self._used += 1
        if not isinstance(failure, ClientClosedError):
            upstream.failed(slot, sign, str(failure), is_first=self._failed == 1)
        upstream.free(slot)
        return failure

    def delay(self, failure: GatewayError, status: int | None = None) -> float | None:
        """Return the seconds to wait before taking a slot; None if there is no further attempt."""
        sign, config = self._sign, self._config
        if sign is Sign.WINDOW:
            return None if self._seconds_at_limit(failure) is None else 0.0
        upstream = self._ready.upstream
        used = self._used
        proven = upstream.breaker.succeeded_number
        if (
            self._unproven
            and not upstream.is_closed
            and (self._unproven[0] < proven or upstream.has_bad_items)
        ):
            used += len(self._unproven)
        if sign is not Sign.REJECTED and not sign.is_outage:
            return self.backoff(failure, used, status)
        may_retry = should_retry(
            config,
            attempts=used,
            status=failure.status_code if isinstance(failure, APIError) else None,
            was_sent=sign in (Sign.REJECTED, Sign.DOWN),
            resend=self.call.endpoint.resend,
        )
        if not may_retry:
            upstream.has_bad_items = True
            return None
        retry_after = failure.retry_after if isinstance(failure, APIError) else None
        if retry_after is not None and sign is not Sign.REJECTED:
            retry_after = min(retry_after, _OUTAGE_BACKOFF_MAX)  # an outage may end earlier than it says
        if sign.is_outage:
            if sign is Sign.DESCRIPTORS or upstream.is_closed:
                return 0.0
            config = replace(config, backoff_max=max(config.backoff_max, _OUTAGE_BACKOFF_MAX))
        return compute_delay(self._failed, config, retry_after, uniform=random.uniform)

    async def pause(self, seconds: float) -> bool:
        """Wait, and then for a slot and at the gate."""
        caller, ready = self._caller, self._ready
        if seconds:
            ready.patience.spend(seconds, _REASONS.get(self._sign, "provider"))
            waited = await caller.pause(super().pause, seconds)
            if waited is None:
                raise _Stopped
            if not waited[0]:
                return False
        if caller.is_abandoned:  # just as the wait ended, too
            raise _Stopped
        try:
            entry = await caller.enter(ready, is_again=True)
        except ClientClosedError:
            return False
        if entry is None:
            raise _Stopped
        self.slot, self._send = entry
        return True

    async def _recover(self, failure: GatewayError, status: int | None) -> None:
        """Return when the next attempt may start, or raise `failure` because there is none."""
        try:
            try:
                await super()._recover(failure, status)
            except OutOfPatienceError:
                failure.add_note(self._caller.gave_up(self._ready.patience))
                raise failure from failure.__cause__
        finally:
            del failure  # breaks the cycle of the error, its traceback and this frame

    def _seconds_at_limit(self, failure: GatewayError) -> float | None:
        """Return for how many seconds the gateway's own limit holds the batch back; None if it does not."""
        seconds = seconds_at_limit(failure)
        if seconds is None or self._caller.options.stops_at_limit(failure, seconds):
            return None
        return seconds


_BEFORE_PROVIDER: Final = frozenset({Sign.WINDOW, Sign.CIRCUIT, Sign.UNREACHABLE, Sign.DESCRIPTORS})
"""What a call fails with before a provider could count its tokens."""

_REASONS: Final[dict[Sign, Reason]] = {
    Sign.DOWN: "outage",
    Sign.CIRCUIT: "outage",
    Sign.UNREACHABLE: "outage",
    Sign.DESCRIPTORS: "outage",
}

_WORDS: Final[dict[Reason, str]] = {
    "rate window": "the gateway's rate limit",
    "provider": "the provider",
    "token limit": "the provider's token limit (tokens_per_minute)",
    "outage": "the end of an outage",
    "concurrency": "a free slot",
}
