"""What all commands share: help, options, settings, errors, exit codes, output."""

import errno
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from omnigate.cli._frame import app
from omnigate.cli._frame.app import SUMMARIES, command
from omnigate.cli._frame.invocation import Invocation
from omnigate.testing import LocalGateway, Status

from .conftest import Cli

OMNIGATE = [sys.executable, "-W", "error", "-m", "omnigate"]


def existing() -> list[str]:
    """Return the commands that there are."""
    folder = Path(app.__file__).parents[1] / "_commands"
    return [name for name in SUMMARIES if (folder / f"{name.replace('-', '_')}.py").exists()]


def walk(name: str, group: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, group
    if isinstance(group, click.Group):
        for each, found in group.commands.items():
            yield from walk(f"{name} {each}", found)


def all_commands() -> dict[str, click.Command]:
    context = click.Context(command)
    found: dict[str, click.Command] = {}
    for name in existing():
        group = command.get_command(context, name)
        assert group is not None
        found.update(walk(name, group))
    return found


ALL = all_commands()
LEAVES = [name for name, found in ALL.items() if not isinstance(found, click.Group)]


def test_help_imports_neither_msgspec_nor_httpx_nor_rich() -> None:
    script = """
import sys
from omnigate.cli import main
sys.argv[1:] = ["--help"]
try:
    main()
except SystemExit:
    pass
print(sorted({name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    imported = set(json.loads(done.stderr.replace("'", '"')))
    assert {"click", "omnigate"} <= imported
    assert not imported & {"msgspec", "httpx", "rich", "anyio", "prompt_toolkit", "platformdirs", "starlette"}
    assert done.stdout.startswith("Usage: omnigate [OPTIONS] COMMAND")


@pytest.mark.parametrize("name", ALL)
def test_the_help_of_every_command_has_an_example_of_it(name: str, cli: Cli) -> None:
    done = cli(*name.split(), "--help")
    assert (done.code, done.err) == (0, "")
    _, _, examples = done.out.partition("\nExamples:\n")
    assert f"omnigate {name}" in examples
    assert max(map(len, done.out.splitlines())) <= 100


@pytest.mark.parametrize("name", existing())
def test_the_list_of_commands_has_the_first_line_of_each_ones_help(name: str) -> None:
    assert (ALL[name].help or "").partition("\n")[0] == SUMMARIES[name]


def test_the_list_of_commands_names_no_command_that_does_not_exist(cli: Cli) -> None:
    out = cli("--help").out
    assert [name for name in SUMMARIES if f"  {name} " not in out] == []


@pytest.mark.parametrize("name", [name for name in LEAVES if name not in ("gateway", "demo")])
def test_every_command_has_the_option_json(name: str, cli: Cli) -> None:
    assert "  --json " in cli(*name.split(), "--help").out


@pytest.mark.parametrize(
    "group", ["", *(name for name, found in ALL.items() if isinstance(found, click.Group))]
)
def test_a_group_without_a_command_shows_its_help_as_a_usage_error(group: str, cli: Cli) -> None:
    done = cli(*group.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: omnigate")
    assert "Options:" in done.err


def test_a_common_option_may_stand_before_or_after_the_command(gateway: LocalGateway, cli: Cli) -> None:
    before, after = cli("--json", "me"), cli("me", "--json")
    assert before.json == after.json
    assert cli("--api-key", "llmg_wrong", "me", "--api-key", gateway.api_key).code == 0
    assert cli("--api-key", gateway.api_key, "me", "--api-key", "llmg_wrong").code == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ["me", "--nope"],
        ["nope"],
        ["keys", "create"],
        ["me", "--timeout", "0"],
        ["metrics", "--range", "3d"],
        ["metrics", "--range", "7d", "--from", "2026-01-01T00:00:00Z"],
        ["keys", "create", ""],
        ["me", "--base-url", "ftp://x"],
        ["me", "--api-key", "a\nb"],
        ["metrics", "--plot", "x.gif"],
        ["completion", "tcsh"],
    ],
)
def test_a_usage_error_exits_with_2_and_says_what_is_wrong(
    arguments: list[str], gateway: LocalGateway, cli: Cli
) -> None:
    before = len(gateway.requests)
    done = cli(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1].startswith("Error: ")
    assert len(gateway.requests) == before


def test_a_usage_error_does_not_repeat_a_key(cli: Cli) -> None:
    done = cli("provider-key", "set", "openai", "sk-a-secret-key-of-mine")
    assert done.code == 2
    assert "secret" not in done.err


def test_a_key_that_is_not_accepted_exits_with_4(gateway: LocalGateway, cli: Cli) -> None:
    done = cli("me", "--api-key", "llmg_wrong")
    assert (done.code, done.out) == (4, "")
    assert done.err.startswith(
        "Error: [401] Invalid API key. Give a valid key with --api-key, $OMNIGATE_API_KEY"
    )
    assert f"(request {gateway.requests[-1].headers.get('x-request-id', '')}" in done.err
    assert done.err.count("\n") == 1


def test_an_admin_key_that_is_not_accepted_exits_with_4_and_names_its_option(
    gateway: LocalGateway, cli: Cli
) -> None:
    done = cli("admin", "orgs", "list", "--admin-key", "wrong")
    assert done.code == 4
    assert "Give a valid admin key with --admin-key, $OMNIGATE_ADMIN_KEY" in done.err


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Status(402, {"detail": "Project daily budget exceeded"}), "[402] Project daily budget exceeded. Raise the budget"),
        (Status(500, b"Internal Server Error"), "Try again; `omnigate health` checks the gateway."),
        (Status(404, {"detail": "Not Found"}), "that --base-url is the address of a gateway"),
        (Status(400, {"detail": "No openai key configured for this project. Add one via POST /v1/keys."}), "Store one with `omnigate provider-key set openai`."),
        (Status(200, b"<html>"), "Error: "),
        (Status(400, {"detail": "a\n\x1b[31mb\u202e" + "x" * 5000}), "a \\x1b[31mb\\u202e"),
    ],
)  # fmt: skip
def test_an_error_of_the_gateway_is_one_readable_line_with_what_to_do_and_exits_with_1(
    fault: Status, words: str, gateway: LocalGateway, cli: Cli
) -> None:
    gateway.script(fault, times=9)
    done = cli("health")  # it does not retry
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: ")
    assert words in done.err
    assert done.err.count("\n") == 1
    assert len(done.err) < 1_100
    assert "\x1b" not in done.err


def test_a_gateway_that_cannot_be_reached_exits_with_1_and_names_its_address(cli: Cli) -> None:
    done = cli("health", "--base-url", "http://127.0.0.1:9")
    assert (done.code, done.out) == (1, "")
    assert "http://127.0.0.1:9" in done.err
    assert "Is the gateway running?" in done.err
    assert done.err.count("\n") == 1


def test_only_debug_shows_a_traceback(gateway: LocalGateway, cli: Cli) -> None:
    assert "Traceback" not in cli("me", "--api-key", "llmg_wrong").err
    done = cli("me", "--api-key", "llmg_wrong", "--debug")
    assert done.code == 4
    assert done.err.startswith("Traceback (most recent call last):")
    assert done.err.splitlines()[-1].startswith("Error: [401]")


def test_an_unexpected_error_is_one_line_too(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Invocation) -> None:
        raise TypeError("oops")

    monkeypatch.setattr(Invocation, "client", broken)
    done = cli("me")
    assert (done.code, done.out) == (1, "")
    assert done.err == "Error: unexpected TypeError: oops. This is a bug; --debug shows the traceback\n"


def test_ctrl_c_exits_with_130_and_without_a_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Invocation) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Invocation, "client", interrupted)
    done = cli("me")
    assert (done.code, done.out, done.err) == (130, "", "\nInterrupted.\n")


def test_a_warning_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def warned(_: Invocation) -> None:
        warnings.simplefilter("always")
        warnings.warn("careful with llmg_abcdefghij", stacklevel=1)
        raise click.exceptions.Exit(0)

    monkeypatch.setattr(Invocation, "client", warned)
    with warnings.catch_warnings():
        assert cli("me").err == "Warning: careful with llmg_***\n"


class Broken(io.TextIOWrapper):
    """An output that fails when what was written is flushed."""

    def __init__(self, code: int) -> None:
        super().__init__(io.BytesIO(), "utf-8")
        self._code = code
        self._is_dirty = False

    def write(self, text: str) -> int:
        self._is_dirty = True
        return super().write(text)

    def flush(self) -> None:
        if self._is_dirty:
            raise OSError(self._code, os.strerror(self._code))

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(errno.EPIPE, 141, ""), (errno.ENOSPC, 1, "Error: cannot write the output: No space left on device\n")],
)
def test_an_output_that_fails(
    number: int, code: int, said: str, gateway: LocalGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    err = io.StringIO()
    monkeypatch.setattr(sys, "stdout", Broken(number))
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(SystemExit) as exit:
        command.main(["me"])
    assert (exit.value.code, err.getvalue()) == (code, said)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and /dev/full of POSIX")
@pytest.mark.proof
@pytest.mark.parametrize("arguments", ["models", "models --json", "--help", "me", "completion zsh"])
def test_a_closed_pipe_ends_a_command_quietly(arguments: str, gateway: LocalGateway) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as out:
        done = subprocess.run(
            [*OMNIGATE, *arguments.split()],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 141
    assert "Error" not in done.stderr
    assert "rror" not in done.stderr.replace("Prices", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.proof
@pytest.mark.parametrize("arguments", ["models", "models --json", "--help", "me"])
def test_a_full_disk_is_an_error_in_one_line(arguments: str, gateway: LocalGateway) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*OMNIGATE, *arguments.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "Error: cannot write the output: No space left on device"


@pytest.mark.proof
def test_characters_that_the_output_cannot_encode_are_escaped(gateway: LocalGateway) -> None:
    done = subprocess.run(
        [*OMNIGATE, "chat", "grüß dich ☃"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"gr\\xfc\\xdf dich \\u2603" in done.stdout


def test_options_go_before_the_environment_and_that_before_the_profile(
    gateway: LocalGateway, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("config", "set", "api-key", input="llmg_of_the_profile")
    cli("config", "set", "timeout", "7")
    cli("config", "set", "model", "gpt-4o")
    invocation = Invocation(base_url="http://option")
    settings = invocation.settings()
    assert (settings.base_url, settings.api_key) == ("http://option", gateway.api_key)
    assert (settings.model, settings.timeout_seconds) == ("gpt-4o-mini", 7)
    monkeypatch.delenv("OMNIGATE_API_KEY")
    monkeypatch.setenv("OMNIGATE_MODEL", "")
    settings = Invocation().settings()
    assert (settings.base_url, settings.api_key) == (gateway.url, "llmg_of_the_profile")
    assert settings.model == "gpt-4o"
    assert Invocation(timeout=3).settings().timeout_seconds == 3
    assert "llmg_" not in repr(settings)
    assert "llmg_" not in repr(Invocation(api_key="llmg_x"))


def test_a_profile_named_by_the_option_goes_before_the_environment(
    gateway: LocalGateway, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("config", "set", "--profile", "other", "base-url", "http://other:1")
    assert Invocation(profile="other").settings().base_url == "http://other:1"
    assert Invocation(profile="other", base_url="http://option").settings().base_url == "http://option"
    monkeypatch.setenv("OMNIGATE_PROFILE", "other")
    assert Invocation().settings().base_url == gateway.url
    monkeypatch.delenv("OMNIGATE_BASE_URL")
    assert Invocation().settings().base_url == "http://other:1"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell: str, cli: Cli) -> None:
    done = cli("completion", shell)
    assert done.code == 0
    assert "_OMNIGATE_COMPLETE" in done.out
    assert cli("completion", shell, "--json").json["script"].rstrip() == done.out.rstrip()


@pytest.mark.parametrize(
    ("line", "found", "imported"),
    [
        ("omnigate ke", {"keys"}, False),
        ("omnigate ", set(SUMMARIES), False),
        ("omnigate --pro", {"--profile"}, False),
        ("omnigate keys ", {"list", "create", "revoke"}, True),
        ("omnigate metrics --group-by m", {"model"}, True),
        ("omnigate provider-key set ", {"openai", "anthropic", "gemini", "azure"}, True),
    ],
)
def test_the_shell_completes_commands_options_and_values(
    line: str, found: set[str], imported: bool, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = [f"omnigate.cli._commands.{name.replace('-', '_')}" for name in existing()]
    for module in modules:
        monkeypatch.delitem(sys.modules, module, raising=False)
    words = line.split(" ")
    monkeypatch.setenv("_OMNIGATE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    done = cli()
    assert (done.code, done.err) == (0, "")
    assert {each.partition(",")[2] for each in done.out.splitlines()} == found
    assert any(module in sys.modules for module in modules) == imported


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
@pytest.mark.proof
@pytest.mark.parametrize(
    ("shell", "check"), [("bash", ["bash", "-n"]), ("zsh", ["zsh", "-n"]), ("fish", ["fish", "--no-execute"])]
)
def test_the_completion_script_is_valid_in_its_shell(shell: str, check: list[str], tmp_path: Path) -> None:
    script = subprocess.run(
        [*OMNIGATE, "completion", shell], capture_output=True, timeout=60, check=True
    ).stdout
    path = tmp_path / "script"
    path.write_bytes(script)
    try:
        done = subprocess.run([*check, str(path)], capture_output=True, timeout=60, check=False)
    except FileNotFoundError:
        pytest.skip(f"{shell} is not installed")
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_version_is_shown(cli: Cli) -> None:
    assert cli("--version").out.startswith("omnigate ")
