"""Placeholder until the adaptive limit lands."""


class AdaptiveConcurrency:
    """A fixed limit."""

    limit: int = 64

    def succeeded(self, now: float, latency: float, in_flight: int) -> None:
        """Do nothing."""

    def overloaded(self, now: float, sent_at: float) -> None:
        """Do nothing."""
