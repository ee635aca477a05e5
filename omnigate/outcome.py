"""What a batch hands out: an `Outcome` for each item, and `BatchStats` of the whole."""

from __future__ import annotations

from datetime import datetime

import msgspec

from omnigate.exceptions import GatewayError
from omnigate.models import ChatRequest, ChatResponse


class Outcome(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """How one item of a batch ended: with a response, or with an error.

    Attributes:
        index: the item's place in the input, from 0.
        id: the item's id, else its index as text.
        request: what was asked; None where the item was not a valid request.
        response: the answer, or None.
        error: why there is none, or None.
        attempts: how many times it was sent; 0 if it was not valid. Of a replayed one: in its own run.
        elapsed: seconds from the reading of the item to its end, all waits included. Likewise.
        replayed: whether the response comes from the journal of an earlier run.

    """

    index: int
    id: str
    request: ChatRequest | None
    response: ChatResponse | None = None
    error: GatewayError | None = None
    attempts: int = 0
    elapsed: float = 0.0
    replayed: bool = False

    def unwrap(self) -> ChatResponse:
        """Return the response.

        Raises:
            GatewayError: `error`, if there is none.

        """
        if self.response is None:
            assert self.error is not None
            raise self.error
        return self.response


class BatchStats(msgspec.Struct, frozen=True, kw_only=True):
    """Where a batch stands.

    Attributes:
        succeeded: items answered, without those replayed.
        failed: items that ended with an error.
        replayed: successes taken from the journal, whether or not they were handed out again.
        in_flight: items that were read and have not ended.
        calls_per_second: items ended a second, over the last half minute or so; replayed ones do not count.
        prompt_tokens: of all answers of this run.
        completion_tokens: likewise.
        total_tokens: likewise.
        cost_usd: likewise, in USD.
        waiting_until: until when (UTC) the gateway's rate limit holds all sends back; None if it does not.

    """

    succeeded: int = 0
    failed: int = 0
    replayed: int = 0
    in_flight: int = 0
    calls_per_second: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cost_usd: float = 0.0
    waiting_until: datetime | None = None
