"""One model behind one key: how many of its calls may be in flight, and whether it can be called now.

A call takes a slot before it asks for the rate window, and frees it when its attempt ends: an item that waits
for its next attempt holds none. A batch whose limit is full leaves a wish; whoever frees a slot, raises the
limit or ends an outage wakes the first waiter, else a batch that wished for one. Of several batches, those
with fewer calls in flight come first, so that they end up with equally many.
"""

from __future__ import annotations

import logging
import math
from datetime import UTC, datetime, timedelta
from typing import Final, cast

import anyio
import msgspec

from omnigate._batch.pace.address import Address
from omnigate._batch.pace.blame import Blame
from omnigate._batch.pace.breaker import Breaker
from omnigate._batch.pace.concurrency import AdaptiveConcurrency
from omnigate._batch.pace.interval import Interval
from omnigate._batch.pace.patience import Patience, Reason
from omnigate._batch.pace.queue import FairQueue, Flow, Waiter
from omnigate._batch.pace.shared_concurrency import SharedConcurrency
from omnigate._batch.pace.signs import Sign
from omnigate._batch.pace.tokens import Reservation, TokenWindow

logger: Final = logging.getLogger("omnigate")

_LOGGED_RATIO: Final = 1.25
"""A limit is logged once it has changed by so much since the last time."""

_REJECTED_SECONDS: Final = 60.0
"""For how long after a rejection the adaptive limit binds batches with their own `max_concurrency`, too."""

_LATENCY_WEIGHT: Final = 0.1


class Slot(msgspec.Struct, eq=False, gc=False):  # made faster than another object
    """The right to have one call in flight, for one attempt."""

    flow: Flow
    number: int
    sent_at: float
    reservation: Reservation | None  # of tokens, if the batch has a limit of them
    in_flight: int = 0  # with it; 0 if that says nothing about the limit
    is_sent: bool = False
    is_free: bool = False


class Upstream:
    """Hands out slots for the calls of one model.

    Attributes:
        model: its name, for logs.
        concurrency: the adaptive limit, for batches with `max_concurrency="auto"`.
        interval: the time between sends, below one call in flight.
        breaker: open while the provider is down.
        tokens: those of the last minute, for batches with `tokens_per_minute`.
        in_flight: calls in flight.
        stalled_at: when the first call since the last success failed to get through; None if none did.
        has_bad_items: whether items have failed for good while others succeeded, since the last outage.
    """

    def __init__(self, address: Address, model: str) -> None:
        self.model: str = model
        self.concurrency: AdaptiveConcurrency | SharedConcurrency = AdaptiveConcurrency()
        self.interval: Interval = Interval()
        self.breaker: Breaker = Breaker()
        self.tokens: TokenWindow = TokenWindow()
        self.in_flight: int = 0
        self.stalled_at: float | None = None
        self.has_bad_items: bool = False
        self._auto_in_flight = 0
        self._tokens_until = -math.inf  # until when tokens hold back the first in line
        self._address = address
        self._clock = address.clock
        self._blame = Blame()
        self._queue = FairQueue(is_bounded=True)
        self._wishes: dict[Flow, None] = {}  # batches that found no slot, in order
        self._promised: dict[Flow, bool] = {}  # those of them that were woken and have not asked yet
        self._latency = 0.0
        self._rejected_at = -math.inf
        self._logged_limit: float = self.concurrency.limit

    @property
    def limit(self) -> float:
        """How many calls may be in flight; below one, the share of the time that one is."""
        seconds = self.interval.seconds
        return min(1.0, self._latency / seconds) if seconds else self.concurrency.limit

    @property
    def is_idle(self) -> bool:
        """Whether nobody uses it."""
        return not self.in_flight and not self._queue.count and not self._wishes

    def share_concurrency(self) -> None:
        """Let the adaptive limit be a part of one that many workers share, if a shared pacer says so."""
        if isinstance(self.concurrency, AdaptiveConcurrency):
            self.concurrency = SharedConcurrency(self.model, self.concurrency)

    def shared(self) -> tuple[SharedConcurrency, int, bool] | None:
        """Return the shared limit, how many calls it bounds, and whether there would be more without."""
        concurrency = self.concurrency
        if not isinstance(concurrency, SharedConcurrency):
            return None
        is_full = self._auto_in_flight >= concurrency.limit
        return concurrency, self._auto_in_flight, is_full

    @property
    def is_closed(self) -> bool:
        """Whether everything but a probe waits for the end of an outage."""
        return self.breaker.is_open or self._address.breaker.is_open

    # Slots

    def is_full(self, flow: Flow) -> bool:
        """Return whether a batch need not read an item now: a call that ends will wake it.

        Args:
            flow: the batch's, which has the adaptive limit.
        """
        is_promised = self._promised.pop(flow, False)
        if not (flow.in_flight or is_promised):
            return False
        if self._auto_in_flight + self._queue.count + len(self._promised) < self.concurrency.limit:
            return False
        self._wishes[flow] = None
        return True

    def try_enter(self, flow: Flow, now: float, tokens: int) -> Slot | None:
        """Return a slot for a new item if there is one and no other waits, else None.

        Args:
            flow: the batch's.
            now: the current time in seconds.
            tokens: how many to reserve; 0 if the batch has no limit of them.
        """
        if self._queue.count or self.interval.seconds:
            return None
        return self._take(flow, now, tokens) if self.ask(flow, now, tokens) <= now else None

    async def enter(self, flow: Flow, patience: Patience, tokens: int, *, is_again: bool) -> Slot:
        """Wait in line and return a slot.

        Args:
            flow: the batch's.
            patience: the item's.
            tokens: how many to reserve; 0 if the batch has no limit of them.
            is_again: whether this is a resend, which precedes the batch's new sends.

        Raises:
            OutOfPatienceError: the item has waited for too long.
        """
        waiter = Waiter(flow, is_again=is_again)
        self._queue.add(waiter)
        slot: Slot | None = None
        try:
            while True:
                moment = math.inf
                if self._queue.first() is waiter:
                    now = self._clock()
                    moment = self.ask(flow, now, tokens)
                    if moment <= now:
                        slot = self._take(flow, now, tokens)
                        return slot
                await patience.wait(waiter.event, self._clock, moment, self.reason)
                if waiter.event.is_set():
                    waiter.event = anyio.Event()
        finally:
            self._queue.remove(waiter, has_passed=slot is not None)
            self.wake()

    def ask(self, flow: Flow, now: float, tokens: int) -> float:
        """Return when the first in line may go: up to `now` means go, `math.inf` not before a call ends."""
        address = self._address
        if flow.is_auto:
            if self._auto_in_flight >= self.concurrency.limit:
                return math.inf
        elif self.in_flight >= self.concurrency.limit and now < self._rejected_at + _REJECTED_SECONDS:
            return math.inf
        if flow.in_flight >= flow.most or address.in_flight >= address.descriptors.limit:
            return math.inf
        until = now
        if tokens and flow.tokens_per_minute is not None:
            until = self._tokens_until = self.tokens.ask(now, tokens, flow.tokens_per_minute)
        if not (address.breaker.is_open or self.breaker.is_open or self.interval.seconds):  # as usual
            return until
        return max(until, address.breaker.ask(now), self.breaker.ask(now), self.interval.ask(now))

    def reason(self) -> Reason:
        """Return what the first in line waits for."""
        if self.is_closed:
            return "outage"
        if self.interval.seconds:
            return "provider"
        if self._clock() < self._tokens_until:
            return "token limit"
        return "concurrency"

    def waits_for(self, flow: Flow) -> Reason | None:
        """Return what a batch waits for here; None if it does not."""
        return self.reason() if self._queue in flow.queues or flow in self._wishes else None

    def held_until(self, now: float) -> float | None:
        """Return until when sends are held back by more than a lack of slots; None if they are not."""
        moment = max(
            self._address.breaker.ask(now), self.breaker.ask(now), self.interval.ask(now), self._tokens_until
        )
        return moment if now < moment < math.inf and self._queue.count else None

    def free(self, slot: Slot, *, is_followed: bool = False) -> None:
        """Take a slot back; idempotent.

        Args:
            slot: the slot.
            is_followed: whether the caller goes on to send for the same batch, which needs no waking then.
        """
        if slot.is_free:
            return
        slot.is_free = True
        flow = slot.flow
        if not slot.is_sent:
            self.settle(slot, 0)
        flow.in_flight -= 1
        self.in_flight -= 1
        if flow.is_auto:
            self._auto_in_flight -= 1
        self._address.in_flight -= 1
        if self.breaker.is_open or self._address.breaker.is_open:
            now = self._clock()
            self.breaker.ended(slot.number, now)
            self._address.breaker.ended(slot.number, now)
        if flow.queues:
            for queue in list(flow.queues):
                if queue is not self._queue:
                    queue.wake()
        if flow.has_wish or self._wishes or self._queue.count:
            is_followed = is_followed and flow.goes_on()
            if flow.has_wish and not is_followed:
                flow.has_wish = False
                flow.wake()
            if self._wishes or self._queue.count:
                self.wake(flow if is_followed else None)
        if self._address.descriptors.limit < math.inf:
            self._address.wake()

    def wake(self, follower: Flow | None = None) -> None:
        """Wake whoever can use the free slots: the first in line, else the batches that wished for one.

        Args:
            follower: a batch that goes on to take a slot anyway. The last one is its own, unless a batch that
                wished has fewer calls in flight.
        """
        if self._queue.count:
            self._queue.wake()
            return
        if not self._wishes:
            return
        free = self.concurrency.limit - self._auto_in_flight - len(self._promised)
        for flow in list(self._wishes):
            if free <= 0:
                return
            is_last = follower is not None and free == 1
            if (
                flow is follower
                or flow.in_flight >= flow.most
                or (is_last and flow.in_flight >= cast("Flow", follower).in_flight)
            ):
                continue
            del self._wishes[flow]
            if flow.wake():
                self._promised[flow] = True
                free -= 1

    def withdraw(self, flow: Flow) -> None:
        """Forget a batch that reads no more items."""
        self._wishes.pop(flow, None)
        if self._promised.pop(flow, False):
            self.wake()

    def settle(self, slot: Slot, tokens: int) -> None:
        """Record how many tokens a call has used, in place of those it has reserved."""
        reservation, slot.reservation = slot.reservation, None
        if reservation is not None:
            self.tokens.settle(reservation, tokens)
            self._tokens_until = -math.inf
            if self._queue.count:
                self._queue.wake()

    def _take(self, flow: Flow, now: float, tokens: int) -> Slot:
        address = self._address
        flow.in_flight += 1
        self.in_flight += 1
        if flow.is_auto:
            self._auto_in_flight += 1
        address.in_flight += 1
        number = address.count = address.count + 1
        if address.breaker.is_open:
            address.breaker.sent(number)
        if self.breaker.is_open:
            self.breaker.sent(number)
        return Slot(flow, number, now, self.tokens.reserve(now, tokens) if tokens else None)

    # What calls say

    def sent(self, slot: Slot, now: float) -> None:
        """Record that the call of a slot goes out now, after its wait for the rate window."""
        slot.sent_at = now
        slot.is_sent = True
        reservation = slot.reservation
        if reservation is not None and reservation.second != now // 1:  # it has waited for the rate window
            self.tokens.settle(reservation, 0)
            slot.reservation = self.tokens.reserve(now, reservation.tokens)
        address = self._address
        if slot.number != address.count and not (self.breaker.is_open or address.breaker.is_open):
            slot.number = address.count = address.count + 1  # in the order of sends; else it may be the probe
        if slot.flow.is_auto:
            slot.in_flight = self._auto_in_flight
        elif now < self._rejected_at + _REJECTED_SECONDS:
            slot.in_flight = self.in_flight
        self.interval.sent_at = now

    def succeeded(self, slot: Slot, now: float) -> None:
        """Record a success, before its slot is freed."""
        address, concurrency = self._address, self.concurrency
        latency = now - slot.sent_at
        self._latency += (latency - self._latency) * (_LATENCY_WEIGHT if self._latency else 1.0)
        self.stalled_at = None
        number = slot.number
        if self.breaker.succeeded(number):
            self._opened(f"model {self.model!r}")
        if address.breaker.succeeded(number):
            self._reached()
        if address.descriptors.limit < math.inf:
            address.descriptors.succeeded(now, address.in_flight)
        if self._blame.succeeded(slot.sent_at):
            concurrency.forgive()
        self.interval.succeeded(now, self._latency)
        if self.interval.seconds:
            self._log_limit()
        elif slot.flow.is_auto or now < self._rejected_at + _REJECTED_SECONDS:
            concurrency.succeeded(now, latency, slot.in_flight)
            self._log_limit()

    def stalled(self) -> None:
        """Record that a call did not get through."""
        if self.stalled_at is None:
            self.stalled_at = self._clock()

    def reached(self, slot: Slot) -> None:
        """Record that there was an answer: the gateway can be reached."""
        if self._address.breaker.succeeded(slot.number):
            self._reached()

    def _reached(self) -> None:
        self._opened("the gateway")
        self._address.wake()

    def failed(self, slot: Slot, sign: Sign, reason: str, *, is_first: bool) -> None:
        """Record a failure, before its slot is freed.

        Args:
            slot: the call's.
            sign: what the failure says.
            reason: the failure in words, for logs.
            is_first: whether it is the item's first; the others are the same sign again.
        """
        now, address = self._clock(), self._address
        if sign is Sign.REJECTED or sign.is_outage:
            self.stalled()
        if sign is Sign.DESCRIPTORS:
            address.descriptors.exhausted(now, address.in_flight - 1)
            if address.in_flight <= 1 and address.breaker.failed(slot.number, now, reason, is_certain=True):
                self._closed("the gateway", reason, address.breaker, now)
            return
        if sign is Sign.UNREACHABLE:
            if address.breaker.failed(slot.number, now, reason):
                self._closed("the gateway", reason, address.breaker, now)
            return
        self.reached(slot)
        is_certain = sign is Sign.CIRCUIT
        if (is_certain or (sign is Sign.DOWN and (is_first or self.breaker.is_open))) and self.breaker.failed(
            slot.number, now, reason, is_certain=is_certain
        ):
            self.has_bad_items = False
            self._closed(f"model {self.model!r}", reason, self.breaker, now)
        if sign is Sign.REJECTED:
            self._rejected_at = now
            if self.concurrency.limit <= 1 or self.interval.seconds:
                self.interval.rejected(now, slot.sent_at, max(self._latency, 0.1))
            self.concurrency.overloaded(now, slot.sent_at)
        elif (
            sign in (Sign.LOAD, Sign.DOWN) and is_first and not self.breaker.is_open
        ) and self._blame.failed(now, slot.sent_at):
            self.concurrency.overloaded(now, slot.sent_at)
        self._log_limit()

    # Logs

    def _closed(self, what: str, reason: str, breaker: Breaker, now: float) -> None:
        until = datetime.now(UTC) + timedelta(seconds=max(0.0, breaker.ask(now) - now))
        logger.info(
            "batch: closed the gate for %s: %s; next probe at %s UTC", what, reason, f"{until:%H:%M:%S}"
        )

    def _opened(self, what: str) -> None:
        logger.info("batch: opened the gate for %s again", what)

    def _log_limit(self) -> None:
        limit = self.limit if self.interval.seconds else self.concurrency.limit
        if limit == self._logged_limit:
            return
        if not self._logged_limit / _LOGGED_RATIO <= limit <= self._logged_limit * _LOGGED_RATIO:
            logger.info(
                "batch: concurrency for model %r changed from %.3g to %.3g",
                self.model,
                self._logged_limit,
                limit,
            )
            self._logged_limit = max(limit, 0.001)

    def __repr__(self) -> str:
        return (
            f"<Upstream {self.model!r}: {self.in_flight} in flight, {self._queue!r}, {self.concurrency!r},"
            f" {self.interval!r}, {self.breaker!r}>"
        )
