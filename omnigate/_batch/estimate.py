"""What a batch will cost, before it runs: counted from its items, the models' prices, and a sample.

Without a sample, prompts are counted by their bytes (`token_count`), and a response has between one token and
the item's `max_tokens`. With a sample, the means of its responses are extrapolated: tokens of prompts by the
size of these, the rest by the number of items. A range is then two standard errors on both sides, less if the
sample is a good part of the items, and empty if it is all of them.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import anyio.lowlevel
import msgspec
from msgspec.structs import force_setattr

from omnigate import _homes
from omnigate._batch.items import Item
from omnigate._batch.journal.lines import digest_of
from omnigate._batch.outcomes import Outcome
from omnigate._batch.source import END, Source
from omnigate._batch.token_count import prompt_tokens_of, size_of
from omnigate._calls.structured import ResponseFormat
from omnigate._wire.money import Usd
from omnigate._wire.redaction import shown
from omnigate.models import ChatRequest, ChatResponse, ModelPricing

_PROBLEMS_MAX: Final = 20

_CHECKPOINT_EVERY: Final = 256

_STANDARD_ERRORS: Final = 2.0

_ONE_ALONE: Final = 0.5
"""The share by which a sample of one item may be off."""

_WINDOW_SECONDS: Final = 60.0


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What `estimate` expects of a batch; ranges are (least, most).

    Attributes:
        items: how many items there are, but for the invalid ones.
        invalid: how many are invalid; they are not called.
        problems: why, for the first twenty, and then why items of the sample failed.
        prompt_tokens: tokens of all prompts.
        completion_tokens: tokens of all responses; the most is None if an item has no `max_tokens` and there
            was no sample.
        cost_usd: the cost in USD; the most is None as that of `completion_tokens`. None if it is not known.
        cost_unknown: why it is not known, or None.
        seconds: for how long the gateway's rate limit holds the batch back, without the time that its calls
            take; None if the limit is not known. The gateway tells it with each response.
        sampled: how many items of a sample succeeded.
        sample_cost_usd: what the sample has cost, in USD.

    """

    items: int
    invalid: int
    problems: tuple[str, ...]
    prompt_tokens: tuple[int, int]
    completion_tokens: tuple[int, int | None]
    cost_usd: tuple[float, float | None] | None
    cost_unknown: str | None
    seconds: float | None
    sampled: int = 0
    sample_cost_usd: float = 0.0

    def __post_init__(self) -> None:
        force_setattr(self, "sample_cost_usd", Usd(self.sample_cost_usd))
        if self.cost_usd is not None:
            low, high = self.cost_usd
            force_setattr(self, "cost_usd", (Usd(low), None if high is None else Usd(high)))

    @property
    def total_tokens(self) -> tuple[int, int | None]:
        """Tokens of prompts and responses."""
        most = self.completion_tokens[1]
        low = self.prompt_tokens[0] + self.completion_tokens[0]
        return low, None if most is None else self.prompt_tokens[1] + most


class _Load:
    """The items of one model."""

    __slots__ = ("completion_high", "items", "prompt_high", "prompt_low")

    def __init__(self) -> None:
        self.items = 0
        self.prompt_low = 0
        self.prompt_high = 0
        self.completion_high: int | None = 0  # None if an item has no limit


class Census:
    """Counts the items of a batch, and draws a sample of them.

    Args:
        read: parses a raw item at a position.
        format: of the responses, or None.
        sample: how many items to draw.
        dedupe: whether equal requests are called once.

    Attributes:
        items: how many were counted, but for the invalid ones.
        calls: how many of them are called.
        first: the first of them, or None.
        sample: those drawn.
    """

    def __init__(
        self,
        read: Callable[[object, int], Item],
        format: ResponseFormat[Any] | None,
        sample: int,
        *,
        dedupe: bool,
    ) -> None:
        self.items = 0
        self.calls = 0
        self.first: ChatRequest | None = None
        self.sample: list[ChatRequest] = []
        self._digests: set[bytes] | None = set() if dedupe else None
        self._read = read
        self._format = format
        self._most = sample
        self._random = random.Random(0)  # noqa: S311 - the same sample in every run
        self._invalid = 0
        self._problems: list[str] = []
        self._size = 0
        self._loads: dict[str, _Load] = {}

    def add(self, raw: object) -> None:
        """Count a raw item."""
        item = self._read(raw, self.items + self._invalid)
        request = item.request
        if request is None:
            self._invalid += 1
            if len(self._problems) < _PROBLEMS_MAX:
                self._problems.append(str(item.error))
            return
        self.items += 1
        if self._digests is not None:
            digest = bytes.fromhex(digest_of(request))
            if digest in self._digests:
                return
            self._digests.add(digest)
        self.calls += 1
        self.first = self.first or request
        if self._format is None:
            self._weigh(request)
        else:
            self._weigh(self._format.instruct(request))
        if len(self.sample) < self._most:
            self.sample.append(request)
        elif self._most:  # each item is drawn with the same probability (Vitter's algorithm R)
            place = self._random.randrange(self.calls)
            if place < self._most:
                self.sample[place] = request

    async def add_all(self, source: Source) -> None:
        """Count the items of a source, and close it; its exception is raised."""
        source.open()
        try:
            while (raw := await source.next(_without_pause)) is not END:
                self.add(raw)
                if source.count % _CHECKPOINT_EVERY == 0:
                    await anyio.lowlevel.checkpoint()
            if source.error is not None:
                raise source.error
        finally:
            await source.close()

    def _weigh(self, request: ChatRequest) -> None:
        size = size_of(request)
        low, high = prompt_tokens_of(request, size)
        load = self._loads.get(request.model)
        if load is None:
            load = self._loads[request.model] = _Load()
        self._size += size
        load.items += 1
        load.prompt_low += low
        load.prompt_high += high
        if request.max_tokens is None or load.completion_high is None:
            load.completion_high = None
        else:
            load.completion_high += request.max_tokens

    def estimate(
        self,
        prices: Mapping[str, ModelPricing | None],
        sample: Sequence[Outcome],
        rate_limit: int | None,
    ) -> Estimate:
        """Return the estimate.

        Args:
            prices: by model.
            sample: the outcomes of the sample.
            rate_limit: calls per minute, or None.
        """
        loads = self._loads.values()
        prompt = sum(load.prompt_low for load in loads), sum(load.prompt_high for load in loads)
        completion = self.calls, _sum_of(load.completion_high for load in loads)
        cost_usd, cost_unknown = self._cost(prices)
        successes = [outcome for outcome in sample if outcome.response is not None]
        responses = [outcome.unwrap() for outcome in successes]
        if responses:
            prompt = self._prompt_tokens(successes, responses)
            completion = self._extrapolate([response.usage.completion_tokens for response in responses])
            low, high = self._scaled([response.cost_usd for response in responses])
            cost_usd, cost_unknown = (low, high), None
        failures = [
            f"sample: item with the prompt {shown(outcome.request.messages[-1].content)}: {outcome.error}"
            for outcome in sample
            if outcome.error is not None and outcome.request is not None
        ]
        return Estimate(
            items=self.items,
            invalid=self._invalid,
            problems=(*self._problems, *failures[:_PROBLEMS_MAX]),
            prompt_tokens=prompt,
            completion_tokens=completion,
            cost_usd=cost_usd,
            cost_unknown=cost_unknown,
            seconds=None if not rate_limit else max(0, self.calls - 1) // rate_limit * _WINDOW_SECONDS,
            sampled=len(responses),
            sample_cost_usd=math.fsum(response.cost_usd for response in responses),
        )

    def _cost(
        self, prices: Mapping[str, ModelPricing | None]
    ) -> tuple[tuple[float, float | None] | None, str | None]:
        """Return the cost by the models' prices, or why it is not known."""
        low, high = 0.0, 0.0
        is_limited = True
        for model, load in self._loads.items():
            price = prices.get(model)
            if price is None:
                what = "has no price" if model in prices else "is not among the gateway's models"
                return None, f"{shown(model)} {what}"
            prompt_price, completion_price = price.input_per_1k_usd / 1000, price.output_per_1k_usd / 1000
            low += load.prompt_low * prompt_price + load.items * completion_price
            if load.completion_high is None:
                is_limited = is_limited and not completion_price
            else:
                high += load.completion_high * completion_price
            high += load.prompt_high * prompt_price
        return (low, high if is_limited else None), None

    def _prompt_tokens(
        self, outcomes: Sequence[Outcome], responses: Sequence[ChatResponse]
    ) -> tuple[int, int]:
        """Return between how many tokens all prompts have, by their bytes."""
        sizes = [size_of(outcome.request) for outcome in outcomes if outcome.request is not None]
        mean_size = statistics.fmean(sizes)
        if not mean_size:
            return self._extrapolate([response.usage.prompt_tokens for response in responses])
        ratio = statistics.fmean(response.usage.prompt_tokens for response in responses) / mean_size
        # The error of a ratio is that of what it leaves unexplained (Cochran, "Sampling Techniques", 6.4).
        errors = [
            response.usage.prompt_tokens - ratio * size
            for response, size in zip(responses, sizes, strict=True)
        ]
        middle = ratio * (self._size if self._format is None else self.calls * mean_size)
        spread = self._spread(errors, statistics.fmean(r.usage.prompt_tokens for r in responses)) * self.calls
        return math.floor(max(0.0, middle - spread)), math.ceil(middle + spread)

    def _extrapolate(self, values: Sequence[float]) -> tuple[int, int]:
        low, high = self._scaled(values)
        return math.floor(low), math.ceil(high)

    def _scaled(self, values: Sequence[float]) -> tuple[float, float]:
        """Return between which sums a value of all items has, by a sample of it."""
        mean = statistics.fmean(values)
        spread = self._spread(values, mean)
        return max(0.0, mean - spread) * self.calls, (mean + spread) * self.calls

    def _spread(self, values: Sequence[float], mean: float) -> float:
        """Return by how much the mean of all items may differ from that of a sample."""
        count = len(values)
        if count >= self.calls:
            return 0.0
        if count == 1:
            return _ONE_ALONE * mean
        error = statistics.stdev(values) / math.sqrt(count)
        return _STANDARD_ERRORS * error * math.sqrt(1 - count / self.calls)


def _sum_of(values: Iterable[int | None]) -> int | None:
    """Return a sum; None if one of the values is."""
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


async def _without_pause(func: Callable[..., Awaitable[Any]], *args: Any) -> tuple[Any]:
    return (await func(*args),)


_homes.settle(__name__)
