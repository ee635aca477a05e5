"""Takes secrets out of text that people may read: messages, details, reprs.

It must never be used on what a model wrote or on what is sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, cast

_KEY = re.compile(r"(?<![A-Za-z0-9])(llmg_|sk-)[A-Za-z0-9_\-*.]{4,}")
_PREFIX_LENGTH = 12  # protocol: the first 12 characters of a gateway key are its public `key_prefix`


def mask(secret: str) -> str:
    """Return a stand-in for a key that tells which one it is without giving it away.

    A gateway key keeps its public prefix (12 characters); of anything else nothing is shown.
    """
    if secret.startswith("llmg_") and len(secret) >= 2 * _PREFIX_LENGTH:
        return secret[:_PREFIX_LENGTH] + "…"
    return "***"


def redact(value: Any, secrets: Iterable[str] = ()) -> Any:
    """Return `value` (text, or JSON of any depth) with keys and the given secrets blacked out."""
    if isinstance(value, str):
        for secret in secrets:
            if secret:
                value = value.replace(secret, "***")
        return _KEY.sub(r"\1***", value)
    secrets = tuple(secrets)
    if isinstance(value, dict):
        fields = cast("dict[Any, Any]", value)
        return {redact(name, secrets): redact(item, secrets) for name, item in fields.items()}
    if isinstance(value, list):
        return [redact(item, secrets) for item in cast("list[Any]", value)]
    return value
