"""One worker's part of a limit that many workers share: it sends under leases of a shared pacer. Sans-I/O.

Used by a `Gate` in place of a `Pacer`, with one of its own inside. That one hears of every send and answer,
too, and takes over while the shared pacer is silent: then the worker paces itself by the headers, as it would
on its own. When the shared pacer is heard again, it is told how many were sent meanwhile.

1. A lease is used before it ends, and forgotten when it does. No send is ever made under a lease whose
   window may be over; the time is counted from when the report was *sent* that it answers.
2. What is not used soon is given back with the next report, for others to use.
3. A lost report or answer costs a lease at most. What a report told is told again if there was no answer,
   except for what it gave back.
4. A rejection closes the gate here immediately, and for all with the next report.
5. Times of answers are told by the shared pacer's clock (`heads`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final

from omnigate._batch.pace.heads import Answer, Heads, PacerClock
from omnigate._batch.pace.messages import COUNT_MAX, UNLIMITED, VERSION, Grant, Head, ModelReport, Report
from omnigate._batch.pace.pacer import UNLIMITED as ROOM_UNLIMITED
from omnigate._batch.pace.pacer import Pacer, Send
from omnigate._batch.pace.windows import RATE_WINDOW_SECONDS
from omnigate._limits import RateLimit

__all__ = ["LeasePacer"]

_SILENT_SECONDS: Final = 5.0  # without an answer that is due, before the worker paces itself

_RETRY_SECONDS: Final = 0.25  # after a failed report, then longer each time ...

_LONGER: Final = 1.4

_RETRY_MAX_SECONDS: Final = 5.0  # ... up to this

_WANT_MIN: Final = 8

_KEPT_SECONDS: Final = 120.0  # answers that a new pacer is told

_SEND_BACK_SECONDS: Final = 1.0  # unused for longer, a lease is given back


class LeasePacer:
    """Decides when requests may be sent, by leases; has the methods of `Pacer`.

    Times are seconds of any monotonic clock, the same for all calls. Not to be called from several threads
    at once.

    Attributes:
        inner: paces while the shared pacer is silent.
        wake: called when the next report has become due earlier.

    Args:
        key: what stands for the key (`key_digest`).
        worker: the worker's name.
        inner: a pacer, which may have been used before.
        uniform: draws a number between two, evenly.
    """

    def __init__(
        self,
        key: bytes,
        worker: str,
        inner: Pacer,
        *,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.inner: Pacer = inner
        self.wake: Callable[[], None] = _nothing
        self._uniform = uniform
        self._key, self._worker = key, worker
        self._epoch = 0
        self._lease = 0
        self._left = 0  # sends of the lease
        self._is_unlimited = False
        self._lease_until = -math.inf
        self._is_blocked = False  # a call waits
        self._closed_until = -math.inf  # nothing is granted before
        self._gate = -math.inf  # closed by a rejection
        self._reported_at = -math.inf
        self._next_at = -math.inf  # when to report at the latest, and ...
        self._again_at = -math.inf  # ... when to report again if a call waits
        self._failures = 0
        self._limit = 0
        self._period = 60.0
        self._window_until = -math.inf
        self._spent = 0  # sends in the window that ends then
        self._unleased = 0
        self._sent = 0  # since the last report
        self._sent_in_report = 0  # between the last two
        self._unleased_in_report = 0
        self._sent_at = -math.inf
        self._in_flight = 0
        self._is_free = False
        self._silent_at = -math.inf  # from then on the shared pacer counts as silent; -inf: not linked
        self._heads = Heads()  # not told yet
        self._told = Heads()
        self._pacer_clock = PacerClock()

    # As `Pacer`

    def ask(self, now: float) -> float:
        """Return when the next request may be sent, as `Pacer.ask`."""
        if now < self._lease_until and (self._left or self._is_unlimited) and now >= self._gate:
            return now
        if self.is_silent(now):
            return self.inner.ask(now)
        if now < self._gate:
            return self._gate
        if not self._is_blocked:
            self._is_blocked = True
            self.wake()
        silent_at = max(self._silent_at, now + 1e-6)
        return max(silent_at, self._closed_until) if self._closed_until > now else silent_at

    def room(self, now: float) -> int:
        """Return how many requests may be sent at once, as `Pacer.room`."""
        if now < self._gate:
            return 0
        if now < self._lease_until and (self._left or self._is_unlimited):
            return ROOM_UNLIMITED if self._is_unlimited else self._left
        return self.inner.room(now) if self.is_silent(now) else 0

    def waiting_until(self, now: float) -> float | None:
        """Return until when no request may be sent, as `Pacer.waiting_until`."""
        if self.room(now):
            return None
        if self.is_silent(now):
            return self.inner.waiting_until(now)
        until = max(self._closed_until, self._gate)
        return until if until > now else None

    @property
    def limit(self) -> int | None:
        """The gateway's limit, in calls per window; None if it is not known."""
        return self._limit or self.inner.limit

    def sent(self, now: float) -> Send:
        """Register a request that is being sent, as `Pacer.sent`."""
        self._in_flight += 1
        self._sent += 1
        self._sent_at = now
        self._is_blocked = False
        if now >= self._window_until:
            self._next_window(now)
        self._spent += 1
        if now < self._lease_until:
            if self._left:
                self._left -= 1
            elif not self._is_unlimited:
                self._unleased += 1
        else:
            self._unleased += 1
        return self.inner.sent(now)

    def confirmed(self, send: Send, now: float) -> bool:
        """Return False: the shared pacer learns from every answer."""
        return False

    def answered(self, send: Send, now: float, limit: RateLimit | None) -> None:
        """Register a success, or another answer with the limit's headers, as `Pacer.answered`."""
        if not send.is_open:
            return
        self._in_flight = max(0, self._in_flight - 1)  # it may have been sent before there was a link
        is_probe = not self._limit and not self._is_free
        if limit is None or limit.limit is None:
            self._is_free = not self._limit and self.inner.limit is None
        else:
            self._hear(send, now, limit, 0)
        self.inner.answered(send, now, limit)
        if is_probe:
            self._next_at = min(self._next_at, now)
            self.wake()

    def rejected(self, send: Send, now: float, retry_after: float, limit: RateLimit | None) -> None:
        """Register the gateway's own 429, as `Pacer.rejected`."""
        if not send.is_open:
            return
        self._in_flight = max(0, self._in_flight - 1)
        if 0 <= retry_after < math.inf:
            self._gate = max(self._gate, now + min(retry_after, 3_600.0))
        if limit is not None:
            self._hear(send, now, limit, 1)
        self.inner.rejected(send, now, retry_after, limit)
        self._next_at = min(self._next_at, max(now, self._reported_at + _RETRY_SECONDS))
        self.wake()

    def ended(self, send: Send, now: float) -> None:
        """Register a request that failed without headers or was cancelled, as `Pacer.ended`."""
        if not send.is_open:
            return
        self._in_flight = max(0, self._in_flight - 1)
        self.inner.ended(send, now)
        if not self._limit and not self._is_free:  # it may have been the probe
            self._next_at = min(self._next_at, max(now, self._reported_at + _RETRY_SECONDS))
            self.wake()

    # The link

    def link(self, now: float) -> None:
        """Begin to report: from now on sends wait for leases."""
        self._silent_at = now + _SILENT_SECONDS
        self._next_at = now
        self._failures = 0

    def unlink(self) -> None:
        """End it: from now on the worker paces itself."""
        self._silent_at = self._lease_until = -math.inf
        self._left = 0
        self._is_blocked = False
        self.wake = _nothing

    @property
    def is_answered(self) -> bool:
        """Whether the shared pacer has been heard lately."""
        return self._epoch > 0 and self._failures <= 1

    @property
    def due_at(self) -> float:
        """When the next report is to be sent."""
        if self._failures or not self._is_blocked:
            return self._next_at
        return min(self._next_at, self._again_at)

    def is_silent(self, now: float) -> bool:
        """Return whether the shared pacer is silent, so that the worker paces itself."""
        return now >= self._silent_at

    def report(
        self, now: float, *, is_leaving: bool = False, models: list[ModelReport] | None = None
    ) -> Report:
        """Return the next report, which is sent now; `granted` or `failed` must follow.

        Args:
            now: the present time in seconds.
            is_leaving: whether it is the last one.
            models: how the calls of the models went.
        """
        if now >= self._lease_until:
            self._left = 0
        returned = self._surplus(now, is_leaving=is_leaving)
        self._left -= returned
        if now >= self._window_until:
            self._next_window(now)
        heads: list[Head] = []
        if self._epoch:
            heads = [self._pacer_clock.head(head) for head in self._heads.all(now - _KEPT_SECONDS)]
        want = max(0, self._sent - self._left)
        if self._is_blocked:
            want = max(_WANT_MIN, 2 * self._sent)
        report = Report(
            version=VERSION,
            key=self._key,
            worker=self._worker,
            epoch=self._epoch,
            lease=self._lease,
            is_hungry=self._is_blocked,
            want=0 if is_leaving else min(want, COUNT_MAX),
            in_flight=self._in_flight,
            returned=returned,
            unleased=min(self._unleased, COUNT_MAX),
            spent=min(self._spent, COUNT_MAX),
            spent_seconds=max(0.0, self._window_until - now) if self._limit else 0.0,
            is_free=self._is_free,
            closed_seconds=max(0.0, self._gate - now),
            is_leaving=is_leaving,
            heads=heads,
            models=models or [],
            period_seconds=self._period if self._epoch else 0.0,
        )
        self._unleased_in_report, self._sent_in_report = self._unleased, self._sent
        self._unleased = self._sent = 0
        self._reported_at = now
        self._next_at = self._again_at = math.inf
        return report

    def granted(self, grant: Grant, now: float) -> None:
        """Take the answer to the last report."""
        asked_at = self._reported_at
        has_more = False
        if grant.epoch != self._epoch:  # another pacer, which knows nothing of us
            self._epoch = grant.epoch
            self._left = 0
            self._pacer_clock = PacerClock()
            # Those sent since the report, under a lease that the new one does not know.
            self._unleased = self._sent
            for head in self._told.all(now - _KEPT_SECONDS):
                self._heads.add(head)
            has_more = bool(self._heads.all(-math.inf))
        else:
            heads = self._heads.all(-math.inf)
            for head in heads:
                self._told.add(head)
            if all(head.received_at <= asked_at for head in heads):  # none has come since the report
                self._heads = Heads()
        self._pacer_clock.synchronize(grant.now, asked_at, now)
        self._failures = 0
        self._silent_at = asked_at + grant.ask_seconds + _SILENT_SECONDS
        self._lease = grant.lease
        self._is_unlimited = grant.sends == UNLIMITED
        until = asked_at + grant.valid_seconds
        if self._is_unlimited:
            self._lease_until = until
        elif grant.sends:
            if self._lease_until <= now:
                self._left = 0
            self._left += grant.sends
            self._lease_until = until
            self._is_blocked = False
        self._closed_until = asked_at + grant.closed_seconds if grant.closed_seconds else -math.inf
        self._next_at = now if has_more else asked_at + grant.ask_seconds
        self._again_at = asked_at + grant.again_seconds
        if grant.limit:
            self._limit, self._is_free = grant.limit, False
        self._period = min(max(1.0, grant.period_seconds), RATE_WINDOW_SECONDS)
        if grant.window_seconds:
            if asked_at + grant.window_seconds > self._window_until + self._period / 2:
                self._next_window(now)
            self._window_until = asked_at + grant.window_seconds

    def failed(self, now: float) -> None:
        """Register that the last report got no answer."""
        self._unleased += self._unleased_in_report
        self._sent += self._sent_in_report
        self._failures += 1
        wait = min(_RETRY_MAX_SECONDS, _RETRY_SECONDS * _LONGER ** min(20, self._failures - 1))
        self._next_at = self._again_at = now + wait * self._uniform(0.7, 1.3)

    def __repr__(self) -> str:
        state = "no limit known" if self._is_unlimited else f"{self._left} sends leased"
        failures = f", {self._failures} reports without an answer" if self._failures else ""
        return f"<LeasePacer: {state}{failures}, {self.inner!r}>"

    def _hear(self, send: Send, now: float, limit: RateLimit, more: int) -> None:
        allowed, remaining, reset = limit
        if allowed is None or allowed < 1 or reset is None or not 0 <= reset <= 60:
            return
        if more:
            counted = allowed + 1
        elif remaining is None:
            return
        else:
            counted = min(max(0, allowed - remaining), allowed)
        if allowed < COUNT_MAX:
            self._heads.add(Answer(send.at, now, allowed, counted, reset))

    def _surplus(self, now: float, *, is_leaving: bool) -> int:
        """Return how many sends of the lease to give back."""
        left = self._left
        if is_leaving or now < self._gate:
            return left
        if self._is_blocked or not left:
            return 0
        if now - self._sent_at > _SEND_BACK_SECONDS:
            return left
        return max(0, left - max(_WANT_MIN, 4 * self._sent))

    def _next_window(self, now: float) -> None:
        self._spent = self._unleased = self._unleased_in_report = 0
        if self._window_until > -math.inf:
            passed = math.floor((now - self._window_until) / self._period) + 1
            self._window_until += max(0, passed) * self._period
        else:
            self._window_until = now + self._period


def _nothing() -> None:
    pass
