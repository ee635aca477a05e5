"""What gevent has patched of the standard library, without importing it."""

from __future__ import annotations

import _thread
import sys
from typing import Any


def gevent_patches(module: str) -> bool:
    """Return whether gevent has patched a module."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched(module))


def original_start_new_thread() -> Any:
    """Return the function that starts a thread of the system, where gevent's would start a greenlet."""
    if gevent_patches("_thread"):
        return sys.modules["gevent.monkey"].get_original("_thread", "start_new_thread")
    return _thread.start_new_thread
