"""Detects which modules of the standard library gevent has patched, without importing it."""

from __future__ import annotations

import _thread
import sys
from typing import Any


def gevent_patches(module: str) -> bool:
    """Return whether gevent has patched a module."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched(module))


def import_parts_of_gevent() -> None:
    """Have gevent import what it imports when a thread first waits or looks up a name.

    Raises:
        Exception: its configuration names something that cannot be imported.

    """
    config = sys.modules["gevent"].config
    for part in ("loop", "resolver", "threadpool", "format_context"):
        getattr(config, part)  # read once, it is kept


def original_start_new_thread() -> Any:
    """Return the unpatched function that starts a real thread; gevent's would start a greenlet."""
    if gevent_patches("_thread"):
        return sys.modules["gevent.monkey"].get_original("_thread", "start_new_thread")
    return _thread.start_new_thread
