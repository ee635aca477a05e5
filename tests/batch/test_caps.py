"""`max_cost_usd`, `max_tokens_total` and `max_seconds`: a batch that may only spend so much."""

from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import pytest

import omnigate
from omnigate import AsyncClient, BatchLimitError, ChatResponse, Client, Outcome

from ..support.provider import Provider
from ..support.scripted import chat_answer

MODEL = "gpt-4o-mini"

virtual = [pytest.mark.anyio, pytest.mark.virtual_time]


class Billing(Provider):
    """Bills each answer: "cost=C" in its prompt in USD, else 0.25, and three tokens. An answer takes a second, or "sleep=S"."""

    async def _answer(self, prompt: str) -> httpx.Response:
        words = dict(word.partition("=")[::2] for word in prompt.split())
        await anyio.sleep(float(words.get("sleep", 1)))
        if "status" in words:
            return self.error(int(words["status"]))
        answer = chat_answer(content=prompt, cost_usd=float(words.get("cost", 0.25)))
        answer.headers.update(self.headers)
        return answer


def client_of(provider: Provider) -> AsyncClient:
    return AsyncClient("llmg_x", base_url="http://gateway.test", transport=provider, retries=0)


async def run(
    provider: Provider, items: Any, **arguments: Any
) -> tuple[list[Outcome], BatchLimitError | None]:
    """Run a batch to its end; return its outcomes, and the error of the limit it has reached."""
    outcomes: list[Outcome] = []
    async with client_of(provider).batch(items, model=MODEL, **arguments) as batch:
        try:
            async for outcome in batch:
                outcomes.append(outcome)
        except BatchLimitError as error:
            return outcomes, error
    return outcomes, None


class TestReached:
    pytestmark = virtual

    async def test_no_item_is_started_that_would_pass_max_cost_usd(self) -> None:
        provider = Billing()
        outcomes, error = await run(provider, map(str, range(1_000)), max_cost_usd=2.6)
        assert len(outcomes) == len(provider.prompts) == 10
        assert all(outcome.error is None for outcome in outcomes)
        assert error is not None
        assert (error.limit, error.cost_usd, error.total_tokens, error.ended) == ("max_cost_usd", 2.5, 30, 10)
        assert str(error) == (
            "the batch ended at max_cost_usd=2.6: 10 items were called, for 2.5 USD and 30 tokens in "
            f"{error.seconds:.1f} s, and another would pass the limit; to go on, run it again with the items that "
            "have no outcome (or a journal)"
        )

    @pytest.mark.parametrize(("limit", "items"), [(1.0, 10), (0.3, 3), (0.7, 7)])
    async def test_a_limit_may_be_spent_to_the_last_cent(self, limit: float, items: int) -> None:
        provider = Billing()
        outcomes, error = await run(provider, ["cost=0.1"] * 11, max_cost_usd=limit)
        assert (len(outcomes), len(provider.prompts)) == (items, items)
        assert error is not None

    async def test_answers_of_the_gateways_cache_do_not_lower_the_expected_cost(self) -> None:
        items = ["cost=0"] * 9 + ["cost=0.5"] * 9
        _, error = await run(Billing(), items, max_cost_usd=1.2, max_concurrency=1)
        assert error is not None
        assert (error.cost_usd, error.ended) == (1.0, 11)

    async def test_no_item_is_started_that_would_pass_max_tokens_total(self) -> None:
        provider = Billing()
        outcomes, error = await run(provider, map(str, range(1_000)), max_tokens_total=100)
        assert len(outcomes) == len(provider.prompts) == 33
        assert error is not None
        assert (error.limit, error.total_tokens) == ("max_tokens_total", 99)
        assert "max_tokens_total=100: 33 items" in str(error)

    async def test_items_are_called_one_at_a_time_until_the_first_cost_is_known(self) -> None:
        provider = Billing()
        await run(provider, map(str, range(100)), max_cost_usd=1_000, max_concurrency=50)
        first, second, *_ = provider.times
        assert second - first >= 1
        assert provider.most_in_flight == 50

    async def test_an_item_that_does_not_fit_with_those_in_flight_waits_until_they_have_ended(self) -> None:
        provider = Billing()  # the first is dear: nothing but the others' real costs lets all of them run
        items = ["cost=1", *["cost=0.01"] * 100]
        outcomes, error = await run(provider, items, max_cost_usd=2.5)
        assert (len(outcomes), error) == (101, None)

    async def test_what_is_in_flight_is_handed_out_when_a_limit_is_reached(self) -> None:
        provider = Billing()
        items = ["cost=0.1", *["cost=5"] * 3, *["cost=0.1"] * 50]
        outcomes, error = await run(provider, items, max_cost_usd=0.5, max_concurrency=4)
        assert len(outcomes) == len(provider.prompts)
        assert error is not None
        assert error.cost_usd == pytest.approx(sum(outcome.unwrap().cost_usd for outcome in outcomes))

    async def test_failures_that_were_not_billed_do_not_let_more_items_start(self) -> None:
        provider = Billing()
        await run(provider, ["status=400 x"] * 5 + ["y"] * 20, max_cost_usd=2, max_concurrency=20)
        assert provider.prompts.count("y") == 8
        assert provider.times[4] - provider.times[0] >= 4

    async def test_answers_that_do_not_fit_their_type_count_towards_the_limit(self) -> None:
        class Named(msgspec.Struct):
            name: str

        provider = Billing()
        outcomes, error = await run(
            provider, ["x"] * 50, max_cost_usd=2, response_type=Named, response_retries=1, max_concurrency=1
        )
        assert [len(outcome.error.billed) for outcome in outcomes if outcome.error is not None] == [2] * 4
        assert error is not None
        assert (error.cost_usd, len(provider.prompts)) == (2, 8)

    async def test_an_item_that_waited_while_the_limit_was_reached_is_not_sent(self) -> None:
        provider = Billing(x_ratelimit_limit="2", x_ratelimit_remaining="0", x_ratelimit_reset="60")
        items = ["cost=0.1", "cost=5 sleep=90", "cost=0.1", "cost=0.1"]
        outcomes, error = await run(provider, items, max_cost_usd=1)
        assert len(outcomes) == len(provider.prompts)
        assert error is not None

    async def test_a_batch_that_ends_within_its_limits_raises_nothing(self) -> None:
        items = [str(n) for n in range(10)]
        outcomes, error = await run(
            Billing(), items, max_cost_usd=2.5, max_tokens_total=30, max_seconds=100, ordered=True
        )
        assert ([outcome.index for outcome in outcomes], error) == (list(range(10)), None)

    async def test_answers_without_a_cost_are_not_called_one_at_a_time(self) -> None:
        provider = Billing()
        outcomes, error = await run(provider, ["cost=0"] * 100, max_cost_usd=0.01, max_concurrency=50)
        assert (len(outcomes), provider.most_in_flight, error) == (100, 50, None)


class TestTime:
    pytestmark = virtual

    async def test_no_item_is_started_that_would_end_after_max_seconds(self) -> None:
        provider = Billing()
        outcomes, error = await run(provider, map(str, range(1_000)), max_seconds=10.5, max_concurrency=2)
        assert len(outcomes) == len(provider.prompts) == 19  # the first alone
        assert error is not None
        assert error.limit == "max_seconds"
        assert error.seconds == pytest.approx(10, abs=0.1)

    async def test_max_seconds_ends_a_batch_that_waits_for_the_rate_window(self) -> None:
        provider = Provider(x_ratelimit_limit="1", x_ratelimit_remaining="0", x_ratelimit_reset="60")
        outcomes, error = await run(provider, map(str, range(1_000)), max_seconds=90)
        assert len(outcomes) == len(provider.prompts) == 2
        assert error is not None
        assert 80 <= error.seconds <= 91

    async def test_max_seconds_ends_a_batch_whose_source_yields_nothing(self) -> None:
        async def never() -> Any:
            yield "one"
            await anyio.sleep_forever()

        outcomes, error = await run(Provider(), never(), max_seconds=30)
        assert (len(outcomes), error is not None and round(error.seconds)) == (1, 30)

    async def test_a_batch_whose_last_calls_end_after_max_seconds_is_complete(self) -> None:
        items = ["sleep=0.1", "a", "b", "c"]
        outcomes, error = await run(Billing(), items, max_seconds=0.9, max_concurrency=3)
        assert (len(outcomes), error) == (4, None)


class TestGoingOn:
    pytestmark = virtual

    async def test_a_run_with_the_journal_goes_on_and_counts_only_what_it_spends_itself(
        self, tmp_path: Path
    ) -> None:
        journal, provider, items = tmp_path / "journal.jsonl", Billing(), [str(n) for n in range(7)]
        found = [await run(provider, items, journal=journal, max_cost_usd=0.75) for _ in range(3)]
        assert [len(outcomes) for outcomes, _ in found] == [3, 6, 7]
        assert [sum(outcome.replayed for outcome in outcomes) for outcomes, _ in found] == [0, 3, 6]
        assert [error is None for _, error in found] == [False, False, True]
        assert "to go on, run it again with the same journal" in str(found[0][1])
        assert sorted(provider.prompts) == items

    async def test_successes_in_the_journal_are_replayed_after_a_limit_is_reached(
        self, tmp_path: Path
    ) -> None:
        journal, provider = tmp_path / "journal.jsonl", Billing()
        await run(provider, [{"id": "last", "messages": "last"}], journal=journal)
        items = [{"id": name, "messages": name} for name in ("a", "b", "last", "c")]
        outcomes, error = await run(provider, items, journal=journal, max_cost_usd=0.5, ordered=True)
        assert [outcome.id for outcome in outcomes] == ["a", "b", "last"]
        assert error is not None
        assert error.cost_usd == 0.5


class TestChatMany:
    pytestmark = virtual

    async def test_chat_many_raises_the_limits_error(self) -> None:
        with pytest.raises(BatchLimitError, match="max_cost_usd=0.5: 2 items"):
            await client_of(Billing()).chat_many(["x"] * 10, model=MODEL, max_cost_usd=0.5)

    async def test_chat_many_returns_the_limits_error_in_place_of_items_that_were_not_started(self) -> None:
        answers = await client_of(Billing()).chat_many(
            ["x"] * 10, model=MODEL, max_tokens_total=9, return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [ChatResponse] * 3 + [BatchLimitError] * 7


def test_the_sync_client_takes_the_limits() -> None:
    with Client("llmg_x", base_url="http://gateway.test", transport=Provider()) as client:
        with pytest.raises(BatchLimitError, match="max_tokens_total=6: 2 items"):
            with client.batch(["x"] * 5, model=MODEL, max_tokens_total=6) as batch:
                assert len(list(batch)) == 2
        with pytest.raises(BatchLimitError):
            client.chat_many(["x"] * 5, model=MODEL, max_tokens_total=6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_cost_usd": 0}, "max_cost_usd must be a finite number above 0, or None, got 0"),
        ({"max_cost_usd": -1.5}, "max_cost_usd must be a finite number above 0, or None, got -1.5"),
        ({"max_cost_usd": float("nan")}, "max_cost_usd must be a finite number above 0, or None, got nan"),
        ({"max_cost_usd": "5"}, "max_cost_usd must be a finite number above 0, or None, got '5'"),
        ({"max_tokens_total": 0}, "max_tokens_total must be an integer of at least 1, or None, got 0"),
        ({"max_tokens_total": 1.5}, "max_tokens_total must be an integer of at least 1, or None, got 1.5"),
        ({"max_seconds": 0}, "max_seconds must be a finite number above 0, or None, got 0"),
        ({"max_seconds": True}, "max_seconds must be a finite number above 0, or None, got True"),
    ],
)
def test_a_wrong_limit_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(omnigate.InvalidArgumentError) as raised:
        client_of(Provider()).batch([], **arguments)
    assert str(raised.value) == message
