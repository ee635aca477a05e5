"""The results of `chat_many`, in the order of the items. Answers that were paid for are never thrown away."""

from __future__ import annotations

from typing import cast

from omnigate._batch.journal.journal import JournalWarning
from omnigate._batch.options import STOP_ON, StopOn
from omnigate._batch.outcomes import Outcome
from omnigate._runtime.frames import warn
from omnigate._wire.checks import check_bool
from omnigate.exceptions import GatewayError, JournalError
from omnigate.models import ChatResponse


class Answers:
    """Collects the results of a batch and puts them in order.

    Attributes:
        return_exceptions: whether errors are returned, not raised.
        stop_on: the batch's. If errors are raised, the first one ends the batch anyway.
        is_complete: whether each item has its result.
    """

    def __init__(self, return_exceptions: bool) -> None:
        self.return_exceptions = check_bool(return_exceptions, "return_exceptions")
        self.stop_on: StopOn = STOP_ON if return_exceptions else ()
        self.is_complete = False
        self._by_index: dict[int, ChatResponse | GatewayError] = {}

    def add(self, outcome: Outcome) -> None:
        """Add an outcome.

        Raises:
            GatewayError: the item failed, and errors are to be raised.

        """
        error = outcome.error if self.return_exceptions else None
        self._by_index[outcome.index] = outcome.unwrap() if error is None else error

    def fill(self, error: GatewayError, count: int) -> None:
        """Put the error that ended the batch in the places that have no result.

        Args:
            error: the error.
            count: how many items there are.

        Raises:
            GatewayError: every item has a result, and the error is not one of them. A `JournalError` is only
                a warning then.
        """
        is_told = any(answer is error for answer in self._by_index.values())
        for index in range(count):
            is_told |= self._by_index.setdefault(index, error) is error
        if not is_told:
            self.is_complete = True
            if not isinstance(error, JournalError):
                raise error
            self.warn_of(error)

    def warn_of(self, error: JournalError) -> None:
        """Warn of a journal that failed; raise its error if there are items without a result."""
        if not self.is_complete:
            raise error
        warn(str(error), JournalWarning)

    def in_order(self) -> list[ChatResponse] | list[ChatResponse | GatewayError]:
        """Return the results in the order of the items."""
        answers = [self._by_index[index] for index in range(len(self._by_index))]
        return cast("list[ChatResponse]", answers)
