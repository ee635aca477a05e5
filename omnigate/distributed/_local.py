"""A link to a shared pacer in the same process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import anyio.lowlevel

from omnigate.distributed._shared import SharedPacer

__all__ = ["LocalLink"]


class LocalLink:
    """Joins batches of one process to a pacer in it, in any threads and event loops.

    Clients in one event loop share a key's limit anyway. This is for several loops, and for tests.

    Args:
        pacer: the shared pacer; a new one if None.
        clock: returns the present time in seconds.
    """

    def __init__(
        self, pacer: SharedPacer | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pacer = SharedPacer() if pacer is None else pacer
        self._clock = clock
        self._lock = threading.Lock()

    async def exchange(self, report: bytes) -> bytes:
        """Return the grant that answers a report."""
        await anyio.lowlevel.checkpoint()
        with self._lock:
            return self._pacer.exchange(report, self._clock())

    async def aclose(self) -> None:
        """Do nothing: nothing is open."""
        await anyio.lowlevel.checkpoint()

    def __repr__(self) -> str:
        return f"<LocalLink: {self._pacer!r}>"
