"""`stop_after_failures`: when failures are enough."""

from typing import Any

import pytest

import omnigate
from omnigate import APIError, AsyncClient, Client, TooManyFailuresError
from omnigate._batch.enough import Enough

from ..support.provider import Provider
from ..support.virtual_time import virtual_backend

MODEL = "gpt-4o-mini"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return virtual_backend(request.param)


def failure(status: int, message: str = "No provider registered for model 'x'") -> APIError:
    return APIError(message, status_code=status, detail=message)


SAME = failure(400)


@pytest.mark.parametrize(
    ("after", "errors", "stops_at"),
    [
        ("auto", [failure(400)] * 25, 20),
        ("auto", [failure(404)] * 25, 20),
        ("auto", [failure(422)] * 25, 20),
        ("auto", [None, *[SAME] * 40], None),
        ("auto", [*[SAME] * 19, None, *[SAME] * 40], None),
        ("auto", [*[SAME] * 19, failure(400, "other words"), *[SAME] * 40], None),
        ("auto", [failure(500)] * 40, None),
        ("auto", [failure(400, str(number)) for number in range(40)], None),
        (None, [SAME] * 40, None),
        (3, [None, SAME, None, failure(500), failure(502)], 5),
        (1, [SAME], 1),
        (0.5, [SAME] * 25, 20),
        (0.5, [SAME, None] * 15, 21),
        (0.5, [SAME, None, None] * 15, None),
        (1.0, [*[SAME] * 30, None], 20),
        (1.0, [None, *[SAME] * 30], None),
    ],
)
def test_failures_are_enough_as_stop_after_failures_says(
    after: Any, errors: list[APIError | None], stops_at: int | None
) -> None:
    enough = Enough(after)
    found = [number for number, error in enumerate(errors, 1) if enough.count(error) is not None]
    assert found == ([] if stops_at is None else [stops_at])


@pytest.mark.anyio
async def test_a_batch_ends_when_its_first_twenty_items_fail_alike_and_says_how_to_go_on() -> None:
    provider = Provider()
    outcomes = []
    async with AsyncClient("llmg_x", base_url="http://gateway.test", transport=provider) as client:
        with pytest.raises(TooManyFailuresError, match="stop_after_failures=None") as raised:
            async with client.batch([f"status=404 {n}" for n in range(20_000)], model=MODEL) as batch:
                async for outcome in batch:
                    outcomes.append(outcome)
    assert 20 <= len(outcomes) == len(provider.prompts) < 60
    assert (raised.value.failed, raised.value.ended) == (20, 20)
    assert isinstance(raised.value.__cause__, APIError)


@pytest.mark.anyio
async def test_stop_after_failures_none_lets_all_items_fail() -> None:
    async with AsyncClient("llmg_x", base_url="http://gateway.test", transport=Provider()) as client:
        answers = await client.chat_many(
            [f"status=404 {n}" for n in range(50)],
            model=MODEL,
            stop_after_failures=None,
            return_exceptions=True,
        )
    assert sum(isinstance(answer, APIError) for answer in answers) == 50


def test_the_sync_client_takes_stop_after_failures() -> None:
    with Client("llmg_x", base_url="http://gateway.test", transport=Provider()) as client:
        with pytest.raises(TooManyFailuresError):
            with client.batch(["status=400"] * 5, model=MODEL, stop_after_failures=2) as batch:
                assert [outcome.error is not None for outcome in batch].count(True) >= 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "stop_after_failures must be an integer of at least 1, got 0"),
        (True, "stop_after_failures must be"),
        (1.5, "stop_after_failures must be"),
        (0.0, "stop_after_failures must be"),
        (
            "never",
            "stop_after_failures must be a number of items, a share of them, 'auto', or None, got 'never'",
        ),
        ([], "stop_after_failures must be a number of items, a share of them, 'auto', or None"),
    ],
)
def test_a_wrong_stop_after_failures_is_refused(value: Any, message: str) -> None:
    client = AsyncClient("llmg_x", base_url="http://gateway.test", transport=Provider())
    with pytest.raises(omnigate.InvalidArgumentError) as raised:
        client.batch([], stop_after_failures=value)
    assert str(raised.value).startswith(message)
