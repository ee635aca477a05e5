"""A provider's limit of tokens per minute, which the gateway does not tell.

Sans-I/O. A call reserves an estimate of its tokens when it goes out; its answer settles how many they were.
Within any minute no more than the limit is reserved or used. Providers refill a bucket, or count a window of
their own: both allow what this does. A call that is larger than the limit goes alone, once the last minute is
empty.

The sums are kept by the second, so memory is bounded, and a minute is counted up to a second too long.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_SECONDS: Final = 60

_BYTES_PER_TOKEN: Final = 4

_FIRST_COMPLETION: Final = 256.0
"""The tokens of a response to reserve before the first one has arrived."""

_WEIGHT: Final = 0.1
"""Of the last response in the mean."""


class Reservation(NamedTuple):
    """What a call has reserved.

    Attributes:
        second: when.
        tokens: how many.
    """

    second: int
    tokens: int


class TokenWindow:
    """The tokens of a model's calls in the last minute."""

    __slots__ = ("_completion", "_has_settled", "_sums", "_total")

    def __init__(self) -> None:
        self._sums: dict[int, int] = {}  # by second, in order
        self._total = 0
        self._completion = _FIRST_COMPLETION
        self._has_settled = False

    def estimate(self, size: int, max_tokens: int | None) -> int:
        """Return how many tokens a call will need.

        Args:
            size: of its request, in bytes.
            max_tokens: the most its response can have, which providers reserve, too; None for no limit.
        """
        return max(1, size // _BYTES_PER_TOKEN + (max_tokens or round(self._completion)))

    def ask(self, now: float, tokens: int, limit: int) -> float:
        """Return when a call may go: up to `now` means now, later not before that time.

        Args:
            now: the present time in seconds.
            tokens: how many it reserves.
            limit: tokens per minute.
        """
        self._forget(now)
        left = self._total
        if left + tokens <= limit or not left:
            return now
        for second, amount in self._sums.items():
            left -= amount
            if left + tokens <= limit or not left:
                return float(second + 1 + _SECONDS)
        raise AssertionError("unreachable")

    def reserve(self, now: float, tokens: int) -> Reservation:
        """Reserve the tokens of a call that goes now."""
        self._forget(now)
        second = int(now // 1)
        self._sums[second] = self._sums.get(second, 0) + tokens
        self._total += tokens
        return Reservation(second, tokens)

    def settle(self, reservation: Reservation, tokens: int) -> None:
        """Replace what a call has reserved with what it has used."""
        second, reserved = reservation
        if second in self._sums:
            self._sums[second] += tokens - reserved
            self._total += tokens - reserved

    def answered(self, completion_tokens: int) -> None:
        """Learn how many tokens a response has."""
        weight = _WEIGHT if self._has_settled else 1.0
        self._completion += (completion_tokens - self._completion) * weight
        self._has_settled = True

    def _forget(self, now: float) -> None:
        sums = self._sums
        while sums:
            second = next(iter(sums))
            if second + 1 + _SECONDS > now:
                return
            self._total -= sums.pop(second)

    def __repr__(self) -> str:
        return f"<TokenWindow: {self._total:,} in the last minute>"
