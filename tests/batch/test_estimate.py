"""`estimate`: what a batch will cost, before it runs."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import msgspec
import pytest

import omnigate
from omnigate import APIError, AsyncClient, AuthError, BatchLimitError, ChatRequest, Client, Estimate
from omnigate._batch.token_count import prompt_tokens_of, size_of

from ..support.provider import Provider
from ..support.scripted import chat_answer

MODEL = "gpt-4o-mini"

virtual = [pytest.mark.anyio, pytest.mark.virtual_time]

CARDS = [
    {"id": MODEL, "pricing": {"input_per_1k_usd": 1.0, "output_per_1k_usd": 10.0}},
    {"id": "free", "pricing": {"input_per_1k_usd": 0.0, "output_per_1k_usd": 0.0}},
    {"id": "unpriced", "pricing": None},
]


class Gateway(Provider):
    """Lists models, and bills a chat a token for each four letters of its prompt, ten for its response."""

    def __init__(self, **headers: str) -> None:
        super().__init__(**headers)
        self.listed = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            await anyio.lowlevel.checkpoint()
            self.listed += 1
            return httpx.Response(200, json={"object": "list", "data": CARDS})
        return await super().handle_async_request(request)

    async def _answer(self, prompt: str) -> httpx.Response:
        words = dict(word.partition("=")[::2] for word in prompt.split())
        await anyio.lowlevel.checkpoint()
        if "status" in words:
            return self.error(int(words["status"]))
        tokens = len(prompt) // 4
        usage = {"prompt_tokens": tokens, "completion_tokens": 10, "total_tokens": tokens + 10}
        cost = tokens / 1000 + float(words.get("more", 0.1))
        answer = chat_answer(content='{"name": "x"}', usage=usage, cost_usd=cost)
        answer.headers.update(self.headers)
        return answer


def client_of(gateway: Gateway) -> AsyncClient:
    return AsyncClient("llmg_x", base_url="http://gateway.test", transport=gateway, retries=0)


async def estimate(items: Any, gateway: Gateway | None = None, **arguments: Any) -> Estimate:
    return await client_of(gateway or Gateway()).estimate(items, **({"model": MODEL} | arguments))


class TestWithoutASample:
    pytestmark = virtual

    async def test_nothing_is_sent_but_the_question_for_the_prices(self) -> None:
        gateway = Gateway()
        await estimate(["a"] * 100, gateway)
        assert (gateway.prompts, gateway.listed) == ([], 1)

    async def test_tokens_and_cost_are_ranges_of_the_prompts_sizes_and_max_tokens(self) -> None:
        items = [{"prompt": "x" * 300, "max_tokens": 50}] * 10
        found = await estimate(items)
        assert (found.items, found.invalid, found.problems) == (10, 0, ())
        assert found.prompt_tokens == (10 * 61, 10 * 108)
        assert found.completion_tokens == (10, 500)
        assert found.total_tokens == (620, 1_580)
        assert found.cost_usd is not None
        assert found.cost_usd == pytest.approx((0.61 + 0.1, 1.08 + 5))
        assert (found.cost_unknown, found.sampled, found.sample_cost_usd) == (None, 0, 0)

    async def test_without_max_tokens_the_most_is_not_known(self) -> None:
        found = await estimate([{"prompt": "x", "max_tokens": 5}, "y"])
        assert (found.completion_tokens, found.total_tokens[1]) == ((2, None), None)
        assert found.cost_usd is not None
        assert found.cost_usd[1] is None

    async def test_a_model_whose_responses_are_free_needs_no_max_tokens(self) -> None:
        assert (await estimate(["x"], model="free")).cost_usd == (0, 0)

    @pytest.mark.parametrize(
        ("model", "reason"),
        [("unpriced", "'unpriced' has no price"), ("gpt-9", "'gpt-9' is not among the gateway's models")],
    )
    async def test_an_unknown_price_leaves_the_cost_unknown_and_says_why(
        self, model: str, reason: str
    ) -> None:
        found = await estimate(["x", {"prompt": "y", "model": model}])
        assert (found.cost_usd, found.cost_unknown) == (None, reason)
        assert found.prompt_tokens[0] > 0

    async def test_invalid_items_are_counted_with_their_reasons(self) -> None:
        found = await estimate(["x", 7, {"prompt": "y", "max_tokens": 0}] * 30)
        assert (found.items, found.invalid, len(found.problems)) == (30, 60, 20)
        assert found.problems[0].startswith("item 1 must be a ChatRequest")
        assert "max_tokens must be an integer of at least 1, got 0" in found.problems[1]

    async def test_equal_requests_are_counted_once_where_they_are_called_once(self) -> None:
        items = ["x" * 40, "y" * 40] * 50
        once, twice = await estimate(items, dedupe=True, max_tokens=5), await estimate(items, max_tokens=5)
        assert (once.items, twice.items) == (100, 100)
        assert (once.completion_tokens, twice.completion_tokens) == ((2, 10), (100, 500))
        assert once.cost_usd is not None
        assert twice.cost_usd is not None
        assert twice.cost_usd[0] == pytest.approx(50 * once.cost_usd[0])
        sampled = await estimate(items, dedupe=True, sample=9)
        assert (sampled.sampled, sampled.completion_tokens) == (2, (20, 20))

    async def test_items_that_could_not_be_sent_are_invalid(self) -> None:
        found = await estimate(["\ud800", "x"], sample=1)
        assert (found.items, found.invalid, found.sampled) == (1, 1, 1)
        assert "messages[0].content" in found.problems[0]

    async def test_amounts_are_shown_as_money(self) -> None:
        found = await estimate(["x", "more=0.00000003 " + "y" * 4], sample=2)
        assert found.cost_usd is not None
        small = msgspec.structs.replace(found, cost_usd=(1.5e-05, 3e-05), sample_cost_usd=8e-05)
        assert "cost_usd=(0.000015, 0.00003)" in repr(small)
        assert "sample_cost_usd=0.00008" in repr(small)
        assert f"{small.cost_usd}" == "(0.000015, 0.00003)"

    async def test_a_batch_without_items_costs_nothing(self) -> None:
        found = await estimate([], sample=5)
        assert (found.items, found.prompt_tokens, found.completion_tokens) == (0, (0, 0), (0, 0))
        assert (found.cost_usd, found.seconds) == ((0, 0), None)

    async def test_the_schema_of_a_response_type_counts_as_part_of_each_prompt(self) -> None:
        class Named(msgspec.Struct):
            name: str

        plain, typed = await estimate(["x"]), await estimate(["x"], response_type=Named)
        assert typed.prompt_tokens[0] > plain.prompt_tokens[1]

    async def test_the_time_is_known_once_the_gateway_has_told_its_limit(self) -> None:
        client = client_of(Gateway(x_ratelimit_limit="10", x_ratelimit_remaining="9", x_ratelimit_reset="60"))
        assert (await client.estimate(["x"] * 25, model=MODEL)).seconds is None
        await client.chat_many(["x"], model=MODEL)
        assert (await client.estimate(["x"] * 25, model=MODEL)).seconds == 120
        assert (await client.estimate(["x"] * 10, model=MODEL)).seconds == 0

    async def test_files_and_async_sources_are_counted(self, tmp_path: Path) -> None:
        path = tmp_path / "items.jsonl"
        path.write_text('{"prompt": "x"}\n' * 5)

        async def items() -> Any:
            for n in range(7):
                yield str(n)

        assert (await estimate(path)).items == 5
        assert (await estimate(items())).items == 7

    async def test_an_exception_of_the_source_is_raised(self) -> None:
        def items() -> Iterator[str]:
            yield "x"
            raise LookupError("broken source")

        with pytest.raises(LookupError, match="broken source"):
            await estimate(items())


class TestSample:
    pytestmark = virtual

    async def test_a_sample_is_sent_and_extrapolated(self) -> None:
        gateway = Gateway(x_ratelimit_limit="10", x_ratelimit_remaining="9", x_ratelimit_reset="60")
        items = ["x" * (100 + n % 50) for n in range(1_000)]
        found = await estimate(items, gateway, sample=10)
        assert len(gateway.prompts) == found.sampled == 10
        real = sum(len(item) // 4 for item in items)
        assert found.prompt_tokens[0] <= real <= found.prompt_tokens[1] <= real * 1.1
        assert found.completion_tokens == (10_000, 10_000)
        assert found.cost_usd is not None
        assert found.cost_usd[0] <= real / 1000 + 100 <= (found.cost_usd[1] or 0)
        assert found.sample_cost_usd == pytest.approx(sum(len(p) // 4 for p in gateway.prompts) / 1000 + 1)
        assert found.seconds == 99 * 60

    async def test_a_sample_is_spread_over_the_items(self) -> None:
        gateway = Gateway()
        await estimate([str(n) for n in range(1_000)], gateway, sample=20)
        assert sum(int(prompt) >= 500 for prompt in gateway.prompts) in range(4, 17)

    async def test_a_sample_of_all_items_leaves_no_range(self) -> None:
        found = await estimate(["x" * 40, "more=0.5"], sample=10)
        assert (found.sampled, found.prompt_tokens, found.completion_tokens) == (2, (12, 12), (20, 20))
        assert found.cost_usd == pytest.approx((0.612, 0.612))

    async def test_a_sample_of_one_is_uncertain(self) -> None:
        found = await estimate(["x" * 40] * 10, sample=1)
        assert (found.prompt_tokens, found.completion_tokens) == ((50, 150), (50, 150))

    async def test_a_sample_gives_the_cost_of_models_without_a_price(self) -> None:
        found = await estimate(["x" * 40] * 10, model="unpriced", sample=2)
        assert (found.cost_usd, found.cost_unknown) == (pytest.approx((1.1, 1.1)), None)

    async def test_failures_of_the_sample_are_among_the_problems(self) -> None:
        found = await estimate(["status=500"] * 5, sample=2)
        assert (found.sampled, found.completion_tokens) == (0, (5, None))
        assert len(found.problems) == 2
        assert found.problems[0] == "sample: item with the prompt 'status=500': [500] OpenAI error 500: oops"

    async def test_a_wrong_key_is_raised(self) -> None:
        with pytest.raises(AuthError):
            await estimate(["status=401"], sample=1)

    async def test_the_limits_of_the_batch_apply_to_its_sample(self) -> None:
        with pytest.raises(BatchLimitError, match="max_tokens_total"):
            await estimate(["x"] * 100, sample=50, max_tokens_total=50)

    async def test_the_journal_is_left_alone(self, tmp_path: Path) -> None:
        journal = tmp_path / "journal.jsonl"
        await estimate(["x"] * 3, sample=3, journal=journal)
        assert not await anyio.Path(journal).exists()


def rows_file(folder: Path, more: str = "") -> Path:
    path = folder / "rows.csv"
    rows = "".join(f"k{n},{'x' * (50 + n)}\n" for n in range(40))
    path.write_text(f"key,text\n{rows}{more}")
    return path


AS_ITEMS = [{"prompt": "Sum up: " + "x" * (50 + n), "max_tokens": 50} for n in range(40)]
FROM_ROWS: dict[str, Any] = {"prompt": "Sum up: {text}", "id": "key", "max_tokens": 50}


def estimate_sync(items: Any, gateway: Gateway | None = None, **arguments: Any) -> Estimate:
    transport = gateway or Gateway()
    with Client("llmg_x", base_url="http://gateway.test", transport=transport, retries=0) as client:
        return client.estimate(items, **({"model": MODEL} | arguments))


async def estimate_in_thread(items: Any, gateway: Gateway | None = None, **arguments: Any) -> Estimate:
    return await anyio.to_thread.run_sync(partial(estimate_sync, items, gateway, **arguments))


@pytest.mark.anyio
@pytest.mark.parametrize("estimate", [estimate, estimate_in_thread], ids=["async", "sync"])
class TestData:
    @pytest.mark.parametrize("sample", [0, 5])
    async def test_rows_of_a_file_are_estimated_as_the_requests_that_they_become(
        self, tmp_path: Path, estimate: Any, sample: int
    ) -> None:
        gateway = Gateway()
        found = await estimate(rows_file(tmp_path), gateway, sample=sample, **FROM_ROWS)
        assert found == await estimate(AS_ITEMS, sample=sample)
        assert (found.items, found.invalid, len(gateway.prompts)) == (40, 0, sample)
        assert all(prompt.startswith("Sum up: xxx") for prompt in gateway.prompts)

    @pytest.mark.blocks  # an open text file is read where its batch reads it
    async def test_rows_of_a_frame_and_of_an_open_file_are_estimated(
        self, tmp_path: Path, estimate: Any
    ) -> None:
        pandas = pytest.importorskip("pandas")
        path = rows_file(tmp_path)
        expected = await estimate(AS_ITEMS)
        assert await estimate(pandas.read_csv(path), **FROM_ROWS) == expected
        with path.open(newline="") as file:
            assert await estimate(file, **FROM_ROWS) == expected

    async def test_rows_that_cannot_be_sent_are_counted_with_their_places(
        self, tmp_path: Path, estimate: Any
    ) -> None:
        found = await estimate(rows_file(tmp_path, "k40,a,b\n"), **FROM_ROWS)
        assert (found.items, found.invalid) == (40, 1)
        assert found.problems == ("rows.csv, row 41 (line 42): has 3 fields, the header has 2",)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"prompt": "{txt}"}, "prompt names the column 'txt', which"),
            ({}, "each row must have an id of its own, got 'k7' in rows.csv, row 8 and in rows.csv, row 41"),
        ],
    )
    async def test_what_is_wrong_with_data_is_raised_before_the_gateway_is_asked_for_prices(
        self, tmp_path: Path, estimate: Any, arguments: dict[str, Any], message: str
    ) -> None:
        gateway = Gateway()
        with pytest.raises(omnigate.InvalidArgumentError, match=message):
            await estimate(rows_file(tmp_path, "k7,again\n"), gateway, sample=5, **(FROM_ROWS | arguments))
        assert (gateway.prompts, gateway.listed) == ([], 0)


@pytest.mark.anyio
async def test_an_error_of_the_gateway_is_raised() -> None:
    class Broken(Gateway):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await anyio.lowlevel.checkpoint()
            return self.error(404)

    with pytest.raises(APIError):
        await estimate(["x"], Broken())


def test_the_sync_client_estimates_what_the_async_one_does(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps({"prompt": "x" * n, "max_tokens": 5}) + "\n" for n in range(1, 30)))
    gateway = Gateway()
    with Client("llmg_x", base_url="http://gateway.test", transport=gateway) as client:
        found = client.estimate(path, model=MODEL)
        assert found == anyio.run(estimate, path)
        assert (found.items, gateway.prompts) == (29, [])
        assert client.estimate(iter(["x" * 4] * 9), model=MODEL, sample=3).completion_tokens == (90, 90)
        with pytest.raises(omnigate.InvalidArgumentError, match="requests must be"):
            client.estimate("text", model=MODEL)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("The quick brown fox jumps over the lazy dog.", 10),
        ("Der schnelle braune Fuchs springt über den faulen Hund.", 16),
        ("def main(arguments: list[str]) -> int:\n    return len(arguments)\n", 15),
        ("素早い茶色の狐がのろまな犬を飛び越える。", 20),
        ("Быстрая бурая лиса перепрыгивает через ленивую собаку.", 20),
    ],
)
def test_the_tokens_of_a_text_are_within_the_range(text: str, tokens: int) -> None:
    request = ChatRequest(model=MODEL, messages=text)
    low, high = prompt_tokens_of(request, size_of(request))
    assert low <= tokens + 4 <= high


def test_text_that_cannot_be_encoded_has_a_size() -> None:
    assert (
        size_of(
            ChatRequest.model_construct(
                model=MODEL, messages=[omnigate.Message(role="user", content="\ud800")]
            )
        )
        == 3
    )


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample": -1}, "sample must be an integer of at least 0, got -1"),
        ({"sample": 1.5}, "sample must be an integer of at least 0, got 1.5"),
        ({"max_cost_usd": 0}, "max_cost_usd must be a finite number above 0, or None, got 0"),
        ({"ordered": True}, "AsyncClient.estimate"),
    ],
)
async def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(omnigate.InvalidArgumentError) as raised:
        await estimate([], **arguments)
    assert str(raised.value).startswith(message)
