"""How much of the present window is ours, alone or among others. Sans-I/O.

**What is counted.** The highest count that answers told of a window, less our sends that answers confirm to
have counted in it, less our sends that may have arrived but are not confirmed yet: only what remains must
be others'. Requests overtake each other, by as much as was seen lately, so a send from near the window's
beginning may explain a count, too. What is lost on its way is given back once a later count shows that it
is missing.

**Alone**, a client takes the whole window as fast as `Pacer` lets it. From the first call that can only be
another's on, it spreads its share over the window, so that each answer's news comes in time.

**Who are the others?** Processes with this pacer yield to each other; clients that know no limit do not,
and yielding to them would only starve us. Their numbers of calls look alike, so paced processes make
themselves countable, by a *roll call*: near the beginning of a window each sends three calls and nothing
else, the first at random within 0.8 s, the second 1 s after it, the third 3 s after that. Between two of
its own calls each process sees every other process exactly once, however long the interval, while the calls
of other clients grow with it. Two intervals of different length give both numbers: peers = (3 * short -
long) / 2, but never more than either interval heard: a burst of another client is no crowd. Needed are no
rejections and no common clock but the window itself, and it has no memory, so wrong beliefs do not last.
Where counts of several windows disagree, the lower end of what they allow is believed, unless the two
intervals agree on many more peers: only peers are heard equally often in both (`peers`).

**Among peers** each plans an equal part of 97 % of the limit, less what other clients use, and corrects it
within the window by the difference between plan and count, divided by the number of peers: as all see the
same difference and all correct it, undivided corrections would swing (16 processes at 600 a minute: 125
rejections a window; divided: none).

**Against clients that know no limit**, what they used before is left to them, but never more than what
keeps us a third of the limit (among n peers about 1 / (n + 0.7) each). If a rejection comes before that
much is ours, and censuses have heard such clients (`peers`), later windows are released faster and without a
roll call: a race, for a little more than a third, since censuses interrupt it: every third window by the
number of UTC's minutes, and every 12th once they agree. The number needs clocks that are right by half a
minute. A process whose clock is not merely disturbs the censuses of others that race.

**A newcomer** next to a client that takes the whole window in its first second would not be heard by it. So
a client that is alone and used up its last window keeps one call of the next until the roll call is over:
its answer tells of newcomers. And who finds others in its first window sends only after the roll call, or a
newcomer's first burst would look like a heedless client to all.

**What this leaves** (measured in `tests/batch/pace/test_sharing.py`). Up to 16 processes at 60 a minute, and
100 at 200 or more, have at most 2 % of the limit rejected, and none gets less than half of the mean. So it is
with 25 to 100 at 60 a minute on average. But there each sends five to twenty calls in ten windows, so one
call more or less is much, and now and then the least gets two fifths, or a hundred that start together have
4 % rejected. Among heedless clients it takes some windows until censuses agree.

**In a crowd**, about a third of the limit's number, the roll call itself exceeds the limit. There it shrinks
to a single call, and all send what `crowd` plans.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final

from omnigate._batch.pace.peers import Peers
from omnigate._batch.pace.roll_call import ROLL_BEGIN, ROLL_END, ROLL_LONG, ROLL_PHASE, ROLL_SHORT
from omnigate._batch.pace.sends import SendRecord
from omnigate._batch.pace.use import WindowUse
from omnigate._batch.pace.windows import Windows

__all__ = ["Share"]

_PAST_WINDOWS: Final = 3  # kept for answers that come late

_OVERTAKING_SECONDS: Final = 0.5  # one request may arrive that much later than another sent with it ...

_OVERTAKING_MAX_SECONDS: Final = 10.0  # ... or that much, if such was seen

_CLAIM: Final = 1 / 3  # of the limit, never left to others

_CLAIM_RACING: Final = 0.38  # the same against clients that know no limit: censuses cost some of it

_SPREAD: Final = 0.9  # the part of a window over which our share of it is released

_SPREAD_MIN: Final = 0.02

_TARGET: Final = 0.97  # of the limit, for all peers together

_ROLL_CALL_PERIOD_MIN: Final = 30  # seconds; in shorter windows there is none

_ROLL_CALL_LIMIT_MIN: Final = 12  # calls in a window; with fewer there is none

_ROLL_TOLERANCE_SECONDS: Final = 0.1  # a call later than that does not count as part of it

_RACING: Final = 0.5  # a release over less than this part of the window is a race

_CENSUS: Final = 3  # every so many windows there is a census ...

_CENSUS_RARE: Final = 12  # ... and every so many when they agree; a multiple, so that all meet in these

_CROWD_PHASE: Final = 0.3  # of that of first calls: from a crowd, roll calls begin before the hellos

_USED_UP: Final = 0.9  # of the limit, by us alone: the next window's last call is kept for a while


class Share:
    """Plans how many calls of each window are ours, and when they are released.

    Attributes:
        limit: calls allowed in a window; 0 if unknown.
        share: how many of the present window we may use.
        spread: the part of a window over which our share is released among others.
        listen_at: from when on the present window's last call may be sent, if we are alone.
    """

    def __init__(self, windows: Windows, sends: SendRecord, uniform: Callable[[float, float], float]) -> None:
        self._windows = windows
        self._sends = sends
        self._uniform = uniform
        self.limit = 0
        self._peers = Peers(uniform)
        self._plan = 0.0
        self._plan_now = 0
        self._plan_made = False
        self._heedless = 0.0
        self._credit = uniform(0, 1)
        self._demand = self._demand_before = 0.0
        self._overtaking = _OVERTAKING_SECONDS
        self.spread = _SPREAD
        self._was_rejected = False
        self.listen_at = -math.inf
        self._utc_ahead = 0.0
        self.reset()

    def reset(self) -> None:
        """Forget all windows: none of what was known of them is true."""
        self.window, self._next = WindowUse(), WindowUse()
        self._past: deque[WindowUse] = deque()
        self._first = 0
        self.share = 0.0
        self._total_before = self._sends.total
        self._release: tuple[float, ...] = ()
        self._main_begin = 0.0
        self._main_length = 1.0
        self.bounds_changed()

    # Reading

    @property
    def peers(self) -> float:
        return self._peers.number

    def own(self) -> int:
        """Return how many of our sends count in the present window, or may."""
        return self._sends.total - self._first

    def is_shared(self) -> bool:
        """Tell whether others use the limit, too."""
        return max(self._demand, self.window.others) >= 1

    def is_racing(self) -> bool:
        """Tell whether our share is released as fast as that of clients that know no limit."""
        return self.spread < _RACING and self._peers.are_among_heedless

    def claim(self) -> float:
        """Return the part of the limit that we never leave to others."""
        most, peers = _CLAIM, self.peers
        if self._peers.are_among_heedless:  # whose calls blur the number of peers: it may be half of that
            most, peers = _CLAIM_RACING, peers / 2
        return min(most, 1 / (1.02 * peers + 1.1))

    def release_time(self, number: int) -> float:
        """Return when that many may have been sent in the present window, where others send too."""
        pulses = self._release
        if number <= len(pulses):
            return pulses[number - 1]
        if self._is_crowded():
            return math.inf
        done = len(pulses) or 1
        if not pulses and number <= 1:
            return self._main_begin
        rest = self.share - done
        return self._main_begin + (number - done) / rest * self._main_length if rest > 0 else math.inf

    def released(self, now: float) -> int:
        """Return how many may have been sent by now in the present window, where others send too."""
        pulses = self._release
        now += 1e-9
        if now < self._main_begin or self._is_crowded():
            return sum(time <= now for time in pulses)
        done = len(pulses) or 1
        rest = max(0.0, self.share - done)
        return done + math.floor(min(1.0, (now - self._main_begin) / self._main_length) * rest)

    def _is_crowded(self) -> bool:
        return self._peers.crowd.rate > 0

    def room_in_next(self) -> int:
        """Return how many more may be sent that might count in the next window."""
        if self.is_shared() and self._release:
            return 0
        return math.floor(self._share_of(WindowUse())) - (
            self._sends.total - self._sends.before(self._windows.end_low)
        )

    # Events

    def bounds_changed(self) -> None:
        """Recount the sends of the present window, whose bounds have changed."""
        windows, window = self._windows, self.window
        begin = windows.begin()
        first = self._sends.before(begin)
        if window.own_late:
            first -= sum(at < begin for at in window.own_late)
        if window.taken_back:
            first += sum(at >= begin for at in window.taken_back)
        self._first = first

    @property
    def sent_now(self) -> int:
        """How many were sent since the present window began for certain."""
        return self._sends.total - self._total_before

    def sent(self, now: float) -> None:
        """Note whether what was just sent is one of the roll call's."""
        window = self.window
        calls = window.calls
        place = len(calls)
        is_due = place < 3 and self.sent_now == place + 1
        if is_due and 0 <= now - self._release[place] < _ROLL_TOLERANCE_SECONDS:
            calls.append([now, 0])

    def counted(self, at: float, now: float, limit: int, counted: int, age: int) -> None:
        """Register what had been counted when a request arrived; above the limit: at least that."""
        sends, windows = self._sends, self._windows
        sends.confirm(at)
        if not 0 <= age <= len(self._past):
            return
        window = self._past[age - 1] if age else self.window
        window.confirmed += 1
        changed_first = False
        if at < windows.certain_begin(age):
            window.own_late.append(at)
            changed_first = age == 0
        if at >= windows.begin(age - 1):
            after = self._past[age - 2] if age > 1 else self.window if age else self._next
            after.taken_back.append(at)
            changed_first = changed_first or age == 1
        if changed_first:
            self.bounds_changed()
        is_exact = counted <= limit
        begin = windows.begin(age)
        if is_exact:
            window.is_heard = True
            for call in window.calls:
                if call[0] == at:
                    call[1] = counted
                    if len(window.calls) == 3 and all(call[1] for call in window.calls):
                        self._called(window)
            out_of_order = at - window.counted_at if counted < window.counted else window.counted_at - at
            if self._overtaking < out_of_order < _OVERTAKING_MAX_SECONDS:
                self._overtaking = out_of_order * 1.25
        else:
            window.full_at = min(window.full_at, max(0.0, (at - begin) / windows.period))
        if window.rate:
            part = (at - windows.likely_end(self._utc_ahead)) / windows.period + age + 1
            self._peers.crowd.hear(part, counted, window.rate)
        if counted >= window.counted:
            window.counted, window.counted_at = counted, at
            window.seen = min(1.0, max(0.0, (at - begin) / windows.period))
        at = window.counted_at
        others = window.counted - window.confirmed
        if window.others == 0 and not sends.has_lost:  # the usual case, with less arithmetic
            if others > 0:
                others -= sends.unconfirmed_within(begin - self._overtaking, min(now, at + self._overtaking))
            others = max(0, others)
        else:
            others = self._others_of(window, age, now)
        changed = others != window.others
        window.others = others
        if age:
            if changed:
                self._estimate_demand()
        elif changed or self._demand:
            if changed and not self._plan_made and not (self._past and self._past[0].own):
                self._keep_out_of_roll_call(now)
            self.share = self._share_of(window)

    def _others_of(self, window: WindowUse, age: int, now: float) -> int:
        """Return how many calls of others must be believed in, by the highest count of a window."""
        sends, windows, at = self._sends, self._windows, window.counted_at
        begin = windows.begin(age)
        others = window.counted - window.confirmed
        lowest = others - sends.unconfirmed_within(begin - self._overtaking, min(now, at + self._overtaking))
        if window.counted > self.limit:
            return max(lowest, window.others)
        arrived = at - _OVERTAKING_SECONDS
        highest = others - sends.surely_unconfirmed_within(windows.certain_begin(age), arrived)
        least = -sends.lost_within(begin, arrived)
        return max(least, min(max(window.others, lowest), max(lowest, highest)))

    def rejected(self, now: float) -> None:
        """Register a rejection, after `counted`."""
        if not self._was_rejected and self.limit:
            self._was_rejected = True
            part = (now - self._windows.end_low) / self._windows.period + 1
            own, window = self.own(), self.window
            if self.sent_now <= 3 and window.is_called:
                window.is_missed = True
            elif own < self.limit * self.claim() and self._peers.may_race:
                self.spread = max(_SPREAD_MIN, 0.8 * min(self.spread, part))

    def set_limit(self, limit: int) -> None:
        if limit != self.limit:
            self.limit = limit
            self.share = self._share_of(self.window)

    def roll(self) -> None:
        """Close the present window; `windows` goes on next."""
        window = self.window
        window.own = self.own()
        if (
            window.is_called
            and not window.rate
            and (
                window.is_missed
                or (len(window.calls) < 3 and self.sent_now <= 3 and window.counted >= self.limit)
            )
        ):
            self._missed_call(window)
        self._past.appendleft(self.window)
        if len(self._past) > _PAST_WINDOWS:
            self._demand_before = self._demand_after(self._demand_before, self._past.pop())
        self.window, self._next = self._next, WindowUse()
        if not self._was_rejected:
            self.spread = min(_SPREAD, self.spread * 1.5)
        self._was_rejected = False
        self._overtaking = max(_OVERTAKING_SECONDS, self._overtaking * 0.9)

    def rolled(self, utc_ahead: float) -> None:
        """Plan the window that `windows` has gone on to.

        Args:
            utc_ahead: as in `Windows.number`.
        """
        self._utc_ahead = utc_ahead
        self._total_before = self._sends.total
        self.bounds_changed()
        self._sends.forget(self._windows.begin(_PAST_WINDOWS + 1))
        self._estimate_demand()
        self._peers.window_began()
        self._make_plan()
        self.share = self._share_of(self.window)

    # Policy

    def _called(self, window: WindowUse) -> None:
        self._peers.called(
            [call[1] for call in window.calls], window.phase, self.limit, is_census=window.is_census
        )

    def _missed_call(self, window: WindowUse) -> None:
        """Register that the limit was used up before the roll call's end."""
        counts = [call[1] for call in window.calls if call[1]]
        was_heard = any(past.is_heard for past in self._past)
        self._peers.missed(counts, self.limit, was_heard=was_heard, is_census=window.is_census)
        if self._peers.are_among_heedless:
            self.spread = max(_SPREAD_MIN, 0.8 * min(self.spread, window.full_at))

    def _done(self, part: float) -> float:
        """Return which part of their share the peers have used when that part of a window is over."""
        begun = 3 / max(3.0, self._plan)
        if part < ROLL_END:
            return begun * part / ROLL_END
        return min(1.0, begun + (1 - begun) * (part - ROLL_END) / (_SPREAD - ROLL_END))

    def _estimate_heedless(self) -> None:
        for window in list(self._past)[:2]:
            if window.seen >= 0.8 or window.full_at <= 1 or (len(self._past) > 1 and window is self._past[1]):
                peers = (self.peers - 1) * window.own
                others = (
                    window.others + self._heedless * (1 - window.seen) + peers * (1 - self._done(window.seen))
                )
                self._heedless = (self._heedless + min(self.limit, max(0.0, others - peers))) / 2
                return

    def _make_plan(self) -> None:
        windows, window = self._windows, self.window
        period, number = windows.period, windows.number(self._utc_ahead)
        begin = windows.likely_end(self._utc_ahead) - period
        limit = self.limit
        self._release = ()
        self.listen_at = -math.inf
        self._main_begin = windows.end_high - period
        self._main_length = self.spread * period
        has_roll_calls = period >= _ROLL_CALL_PERIOD_MIN and limit >= _ROLL_CALL_LIMIT_MIN
        self._plan_made = has_roll_calls and self.is_shared()
        if not self._plan_made:
            self._plan_now = 0
            if has_roll_calls and self._past[0].own >= _USED_UP * limit:
                self.listen_at = begin + ROLL_END * period
            return
        if self._is_crowded():
            times = self._peers.crowd.plan(number)
            window.rate = self._peers.crowd.rate
            self._plan_now = 3 if times is None else len(times)
            if times is not None:
                self._release = tuple(begin + time * period for time in times)
                return
        elif self._peers.are_known:
            self._estimate_heedless()
            self._plan = max((_TARGET * limit - self._heedless) / self.peers, limit * self.claim())
            self._credit += self._plan
            self._plan_now = max(0, int(self._credit))
        else:
            self._plan_now = 0
        crowded = self._is_crowded()
        window.is_census = number % _CENSUS == 0
        every = _CENSUS_RARE if self._peers.are_surely_among_heedless else _CENSUS
        is_free = self._peers.are_among_heedless or not self._peers.are_known
        is_race = self.spread < _RACING and not crowded and is_free
        if is_race and not self._peers.is_crowd_near and number % every:
            self._credit -= self._plan_now
            return
        window.is_called = True
        if not crowded:
            self._credit -= self._plan_now
        phase = self._uniform(0, _CROWD_PHASE if crowded else 1)
        window.phase = phase
        start = begin + (ROLL_BEGIN + phase * ROLL_PHASE) * period
        self._release = (
            start,
            start + ROLL_SHORT * period,
            start + (ROLL_SHORT + ROLL_LONG) * period,
        )
        self._main_begin = begin + ROLL_END * period
        self._main_length = max(0.01, self.spread - ROLL_END) * period

    def _keep_out_of_roll_call(self, now: float) -> None:
        """Release our share only after the roll call of those whom we have just joined."""
        period = self._windows.period
        begin = self._windows.end - period
        roll_end = begin + ROLL_END * period
        if self._main_begin < roll_end:
            self._main_begin = max(now, roll_end)
            self._main_length = max(0.01, begin + _SPREAD * period - self._main_begin)

    def _share_of(self, window: WindowUse) -> float:
        """Return how many calls of a window we may use: what others leave, but at least our claim."""
        limit = self.limit
        left = limit - window.others
        if not self.is_shared():
            return left
        if self._is_crowded() and self._plan_made:
            return self._plan_now
        if not (self._peers.are_known and self._plan_made):
            expected = self._demand * (1 - window.seen)
            return max(1.0, min(left, max(left - expected, limit * self.claim())))
        plan = self._plan_now
        expected = self._heedless * (1 - window.seen) + (self.peers - 1) * self._plan * (
            1 - self._done(window.seen)
        )
        excess = _TARGET * limit - window.others - expected - plan
        return max(1.0, min(left, max(plan + excess / self.peers, math.floor(limit * self.claim()))))

    def _estimate_demand(self) -> None:
        self._demand = self._demand_before
        for window in reversed(self._past):
            self._demand = self._demand_after(self._demand, window)
        self.share = self._share_of(self.window)

    def _demand_after(self, demand: float, window: WindowUse) -> float:
        """Return what others want in one window, where before that window it seemed to be `demand`."""
        seen = min(self.limit, max(0, window.others) + demand * (1 - window.seen))
        return seen if seen > demand else (seen + demand) / 2
