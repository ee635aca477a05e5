"""How a batch shows its progress: to a callable, in a terminal, in a notebook, in a log."""

import asyncio
import contextlib
import errno
import io
import os
import re
import subprocess
import sys
import threading
import types
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from rich.console import Console

import omnigate
from omnigate import AsyncClient, BatchStats, JournalError
from omnigate._batch import progress
from omnigate._batch.display import Display, Part, duration, fitted, parts, words
from omnigate._batch.journal.journal import Journal

from ..support.provider import Provider

virtual = [pytest.mark.anyio, pytest.mark.virtual_time]

STATS = BatchStats(
    succeeded=1_234,
    failed=5,
    replayed=70,
    in_flight=64,
    calls_per_second=31.25,
    total_tokens=98_765,
    cost_usd=1.25,
    waiting_until=datetime(2026, 11, 24, 12, 30, tzinfo=UTC),
)


def client() -> AsyncClient:
    return AsyncClient("llmg_x", base_url="http://gateway.test", transport=Provider())


class TestCallable:
    pytestmark = virtual

    async def test_progress_callback_gets_the_stats_during_the_batch_and_at_its_end(self) -> None:
        seen: list[BatchStats] = []
        items = [f"sleep=1 {n}" for n in range(5)]
        async with client().batch(items, model="gpt-4o", max_concurrency=1, progress=seen.append) as batch:
            assert len([outcome async for outcome in batch]) == 5
        assert [stats.succeeded for stats in seen[:-1]] == sorted(stats.succeeded for stats in seen[:-1])
        assert {stats.succeeded for stats in seen} >= {0, 1, 2, 3, 4, 5}
        assert len(seen) >= 20
        assert (seen[-1].succeeded, seen[-1].in_flight) == (5, 0)

    async def test_an_exception_in_the_progress_callback_ends_the_batch_unchanged(self) -> None:
        def broken(stats: BatchStats) -> None:
            if stats.succeeded >= 2:
                raise LookupError("broken progress")

        items = [f"sleep=1 {n}" for n in range(50)]
        with pytest.raises(LookupError, match="broken progress"):
            async with client().batch(items, model="gpt-4o", max_concurrency=1, progress=broken) as batch:
                assert len([outcome async for outcome in batch]) < 10

    async def test_a_progress_callback_that_returns_a_coroutine_ends_the_batch(self) -> None:
        async def show(stats: BatchStats) -> None:
            pass

        called: list[BatchStats] = []

        def progress(stats: BatchStats) -> object:
            called.append(stats)
            return show(stats)

        with pytest.raises(
            omnigate.GatewayError,
            match="progress must be a plain function, not async: it returned a coroutine",
        ):
            async with client().batch(["sleep=5 a"], model="gpt-4o", progress=progress) as batch:
                assert [outcome async for outcome in batch] == []
        assert len(called) == 1

    async def test_a_progress_callback_may_return_a_task(self, anyio_backend_name: str) -> None:
        seen: list[int] = []
        results: list[object] = []

        async def show(stats: BatchStats) -> None:
            seen.append(stats.succeeded)

        def progress(stats: BatchStats) -> object:
            if anyio_backend_name == "asyncio":
                results.append(asyncio.get_running_loop().create_task(show(stats)))
                return results[-1]
            seen.append(stats.succeeded)
            return None

        async with client().batch(["a"], model="gpt-4o", progress=progress) as batch:
            assert len([outcome async for outcome in batch]) == 1
        await anyio.sleep(1)
        assert seen[-1] == 1

    @pytest.mark.parametrize("ending", ["raises", "is cancelled", "is cancelled natively"])
    async def test_a_progress_error_at_the_end_does_not_mask_the_blocks_own_exception(
        self, ending: str, anyio_backend_name: str
    ) -> None:
        is_over = False

        def progress(stats: BatchStats) -> None:
            if is_over:
                raise LookupError("broken at the end")

        async def run() -> None:
            nonlocal is_over
            async with client().batch(["a", "sleep=9 b"], model="gpt-4o", progress=progress) as batch:
                try:
                    async for _ in batch:
                        if ending == "raises":
                            raise KeyError("mine")
                finally:
                    is_over = True

        if ending == "raises":
            with pytest.raises(KeyError, match="mine") as raised:
                await run()
            assert raised.value.__notes__ == [
                "also failed at the end of the batch: LookupError: broken at the end"
            ]
        elif ending == "is cancelled":
            with anyio.move_on_after(3) as scope:
                await run()
            assert scope.cancelled_caught
        elif anyio_backend_name == "asyncio":
            task = asyncio.get_running_loop().create_task(run())
            await anyio.sleep(3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()

    async def test_a_progress_error_at_the_end_of_a_successful_block_is_raised(self) -> None:
        def progress(stats: BatchStats) -> None:
            if stats.succeeded and not stats.in_flight:
                raise LookupError("broken at the end")

        with pytest.raises(LookupError, match="broken at the end"):
            async with client().batch(["a"], model="gpt-4o", progress=progress) as batch:
                assert len([outcome async for outcome in batch]) == 1

    async def test_progress_true_without_rich_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "rich", None)
        with pytest.raises(omnigate.GatewayError, match=r"pip install 'omnigate\[cli\]'"):
            client().batch(["a"], model="gpt-4o", progress=True)

    async def test_progress_true_writes_to_stderr(self, capsys: pytest.CaptureFixture[str]) -> None:
        async with client().batch(["a", "b"], model="gpt-4o", progress=True) as batch:
            assert len([outcome async for outcome in batch]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert " 100 % of 2: 2 done, 0 in flight" in printed.err.splitlines()[-1]


class TestReadingTheJournal:
    """In real time: a virtual clock does not wait for threads."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def reading(self) -> threading.Event:
        """Set once a journal is half read."""
        return threading.Event()

    @pytest.fixture(autouse=True)
    def shown(self, monkeypatch: pytest.MonkeyPatch, reading: threading.Event) -> threading.Event:
        """Let a journal take until this event, or five seconds, to be read, and be half read meanwhile."""
        shown, read = threading.Event(), Journal.open

        def read_slowly(journal: Journal) -> None:
            journal.read_percent = 50.0
            reading.set()
            shown.wait(5)
            read(journal)

        monkeypatch.setattr(Journal, "open", read_slowly)
        monkeypatch.setattr(progress, "_SECONDS", 0.01)
        return shown

    async def test_the_progress_callback_sees_how_much_of_the_journal_has_been_read(
        self, tmp_path: Path, shown: threading.Event
    ) -> None:
        seen: list[BatchStats] = []

        def show(stats: BatchStats) -> None:
            seen.append(stats)
            if stats.reading_percent == 50.0:
                shown.set()

        journal = tmp_path / "answers.jsonl"
        async with client().batch(["a"], model="gpt-4o", journal=journal, progress=show) as batch:
            assert {stats.reading_percent for stats in seen} >= {50.0}
            async for _ in batch:
                pass

    async def test_an_error_of_the_progress_callback_while_the_journal_is_read_is_raised(
        self, tmp_path: Path, reading: threading.Event, shown: threading.Event
    ) -> None:
        def broken(stats: BatchStats) -> None:
            if reading.is_set():
                shown.set()
                raise LookupError("broken progress")

        journal = tmp_path / "answers.jsonl"
        with pytest.raises(LookupError, match="broken progress"):
            async with client().batch(["a"], model="gpt-4o", journal=journal, progress=broken):
                raise AssertionError("entered")
        assert (
            await client().batch(["a"], model="gpt-4o", journal=journal).run()
        ).succeeded == 1  # it is unlocked

    async def test_a_journal_that_cannot_be_read_is_one_plain_error(
        self, tmp_path: Path, shown: threading.Event
    ) -> None:
        journal = tmp_path / "answers.jsonl"
        journal.write_text("nonsense\n")
        with pytest.raises(JournalError, match="line 1"):
            async with client().batch(
                ["a"], model="gpt-4o", journal=journal, progress=lambda stats: shown.set()
            ):
                raise AssertionError("entered")


def test_progress_words_summarize_the_stats_in_one_line() -> None:
    now = datetime(2026, 11, 24, 12, 29, 37, tzinfo=UTC)
    assert words(STATS, now=now) == (
        "1,234 done, 5 failed, 70 from the journal, 64 in flight, 31.2/s, 98,765 tokens, 1.2500 USD, "
        "waiting for the next window, 23 s"
    )
    assert words(BatchStats(succeeded=1)) == "1 done, 0 in flight, 0.0/s, 0 tokens, 0.0000 USD"


def test_progress_words_tell_the_share_the_time_left_and_the_projected_cost_of_a_known_total() -> None:
    stats = BatchStats(
        succeeded=1_000, total=4_000, cost_usd=0.00008, projected_cost_usd=0.00032, seconds_left=250.2
    )
    assert words(stats) == (
        "25 % of 4,000: 1,000 done, 0 in flight, 0.0/s, 0 tokens, 0.00008 USD of about 0.00032 USD, 4 min 11 s left"
    )


def test_progress_words_tell_how_much_of_the_journal_and_of_the_file_has_been_read() -> None:
    assert words(BatchStats(reading_percent=45.4)) == "reading the journal, 45 %"
    assert words(BatchStats(counted=12_000)) == "counting the items, 12,000 so far"


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("rate window", "the next window"),
        ("provider", "the provider"),
        ("outage", "the end of an outage"),
        (None, "the next window"),
    ],
)
def test_progress_words_tell_what_is_waited_for(reason: Any, told: str) -> None:
    now = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
    stats = BatchStats(waiting_until=datetime(2026, 11, 24, 13, 5, tzinfo=UTC), waiting_for=reason)
    assert words(stats, now=now).endswith(f", waiting for {told}, 1 h 05 min")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (22.1, "23 s"),
        (59.5, "1 min 00 s"),
        (3_599, "59 min 59 s"),
        (3_600, "1 h 00 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_a_duration_is_told_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_progress_bar_in_a_log_prints_a_line_every_30_seconds_and_a_last_one() -> None:
    now = 0.0
    output = io.StringIO()
    display = Display(Console(file=output, get_time=lambda: now))
    for second in range(100):
        now = float(second)
        display.show(BatchStats(succeeded=second))
    display.close(BatchStats(succeeded=100))
    lines = output.getvalue().splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d \d+ done, ", line) for line in lines)
    assert [line.split(" ")[1] for line in lines] == ["0", "30", "60", "90", "100"]
    assert "\x1b" not in output.getvalue()


def test_progress_bar_in_a_log_tells_immediately_that_an_outage_has_begun() -> None:
    output = io.StringIO()
    display = Display(Console(file=output, get_time=lambda: 0.0))
    reasons: list[Any] = [None, "outage", "outage", "provider", "outage"]
    for waiting_for in reasons:
        display.show(msgspec.structs.replace(WAITING, waiting_for=waiting_for))
    told = ["outage" in line for line in output.getvalue().splitlines()]
    assert told == [False, True, True]


def test_progress_words_tell_the_commonest_failure() -> None:
    stats = BatchStats(succeeded=1, failed=5, failures={"APIError": 2, "ProviderError": 3})
    assert words(stats).startswith("1 done, 5 failed (most often ProviderError), 0 in flight")


WAITING = msgspec.structs.replace(STATS, projected_cost_usd=3.75, seconds_left=4_000, total=4_000)


@pytest.mark.parametrize("columns", [120, 80, 60, 40, 30, 20, 10])
def test_the_display_fits_any_width_and_keeps_the_wait_longest(columns: int) -> None:
    now = datetime(2026, 11, 24, 12, 29, 37, tzinfo=UTC)
    told = parts(WAITING, now=now)
    lines = [", ".join(part.text for part in line) for line in fitted(told, columns, 4)]
    assert len(lines) <= 4
    assert all(len(line) <= columns for line in lines)
    text = " ".join(lines)
    assert "waiting for the next window, 23 s"[:columns] in text
    if columns >= 60:  # nothing is left out
        assert [part.text in text for part in told] == [True] * len(told)
    if columns >= 20:
        assert "5 failed" in text


def test_what_is_left_out_first_has_the_lowest_rank() -> None:
    told = [Part("a" * 10, 2), Part("b" * 10, 1), Part("c" * 10, 9)]
    assert [[part.text[0] for part in line] for line in fitted(told, 10, 2)] == [["a"], ["c"]]
    assert [[part.text[0] for part in line] for line in fitted(told, 10, 1)] == [["c"]]


@pytest.mark.parametrize("columns", [20, 40, 60, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_display_updates_in_place_in_a_terminal(columns: int, encoding: str) -> None:
    output = io.TextIOWrapper(io.BytesIO(), encoding)
    display = Display(Console(file=output, width=columns, force_terminal=True, legacy_windows=False))
    display.show(WAITING)
    display.show(WAITING)
    display.close(WAITING)
    output.seek(0)
    text = output.read()
    assert "\x1b[1A" in text  # moves the cursor up
    assert "\x1b[?25h" in text  # shows the cursor again
    assert "1,234 done" in text
    lines = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", text.replace("\r", "\n")).split("\n")
    assert max(map(len, lines)) <= columns


def test_a_terminal_without_escape_sequences_gets_lines() -> None:
    output = io.StringIO()
    display = Display(Console(file=output, force_terminal=True, _environ={"TERM": "dumb"}))
    display.show(STATS)
    display.close(STATS)
    assert "\x1b" not in output.getvalue()
    assert len(output.getvalue().splitlines()) == 2


def test_a_log_needs_no_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("rich.console", "rich.live"):
        monkeypatch.setitem(sys.modules, name, None)
    Display().close(BatchStats(succeeded=3))
    assert "3 done" in capsys.readouterr().err


def test_a_notebook_shows_one_output_that_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    handle: Any = types.SimpleNamespace(update=lambda value, raw: shown.append(value))
    ipython: Any = types.ModuleType("IPython.display")  # as a notebook has it, which needs nothing else

    def display(value: Any, *, raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        shown.append(value)
        return handle

    ipython.display = display
    monkeypatch.setitem(sys.modules, "IPython.display", ipython)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    bar = Display(Console(file=io.StringIO(), force_jupyter=True))
    for _ in range(3):
        bar.show(WAITING)
    bar.close(WAITING)
    assert len(shown) == 4
    assert "1,234 done" in shown[-1]["text/plain"]
    assert shown[-1]["text/html"].startswith("<pre>")


class Breaking(io.StringIO):
    """A stream that cannot be written once it is `broken`."""

    broken: Exception | None = None

    def write(self, text: str) -> int:
        if self.broken is not None:
            raise self.broken
        return super().write(text)


BREAKS = [
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    OSError(errno.EIO, "Input/output error"),
    ValueError("I/O operation on closed file"),
]


@pytest.mark.anyio
@pytest.mark.virtual_time
@pytest.mark.parametrize("error", BREAKS, ids=["pipe", "terminal", "closed"])
@pytest.mark.parametrize("is_terminal", [True, False])
async def test_a_batch_goes_on_when_its_progress_cannot_be_shown_any_more(
    error: Exception, is_terminal: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stderr = Breaking()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(stderr, "isatty", lambda: is_terminal, raising=False)
    stdout = sys.stdout
    items = [f"sleep=40 {n}" for n in range(5)]
    async with client().batch(items, model="gpt-4o", max_concurrency=1, progress=True) as batch:
        async for outcome in batch:
            assert outcome.error is None
            if outcome.index == 1:
                stderr.broken = error
    assert batch.stats.succeeded == 5
    assert "0 done" in stderr.getvalue()
    assert "5 done" not in stderr.getvalue()
    assert (sys.stdout, sys.stderr) == (stdout, stderr)
    shown = [record.getMessage() for record in caplog.records if "progress" in record.getMessage()]
    assert shown == [f"the progress of a batch is not shown any more: {type(error).__name__}: {error}"]


@pytest.mark.anyio
@pytest.mark.parametrize("stderr", ["none", "closed"])
async def test_a_batch_with_progress_runs_without_a_stderr(
    stderr: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", None if stderr == "none" else closed)
    async with client().batch(["a", "b"], model="gpt-4o", progress=True) as batch:
        assert len([outcome async for outcome in batch]) == 2


PROGRAM = """
import sys
from omnigate import Client
from omnigate._batch import progress
from omnigate.testing import LocalGateway

progress._LOG_SECONDS = 0.0
with LocalGateway(latency_seconds=0.05) as gateway, Client(gateway.api_key, base_url=gateway.url) as client:
    with client.batch(map(str, range(20)), model="gpt-4o", max_concurrency=2, progress=True) as batch:
        for count, outcome in enumerate(batch):
            print("outcome", outcome.unwrap().id != "", flush=True)
            if count == 5:
                print("break", flush=True)
                sys.stdin.readline()
print("finished", batch.stats.succeeded)
"""


@pytest.mark.proof
@pytest.mark.skipif(sys.platform == "win32", reason="has no such terminals")
@pytest.mark.parametrize("kind", ["pipe", "terminal"])
@pytest.mark.parametrize("breaks", [True, False])
def test_stdout_gets_all_of_the_programs_output_whatever_becomes_of_stderr(kind: str, breaks: bool) -> None:
    ours, theirs = os.pipe() if kind == "pipe" else os.openpty()
    reader = threading.Thread(target=drain, args=(ours,))
    if not breaks:
        reader.start()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TERM": "xterm"},
    ) as process:
        os.close(theirs)
        try:
            lines = talk(process, ours if breaks else None)
        except BaseException:
            process.kill()
            raise
    if not breaks:
        reader.join(60)
        os.close(ours)
    assert lines.count("outcome True\n") == 20
    assert lines[-1] == "finished 20\n"


def talk(process: "subprocess.Popen[str]", fd: int | None) -> list[str]:
    """Return the lines of stdout; close `fd` in the middle."""
    assert process.stdin is not None
    assert process.stdout is not None
    lines: list[str] = []
    while "break\n" not in lines:
        lines.append(process.stdout.readline())
        assert lines[-1], "ended too early"
    if fd is not None:
        os.close(fd)
    process.stdin.write("\n")
    process.stdin.close()
    lines += process.stdout.readlines()
    assert process.wait(60) == 0
    return lines


def drain(fd: int) -> None:
    """Read until the other side is closed."""
    with contextlib.suppress(OSError):  # EIO, from a terminal
        while os.read(fd, 4096):
            pass
