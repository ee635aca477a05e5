"""One address of a gateway: its own outages, and the connections this machine can open to it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from omnigate._batch.pace.breaker import Breaker
from omnigate._batch.pace.descriptors import Descriptors

if TYPE_CHECKING:
    from omnigate._batch.pace.gate import Gate

_KEYS_MAX: Final = 64


class Address:
    """What all keys at one address share.

    Attributes:
        clock: the event loop's.
        breaker: open while the gateway cannot be reached.
        descriptors: how many calls may be in flight, if descriptors are scarce.
        in_flight: calls in flight.
        count: the number of the latest call; calls are numbered from 1, in the order they are sent.
        gates: by key; those used longest ago are forgotten.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock: Callable[[], float] = clock
        self.breaker: Breaker = Breaker(is_for_all=True)
        self.descriptors: Descriptors = Descriptors()
        self.in_flight: int = 0
        self.gates: OrderedDict[bytes, Gate] = OrderedDict()
        self.count: int = 0

    def forget_idle(self) -> None:
        """Forget the gates used longest ago, if there are many."""
        if len(self.gates) > _KEYS_MAX:
            for key, gate in list(self.gates.items())[:-_KEYS_MAX]:
                if gate.is_idle:
                    del self.gates[key]

    def wake(self) -> None:
        """Wake all that may go now, whatever its key or model."""
        for gate in self.gates.values():
            gate.wake_upstreams()

    def __repr__(self) -> str:
        return f"<Address: {self.in_flight} in flight, {len(self.gates)} keys, {self.breaker!r}>"
