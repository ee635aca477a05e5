"""The command line: the demonstration, the local gateway, and what they say when they cannot run."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from omnigate import Client, ProviderError

OMNIGATE = [sys.executable, "-W", "error", "-m", "omnigate.cli"]
NOBODY = "http://127.0.0.1:9"  # nothing listens there


@pytest.mark.parametrize(
    "proxy",
    [
        pytest.param({}, id="direct"),
        pytest.param({"HTTP_PROXY": NOBODY, "ALL_PROXY": NOBODY}, id="behind a proxy"),
    ],
)
@pytest.mark.proof
def test_the_demo_command_shows_the_main_features_and_exits_with_success(proxy: dict[str, str]) -> None:
    done = subprocess.run(
        [*OMNIGATE, "demo"], env=os.environ | proxy, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("Sign up", "echo[gpt-4o-mini]: Say hi in French", "City(name='Oslo', population=724000)",
                  "estimate: 6 items",
                  "r1: echo[gpt-4o-mini]: Sum up: The soup was cold",
                  "ProviderError: [400]", "AuthError: [401] Invalid API key",
                  "number 10", "10 answered, 0 failed, none lost", "Usage metrics", "Done."):  # fmt: skip
        assert words in done.stdout
    assert not re.search(r"llmg_[\w-]{20}", done.stdout)
    first = re.search(r"first run: (\d) answered, then stopped", done.stdout)
    second = re.search(r"second run: (\d) from the journal, (\d) called", done.stdout)
    assert first
    assert second
    answered = int(first[1])
    assert answered in (3, 4)  # the fourth may be in flight when the third stops the batch
    assert (int(second[1]), int(second[2])) == (answered, 6 - answered)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.proof)])
def test_the_demo_command_stops_cleanly_on_a_signal(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [*OMNIGATE, "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Stream"):
            break
    process.send_signal(number)
    rest, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")
    assert rest.endswith("stopped\n")


def start_gateway(*command: str) -> tuple[subprocess.Popen[str], dict[str, str], str]:
    """Start the command, and return its process, the environment variables that it prints, and all it prints."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    exports: dict[str, str] = {}
    printed = ""
    for line in process.stdout:
        printed += line
        if match := re.match(r"\s*export (\w+)=(.+)", line):
            exports[match[1]] = match[2]
        if "OMNIGATE_ADMIN_KEY" in exports:
            break
    return process, exports, printed


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.proof)])
def test_the_gateway_command_prints_working_settings_and_stops_cleanly(number: signal.Signals) -> None:
    process, exports, _ = start_gateway(*OMNIGATE, "gateway", "--port", "0")
    script = """
import omnigate
print(omnigate.Client().chat(model="gpt-4o-mini", messages="hi").content, len(omnigate.AdminClient().list_orgs()))
"""
    used = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | exports,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (used.stdout, used.stderr) == ("echo[gpt-4o-mini]: hi 1\n", "")
    process.send_signal(number)
    rest, errors = process.communicate(timeout=30)
    assert (process.returncode, rest, errors) == (0, "stopped\n", "")


@pytest.mark.proof
def test_the_gateway_command_without_provider_keys_shows_the_error_for_a_missing_one() -> None:
    process, exports, printed = start_gateway(*OMNIGATE, "gateway", "--port", "0", "--no-provider-keys")
    try:
        with Client(exports["OMNIGATE_API_KEY"], base_url=exports["OMNIGATE_BASE_URL"]) as client:
            assert client.me().configured_providers == []
            with pytest.raises(ProviderError, match="No openai key configured for this project"):
                client.chat(model="gpt-4o-mini", messages="hi")
            client.set_provider_key(provider="openai", api_key="sk-any-key-will-do")
            assert client.chat(model="gpt-4o-mini", messages="hi").content == "echo[gpt-4o-mini]: hi"
    finally:
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=30)
    assert (process.returncode, rest, errors) == (0, "stopped\n", "")
    assert "\nThe project has no provider key yet: store one with `omnigate provider-key set`.\n" in printed


WITHOUT_PAUSE = "import signal; del signal.pause; from omnigate.cli import main; main()"


@pytest.mark.proof
def test_the_gateway_command_serves_where_signal_pause_does_not_exist() -> None:
    process, exports, _ = start_gateway(sys.executable, "-c", WITHOUT_PAUSE, "gateway", "--port", "0")
    try:
        with Client(exports["OMNIGATE_API_KEY"], base_url=exports["OMNIGATE_BASE_URL"]) as client:
            assert client.health()["status"] == "ok"
    finally:
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
    assert (process.returncode, rest, errors) == (0, "stopped\n", "")


def test_the_gateway_command_reports_a_busy_port_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        command = [*OMNIGATE, "gateway", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: cannot serve at 127.0.0.1:{port}: ")
    assert done.stderr.endswith("; give another --port, or 0 for any free one\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.proof
def test_a_batch_gets_through_a_gateway_with_a_limit_and_failures(tmp_path: Path) -> None:
    options = [
        "--rate-limit",
        "30",
        "--window",
        "3",
        "--latency",
        "0.05",
        "--fail-rate",
        "0.1",
        "--seed",
        "7",
    ]
    key = "llmg_a-fixed-key"
    process, exports, _ = start_gateway(*OMNIGATE, "gateway", "--port", "0", "--api-key", key, *options)
    try:
        assert exports["OMNIGATE_API_KEY"] == key
        (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n' * 80)
        done = subprocess.run(
            [*OMNIGATE, "batch", "in.jsonl", "-o", "out.csv", "-m", "gpt-4o-mini", "--json", "-q"],
            env=os.environ | exports, cwd=tmp_path, capture_output=True, text=True, timeout=55, check=False,
        )  # fmt: skip
        summary = json.loads(done.stdout)
        assert summary["succeeded"] + summary["failed"] == 80
        assert summary["succeeded"] > 70
        assert summary["retries"] > 0
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


@pytest.mark.proof
def test_the_gateway_command_prints_its_settings_as_json() -> None:
    command = [*OMNIGATE, "gateway", "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            break
    settings = json.loads(text)
    with Client(settings["api_key"], base_url=settings["base_url"]) as client:
        assert client.health()["status"] == "ok"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "stopped\n")


@pytest.mark.proof
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--window", "61"], "61 is not in the range"),
        (["--fail-rate", "2"], "2.0 is not in the range"),
        (["--rate-limit", "0"], "0 is not in the range"),
        (["--api-key", "a-key-of-another-form"], "api_key must be 'llmg_' and at least 7 letters"),
        (["--latency", "nan"], "latency_seconds must be a finite number"),
        (["--port", "70000"], "70000 is not in the range"),
    ],
)
def test_the_gateway_command_refuses_bad_settings(options: list[str], words: str) -> None:
    done = subprocess.run(
        [*OMNIGATE, "gateway", *options], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "of-another-form" not in done.stderr


@pytest.mark.proof
@pytest.mark.parametrize(
    ("host", "code", "words"),
    [
        ("", 2, "Error: host must be text of at least 1 character, got ''"),
        ("no..name", 1, "Error: cannot serve at no..name:0: "),
    ],
)
def test_the_gateway_command_reports_an_invalid_host(host: str, code: int, words: str) -> None:
    command = [*OMNIGATE, "gateway", "--port", "0", "--host", host]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.splitlines()[-1].startswith(words)


@pytest.mark.parametrize(
    "missing",
    [
        "click",
        *(
            pytest.param(name, marks=pytest.mark.proof)
            for name in ("rich", "starlette", "uvicorn", "pydantic")
        ),
    ],
)
def test_the_command_without_its_extra_says_what_to_install(missing: str) -> None:
    script = f"import sys; sys.modules[{missing!r}] = None; from omnigate.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "demo"], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        rf"(omnigate|Error): .* needs {missing}: pip install 'omnigate\[\w+\]'\n", done.stderr
    )
