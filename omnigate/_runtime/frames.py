"""Warnings that point to the user's frame, and never raise because of a closed stderr."""

from __future__ import annotations

import contextlib
import sys
import warnings
from types import FrameType


def level_of_caller() -> int:
    """Return the `stacklevel` with which a caller's warning points to the first frame outside the package."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame):
        frame = frame.f_back
        level += 1
    return level


def warn(message: str, category: type[Warning]) -> None:
    """Issue a warning that points to the first frame outside the package.

    Raises:
        Warning: the user's filter turns it into an error.
    """
    with contextlib.suppress(ValueError):  # from a stderr that is closed
        warnings.warn(message, category, stacklevel=level_of_caller())


def _is_ours(frame: FrameType) -> bool:
    package = frame.f_globals.get("__package__")  # None in a plain script
    return isinstance(package, str) and package.partition(".")[0] == "omnigate"
