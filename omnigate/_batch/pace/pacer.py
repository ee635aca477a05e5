"""How fast a batch may send: the gateway's rate limit, kept by arithmetic instead of by collisions.

Sans-I/O: no clock, no waiting. Events go in with their times, "go" or "not before t" comes out. Every
answer may change what was said, so whoever waits asks again after each event. The rules:

1. The gateway counts calls in fixed windows, when they *arrive*; rejected ones count, too. The answer
   to a slow call brings `remaining` and `reset` as old as the call. So an answer dates its window from
   its send: the window ends after `sent + reset - 1` and not after `received + reset`. The bounds of
   all answers are intersected. Where delays differ, the send that arrived quickest gives the latest
   lower bound, and the end lies within a second of it, however late the answers come.
2. Windows follow each other without a gap and are of one length, so an answer whose window is over
   still tells where the present one ends. It says nothing about what is left in it. The length is taken
   for a minute, and shortened to the longest one that fits when answers show ends in between. A wrong
   guess only ever waits too long, and the next answer mends it.
3. What is used up in a window is what this client sent since it began, and `others`: the difference to
   what the gateway counted. Requests overtake each other on the way, so an answer bounds `others` from
   both sides, and the estimate moves no farther than these bounds force it to.
4. While it is uncertain in which of two windows a send will count, it needs room in both.
5. Sends in quick succession are bounded: were a window's beginning misjudged, the first
   rejection would come in time to stop the rest.
6. Where others are seen to use the limit, what they used before is left for them, but for a third of the
   limit, and the release is spread over the window, so that each answer's news comes in time. When a
   rejection comes before that third is reached, later windows are released faster.
7. A rejection closes the gate for all until the moment it names, and a little jitter.
8. Nothing is known at first: one call goes alone. If its answer knows of no limit, or none comes, there
   is none until an answer tells of one.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from typing import Final

from omnigate._limits import RateLimit

__all__ = ["RATE_WINDOW_SECONDS", "UNLIMITED", "Pacer", "Send"]

RATE_WINDOW_SECONDS: Final = 60
"""The length of the gateway's rate window: a UTC minute."""

UNLIMITED: Final = 1 << 30
"""What `Pacer.room` says when no limit is known."""

_RESET_MAX_SECONDS: Final = 3_600  # nonsense above

_OVERTAKING_SECONDS: Final = 0.5  # one request may arrive that much later than another sent with it

_GUARD_BEFORE_SECONDS: Final = 0.25  # a send this close before a window's end may arrive after it

_GUARD_AFTER_SECONDS: Final = 0.1  # jitter of the way to the gateway

_JITTER_SECONDS: Final = 0.5  # at most, after a rejection, so that clients do not come back in step

_JITTER: Final = 1 / 60  # the same, as a part of the window

_DRIFT: Final = 1e-4  # of the clocks against each other

_TICK_SECONDS: Final = 0.02  # resolution of the record of sends

_PAST_WINDOWS: Final = 3  # kept for answers that come late

_FAIR_SHARE: Final = 1 / 3  # of the limit, never left to others

_BURST_SECONDS: Final = 0.1  # about the time until a rejection is known

_BURST_ALONE: Final = 1 / 60  # the part of a window in which its whole limit may be sent

_BURST_ALONE_MIN: Final = 8

_BURST_SHARED: Final = 1 / 10

_SPREAD_SHARED: Final = 0.9  # the part of a window over which our share of it is released

_SPREAD_SHARED_MIN: Final = 0.05

_SHIFT: Final = 1 / 12  # an end less out of step than this part of a window: a clock that was set


class Send:
    """One request on its way: what `Pacer.sent` returns and the answer is reported with."""

    __slots__ = ("at", "is_open", "is_probe")

    def __init__(self, at: float, is_probe: bool) -> None:
        self.at: float = at
        self.is_probe: bool = is_probe
        self.is_open: bool = True

    def __repr__(self) -> str:
        return f"Send(at={self.at!r}, is_probe={self.is_probe!r}, is_open={self.is_open!r})"


class _Window:
    """What is known of the use of one of the gateway's windows."""

    __slots__ = ("late", "others", "seen", "seen_at", "unanswered")

    def __init__(self) -> None:
        self.others = 0  # counted by the gateway but not sent by us; negative: sent but not counted
        self.seen_at = -math.inf  # the send that `others` is known from
        self.seen = 0.0  # the part of the window that was over then
        self.unanswered = 0  # sends that may never have arrived
        self.late: list[float] = []  # sends that counted in it but might have in the next one


class Pacer:
    """Decides when requests may be sent; shared by all batches of one client in one event loop.

    Times are seconds of any monotonic clock, the same for all calls and never going back. `sent` and
    `answered` cost about a microsecond. Not to be called from several threads at once.

    Args:
        uniform: draws a number between two, evenly.

    """

    def __init__(self, *, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self._gate = -math.inf  # closed until then, by a rejection
        self._is_probing = True  # no answer has come yet ...
        self._in_probe = False  # ... and one is on its way
        self._limit = 0  # 0: unknown
        self._limit_seen_at = -math.inf
        self._period: float = RATE_WINDOW_SECONDS
        # The present window's end: after `_low`, not after `_strict`. With a margin it lies, in send time,
        # between `_end_low` and `_end_high`.
        self._low = self._strict = self._end_low = self._end_high = math.nan
        self._dated = math.nan  # `_low` of the window that the last answer told of
        self._window = _Window()
        self._past: deque[_Window] = deque()  # the last one first
        self._demand_before = 0.0  # of the others in one window, by what is older than `_past`
        self._demand = 0.0  # the same by all that is known
        self._spread = _SPREAD_SHARED
        self._was_rejected = False  # in the present window
        self._share = 0.0  # what we may use of the present window
        self._count = 0  # all sends, ever
        self._first = 0  # those before the present window
        self._ticks = [-math.inf]  # when they were sent ...
        self._totals = [0]  # ... and how many had been sent by the end of that tick

    def ask(self, now: float) -> float:
        """Return when the next request may be sent.

        Args:
            now: the present time in seconds.

        Returns:
            A time. Up to `now` it means go, later not before that time, `math.inf` not before another
            request is answered, rejected or ended. Ask again after every event.

        """
        if now < self._gate:
            return self._gate
        if not self._limit:
            return math.inf if self._in_probe else now
        if self.room(now) >= 1:
            return now
        own = self._count - self._first
        if own + 1 > self._share or (now >= self._end_low and self._room_in_next() < 1):
            return self._end_high
        time = now
        if own and now < self._end_low and self._is_shared():
            time = self._end_high - self._period + own / (self._share - 1) * self._spread * self._period
        earlier = self._ticks[bisect_left(self._totals, self._count - self._burst() + 1)]
        return max(time, earlier + _BURST_SECONDS, now + 1e-6)

    def room(self, now: float) -> int:
        """Return how many requests may be sent at once, with no answer in between.

        Args:
            now: the present time in seconds.

        Returns:
            A number of requests; `UNLIMITED` when no limit is known.

        """
        if now < self._gate:
            return 0
        if not self._limit:
            return UNLIMITED if not self._is_probing else 0 if self._in_probe else 1
        if now >= self._end_high:
            self._roll(now)
        own = self._count - self._first
        room = math.floor(self._share) - own
        if now >= self._end_low:
            room = min(room, self._room_in_next())
        elif self._is_shared():
            begin = self._end_high - self._period
            part = max(0.0, now - begin + 1e-9) / (self._spread * self._period)
            room = min(room, math.floor(1 + (self._share - 1) * part) - own)
        if room > 0:
            recent = self._count - self._sent_by(now - _BURST_SECONDS + 1e-9)
            room = min(room, self._burst() - recent)
        return max(0, room)

    def waiting_until(self, now: float) -> float | None:
        """Return until when no request may be sent, or None if one may or none can say.

        Args:
            now: the present time in seconds.

        """
        time = self.ask(now)
        return time if now < time < math.inf else None

    def sent(self, now: float) -> Send:
        """Register a request that is being sent; each must be answered, rejected or ended in the end.

        Args:
            now: the present time in seconds.

        """
        self._count += 1
        if now - self._ticks[-1] < _TICK_SECONDS:
            self._totals[-1] = self._count
        else:
            self._ticks.append(now)
            self._totals.append(self._count)
        if self._is_probing and not self._in_probe:
            self._in_probe = True
            return Send(now, True)
        return Send(now, False)

    def answered(self, send: Send, now: float, limit: RateLimit | None) -> None:
        """Register the head of an answer, whatever its status, but for the gateway's own 429.

        Args:
            send: what `sent` returned for the request.
            now: the present time in seconds.
            limit: what the answer says of the gateway's limit, as of the request's arrival; None if nothing.

        """
        if not self._close(send) or limit is None:
            return
        allowed, remaining, reset = limit
        if allowed is not None and remaining is not None and reset is not None:
            self._learn(send.at, now, allowed, allowed - remaining, reset)

    def rejected(self, send: Send, now: float, retry_after: float, limit: RateLimit | None) -> None:
        """Register the gateway's own 429: nothing is sent until `retry_after` is over.

        Args:
            send: what `sent` returned for the request.
            now: the present time in seconds.
            retry_after: seconds to wait; ignored if negative or not finite.
            limit: as in `answered`.

        """
        if not self._close(send):
            return
        if 0 <= retry_after < math.inf:
            jitter = self._uniform(0, min(_JITTER_SECONDS, _JITTER * self._period))
            self._gate = max(self._gate, now + retry_after + jitter)
        if limit is None or limit.limit is None or limit.reset_seconds is None:
            return
        self._learn(send.at, now, limit.limit, limit.limit + 1, limit.reset_seconds)
        if not self._was_rejected and self._limit:
            self._was_rejected = True
            part = (now - self._end_low) / self._period + 1
            if self._count - self._first < self._limit * _FAIR_SHARE:
                self._spread = max(_SPREAD_SHARED_MIN, 0.8 * min(self._spread, part))

    def ended(self, send: Send, now: float) -> None:
        """Register that a request got no usable answer or was cancelled; it may have been counted or not.

        Args:
            send: what `sent` returned for the request.
            now: the present time in seconds.

        """
        if self._close(send) and send.at >= self._end_low - self._period:
            self._window.unanswered += 1

    def __repr__(self) -> str:
        if self._limit:
            state = f"{self._count - self._first} of {self._limit} sent in this window of {self._period:g} s"
            state += f", {self._window.others} by others"
        else:
            state = "no answer yet" if self._is_probing else "no limit known"
        closed = f", closed until {self._gate:.2f} by a rejection" if self._gate > -math.inf else ""
        return f"<Pacer: {state}{closed}>"

    def _close(self, send: Send) -> bool:
        was_open, send.is_open = send.is_open, False
        if send.is_probe:
            self._is_probing = self._in_probe = send.is_probe = False
        return was_open

    # What we may use.

    def _sent_by(self, time: float) -> int:
        """Return how many were sent up to a time, up to a tick more."""
        return self._totals[bisect_right(self._ticks, time) - 1]

    def _sent_before(self, time: float) -> int:
        """Return how many were sent up to a time, up to a tick less."""
        return self._totals[bisect_right(self._ticks, time - _TICK_SECONDS) - 1]

    def _is_shared(self) -> bool:
        return max(self._demand, self._window.others) >= max(2.0, 0.01 * self._limit)

    def _burst(self) -> int:
        """Return how many may be sent within `_BURST_SECONDS`."""
        part, least = (_BURST_SHARED, 1) if self._is_shared() else (_BURST_ALONE, _BURST_ALONE_MIN)
        return max(least, math.floor(self._limit * _BURST_SECONDS / (part * self._period)))

    def _share_of(self, window: _Window) -> float:
        """Return how many calls of a window we may use: what others leave, but at least a fair share."""
        left = self._limit - window.others
        if not self._is_shared():
            return left
        expected = self._demand * (1 - window.seen)
        return max(1.0, min(left, max(left - expected, self._limit * _FAIR_SHARE)))

    def _room_in_next(self) -> int:
        return math.floor(self._share_of(_Window())) - (self._count - self._sent_before(self._end_low))

    # What is known of the windows.

    def _learn(self, at: float, now: float, limit: int, counted: int, reset: int) -> None:
        """Take in what an answer says: that many were counted when a request sent at that time arrived."""
        if limit < 1 or reset > _RESET_MAX_SECONDS:
            return
        end = self._date(at, at + reset - 1, now + reset, reset)
        if now >= self._end_high:
            self._roll(now)
        if at >= self._limit_seen_at:
            self._limit_seen_at = at
            if limit != self._limit:
                self._limit = limit
                self._share = self._share_of(self._window)
        age = round((self._low - end) / self._period)
        if age == 0 and at >= self._end_low:
            self._window.late.append(at)
        elif age == 1 and at >= self._end_low - self._period and self._window.seen_at == -math.inf:
            self._window.others -= 1
            self._share = self._share_of(self._window)
        if 0 <= age <= len(self._past):
            self._count_others(age, at, now, counted, is_exact=counted <= limit)

    def _count_others(self, age: int, at: float, now: float, counted: int, *, is_exact: bool) -> None:
        window = self._past[age - 1] if age else self._window
        if at < window.seen_at:
            return  # a later one has told
        begin = self._end_low - self._period * (age + 1)
        first = self._sent_before(begin) if age else self._first
        overtaking = min(now - at, _OVERTAKING_SECONDS)
        lowest = counted - (self._sent_by(at + overtaking) - first)
        highest = counted - 1 - (self._sent_before(at - overtaking) - first) if is_exact else lowest
        others = min(max(window.others, lowest), max(lowest, highest))
        if others < 0:  # what may not have been counted in this window
            uncertain = self._sent_by(self._end_high - self._period * (age + 1)) - first
            others = max(others, -(window.unanswered + uncertain))
        window.seen_at = at
        window.seen = min(1.0, max(0.0, (at - begin) / self._period))
        changed = others != window.others
        window.others = others
        if age:
            if changed:
                self._estimate_demand()
        elif changed or self._demand:
            self._share = self._share_of(window)

    def _estimate_demand(self) -> None:
        self._demand = self._demand_before
        for window in reversed(self._past):
            self._demand = self._demand_after(self._demand, window)
        self._share = self._share_of(self._window)

    def _demand_after(self, demand: float, window: _Window) -> float:
        """Return what others want in one window, where before that window it seemed to be `demand`."""
        seen = min(self._limit, max(0, window.others) + demand * (1 - window.seen))
        return seen if seen > demand else (seen + demand) / 2

    def _date(self, at: float, low: float, high: float, reset: int) -> float:
        """Take in that the window of what was sent at a time ends between two times; return the end."""
        if math.isnan(self._low):
            self._restart(low, high, max(RATE_WINDOW_SECONDS, reset))
            return low
        period = self._period
        latest = math.floor((self._end_high - low) / period + 1e-9)  # how many windows ago it may have been
        earliest = math.ceil((self._low - high) / period - 1e-9)
        windows = round((self._low - low) / period)
        if earliest <= latest and reset <= period:
            behind = min(max(windows, earliest), latest) * period
            if low + behind > self._low or high + behind < self._strict:
                self._low = max(self._low, low + behind)
                self._strict = max(min(self._strict, high + behind), self._low)
                self._set_end()
            self._dated = self._low - behind
            return self._dated
        # Windows of another length than was thought, or a clock that was set.
        gap = abs(low - self._dated)
        expected = max(1 if at >= self._dated and gap > 1.5 else 0, round(gap / period)) * period
        shorter = min(period - 1, math.floor(gap + 1))
        if reset <= period and abs(gap - expected) < period * _SHIFT:
            self._low, self._strict, self._dated = low + windows * period, high + windows * period, low
            self._set_end()
        elif max(1, reset) <= shorter and gap < shorter + 1.5:
            self._restart(low, high, shorter)
        else:
            self._restart(low, high, max(RATE_WINDOW_SECONDS, reset))
        return low

    def _restart(self, low: float, high: float, period: float) -> None:
        self._period = period
        self._low, self._strict, self._dated = low, high, low
        self._window = _Window()
        self._past.clear()
        self._set_end()

    def _set_end(self) -> None:
        self._end_low = self._low - _GUARD_BEFORE_SECONDS
        self._end_high = min(self._strict, self._low + 1 + _GUARD_AFTER_SECONDS)
        self._first = self._sent_before(self._end_low - self._period)

    def _roll(self, now: float) -> None:
        """Go on to the window that the present time is in."""
        while now >= self._end_high:
            self._past.appendleft(self._window)
            if len(self._past) > _PAST_WINDOWS:
                self._demand_before = self._demand_after(self._demand_before, self._past.pop())
            idle = max(1, math.floor((now - self._end_high) / self._period))
            drift = min(1.0, _DRIFT * self._period * idle)
            self._low += self._period * idle - drift
            self._strict += self._period * idle + drift
            late, self._window = self._window.late, _Window()
            if not self._was_rejected:
                self._spread = min(_SPREAD_SHARED, self._spread * 1.5)
            self._was_rejected = False
            self._set_end()
            self._window.others = -sum(at >= self._end_low - self._period for at in late)
            old = bisect_right(self._ticks, self._end_low - self._period * (_PAST_WINDOWS + 2)) - 1
            if old > 0:
                del self._ticks[:old], self._totals[:old]
            self._estimate_demand()
