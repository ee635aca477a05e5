"""Clocks in tests: a check for trio's autojump clock, and a clock that follows the event loop's."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import anyio

from omnigate._runtime.loops import current_loop, in_trio

AUTOJUMP_REFUSED = (
    "a served local gateway does not work under trio's autojump clock: the clock jumps while a client waits "
    "for its socket, so every call times out. Use it in-process: take omnigate_gateway_in_process or "
    "omnigate_gateway_factory(serve=False), and pass transport=gateway.asgi_transport() to AsyncClient"
)


def is_autojump_clock(clock: object) -> bool:
    """Return whether this is a trio `MockClock` that jumps; trio is not imported."""
    testing: Any = sys.modules.get("trio.testing")
    if testing is None or not isinstance(clock, testing.MockClock):
        return False
    mock: Any = clock
    return bool(mock.autojump_threshold != math.inf)


def refuse_autojump(clock: object) -> None:
    """Refuse to serve under trio's autojump clock.

    Raises:
        RuntimeError: `clock` is one.
    """
    if is_autojump_clock(clock):
        raise RuntimeError(AUTOJUMP_REFUSED)


def running_trio_clock() -> object:
    """Return the clock of the running trio loop; None outside of trio."""
    return sys.modules["trio"].lowlevel.current_clock() if in_trio() else None


class LoopClock:
    """Returns the seconds since 1970, which pass as the running event loop's clock does, real or virtual.

    The first call in a loop continues from the value of the last; outside of loops real time passes.
    """

    def __init__(self) -> None:
        self._loop: object = None
        self._loop_seconds = 0.0
        self._value = time.time()
        self._real_seconds = time.monotonic()

    def __call__(self) -> float:
        """Return the time."""
        real = time.monotonic()
        try:
            loop = current_loop()
        except RuntimeError:
            return self._value + real - self._real_seconds
        now = anyio.current_time()
        if loop is self._loop:
            self._value += now - self._loop_seconds
        else:
            self._value += real - self._real_seconds
            self._loop = loop
        self._loop_seconds = now
        self._real_seconds = real
        return self._value
