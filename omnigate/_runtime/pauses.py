"""The waits between the attempts of calls, all of which end at once when the client is closed.

Whoever closes may be in another event loop, or in another thread than those who wait. Nothing runs here.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import anyio

from omnigate._runtime.loops import call_soon, current_loop


class Pauses:
    """What a client's calls wait in before they are sent again.

    Attributes:
        is_closed: whether the client is closed: no wait begins any more.
    """

    def __init__(self) -> None:
        self._ends: dict[anyio.Event, Any] = {}  # what ends each wait, and its event loop
        self.is_closed: bool = False

    async def wait(self, seconds: float) -> bool:
        """Wait, and return True; or False, at once, if the client is closed."""
        end = anyio.Event()
        self._ends[end] = current_loop()
        try:
            if not self.is_closed:  # asked after it was put in, so that `close` or this sees the other
                with anyio.move_on_after(seconds):
                    await end.wait()
        finally:
            del self._ends[end]
        return not self.is_closed

    def close(self) -> None:
        """End all waits, in whatever event loops they are, and let none begin."""
        self.is_closed = True
        for end, loop in list(self._ends.items()):
            with suppress(RuntimeError):  # the loop has ended
                call_soon(loop, end.set)
