"""Call a function at the first, second, third, … place of a block where a signal handler or a finalizer can run.

CPython runs signal handlers and, from 3.12 on, the garbage collector between any two instructions. So each
instruction of the block's thread counts as a place, whatever package it is in, except for the tests' own.
"""

import os
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

TESTS = os.path.dirname(os.path.dirname(__file__)) + os.sep


class Visit:
    """A block in which a function is called once, at the n-th place, and may raise there."""

    def __init__(self, place: int, visit: Callable[[], object]) -> None:
        self._left = place
        self._visit = visit
        self._previous: Any = None
        self.was_made = False

    def __enter__(self) -> Self:
        self._previous = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._previous)

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename.startswith((TESTS, "<frozen")):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self._left -= 1
            if self._left == 0:
                self.was_made = True
                sys.settrace(None)
                self._visit()
        return self._trace


def everywhere(visit: Callable[[], object], *, step: int = 1) -> Iterator[Visit]:
    """Yield one `Visit` for each place, or for every `step`-th one, in the block that uses it."""
    yield Visit(1, visit)  # in Python 3.12, a thread's first trace function may not see all places
    place = 1
    made = Visit(place, visit)
    yield made
    while made.was_made:
        place += step
        made = Visit(place, visit)
        yield made
