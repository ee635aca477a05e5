"""Batches with a journal: resumed, killed, contradicted, on a full disk."""

import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from omnigate import AsyncClient, AuthError, Client, JournalError, JournalWarning, Outcome, RateLimitError
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
    provider: Provider, items: list[Any], journal: Path, **arguments: Any
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

    async def test_a_duplicate_id_in_the_source_is_raised_when_it_is_read(self, tmp_path: Path) -> None:
        provider = Provider()
        items = [{"id": "a", "messages": "1"}, {"id": "b", "messages": "2"}, {"id": "a", "messages": "1"}]
        with pytest.raises(JournalError, match="'a'"):
            await run(provider, items, tmp_path / "journal.jsonl")
        assert (
            "1"
            in lines_of(tmp_path / "journal.jsonl")["a"]["response"]["body"]["choices"][0]["message"][
                "content"
            ]
        )

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
