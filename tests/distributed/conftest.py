"""This wing schedules, cancels and waits: its tests run on every event loop, and fail where our code blocks it."""

from collections.abc import Iterator

import pytest

from ..support.event_loops import every_event_loop as anyio_backend
from ..support.event_loops import nothing_blocks
from ..support.metered_gateway import Meter, metered_gateway

__all__ = ["anyio_backend", "nothing_blocks"]

LIMIT = 60
"""Calls in a window of `meter`."""

WINDOW_SECONDS = 3


@pytest.fixture
def meter() -> Iterator[Meter]:
    """Serve a gateway with a short window to the workers of an engine."""
    with metered_gateway(LIMIT, WINDOW_SECONDS, latency_seconds=0.05) as meter:
        yield meter


@pytest.fixture
def free() -> Iterator[Meter]:
    """Serve a gateway whose limit does not matter."""
    with metered_gateway(1_000_000, 60, latency_seconds=0.02) as meter:
        yield meter
