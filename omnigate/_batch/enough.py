"""When failures are enough: the batch ends before they cost hours.

A wrong model name fails every item, and each counts against the rate limit. By default a batch ends when its
first items all fail with one and the same error that no retry can mend.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

from omnigate._wire.checks import check_integer, check_number, refusal
from omnigate.exceptions import APIError, GatewayError, TooManyFailuresError

StopAfterFailures: TypeAlias = int | float | Literal["auto"] | None
"""A number of failed items, a share of those that ended (a float, at most 1), "auto", or None for never."""

_FIRST: Final = 20

_LASTING: Final = frozenset({400, 404, 422})


def check_stop_after_failures(value: Any) -> None:
    """Check a batch's argument `stop_after_failures`.

    Raises:
        InvalidArgumentError: it is not one of those that `StopAfterFailures` describes.
    """
    if value is None or (isinstance(value, str) and value == "auto"):
        return
    if isinstance(value, float):
        check_number(value, "stop_after_failures", above=0, maximum=1)
    elif isinstance(value, int):
        check_integer(value, "stop_after_failures", minimum=1)
    else:
        must = "be a number of items, a share of them, 'auto', or None"
        raise refusal("stop_after_failures", value, must, is_type=not isinstance(value, str))


class Enough:
    """Counts how items end, and says when it is enough.

    Attributes:
        is_over: whether nothing more can come of counting.
    """

    __slots__ = ("_after", "_ended", "_failed", "_first", "is_over")

    def __init__(self, after: StopAfterFailures) -> None:
        self._after: StopAfterFailures = after
        self._ended = 0
        self._failed = 0
        self._first: tuple[int | None, str] | None = None  # the error that all have had so far
        self.is_over: bool = after is None

    def count(self, error: GatewayError | None) -> TooManyFailuresError | None:
        """Count an item that ended; return the error if that is enough."""
        if self.is_over:
            return None
        self._ended += 1
        self._failed += error is not None
        after = self._after
        if error is None:
            self.is_over = after == "auto"
            return None
        if after == "auto":
            return self._count_same(error)
        if isinstance(after, float):
            if self._ended >= _FIRST and self._failed >= after * self._ended:
                return self._error(f"{self._failed:,} of {self._ended:,} items failed", error)
        elif isinstance(after, int) and self._failed >= after:
            return self._error(f"{self._failed:,} items failed", error)
        return None

    def _count_same(self, error: GatewayError) -> TooManyFailuresError | None:
        status = error.status_code if isinstance(error, APIError) else None
        same = (status, str(error))
        self._first = self._first or same
        if status not in _LASTING or same != self._first:
            self.is_over = True
            return None
        if self._failed < _FIRST:
            return None
        return self._error(f"the first {_FIRST} items all failed with the same error", error)

    def _error(self, what: str, last: GatewayError) -> TooManyFailuresError:
        self.is_over = True
        error = TooManyFailuresError(
            f"{what} (the last one: {last}); pass stop_after_failures=None to go on anyway"
        )
        error.failed, error.ended = self._failed, self._ended
        error.__cause__ = last
        return error
