"""The command line: the demonstration, the local gateway, and what they say when they cannot run."""

import os
import re
import signal
import socket
import subprocess
import sys

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
    for words in ("Sign up", "echo[gpt-4o-mini]: Say hi in French", "ProviderError: [400]", "AuthError: [401] Invalid API key",
                  "number 10", "10 answered, 0 failed, none lost", "Usage metrics", "Done."):  # fmt: skip
        assert words in done.stdout
    assert not re.search(r"llmg_[\w-]{20}", done.stdout)


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
    assert "\nThe project has no provider key yet: store one with client.set_provider_key().\n" in printed


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
    assert done.stderr.count("\n") == 1


@pytest.mark.proof
@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("", "Error: host must be text of at least 1 character, got ''"),
        ("no..name", "Error: cannot serve at no..name:0: "),
    ],
)
def test_the_gateway_command_reports_an_invalid_host_in_one_line(host: str, words: str) -> None:
    command = [*OMNIGATE, "gateway", "--port", "0", "--host", host]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(words)
    assert done.stderr.count("\n") == 1


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
