"""The arguments of a batch, checked once for the async and the sync client."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias, cast

from omnigate._batch.enough import StopAfterFailures, check_stop_after_failures
from omnigate._batch.items import BatchSource, check_ids, check_source
from omnigate._batch.pace.link import PacerLink
from omnigate._batch.pace.signs import seconds_at_limit
from omnigate._batch.progress import ProgressArgument, check_progress
from omnigate._batch.recipe import PromptArgument, Recipe
from omnigate._calls.structured import RESPONSE_RETRIES, ResponseFormat, check_response_type
from omnigate._wire.arguments import check_user_id
from omnigate._wire.checks import (
    a_type,
    check_bool,
    check_integer,
    check_not_async,
    check_not_awaitable,
    check_number,
    refusal,
)
from omnigate._wire.options import CallOptions, ChatDefaults, check_options
from omnigate._wire.values import Id, Integer, Number
from omnigate.exceptions import AuthError, BudgetExceededError, GatewayError

StopOn: TypeAlias = type[GatewayError] | tuple[type[GatewayError], ...] | Callable[[GatewayError], bool]
"""Types of errors, or a predicate, that end a batch. `BatchOptions` says which errors they are applied to."""

STOP_ON: Final = (AuthError, BudgetExceededError)

MAX_WAIT_SECONDS: Final = 3_600.0

_STOP_CALLABLE: Final = "a callable that takes an error and returns whether to stop"


class BatchSettings(ChatDefaults, total=False):
    """Arguments shared by `chat_many` and `batch`, on top of `ChatDefaults`.

    Attributes:
        model: model of items that name none.
        prompt: how a row becomes messages: a template with its fields in braces, or a callable.
        id: the field that identifies a row.
        max_concurrency: calls in flight at the same time, at least 1; "auto" adapts it to what the provider
            can serve.
        journal: path of a file that records outcomes; a later run resumes from it.
        journal_lock: False to use the journal without a lock, on a file system that has none.
        progress: True for a live display (needs the extra `cli`), or a callable called with `BatchStats`
            several times a second.
        max_wait_seconds: how long an item may wait in all, in seconds above 0: for the rate limit, the
            provider and the end of outages.
        stop_after_failures: end the batch after so many failed items (an integer), at such a share of them
            (a float, at most 1), never (None), or when the first twenty fail alike ("auto").
        dedupe: whether to call equal requests only once.
        max_cost_usd: end the batch before it spends more, in USD above 0; None for no limit.
        max_tokens_total: end the batch before it uses more tokens, at least 1; None for no limit.
        max_seconds: end the batch after so many seconds, above 0; None for no limit.
        tokens_per_minute: the provider's limit for a model, at least 1; None for no limit.
        pacer: the way to a pacer that shares the rate limit among several processes; None for none.
        user_id: the end user, overriding the client's; "" for none. At most 255 Latin-1 characters.
        response_retries: how often to ask again for a response that does not fit `response_type`.

    """

    model: str | None
    prompt: PromptArgument | None
    id: str | None
    max_concurrency: Integer | Literal["auto"]
    journal: str | os.PathLike[str] | None
    journal_lock: bool
    progress: ProgressArgument
    max_wait_seconds: Number
    stop_after_failures: StopAfterFailures
    dedupe: bool
    max_cost_usd: Number | None
    max_tokens_total: Integer | None
    max_seconds: Number | None
    tokens_per_minute: Integer | None
    pacer: PacerLink | None
    user_id: Id | None
    response_retries: Integer


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """The checked arguments of `client.batch`, and which errors end it.

    Each failure is judged once. The gateway's own 429 is judged by `stops_at_limit` as it arrives: the batch
    waits it out, unless that takes too long or `stop_on` names its type. Any other failure is judged by
    `stops` once it has ended its item. A callable `stop_on` is thus called once for each failed item, and
    never for the gateway's own 429.

    Attributes:
        response_format: of the responses, by `response_type`; None for any text.

    Raises:
        InvalidArgumentError: an argument is invalid.
    """

    requests: BatchSource
    recipe: Recipe = field(default_factory=Recipe)
    max_concurrency: int | Literal["auto"] = "auto"
    ordered: bool = False
    stop_on: StopOn = STOP_ON
    journal: str | os.PathLike[str] | None = None
    journal_lock: bool = True
    replay: bool = True
    progress: ProgressArgument = False
    max_wait_seconds: float = MAX_WAIT_SECONDS
    stop_after_failures: StopAfterFailures = "auto"
    dedupe: bool = False
    max_cost_usd: float | None = None
    max_tokens_total: int | None = None
    max_seconds: float | None = None
    tokens_per_minute: int | None = None
    pacer: PacerLink | None = None
    user_id: str | None = None
    response_type: Any = None
    response_retries: int = RESPONSE_RETRIES
    response_format: ResponseFormat[Any] | None = field(init=False)
    call_options: CallOptions
    method: str = "AsyncClient.batch"

    def __post_init__(self) -> None:
        check_source(self.requests, is_sync=False)
        self.recipe.check(self.requests)
        checked: dict[str, object] = {}
        if self.max_concurrency != "auto":
            checked["max_concurrency"] = check_integer(
                self.max_concurrency, "max_concurrency", minimum=1, otherwise=", or 'auto'"
            )
        for name in ("ordered", "replay", "dedupe"):
            checked[name] = check_bool(getattr(self, name), name)
        self._check_stop_on()
        self._check_journal()
        check_bool(self.journal_lock, "journal_lock")
        check_progress(self.progress)
        checked["max_wait_seconds"] = check_number(self.max_wait_seconds, "max_wait_seconds", above=0)
        check_stop_after_failures(self.stop_after_failures)
        for name in ("max_cost_usd", "max_seconds"):
            if getattr(self, name) is not None:
                checked[name] = check_number(getattr(self, name), name, above=0, otherwise=", or None")
        for name in ("max_tokens_total", "tokens_per_minute"):
            if getattr(self, name) is not None:
                checked[name] = check_integer(getattr(self, name), name, minimum=1, otherwise=", or None")
        given: object = self.pacer
        if given is not None and (isinstance(given, type) or not isinstance(given, PacerLink)):
            must = "be a PacerLink, as those of omnigate.distributed, or None"
            raise refusal("pacer", given, must, is_type=True, got=a_type(given))
        checked["user_id"] = check_user_id(self.user_id)
        checked["response_format"] = check_response_type(self.response_type)
        checked["response_retries"] = check_integer(self.response_retries, "response_retries", minimum=0)
        check_options(self.call_options, self.method)
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    @property
    def has_caps(self) -> bool:
        """Whether the batch may only spend so much."""
        return (self.max_cost_usd, self.max_tokens_total, self.max_seconds) != (None, None, None)

    def stops_at_limit(self, error: GatewayError, seconds: float) -> bool:
        """Return whether the gateway's own 429, with this wait in seconds, ends the batch."""
        stop_on = self.stop_on
        return seconds > self.max_wait_seconds or (
            isinstance(stop_on, type | tuple) and isinstance(error, stop_on)
        )

    def stops(self, error: GatewayError) -> bool:
        """Return whether the error of a failed item ends the batch."""
        if seconds_at_limit(error) is not None:
            return True  # `stops_at_limit` has said so already
        stop_on = self.stop_on
        if isinstance(stop_on, type | tuple):
            return isinstance(error, stop_on)
        answer = stop_on(error)
        check_not_awaitable(answer, "stop_on")
        return answer

    def _check_stop_on(self) -> None:
        given: object = self.stop_on
        if callable(given) and not isinstance(given, type):
            check_not_async(given, "stop_on", _STOP_CALLABLE)
            return
        kinds = cast("tuple[object, ...]", given) if isinstance(given, tuple) else (given,)
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                must = f"be a type of errors, a tuple of such types, or {_STOP_CALLABLE}"
                raise refusal("stop_on", given, must, is_type=True)

    def _check_journal(self) -> None:
        given: object = self.journal
        if given is not None or self.recipe.id is not None:
            check_ids(self.requests, self.recipe.id)
        if given is None:
            return
        if not isinstance(given, str | os.PathLike):
            raise refusal("journal", given, "be a path, or None", is_type=True)
        if not os.fspath(given):
            raise refusal("journal", given, "be a path that is not empty, or None")
