"""Batches with `response_type`: asked again at the batch's pace, billed in its stats, resumed from its journal."""

import dataclasses
import datetime
import json
from collections import Counter
from pathlib import Path
from typing import Any, TypedDict

import anyio
import httpx
import msgspec
import pydantic
import pytest

from omnigate import (
    AsyncClient,
    ChatResponse,
    ClientClosedError,
    GatewayError,
    Outcome,
    ProviderError,
    ResponseFormatError,
    RetryConfig,
    TimeoutError,
    TooManyFailuresError,
)

from ..support.scripted import chat_answer

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

MODEL = "gpt-4o-mini"


class City(msgspec.Struct, frozen=True):
    name: str
    population: int = 0


class Town(msgspec.Struct, frozen=True):
    name: str
    mayor: str


class Answering(httpx.AsyncBaseTransport):
    """Answers an item's asks, by its prompt, with the texts given; the last one is repeated.

    A number in place of a text is a status, and a function is called and its result returned.
    """

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = answers
        self.asked: Counter[str] = Counter()
        self.times: list[float] = []
        self.headers: dict[str, str] = {}
        self.in_flight = self.most_in_flight = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        messages = json.loads(await request.aread())["messages"]
        prompt = next(message["content"] for message in messages if message["role"] == "user")
        answers = self.answers.get(prompt, [f'{{"name": "{prompt}"}}'])
        answer = answers[min(self.asked[prompt], len(answers) - 1)]
        self.asked[prompt] += 1
        self.times.append(anyio.current_time())
        self.in_flight += 1
        self.most_in_flight = max(self.in_flight, self.most_in_flight)
        try:
            await anyio.sleep(0.5)
            if callable(answer):
                answer = await answer()
        finally:
            self.in_flight -= 1
        if isinstance(answer, int):
            return httpx.Response(answer, json={"detail": f"OpenAI error {answer}: no"})
        found = chat_answer(content=answer, cost_usd=0.25)
        found.headers.update(self.headers)
        return found


def client_of(transport: httpx.AsyncBaseTransport, **arguments: Any) -> AsyncClient:
    arguments.setdefault("retry_config", RetryConfig(jitter=0))
    return AsyncClient("k" * 30, base_url="http://gateway.test", transport=transport, **arguments)


async def run(transport: Answering, items: Any, **arguments: Any) -> tuple[list[Outcome], Any]:
    arguments.setdefault("response_type", City)
    async with client_of(transport).batch(items, model=MODEL, ordered=True, **arguments) as batch:
        outcomes = [outcome async for outcome in batch]
    return outcomes, batch.stats


def lines_of(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_bytes().splitlines()]


async def test_every_item_of_a_batch_is_parsed() -> None:
    outcomes, stats = await run(Answering(), [f"city{n}" for n in range(50)])
    assert [outcome.unwrap().parsed for outcome in outcomes] == [City(f"city{n}") for n in range(50)]
    assert (stats.succeeded, stats.retries, stats.total_tokens) == (50, 0, 150)
    assert [message.role for message in outcomes[0].request.messages] == ["user"]


async def test_an_item_that_does_not_fit_is_asked_again_and_all_its_answers_are_billed() -> None:
    transport = Answering(b=["no", '{"name": 5}', '{"name": "b"}'])
    outcomes, stats = await run(transport, ["a", "b", "c"])
    assert [outcome.unwrap().parsed for outcome in outcomes] == [City("a"), City("b"), City("c")]
    assert [outcome.attempts for outcome in outcomes] == [1, 3, 1]
    response = outcomes[1].unwrap()
    assert (response.cost_usd, response.usage.total_tokens, response.meta.attempts) == (0.75, 9, 3)
    assert [rejected.content for rejected in response.rejected] == ["no", '{"name": 5}']
    assert (stats.succeeded, stats.failed, stats.retries) == (3, 0, 2)
    assert (stats.cost_usd, stats.total_tokens, stats.prompt_tokens, stats.completion_tokens) == (
        1.25,
        15,
        5,
        10,
    )


async def test_an_item_that_never_fits_fails_alone_and_is_billed() -> None:
    outcomes, stats = await run(Answering(b=["no"]), ["a", "b", "c"], response_retries=1)
    error = outcomes[1].error
    assert isinstance(error, ResponseFormatError)
    assert (error.text, len(error.billed), outcomes[1].attempts) == ("no", 2, 2)
    assert (stats.succeeded, stats.failed, stats.cost_usd, stats.total_tokens) == (2, 1, 1.0, 12)


async def test_items_that_do_not_fit_can_end_a_batch() -> None:
    with pytest.raises(ResponseFormatError):
        await run(Answering(b=["no"]), ["a", "b"], response_retries=0, stop_on=ResponseFormatError)
    with pytest.raises(TooManyFailuresError):
        await run(Answering(b=["no"]), ["b"] * 3, response_retries=0, stop_after_failures=2)


async def test_each_ask_waits_for_the_gateways_rate_window() -> None:
    transport = Answering(a=["no", '{"name": "a"}'])
    transport.headers = {"x-ratelimit-limit": "1", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "30"}
    await run(transport, ["a"])
    assert transport.times[1] - transport.times[0] >= 30


async def test_asks_stay_within_max_concurrency() -> None:
    items = [f"city{n}" for n in range(30)]
    transport = Answering(**{item: ["no", f'{{"name": "{item}"}}'] for item in items})
    outcomes, stats = await run(transport, items, max_concurrency=3)
    assert (transport.most_in_flight, stats.retries) == (3, 30)
    assert [outcome.unwrap().parsed for outcome in outcomes] == [City(item) for item in items]


async def test_each_ask_of_an_item_has_its_own_retries() -> None:
    transport = Answering(a=[500, "no", 500, 500, '{"name": "a"}'])
    outcomes, _ = await run(transport, ["a"])
    assert (outcomes[0].unwrap().parsed, outcomes[0].attempts) == (City("a"), 5)


async def test_an_error_while_an_item_is_asked_again_has_what_was_billed() -> None:
    outcomes, stats = await run(Answering(b=["no", 400]), ["a", "b"])
    error = outcomes[1].error
    assert isinstance(error, ProviderError)
    assert [answer.content for answer in error.billed] == ["no"]
    assert (stats.failed, stats.cost_usd) == (1, 0.5)


async def test_a_deadline_covers_all_asks_of_an_item() -> None:
    transport = Answering(a=["no"])
    outcomes, stats = await run(transport, ["a"], response_retries=99, deadline_seconds=2.25)
    assert isinstance(outcomes[0].error, TimeoutError)
    assert (len(transport.times), stats.cost_usd) == (5, 1.0)


async def test_a_deadline_ends_the_wait_for_the_next_ask() -> None:
    transport = Answering(a=["no"])
    transport.headers = {"x-ratelimit-limit": "1", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "30"}
    start = anyio.current_time()
    outcomes, _ = await run(transport, ["a"], deadline_seconds=5)
    assert isinstance(outcomes[0].error, TimeoutError)
    assert len(outcomes[0].error.billed) == 1
    assert anyio.current_time() - start < 10


async def test_an_item_out_of_patience_for_its_next_ask_fails_with_what_was_billed() -> None:
    transport = Answering(a=["no"])
    transport.headers = {"x-ratelimit-limit": "1", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "30"}
    outcomes, stats = await run(transport, ["a"], max_wait_seconds=5)
    error = outcomes[0].error
    assert isinstance(error, ResponseFormatError)
    assert "max_wait_seconds" in error.__notes__[0]
    assert (len(error.billed), stats.cost_usd) == (1, 0.25)


async def test_an_item_not_asked_again_because_the_batch_stopped_is_a_failure_that_was_billed() -> None:
    async def exhausted() -> str:
        transport.headers |= {"x-ratelimit-remaining": "0"}
        return "no"

    async def refused() -> int:
        await anyio.sleep(5)
        return 401

    transport = Answering(b=[exhausted], c=[refused])
    transport.headers = {"x-ratelimit-limit": "9", "x-ratelimit-remaining": "8", "x-ratelimit-reset": "30"}
    items = ["a", "b", "c"]
    batch = client_of(transport).batch(items, model=MODEL, response_type=City, stop_on=GatewayError)
    outcomes: list[Outcome] = []
    async with batch:
        with pytest.raises(ProviderError):
            async for outcome in batch:
                outcomes.append(outcome)
    failed = {outcome.id: outcome.error for outcome in outcomes}
    assert isinstance(failed["1"], ResponseFormatError)
    assert "stopped" in failed["1"].__notes__[0]
    assert (transport.asked, batch.stats.cost_usd) == ({"a": 1, "b": 1, "c": 1}, 0.5)


async def test_a_client_that_is_closed_while_an_item_asks_again_keeps_what_was_billed() -> None:
    transport = Answering(a=["no"])
    client = client_of(transport)

    async def close() -> str:
        await client.aclose()
        return "no"

    transport.answers["a"] = [close]
    async with client.batch(["a"], model=MODEL, response_type=City) as batch:
        [outcome] = [outcome async for outcome in batch]
    assert isinstance(outcome.error, ClientClosedError)
    assert len(outcome.error.billed) == 1


async def test_a_batch_that_is_left_while_an_item_asks_again_ends() -> None:
    transport = Answering(b=["no"])
    transport.headers = {"x-ratelimit-limit": "2", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "30"}
    with anyio.fail_after(20):
        async with client_of(transport).batch(["a", "b"], model=MODEL, response_type=City) as batch:
            await anext(batch)
    assert transport.in_flight == 0


async def test_a_bug_in_the_type_ends_the_batch_as_it_is() -> None:
    class Broken(msgspec.Struct):
        name: str

        def __post_init__(self) -> None:
            raise KeyError("bug")

    with pytest.raises(KeyError, match="bug"):
        await run(Answering(), ["a"], response_type=Broken)


async def test_the_requests_of_a_batch_have_the_schema_and_its_outcomes_the_request_as_given() -> None:
    outcomes, _ = await run(Answering(), [{"messages": [{"role": "user", "content": "a"}], "id": "x"}])
    assert len(outcomes[0].request.messages) == 1


# The journal


async def test_a_resumed_batch_parses_the_successes_of_its_journal(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    transport = Answering(b=["no", '{"name": "b"}'])
    await run(transport, ["a", "b"], journal=journal)
    outcomes, stats = await run(transport, ["a", "b"], journal=journal)
    assert [outcome.unwrap().parsed for outcome in outcomes] == [City("a"), City("b")]
    assert all(outcome.replayed for outcome in outcomes)
    assert [outcome.unwrap().cost_usd for outcome in outcomes] == [0.25, 0.5]
    assert (transport.asked, stats.cost_usd, stats.replayed) == ({"a": 1, "b": 2}, 0, 2)


@pytest.mark.parametrize("replay", [True, False])
async def test_a_success_in_the_journal_that_no_longer_fits_is_called_again(
    tmp_path: Path, replay: bool
) -> None:
    journal = tmp_path / "journal.jsonl"
    transport = Answering(
        a=['{"name": "a"}', '{"name": "a", "mayor": "x"}'], b=['{"name": "b", "mayor": "y"}']
    )
    await run(transport, ["a", "b"], journal=journal)
    outcomes, stats = await run(transport, ["a", "b"], journal=journal, response_type=Town, replay=replay)
    assert {outcome.id: outcome.replayed for outcome in outcomes} == (
        {"0": False} | ({"1": True} if replay else {})
    )
    assert outcomes[0].unwrap().parsed == Town("a", "x")
    assert (transport.asked, stats.replayed) == ({"a": 2, "b": 1}, 1)
    assert [json.loads(line["response"]["body"]["choices"][0]["message"]["content"])["mayor"] for line in lines_of(journal)] == ["y", "x"]  # fmt: skip
    outcomes, _ = await run(transport, ["a", "b"], journal=journal, response_type=Town)
    assert [outcome.unwrap().parsed for outcome in outcomes] == [Town("a", "x"), Town("b", "y")]


async def test_a_journal_can_be_resumed_without_the_type_and_with_it(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    transport = Answering()
    await run(transport, ["a"], journal=journal, response_type=None)
    outcomes, _ = await run(transport, ["a"], journal=journal)
    assert outcomes[0].unwrap().parsed == City("a")
    outcomes, _ = await run(transport, ["a"], journal=journal, response_type=None)
    assert outcomes[0].unwrap().parsed is None
    assert transport.asked == {"a": 1}


async def test_the_journal_records_what_a_failed_item_cost(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    transport = Answering(a=["no", "no", '{"name": "a"}'])
    await run(transport, ["a"], journal=journal, response_retries=1)
    [line] = lines_of(journal)
    assert line["error"]["code"] == "ResponseFormatError"
    assert line["omnigate"]["cost_usd"] == 0.5
    assert line["omnigate"]["usage"]["total_tokens"] == 6
    assert line["omnigate"]["attempts"] == 2
    outcomes, _ = await run(transport, ["a"], journal=journal)
    assert outcomes[0].unwrap().parsed == City("a")


# chat_many


async def test_chat_many_returns_parsed_responses() -> None:
    client = client_of(Answering(b=["no", '{"name": "b"}']))
    responses = await client.chat_many(["a", "b"], model=MODEL, response_type=City)
    assert [response.parsed for response in responses] == [City("a"), City("b")]


async def test_chat_many_raises_or_returns_the_error_of_what_never_fits() -> None:
    client = client_of(Answering(b=["no"]))
    with pytest.raises(ResponseFormatError):
        await client.chat_many(["a", "b"], model=MODEL, response_type=City, response_retries=0)
    first, second = await client.chat_many(
        ["a", "b"], model=MODEL, response_type=City, response_retries=0, return_exceptions=True
    )
    assert isinstance(first, ChatResponse)
    assert first.parsed == City("a")
    assert isinstance(second, ResponseFormatError)


class Model(pydantic.BaseModel):
    name: str
    founded: datetime.date | None = None


@dataclasses.dataclass
class Record:
    name: str


class Typed(TypedDict):
    name: str


@pytest.mark.parametrize("kind", ["pandas", "polars", "arrow"])
@pytest.mark.parametrize(
    ("response_type", "value"),
    [
        (City, {"name": "oslo", "population": 0}),
        (Model, {"name": "oslo", "founded": None}),
        (Record, {"name": "oslo"}),
        (Typed, {"name": "oslo"}),
    ],
)
async def test_a_frame_has_the_values_of_the_answers_in_a_column(
    kind: Any, response_type: Any, value: Any
) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("polars")
    rows = [{"city": "oslo", "parsed": "yes"}, {"city": "lima", "parsed": "no"}]
    client = client_of(Answering(lima=["prose"]))
    batch = client.batch(
        rows, prompt="{city}", model=MODEL, response_type=response_type, response_retries=0, ordered=True
    )
    frame = await batch.to_frame(kind)
    records = (
        frame.to_dict("records")
        if kind == "pandas"
        else getattr(frame, "to_dicts" if kind == "polars" else "to_pylist")()
    )
    first, second = records
    assert list(first)[:4] == ["city", "input_parsed", "parsed", "content"]
    assert (first["parsed"], first["input_parsed"]) == (value, "yes")
    assert (second["parsed"], second["input_parsed"]) == (None, "no")
    assert second["error"].startswith("ResponseFormatError: ")


async def test_a_table_without_response_type_has_no_column_of_values() -> None:
    pytest.importorskip("polars")
    frame = await client_of(Answering()).batch(["oslo"], model=MODEL).to_frame("polars")
    assert "parsed" not in frame.columns
