"""Run the contenders in turn, each in a fresh process, and print the results."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CACHE = HERE.parent / ".cache"
PUBLISHED = ("omnigate==0.1.0",)


def published_python() -> Path:
    """Return the interpreter of a separate environment with 0.1.0, installed from the registry."""
    home = CACHE / f"omnigate-0.1.0-py{sys.version_info.major}.{sys.version_info.minor}"
    python = home / "bin" / "python"
    complete = home / "complete"
    if not complete.exists():
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PUBLISHED], check=True, timeout=300)
        complete.touch()
    return python


@contextmanager
def server(*options: str) -> Iterator[str]:
    """Run the server of canned responses and yield its port."""
    command = [sys.executable, str(HERE / "server.py"), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
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
    """Run one contender on one case."""
    python = published_python() if contender == "published" else sys.executable
    done = subprocess.run(
        [python, HERE / "contenders.py", contender, json.dumps(case)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=case.get("timeout_seconds", 300),
        check=True,
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


@dataclass
class Result:
    """A contender's best figures on one case."""

    contender: str
    case: dict[str, Any]
    rounds: int
    figures: dict[str, float] = field(default_factory=dict)

    def add(self, figures: dict[str, float]) -> None:
        """Record one round: keep the lowest time and the highest rate."""
        for name, value in figures.items():
            better = max if name.endswith("per_second") else min
            self.figures[name] = better(self.figures.get(name, value), value)


def run(results: list[Result]) -> None:
    """Measure all contenders round by round, so that drifts of the machine affect all alike."""
    for number in range(max(result.rounds for result in results)):
        for result in results:
            if number < result.rounds:
                result.add(measure(result.contender, result.case))
                print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)


@dataclass
class Check:
    """One line of a report: a figure compared with another."""

    name: str
    value: float
    other: float
    limit: float
    at_least: bool = False
    unit: str = "µs"

    @property
    def ratio(self) -> float:
        return self.value / self.other

    @property
    def is_met(self) -> bool:
        return self.ratio >= self.limit if self.at_least else self.ratio <= self.limit


def report(title: str, checks: list[Check]) -> None:
    """Print the checks as a table."""
    print(f"\n{title}")
    print(f"{'':58} {'ours':>10} {'theirs':>10} {'ratio':>8} {'target':>9}")
    for check in checks:
        sign = "≥" if check.at_least else "≤"
        print(
            f"{check.name:58} {check.value:10,.1f} {check.other:10,.1f} {check.ratio:8.3f} "
            f"{sign} {check.limit:<7.3f} {'yes' if check.is_met else 'NO'}  {check.unit}"
        )


def main(benchmark: Callable[[bool], tuple[str, list[Result], list[Check]]]) -> None:
    """Run one module's benchmark from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="few calls, one round: a smoke test")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    title, results, checks = benchmark(arguments.quick)
    report(title, checks)
    if arguments.json:
        figures = [{"contender": result.contender, **result.case, **result.figures} for result in results]
        arguments.json.write_text(json.dumps(figures, indent=1))
