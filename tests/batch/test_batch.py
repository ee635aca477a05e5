"""A batch over a transport in memory, in virtual time: one outcome per item, whatever happens."""

from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import anyio
import httpx
import pytest

import omnigate
from omnigate import (
    AsyncClient,
    AuthError,
    BudgetExceededError,
    GatewayError,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    NotStartedError,
    Outcome,
    ProviderError,
    RateLimitError,
    RetryConfig,
    TimeoutError,
)

from ..support.event_loops import without_debug
from ..support.provider import Provider
from ..support.scripted import ScriptedTransport, chat_answer, error_answer

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

MODEL = "gpt-4o-mini"


def client_of(provider: httpx.AsyncBaseTransport, **arguments: Any) -> AsyncClient:
    arguments.setdefault("retry_config", RetryConfig(jitter=0))
    return AsyncClient("llmg_x", base_url="http://gateway.test", transport=provider, **arguments)


async def outcomes_of(batch: omnigate.Batch) -> list[Outcome]:
    return [outcome async for outcome in batch]


def texts(outcomes: list[Outcome]) -> list[str]:
    return [outcome.unwrap().content for outcome in outcomes]


async def test_every_batch_item_has_exactly_one_outcome() -> None:
    provider = Provider()
    async with client_of(provider).batch((f"{n}" for n in range(500)), model=MODEL) as batch:
        outcomes = await outcomes_of(batch)
    assert sorted(outcome.index for outcome in outcomes) == list(range(500))
    assert all(outcome.unwrap().content == str(outcome.index) for outcome in outcomes)
    assert {outcome.id for outcome in outcomes} == {str(n) for n in range(500)}
    assert len(provider.prompts) == 500
    stats = batch.stats
    assert (stats.succeeded, stats.failed, stats.in_flight, stats.total_tokens) == (500, 0, 0, 1_500)
    assert stats.cost_usd == 0.002  # exactly


async def test_a_batch_of_an_empty_source_has_no_outcomes() -> None:
    async with client_of(Provider()).batch([]) as batch:
        assert await outcomes_of(batch) == []
    assert batch.stats == omnigate.BatchStats(total=0, seconds_left=0.0, projected_cost_usd=0.0)


@pytest.mark.parametrize("ordered", [False, True])
async def test_batch_outcomes_come_in_completion_order_or_in_source_order(ordered: bool) -> None:
    prompts = ["sleep=3 a", "sleep=1 b", "sleep=2 c", "d"]
    provider = Provider()
    async with client_of(provider).batch(prompts, model=MODEL, ordered=ordered, max_concurrency=4) as batch:
        outcomes = await outcomes_of(batch)
    indexes = [outcome.index for outcome in outcomes]
    # the first call of a fresh client goes alone, to learn the limit
    assert indexes == ([0, 1, 2, 3] if ordered else [0, 3, 1, 2])
    assert [outcome.elapsed for outcome in outcomes if outcome.index == 2] == [2.0]


async def test_the_first_call_of_a_batch_is_sent_alone() -> None:
    provider = Provider()
    prompts = [f"sleep=1 {n}" for n in range(9)]
    async with client_of(provider).batch(prompts, model=MODEL, max_concurrency=8) as batch:
        await outcomes_of(batch)
    assert provider.times.count(provider.times[0]) == 1
    assert provider.times[1] - provider.times[0] == 1.0
    assert provider.most_in_flight == 8


async def test_a_batch_has_at_most_max_concurrency_calls_in_flight() -> None:
    provider = Provider()
    async with client_of(provider).batch(
        (f"sleep=1 {n}" for n in range(50)), model=MODEL, max_concurrency=7
    ) as batch:
        await outcomes_of(batch)
    assert provider.most_in_flight == 7


async def test_a_batch_reads_its_source_no_faster_than_it_sends() -> None:
    provider = Provider()
    read: list[int] = []

    def source() -> Iterator[str]:
        for n in range(1_000):
            read.append(n)
            yield f"sleep=1 {n}"

    async with client_of(provider).batch(source(), model=MODEL, max_concurrency=5) as batch:
        async for outcome in batch:
            outcome.unwrap()
            assert len(read) <= len(provider.prompts) + 5 + 1  # some have not reached the transport yet
            if len(provider.answered) > 30:
                break


@without_debug
async def test_a_slow_consumer_holds_back_the_reading_of_the_source() -> None:
    provider = Provider()
    async with client_of(provider).batch(
        (f"{n}" for n in range(2_000)), model=MODEL, max_concurrency=10
    ) as batch:
        await anext(batch)
        await anyio.sleep(1_000)
        assert len(provider.prompts) < 100
        assert sorted([0, *[o.index for o in await outcomes_of(batch)]])[-1] == 1_999


async def test_a_batch_reads_and_closes_an_async_source() -> None:
    closed: list[str] = []

    async def source() -> AsyncIterator[str]:
        try:
            for n in range(100):
                await anyio.sleep(1)
                yield f"sleep=2 {n}"
        finally:
            closed.append("closed")

    async with client_of(Provider()).batch(source(), model=MODEL) as batch:
        assert len(await outcomes_of(batch)) == 100
    async with client_of(Provider()).batch(source(), model=MODEL) as batch:
        async for _ in batch:
            break
    assert closed == ["closed", "closed"]


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_source_exception_is_raised_unchanged_after_the_calls_in_flight(kind: str) -> None:
    def source() -> Iterator[str]:
        yield "0"
        yield "sleep=5 once=500 1"
        yield "sleep=3 2"
        raise LookupError("no more")

    async def async_source() -> AsyncIterator[str]:
        for prompt in source():
            await anyio.lowlevel.checkpoint()
            yield prompt

    seen: list[int] = []
    with pytest.raises(LookupError, match="no more"):
        async with client_of(Provider()).batch(
            source() if kind == "sync" else async_source(), model=MODEL, max_concurrency=3
        ) as batch:
            async for outcome in batch:
                outcome.unwrap()
                seen.append(outcome.index)
    assert seen == [0, 2, 1]  # including the one that was retried


async def test_a_consumer_exception_is_raised_unchanged_and_stops_the_batch() -> None:
    provider = Provider()
    with pytest.raises(LookupError, match="mine"):
        async with client_of(provider).batch(
            (f"sleep={n % 7} {n}" for n in range(1_000)), model=MODEL, max_concurrency=20
        ) as batch:
            async for outcome in batch:
                if outcome.index > 50:
                    raise LookupError("mine")
    assert provider.in_flight == 0


async def test_leaving_a_batch_early_cancels_the_calls_in_flight() -> None:
    provider = Provider()
    async with client_of(provider).batch(
        (f"sleep={n * 10} {n}" for n in range(100)), model=MODEL, max_concurrency=20
    ) as batch:
        await anext(batch)
        await anyio.sleep(0.5)
        assert provider.in_flight == 20
        before = anyio.current_time()
    assert provider.in_flight == 0
    assert anyio.current_time() == before
    with pytest.raises(NotStartedError):
        await anext(batch)
    with pytest.raises(NotStartedError):
        async with batch:
            pass


async def test_iterating_a_batch_outside_its_block_is_an_error_that_says_so() -> None:
    batch = client_of(Provider()).batch(["a"], model=MODEL)
    with pytest.raises(NotStartedError, match="async with"):
        await anext(batch)
    assert batch.stats == omnigate.BatchStats()


async def test_cancelling_an_outer_scope_ends_the_batch() -> None:
    provider = Provider()
    with anyio.move_on_after(2.5) as scope:
        async with client_of(provider).batch(
            (f"sleep=1 {n}" for n in range(1_000)), model=MODEL, max_concurrency=20
        ) as batch:
            await outcomes_of(batch)
    assert scope.cancelled_caught
    assert provider.in_flight == 0


@without_debug
async def test_several_batches_run_in_tasks_of_one_group() -> None:
    provider = Provider()
    client = client_of(provider)
    counts: list[int] = []

    async def run() -> None:
        async with client.batch((f"sleep=1 {n}" for n in range(100)), model=MODEL) as batch:
            counts.append(len(await outcomes_of(batch)))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(run)
    assert counts == [100] * 5
    async with client.batch(["a"], model=MODEL) as outer:
        async with client.batch(["b"], model=MODEL) as inner:
            assert texts(await outcomes_of(inner)) == ["b"]
        assert texts(await outcomes_of(outer)) == ["a"]


async def test_two_consumers_share_the_outcomes_of_a_batch() -> None:
    seen: list[int] = []

    async def consume(batch: omnigate.Batch) -> None:
        async for outcome in batch:
            seen.append(outcome.index)

    async with client_of(Provider()).batch((f"{n}" for n in range(200)), model=MODEL) as batch:
        async with anyio.create_task_group() as group:
            group.start_soon(consume, batch)
            group.start_soon(consume, batch)
    assert sorted(seen) == list(range(200))


# Errors


async def test_a_failed_batch_item_is_an_outcome_and_the_others_continue() -> None:
    provider = Provider()
    prompts = ["a", "status=400", "broken", "status=500", "b"]
    async with client_of(provider, retries=1, retry_config=None).batch(prompts, model=MODEL) as batch:
        outcomes = {outcome.index: outcome async for outcome in batch}
    assert [outcomes[n].error is None for n in range(5)] == [True, False, False, False, True]
    assert isinstance(outcomes[1].error, omnigate.APIError)
    assert isinstance(outcomes[2].error, omnigate.ConnectionError)
    assert isinstance(outcomes[3].error, ProviderError)
    assert [outcomes[n].attempts for n in range(5)] == [1, 1, 2, 2, 1]
    assert outcomes[3].error.attempts == 2
    with pytest.raises(ProviderError):
        outcomes[3].unwrap()
    assert (batch.stats.succeeded, batch.stats.failed) == (2, 3)


async def test_a_failed_batch_item_is_retried_by_the_retry_policy() -> None:
    provider = Provider()
    async with client_of(provider).batch(["a", "once=500 b"], model=MODEL) as batch:
        outcomes = await outcomes_of(batch)
    assert [outcome.attempts for outcome in outcomes] == [1, 2]
    assert provider.times[2] - provider.times[1] == 0.5
    assert outcomes[1].unwrap().meta.attempts == 2


@pytest.mark.parametrize(("status", "kind"), [(401, AuthError), (402, BudgetExceededError)])
async def test_an_error_that_stops_the_batch_is_raised_after_the_calls_in_flight(
    status: int, kind: type[GatewayError]
) -> None:
    provider = Provider()

    def source() -> Iterator[str]:
        yield "first"
        yield f"sleep=1 status={status}"
        yield "sleep=5 slow"
        yield "once=500 in backoff when it stops"
        for n in range(1_000):
            yield f"sleep=0.6 {n}"

    seen: list[Outcome] = []
    with pytest.raises(kind) as raised:
        async with client_of(
            provider, retry_config=RetryConfig(backoff_base=10, backoff_max=10, jitter=0)
        ).batch(source(), model=MODEL, max_concurrency=4) as batch:
            async for outcome in batch:
                seen.append(outcome)
    assert anyio.current_time() - provider.times[0] == 5.0
    by_prompt = {outcome.request.messages[0].content: outcome for outcome in seen if outcome.request}
    assert by_prompt[f"sleep=1 status={status}"].error is raised.value
    assert by_prompt["sleep=5 slow"].error is None
    assert "once=500 in backoff when it stops" not in by_prompt
    assert len(seen) == len(provider.prompts) - 1


async def test_stop_on_takes_a_callable_or_an_empty_tuple() -> None:
    prompts = ["a", "status=401", "b", "status=418"]
    async with client_of(Provider()).batch(prompts, model=MODEL, stop_on=(), ordered=True) as batch:
        assert [outcome.error is None for outcome in await outcomes_of(batch)] == [True, False, True, False]

    def is_teapot(error: GatewayError) -> bool:
        return isinstance(error, omnigate.APIError) and error.status_code == 418

    with pytest.raises(omnigate.APIError, match="418"):
        async with client_of(Provider()).batch(prompts, model=MODEL, stop_on=is_teapot) as batch:
            await outcomes_of(batch)


async def test_an_exception_in_stop_on_ends_the_batch_unchanged() -> None:
    def broken(error: GatewayError) -> bool:
        raise LookupError("broken stop_on")

    with pytest.raises(LookupError, match="broken stop_on"):
        async with client_of(Provider()).batch(["status=400"], model=MODEL, stop_on=broken) as batch:
            await outcomes_of(batch)


async def test_an_unexpected_transport_exception_ends_the_batch_unchanged() -> None:
    provider = Provider()
    with pytest.raises(KeyError, match="bug"):
        async with client_of(provider).batch(["a", "sleep=1 bug", "sleep=2 b"], model=MODEL) as batch:
            async for outcome in batch:
                outcome.unwrap()
    assert provider.answered == ["a", "sleep=2 b"]


async def test_a_429_of_the_gateway_holds_back_the_batch_and_uses_up_no_retries() -> None:
    provider = Provider()
    async with client_of(provider, retries=0, retry_config=None).batch(
        ["a", "once=429 b", "c", "d"], model=MODEL, max_concurrency=1
    ) as batch:
        outcomes = await outcomes_of(batch)
    assert texts(outcomes) == ["a", "once=429 b", "c", "d"]
    assert outcomes[1].attempts == 2
    assert 20 <= provider.times[2] - provider.times[1] < 25
    assert provider.prompts[2] == "once=429 b"  # resends before new sends


@pytest.mark.parametrize("header", ["0", "Wed, 21 Oct 2015 07:28:00 GMT"])
async def test_a_429_of_the_gateway_that_asks_for_no_wait_still_backs_off(header: str) -> None:
    rejection = error_answer(429, "Rate limit exceeded", retry_after=header)
    transport = ScriptedTransport(*[rejection] * 5, chat_answer)
    async with client_of(transport).batch(["a"], model=MODEL) as batch:
        assert [outcome.error for outcome in await outcomes_of(batch)] == [None]
    waits = [later - earlier for earlier, later in zip(transport.times, transport.times[1:], strict=False)]
    assert all(wait >= least for wait, least in zip(waits, [0.5, 1.0, 2.0, 4.0, 8.0], strict=True)), waits


async def test_a_429_of_the_provider_uses_up_no_retries() -> None:
    provider = Provider()
    async with client_of(provider, retries=0, retry_config=None).batch(
        ["a", "once=499 b"], model=MODEL
    ) as batch:
        outcomes = await outcomes_of(batch)
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert outcomes[1].attempts == 2
    assert (batch.stats.rejections, batch.stats.retries) == (1, 1)


async def test_a_retry_after_beyond_max_wait_stops_the_batch() -> None:
    with pytest.raises(RateLimitError):
        async with client_of(Provider()).batch(
            ["a", "once=429 b"], model=MODEL, max_wait_seconds=19
        ) as batch:
            await outcomes_of(batch)


class Limited(Provider):
    """A gateway with a limit of ten calls a minute, whose minutes do not start with the client's."""

    def __init__(self) -> None:
        super().__init__()
        self.windows: dict[int, int] = {}

    async def _answer(self, prompt: str) -> httpx.Response:
        now = anyio.current_time() + 17.3
        minute = int(now // 60)
        count = self.windows[minute] = self.windows.get(minute, 0) + 1
        if count > 10:
            return self.error(429)
        answer = await super()._answer(prompt)
        answer.headers["x-ratelimit-limit"] = "10"
        answer.headers["x-ratelimit-remaining"] = str(10 - count)
        answer.headers["x-ratelimit-reset"] = str(60 - int(now % 60))
        return answer


async def test_a_batch_keeps_the_rate_limit_of_the_headers_without_a_rejection() -> None:
    provider = Limited()
    waiting = False
    async with client_of(provider).batch((f"{n}" for n in range(60)), model=MODEL) as batch:
        async for outcome in batch:
            outcome.unwrap()
            waiting = waiting or batch.stats.waiting_until is not None
    assert len(provider.prompts) == 60
    assert max(provider.windows.values()) == 10
    assert len(provider.windows) <= 8
    assert waiting


async def test_the_batches_of_a_client_share_its_rate_limit() -> None:
    provider = Limited()
    client = client_of(provider)
    ended: list[float] = []

    async def run() -> None:
        assert len(await client.chat_many([f"{n}" for n in range(20)], model=MODEL)) == 20
        ended.append(anyio.current_time())

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(run)
    assert len(provider.prompts) == 60  # not one was rejected
    assert max(provider.windows.values()) == 10
    assert max(ended) - min(ended) <= 180  # no batch waited for another to end


async def test_a_deadline_fails_one_item_and_not_the_batch() -> None:
    provider = Provider()
    async with client_of(provider).batch(
        ["a", "sleep=5 b", "sleep=1 c"], model=MODEL, deadline_seconds=2
    ) as batch:
        outcomes = {outcome.index: outcome async for outcome in batch}
    assert isinstance(outcomes[1].error, TimeoutError)
    assert outcomes[1].elapsed == 2.0
    assert outcomes[2].error is None
    assert provider.in_flight == 0


# Arguments


async def async_callable(value: object) -> bool:
    return False


class AsyncCallable:
    async def __call__(self, value: object) -> bool:
        return False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"requests": "one prompt"},
            r"requests must be an iterable of items, or data: a pathlib\.Path of a file, an open file, a frame or table, got 'one prompt' \(for a file, write Path\(…\); for one item, write \[item\]\)",
        ),
        (
            {"requests": b"x"},
            r"requests must be an iterable of items, or data: a pathlib\.Path of a file, an open file, a frame or table, got b'x' \(for a file, write Path\(…\); for one item, write \[item\]\)",
        ),
        (
            {"requests": {"messages": "x"}},
            r"requests must be an iterable of items, or data: a pathlib\.Path of a file, an open file, a frame or table, got \{'messages': 'x'\} \(for one item, write \[item\]\)",
        ),
        (
            {"requests": omnigate.Message(role="user", content="x")},
            r"requests must be an iterable of items, or data: a pathlib\.Path of a file, an open file, a frame or table, got Message\(role='user', content='x'\) \(for one item, write \[item\]\)",
        ),
        (
            {"requests": 7},
            r"requests must be an iterable or async iterable of items, or data: a pathlib\.Path of a file, an open file, a frame or table, got 7",
        ),
        (
            {"requests": None},
            r"requests must be an iterable or async iterable of items, or data: a pathlib\.Path of a file, an open file, a frame or table, got None",
        ),
        ({"model": ""}, "model must be text of 1 to 128 printable Latin-1 characters, got ''"),
        ({"model": "x\n"}, r"model must be text of 1 to 128 printable Latin-1 characters, got 'x\\n'"),
        ({"max_concurrency": 0}, "max_concurrency must be an integer of at least 1, or 'auto', got 0"),
        (
            {"max_concurrency": "many"},
            "max_concurrency must be an integer of at least 1, or 'auto', got 'many'",
        ),
        ({"max_concurrency": 2.5}, r"max_concurrency must be an integer of at least 1, or 'auto', got 2\.5"),
        ({"max_concurrency": True}, "max_concurrency must be an integer of at least 1, or 'auto', got True"),
        ({"ordered": "yes"}, "ordered must be True or False, got 'yes'"),
        ({"replay": 1}, "replay must be True or False, got 1"),
        (
            {"stop_on": ["AuthError"]},
            r"stop_on must be a type of errors, a tuple of such types, or a callable that takes an error and returns whether to stop, got \['AuthError'\]",
        ),
        (
            {"stop_on": (ValueError, 7)},
            r"stop_on must be a type of errors, a tuple of such types, or a callable that takes an error and returns whether to stop, got \(<class 'ValueError'>, 7\)",
        ),
        (
            {"stop_on": async_callable},
            r"stop_on must be a callable that takes an error and returns whether to stop, and not async, got <function async_callable",
        ),
        (
            {"stop_on": partial(async_callable)},
            r"stop_on must be a callable that takes an error and returns whether to stop, and not async, got functools\.partial\(<function async_callable",
        ),
        (
            {"stop_on": AsyncCallable()},
            r"stop_on must be a callable that takes an error and returns whether to stop, and not async, got <tests\.batch\.test_batch\.AsyncCallable object",
        ),
        ({"journal": 7}, "journal must be a path, or None, got 7"),
        ({"journal": ""}, "journal must be a path that is not empty, or None, got ''"),
        ({"journal_lock": None}, "journal_lock must be True or False, got None"),
        ({"progress": "bar"}, "progress must be True, False, or a callable that takes BatchStats, got 'bar'"),
        (
            {"progress": async_callable},
            r"progress must be a callable that takes BatchStats, and not async, got <function async_callable",
        ),
        (
            {"progress": AsyncCallable()},
            r"progress must be a callable that takes BatchStats, and not async, got <tests\.batch\.test_batch\.AsyncCallable object",
        ),
        ({"max_wait_seconds": -1}, "max_wait_seconds must be a finite number above 0, got -1"),
        (
            {"user_id": "x" * 300},
            "user_id must be Latin-1 text of at most 255 characters without line breaks, got 'xxxxxxxxx",
        ),
        (
            {"timeout": -1},
            r"timeout must be a finite number of seconds above 0, an httpx\.Timeout, or None, got -1",
        ),
        ({"deadline": 1}, "unknown argument 'deadline'"),
    ],
)
async def test_a_batch_refuses_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"requests": ["x"], "model": MODEL} | arguments
    requests = given.pop("requests")
    with pytest.raises(InvalidArgumentError, match=message):
        client_of(Provider()).batch(requests, **given)


async def test_a_single_request_as_a_batch_source_is_refused() -> None:
    with pytest.raises(TypeError):
        client_of(Provider()).batch("character by character", model=MODEL)


async def test_an_invalid_batch_item_is_a_failed_outcome_with_its_index() -> None:
    provider = Provider()
    items: list[Any] = [
        "fine",
        7,
        {"messages": []},
        {"id": "x", "messages": "hi", "colour": "red"},
        "fine, too",
    ]
    async with client_of(provider).batch(items, model=MODEL, ordered=True) as batch:
        outcomes = await outcomes_of(batch)
    assert [outcome.error is None for outcome in outcomes] == [True, False, False, False, True]
    assert [outcome.attempts for outcome in outcomes] == [1, 0, 0, 0, 1]
    assert outcomes[3].id == "x"
    assert isinstance(outcomes[1].error, InvalidArgumentTypeError)
    assert str(outcomes[1].error).startswith(
        "item 1 must be a ChatRequest, a dict of its fields (and id), or"
    )
    assert len(provider.prompts) == 2


# chat_many


async def test_chat_many_returns_its_responses_in_source_order() -> None:
    answers = await client_of(Provider()).chat_many([f"sleep={9 - n} {n}" for n in range(9)], model=MODEL)
    assert [answer.content for answer in answers] == [f"sleep={9 - n} {n}" for n in range(9)]


async def test_chat_many_raises_the_first_error_after_cancelling_the_rest() -> None:
    provider = Provider()
    with pytest.raises(omnigate.APIError, match="something else"):
        await client_of(provider).chat_many(["a", "sleep=1 status=400", "sleep=99 b"], model=MODEL)
    assert provider.in_flight == 0
    assert anyio.current_time() - provider.times[0] == 1.0


async def test_chat_many_returns_exceptions_if_return_exceptions_is_set() -> None:
    items = ["a", "status=401", "b"]
    answers = await client_of(Provider()).chat_many(items, model=MODEL, return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == ["ChatResponse", "AuthError", "ChatResponse"]
    with pytest.raises(InvalidArgumentTypeError, match="return_exceptions must be True or False, got 'x'"):
        await client_of(Provider()).chat_many(items, model=MODEL, return_exceptions="x")  # type: ignore[call-overload]
