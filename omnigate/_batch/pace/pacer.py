"""How fast a batch may send: the gateway's rate limit, kept by arithmetic instead of by collisions.

Sans-I/O: no clock, no waiting. Events go in with their times, "go" or "not before t" comes out. Every
answer may change the verdict, so callers ask again after each event. Three questions, a module each:

* `windows`: when does the window end? Only answers tell, each as old as its call.
* `sends`: which of our sends have been counted? Those that an answer confirmed, for certain.
* `share`: how much of the window is ours? All of it when alone; with others, see there.

The rest is here:

1. Nothing is known at first: calls go one at a time until one answer tells of a limit, or a success tells
   by having no headers that there is none. A failure without headers says nothing.
2. While it is uncertain in which of two windows a send will count, it needs room in both.
3. Sends in quick succession are bounded: were a window's beginning misjudged, the first rejection would
   come in time to stop the rest.
4. A rejection closes the gate for all until the moment it names, and a little jitter.
5. What may be sent without any news is worked out once for many sends. While that is hundreds, only one
   answer in eight is read for its count: the others confirm that their sends were counted.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final

import msgspec

from omnigate._batch.pace.sends import SendRecord
from omnigate._batch.pace.share import Share
from omnigate._batch.pace.windows import RATE_WINDOW_SECONDS, Windows
from omnigate._limits import RateLimit

__all__ = ["RATE_WINDOW_SECONDS", "UNLIMITED", "Pacer", "Send"]

UNLIMITED: Final = 1 << 30
"""What `Pacer.room` says when no limit is known."""

_JITTER_SECONDS: Final = 0.5  # at most, after a rejection, so that clients do not come back in step

_JITTER: Final = 1 / 60  # the same, as a part of the window

_BURST_SECONDS: Final = 0.1  # about the time until a rejection is known

_BURST_ALONE: Final = 1 / 60  # the part of a window in which its whole limit may be sent

_BURST_ALONE_MIN: Final = 8

_BURST_SHARED: Final = 1 / 10

_BURST_RACING: Final = 1 / 20

_PLENTY: Final = 256
"""So many sends may go without news: then most answers are not read."""

_UNREAD: Final = 7
"""So many answers in a row may go unread then."""


class Send(msgspec.Struct, eq=False, gc=False):  # made faster than another object
    """One request on its way: what `Pacer.sent` returns and the answer is reported with."""

    at: float
    is_probe: bool
    is_open: bool = True

    def __repr__(self) -> str:
        return f"Send(at={self.at!r}, is_probe={self.is_probe!r}, is_open={self.is_open!r})"


class Pacer:
    """Decides when requests may be sent; shared by all batches of one client in one event loop.

    Times are seconds of any monotonic clock, the same for all calls and never going back. `sent` and
    `answered` cost about a microsecond. Not to be called from several threads at once.

    Args:
        utc: tells the seconds since 1970, from which follows the number of a window.
        uniform: draws a number between two, evenly.

    """

    def __init__(
        self,
        *,
        utc: Callable[[], float],
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._utc = utc
        self._uniform = uniform
        self._gate = -math.inf  # closed until then, by a rejection
        self._is_probing = True  # nothing has told yet whether there is a limit ...
        self._in_probe = False  # ... and one request is on its way to learn it
        self._limit = 0  # 0: unknown
        self._limit_seen_at = -math.inf
        self._sends = SendRecord()
        self._windows = Windows()
        self._share = Share(self._windows, self._sends, uniform)
        # What `room` has said, while nothing has been learned since that could make it less.
        self._free = 0  # so many requests may be sent ...
        self._free_until = -math.inf  # ... up to then
        self._certain_since = math.inf  # sent from then on: counted in this window; infinity among others
        self._unread = 0  # answers that have gone unread since the last one that was read

    def ask(self, now: float) -> float:
        """Return when the next request may be sent.

        Args:
            now: the present time in seconds.

        Returns:
            A time. Up to `now` it means go, later not before that time, `math.inf` not before another
            request is answered, rejected or ended. Ask again after every event.

        """
        if self._free > 0 and now < self._free_until:
            return now
        if now < self._gate:
            return self._gate
        if not self._limit:
            return math.inf if self._in_probe else now
        room = self.room(now)
        if room >= 1:
            self._free = room
            self._free_until = self._windows.end_low
            self._certain_since = math.inf if self._share.is_shared() else self._windows.certain_begin()
            return now
        windows, share = self._windows, self._share
        own = share.own()
        if own + 1 > share.share or (now >= windows.end_low and share.room_in_next() < 1):
            return windows.end_high
        time = now
        if now < windows.end_low and share.is_shared():
            time = share.release_time(share.sent_now + 1)
            if time >= windows.end_low:
                return windows.end_high
        elif now < windows.end_low:
            time = max(now, share.listen_at)
        earlier = self._sends.time_of(self._sends.total - self._burst() + 1)
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
        windows, share = self._windows, self._share
        if now >= windows.end_high:
            self._roll(now)
        own = share.own()
        room = math.floor(share.share) - own
        if room <= 0:
            return 0
        if now >= windows.end_low:
            room = min(room, share.room_in_next())
        elif share.is_shared():
            room = min(room, share.released(now) - share.sent_now)
        elif now < share.listen_at:
            room -= 1
        if room > 0:
            recent = self._sends.total - self._sends.by(now - _BURST_SECONDS + 1e-9)
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
        self._free -= 1
        self._sends.add(now)
        if self._share.window.is_called:
            self._share.sent(now)
        if self._is_probing and not self._in_probe:
            self._in_probe = True
            return Send(now, True)
        return Send(now, False)

    @property
    def limit(self) -> int | None:
        """The gateway's limit, in calls per window; None if it is not known."""
        return self._limit or None

    def confirmed(self, send: Send, now: float) -> bool:
        """Register a success that need not be read; return False if it must be: then call `answered`.

        Args:
            send: what `sent` returned for the request.
            now: the present time in seconds.

        """
        if (
            self._free < _PLENTY
            or self._unread >= _UNREAD
            or now >= self._free_until
            or send.at < self._certain_since
            or send.is_probe
            or not send.is_open
        ):
            return False
        send.is_open = False
        self._unread += 1
        self._sends.confirm(send.at)
        self._share.window.confirmed += 1
        return True

    def answered(self, send: Send, now: float, limit: RateLimit | None) -> None:
        """Register a success, or another answer with the limit's headers but for the gateway's own 429.

        A failure without these headers says nothing: it is `ended`.

        Args:
            send: what `sent` returned for the request.
            now: the present time in seconds.
            limit: what the answer says of the gateway's limit, as of the request's arrival; None if nothing.

        """
        if not self._close(send):
            return
        allowed, remaining, reset = (None, None, None) if limit is None else limit
        if (
            allowed is None
            or remaining is None
            or reset is None
            or not self._learn(send.at, now, allowed, allowed - remaining, reset)
        ):
            self._sends.lose(send.at)
            self._is_probing = False

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
        self._free = 0
        if 0 <= retry_after < math.inf:
            jitter = self._uniform(0, min(_JITTER_SECONDS, _JITTER * self._windows.period))
            self._gate = max(self._gate, now + retry_after + jitter)
        if limit is None or limit.limit is None or limit.reset_seconds is None:
            return
        if self._learn(send.at, now, limit.limit, limit.limit + 1, limit.reset_seconds):
            self._share.rejected(now)

    def ended(self, send: Send, now: float) -> None:
        """Register a request that failed without headers or was cancelled; it may have been counted or not.

        Args:
            send: what `sent` returned for the request.
            now: the present time in seconds.

        """
        if self._close(send):
            self._sends.lose(send.at)

    def __repr__(self) -> str:
        share = self._share
        if self._limit:
            state = f"{share.own()} of {self._limit} sent in this window of {self._windows.period:g} s"
            state += f", {share.window.others} by others"
            if share.peers > 1:
                state += f", shared by {share.peers:.3g}"
        else:
            state = "no answer yet" if self._is_probing else "no limit known"
        closed = f", closed until {self._gate:.2f} by a rejection" if self._gate > -math.inf else ""
        return f"<Pacer: {state}{closed}>"

    def _close(self, send: Send) -> bool:
        was_open, send.is_open = send.is_open, False
        if send.is_probe:
            self._in_probe = send.is_probe = False
        return was_open

    def _burst(self) -> int:
        """Return how many may be sent within `_BURST_SECONDS`."""
        part, least = _BURST_ALONE, _BURST_ALONE_MIN
        if self._share.is_shared():
            part, least = _BURST_RACING if self._share.is_racing() else _BURST_SHARED, 1
        return max(least, math.floor(self._limit * _BURST_SECONDS / (part * self._windows.period)))

    def _learn(self, at: float, now: float, limit: int, counted: int, reset: int) -> bool:
        """Learn from an answer that so many were counted when a request sent at that time arrived."""
        if limit < 1 or not 0 <= reset <= RATE_WINDOW_SECONDS:
            return False
        windows, share = self._windows, self._share
        self._unread = 0
        known = windows.end, share.share, share.window.others, share.own()
        end = windows.end
        age, is_void = windows.date(at, now, reset)
        if is_void:
            share.reset()
        elif windows.end != end:
            share.bounds_changed()
        if now >= windows.end_high:
            before = windows.end
            self._roll(now)
            age += round((windows.end - before) / windows.period)
        self._is_probing = False
        if at >= self._limit_seen_at:
            self._limit_seen_at = at
            self._limit = limit
            share.set_limit(limit)
        share.counted(at, now, limit, counted, age)
        if is_void or known != (windows.end, share.share, share.window.others, share.own()):
            self._free = 0
        return True

    def _roll(self, now: float) -> None:
        """Go on to the window that the present time is in."""
        self._free = 0
        while now >= self._windows.end_high:
            self._share.roll()
            self._windows.advance(now)
            self._share.rolled(self._utc() - now)
