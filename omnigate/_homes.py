"""Where the public names are defined, and how the package appears to be their home.

The package loads its modules when a public name is first used, so that `omnigate --help` and pytest start
fast.

Reprs, tracebacks and pickles name a class's module, so moving a class to another module would break stored
pickles. So each module with public names ends with `settle(__name__)`, which sets their `__module__` to the
package. Pickles made before 0.4 name the modules of that time; these are registered here for `pickle` only.
Programs import from `omnigate`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

_PACKAGE = "omnigate"

HOMES: Mapping[str, tuple[str, ...]] = {
    "_batch.batch": ("Batch",),
    "_batch.estimate": ("Estimate",),
    "_batch.journal.journal": ("JournalWarning",),
    "_batch.journal.merging": ("JournalConflict", "JournalMerge", "merge_journals"),
    "_batch.journal.reading": ("failed", "read_journal"),
    "_batch.journal.recovery": ("JournalRecovery", "recover_journal"),
    "_batch.options": ("BatchSettings",),
    "_batch.outcomes": ("BatchStats", "Outcome"),
    "_batch.writing": ("write_outcomes",),
    "_calls.configuration": ("PlaintextKeyWarning",),
    "_calls.retry": ("RetryConfig",),
    "_limits": ("Budget", "RateLimit"),
    "_streams.chat": ("ChatStream", "CompletionStream"),
    "_sync.batch": ("SyncBatch",),
    "_sync.streams": ("SyncChatStream", "SyncCompletionStream"),
    "_transport.anyio_transport": ("AnyIOTransport",),
    "_wire.head": ("Meta",),
    "_wire.options": ("CallOptions", "ChatDefaults", "ChatStreamOptions", "SamplingOptions"),
    "_wire.results": ("DictResult", "ListResult"),
    "admin": ("AdminClient", "AsyncAdminClient"),
    "async_client": ("AsyncClient",),
    "client": ("Client",),
    "exceptions": (
        "APIError",
        "AuthError",
        "BatchLimitError",
        "BudgetExceededError",
        "ClientClosedError",
        "ConnectionError",
        "ForkedClientError",
        "GatewayConnectionError",
        "GatewayError",
        "InvalidArgumentError",
        "InvalidArgumentTypeError",
        "InvalidResponseError",
        "JournalError",
        "MaxWaitError",
        "NotStartedError",
        "ProviderError",
        "ProviderRateLimitError",
        "RaceError",
        "RateLimitError",
        "ResponseFormatError",
        "StreamClosedError",
        "TimeoutError",
        "TooManyFailuresError",
        "classify",
    ),
    "models": (
        "ApiKeyCreated",
        "ApiKeyInfo",
        "ChatRequest",
        "ChatResponse",
        "MeResponse",
        "Message",
        "MetricsBreakdown",
        "MetricsResponse",
        "MetricsTimePoint",
        "MetricsTotals",
        "ModelInfo",
        "ModelPricing",
        "OrgInfo",
        "ProjectCreated",
        "ProjectInfo",
        "SignupResponse",
        "StreamChunk",
        "Usage",
    ),
}
"""The public names that each module defines."""

MODULES = ("admin", "async_client", "client", "exceptions", "models")
"""The modules that are attributes of the package without being imported by name."""

_FORMER = {
    "journal": ("JournalWarning",),
    "meta": ("Budget", "DictResult", "ListResult", "Meta", "RateLimit"),
    "outcome": ("BatchStats", "Outcome"),
    "plaintext": ("PlaintextKeyWarning",),
    "retry": ("RetryConfig",),
}


def settle(home: str) -> None:
    """Set `__module__` of each public class and function of a module to the package.

    Args:
        home: the module's name; everything in it is defined.
    """
    defined = vars(sys.modules[home])
    for name in HOMES[home.removeprefix(f"{_PACKAGE}.")]:
        defined[name].__module__ = _PACKAGE


def settle_exports(package: str) -> None:
    """Set `__module__` of all that a subpackage exports to the subpackage.

    Args:
        package: its name; all names of its `__all__` are defined.
    """
    defined = vars(sys.modules[package])
    for name in defined["__all__"]:
        defined[name].__module__ = package


def import_home(home: str) -> ModuleType:
    """Import and return a module of the package."""
    return import_module(f"{_PACKAGE}.{home}")


def load(namespace: dict[str, object]) -> None:
    """Import all modules with public names, and add these names to a namespace."""
    found: dict[str, object] = {}
    for home, names in HOMES.items():
        defined = vars(import_home(home))
        found.update((name, defined[name]) for name in names)
    namespace.update(found)


def register_former() -> None:
    """Register the modules that pickles made before 0.4 name."""
    for home, names in _FORMER.items():
        module = ModuleType(f"{_PACKAGE}.{home}", f"Moved: import {', '.join(names)} from {_PACKAGE}.")

        def former(name: str, module: str = module.__name__, names: tuple[str, ...] = names) -> object:
            if name in names:
                return getattr(sys.modules[_PACKAGE], name)
            raise AttributeError(f"module {module!r} has no attribute {name!r}")

        vars(module)["__getattr__"] = former
        sys.modules.setdefault(module.__name__, module)
