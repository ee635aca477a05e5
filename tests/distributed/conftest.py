"""This wing waits for others: its tests fail where our code blocks the event loop."""

from ..support.event_loops import nothing_blocks

__all__ = ["nothing_blocks"]
