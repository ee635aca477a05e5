"""Waits between the attempts of a call, which closing the client ends early."""

from __future__ import annotations

import anyio

from omnigate._runtime.loops import PerLoop


class Pauses:
    """All waits of one client's calls before their next attempts."""

    def __init__(self) -> None:
        self._ends: PerLoop[set[anyio.Event]] = PerLoop(lambda loop: set())  # each ends one wait
        self._closed = False

    async def wait(self, seconds: float) -> bool:
        """Wait and return True; return False, immediately, once the client is closed."""
        ends, end = self._ends.current(), anyio.Event()
        ends.add(end)
        try:
            if not self._closed:  # checked after adding, so that either this or `close` sees the other
                with anyio.move_on_after(seconds):
                    await end.wait()
        finally:
            ends.discard(end)
        return not self._closed

    def close(self) -> None:
        """End all waits, in every event loop, and prevent new ones."""
        self._closed = True
        self._ends.end(_set_all)

    def __repr__(self) -> str:
        waits = sum(len(ends) for ends in self._ends.values())
        return f"<Pauses: {'closed' if self._closed else f'{waits} waiting'}>"


def _set_all(events: set[anyio.Event]) -> None:
    for event in list(events):
        event.set()
