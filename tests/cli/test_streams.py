"""Standard streams that are closed, full or not read any more, for real: each command in a process of its own."""

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from omnigate.cli._frame.app import command
from omnigate.cli._frame.streams import _Dropping
from omnigate.testing import LocalGateway

OMNIGATE = [sys.executable, "-W", "error", "-m", "omnigate"]

in_a_process = [
    pytest.mark.proof,
    pytest.mark.skipif(not os.path.exists("/dev/full"), reason="descriptors of POSIX, and /dev/full"),
]


def run(*arguments: str, closed: tuple[int, ...] = (), **streams: Any) -> subprocess.CompletedProcess[str]:
    """Run the command with some of its standard streams closed."""

    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.run(
        [*OMNIGATE, *arguments],
        text=True,
        timeout=60,
        check=False,
        preexec_fn=close,
        **streams,
    )


class TestInAProcess:
    pytestmark = in_a_process

    @pytest.mark.parametrize("closed", [(0,), (0, 2), (2,)])
    def test_a_closed_input_is_empty_and_a_closed_stderr_needs_nobody(
        self, closed: tuple[int, ...], gateway: LocalGateway
    ) -> None:
        done = run("chat", "hi", closed=closed)
        assert (done.returncode, done.stderr) == (0, "")
        assert "hi" in done.stdout
        done = run("batch", "-", closed=closed)
        assert (done.returncode, done.stdout) == (2, "")
        assert 2 in closed or "is empty: there are no rows in it" in done.stderr

    @pytest.mark.parametrize("arguments", ["chat hi", "models", "me --json", "--help", "config get model"])
    @pytest.mark.parametrize("closed", [(1,), (1, 2), (0, 1), (0, 1, 2)])
    def test_a_closed_output_is_an_error_in_one_line(
        self, closed: tuple[int, ...], arguments: str, gateway: LocalGateway
    ) -> None:
        run("config", "set", "model", "gpt-4o-mini")
        done = run(*arguments.split(), closed=closed)
        assert done.returncode == 1
        if 2 not in closed:
            assert done.stderr == "Error: cannot write the output: Bad file descriptor\n"

    def test_a_batch_goes_on_when_nobody_can_read_what_it_says(
        self, gateway: LocalGateway, tmp_path: Path
    ) -> None:
        source = tmp_path / "items.jsonl"
        source.write_text("".join(f'{{"messages": "say {n}"}}\n' for n in range(20)))

        def broken() -> Any:
            reader, writer = os.pipe()
            os.close(reader)
            return open(writer, "w")

        streams: dict[str, Callable[[], Any]] = {"full": partial(open, "/dev/full", "w"), "pipe": broken}
        for name, opened in streams.items():
            output = tmp_path / f"{name}.jsonl"
            with opened() as stderr:
                done = run("batch", str(source), "-o", str(output), stderr=stderr)
            assert done.returncode == 0
            assert len(output.read_text().splitlines()) == 20
            with opened() as stderr:
                done = run("batch", str(source), stderr=stderr)
            assert done.returncode == 0
            assert len([json.loads(line) for line in done.stdout.splitlines()]) == 20

    def test_a_new_key_is_shown_even_if_nothing_can_be_said(self, gateway: LocalGateway) -> None:
        with open("/dev/full", "w") as full:
            done = run("keys", "create", "ci", stderr=full)
        assert done.returncode == 0
        assert run("me", "--api-key", done.stdout.strip()).returncode == 0


@pytest.mark.parametrize("arguments", ["keys create ci", "keys create ci --json"])
def test_a_key_that_cannot_be_written_can_be_revoked(
    arguments: str, gateway: LocalGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    err = io.StringIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(Full()), "utf-8"))
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(SystemExit) as exit:
        command.main(arguments.split())
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert exit.value.code == 1
    *_, lost, error = err.getvalue().splitlines()
    assert error == "Error: cannot write the output: No space left on device"
    revoke = lost.partition("`omnigate ")[2].partition("`")[0]
    with pytest.raises(SystemExit) as exit:
        command.main(revoke.split())
    assert exit.value.code in (None, 0)


def test_text_that_a_stream_cannot_take_is_dropped() -> None:
    class Raw:
        def __init__(self, *results: Any) -> None:
            self.results = list(results)

        def write(self, data: Any) -> Any:
            result = self.results.pop(0)
            if isinstance(result, Exception):
                raise result
            return result

        def isatty(self) -> bool:
            return True

        def fileno(self) -> int:
            return 2

    raw = Raw(2, OSError(errno.EPIPE, "x"), None, 3)
    dropping = _Dropping(raw)
    assert [dropping.write(b"abc") for _ in range(4)] == [2, 3, 3, 3]
    assert (dropping.isatty(), dropping.fileno(), dropping.writable()) == (True, 2, True)
    raw.results = [OSError(errno.ENOSPC, "x")] * 3
    with io.TextIOWrapper(io.BufferedWriter(dropping), "utf-8", line_buffering=True) as stream:
        stream.write("a line\n")
        stream.write("another")
