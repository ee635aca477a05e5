"""Results of a batch: an `Outcome` for each item, and `BatchStats` for the whole."""

from collections import deque
from collections.abc import Callable
from datetime import datetime
from types import GenericAlias
from typing import TYPE_CHECKING, Final, Generic, Literal, NoReturn, TypeAlias

import msgspec

from omnigate._calls.structured import spent
from omnigate._wire.results import Parsed, ParsedT_co
from omnigate.exceptions import GatewayError
from omnigate.models import ChatRequest, ChatResponse, Usage

_RATE_SECONDS: Final = 30


class Outcome(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """How one item of a batch ended: with a response, or with an error.

    Attributes:
        index: the item's place in the input, from 0.
        id: the item's id, else its index as text.
        request: the request; None if the item was not a valid one.
        response: the response, or None if the item failed.
        error: why it failed, or None.
        attempts: how many times it was sent, each ask counted; 0 if it was not valid. If replayed, in the run
            that sent it.
        elapsed: seconds from reading the item to its outcome, waits included. If replayed, in the run that
            sent it.
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

    if not TYPE_CHECKING:  # for annotations that are read at run time
        __class_getitem__ = classmethod(GenericAlias)

    def unwrap(self) -> ChatResponse:
        """Return the response, or raise the error.

        Raises:
            GatewayError: the item failed; this is `error`.

        """
        if self.response is None:
            assert self.error is not None
            raise self.error
        return self.response


if TYPE_CHECKING:

    class Succeeded(Outcome, Generic[ParsedT_co], frozen=True, kw_only=True):
        """An outcome without an error, for type checkers only: not a class at run time."""

        request: ChatRequest
        response: ChatResponse[ParsedT_co]  # pyright: ignore[reportGeneralTypeIssues] - never constructed
        error: None = None

        def unwrap(self) -> ChatResponse[ParsedT_co]: ...

    class Failed(Outcome, frozen=True, kw_only=True):
        """An outcome with an error, for type checkers only: not a class at run time."""

        response: None = None
        error: GatewayError  # pyright: ignore[reportGeneralTypeIssues] - never constructed

        def unwrap(self) -> NoReturn: ...

    OutcomeOf: TypeAlias = Succeeded[Parsed] | Failed
    AnyOutcome: TypeAlias = Succeeded | Failed
else:
    OutcomeOf = AnyOutcome = (
        Outcome  # the public `Outcome`: one class at run time, two for type checkers to narrow
    )


class BatchStats(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of a batch.

    Attributes:
        succeeded: items that succeeded in this run; replayed ones do not count.
        failed: items that failed.
        replayed: items found as successes in the journal, whether or not they were handed out again.
        in_flight: items being called, including those that wait between two attempts.
        calls_per_second: items completed per second, over about the last 30 s; replayed ones do not count.
        prompt_tokens: prompt tokens of all responses of this run, those that did not fit included.
        completion_tokens: completion tokens of the same responses.
        total_tokens: all tokens of the same responses.
        cost_usd: cost of the same responses, in USD.
        waiting_until: when (UTC) the next request may go, as far as is known; None if none is held back, or
            until a call ends.
        waiting_for: what the next request waits for: "rate window" (the gateway's limit), "provider" (which
            rejects more), "token limit" (`tokens_per_minute`), "outage", or "concurrency" (a free slot); None
            if it need not wait.
        rejections: responses with status 429, of the gateway or of others.
        retries: how many times items were sent again.
        concurrency_limits: by model, how many of its calls may be in flight; below 1 the share of the time
            that one is.

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
    waiting_for: Literal["rate window", "provider", "token limit", "outage", "concurrency"] | None = None
    rejections: int = 0
    retries: int = 0
    concurrency_limits: dict[str, float] = msgspec.field(default_factory=dict[str, float])


def words_of(counts: "BatchStats | Tally") -> list[str]:
    """Describe how many items ended, and how."""
    parts = [f"{counts.succeeded:,} done"]
    if counts.failed:
        parts.append(f"{counts.failed:,} failed")
    if counts.replayed:
        parts.append(f"{counts.replayed:,} from the journal")
    return parts


class Tally:
    """Counts how the items of a batch end."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Start counting; `clock` returns seconds."""
        self.succeeded: int = 0
        self.failed: int = 0
        self.replayed: int = 0
        self._clock = clock
        self._started = clock()
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._total_tokens = 0
        self._cost_usd = 0.0
        self._recent: deque[list[float]] = deque(maxlen=_RATE_SECONDS)  # [second, items ended in it]

    def add(self, outcome: Outcome) -> None:
        """Count an outcome of this run."""
        response, error = outcome.response, outcome.error
        if response is None:
            self.failed += 1
            if error is not None and error.billed:
                self._bill(*spent(error.billed))
        else:
            self.succeeded += 1
            self._bill(response.usage, response.cost_usd)
        second = self._clock() // 1
        if self._recent and self._recent[-1][0] == second:
            self._recent[-1][1] += 1
        else:
            self._recent.append([second, 1])

    def _bill(self, usage: Usage, cost_usd: float) -> None:
        self._prompt_tokens += usage.prompt_tokens
        self._completion_tokens += usage.completion_tokens
        self._total_tokens += usage.total_tokens
        self._cost_usd += cost_usd

    def stats(
        self,
        *,
        in_flight: int,
        waiting_until: datetime | None,
        waiting_for: Literal["rate window", "provider", "token limit", "outage", "concurrency"] | None = None,
        rejections: int = 0,
        retries: int = 0,
        concurrency_limits: dict[str, float] | None = None,
    ) -> BatchStats:
        """Return the current numbers, with those that others count."""
        now = self._clock()
        since = max(self._started, now - _RATE_SECONDS)
        ended = sum(count for second, count in self._recent if second >= since - 1)
        return BatchStats(
            succeeded=self.succeeded,
            failed=self.failed,
            replayed=self.replayed,
            in_flight=in_flight,
            calls_per_second=ended / max(now - since, 1.0),
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            total_tokens=self._total_tokens,
            cost_usd=self._cost_usd,
            waiting_until=waiting_until,
            waiting_for=waiting_for,
            rejections=rejections,
            retries=retries,
            concurrency_limits=concurrency_limits or {},
        )
