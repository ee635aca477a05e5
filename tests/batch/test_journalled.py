"""Batches with a journal: resumed, killed, contradicted, on a full disk."""

import asyncio
import contextlib
import errno
import json
import os
import random
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from omnigate import (
    AsyncClient,
    AuthError,
    Client,
    GatewayError,
    InvalidArgumentError,
    JournalError,
    JournalWarning,
    Outcome,
    RateLimitError,
)
from omnigate._batch import record
from omnigate._batch.journal import file as file_module
from omnigate._batch.journal.file import JournalFile
from omnigate.testing import LocalGateway

from ..support.event_loops import without_debug
from ..support.provider import Provider

MODEL = "gpt-4o-mini"
ITEMS = 700
KILLS = 20

virtual = [pytest.mark.anyio, pytest.mark.virtual_time]


def client_of(provider: Provider, **arguments: Any) -> AsyncClient:
    return AsyncClient("llmg_x", base_url="http://gateway.test", transport=provider, retries=0, **arguments)


async def run(
    provider: Provider, items: Iterable[Any], journal: Path, **arguments: Any
) -> tuple[list[Outcome], dict[str, Any]]:
    """Run a batch to its end; return its outcomes by id, and the lines of its journal."""
    async with client_of(provider).batch(items, model=MODEL, journal=journal, **arguments) as batch:
        outcomes = [outcome async for outcome in batch]
    return outcomes, lines_of(journal)


def lines_of(journal: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines), "more than one line for an id"
    return {line["custom_id"]: line for line in lines}


class TestResuming:
    pytestmark = virtual

    async def test_a_resumed_batch_replays_successes_and_retries_failures(self, tmp_path: Path) -> None:
        journal = tmp_path / "journal.jsonl"
        items = ["a", "status=500", "b", {"id": "x", "messages": "once=500 c"}, 7]
        provider = Provider()
        outcomes, lines = await run(provider, items, journal, stop_on=())
        assert {outcome.id: outcome.error is None for outcome in outcomes} == {
            "0": True, "1": False, "2": True, "x": False, "4": False,
        }  # fmt: skip
        assert {id: line["error"] is None for id, line in lines.items()} == {
            outcome.id: outcome.error is None for outcome in outcomes
        }
        outcomes, lines = await run(provider, items, journal, stop_on=(), ordered=True)
        assert [outcome.replayed for outcome in outcomes] == [True, False, True, False, False]
        assert [outcome.error is None for outcome in outcomes] == [True, False, True, True, False]
        assert outcomes[0].unwrap().content == "a"
        assert outcomes[0].unwrap().meta.request_id == "request-1"
        assert sorted(provider.prompts) == ["a", "b", *["once=500 c"] * 2, *["status=500"] * 2]
        assert len(lines) == 5
        assert oct(journal.stat().st_mode & 0o777) == "0o600"

    async def test_a_resumed_batch_without_replay_skips_successes(self, tmp_path: Path) -> None:
        journal = tmp_path / "journal.jsonl"
        provider = Provider()
        await run(provider, [f"{n}" for n in range(100)], journal)
        items = [f"{n}" for n in range(200)]
        async with client_of(provider).batch(
            items, model=MODEL, journal=journal, replay=False, ordered=True
        ) as batch:
            assert [outcome.index async for outcome in batch] == list(range(100, 200))
            assert (batch.stats.succeeded, batch.stats.replayed) == (100, 100)
        assert len(lines_of(journal)) == 200

    @pytest.mark.proof
    @without_debug
    async def test_a_journal_far_longer_than_the_in_flight_bound_is_replayed(self, tmp_path: Path) -> None:
        journal = tmp_path / "journal.jsonl"
        items = [f"{n}" for n in range(3_000)]
        provider = Provider()
        await run(provider, items, journal, max_concurrency=4)
        outcomes, _ = await run(provider, items, journal, max_concurrency=4)
        assert [outcome.index for outcome in outcomes] == list(range(3_000))
        assert all(outcome.replayed for outcome in outcomes)
        assert len(provider.prompts) == 3_000

    @pytest.mark.parametrize("first", ["1", "status=400"], ids=["success", "failure"])
    async def test_an_item_whose_id_comes_twice_is_a_failed_outcome_and_ends_nothing(
        self, tmp_path: Path, first: str
    ) -> None:
        provider = Provider()
        items = [{"id": "a", "prompt": first}, {"id": "b", "prompt": "2"}, {"id": "a", "prompt": "3"}, "4"]
        for _ in range(2):
            outcomes, lines = await run(provider, iter(items), tmp_path / "journal.jsonl", ordered=True)
            assert [outcome.id for outcome in outcomes] == ["a", "b", "a", "3"]
            assert [outcome.error is None for outcome in outcomes] == [first == "1", True, False, True]
            assert isinstance(outcomes[2].error, InvalidArgumentError)
            assert "item 2 (id 'a'): an earlier item has the same id" in str(outcomes[2].error)
            assert outcomes[2].attempts == 0
            assert outcomes[2].request is not None
            assert (lines["a"]["error"] is None) == (first == "1")
        assert provider.prompts == [first, "2", "4", *([first] if first != "1" else [])]

    async def test_a_list_with_an_id_twice_is_refused_before_anything_is_sent(self, tmp_path: Path) -> None:
        provider = Provider()
        items = [{"id": "a", "prompt": "1"}, {"id": "a", "prompt": "2"}]
        with pytest.raises(InvalidArgumentError, match="got 'a' for items 0 and 1"):
            await run(provider, items, tmp_path / "journal.jsonl")
        assert provider.prompts == []

    async def test_a_failed_item_can_be_run_again_with_another_request(self, tmp_path: Path) -> None:
        provider = Provider()
        journal = tmp_path / "journal.jsonl"
        await run(provider, ["a", "status=400", "c"], journal, stop_on=())
        again = ["a", {"model": "another", "prompt": "b", "temperature": 0.5}, "c"]
        outcomes, lines = await run(provider, again, journal)
        assert [outcome.error for outcome in outcomes] == [None] * 3
        assert lines["1"]["omnigate"]["request"] == {"model": "another", "temperature": 0.5}
        assert sorted(provider.prompts) == ["a", "b", "c", "status=400"]

    @pytest.mark.parametrize("how", ["batch", "chat_many"])
    async def test_a_success_that_is_contradicted_says_which_field_differs(
        self, tmp_path: Path, how: str
    ) -> None:
        journal = tmp_path / "journal.jsonl"
        await run(Provider(), ["a"], journal)
        with pytest.raises(
            JournalError, match=r"'0' belongs to another request, .*: model was 'gpt-4o-mini', is"
        ):
            if how == "batch":
                await client_of(Provider()).batch(["a"], model="other", journal=journal).run()
            else:
                await client_of(Provider()).chat_many(["a"], model="other", journal=journal)

    async def test_a_journalled_id_with_a_different_request_is_raised_when_it_is_read(
        self, tmp_path: Path
    ) -> None:
        provider = Provider()
        journal = tmp_path / "journal.jsonl"
        await run(provider, ["a", "b"], journal)
        before = journal.read_bytes()
        with pytest.raises(JournalError, match="'1'"):
            await run(provider, ["a", "other"], journal)
        assert journal.read_bytes() == before
        assert provider.prompts == ["a", "b"]

    @pytest.mark.parametrize(
        ("prompt", "arguments", "kind"),
        [("status=401", {}, AuthError), ("status=429", {"max_wait_seconds": 1}, RateLimitError)],
    )
    async def test_the_error_that_stopped_the_batch_is_not_journalled(
        self, prompt: str, arguments: dict[str, Any], kind: type[Exception], tmp_path: Path
    ) -> None:
        journal = tmp_path / "journal.jsonl"
        with pytest.raises(kind):
            await run(Provider(), ["a", prompt], journal, max_concurrency=1, **arguments)
        assert list(lines_of(journal)) == ["0"]

    async def test_two_batches_cannot_share_a_journal(self, tmp_path: Path) -> None:
        journal = tmp_path / "journal.jsonl"
        async with client_of(Provider()).batch(["a"], model=MODEL, journal=journal) as batch:
            with pytest.raises(JournalError, match="in use"):
                async with client_of(Provider()).batch(["b"], model=MODEL, journal=journal):
                    pass
            assert len([outcome async for outcome in batch]) == 1
        outcomes, _ = await run(Provider(), ["a"], journal)
        assert outcomes[0].replayed

    async def test_an_unusable_journal_path_stops_the_batch_before_anything_is_sent(
        self, tmp_path: Path
    ) -> None:
        provider = Provider()
        for path in (tmp_path, tmp_path / "none" / "journal.jsonl"):
            with pytest.raises(JournalError, match=str(path)):
                await run(provider, ["a"], path)
        assert provider.prompts == []

    async def test_leaving_a_journalled_batch_early_keeps_its_completed_lines(self, tmp_path: Path) -> None:
        journal = tmp_path / "journal.jsonl"
        provider = Provider()
        items = [f"sleep=1 {n}" for n in range(50)]
        async with client_of(provider).batch(items, model=MODEL, journal=journal, max_concurrency=5) as batch:
            async for outcome in batch:
                if outcome.index == 20:
                    break
        done = set(lines_of(journal))
        assert len(done) >= 21
        outcomes, lines = await run(provider, items, journal)
        assert {outcome.id for outcome in outcomes if outcome.replayed} == done
        assert len(lines) == 50


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(20):
        while not condition():
            await anyio.sleep(0.01)


async def many() -> AsyncIterator[str]:
    """Yield items for some seconds, during which the batch is to end for another reason."""
    for number in range(5_000):
        await anyio.sleep(0.001)
        yield f"{number}"


class TestSyncing:
    """What was paid for is on the disk at every end of a batch, and a few seconds later while it runs.

    In real time: a virtual clock does not wait for threads.
    """

    pytestmark = pytest.mark.anyio

    @pytest.fixture(autouse=True)
    def _soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(record, "SYNC_SECONDS", 0.01)

    @pytest.fixture
    def synced(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """The sizes of the journal whenever it is flushed, and 0 for its directory."""
        sizes: list[int] = []

        def fsync(fd: int) -> None:
            assert threading.current_thread() is not threading.main_thread()
            found = os.fstat(fd)
            sizes.append(found.st_size if stat.S_ISREG(found.st_mode) else 0)

        monkeypatch.setattr(os, "fsync", fsync)
        return sizes

    @pytest.mark.parametrize("ending", ["finished", "break", "stop_on", "raises", "cancelled"])
    async def test_a_batch_flushes_its_journal_however_it_ends(
        self, tmp_path: Path, ending: str, synced: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(record, "SYNC_SECONDS", 1_000.0)
        journal = tmp_path / "journal.jsonl"
        items = [f"{n}" for n in range(20)]
        if ending == "stop_on":
            items[15] = "status=402"
        with contextlib.suppress(GatewayError, KeyError), anyio.CancelScope() as scope:
            async with client_of(Provider()).batch(items, model=MODEL, journal=journal) as batch:
                async for outcome in batch:
                    if outcome.index < 15:
                        continue
                    if ending == "break":
                        break
                    if ending == "raises":
                        raise KeyError
                    if ending == "cancelled":
                        scope.cancel()
        assert max(synced) == journal.stat().st_size > 0
        assert len(synced) == 2
        outcomes, _ = await run(Provider(), items, journal, stop_on=())  # the lock is free
        assert len(outcomes) == 20

    async def test_cancelling_a_batch_natively_flushes_its_journal(
        self, tmp_path: Path, synced: list[int], anyio_backend_name: str
    ) -> None:
        if anyio_backend_name == "trio":
            pytest.skip("has only its scopes")
        journal = tmp_path / "journal.jsonl"

        is_read = anyio.Event()

        async def hold() -> None:
            async with client_of(Provider()).batch(["a", "sleep=9 b"], model=MODEL, journal=journal) as batch:
                await anext(batch)
                is_read.set()
                await anyio.sleep_forever()

        task = asyncio.get_running_loop().create_task(hold())
        await is_read.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert max(synced) == journal.stat().st_size > 0

    async def test_a_running_batch_flushes_its_journal_every_few_seconds(
        self, tmp_path: Path, synced: list[int]
    ) -> None:
        journal = tmp_path / "journal.jsonl"

        async def source() -> AsyncIterator[str]:
            for number in range(4):
                yield f"{number}"
                await until(lambda number=number: len([size for size in synced if size]) > number)

        async with client_of(Provider()).batch(source(), model=MODEL, journal=journal) as batch:
            assert len([outcome async for outcome in batch]) == 4
        assert synced[1] == 0  # of the new file's directory, once
        assert [synced[0], *synced[2:]] == sorted(set(synced) - {0})
        assert len(synced) == 5
        assert synced[-1] == journal.stat().st_size

    @pytest.mark.parametrize("is_read", [True, False])
    async def test_a_flush_that_fails_ends_a_running_batch_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_read: bool
    ) -> None:
        def fsync(fd: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "fsync", fsync)
        seen: list[int] = []
        batch = client_of(Provider()).batch(many(), model=MODEL, journal=tmp_path / "journal.jsonl")
        if is_read:
            async with batch:
                with pytest.raises(JournalError, match="Cannot write to the journal .*: Input/output error"):
                    async for outcome in batch:
                        seen.append(outcome.index)
            assert 0 < len(seen) < 5_000
        else:
            with pytest.raises(JournalError, match="Cannot write to the journal .*: Input/output error"):
                async with batch:
                    await until(lambda: batch.stats.succeeded and "failed" in repr(batch))


CHANGES: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "moved": lambda path: path.rename(path.with_suffix(".1")),
    "rotated": lambda path: path.rename(path.with_suffix(".1")) and path.touch(),
    "truncated": lambda path: os.truncate(path, 0),
}


class TestOthersWhoChangeTheJournal:
    pytestmark = [  # noqa: RUF012 - pytest takes a list
        pytest.mark.anyio,
        pytest.mark.skipif(sys.platform == "win32", reason="cannot be done there"),
    ]

    @pytest.mark.parametrize("change", CHANGES)
    async def test_a_journal_that_is_changed_ends_a_running_batch(
        self, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(record, "SYNC_SECONDS", 0.01)
        journal = tmp_path / "journal.jsonl"
        seen: list[int] = []
        with pytest.raises(JournalError, match="while it was in use"):
            async with client_of(Provider()).batch(many(), model=MODEL, journal=journal) as batch:
                async for outcome in batch:
                    assert outcome.error is None
                    seen.append(outcome.index)
                    if outcome.index == 3:
                        CHANGES[change](journal)
        assert 4 <= len(seen) < 5_000

    @pytest.mark.parametrize("change", CHANGES)
    async def test_a_journal_that_is_changed_is_noticed_at_the_end_of_a_batch(
        self, tmp_path: Path, change: str
    ) -> None:
        journal = tmp_path / "journal.jsonl"
        count = 0
        with pytest.raises(JournalError, match="while it was in use"):
            async with client_of(Provider()).batch(["a", "b"], model=MODEL, journal=journal) as batch:
                async for _ in batch:
                    count += 1
                    if count == 2:
                        CHANGES[change](journal)
        assert count == 2

    @pytest.mark.blocks  # the source removes the journal
    @pytest.mark.parametrize("return_exceptions", [True, False])
    async def test_chat_many_returns_its_answers_and_warns_of_a_journal_that_is_gone(
        self, tmp_path: Path, return_exceptions: bool
    ) -> None:
        journal = tmp_path / "journal.jsonl"

        def source() -> Iterator[str]:
            yield "a"
            yield "b"
            journal.unlink()

        with pytest.warns(JournalWarning, match="was deleted or moved while it was in use") as caught:
            answers = await client_of(Provider()).chat_many(
                source(), model=MODEL, journal=journal, return_exceptions=return_exceptions
            )
        assert [answer.content for answer in answers] == ["a", "b"]  # type: ignore[union-attr]
        assert [warning.filename for warning in caught] == [__file__]

    async def test_a_journal_without_locks_can_be_used_knowingly(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def lock(fd: int) -> None:
            raise OSError(errno.ENOSYS, "Function not implemented")

        monkeypatch.setattr(file_module, "lock_file", lock)
        journal = tmp_path / "journal.jsonl"
        with pytest.raises(JournalError, match="pass journal_lock=False"):
            await run(Provider(), ["a"], journal)
        outcomes, _ = await run(Provider(), ["a"], journal, journal_lock=False)
        assert len(outcomes) == 1
        answers = await client_of(Provider()).chat_many(
            ["a", "b"], model=MODEL, journal=journal, journal_lock=False
        )
        assert len(answers) == 2


class TestWhatCannotBeWritten:
    pytestmark = virtual

    @pytest.fixture(autouse=True)
    def _full_disk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def append(file: JournalFile, line: bytes) -> int:
            raise JournalError("No space left on device")

        monkeypatch.setattr(JournalFile, "append", append)

    async def test_a_journal_write_error_is_raised_once_where_the_batch_is_iterated(
        self, tmp_path: Path
    ) -> None:
        async with client_of(Provider()).batch(["a", "b"], model=MODEL, journal=tmp_path / "j") as batch:
            with pytest.raises(JournalError, match="No space left"):
                async for outcome in batch:
                    outcome.unwrap()

    async def test_a_journal_write_error_is_raised_at_the_end_of_a_block_left_early(
        self, tmp_path: Path
    ) -> None:
        with pytest.raises(JournalError, match="No space left"):
            async with client_of(Provider()).batch(["a", "b"], model=MODEL, journal=tmp_path / "j") as batch:
                async for _ in batch:
                    break

    async def test_a_journal_write_error_is_added_as_a_note_to_the_blocks_exception(
        self, tmp_path: Path
    ) -> None:
        note = "also failed at the end of the batch: JournalError: No space left on device"
        with pytest.raises(KeyError) as raised:
            async with client_of(Provider()).batch(["a", "b"], model=MODEL, journal=tmp_path / "j") as batch:
                async for _ in batch:
                    raise KeyError("mine")
        assert raised.value.__notes__ == [note]
        with anyio.move_on_after(5) as scope:
            async with client_of(Provider()).batch(
                ["a", "sleep=9 b"], model=MODEL, journal=tmp_path / "j"
            ) as batch:
                await anext(batch)
                await anyio.sleep_forever()
        assert scope.cancelled_caught

    async def test_a_journal_write_error_is_added_as_a_note_to_the_error_that_stopped_the_batch(
        self, tmp_path: Path
    ) -> None:
        provider = Provider()
        client = client_of(provider)
        assert len(await client.chat_many(["first"], model=MODEL)) == 1  # so that no later call goes alone
        seen: list[int] = []
        with pytest.raises(AuthError) as raised:
            async with client.batch(
                ["sleep=1 status=401", "sleep=2 b"], model=MODEL, journal=tmp_path / "j"
            ) as batch:
                async for outcome in batch:
                    seen.append(outcome.index)
        assert seen == [0, 1]
        assert (
            "also failed at the end of the batch: JournalError: No space left on device"
            in raised.value.__notes__
        )


class TestCompactionThatFails:
    """The run has finished and the journal is whole: that is a warning, and loses no response."""

    pytestmark = virtual

    @pytest.fixture
    async def journal(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A journal whose compaction after the next run will fail."""
        journal = tmp_path / "journal.jsonl"
        await run(Provider(), ["a", "status=400"], journal)

        def replace(source: str, target: str) -> None:
            raise OSError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(os, "replace", replace)
        return journal

    async def test_chat_many_warns_of_a_failed_compaction_and_returns_its_answers(
        self, journal: Path
    ) -> None:
        with pytest.warns(JournalWarning, match="Cannot compact the journal .*: Permission denied") as caught:
            answers = await client_of(Provider()).chat_many(
                ["a", "status=400"], model=MODEL, journal=journal, return_exceptions=True
            )
        assert len(answers) == 2
        assert [warning.filename for warning in caught] == [__file__]
        assert len(journal.read_bytes().splitlines()) == 3  # noqa: ASYNC240
        assert os.listdir(journal.parent) == [journal.name]

    async def test_a_failed_compaction_does_not_change_how_the_batch_ends(self, journal: Path) -> None:
        provider = Provider()
        with pytest.warns(JournalWarning):
            async with client_of(provider).batch(["a", "status=400"], model=MODEL, journal=journal) as batch:
                assert len([outcome async for outcome in batch]) == 2
        with pytest.raises(KeyError) as raised:
            async with client_of(provider).batch(["a", "status=400"], model=MODEL, journal=journal) as batch:
                assert len([outcome async for outcome in batch]) == 2
                raise KeyError("mine")
        assert "Cannot compact the journal" in raised.value.__notes__[0]

    async def test_a_failing_fsync_at_the_end_of_a_batch_is_a_journal_error(
        self, journal: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fsync(fd: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(JournalError, match="Cannot write to the journal"):
            await run(Provider(), ["a", "status=400"], journal)


class TestLongNames:
    pytestmark = virtual

    @pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "x" * 101])
    async def test_a_journal_may_have_any_valid_file_name(self, name: str, tmp_path: Path) -> None:
        for _ in range(2):
            await run(Provider(), ["a", "status=400"], tmp_path / name)
        assert os.listdir(tmp_path) == [name]


FULL_DISK = """
import resource, signal, sys
import omnigate
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
url, key, journal, count = sys.argv[1:]
with omnigate.Client(key, base_url=url) as client:
    try:
        with client.batch((f"number {n}" for n in range(int(count))), model="gpt-4o-mini", journal=journal,
                          max_concurrency=4) as batch:
            for outcome in batch:
                print(outcome.id, outcome.error is None, flush=True)
    except omnigate.JournalError as error:
        print("JournalError", error)
"""


def test_a_full_disk_stops_the_batch_and_loses_no_completed_item(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    with LocalGateway() as gateway:
        command = [sys.executable, "-c", FULL_DISK, gateway.url, gateway.api_key, str(journal), "500"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        *outcomes, error = done.stdout.splitlines()
        assert error.startswith("JournalError")
        assert str(journal) in error
        assert "File too large" in error
        assert {line.split()[1] for line in outcomes} == {"True"}
        lines = lines_of(journal)
        handed_out = {line.split()[0] for line in outcomes}
        assert len(lines) > 10
        assert set(lines) <= handed_out
        assert len(handed_out - set(lines)) <= 4  # those that were in flight when the disk was full
        called = len(gateway.requests)
        with Client(gateway.api_key, base_url=gateway.url) as client:
            answers = client.chat_many((f"number {n}" for n in range(500)), model=MODEL, journal=journal)
        assert len(answers) == 500
        assert len(gateway.requests) - called == 500 - len(lines)


KILLED = """
import sys
import anyio
import omnigate
url, key, journal, count, face = sys.argv[1:]
items = ({"id": f"id-{n}", "messages": f"number {n}"} for n in range(int(count)))
options = {"model": "gpt-4o-mini", "journal": journal, "max_concurrency": 8, "replay": False}

async def main():
    async with omnigate.AsyncClient(key, base_url=url) as client, client.batch(items, **options) as batch:
        async for outcome in batch:
            print(outcome.unwrap().content, flush=True)

if face == "sync":
    with omnigate.Client(key, base_url=url) as client, client.batch(items, **options) as batch:
        for outcome in batch:
            print(outcome.unwrap().content, flush=True)
else:
    anyio.run(main, backend=face)
print("complete", flush=True)
"""


@pytest.mark.proof
def test_a_batch_killed_at_any_moment_resumes_where_it_stopped(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    chance = random.Random(4)  # of the progress; where the process is by then is chance anyway
    kills = 0
    successes: set[str] = set()
    with LocalGateway() as gateway:
        for attempt in range(KILLS * 3):
            called = len(gateway.requests)
            face = ("sync", "asyncio", "trio")[attempt % 3]
            command = [
                sys.executable, "-c", KILLED, gateway.url, gateway.api_key, str(journal), str(ITEMS), face,
            ]  # fmt: skip
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                progress = chance.randrange(1, 2 * ITEMS // KILLS // 2)
                printed = [process.stdout.readline() for _ in range(progress)] if kills < KILLS + 2 else []
                is_complete = "complete\n" in printed or (
                    not printed and "complete\n" in process.stdout.read()
                )
                if not is_complete:
                    process.kill()
                    kills += 1
            made = {
                json.loads(request.body)["messages"][0]["content"]
                for request in list(gateway.requests)[called:]
            }
            assert not {id.replace("id-", "number ") for id in successes} & made, "called again"
            before, successes = successes, successes_on_disk(journal)
            assert before <= successes
            assert is_complete or len(successes) >= len(before) + progress
            if is_complete:
                break
    assert is_complete
    assert kills >= KILLS
    assert set(lines_of(journal)) == {f"id-{n}" for n in range(ITEMS)}


def successes_on_disk(journal: Path) -> set[str]:
    """Return the ids of whole lines of success."""
    whole = journal.read_bytes().rpartition(b"\n")[0].splitlines()
    return {line["custom_id"] for line in map(json.loads, whole) if line["error"] is None}


def test_the_journal_of_a_sync_batch_contains_no_api_key(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    with LocalGateway() as gateway, Client(gateway.api_key, base_url=gateway.url) as client:
        client.chat_many(["a", "b"], model=MODEL, journal=journal)
        assert gateway.api_key not in journal.read_text()
        assert os.stat(journal).st_mode & 0o777 == 0o600
