"""Raise KeyboardInterrupt at the first, second, third, … place where Ctrl-C can land, until a run has no more.

CPython checks for signals when a Python function starts, when a call returns, and while a lock waits.
These are the events `call` and `c_return` of a profile function, and `c_call` of `acquire`, just before it acquires.
"""

import gc
import os
import sys
import weakref
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

TESTS = os.path.dirname(os.path.dirname(__file__)) + os.sep
CALLBACKS = (
    weakref.__file__,
    os.path.join(os.path.dirname(weakref.__file__), "_weakrefset.py"),
)  # swallow it
JOIN = ("join", "_wait_for_tstate_lock")  # reports a running thread as ended, up to Python 3.12


class Interrupt:
    """A block in which Ctrl-C is pressed once, at its n-th place. Places in the tests do not count."""

    def __init__(self, place: int) -> None:
        self._left = place
        self.was_raised = False

    def __enter__(self) -> Self:
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _profile(self, frame: FrameType, event: str, called: Any) -> None:
        code = frame.f_code
        if code.co_filename.startswith((TESTS, *CALLBACKS)) or code.co_name in JOIN:
            return
        if any(code is getattr(callback, "__code__", None) for callback in gc.callbacks):
            return  # Hypothesis measures the collector; Python drops what such a callback raises
        if event in ("call", "c_return") or (event == "c_call" and called.__name__ == "acquire"):
            self._left -= 1
            if self._left == 0:
                self.was_raised = True
                sys.setprofile(None)
                raise KeyboardInterrupt


def everywhere() -> Iterator[Interrupt]:
    """Yield one interrupt for each place in the block that uses it."""
    place = 0
    interrupt = None
    while interrupt is None or interrupt.was_raised:
        place += 1
        interrupt = Interrupt(place)
        yield interrupt
