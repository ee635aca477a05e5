"""Sets the `__module__` of public names to the package, wherever they are defined.

Reprs, tracebacks and pickles name a class's module, so moving a class to another module would break stored
pickles. Those made before 0.4 name the modules of that time; these are registered here for `pickle` only.
Programs import from `omnigate`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

_FORMER = {
    "journal": ("JournalWarning",),
    "meta": ("Budget", "DictResult", "ListResult", "Meta", "RateLimit"),
    "outcome": ("BatchStats", "Outcome"),
    "plaintext": ("PlaintextKeyWarning",),
    "retry": ("RetryConfig",),
}


def settle(package: str, public: Mapping[str, Any]) -> None:
    """Set `__module__` of each public class and function to `package`, and register the former modules."""
    for value in public.values():
        if hasattr(value, "__module__"):
            value.__module__ = package
    for home, names in _FORMER.items():
        module = ModuleType(f"{package}.{home}", f"Moved: import {', '.join(names)} from {package}.")
        vars(module).update({name: public[name] for name in names})
        sys.modules.setdefault(module.__name__, module)
