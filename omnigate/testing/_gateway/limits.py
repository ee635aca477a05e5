"""The local gateway's rate limiter and circuit breakers, sans-I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

BREAKER_FAILURES: Final = 5

BREAKER_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Admission:
    """The limiter's decision on a call, and the values for its headers."""

    allowed: bool
    limit: int
    remaining: int
    reset_seconds: int

    def headers(self) -> dict[str, str]:
        """Return the rate-limit headers."""
        return {
            "x-ratelimit-limit": str(self.limit),
            "x-ratelimit-remaining": str(self.remaining),
            "x-ratelimit-reset": str(self.reset_seconds),
        }


class RateLimiter:
    """Counts calls in fixed windows aligned to multiples of their length; rejected calls count, too."""

    def __init__(self, window_seconds: int) -> None:
        self._window_seconds = window_seconds
        self._counts: dict[str, tuple[int, int]] = {}

    def admit(self, project_id: str, limit: int, now: float) -> Admission:
        """Count a call at `now` and decide whether it may pass."""
        window = int(now // self._window_seconds)
        known, count = self._counts.get(project_id, (window, 0))
        count = count + 1 if known == window else 1
        self._counts[project_id] = (window, count)
        reset = self._window_seconds - math.floor(now - window * self._window_seconds)
        return Admission(count <= limit, limit, max(0, limit - count), max(1, reset))


class CircuitBreakers:
    """Blocks a provider for a project after consecutive transient failures, then lets one trial through."""

    def __init__(self) -> None:
        self._failures: dict[tuple[str, str], int] = {}
        self._open_until: dict[tuple[str, str], float] = {}

    def is_open(self, provider: str, project_id: str, now: float) -> bool:
        """Return whether calls are rejected; the first call after the pause is the trial."""
        key = (provider, project_id)
        until = self._open_until.get(key)
        if until is None:
            return False
        if now < until:
            return True
        self._open_until[key] = now + BREAKER_SECONDS  # rejects others during the trial
        return False

    def record(self, provider: str, project_id: str, now: float, *, failed: bool) -> None:
        """Record the outcome of a call; only transient failures count as failed."""
        key = (provider, project_id)
        if not failed:
            self._failures.pop(key, None)
            self._open_until.pop(key, None)
            return
        self._failures[key] = self._failures.get(key, 0) + 1
        if self._failures[key] >= BREAKER_FAILURES:
            self._open_until[key] = now + BREAKER_SECONDS
