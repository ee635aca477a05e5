"""Races between models, and hedged calls."""

from typing import Any

import anyio
import httpx
import pytest

from omnigate import (
    AsyncClient,
    AuthError,
    GatewayError,
    InvalidArgumentError,
    ProviderError,
    RaceError,
    TimeoutError,
)

from ..support.cancellation import cancelled_at_every_checkpoint
from ..support.scripted import chat_answer, error_answer

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


class Models(httpx.AsyncBaseTransport):
    """Answer each model after its number of seconds, or fail after them if the number is negative."""

    def __init__(self, *seconds: float, **models: float) -> None:
        self.by_model = models
        self.by_call = list(seconds)
        self.begun: list[float] = []
        self.in_flight = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        content = (await request.aread()).decode()
        named = [seconds for model, seconds in self.by_model.items() if f'"model":"{model}"' in content]
        seconds = named[0] if named else self.by_call[len(self.begun)]
        self.begun.append(anyio.current_time())
        self.in_flight += 1
        try:
            await anyio.sleep(abs(seconds))
            if seconds < 0:
                return error_answer(400, f"OpenAI error 400: after {-seconds:g} s")(request)
            return chat_answer(content=f"{seconds:g}")
        finally:
            self.in_flight -= 1


def client_of(models: httpx.AsyncBaseTransport) -> AsyncClient:
    return AsyncClient("llmg_x", base_url="http://gateway.test", transport=models)


@pytest.mark.parametrize(
    ("seconds", "winner"),
    [
        ({"a": 3, "b": 1, "c": 2}, "1"),
        ({"a": -1, "b": 2}, "2"),
        ({"a": 2, "b": -1, "c": -1}, "2"),
        ({"a": 5}, "5"),
    ],
)
async def test_the_first_success_of_a_race_wins_and_the_others_are_cancelled(
    seconds: dict[str, float], winner: str
) -> None:
    models = Models(**seconds)
    start = anyio.current_time()
    answer = await client_of(models).race(models=list(seconds), messages="hi")
    assert answer.content == winner
    assert anyio.current_time() - start == float(winner)
    assert models.in_flight == 0


async def test_a_race_that_fails_lists_the_errors_in_the_order_of_the_models() -> None:
    with pytest.raises(RaceError, match="all 3 calls failed") as raised:
        await client_of(Models(a=-3, b=-1, c=-2)).race(models=["a", "b", "c"], messages="hi")
    assert isinstance(raised.value, GatewayError)
    assert [str(error) for error in raised.value.exceptions] == [
        f"[400] OpenAI error 400: after {n} s" for n in (3, 1, 2)
    ]
    with pytest.raises(ExceptionGroup):
        raise raised.value
    matched, rest = raised.value.split(AuthError)
    assert matched is None
    assert isinstance(rest, RaceError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": []}, r"models must be a list of at least one model, got \[\]"),
        ({"models": "gpt-4o"}, "models must be a list of models, got 'gpt-4o'"),
        ({"models": ["gpt-4o", ""]}, "model must be text of 1 to 128 printable Latin-1 characters, got ''"),
        ({"messages": []}, r"messages must have at least 1 item, got \[\]"),
        ({"temperature": 9}, "temperature must be between 0 and 2, got 9"),
    ],
)
async def test_bad_arguments_of_a_race_are_refused_before_anything_is_sent(
    arguments: dict[str, Any], message: str
) -> None:
    models = Models(1)
    with pytest.raises(InvalidArgumentError, match=message):
        await client_of(models).race(**{"models": ["a"], "messages": "hi", **arguments})
    assert models.begun == []


async def test_a_call_answered_before_hedge_after_is_not_hedged() -> None:
    models = Models(1)
    answer = await client_of(models).chat(model="gpt-4o", messages="hi", hedge_after=2)
    assert (answer.content, len(models.begun)) == ("1", 1)


async def test_a_slow_call_is_hedged_and_the_first_response_wins() -> None:
    models = Models(10, 1)
    start = anyio.current_time()
    answer = await client_of(models).chat(model="gpt-4o", messages="hi", hedge_after=2)
    assert answer.content == "1"
    assert anyio.current_time() - start == 3.0
    assert (len(models.begun), models.in_flight) == (2, 0)
    assert models.begun[1] - models.begun[0] == 2.0
    models = Models(3, 10)
    assert (await client_of(models).chat(model="gpt-4o", messages="hi", hedge_after=2)).content == "3"
    assert models.in_flight == 0


async def test_a_failure_before_the_hedge_is_final_and_after_it_leaves_the_other_copy() -> None:
    models = Models(-1)
    with pytest.raises(ProviderError, match="after 1 s"):
        await client_of(models).chat(model="gpt-4o", messages="hi", hedge_after=2)
    assert len(models.begun) == 1
    assert (await client_of(Models(-3, 2)).chat(model="gpt-4o", messages="hi", hedge_after=2)).content == "2"
    with pytest.raises(ProviderError, match="after 4 s"):
        await client_of(Models(-4, -1)).chat(model="gpt-4o", messages="hi", hedge_after=2)


async def test_both_copies_of_a_hedged_call_keep_its_deadline() -> None:
    models = Models(60, 60)
    start = anyio.current_time()
    with pytest.raises(TimeoutError):
        await client_of(models).chat(model="gpt-4o", messages="hi", hedge_after=0.75, deadline_seconds=1)
    assert anyio.current_time() - start == 1.0
    assert (len(models.begun), models.in_flight) == (2, 0)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "1", True])
async def test_a_bad_hedge_after_is_refused(value: Any) -> None:
    with pytest.raises(
        InvalidArgumentError, match="hedge_after must be a finite number of seconds above 0, or None, got "
    ):
        await client_of(Models(1)).chat(model="gpt-4o", messages="hi", hedge_after=value)


async def test_a_race_raises_an_unexpected_exception_unchanged() -> None:
    class Broken(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            raise LookupError("a bug")

    with pytest.raises(LookupError, match="a bug"):
        await client_of(Broken()).race(models=["a", "b"], messages="hi")


@pytest.mark.parametrize("kind", ["race", "hedge"])
async def test_a_race_cancelled_at_every_checkpoint_leaves_nothing_behind(kind: str) -> None:
    models = Models(*[1] * 10_000, **({"a": 1, "b": 2} if kind == "race" else {}))
    client = client_of(models)

    async def run() -> None:
        if kind == "race":
            await client.race(models=["a", "b"], messages="hi")
        else:
            await client.chat(model="gpt-4o", messages="hi", hedge_after=0.5)

    async for _ in cancelled_at_every_checkpoint(run, "scope"):
        assert models.in_flight == 0
