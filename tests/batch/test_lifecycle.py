"""The states of a batch, its repr in each of them, and its public names."""

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

import omnigate
from omnigate import AsyncClient, AuthError, Client, RetryConfig
from omnigate._batch.lifecycle import Lifecycle, State

from ..support.provider import Provider

MODEL = "gpt-4o-mini"


def client_of(provider: httpx.AsyncBaseTransport, **arguments: Any) -> AsyncClient:
    arguments.setdefault("retry_config", RetryConfig(jitter=0))
    return AsyncClient("llmg_x", base_url="http://gateway.test", transport=provider, **arguments)


def sync_client_of(provider: httpx.AsyncBaseTransport, backend: str) -> Client:
    return Client("llmg_x", base_url="http://gateway.test", transport=provider, backend=backend)


# The states


def test_batch_states_only_move_forward() -> None:
    for start in State:
        for state in State:
            lifecycle = Lifecycle()
            lifecycle.advance(start)
            lifecycle.advance(state)
            assert lifecycle.state is max(start, state)


def test_a_batch_keeps_its_first_error_in_every_state() -> None:
    for state in State:
        lifecycle = Lifecycle()
        lifecycle.advance(state)
        first = ValueError("first")
        lifecycle.advance(State.STOPPING, first)
        lifecycle.advance(State.STOPPING, ValueError("second"))
        assert lifecycle.error is first


def test_a_batch_is_open_exactly_while_in_its_block() -> None:
    lifecycle = Lifecycle()
    is_open = {}
    for state in State:
        lifecycle.advance(state)
        is_open[state.name] = lifecycle.is_open
    assert [name for name, is_it in is_open.items() if is_it] == ["OPEN", "DRAINING", "STOPPING", "ENDED"]


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_a_batch_goes_through_its_states_in_order() -> None:
    async def source() -> AsyncIterator[str]:
        states.append(batch._lifecycle.state)
        yield "a"
        yield "sleep=1 b"

    states: list[State] = []
    batch = client_of(Provider()).batch(source(), model=MODEL)
    states.append(batch._lifecycle.state)
    async with batch:
        async for _ in batch:
            states.append(batch._lifecycle.state)
        states.append(batch._lifecycle.state)
    states.append(batch._lifecycle.state)
    assert states == sorted(states)
    assert states[:3] == [State.NEW, State.OPEN, State.OPEN]
    assert states[-2:] == [State.ENDED, State.LEFT]


# The repr


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_the_repr_of_a_batch_shows_its_state_and_counts() -> None:
    batch = client_of(Provider()).batch(["a", "status=400", "sleep=5 b", "sleep=5 c"], model=MODEL)
    assert repr(batch) == "<Batch new>"
    async with batch:
        assert repr(batch) == "<Batch open: 0 in flight, 0 done>"
        await anyio.sleep(1)
        assert repr(batch) == "<Batch open: 2 in flight, 1 done, 1 failed>"
        assert len([outcome async for outcome in batch]) == 4
        assert repr(batch) == "<Batch ended: 3 done, 1 failed>"
    assert repr(batch) == "<Batch left: 3 done, 1 failed>"


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_the_repr_of_a_batch_left_early_says_so() -> None:
    async with client_of(Provider()).batch(["a", "sleep=5 b"], model=MODEL) as batch:
        await anext(batch)
        await anyio.sleep(1)
        assert repr(batch) == "<Batch open: 1 in flight, 1 done>"
    assert repr(batch) == "<Batch left: 1 done>"


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_the_repr_of_a_failed_batch_says_so_during_and_after_its_last_calls() -> None:
    prompts = ["a", "sleep=5 b", "sleep=1 status=401"]
    with pytest.raises(AuthError):
        async with client_of(Provider()).batch(prompts, model=MODEL) as batch:
            await anyio.sleep(2)
            assert repr(batch) == "<Batch failed: 1 in flight, 1 done, 1 failed>"
            async for _ in batch:
                pass
    assert repr(batch) == "<Batch failed: 2 done, 1 failed>"


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_the_repr_of_a_batch_shows_until_when_it_waits_for_the_rate_limit() -> None:
    async with client_of(Provider()).batch(["once=429"], model=MODEL) as batch:
        await anyio.sleep(1)
        assert re.fullmatch(r"<Batch open: 1 in flight, 0 done, waiting until \d\d:\d\d:\d\d>", repr(batch))
        assert await anext(batch)
        await anyio.lowlevel.checkpoint()
        assert repr(batch) == "<Batch ended: 1 done>"


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_the_repr_of_a_batch_counts_outcomes_from_the_journal(tmp_path: Path) -> None:
    for _ in range(2):
        async with client_of(Provider()).batch(["a"], model=MODEL, journal=tmp_path / "journal") as batch:
            assert [outcome.id async for outcome in batch] == ["0"]
    assert repr(batch) == "<Batch left: 0 done, 1 from the journal>"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_repr_of_a_sync_batch_shows_its_state_in_any_thread(backend: str) -> None:
    said: list[str] = []

    def source() -> Iterator[str]:
        said.append(repr(batch))
        yield "a"

    with sync_client_of(Provider(), backend) as client:
        batch = client.batch(source(), model=MODEL)
        assert repr(batch) == "<SyncBatch new>"
        with batch:
            assert [outcome.index for outcome in batch] == [0]
            assert repr(batch) == "<SyncBatch ended: 1 done>"
        assert repr(batch) == "<SyncBatch left: 1 done>"
    assert repr(batch) == "<SyncBatch left: 1 done>"
    assert said == ["<SyncBatch open: 0 in flight, 0 done>"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_repr_of_a_sync_batch_shows_until_when_it_waits(backend: str) -> None:
    said: list[str] = []

    def show(stats: omnigate.BatchStats) -> None:
        said.append(repr(batch))
        if stats.waiting_until is not None:
            raise LookupError("seen")

    with sync_client_of(Provider(), backend) as client:
        batch = client.batch(["once=429"], model=MODEL, progress=show)
        with pytest.raises(LookupError, match="seen"), batch:
            list(batch)
    assert re.fullmatch(r"<SyncBatch open: 1 in flight, 0 done, waiting until \d\d:\d\d:\d\d>", said[-1])


# What is public


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_batch_has_no_public_names_but_its_api(backend: str) -> None:
    with sync_client_of(Provider(), backend) as client:
        for batch in (client_of(Provider()).batch(["a"], model=MODEL), client.batch(["a"], model=MODEL)):
            for offered in (dir(batch), dir(type(batch))):
                assert [name for name in offered if not name.startswith("_")] == [
                    "run",
                    "stats",
                    "stop",
                    "to_frame",
                    "write",
                ]


def test_success_and_failure_outcomes_are_one_class_at_run_time() -> None:
    outcome = omnigate.Outcome(index=0, id="0", request=None, error=omnigate.GatewayError("x"))
    assert type(outcome) is omnigate.Outcome
    assert isinstance(outcome, omnigate.Outcome)
    assert (omnigate.Outcome.__name__, omnigate.Outcome.__module__) == ("Outcome", "omnigate")


# Batches that are run without being read, and those that nobody reads


@pytest.mark.anyio
@pytest.mark.virtual_time
@pytest.mark.parametrize("in_block", [True, False])
async def test_run_runs_a_batch_to_its_end_and_returns_its_stats(in_block: bool) -> None:
    provider = Provider()
    batch = client_of(provider, retries=0).batch((f"{n}" for n in range(300)), model=MODEL)
    if in_block:
        async with batch:
            stats = await batch.run()
    else:
        stats = await batch.run()
    assert (stats.succeeded, stats.failed, stats.in_flight) == (300, 0, 0)
    assert len(provider.answered) == 300
    with pytest.raises(omnigate.NotStartedError):
        await batch.run()


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_run_raises_the_error_that_ended_the_batch() -> None:
    with pytest.raises(AuthError):
        await client_of(Provider()).batch(["a", "status=401"], model=MODEL).run()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("in_block", [True, False])
def test_run_runs_a_sync_batch_to_its_end_and_returns_its_stats(backend: str, in_block: bool) -> None:
    with sync_client_of(Provider(), backend) as client:
        batch = client.batch((f"{n}" for n in range(300)), model=MODEL)
        if in_block:
            with batch:
                stats = batch.run()
        else:
            stats = batch.run()
        assert (stats.succeeded, stats.failed, stats.in_flight) == (300, 0, 0)
        with pytest.raises(omnigate.NotStartedError):
            batch.run()
        with pytest.raises(AuthError):
            client.batch(["a", "status=401"], model=MODEL).run()


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_a_batch_left_unread_sends_nothing_and_warns() -> None:
    provider = Provider()
    with pytest.warns(RuntimeWarning, match="nothing was sent. Iterate over it, or call its run") as caught:
        async with client_of(provider).batch(["a", "b"], model=MODEL):
            pass
    assert [warning.filename for warning in caught] == [__file__]
    assert provider.prompts == []
    with pytest.warns(RuntimeWarning, match="1 items were called, and their outcomes dropped"):
        async with client_of(provider).batch(["a"], model=MODEL):
            await anyio.sleep(1)
    with pytest.warns(RuntimeWarning, match="1 items were called, and their outcomes dropped"):
        async with client_of(provider).batch(["sleep=9 a"], model=MODEL):
            await anyio.sleep(1)
    with pytest.raises(KeyError):  # which is reason enough
        async with client_of(provider).batch(["a"], model=MODEL):
            raise KeyError


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_sync_batch_left_unread_sends_nothing_and_warns(backend: str) -> None:
    provider = Provider()
    with sync_client_of(provider, backend) as client:
        with pytest.warns(
            RuntimeWarning, match="nothing was sent. Iterate over it, or call its run"
        ) as caught:
            with client.batch(["a", "b"], model=MODEL):
                pass
        assert [warning.filename for warning in caught] == [__file__]
        assert provider.prompts == []
        with pytest.raises(KeyError), client.batch(["a"], model=MODEL):
            raise KeyError
