"""Batches of the sync client: the source is read in the caller's thread, the rest is the async batch."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

import omnigate
from omnigate import (
    Client,
    ClientClosedError,
    InvalidArgumentError,
    NotStartedError,
    RetryConfig,
)
from omnigate.testing import LocalGateway

from ..support.interrupts import everywhere
from ..support.provider import Provider

MODEL = "gpt-4o-mini"


def client_of(provider: httpx.AsyncBaseTransport, backend: Any, **arguments: Any) -> Client:
    retries = RetryConfig(backoff_base=0, jitter=0)
    return Client(
        "llmg_x",
        base_url="http://gateway.test",
        transport=provider,
        backend=backend,
        retry_config=retries,
        **arguments,
    )


@pytest.mark.parametrize("ordered", [False, True])
def test_every_sync_batch_item_has_exactly_one_outcome(backend: Any, ordered: bool) -> None:
    provider = Provider()
    with client_of(provider, backend) as client:
        with client.batch((f"{n}" for n in range(2_000)), model=MODEL, ordered=ordered) as batch:
            outcomes = list(batch)
        assert batch.stats.succeeded == 2_000
    indexes = [outcome.index for outcome in outcomes]
    assert (indexes if ordered else sorted(indexes)) == list(range(2_000))
    assert all(outcome.unwrap().content == str(outcome.index) for outcome in outcomes)


def test_a_sync_batch_iterates_its_source_in_the_callers_thread(backend: Any) -> None:
    threads: set[threading.Thread] = set()

    def source() -> Iterator[str]:
        for n in range(300):
            threads.add(threading.current_thread())
            yield f"{n}"
        threads.add(threading.current_thread())

    with client_of(Provider(), backend) as client:
        assert len(client.chat_many(source(), model=MODEL)) == 300
    assert threads == {threading.current_thread()}


def test_a_sync_batch_reads_its_source_no_faster_than_it_sends(backend: Any) -> None:
    read: list[int] = []

    def source() -> Iterator[str]:
        for n in range(10_000):
            read.append(n)
            yield f"{n}"

    provider = Provider()
    with (
        client_of(provider, backend) as client,
        client.batch(source(), model=MODEL, max_concurrency=4) as batch,
    ):
        for count, _ in enumerate(batch):
            assert len(read) <= count + 100
            if count == 500:
                break
    assert provider.in_flight == 0


def test_a_sync_batch_over_real_sockets_reads_a_file_and_resumes_from_its_journal(
    backend: Any, tmp_path: Path
) -> None:
    path = tmp_path / "batch.jsonl"
    path.write_text(
        "".join(
            f'{{"custom_id": "q{n}", "body": {{"messages": [{{"role": "user", "content": "{n}"}}]}}}}\n'
            for n in range(300)
        )
    )
    with LocalGateway() as gateway, Client(gateway.api_key, base_url=gateway.url, backend=backend) as client:
        for run in range(2):
            with client.batch(
                path, model=MODEL, journal=tmp_path / "journal.jsonl", max_concurrency=16
            ) as batch:
                outcomes = {outcome.id: outcome for outcome in batch}
            assert set(outcomes) == {f"q{n}" for n in range(300)}
            assert all(outcome.replayed == bool(run) for outcome in outcomes.values())
            assert outcomes["q7"].unwrap().content == "echo[gpt-4o-mini]: 7"
        assert len([r for r in gateway.requests if r.path == "/v1/chat"]) == 300


def test_a_sync_batch_raises_exceptions_of_its_source_or_consumer_unchanged(backend: Any) -> None:
    def source() -> Iterator[str]:
        yield "a"
        yield "sleep=0.05 b"
        raise LookupError("of the source")

    provider = Provider()
    seen: list[int] = []
    with client_of(provider, backend) as client:
        with pytest.raises(LookupError, match="of the source"):
            with client.batch(source(), model=MODEL) as batch:
                for outcome in batch:
                    seen.append(outcome.index)
        assert seen == [0, 1]
        with pytest.raises(LookupError, match="of the consumer"):
            with client.batch((f"{n}" for n in range(1_000)), model=MODEL) as batch:
                for _ in batch:
                    raise LookupError("of the consumer")
        assert provider.in_flight == 0
        with pytest.raises(omnigate.AuthError):
            with client.batch(["a", "status=401"], model=MODEL) as batch:
                assert [outcome.index for outcome in batch] == [0, 1]
        assert client.chat(model=MODEL, messages="still works").content == "still works"


def test_iterating_a_sync_batch_outside_its_block_is_an_error_that_says_so(backend: Any) -> None:
    with client_of(Provider(), backend) as client:
        batch = client.batch(["a"], model=MODEL)
        with pytest.raises(NotStartedError, match="`with`"):
            next(batch)
        with batch:
            assert len(list(batch)) == 1
        with pytest.raises(NotStartedError):
            next(batch)
        with pytest.raises(NotStartedError, match="once"):
            with batch:
                pass
    with pytest.raises(ClientClosedError):
        with client.batch(["a"], model=MODEL):
            pass


def test_a_sync_batch_refuses_bad_arguments(backend: Any) -> None:
    async def source() -> Any:
        yield "a"

    with client_of(Provider(), backend) as client:
        with pytest.raises(
            InvalidArgumentError, match="^requests must be an iterable of items, .*, got 'abc'"
        ):
            client.batch("abc", model=MODEL)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match="AsyncClient reads async iterables"):
            client.batch(source(), model=MODEL)  # type: ignore[arg-type]
        with pytest.raises(
            InvalidArgumentError, match="max_concurrency must be an integer of at least 1, or 'auto', got 0"
        ):
            client.batch([], max_concurrency=0)
        with pytest.raises(FileNotFoundError):
            with client.batch(Path("/nowhere/batch.jsonl")) as batch:
                list(batch)


def test_sync_chat_many_returns_responses_in_order_and_raises_or_returns_errors(backend: Any) -> None:
    with client_of(Provider(), backend) as client:
        assert [a.content for a in client.chat_many(["sleep=0.02 a", "b"], model=MODEL)] == [
            "sleep=0.02 a",
            "b",
        ]
        with pytest.raises(omnigate.APIError):
            client.chat_many(["a", "status=400"], model=MODEL)
        answers = client.chat_many(["a", "status=400"], model=MODEL, return_exceptions=True)
        assert isinstance(answers[1], omnigate.APIError)


@pytest.mark.proof
def test_several_batches_of_one_sync_client_run_in_threads(backend: Any) -> None:
    results: list[int] = []
    with client_of(Provider(), backend) as client:

        def run() -> None:
            results.append(len(client.chat_many((f"{n}" for n in range(300)), model=MODEL)))

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert results == [300] * 8


def test_closing_a_sync_client_ends_its_batch_in_another_thread(backend: Any) -> None:
    provider = Provider()
    client = client_of(provider, backend)
    raised: list[BaseException] = []
    begun = threading.Event()

    def run() -> None:
        try:
            with client.batch(["a", "sleep=1000 b"], model=MODEL) as batch:
                for _ in batch:
                    begun.set()
        except BaseException as error:  # noqa: BLE001
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(10)
    client.close()
    thread.join(10)
    assert not thread.is_alive()
    assert [type(error) for error in raised] == [ClientClosedError]


def test_a_sync_batch_left_early_is_left_quietly_after_its_client_was_closed(
    backend: Any, tmp_path: Path
) -> None:
    client, journal = client_of(Provider(), backend), tmp_path / "journal.jsonl"
    with client.batch(["a", "sleep=1000 b"], model=MODEL, journal=journal) as batch:
        assert next(batch).unwrap().content == "a"
        client.close()
        assert batch.stats.succeeded == 1
    assert batch.stats.succeeded == 1
    assert len(journal.read_text().splitlines()) >= 1


def test_ctrl_c_ends_a_sync_batch_and_leaves_the_client_usable(backend: Any) -> None:
    provider = Provider()
    with client_of(provider, backend) as client:
        with pytest.raises(KeyboardInterrupt):
            with client.batch(["a", "sleep=1000 b"], model=MODEL) as batch:
                for outcome in batch:
                    assert outcome.index == 0
                    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
                    timer.start()
        timer.join()
        assert provider.in_flight == 0
        assert client.chat(model=MODEL, messages="still works").content == "still works"


# Ctrl-C anywhere


@pytest.fixture
def _no_wait_ends_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a wait that misses its event hang instead of timing out."""
    monkeypatch.setattr("omnigate._sync.loop_thread._INTERRUPT_SECONDS", -1)


@pytest.mark.usefixtures("_no_wait_ends_by_time")
@pytest.mark.proof
def test_a_sync_batch_iterated_on_after_ctrl_c_yields_every_outcome_once(backend: Any) -> None:
    def source() -> Iterator[str]:
        for n in range(12):
            yield f"{n}"
        raise LookupError("of the source")

    with client_of(Provider(), backend) as client:
        client.chat(model=MODEL, messages="starts the thread")
        for interrupt in everywhere():
            with client.batch(source(), model=MODEL) as batch:
                seen: list[int] = []
                with pytest.raises(LookupError), interrupt:
                    while True:
                        try:
                            seen.append(next(batch).index)
                        except KeyboardInterrupt:
                            continue
            assert sorted(seen) == list(range(12))


@pytest.mark.usefixtures("_no_wait_ends_by_time")
@pytest.mark.proof
def test_ctrl_c_anywhere_in_a_sync_batch_block_leaves_nothing_running(backend: Any, tmp_path: Path) -> None:
    async def wait_for(left: anyio.Event) -> None:
        with anyio.fail_after(10):
            await left.wait()

    provider = Provider()
    journal = tmp_path / "journal.jsonl"
    with client_of(provider, backend) as client:
        client.chat(model=MODEL, messages="starts the thread")
        for interrupt in everywhere():
            batch = client.batch(["a", "b", "sleep=1000 c"], model=MODEL, journal=journal)
            with suppress(KeyboardInterrupt), interrupt, batch:
                for outcome in batch:
                    if outcome.index == 1:
                        break
            left = batch._inside._left
            del batch  # if the interrupt came just as `__exit__` was called, only this ends the batch
            if left is not None:
                client._portal.call(partial(wait_for, left))
            assert provider.in_flight == 0
            with client.batch(["a"], model=MODEL, journal=journal) as again:
                assert [outcome.index for outcome in again] == [0]


# Misuse


def test_entering_a_sync_batch_twice_is_refused_and_it_ends_with_its_own_block(
    backend: Any, tmp_path: Path
) -> None:
    provider = Provider()
    journal = tmp_path / "journal.jsonl"
    with client_of(provider, backend) as client:
        with client.batch(["a", "b", "sleep=1000 c"], model=MODEL, journal=journal) as batch:
            assert next(batch).index == 0
            with pytest.raises(NotStartedError, match="once"), batch:
                pytest.fail("entered")
            assert next(batch).index == 1
        assert provider.in_flight == 0
        assert len(client.chat_many(["a"], model=MODEL, journal=journal)) == 1


def test_a_sync_batch_that_failed_to_start_can_be_entered_again(backend: Any, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    with client_of(Provider(), backend) as client:
        batch = client.batch(["a"], model=MODEL, journal=journal)
        with client.batch(["a"], model=MODEL, journal=journal) as first:
            with pytest.raises(omnigate.JournalError), batch:
                pytest.fail("entered")
            assert len(list(first)) == 1
        with batch:
            assert len(list(batch)) == 1


def test_a_sync_batch_has_its_stats_in_its_own_callbacks(backend: Any) -> None:
    shown: list[omnigate.BatchStats] = []

    def stop_on(_: omnigate.GatewayError) -> bool:
        shown.append(batch.stats)
        return False

    with client_of(Provider(), backend) as client:
        with client.batch(["a", "status=400", "b"], model=MODEL, stop_on=stop_on, max_concurrency=1) as batch:
            assert len(list(batch)) == 3
    assert [(stats.succeeded, stats.failed) for stats in shown] == [(1, 1)]


def test_a_sync_batch_callback_that_calls_the_client_ends_the_batch_with_an_error(backend: Any) -> None:
    with client_of(Provider(), backend) as client:
        with pytest.raises(NotStartedError, match="within its own callback"):
            with client.batch(
                ["a", "status=400"], model=MODEL, stop_on=lambda _: bool(client.ready())
            ) as batch:
                list(batch)
        assert client.chat(model=MODEL, messages="still works").content == "still works"


@pytest.mark.parametrize("kind", [list, iter])
@pytest.mark.parametrize("bad", ["status=401", "status=429"])
def test_sync_chat_many_returns_what_was_paid_for_when_the_batch_is_stopped(
    backend: Any, kind: Any, bad: str
) -> None:
    provider = Provider()
    prompts = [f"question {number}" for number in range(500)]
    prompts[40] = bad
    with client_of(provider, backend) as client:
        answers = client.chat_many(
            kind(prompts), model=MODEL, return_exceptions=True, max_concurrency=5, max_wait_seconds=10
        )
    assert len(answers) == 500
    paid = [answer.content for answer in answers if isinstance(answer, omnigate.ChatResponse)]
    assert sorted(paid) == sorted(provider.answered)
    assert 40 <= len(paid) < 60
    assert {type(answer) for answer in answers[200:]} == {type(answers[40])}


def test_sync_chat_many_raises_an_exception_of_the_source(backend: Any) -> None:
    def source() -> Iterator[str]:
        yield "a"
        raise omnigate.InvalidArgumentError("mine")

    with client_of(Provider(), backend) as client, pytest.raises(omnigate.InvalidArgumentError, match="mine"):
        client.chat_many(source(), model=MODEL, return_exceptions=True)


def test_a_sync_batch_with_a_repeated_id_goes_on(backend: Any, tmp_path: Path) -> None:
    items = [{"id": "a", "messages": "x"}, {"id": "b", "messages": "y"}, {"id": "a", "messages": "z"}]
    journal = tmp_path / "journal.jsonl"
    with client_of(Provider(), backend) as client:
        with client.batch(iter(items), model=MODEL, journal=journal, ordered=True) as batch:
            assert [outcome.error is None for outcome in batch] == [True, True, False]
        with pytest.raises(omnigate.InvalidArgumentError, match="got 'a' for items 0 and 2"):
            client.batch(items, model=MODEL, journal=journal)


def test_a_journal_deleted_during_a_sync_batch_is_noticed_at_its_end(backend: Any, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    with client_of(Provider(), backend) as client:
        with pytest.raises(omnigate.JournalError, match="was deleted or moved while it was in use"):
            with client.batch(["a"], model=MODEL, journal=journal) as batch:
                assert len(list(batch)) == 1
                journal.unlink()
        with pytest.warns(omnigate.JournalWarning, match="was deleted or moved") as caught:
            answers = client.chat_many(remove_at_end(journal), model=MODEL, journal=journal)
        assert len(answers) == 1
        assert [warning.filename for warning in caught] == [__file__]


def remove_at_end(journal: Path) -> Iterator[str]:
    yield "a"
    journal.unlink()
