"""`omnigate batch` as processes: in a terminal, into pipes, interrupted, killed, and with many rows."""

import sys

import pytest

if sys.platform == "win32":
    pytest.skip("needs a pty", allow_module_level=True)

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from omnigate.cli._frame.tables import cells_of
from omnigate.testing import Delay, LocalGateway

from .terminal import Terminal

pytestmark = pytest.mark.proof

OMNIGATE = [sys.executable, "-W", "error", "-m", "omnigate"]

LATENCY_SECONDS = 0.2


@pytest.fixture(scope="module")
def served() -> Iterator[LocalGateway]:
    with LocalGateway(rate_limit_per_min=10_000, latency_seconds=LATENCY_SECONDS) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_rows(count: int) -> list[str]:
    """Write so many questions, and return the command that asks them."""
    Path("in.jsonl").write_text("".join(f'{{"id": "q{n}", "prompt": "Say {n}"}}\n' for n in range(count)))
    return ["batch", "in.jsonl", "-o", "out.csv"]


def omnigate(*arguments: str, columns: int = 80, **environment: str) -> Terminal:
    return Terminal([*OMNIGATE, *arguments], columns=columns, environment=environment)


def succeeded() -> int:
    """Return how many items have succeeded, by the journal; none has two lines."""
    lines = [json.loads(line) for line in Path("out.journal.jsonl").read_text().splitlines()]
    ids = [line["custom_id"] for line in lines if line["error"] is None]
    assert len(ids) == len(set(ids))
    return len(ids)


def finish(count: int, gateway: LocalGateway) -> None:
    """Run the same command again; nothing that succeeded is sent again."""
    before, left = sent(gateway), count - succeeded()
    subprocess.run([*OMNIGATE, *write_rows(count), "-q"], check=True, timeout=60, capture_output=True)
    assert sent(gateway) == before + left
    assert succeeded() == count
    assert len(Path("out.csv").read_text().splitlines()) == count + 1


def sent(gateway: LocalGateway) -> int:
    return sum(request.path == "/v1/chat" for request in gateway.requests)


@pytest.mark.parametrize("columns", [40, 60, 120])
def test_the_display_and_the_summary_fit_the_terminal(columns: int, gateway: LocalGateway) -> None:
    with omnigate(*write_rows(20), columns=columns) as terminal:
        assert terminal.wait() == 0
        assert "20 done" in terminal.text
        assert all(cells_of(line) <= columns for line in terminal.lines)


def test_without_colour_there_are_no_escapes_for_it(gateway: LocalGateway) -> None:
    with omnigate(*write_rows(5), NO_COLOR="1") as terminal:
        assert terminal.wait() == 0
        assert b"\x1b[3" not in terminal.raw
        assert b"\x1b[1m" not in terminal.raw


def test_ctrl_c_finishes_the_calls_in_flight(gateway: LocalGateway) -> None:
    with omnigate(*write_rows(200), "-c", "4") as terminal:
        terminal.wait_for(" 4 in flight")
        terminal.interrupt()
        assert terminal.wait() == 130
        assert "Press it again" in terminal.text.replace("\n", " ")
        assert "Run the same command again" in terminal.text.replace("\n", " ")
    assert succeeded() > 0
    finish(200, gateway)


def test_ctrl_c_twice_ends_immediately(gateway: LocalGateway) -> None:
    gateway.script(Delay(60), when=lambda request: b"Say 3" in request.body)
    with omnigate(*write_rows(4)) as terminal:
        terminal.wait_for("3 done")
        terminal.interrupt()
        terminal.wait_for("Press it again")
        terminal.interrupt()
        assert terminal.wait() == 130
        assert "Interrupted." in terminal.text
    assert succeeded() == 3


def test_ctrl_c_while_the_rate_window_is_waited_for_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalGateway() as gateway:
        monkeypatch.setenv("OMNIGATE_BASE_URL", gateway.url)
        monkeypatch.setenv("OMNIGATE_API_KEY", gateway.create_project(rate_limit_per_min=3).api_key)
        monkeypatch.setenv("OMNIGATE_MODEL", "gpt-4o-mini")
        with omnigate(*write_rows(20), columns=60) as terminal:
            terminal.wait_for("the next window")
            assert "3 done" in terminal.text
            terminal.interrupt()
            assert terminal.wait() == 130
            assert "Ctrl-C: finishing" in terminal.text
            assert "Interrupted." in terminal.text


def test_it_asks_after_an_estimate(gateway: LocalGateway) -> None:
    before = sent(gateway)
    with omnigate(*write_rows(5), "--estimate") as terminal:
        terminal.wait_for("Run it?")
        assert "Estimate: 5 items" in terminal.text
        terminal.type("n\n")
        assert terminal.wait() == 1
    assert sent(gateway) == before
    with omnigate(*write_rows(5), "--estimate") as terminal:
        terminal.wait_for("Run it?")
        terminal.type("y\n")
        assert terminal.wait() == 0
    assert sent(gateway) == before + 5


def test_a_pipe_that_is_closed_ends_it_quietly(gateway: LocalGateway) -> None:
    write_rows(500)
    with subprocess.Popen(
        [*OMNIGATE, "batch", "in.jsonl", "-q"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["error"] is None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == 141


def test_a_run_that_was_killed_is_resumed(gateway: LocalGateway) -> None:
    command = write_rows(100)
    for _ in range(3):
        before = sent(gateway)
        process = subprocess.Popen([*OMNIGATE, *command, "-q", "-c", "4"], start_new_session=True)
        with gateway_has_got(gateway, before + 12):
            os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    assert 0 < succeeded() < 100
    finish(100, gateway)


class gateway_has_got:  # noqa: N801 - reads as a condition
    """Wait until the gateway has got so many calls."""

    def __init__(self, gateway: LocalGateway, count: int) -> None:
        self.gateway, self.count = gateway, count

    def __enter__(self) -> None:
        import time

        end = time.monotonic() + 30
        while sent(self.gateway) < self.count:
            assert time.monotonic() < end
            time.sleep(0.01)

    def __exit__(self, *error: object) -> None:
        pass


def test_memory_does_not_grow_with_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import resource, runpy, sys\n"
        "try: runpy.run_module('omnigate', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    peaks: list[int] = []
    with LocalGateway(rate_limit_per_min=1_000_000) as gateway:
        monkeypatch.setenv("OMNIGATE_BASE_URL", gateway.url)
        monkeypatch.setenv("OMNIGATE_API_KEY", gateway.api_key)
        monkeypatch.setenv("OMNIGATE_MODEL", "gpt-4o-mini")
        for count in (1_000, 10_000):
            command = write_rows(count)
            command[command.index("out.csv")] = f"out-{count}.csv"
            done = subprocess.run(
                [sys.executable, "-c", script, *command, "-q"],
                capture_output=True, text=True, timeout=60, check=True,
            )  # fmt: skip
            peaks.append(int(done.stderr.splitlines()[-1]))
            assert len(Path(f"out-{count}.csv").read_text().splitlines()) == count + 1
    assert peaks[1] - peaks[0] < 20 * 1024, peaks  # KiB
