"""Run the contenders in turn, each in a fresh process, next to one server process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CACHE = HERE.parent / ".cache"

ENVIRONMENTS = {"published": "omnigate==0.1.0", "litellm": "litellm"}
"""Contenders whose requirements contradict ours: each has an environment of its own, with this package."""

MODULES = {
    "aiohttp": "aiohttp",
    "pyqwest": "pyqwest",
    "httpx2": "httpx2",
    "openai": "openai",
    "openai_over_ours": "openai",
    "trio_socket": "trio",
    "uvloop": "uvloop",
}
"""The packages that contenders and event loops need, where they are not dependencies."""

FAILURE = (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError)


@cache
def python_of(contender: str) -> Path:
    """Return a contender's interpreter, created under `.cache/` at first use if it is not this one.

    Raises:
        RuntimeError: its packages cannot be installed, or are not.
    """
    requirement = ENVIRONMENTS.get(contender)
    if requirement is None:
        module = MODULES.get(contender)
        if module is not None:
            done = subprocess.run(
                [sys.executable, "-c", f"import {module}"], capture_output=True, check=False
            )
            if done.returncode:
                raise RuntimeError(f"{module} is not installed")
        return Path(sys.executable)
    home = CACHE / f"{requirement.replace('==', '-')}-py{sys.version_info.major}.{sys.version_info.minor}"
    python = home / "bin" / "python"
    complete = home / "complete"
    if not complete.exists():
        try:
            venv.create(home, with_pip=True, clear=True)
            command = [str(python), "-m", "pip", "install", "--quiet", requirement]
            subprocess.run(command, check=True, timeout=600, capture_output=True)
        except FAILURE as error:
            raise RuntimeError(f"{requirement} cannot be installed: {type(error).__name__}") from error
        complete.touch()
    return python


def versions(contender: str, *packages: str) -> dict[str, str]:
    """Return the versions of packages in a contender's environment."""
    program = (
        "import importlib.metadata as m, json, sys\n"
        "known = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({n: known[n] for n in sys.argv[1:] if n in known}))"
    )
    done = subprocess.run(
        [python_of(contender), "-c", program, *packages], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


@contextmanager
def server(*options: str) -> Iterator[str]:
    """Run the server of canned responses and yield its port."""
    command = [sys.executable, str(HERE / "server.py"), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


@contextmanager
def certificates() -> Iterator[tuple[str, str]]:
    """Yield the files of a new CA certificate, and of a key with its certificate for loopback."""
    import trustme

    authority = trustme.CA()
    with tempfile.TemporaryDirectory() as folder:
        trusted, identity = Path(folder, "authority.pem"), Path(folder, "server.pem")
        authority.cert_pem.write_to_path(trusted)
        authority.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(identity)
        yield str(trusted), str(identity)


def measure(contender: str, case: dict[str, Any]) -> dict[str, float]:
    """Run one contender on one case.

    Raises:
        RuntimeError: it is not installed, or failed.
    """
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # litellm would fetch it
    if contender in ENVIRONMENTS:
        environment.pop("PYTHONPATH", None)  # may lead to this package
    seconds = case.get("timeout_seconds", 300)
    command = [str(python_of(contender)), str(HERE / "contenders.py"), contender, json.dumps(case)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=True, env=environment
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no output"])[-1]
        raise RuntimeError(f"{contender} failed: {last}") from error
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{contender} took longer than {seconds} s") from error
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


@dataclass
class Result:
    """A contender's figures on one case, round by round."""

    contender: str
    case: dict[str, Any]
    rounds: int
    figures: list[dict[str, float]] = field(default_factory=list)
    problem: str | None = None

    def best(self, name: str) -> float | None:
        """Return the lowest cost, or the highest rate; None if there is no figure."""
        values = [figures[name] for figures in self.figures if name in figures]
        if not values:
            return None
        return max(values) if name.endswith("per_second") else min(values)


def run(results: list[Result]) -> None:
    """Measure all contenders round by round, so that drifts of the machine affect all alike."""
    for number in range(max(result.rounds for result in results)):
        for result in results:
            if number >= result.rounds or result.problem is not None:
                continue
            try:
                result.figures.append(measure(result.contender, result.case))
                mark = "."
            except RuntimeError as error:
                result.problem = str(error)
                mark = "!"
            print(mark, end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
