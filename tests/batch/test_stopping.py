"""What ends a batch: stop_on, waits that are too long, cancellations from elsewhere."""

import asyncio
import contextlib
import gc
import json
import os
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from omnigate import AsyncClient, AuthError, GatewayError, Outcome, RateLimitError, RetryConfig

from ..support.provider import Provider
from ..support.virtual_time import virtual_backend

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

MODEL = "gpt-4o-mini"


class Limiting(Provider):
    """Answer the first calls with the gateway's own 429 and these headers."""

    def __init__(self, *rejections: dict[str, str]) -> None:
        super().__init__()
        self._rejections = list(rejections)

    async def _answer(self, prompt: str) -> httpx.Response:
        if self._rejections:
            await anyio.lowlevel.checkpoint()
            headers = self._rejections.pop(0)
            return httpx.Response(429, json={"detail": "Rate limit exceeded"}, headers=headers)
        return await super()._answer(prompt)


def client_of(provider: httpx.AsyncBaseTransport, **arguments: Any) -> AsyncClient:
    arguments.setdefault("retry_config", RetryConfig(jitter=0))
    return AsyncClient("llmg_x", base_url="http://gateway.test", transport=provider, **arguments)


# The gateway's own 429


async def test_a_wait_beyond_max_wait_ends_its_batch_and_holds_back_no_other() -> None:
    provider = Limiting({"retry-after": "7200"}, {"retry-after": "7300"})
    client = client_of(provider)
    for seconds in (7_200, 7_300):
        with pytest.raises(RateLimitError) as raised:
            async with client.batch(["a"], model=MODEL) as batch:
                async for _ in batch:
                    pass
        assert raised.value.retry_after == seconds
        assert batch.stats.waiting_until is None
    with anyio.fail_after(5):
        assert len(await client.chat_many(["b", "c"], model=MODEL)) == 2
    assert provider.prompts == ["a", "a", "b", "c"]
    assert anyio.current_time() - provider.times[0] == 0


async def test_a_wait_too_long_for_one_batch_does_not_hold_back_another() -> None:
    provider = Limiting({"retry-after": "30"}, {"retry-after": "40"})
    client = client_of(provider)
    with pytest.raises(RateLimitError):
        await client.chat_many(["a"], model=MODEL, max_wait_seconds=10)
    assert len(await client.chat_many(["b"], model=MODEL)) == 1
    assert provider.times[1] == provider.times[0]
    assert 40 <= provider.times[2] - provider.times[1] < 41


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 60),
        ({"retry-after": "-5"}, 60),
        ({"retry-after": "soon"}, 60),
        ({"retry-after": "99999999999"}, 60),
        ({"x-ratelimit-limit": "60", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "17"}, 17),
        ({"retry-after": "-5", "x-ratelimit-reset": "17"}, 17),
        ({"x-ratelimit-reset": "4000"}, 60),
    ],
)
async def test_a_429_without_a_usable_retry_after_is_waited_out_and_uses_up_no_retries(
    headers: dict[str, str], seconds: float
) -> None:
    provider = Limiting(headers, headers, headers, headers)
    async with client_of(provider, retries=0, retry_config=None).batch(["a"], model=MODEL) as batch:
        outcomes = [outcome async for outcome in batch]
    assert [outcome.error for outcome in outcomes] == [None]
    assert outcomes[0].attempts == 5
    waits = [later - earlier for earlier, later in zip(provider.times, provider.times[1:], strict=False)]
    assert all(seconds <= wait < seconds + 2 for wait in waits), waits


async def test_a_429_without_retry_after_ends_a_batch_that_waits_less_than_a_window() -> None:
    with pytest.raises(RateLimitError):
        await client_of(Limiting({})).chat_many(["a"], model=MODEL, max_wait_seconds=59)


# stop_on


class Asked:
    """A stop_on that records the errors it is called with."""

    def __init__(self, answer: Callable[[GatewayError], bool] = lambda error: False) -> None:
        self.errors: list[GatewayError] = []
        self._answer = answer

    def __call__(self, error: GatewayError) -> bool:
        self.errors.append(error)
        return self._answer(error)


async def test_stop_on_is_called_once_for_each_final_failure() -> None:
    asked = Asked()
    items: list[Any] = ["a", "status=400", "once=500 b", 7, "once=429 c", "status=401"]
    async with client_of(Provider()).batch(items, model=MODEL, stop_on=asked) as batch:
        outcomes = [outcome async for outcome in batch]
    failed = [outcome.error for outcome in outcomes if outcome.error is not None]
    assert asked.errors == failed
    assert {outcome.index for outcome in outcomes if outcome.error is not None} == {1, 3, 5}


async def test_stop_on_is_called_once_for_the_failure_that_stops_the_batch() -> None:
    asked = Asked(lambda error: True)
    with pytest.raises(AuthError) as raised:
        async with client_of(Provider()).batch(["status=401"], model=MODEL, stop_on=asked) as batch:
            async for _ in batch:
                pass
    assert asked.errors == [raised.value]


@pytest.mark.parametrize("headers", [{"retry-after": "0"}, {}])
async def test_stop_on_is_not_called_for_a_429_that_is_waited_out(headers: dict[str, str]) -> None:
    asked = Asked(lambda error: True)
    async with client_of(Limiting(headers, headers)).batch(["a"], model=MODEL, stop_on=asked) as batch:
        assert [outcome.error async for outcome in batch] == [None]
    assert asked.errors == []


async def test_a_wait_beyond_max_wait_ends_the_batch_without_asking_stop_on() -> None:
    asked = Asked()
    seen: list[Outcome] = []
    with pytest.raises(RateLimitError) as raised:
        async with client_of(Limiting({"retry-after": "7200"})).batch(
            ["a"], model=MODEL, stop_on=asked
        ) as batch:
            async for outcome in batch:
                seen.append(outcome)
    assert [outcome.error for outcome in seen] == [raised.value]
    assert asked.errors == []


@pytest.mark.parametrize("kind", [RateLimitError, (AuthError, RateLimitError), GatewayError])
async def test_stop_on_an_error_type_ends_the_batch_even_at_a_429_that_could_be_waited_out(kind: Any) -> None:
    provider = Provider()
    with pytest.raises(RateLimitError):
        async with client_of(provider).batch(["once=429 a", "b"], model=MODEL, stop_on=kind) as batch:
            assert [outcome.index async for outcome in batch] == [0]
    assert provider.prompts == ["once=429 a"]


@pytest.mark.parametrize("ordered", [False, True])
async def test_an_exception_in_stop_on_ends_the_batch_after_the_outcome_is_journalled(
    ordered: bool, tmp_path: Path
) -> None:
    journal = tmp_path / "journal.jsonl"

    def broken(error: GatewayError) -> bool:
        raise LookupError("broken stop_on")

    seen: list[Outcome] = []
    with pytest.raises(LookupError, match="broken stop_on"):
        async with client_of(Provider()).batch(
            ["a", "status=400", "b"],
            model=MODEL,
            stop_on=broken,
            max_concurrency=1,
            journal=journal,
            ordered=ordered,
        ) as batch:
            async for outcome in batch:
                seen.append(outcome)
    assert [outcome.index for outcome in seen] == [0, 1]
    assert seen[1].error is not None
    assert batch.stats.failed == 1
    assert [json.loads(line)["custom_id"] for line in journal.read_bytes().splitlines()] == ["0", "1"]


async def test_a_stop_on_that_returns_a_coroutine_ends_the_batch_and_says_so() -> None:
    async def stop(error: GatewayError) -> bool:
        return False

    items = ["a", "status=400"]
    stop_on: Any = lambda error: stop(error)  # noqa: E731
    seen: list[Outcome] = []
    with pytest.raises(
        GatewayError, match="stop_on must be a plain function, not async: it returned a coroutine"
    ):
        async with client_of(Provider()).batch(items, model=MODEL, stop_on=stop_on) as batch:
            async for outcome in batch:
                seen.append(outcome)
    assert [outcome.index for outcome in seen] == [0, 1]


# Nothing is sent once the batch stops


async def test_calls_waiting_for_the_first_one_are_not_sent_if_it_stops_the_batch() -> None:
    provider = Provider()
    client = client_of(provider)
    with pytest.raises(AuthError):
        async with client.batch(["status=401", "b", "c"], model=MODEL) as batch:
            assert [outcome.index async for outcome in batch] == [0]
    assert provider.prompts == ["status=401"]
    with anyio.fail_after(5):  # its place at the gate was given back
        assert len(await client.chat_many(["d", "e"], model=MODEL)) == 2


async def test_an_item_that_arrives_just_as_the_batch_stops_is_not_sent() -> None:
    provider = Provider()
    arrived = anyio.Event()

    async def source() -> AsyncIterator[str]:
        yield "first"
        yield "sleep=1 status=401"
        await arrived.wait()
        yield "late"

    def stop_on(error: GatewayError) -> bool:
        arrived.set()
        return True

    with pytest.raises(AuthError):
        async with client_of(provider).batch(source(), model=MODEL, stop_on=stop_on) as batch:
            assert [outcome.index async for outcome in batch] == [0, 1]
    assert provider.prompts == ["first", "sleep=1 status=401"]


async def test_a_backoff_that_ends_just_as_the_batch_stops_is_not_followed_by_a_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider = Provider()
    over = anyio.Event()
    sleep = anyio.sleep

    async def sleep_or_wait(seconds: float) -> None:
        await (over.wait() if seconds == 77 else sleep(seconds))

    def stop_on(error: GatewayError) -> bool:
        over.set()
        return True

    monkeypatch.setattr(anyio, "sleep", sleep_or_wait)
    items = ["first", "sleep=1 status=401", "sleep=0.5 once=500"]
    config = RetryConfig(backoff_base=77, backoff_max=77, jitter=0)
    with pytest.raises(AuthError):
        async with client_of(provider, retry_config=config).batch(
            items, model=MODEL, stop_on=stop_on
        ) as batch:
            assert [outcome.index async for outcome in batch] == [0, 1]
    assert sorted(provider.prompts) == sorted(items)


# Cancellations that come from elsewhere


async def cancelled_by_another_task() -> None:
    task = asyncio.get_running_loop().create_task(asyncio.sleep(99))
    await asyncio.sleep(0)
    task.cancel("somebody else's")
    await task


@pytest.mark.parametrize("anyio_backend", [virtual_backend("asyncio")], ids=["asyncio"])
class TestOnAsyncio:
    @pytest.mark.parametrize("before", [0, 1, 3])
    @pytest.mark.parametrize("ordered", [False, True])
    async def test_a_cancelled_error_from_the_source_is_raised_after_the_calls_in_flight(
        self, before: int, ordered: bool
    ) -> None:
        async def source() -> AsyncIterator[str]:
            for n in range(before):
                yield f"sleep={9 - n} once=500 {n}"
            await cancelled_by_another_task()
            yield "never"

        provider = Provider()
        seen: list[int] = []
        with anyio.fail_after(100):
            with pytest.raises(asyncio.CancelledError, match="somebody else's"):
                async with client_of(provider).batch(source(), model=MODEL, ordered=ordered) as batch:
                    async for outcome in batch:
                        outcome.unwrap()  # even of those that were sent again
                        seen.append(outcome.index)
        assert sorted(seen) == list(range(before))
        assert provider.in_flight == 0
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    @pytest.mark.parametrize("where", ["stop_on", "progress", "a sync source"])
    async def test_a_cancelled_error_from_a_callback_or_a_sync_source_ends_the_batch(
        self, where: str
    ) -> None:
        def cancelled(*_: object) -> bool:
            raise asyncio.CancelledError(where)

        source: Any = map(cancelled, range(3)) if where == "a sync source" else ["status=400"]
        options: dict[str, Any] = {} if where == "a sync source" else {where: cancelled}
        with anyio.fail_after(100):
            with pytest.raises(asyncio.CancelledError, match=where):
                async with client_of(Provider()).batch(source, model=MODEL, **options) as batch:
                    async for _ in batch:
                        pass

    async def test_a_cancellation_that_the_block_has_swallowed_is_not_raised_when_it_ends(self) -> None:
        entered = asyncio.Event()

        async def swallow() -> str:
            async with client_of(Provider()).batch(["a", "sleep=9 b"], model=MODEL) as batch:
                await anext(batch)
                entered.set()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(99)
            await asyncio.sleep(1)
            return "went on"

        task = asyncio.create_task(swallow())
        await entered.wait()
        task.cancel()
        assert await task == "went on"

    async def test_a_cancelled_error_from_the_source_is_not_raised_again_when_the_block_ends(self) -> None:
        async def source() -> AsyncIterator[str]:
            yield "a"
            await cancelled_by_another_task()

        async with client_of(Provider()).batch(source(), model=MODEL) as batch:
            with pytest.raises(asyncio.CancelledError):
                async for _ in batch:
                    pass
        async with client_of(Provider()).batch(source(), model=MODEL) as batch:
            await anyio.sleep(5)
            async for _ in batch:
                break

    async def test_a_source_that_cancels_its_own_task_ends_the_batch(self) -> None:
        async def source() -> AsyncIterator[str]:
            yield "a"
            task = asyncio.current_task()
            assert task is not None
            task.cancel("my own")
            await asyncio.sleep(0)

        seen: list[int] = []
        with anyio.fail_after(100):
            with pytest.raises(asyncio.CancelledError, match="my own"):
                async with client_of(Provider()).batch(source(), model=MODEL) as batch:
                    async for outcome in batch:
                        seen.append(outcome.index)
        assert seen == [0]

    async def test_a_worker_cancelled_from_outside_ends_the_batch(self) -> None:
        others = asyncio.all_tasks()
        with anyio.fail_after(100):
            with pytest.raises(asyncio.CancelledError):
                async with client_of(Provider()).batch(["a", "sleep=50 b"], model=MODEL) as batch:
                    await anext(batch)
                    await anyio.sleep(1)
                    for task in asyncio.all_tasks() - others:
                        task.cancel()
                    async for _ in batch:
                        pass


async def test_a_shielded_consumer_of_a_cancelled_batch_does_not_hang() -> None:
    provider = Provider()
    with anyio.fail_after(1_000), anyio.CancelScope() as outer:
        async with client_of(provider).batch(["a", "sleep=99 b"], model=MODEL) as batch:
            await anext(batch)
            with anyio.CancelScope(shield=True):
                outer.cancel()
                with pytest.raises(anyio.get_cancelled_exc_class()):
                    async for _ in batch:
                        pass
    assert outer.cancelled_caught
    assert provider.in_flight == 0


# Sources and how they end


class Numbers:
    """An async iterator that is not async iterable, which `async for` accepts."""

    def __init__(self, count: int) -> None:
        self._left = count

    async def __anext__(self) -> str:
        await anyio.lowlevel.checkpoint()
        if not self._left:
            raise StopAsyncIteration
        self._left -= 1
        return f"{self._left}"


class NumbersSource:
    def __aiter__(self) -> Numbers:
        return Numbers(3)


async def test_a_batch_source_may_be_an_async_iterator_without_aiter() -> None:
    source: Any = NumbersSource()
    answers = await client_of(Provider()).chat_many(source, model=MODEL)
    assert [answer.content for answer in answers] == ["2", "1", "0"]


async def test_a_source_file_is_closed_even_if_it_was_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "batch.jsonl"
    path.write_bytes(b'{"prompt": "x"}\n' * 100_000)
    async with client_of(Provider()).batch(path, model=MODEL, max_concurrency=1) as batch:
        await anext(batch)
        assert path in open_files()
    assert path not in open_files()
    assert batch.stats.succeeded >= 1


def open_files() -> set[Path]:
    return {Path(os.readlink(link)) for link in Path("/proc/self/fd").iterdir() if os.path.exists(link)}


@pytest.mark.parametrize("is_left_early", [False, True])
async def test_an_ended_batch_keeps_no_reference_to_its_source(is_left_early: bool) -> None:
    class Source:
        def __iter__(self) -> Iterator[str]:
            return iter([f"{n}" for n in range(200)])

    source = Source()
    is_held = weakref.ref(source)
    batch = client_of(Provider()).batch(source, model=MODEL)
    async with batch:
        async for _ in batch:
            if is_left_early:
                break
    del source
    gc.collect()
    assert is_held() is None
    assert batch.stats.succeeded


async def test_an_exception_in_closing_the_source_does_not_mask_the_blocks_own() -> None:
    async def source() -> AsyncIterator[str]:
        try:
            for n in range(100):
                yield f"{n}"
        finally:
            raise LookupError("closing")

    with pytest.raises(KeyError, match="mine") as raised:
        async with client_of(Provider()).batch(source(), model=MODEL, max_concurrency=1) as batch:
            async for _ in batch:
                raise KeyError("mine")
    assert raised.value.__notes__ == ["also failed at the end of the batch: LookupError: closing"]
    with pytest.raises(LookupError, match="closing"):
        async with client_of(Provider()).batch(source(), model=MODEL, max_concurrency=1) as batch:
            await anext(batch)


# `stop`


async def test_stop_finishes_the_calls_in_flight_and_starts_no_others(tmp_path: Path) -> None:
    provider = Provider()
    ended: list[str] = []
    journal = tmp_path / "journal.jsonl"
    prompts = [f"prompt {number}" for number in range(100)]
    async with client_of(provider).batch(prompts, model=MODEL, max_concurrency=4, journal=journal) as batch:
        async for outcome in batch:
            ended.append(outcome.id)
            if len(ended) == 3:
                batch.stop()
                batch.stop()
    assert batch.stats.failed == batch.stats.in_flight == 0
    assert len(ended) == batch.stats.succeeded == len(provider.prompts) < 12
    async with client_of(provider).batch(prompts, model=MODEL, journal=journal) as batch:
        ids = [outcome.id async for outcome in batch]
    assert sorted(ids, key=int) == [str(number) for number in range(100)]
    assert len(provider.prompts) == 100


async def test_stop_abandons_items_that_wait_to_be_sent() -> None:
    provider = Limiting({"retry-after": "50"})
    started = anyio.current_time()
    async with client_of(provider).batch(["a", "b"], model=MODEL) as batch:
        async with anyio.create_task_group() as group:
            group.start_soon(_stop_after, 5, batch)
            assert [outcome async for outcome in batch] == []
    assert anyio.current_time() - started == pytest.approx(5)


async def _stop_after(seconds: float, batch: Any) -> None:
    await anyio.sleep(seconds)
    batch.stop()


async def test_stop_outside_the_block_does_nothing() -> None:
    batch = client_of(Provider()).batch(["a"], model=MODEL)
    batch.stop()
    async with batch:
        assert [outcome.id async for outcome in batch] == ["0"]
    batch.stop()
