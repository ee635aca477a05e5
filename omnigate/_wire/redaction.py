"""Prepares text for people: hides secrets in messages, details and reprs, and disarms terminal escapes.

Never use it on model output that a program gets, or on anything that is sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

_SHOWN_LENGTH = 80

SECRET_HEADERS: Final = frozenset(
    {b"api-key", b"authorization", b"cookie", b"proxy-authorization", b"x-admin-key", b"x-api-key"}
)
"""Request headers whose values are keys."""

_KEY = re.compile(r"(?<![A-Za-z0-9])(llmg_|sk-)[A-Za-z0-9_\-*.]{4,}")

_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""Characters that a terminal or a log viewer obeys rather than shows (escapes, bidirectional marks), and lone
surrogates, which cannot be printed; not tabs and line feeds."""

_SHORTEST_CUT = 4  # the fewest characters of a truncated secret worth hiding

# docs/protocol.md, "Headers": the first 12 characters of a gateway key are its public `key_prefix`
_PREFIX_LENGTH = 12


def shown(value: object) -> str:
    """Return a short repr of `value` for an error message, with keys redacted."""
    try:
        text = cast("str", redact(repr(value)))
    except Exception:  # noqa: BLE001 - nested too deeply, an integer of thousands of digits, a broken repr
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN_LENGTH else text[:_SHOWN_LENGTH] + "…"


def printable(text: str) -> str:
    """Return `text` with everything that could affect a terminal or a log replaced by escapes."""
    return text if text.isprintable() else _UNSAFE.sub(_escape, text)


def one_line(text: str, most: int) -> str:
    """Return `text` for an error's message: printable, on one line, at most `most` characters long."""
    text = text[: 4 * most]  # before any work on it
    if not text.isprintable():
        lines = (line.strip() for line in text.splitlines())
        text = printable(" ".join(line for line in lines if line)).replace("\t", " ")
    return text if len(text) <= most else text[:most] + "…"


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def mask(secret: str) -> str:
    """Return a masked key that still identifies it.

    A gateway key keeps its public prefix (12 characters); anything else is hidden entirely.
    """
    if secret.startswith("llmg_") and len(secret) >= 2 * _PREFIX_LENGTH:
        return secret[:_PREFIX_LENGTH] + "…"
    return "***"


def secrets_of(headers: Mapping[bytes, bytes | None]) -> tuple[str, ...]:
    """Return the keys in a request's headers, both with and without a scheme such as "Bearer"."""
    secrets: list[str] = []
    for name in SECRET_HEADERS & headers.keys():
        value = (headers[name] or b"").decode("latin-1")
        secrets += (value, value.partition(" ")[2])
    return tuple(secrets)


def redact(value: Any, secrets: Iterable[str] = ()) -> Any:
    """Return `value` (text, or JSON of any depth) with keys and the given secrets redacted."""
    forms = {form for secret in secrets if secret for form in (secret, json.dumps(secret)[1:-1])}
    return _redact(value, sorted(forms, key=len, reverse=True))  # longest first: one may contain another


def redact_cut(text: str, secrets: Iterable[str] = ()) -> str:
    """Redact `text` that may be truncated in the middle of a secret."""
    text = cast("str", redact(text, secrets))
    for secret in secrets:
        for length in range(min(len(secret), len(text)), _SHORTEST_CUT - 1, -1):
            if text.endswith(secret[:length]):
                return text[:-length] + "***"
    return text


def _redact(value: Any, forms: list[str]) -> Any:
    if isinstance(value, str):
        for form in forms:
            value = value.replace(form, "***")
        return _KEY.sub(r"\1***", value)
    if isinstance(value, dict):
        fields = cast("dict[Any, Any]", value)
        return {_redact(name, forms): _redact(item, forms) for name, item in fields.items()}
    if isinstance(value, list):
        return [_redact(item, forms) for item in cast("list[Any]", value)]
    return value
