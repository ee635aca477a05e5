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

    def add(self, usage: Usage, cost_usd: float, times: int = 1) -> None:
        """Add a response's; -1 times takes it away again."""
        self.prompt_tokens += times * usage.prompt_tokens
        self.completion_tokens += times * usage.completion_tokens
        self.total_tokens += times * usage.total_tokens
        self._cost.add(cost_usd, times)

    @property
    def cost_usd(self) -> float:
        """The cost in USD."""
        return self._cost.value()
