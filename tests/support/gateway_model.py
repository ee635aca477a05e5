"""A model of the gateway and its clients in virtual time: events on a heap, seeded dice, no waiting.

The gateway counts calls when they *arrive*, in fixed windows whose start no client knows; rejected calls count as
well. A response takes the network latency both ways and the latency of the provider; a rejection only the
network latency.
"""

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from omnigate._batch.pace.concurrency import AdaptiveConcurrency
from omnigate._batch.pace.pacer import Pacer
from omnigate._limits import RateLimit


class Events:
    """A heap of events, run in order of time."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def at(self, time: float, action: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._heap, (max(time, self.now), self._number, action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.at(self.now + seconds, action)

    def run_until(self, end: float) -> None:
        while self._heap and self._heap[0][0] <= end:
            self.now, _, action = heapq.heappop(self._heap)
            action()
        self.now = end


class Verdict(NamedTuple):
    is_admitted: bool
    limit: int
    remaining: int
    reset: int


class Gateway:
    """Count arrivals in fixed windows, and each client's share of them."""

    def __init__(self, events: Events, limit: int, *, phase: float, period: int = 60) -> None:
        self.events = events
        self.limit = limit
        self.period = period
        self.phase = phase
        self.has_headers = True
        self.admitted: Counter[tuple[str, int]] = Counter()  # (client, window) -> calls
        self.rejected: Counter[tuple[str, int]] = Counter()
        self._counts: Counter[int] = Counter()

    def window(self) -> int:
        return math.floor((self.events.now - self.phase) / self.period)

    def begin(self, window: int) -> float:
        return self.phase + window * self.period

    def arrive(self, client: str) -> Verdict:
        window = self.window()
        self._counts[window] += 1
        count = self._counts[window]
        into = math.floor(self.events.now - self.begin(window))
        is_admitted = count <= self.limit
        (self.admitted if is_admitted else self.rejected)[client, window] += 1
        return Verdict(is_admitted, self.limit, max(0, self.limit - count), max(1, self.period - into))


class PacedClient:
    """A batch with unlimited items: as many in flight as allowed, as fast as the pacer allows."""

    def __init__(
        self,
        gateway: Gateway,
        dice: random.Random,
        latency: Callable[[], float],
        *,
        concurrency: int,
        way: Callable[[], float],
        name: str = "paced",
        lost: float = 0.0,
        clock_error: float = 0.0,
    ) -> None:
        self.pacer = Pacer(uniform=dice.uniform, utc=lambda: gateway.events.now - gateway.phase + clock_error)
        self.in_flight = 0
        self.is_on = True
        self._gateway, self._events, self._dice = gateway, gateway.events, dice
        self._latency, self._way, self._lost = latency, way, lost
        self._concurrency, self._name = concurrency, name
        self._wake_at = math.inf

    def pump(self) -> None:
        """Send every call that may be sent, and run again when more may be."""
        now = self._events.now
        if self._wake_at <= now:
            self._wake_at = math.inf
        while self.is_on and self.in_flight < self._concurrency:
            time = self.pacer.ask(now)
            assert (time <= now) == (self.pacer.room(now) > 0)
            if time > now:
                if time < self._wake_at:
                    self._wake_at = time
                    self._events.at(time, self.pump)
                return
            self._send()

    def _send(self) -> None:
        send = self.pacer.sent(self._events.now)
        self.in_flight += 1

        def arrive() -> None:
            verdict = self._gateway.arrive(self._name)
            latency = self._latency() if verdict.is_admitted else 0.0
            self._events.after(latency + self._way(), lambda: receive(verdict))

        def receive(verdict: Verdict) -> None:
            self.in_flight -= 1
            now = self._events.now
            limit = RateLimit(*verdict[1:])
            if not verdict.is_admitted:
                self.pacer.rejected(send, now, float(verdict.reset), limit)
            elif not self._gateway.has_headers:
                self.pacer.answered(send, now, None)
            elif not self.pacer.confirmed(send, now):
                self.pacer.answered(send, now, limit)
            self.pump()

        def lose() -> None:
            self.in_flight -= 1
            self.pacer.ended(send, self._events.now)
            self.pump()

        if self._lost and self._dice.random() < self._lost:
            self._events.after(1.0, lose)
        else:
            self._events.after(self._way(), arrive)


class HeedlessClient:
    """A client that sends at given times, ignores the limit, and retries rejections after retry-after.

    The number of calls waiting for a retry is bounded; at the bound it makes no new ones.
    """

    def __init__(
        self, gateway: Gateway, name: str, times: Callable[[float], float], *, waiting_max: int
    ) -> None:
        self.name = name
        self.is_on = True
        self._gateway, self._events, self._times = gateway, gateway.events, times
        self._waiting, self._waiting_max = 0, waiting_max
        self._events.at(self._times(self._events.now), self._next)

    def _next(self) -> None:
        if self.is_on:
            if self._waiting < self._waiting_max:
                self._try()
            self._events.at(self._times(self._events.now), self._next)

    def _try(self) -> None:
        verdict = self._gateway.arrive(self.name)
        if not verdict.is_admitted:
            self._waiting += 1
            self._events.after(verdict.reset + 0.02, self._again)

    def _again(self) -> None:
        self._waiting -= 1
        self._try()


class Provider:
    """Work on all calls simultaneously; past the capacity each one slows down.

    With `n` calls in flight each goes at the speed `min(1, (capacity / n) ** exponent)`: at an exponent of 1 the
    throughput stays the same beyond the capacity, above 1 it falls.
    """

    def __init__(self, events: Events, capacity: int, exponent: float) -> None:
        self._capacity = capacity
        self._exponent = exponent
        self._events = events
        self._work_done = 0.0  # by each call that was present throughout
        self._since = events.now
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._turn = 0

    def set_capacity(self, capacity: int) -> None:
        self._advance()
        self._capacity = capacity
        self._schedule()

    def call(self, seconds: float, done: Callable[[], None]) -> None:
        """Work on a call that takes `seconds` at full speed."""
        self._advance()
        self._number += 1
        heapq.heappush(self._calls, (self._work_done + seconds, self._number, done))
        self._schedule()

    def _speed(self) -> float:
        return min(1.0, (self._capacity / max(1, len(self._calls))) ** self._exponent)

    def _advance(self) -> None:
        self._work_done += (self._events.now - self._since) * self._speed()
        self._since = self._events.now

    def _schedule(self) -> None:
        self._turn += 1
        if self._calls:
            turn = self._turn
            seconds = max(0.0, self._calls[0][0] - self._work_done) / self._speed()
            self._events.after(seconds, lambda: self._finish(turn))

    def _finish(self, turn: int) -> None:
        if turn != self._turn:
            return  # the schedule has changed since
        self._advance()
        self._work_done = max(self._work_done, self._calls[0][0])
        _, _, done = heapq.heappop(self._calls)
        self._schedule()
        done()


class Connections:
    """A gateway's database pool: each call holds a connection throughout, and fails after 30 s without one."""

    def __init__(self, events: Events, size: int, *, patience_seconds: float = 30.0) -> None:
        self.free = size
        self._events = events
        self._patience = patience_seconds
        self._waiting: deque[list[Callable[[], None]]] = deque()

    def call(self, seconds: float, done: Callable[[], None], failed: Callable[[], None]) -> None:
        if self.free:
            self._run(seconds, done)
            return
        entry: list[Callable[[], None]] = [lambda: self._run(seconds, done)]
        self._waiting.append(entry)

        def give_up() -> None:
            if entry:
                entry.clear()
                failed()

        self._events.after(self._patience, give_up)

    def _run(self, seconds: float, done: Callable[[], None]) -> None:
        self.free -= 1

        def finish() -> None:
            self.free += 1
            while self._waiting:
                entry = self._waiting.popleft()
                if entry:
                    entry.pop()()
                    break
            done()

        self._events.after(seconds, finish)


class AdaptiveClient:
    """A batch with as many calls in flight as `AdaptiveConcurrency` allows, up to its own bound."""

    def __init__(
        self,
        events: Events,
        call: Callable[[Callable[[], None], Callable[[], None]], None],
        concurrency: AdaptiveConcurrency,
        *,
        bound: int = 1 << 30,
    ) -> None:
        self.concurrency = concurrency
        self.bound = bound
        self.in_flight = self.succeeded = self.failed = 0
        self.levels: list[tuple[float, int]] = [(events.now, concurrency.limit)]  # (since, limit)
        self._events, self._call = events, call

    def pump(self) -> None:
        if self.concurrency.limit != self.levels[-1][1]:
            self.levels.append((self._events.now, self.concurrency.limit))
        while self.in_flight < min(self.bound, self.concurrency.limit):
            self._send()

    def shares(self, since: float) -> Counter[int]:
        """Return for how many seconds each limit was in force since a given time."""
        shares: Counter[int] = Counter()
        ends = [start for start, _ in self.levels[1:]] + [self._events.now]
        for (start, limit), end in zip(self.levels, ends, strict=True):
            if end > max(start, since):
                shares[limit] += end - max(start, since)  # type: ignore[assignment]
        return shares

    def _send(self) -> None:
        self.in_flight += 1
        sent_at, in_flight = self._events.now, self.in_flight

        def done() -> None:
            self.in_flight -= 1
            self.succeeded += 1
            now = self._events.now
            self.concurrency.succeeded(now, now - sent_at, in_flight)
            self.pump()

        def failed() -> None:
            self.in_flight -= 1
            self.failed += 1
            self.concurrency.overloaded(self._events.now, sent_at)
            self.pump()

        self._call(done, failed)


def bursts(dice: random.Random, calls: int, every: float) -> Callable[[float], float]:
    """Return when a heedless client sends next: a number of calls together, and then a pause of about `every` s."""
    left = 0

    def next_time(now: float) -> float:
        nonlocal left
        left = (left or calls) - 1
        return now if left < calls - 1 else now + every * dice.uniform(0.7, 1.3)

    return next_time
