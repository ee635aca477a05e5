"""Counts what code does in calls of functions, which no clock and no other load of the machine changes."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Steps:
    """The calls so far, of Python's functions and of C's."""

    count = 0


@contextmanager
def counted() -> Iterator[Steps]:
    """Count the calls inside the `with` block, of this thread."""
    steps = Steps()
    before = sys.getprofile()

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            steps.count += 1

    sys.setprofile(profile)
    try:
        yield steps
    finally:
        sys.setprofile(before)


@contextmanager
def at_most(size: int, *, each: int, fixed: int) -> Iterator[None]:
    """Fail if the `with` block takes more than `fixed` calls, and `each` for each of the input's `size` bytes."""
    with counted() as steps:
        yield
    assert steps.count <= fixed + each * size, f"{steps.count:,} calls for {size:,} bytes"


def count_of(work: Callable[[], object]) -> int:
    """Return how many calls `work` takes."""
    with counted() as steps:
        work()
    return steps.count
