"""Results of a batch: an `Outcome` for each item, and `BatchStats` for the whole."""

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NoReturn, TypeAlias

import msgspec

from omnigate import _homes
from omnigate._batch.spending import Spending
from omnigate._data.cells import plain_cell, plain_row
from omnigate._wire.money import Usd
from omnigate._wire.results import Parsed, ParsedT_co
from omnigate.exceptions import GatewayError
from omnigate.models import ChatRequest, ChatResponse

_RATE_SECONDS: Final = 30

_FORECAST_SECONDS: Final = 300  # longer, so that the time left does not jump with each rate window


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
        item: the row or dict that the item was, with all of its fields; None for other items.

    """

    index: int
    id: str
    request: ChatRequest | None
    response: ChatResponse | None = None
    error: GatewayError | None = None
    attempts: int = 0
    elapsed: float = 0.0
    replayed: bool = False
    item: Mapping[str, Any] | None = None

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

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as a dict of values that JSON has, nested ones included.

        Its keys are the attributes. `request` and `response` are dicts of their fields or None; `response`
        has the `request_id`, too. `error` is None or a dict with `type`, `message`, `request_id`, and, where
        it has them, `status_code`, `detail`, `retry_after`, `provider` and `provider_status`.
        """
        response, error = self.response, self.error
        made: dict[str, Any] = {
            "index": self.index,
            "id": self.id,
            "request": None if self.request is None else self.request.model_dump(mode="json"),
            "response": None,
            "error": None if error is None else _dict_of(error),
            "attempts": self.attempts,
            "elapsed": self.elapsed,
            "replayed": self.replayed,
            "item": None if self.item is None else msgspec.to_builtins(plain_row(self.item)),
        }
        if response is not None:
            made["response"] = {**response.model_dump(mode="json"), "request_id": request_id_of(self)}
        return made


def request_id_of(outcome: Outcome) -> str | None:
    """Return the id of the request that an outcome comes from, if it is known."""
    if outcome.error is not None:
        return outcome.error.request_id
    meta = getattr(outcome.response, "_meta", None)
    return None if meta is None else meta.request_id


def _dict_of(error: GatewayError) -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": type(error).__name__,
        "message": str(error),
        "request_id": error.request_id,
    }
    for name in ("status_code", "detail", "retry_after", "provider", "provider_status"):
        if (value := getattr(error, name, None)) is not None:
            made[name] = msgspec.to_builtins(plain_cell(value))
    return made


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
        failures: items that failed, by the name of their error's type.
        total: how many items there are; None if that is not known, or not yet. Known from the start for
            files, tables, and sources with a length.
        seconds_left: about how long the rest takes, at the speed of the last five minutes; None if unknown.
        projected_cost_usd: about what this run costs in the end, in USD, if the rest costs as much for each
            item as those that ended in this run; None if unknown.
        journal_tokens: all tokens of all responses in the journal, earlier runs included; None without one.
        journal_cost_usd: their cost, in USD; None without a journal.
        reading_percent: how much of the journal has been read, while it is read; else None.
        counted: how many rows of the input have been counted, while they are, before the start; else None.

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
    failures: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    total: int | None = None
    seconds_left: float | None = None
    projected_cost_usd: float | None = None
    journal_tokens: int | None = None
    journal_cost_usd: float | None = None
    reading_percent: float | None = None
    counted: int | None = None

    def __post_init__(self) -> None:
        for name in ("cost_usd", "projected_cost_usd", "journal_cost_usd"):
            if type(value := getattr(self, name)) is float:
                msgspec.structs.force_setattr(self, name, Usd(value))

    @property
    def percent(self) -> float | None:
        """How much has ended, as a percentage of all items; None if their number is not known."""
        if self.total is None:
            return None
        ended = self.succeeded + self.failed + self.replayed
        return min(100.0, 100 * ended / self.total) if self.total else 100.0


def billed_answers(outcome: Outcome) -> Sequence[ChatResponse]:
    """Return the answers that an outcome's cost is of: its response, or those before its error."""
    if outcome.response is not None:
        return (outcome.response,)
    return outcome.error.billed if outcome.error is not None else ()


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
        self._failures: Counter[str] = Counter()
        self._spent = Spending()
        self._recent: deque[list[float]] = deque(maxlen=_FORECAST_SECONDS)  # [second, items ended in it]
        self._last: list[float] = [-math.inf, 0]  # of these

    def add(self, outcome: Outcome, read_at: float) -> None:
        """Count an outcome of this run, of an item that was read at that time."""
        response = outcome.response
        if response is not None:
            self.succeeded += 1
            self._spent.add(response.usage, response.cost_usd)
        else:
            self.failed += 1
            self._failures[type(outcome.error).__name__] += 1
            for answer in billed_answers(outcome):
                self._spent.add(answer.usage, answer.cost_usd)
        second = (read_at + outcome.elapsed) // 1
        if self._last[0] != second:
            self._last = [second, 0]
            self._recent.append(self._last)
        self._last[1] += 1

    def stats(
        self,
        *,
        in_flight: int,
        waiting_until: datetime | None,
        waiting_for: Literal["rate window", "provider", "token limit", "outage", "concurrency"] | None = None,
        rejections: int = 0,
        retries: int = 0,
        concurrency_limits: dict[str, float] | None = None,
        total: int | None = None,
        waits_in_journal: int = 0,
        journal: Spending | None = None,
        reading_percent: float | None = None,
        counted: int | None = None,
    ) -> BatchStats:
        """Return the current numbers, with those that others count.

        Args:
            in_flight: calls in flight.
            waiting_until: when the next request may go.
            waiting_for: what it waits for.
            rejections: responses with status 429.
            retries: how many times items were sent again.
            concurrency_limits: by model.
            total: how many items there are.
            waits_in_journal: how many of them are successes in the journal that were not reached yet.
            journal: what the responses in the journal have used.
            reading_percent: how much of the journal has been read.
            counted: how many rows have been counted, while they are.
        """
        rate = self._rate(_RATE_SECONDS)
        spent = self._spent
        cost_usd = spent.cost_usd
        seconds_left = projected_cost_usd = None
        if total is not None:
            ended = self.succeeded + self.failed
            left = max(0, total - ended - self.replayed - waits_in_journal)
            pace = self._rate(_FORECAST_SECONDS)
            if left == 0 or pace:
                seconds_left = left / pace if left else 0.0
            if left == 0 or ended:
                projected_cost_usd = cost_usd * (ended + left) / ended if left else cost_usd
        return BatchStats(
            succeeded=self.succeeded,
            failed=self.failed,
            replayed=self.replayed,
            in_flight=in_flight,
            calls_per_second=rate,
            prompt_tokens=spent.prompt_tokens,
            completion_tokens=spent.completion_tokens,
            total_tokens=spent.total_tokens,
            cost_usd=cost_usd,
            waiting_until=waiting_until,
            waiting_for=waiting_for,
            rejections=rejections,
            retries=retries,
            concurrency_limits=concurrency_limits or {},
            failures=dict(self._failures),
            total=total,
            seconds_left=seconds_left,
            projected_cost_usd=projected_cost_usd,
            journal_tokens=None if journal is None else journal.total_tokens,
            journal_cost_usd=None if journal is None else journal.cost_usd,
            reading_percent=reading_percent,
            counted=counted,
        )

    def _rate(self, seconds: int) -> float:
        """Return how many items ended per second, over about the last `seconds`."""
        now = self._clock()
        since = max(self._started, now - seconds)
        ended = sum(count for second, count in self._recent if second >= since - 1)
        return ended / max(now - since, 1.0)


_homes.settle(__name__)
