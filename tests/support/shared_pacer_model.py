"""Workers that share one pacer, in virtual time: events on a heap, seeded dice, a clock of its own for each worker.

Messages take the time of the way there and back. The pacer may be down (no answer) or be replaced by one that knows
nothing and whose clock shows another time.
"""

import math
import random
from collections.abc import Callable

from omnigate._batch.pace.lease import LeasePacer
from omnigate._batch.pace.messages import decode_grant, encode
from omnigate._batch.pace.pacer import Pacer
from omnigate._limits import RateLimit
from omnigate.distributed import SharedPacer
from tests.support.gateway_model import Events, Gateway, Verdict

KEY = b"a digest of the key"


class Server:
    """The process that holds the shared pacer."""

    def __init__(self, events: Events, dice: random.Random) -> None:
        self.events, self._dice = events, dice
        self.messages = 0
        self.restart()

    def restart(self) -> None:
        """Begin again, knowing nothing, by another clock."""
        self.pacer: SharedPacer | None = SharedPacer(uniform=self._dice.uniform)
        self._clock_offset = self._dice.uniform(-1e6, 1e6)

    def stop(self) -> None:
        self.pacer = None

    def exchange(self, report: bytes) -> bytes | None:
        self.messages += 1
        if self.pacer is None:
            return None
        return self.pacer.exchange(report, self.events.now + self._clock_offset)


class Worker:
    """A batch with so many items, in flight as allowed, as fast as its leases allow."""

    def __init__(
        self,
        gateway: Gateway,
        server: Server,
        dice: random.Random,
        latency: Callable[[], float],
        *,
        name: str,
        concurrency: int,
        way: Callable[[], float],
        link_way: Callable[[], float],
        items: float = math.inf,
    ) -> None:
        self.name = name
        self.items = items
        self.is_alive = False
        self.dies_when_granted = False
        self.messages = 0
        self._gateway, self._server, self._events, self._dice = gateway, server, gateway.events, dice
        self._latency, self._way, self._link_way = latency, way, link_way
        self.concurrency = concurrency
        self.in_flight = 0
        self._offset = dice.uniform(-60, 60)
        self._rate = 1 + dice.uniform(-1e-4, 1e-4)
        self.pacer = LeasePacer(
            KEY,
            name,
            Pacer(uniform=dice.uniform, utc=lambda: gateway.events.now - gateway.phase + self._offset),
            uniform=dice.uniform,
        )
        self.pacer.wake = self._schedule_report
        self._wake_at = math.inf
        self._report_at = math.inf
        self._is_reporting = False

    def clock(self) -> float:
        """Return what this worker's clock shows."""
        return self._events.now * self._rate + self._offset

    def _at(self, time: float, action: Callable[[], None]) -> None:
        """Run an action at a time of this worker's clock."""
        self._events.at((time - self._offset) / self._rate + 1e-9, action)

    def start(self) -> None:
        self.is_alive = True
        self.pacer.link(self.clock())
        self._schedule_report()
        self.pump()

    def die(self) -> None:
        """Vanish, with all leases and calls in flight (which the gateway has counted)."""
        self.is_alive = False

    def leave(self) -> None:
        """End as a batch does that is left: give back what is unused."""
        self.is_alive = False
        self._exchange(is_leaving=True)

    def pump(self) -> None:
        """Send every call that may be sent, and run again when more may be."""
        if not self.is_alive:
            return
        now = self.clock()
        if self._wake_at <= now:
            self._wake_at = math.inf
        while self.items > 0 and self.in_flight < self.concurrency:
            time = self.pacer.ask(now)
            assert (time <= now) == (self.pacer.room(now) > 0)
            if time > now:
                if time < self._wake_at:
                    self._wake_at = time
                    self._at(time, self.pump)
                return
            self._send()

    def _send(self) -> None:
        self.items -= 1
        send = self.pacer.sent(self.clock())
        self.in_flight += 1

        def arrive() -> None:
            verdict = self._gateway.arrive(self.name)
            latency = self._latency() if verdict.is_admitted else 0.0
            self._events.after(latency + self._way(), lambda: receive(verdict))

        def receive(verdict: Verdict) -> None:
            if not self.is_alive:
                return
            self.in_flight -= 1
            now = self.clock()
            limit = RateLimit(*verdict[1:])
            if not verdict.is_admitted:
                self.items += 1
                self.pacer.rejected(send, now, float(verdict.reset), limit)
            elif not self.pacer.confirmed(send, now):
                self.pacer.answered(send, now, limit if self._gateway.has_headers else None)
            self.pump()

        self._events.after(self._way(), arrive)

    def _schedule_report(self) -> None:
        if self._is_reporting or not self.is_alive:
            return
        due = self.pacer.due_at
        if due < self._report_at:
            self._report_at = due
            self._at(due, self._report)

    def _report(self) -> None:
        if not self.is_alive or self._is_reporting:
            return
        self._report_at = math.inf
        if self.pacer.due_at <= self.clock():
            self._exchange(is_leaving=False)
        else:
            self._schedule_report()

    def _exchange(self, *, is_leaving: bool) -> None:
        self._is_reporting = True
        self.messages += 1
        report = encode(self.pacer.report(self.clock(), is_leaving=is_leaving))

        def arrive() -> None:
            grant = self._server.exchange(report)
            self._events.after(self._link_way(), lambda: receive(grant))

        def receive(grant: bytes | None) -> None:
            self._is_reporting = False
            if not self.is_alive:
                return
            if grant is None:
                self.pacer.failed(self.clock())
            else:
                told = decode_grant(grant)
                if self.dies_when_granted and told.sends:
                    self.die()
                    return
                self.pacer.granted(told, self.clock())
            self._schedule_report()
            self.pump()

        self._events.after(self._link_way(), arrive)
