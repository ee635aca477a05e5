"""What a stream can show: whether it is a terminal, and which characters it can encode."""

from __future__ import annotations

from typing import Any


def is_terminal(stream: Any) -> bool:
    """Return whether a stream, which may be None or closed, is a terminal."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):  # there is none, or it is closed
        return False


def can_encode(stream: Any, text: str) -> bool:
    """Return whether a stream's encoding has all characters of a text."""
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True
