"""The results of `chat_many`, in the order of the items."""

from __future__ import annotations

from typing import cast

from omnigate._batch.outcomes import Outcome
from omnigate._wire.checks import check_bool
from omnigate.exceptions import GatewayError
from omnigate.models import ChatResponse


class Answers:
    """Collects the results of a batch and puts them in order."""

    def __init__(self, return_exceptions: bool) -> None:
        self._return_exceptions = check_bool(return_exceptions, "return_exceptions")
        self._by_index: dict[int, ChatResponse | GatewayError] = {}

    def add(self, outcome: Outcome) -> None:
        """Add an outcome.

        Raises:
            GatewayError: the item failed, and errors are to be raised.

        """
        error = outcome.error if self._return_exceptions else None
        self._by_index[outcome.index] = outcome.unwrap() if error is None else error

    def in_order(self) -> list[ChatResponse] | list[ChatResponse | GatewayError]:
        """Return the results in the order of the items."""
        answers = [self._by_index[index] for index in range(len(self._by_index))]
        return cast("list[ChatResponse]", answers)
