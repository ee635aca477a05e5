"""This wing schedules, cancels and waits: its tests run on every event loop, and fail where our code blocks it."""

from ..support.event_loops import every_event_loop as anyio_backend
from ..support.event_loops import nothing_blocks

__all__ = ["anyio_backend", "nothing_blocks"]
