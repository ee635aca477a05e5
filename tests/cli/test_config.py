"""`omnigate config`: profiles in a file that only its owner can read."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from omnigate.cli._frame import profiles as profiles_module
from omnigate.testing import LocalGateway

from .conftest import Cli

KEY = "llmg_abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"


@pytest.fixture
def path(cli: Cli) -> Path:
    return Path(cli("config", "path").out.strip())


def test_a_setting_can_be_set_read_and_removed(cli: Cli, path: Path) -> None:
    assert not path.exists()
    done = cli("config", "set", "base-url", "https://gateway.example/")
    assert (done.code, done.out) == (0, "")
    assert cli("config", "get", "base-url").out == "https://gateway.example\n"
    assert cli("config", "unset", "base-url").code == 0
    assert cli("config", "get", "base-url").code == 1
    assert json.loads(path.read_text())["profiles"] == {}


def test_a_key_is_read_from_standard_input_and_never_shown_whole(cli: Cli, path: Path) -> None:
    shown = [cli("config", "set", "api-key", input=KEY + "\n"), cli("config", "get", "api-key")]
    shown += [
        cli("config", "list"),
        cli("config", "list", "--json"),
        cli("config", "get", "api-key", "--json"),
    ]
    assert all(done.code == 0 for done in shown)
    assert all(KEY not in done.out + done.err for done in shown)
    assert shown[1].out == "llmg_abcdefg…\n"
    assert json.loads(path.read_text())["profiles"]["default"]["api_key"] == KEY


@pytest.mark.parametrize("setting", ["api-key", "admin-key"])
def test_a_key_is_refused_as_an_argument(setting: str, cli: Cli, path: Path) -> None:
    done = cli("config", "set", setting, KEY)
    assert (done.code, path.exists()) == (2, False)
    assert "read from a prompt or standard input, not from an argument" in done.err
    assert KEY not in done.err


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
def test_the_file_is_for_its_owner_only_whatever_the_umask_and_the_old_mode(cli: Cli, path: Path) -> None:
    old = os.umask(0)
    try:
        cli("config", "set", "model", "gpt-4o")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        path.chmod(0o644)
        cli("config", "set", "api-key", input=KEY)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(old)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
def test_a_file_with_keys_that_others_can_read_is_a_warning(cli: Cli, path: Path) -> None:
    cli("config", "set", "api-key", input=KEY)
    path.chmod(0o644)
    assert (
        cli("config", "list").err
        == f"Warning: other users may read the keys in {path}; run: chmod 600 {path}\n"
    )


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("base-url", "ftp://x", "base_url must be http(s)://host"),
        ("timeout", "0", "timeout must be a number of seconds above 0, got '0'"),
        ("timeout", "nan", "timeout must be a number of seconds above 0"),
        ("timeout", "soon", "timeout must be a number of seconds above 0, got 'soon'"),
        ("model", " ", "model must not be empty"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(
    setting: str, value: str, words: str, cli: Cli, path: Path
) -> None:
    done = cli("config", "set", setting, value)
    assert (done.code, path.exists()) == (2, False)
    assert words in done.err


def test_a_missing_value_and_an_empty_key_are_refused(cli: Cli) -> None:
    assert cli("config", "set", "model").code == 2
    done = cli("config", "set", "api-key", input="\n")
    assert done.code == 2
    assert "no api-key: enter it at the prompt, or write it to standard input" in done.err


def test_profiles_are_listed_chosen_and_removed(gateway: LocalGateway, cli: Cli) -> None:
    cli("config", "set", "--profile", "prod", "base-url", "https://gateway.example")
    cli("config", "set", "--profile", "local", "base-url", gateway.url)
    listed = cli("config", "list", "--json").json
    assert (listed["current"], set(listed["profiles"])) == ("prod", {"prod", "local"})
    assert cli("config", "use", "local", "--json").json == {"current": "local"}
    assert cli("config", "get", "base-url").out == f"{gateway.url}\n"
    assert cli("config", "unset", "--profile", "prod", "base-url", "--json").json["was_set"] is True
    assert cli("config", "unset", "--profile", "prod", "base-url", "--json").json["was_set"] is False
    assert set(cli("config", "list", "--json").json["profiles"]) == {"local"}
    assert cli("config", "use", "prod").code == 2


def test_an_unknown_profile_is_a_usage_error_that_names_those_that_exist(cli: Cli) -> None:
    cli("config", "set", "--profile", "prod", "model", "gpt-4o")
    done = cli("me", "--profile", "pord")
    assert done.code == 2
    assert "no profile 'pord' in " in done.err
    assert "(profiles: prod)" in done.err


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'{"profiles": []}',
        b'{"profiles": {"a": 1}}',
        b'{"profiles": {"a": {"api_key": 1}}}',
        b'{"profiles": {"a": {"timeout": "x"}}}',
        b'{"current": 1}',
        b"\xff\xfe",
        b"[" * 100_000,
        b" " * (1 << 20) + b"{}",
    ],
)
def test_a_damaged_file_is_one_line_that_names_it_and_stays_as_it_is(
    content: bytes, cli: Cli, path: Path
) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    for arguments in (["me"], ["config", "list"], ["config", "set", "model", "x"]):
        done = cli(*arguments)
        assert (done.code, done.out) == (1, "")
        assert f"{path} is not a config file of omnigate: " in done.err
        assert done.err.count("\n") == 1
    assert path.read_bytes() == content


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    cli: Cli, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("config", "set", "model", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(profiles_module.os, "fsync", full)
    done = cli("config", "set", "model", "new")
    assert done.code == 1
    assert "No space left on device" in done.err
    monkeypatch.undo()
    assert os.listdir(path.parent) == [path.name]
    assert json.loads(path.read_text())["profiles"]["default"]["model"] == "old"


def test_a_folder_that_cannot_be_written_is_told_by_the_path_of_the_file(
    cli: Cli, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(suffix: str, prefix: str, directory: str) -> None:
        raise OSError(30, "Read-only file system", f"{directory}/{prefix}1234{suffix}")

    monkeypatch.setattr("tempfile.mkstemp", refused)
    done = cli("config", "set", "model", "gpt-4o-mini")
    assert done.code == 1
    assert str(path) in done.err
    assert ".writing" not in done.err


def test_without_platformdirs_the_error_says_what_to_install(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    done = cli("config", "list")
    assert (done.code, done.err) == (
        1,
        "Error: the config file needs platformdirs: pip install 'omnigate[cli]'\n",
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links")
def test_a_symbolic_link_to_the_file_is_kept(cli: Cli, path: Path, tmp_path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "elsewhere.json")
    cli("config", "set", "model", "gpt-4o")
    assert path.is_symlink()
    assert "gpt-4o" in (tmp_path / "elsewhere.json").read_text()
