"""Waits between the attempts of a call, which closing the client ends early."""

from __future__ import annotations

import anyio

from omnigate._runtime.loops import PerLoop


class Pauses:
    """The waits of one client's calls before their next attempts.

    Attributes:
        is_closed: whether the client is closed: no wait begins any more.
    """

    def __init__(self) -> None:
        self._ends: PerLoop[set[anyio.Event]] = PerLoop(lambda loop: set())  # each ends one wait
        self.is_closed: bool = False

    async def wait(self, seconds: float) -> bool:
        """Wait and return True; return False, immediately, once the client is closed."""
        ends, end = self._ends.current(), anyio.Event()
        ends.add(end)
        try:
            if not self.is_closed:  # asked after it was added, so that `close` or this sees the other
                with anyio.move_on_after(seconds):
                    await end.wait()
        finally:
            ends.discard(end)
        return not self.is_closed

    def close(self) -> None:
        """End all waits, in every event loop, and prevent new ones."""
        self.is_closed = True
        self._ends.end(_set_all)

    def __repr__(self) -> str:
        waits = sum(len(ends) for ends in self._ends.values())
        return f"<Pauses: {'closed' if self.is_closed else f'{waits} waiting'}>"


def _set_all(events: set[anyio.Event]) -> None:
    for event in list(events):
        event.set()
