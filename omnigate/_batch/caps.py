"""What a batch may spend: money, tokens and time. Once one more item would pass a cap, none is started.

Sans-I/O. An item that is started is expected to spend the mean of those that were billed so far. So the calls
in flight and the next one must fit into what is left of each cap. If they do not, the next item waits for
calls to end: it turns out then what they have spent. If it would not fit even alone, the batch has reached
the cap. Until the first bill the mean is not known, and items are called one at a time.

The mean is an estimate: a batch passes a cap by as much as its last calls exceed it. Only the run counts, not
what its journal has from earlier runs. Time is different, since calls overlap: a call is started if one of
the mean duration would end before the time is over.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from omnigate._calls.structured import spent
from omnigate.exceptions import BatchLimitError

if TYPE_CHECKING:
    from omnigate._batch.options import BatchOptions
    from omnigate._batch.outcomes import Outcome

_TOLERANCE: Final = 1e-9
"""Sums of floats are not exact: ten times 0.1 must fit into 1.0."""


class _Cap:
    """One cap, and what was spent of it."""

    __slots__ = ("_bills", "_is_known", "limit", "name", "spent")

    def __init__(self, name: str, limit: float) -> None:
        self.name = name
        self.limit = limit
        self.spent = 0.0
        self._bills = 0  # those that are not 0, such as those of the gateway's cache are
        self._is_known = False

    def add(self, amount: float) -> None:
        self.spent += amount
        self._bills += amount > 0
        self._is_known = True

    @property
    def mean(self) -> float:
        return self.spent / self._bills if self._bills else 0.0

    def room(self) -> float:
        """Return how many more items fit, including those in flight; 1 until the mean is known."""
        left = self.limit * (1 + _TOLERANCE) - self.spent
        if not self._is_known:
            return 1.0
        if left <= 0:
            return 0.0
        return left / self.mean if self.mean else math.inf


class Caps:
    """The caps of one batch.

    Attributes:
        error: the error with which the batch ends because it has reached a cap, or None.
    """

    def __init__(self, options: BatchOptions) -> None:
        caps = (("max_cost_usd", options.max_cost_usd), ("max_tokens_total", options.max_tokens_total))
        self.error: BatchLimitError | None = None
        self._caps = {name: _Cap(name, limit) for name, limit in caps if limit is not None}
        self._max_seconds = options.max_seconds
        self._has_journal = options.journal is not None
        self._started_at = 0.0
        self._seconds = 0.0  # of all calls
        self._calls = 0
        self._cost_usd = 0.0
        self._tokens = 0
        self._ended = 0

    @property
    def has_time_limit(self) -> bool:
        """Whether there is a cap on the time."""
        return self._max_seconds is not None

    def start(self, now: float) -> None:
        """Begin to count the time."""
        self._started_at = now

    def add(self, outcome: Outcome) -> None:
        """Count what an item of this run has spent."""
        self._ended += outcome.attempts > 0
        response, error = outcome.response, outcome.error
        if response is not None:
            usage, cost_usd = response.usage, response.cost_usd
        elif error is not None and error.billed:
            usage, cost_usd = spent(error.billed)
        else:
            return  # such items are not in the mean: while calls fail, too many might be in flight
        self._cost_usd += cost_usd
        self._tokens += usage.total_tokens
        for name, cap in self._caps.items():
            cap.add(cost_usd if name == "max_cost_usd" else usage.total_tokens)

    def took(self, seconds: float) -> None:
        """Count the time that a call took, with its retries."""
        self._seconds += seconds
        self._calls += 1

    def seconds_left(self, now: float) -> float:
        """Return for how many more seconds a call may be started."""
        if self._max_seconds is None:
            return math.inf
        mean = self._seconds / self._calls if self._calls else 0.0
        return self._started_at + self._max_seconds - mean - now

    def has_room(self, in_flight: int) -> bool:
        """Return whether one more item fits besides those in flight."""
        return all(in_flight + 1 <= cap.room() for cap in self._caps.values())

    def reached(self, now: float) -> BatchLimitError | None:
        """Return the error to end the batch with if not even one more item fits, else None."""
        name = next((name for name, cap in self._caps.items() if cap.room() < 1), None)
        if name is None and self.seconds_left(now) <= 0:
            name = "max_seconds"
        if name is not None and self.error is None:
            self.error = BatchLimitError("the batch has reached a limit")
            self.error.limit = name
            self.tell(now)
        return None if name is None else self.error

    def tell(self, now: float) -> None:
        """Write into the error what has been spent by now."""
        error = self.error
        if error is None:
            return
        error.cost_usd, error.total_tokens, error.ended = self._cost_usd, self._tokens, self._ended
        error.seconds = now - self._started_at
        limit = self._caps[error.limit].limit if error.limit in self._caps else self._max_seconds or 0.0
        again = (
            "with the same journal"
            if self._has_journal
            else "with the items that have no outcome (or a journal)"
        )
        error.args = (
            f"the batch ended at {error.limit}={_plain(limit)}: {error.ended:,} items were called, for "
            f"{_plain(error.cost_usd)} USD and "
            f"{error.total_tokens:,} tokens in {error.seconds:,.1f} s, and another would pass the limit; "
            f"to go on, run it again {again}",
        )


def _plain(number: float) -> str:
    """Return a number without an exponent."""
    return f"{number:.10f}".rstrip("0").rstrip(".")
