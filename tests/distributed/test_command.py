"""The command `python -m omnigate.distributed`."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import anyio
import pytest

from omnigate._batch.pace.messages import Report, encode
from omnigate.distributed import SocketPacer
from omnigate.distributed.__main__ import main

SECRET = "a secret of enough bytes"


async def exchange(address: str) -> None:
    link = SocketPacer(address, secret=SECRET)
    assert await link.exchange(encode(Report(1, b"digest of a key", "worker")))
    await link.aclose()


@pytest.mark.proof
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n")
    command = [
        sys.executable,
        "-m",
        "omnigate.distributed",
        f"unix:{tmp_path}/p.sock",
        "--secret-file",
        secret,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == f"Listening at unix:{tmp_path}/p.sock\n"
        anyio.run(partial(exchange, f"unix:{tmp_path}/p.sock"))
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")
    assert not os.path.exists(tmp_path / "p.sock")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["unix:/p.sock"], "secret must be given, or the variable OMNIGATE_PACER_SECRET be set"),
        (["nowhere"], 'address must be "unix:'),
        (["unix:/nowhere/p.sock"], "No such file"),
        (["tcp://127.0.0.1:0", "--max-connections", "0"], "max_connections must be an integer between"),
        (["tcp://127.0.0.1:0", "--secret-file", "/nowhere"], "No such file"),
    ],
)
def test_the_command_says_in_a_line_why_it_cannot_start(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "secret" not in words:
        monkeypatch.setenv("OMNIGATE_PACER_SECRET", SECRET)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m omnigate.distributed: ")
    assert words in error
    assert error.count("\n") == 1
    assert SECRET not in error
