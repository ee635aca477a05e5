"""The published client 0.1.0: it works against the local gateway, and its programs work with this package."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import benchmarks.harness
from omnigate.testing import LocalGateway, ProviderFailure, RecordedRequest, StreamFailure

HERE = Path(__file__).parent
FAILURES = {
    "FAIL401": ProviderFailure(401, '{"error":{"message":"Incorrect API key provided."}}'),
    "FAIL429": ProviderFailure(429, "slow down"),
    "FAIL500": ProviderFailure(500, "oops"),
    "UNREACHABLE": ProviderFailure(None, "connection reset"),
    "MIDSTREAM": StreamFailure("peer closed connection", after_bytes=8),
}


@pytest.fixture(scope="session")
def published_python() -> Path:
    """Return the interpreter of a separate environment with 0.1.0 installed."""
    return benchmarks.harness.python_of("published")


def run_program(python: Path | str) -> str:
    with LocalGateway(rate_limit_per_min=10_000) as gateway:
        for prompt, fault in FAILURES.items():
            gateway.script(fault, times=100, when=_mentions(prompt))
        keys = {
            "rich": gateway.api_key,
            "limited": gateway.create_project(rate_limit_per_min=1).api_key,
            "poor": gateway.create_project(daily_budget="0.0000000001").api_key,
        }
        environment = {
            "PATH": os.environ["PATH"],
            "TEST_URL": gateway.url,
            **{f"TEST_{name.upper()}_KEY": key for name, key in keys.items()},
        }
        command = [python, "-I", HERE / "program_for_0_1_0.py"]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _mentions(prompt: str) -> Callable[[RecordedRequest], bool]:
    return lambda request: prompt.encode() in request.body


@pytest.mark.timeout(400)
@pytest.mark.proof
def test_a_program_for_0_1_0_prints_the_same_with_this_package(published_python: Path) -> None:
    published = run_program(published_python)
    ours = run_program(sys.executable)
    assert len(published.splitlines()) > 70
    assert ours.splitlines() == published.splitlines()
