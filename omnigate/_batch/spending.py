"""What answers have used: their tokens, and their cost without rounding errors."""

from __future__ import annotations

from omnigate._wire.money import Sum
from omnigate.models import Usage


class Spending:
    """Tokens and cost of a number of responses."""

    __slots__ = ("_cost", "completion_tokens", "prompt_tokens", "total_tokens")

    def __init__(self) -> None:
        self.prompt_tokens: int = 0
        self.completion_tokens: int = 0
        self.total_tokens: int = 0
        self._cost = Sum()

    def add(self, usage: Usage, cost_usd: float) -> None:
        """Add a response's."""
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.total_tokens += usage.total_tokens
        self._cost.add(cost_usd)

    def subtract(self, usage: Usage, cost_usd: float) -> None:
        """Take away what a response has added."""
        self.prompt_tokens -= usage.prompt_tokens
        self.completion_tokens -= usage.completion_tokens
        self.total_tokens -= usage.total_tokens
        self._cost.add(-cost_usd)

    @property
    def cost_usd(self) -> float:
        """The cost in USD."""
        return self._cost.value()
