"""A served gateway with short windows, which counts what each window admits and rejects."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omnigate.testing import LocalGateway


class Meter:
    """The counts of a gateway's windows.

    Attributes:
        gateway: the gateway, served.
        limit: calls in a window.
        key: that has the limit.
    """

    def __init__(self, gateway: LocalGateway, limit: int, window_seconds: int) -> None:
        self.gateway = gateway
        self.limit = limit
        self.key = gateway.create_project(rate_limit_per_min=limit).api_key
        self._admitted: Counter[int] = Counter()
        self._rejected: Counter[int] = Counter()
        limiter = gateway._state.limiter
        admit = limiter.admit

        def metered(project_id: str, limit: int, now: float) -> Any:
            admission = admit(project_id, limit, now)
            counts = self._admitted if admission.allowed else self._rejected
            counts[int(now // window_seconds)] += 1
            return admission

        limiter.admit = metered  # type: ignore[method-assign]

    @property
    def client(self) -> dict[str, Any]:
        """The arguments of a client."""
        return {"api_key": self.key, "base_url": self.gateway.url}

    def reset(self) -> None:
        """Forget what was counted."""
        self._admitted.clear()
        self._rejected.clear()
        self.gateway.requests.clear()

    @property
    def rejections_per_window(self) -> float:
        """Rejected calls for each window in which there were calls."""
        return sum(self._rejected.values()) / len(self._admitted | self._rejected)

    @property
    def use(self) -> float:
        """How much of the limit was used, over all windows but the first and the last two, which are cut."""
        windows = range(min(self._admitted) + 1, max(self._admitted) - 1)
        assert len(windows) >= 2
        return sum(self._admitted[window] for window in windows) / (self.limit * len(windows))

    def prompts(self) -> Counter[str]:
        """Return how often each prompt was sent."""
        return Counter(
            json.loads(request.body)["messages"][-1]["content"] for request in self.gateway.requests
        )


@contextmanager
def metered_gateway(limit: int, window_seconds: int, latency_seconds: float) -> Iterator[Meter]:
    """Serve a gateway whose project may make so many calls in a window."""
    with LocalGateway(rate_window_seconds=window_seconds, latency_seconds=latency_seconds) as gateway:
        yield Meter(gateway, limit, window_seconds)
