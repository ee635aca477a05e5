"""The limit of one key, leased out to many workers. Sans-I/O: reports and times in, grants out.

**A lease** is the right to a few sends in one window. All that is leased counts as sent, so the sum of the
leases never exceeds the limit. A lease is granted only while it is certain which window it is
(`windows`), and ends before that window may end: no send is ever counted in another window than the one it
was leased for. What a worker gives back is leased again; what a dead worker held is lost until the window
ends. So leases are small: no larger than what all workers together need to use up the window in a few
seconds, at the rate at which they ask.

**Who gets what.** Max-min fair: a worker whose call waits may get any number, the others get what they ask
for, and the window is divided so that nobody can get more without taking it from somebody who has less. A
worker that should have reported and has not is left out of the division a little later.

**Others** that use the key are seen in the answers: the gateway has counted more than was leased. That much
is not leased out in this window, nor in the next ones if it was so twice in a row, but for a third of the
limit. That third is leased out as ever; the rest is then spread over the window, so that others' calls are
noticed in time.

**At first** nothing is known: one call of one worker tells the limit for all.

**A new pacer** after an old one has died knows nothing, but its workers do: each tells, once, how many calls
it has sent in this window and the answers that say most about it. For the few seconds in which every living
worker reports, nothing is granted. Then the new pacer knows what the old one knew, but for leases that dead
workers had used.

All state is in a `KeyState`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import msgspec

from omnigate._batch.pace.messages import (
    COUNT_MAX,
    MODELS_MAX,
    UNLIMITED,
    VERSION,
    Grant,
    Head,
    ModelGrant,
    ModelReport,
    Report,
)
from omnigate._batch.pace.windows import Windows
from omnigate.distributed._key_state import KeyState, Worker
from omnigate.distributed._models import ModelState, SharedModel, fair_level

__all__ = ["Leases"]

_WORKERS_MAX: Final = 10_000

_INTERVAL_SECONDS: Final = 0.25  # between two reports of a worker whose call waits ...

_REPORTS_PER_SECOND: Final = 600  # ... or longer, so that there are no more than this

_SILENT_SECONDS: Final = 2.5  # between two reports of any worker, at most

_BUSY_SECONDS: Final = 1.0  # the same for one with calls in flight

_GRACE_SECONDS: Final = 1.5  # a worker this overdue gets no part of the window

_FORGOTTEN_SECONDS: Final = 60.0

_FILL_SECONDS: Final = 8.0  # about the time in which a window is used up, if all is needed ...

_FILL: Final = 0.12  # ... or this part of a shorter one

_FREE_SECONDS: Final = 10.0  # a lease without a limit

_PROBE_SECONDS: Final = 10.0  # the first call must be sent within this time

_RECOVERY_SECONDS: Final = 3.5  # all living workers have reported within it

_CLAIM: Final = 1 / 3  # of the limit, never left to others

_SPREAD: Final = 0.8  # the part of a window over which it is leased out among others

_PAST_WINDOWS: Final = 2

_CLOCK_SECONDS: Final = 1.0  # an answer cannot have come later than its report, but for this much

_OLD_SECONDS: Final = 900.0


class Leases:
    """Leases out the limit of one key.

    Times are seconds of one clock, the pacer's. Should it be set back, all that is known is void, and this
    is another pacer.

    Attributes:
        state: what is known; it is changed.

    Args:
        state: the same.
        uniform: draws a number between two, evenly.
    """

    def __init__(self, state: KeyState, uniform: Callable[[float, float], float]) -> None:
        self.state: KeyState = state
        self._uniform = uniform
        self._windows = Windows.of(state.windows) if state.windows else Windows()
        self._models: dict[str, SharedModel] = {}

    def exchange(self, report: Report, now: float) -> Grant:
        """Learn from a report, and return what its worker may send."""
        if now < self.state.now - _CLOCK_SECONDS:
            self.state, self._windows, self._models = KeyState.new(now), Windows(), {}
        state, windows = self.state, self._windows
        state.now = max(state.now, now)
        if windows.is_known and now >= windows.end_high:
            self._roll(now)
        worker = self._worker(report, now)
        self._settle(report, worker, now)
        if report.epoch == state.epoch:
            for head in report.heads:
                self._learn(head, now)
        if report.is_free:
            state.is_free = True
        if report.closed_seconds:
            state.closed_until = max(state.closed_until, now + report.closed_seconds)
        self._begin_window(worker)
        worker.want, worker.is_hungry = report.want, report.is_hungry and not report.is_leaving
        worker.seen_at = now
        if report.is_leaving:
            self._forget(report.worker)
            grant = self._grant(worker, now, 0, 0.0)
        else:
            grant = self._answer(report, worker, now)
            if report.models:
                models = [self._model(told, report.worker, now) for told in report.models]
                ask = max(self._interval(), _BUSY_SECONDS)
                grant = msgspec.structs.replace(grant, models=models, ask_seconds=ask)
        worker.due_at = now + grant.ask_seconds
        if windows.is_known:
            state.windows = windows.values()
        return grant

    def store(self) -> None:
        """Bring the state up to date, before it is stored."""
        for model in self._models.values():
            model.store()

    @property
    def is_idle(self) -> bool:
        """Whether it has no workers."""
        return not self.state.workers

    # What reports tell

    def _worker(self, report: Report, now: float) -> Worker:
        state = self.state
        worker = state.workers.get(report.worker)
        if worker is None:
            if len(state.workers) >= _WORKERS_MAX:
                silent = sorted(state.workers, key=lambda name: state.workers[name].seen_at)
                for name in silent[: _WORKERS_MAX // 10]:
                    self._forget(name)
            worker = Worker(now, now)
            if not report.is_leaving:
                state.workers[report.worker] = worker
        return worker

    def _forget(self, name: str) -> None:
        state = self.state
        state.workers.pop(name, None)
        if state.probe == name:
            state.probe = ""
        for model in state.models.values():
            model.members.pop(name, None)

    def _model(self, report: ModelReport, worker: str, now: float) -> ModelGrant:
        states, models = self.state.models, self._models
        state = states.pop(report.model, None)
        if state is None:
            if len(states) >= MODELS_MAX:
                oldest = next(iter(states))
                del states[oldest]
                models.pop(oldest, None)
            state = ModelState(now)
        states[report.model] = state
        model = models.get(report.model)
        if model is None:
            model = models[report.model] = SharedModel(state)
        return ModelGrant(report.model, model.exchange(worker, report, now))

    def _begin_window(self, worker: Worker) -> None:
        if worker.window != self.state.number:
            worker.window, worker.granted, worker.sends = self.state.number, 0, 0

    def _settle(self, report: Report, worker: Worker, now: float) -> None:
        """Account for what the worker did with its leases."""
        state, windows = self.state, self._windows
        self._begin_window(worker)
        if report.period_seconds and not windows.is_known:
            windows.suppose(report.period_seconds)
        is_known = report.epoch == state.epoch
        if (report.lease if is_known else 0) < worker.lease:  # it has not received the last one
            self._use(worker, -worker.sends)
            worker.sends = 0
            if state.probe == report.worker:
                state.probe = ""
        if is_known:
            self._use(worker, -report.returned)
            self._admit(worker, report.unleased)
        else:
            if report.spent_seconds and self._is_present(now + report.spent_seconds):
                self._admit(worker, max(0, report.spent - worker.granted))
            if report.epoch and state.recovering_until < now < state.begun_at + _RECOVERY_SECONDS:
                state.recovering_until = state.begun_at + _RECOVERY_SECONDS
        if state.probe == report.worker and not report.in_flight and report.lease == worker.lease:
            state.probe = ""  # it has ended without telling

    def _is_present(self, end: float) -> bool:
        """Return whether a window that a worker knows by about its end is the present one.

        It may know that this one is over already: then go on to the next one.
        """
        state, windows = self.state, self._windows
        if not windows.is_known:
            state.used_until = max(state.used_until, end)
            return True
        later = (end - windows.end_high) / windows.period
        if 0.5 < later < 1.5:
            self._advance(windows.end_high)
        return later > -0.5

    def _use(self, worker: Worker, sends: int) -> None:
        sends = max(sends, -worker.granted)
        worker.granted = min(COUNT_MAX, worker.granted + sends)
        self.state.used = max(0, min(COUNT_MAX, self.state.used + sends))

    def _admit(self, worker: Worker, sends: int) -> None:
        """Count what a worker has sent without a lease; it may have passed for others' until now."""
        self._use(worker, sends)
        self.state.others = max(0, self.state.others - sends)

    def _learn(self, head: Head, now: float) -> None:
        state, windows = self.state, self._windows
        at = head.sent_at
        if not now - _OLD_SECONDS <= at <= head.received_at <= now + _CLOCK_SECONDS:
            return
        age, is_void = windows.date(at, min(head.received_at, now), head.reset_seconds)
        if is_void:
            age = self._restart(now, age)
        elif now >= windows.end_high:
            before = windows.end
            self._roll(now)
            age += round((windows.end - before) / windows.period)
        state.probe = ""
        if at >= state.limit_at:
            state.limit_at, state.limit = at, head.limit
        if age == 0:
            state.counted = max(state.counted, head.counted)
        elif age <= len(state.past):
            used, counted, others = state.past[age - 1]
            counted = max(counted, head.counted)
            state.past[age - 1] = (used, counted, max(others, counted - used))

    def _restart(self, now: float, age: int) -> int:
        """Go on to the present window after the first answer, or one that refutes what was known of windows.

        Returns:
            How many windows ago the answer's request arrived.
        """
        state, windows = self.state, self._windows
        before, used, until = windows.end, state.used, state.used_until
        self._roll(now)
        state.used_until = -math.inf
        if until == -math.inf or self._is_present(until):
            state.used = used
        state.counted, state.others, state.past = 0, 0, []
        return age + round((windows.end - before) / windows.period)

    def _roll(self, now: float) -> None:
        """Go on to the window that the present time is in."""
        state, windows = self.state, self._windows
        while now >= windows.end_high:
            self._advance(now)
        for name in [name for name, old in state.workers.items() if now > old.seen_at + _FORGOTTEN_SECONDS]:
            self._forget(name)

    def _advance(self, now: float) -> None:
        """Go on to the next window, or if it has been over for long to the one that `now` is in."""
        state, windows = self.state, self._windows
        before = windows.end
        windows.advance(now)
        state.past.insert(0, (state.used, state.counted, max(state.others, state.counted - state.used)))
        del state.past[_PAST_WINDOWS:]
        if windows.end - before > 1.5 * windows.period:  # nothing is known of those in between
            state.past = []
        state.number += 1
        state.used = state.counted = state.others = 0

    # What is granted

    def _answer(self, report: Report, worker: Worker, now: float) -> Grant:
        state, windows = self.state, self._windows
        interval = self._interval()
        if now < state.recovering_until:
            return self._grant(worker, now, 0, interval)
        if not state.limit:
            if state.is_free:
                return self._grant(worker, now, UNLIMITED, interval, valid=_FREE_SECONDS)
            if self._may_probe(now) and (worker.is_hungry or worker.want):
                state.probe = report.worker
                return self._grant(worker, now, 1, interval, valid=_PROBE_SECONDS)
            return self._grant(worker, now, 0, interval)
        if now < state.closed_until:
            return self._grant(worker, now, 0, interval, closed=state.closed_until - now)
        free = self._room(now)
        if now >= windows.end_low or free is None:
            return self._grant(worker, now, 0, interval, closed=windows.end_high - now)
        sends = min(worker.want, self._part(worker, free, interval, now), free)
        return self._grant(worker, now, max(0, sends), interval, valid=windows.end_low - now)

    def _may_probe(self, now: float) -> bool:
        probing = self.state.workers.get(self.state.probe)
        return probing is None or now > probing.due_at + _GRACE_SECONDS

    def _interval(self) -> float:
        """Return the seconds between two reports of a worker whose call waits."""
        seconds = len(self.state.workers) / _REPORTS_PER_SECOND
        return min(_SILENT_SECONDS, max(_INTERVAL_SECONDS, seconds))

    def _room(self, now: float) -> int | None:
        """Return how many sends may be leased now; None if nothing is left of the window."""
        state, windows = self.state, self._windows
        expected, claim = 0, math.ceil(state.limit * _CLAIM)
        if len(state.past) == _PAST_WINDOWS:
            expected = min(others for _, _, others in state.past)
            expected = min(expected, state.limit - claim)
        # All that is leased counts as ours, sent or not: what is more must be others'.
        state.others = max(state.others, state.counted - state.used)
        capacity = state.limit - max(state.others, expected)
        if state.used >= capacity:
            return None
        if not expected:
            return capacity - state.used
        part = max(0.0, 1 - (windows.end_low - now) / windows.period) / _SPREAD
        spread = math.floor((state.limit - expected - claim) * part)
        return max(0, min(capacity, claim + spread) - state.used)

    def _part(self, worker: Worker, free: int, interval: float, now: float) -> int:
        """Return how many of the free sends a worker may have now."""
        state = self.state
        count = len(state.workers)
        if count <= 32 or state.planned != state.number or now >= state.planned_at + 0.002 * count:
            self._plan(free, now)
        own = max(0, self._fair(worker) - worker.granted)
        part = own
        if not own and worker.granted < math.ceil(state.level) and free > state.reserved:
            part = 1
        fill = min(_FILL_SECONDS, _FILL * self._windows.period)
        unit = round(state.limit * interval / (max(1, state.hungry) * fill))
        part = max(0, min(part, max(1, unit), worker.want))
        state.reserved = max(0, state.reserved - min(own, part))
        return part

    def _fair(self, worker: Worker) -> int:
        """Return how many sends of the window are a worker's by the plan."""
        level = math.floor(self.state.level)
        return level if worker.is_hungry else min(level, worker.granted + worker.want)

    def _plan(self, free: int, now: float) -> None:
        """Divide the window: find the level at which all that is free is used."""
        state = self.state
        active: list[Worker] = []
        needs: list[int] = []
        rest = free
        for worker in state.workers.values():
            if now <= worker.due_at + _GRACE_SECONDS:
                self._begin_window(worker)
                active.append(worker)
                rest += worker.granted
                if not worker.is_hungry:
                    needs.append(worker.granted + worker.want)
        state.level = min(fair_level(rest, needs, len(active)), float(COUNT_MAX))
        state.hungry = len(active) - len(needs)
        state.reserved = sum(max(0, self._fair(worker) - worker.granted) for worker in active)
        state.planned_at, state.planned = now, state.number

    def _grant(
        self,
        worker: Worker,
        now: float,
        sends: int,
        interval: float,
        *,
        valid: float = 0.0,
        closed: float = 0.0,
    ) -> Grant:
        state, windows = self.state, self._windows
        worker.lease += 1
        worker.sends = max(0, sends)
        worker.want -= min(worker.want, worker.sends)
        self._use(worker, worker.sends)
        again = interval
        if closed > 0:
            again = closed + 0.02 + self._uniform(0, min(1.0, len(state.workers) / 2_000))
        period = windows.period
        return Grant(
            version=VERSION,
            epoch=state.epoch,
            now=now,
            lease=worker.lease,
            sends=sends,
            valid_seconds=max(0.0, valid),
            ask_seconds=_SILENT_SECONDS,
            again_seconds=min(again, 3_600.0),
            closed_seconds=min(max(0.0, closed), 3_600.0),
            limit=state.limit,
            window_seconds=max(0.0, windows.end_high - now) if windows.is_known else 0.0,
            period_seconds=period,
        )
