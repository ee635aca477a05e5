"""Equal requests of a batch with `dedupe=True`: called once, and every item gets its outcome.

The first item with a request is called. Equal items that are read while it is in flight wait for it, without
a slot; later ones get their outcome immediately. Its failure is theirs, too. A request is recognised by its
digest, that of the journal.

Memory: with a journal, a digest and an id for each distinct request, since the journal has the responses;
without one, the responses are kept until the batch ends.

A response that is handed out again has cost nothing, so its cost and tokens are 0: the sum over all outcomes
is what was billed.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

from omnigate._batch.items import Item
from omnigate._batch.journal.lines import digest_of
from omnigate._batch.outcomes import Outcome
from omnigate._batch.record import Record
from omnigate._calls.structured import ResponseFormat, complete
from omnigate.exceptions import GatewayError
from omnigate.models import ChatRequest, ChatResponse, Usage


class Repeat(NamedTuple):
    """An item whose request is that of an earlier one.

    Attributes:
        item: the item.
        digest: of its request, for the journal.
        read_at: when it was read, by the event loop's clock.
    """

    item: Item
    digest: str
    read_at: float


class Repeats:
    """Knows the requests of a batch, and how those that have ended did.

    Args:
        record: the batch's.
        format: of the responses, or None.
    """

    def __init__(self, record: Record, format: ResponseFormat[Any] | None) -> None:
        self._record = record
        self._format = format
        self._waiting: dict[bytes, list[Repeat]] = {}  # for the first item with that request, in flight
        self._firsts: dict[int, bytes] = {}  # the requests in flight, by the index of their first item
        self._ended: dict[bytes, ChatResponse | GatewayError | str] = {}  # text: an id in the journal

    def find(self, repeat: Repeat) -> ChatResponse | GatewayError | None:
        """Return how the request of an item has ended before; None if it has not.

        Raises:
            JournalError: another program has changed the journal.
        """
        ended = self._ended.get(_key(repeat.item.request, repeat.digest))
        if isinstance(ended, str):
            ended = self._record.response_of(ended)
        return self._again(ended) if isinstance(ended, ChatResponse) else ended

    def has_joined(self, repeat: Repeat) -> bool:
        """Let an item wait for the equal one in flight; return False if there is none: it is called."""
        key = _key(repeat.item.request, repeat.digest)
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.append(repeat)
            return True
        self._waiting[key] = []
        self._firsts[repeat.item.index] = key
        return False

    def replayed(self, item: Item, digest: str) -> None:
        """Register a success of an earlier run."""
        self._ended[_key(item.request, digest)] = item.id

    def ended(
        self, outcome: Outcome, *, is_recorded: bool
    ) -> list[tuple[Repeat, ChatResponse | GatewayError]]:
        """Register how an item has ended; return the items that have waited for it, with their results.

        Args:
            outcome: the item's.
            is_recorded: whether it is in the journal.
        """
        key = self._firsts.pop(outcome.index, None)
        if key is None:  # it was not called
            return []
        waiting = self._waiting.pop(key)
        response, error = outcome.response, outcome.error
        if response is None:
            assert error is not None
            self._ended[key] = error
            return [(repeat, error) for repeat in waiting]
        self._ended[key] = outcome.id if is_recorded else self._again(response)
        return [(repeat, self._again(response)) for repeat in waiting]

    def _again(self, response: ChatResponse) -> ChatResponse:
        """Return a response for another item, which it costs nothing."""
        again = copy.copy(response)
        again.usage, again.cost_usd = Usage(), 0.0
        if self._format is not None:
            complete(again, self._format.read(response.content))
        return again


def _key(request: ChatRequest | None, digest: str) -> bytes:
    assert request is not None
    return bytes.fromhex(digest or digest_of(request))
