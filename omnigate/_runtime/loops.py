"""Which event loop is running, whether one has ended, and how to call into it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any


def in_trio() -> bool:
    """Return whether the caller runs under trio. Does not import it."""
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_run())


def current_loop() -> Any:
    """Return the running event loop: asyncio's loop, or trio's token. Its identity is the loop's.

    Raises:
        RuntimeError: none is running.
    """
    if in_trio():
        return sys.modules["trio"].lowlevel.current_trio_token()
    return asyncio.get_running_loop()


def has_ended(loop: Any) -> bool:
    """Return whether an event loop will never run again; `loop` is what `current_loop` returned in it."""
    if isinstance(loop, asyncio.AbstractEventLoop):
        return loop.is_closed()
    try:
        loop.run_sync_soon(_do_nothing, idempotent=True)
    except RuntimeError:  # trio.RunFinishedError
        return True
    return False


def call_soon(loop: Any, func: Callable[[], object]) -> None:
    """Have `func` called in `loop`, from any thread.

    Raises:
        RuntimeError: the loop has ended (trio.RunFinishedError is a RuntimeError, too).
    """
    if isinstance(loop, asyncio.AbstractEventLoop):
        loop.call_soon_threadsafe(func)
    else:
        loop.run_sync_soon(func)


def _do_nothing() -> None:
    pass
