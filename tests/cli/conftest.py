"""A home of its own for each test, a local gateway for each module, and the command run in this process."""

import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from omnigate.cli._frame.app import command
from omnigate.testing import LocalGateway


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Done]


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's own config file and settings out of the tests."""
    path = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(path / "config"))
    for name in ("OMNIGATE_PROFILE", "OMNIGATE_MODEL", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return path


@pytest.fixture(scope="module")
def served() -> Iterator[LocalGateway]:
    with LocalGateway() as gateway:
        yield gateway


@pytest.fixture
def gateway(served: LocalGateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalGateway]:
    """Serve a gateway, and name it, its keys and a model in the environment."""
    monkeypatch.setenv("OMNIGATE_BASE_URL", served.url)
    monkeypatch.setenv("OMNIGATE_API_KEY", served.api_key)
    monkeypatch.setenv("OMNIGATE_ADMIN_KEY", served.admin_key)
    monkeypatch.setenv("OMNIGATE_MODEL", "gpt-4o-mini")
    yield served
    served.clear_scripts()


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run the command in this process, with pipes as its input and outputs."""

    def run(*arguments: str, input: bytes | str = b"") -> Done:
        content = input.encode() if isinstance(input, str) else input
        out, err = io.BytesIO(), io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "utf-8"))
            patch.setattr(sys, "stdout", io.TextIOWrapper(out, "utf-8"))
            patch.setattr(sys, "stderr", io.TextIOWrapper(err, "utf-8"))
            with pytest.raises(SystemExit) as exit:
                command.main(list(arguments))
            sys.stdout.flush()
            sys.stderr.flush()
            shown = out.getvalue().decode(), err.getvalue().decode()
        code = exit.value.code
        assert code is None or isinstance(code, int)
        return Done(code or 0, *shown)

    return run
