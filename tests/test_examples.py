"""Each example and each program in the README runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from omnigate.testing import LocalGateway

from .support.keys import assert_no_key

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
ENGINES = {"dask_frame.py": "distributed", "ray_dataset.py": "ray"}
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LOGGED = """
import logging, runpy, sys
logging.basicConfig(level=1, filename=sys.argv[2])
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def environment(gateway: LocalGateway) -> dict[str, str]:
    return os.environ | {"OMNIGATE_BASE_URL": gateway.url, "OMNIGATE_API_KEY": gateway.api_key}


@pytest.mark.proof
@pytest.mark.timeout(150)  # starting the processes of a cluster takes its time on a busy machine
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs_and_prints_an_answer_without_showing_a_key(
    example: Path, omnigate_gateway: LocalGateway, tmp_path: Path
) -> None:
    is_of_engine = example.name in ENGINES
    if is_of_engine:
        package = ENGINES[example.name]
        pytest.importorskip(package, reason=f"the example {example.name} needs {package}")
    log = tmp_path / "log"
    # An engine has warnings and messages of its own.
    command = [sys.executable, "-W", "default" if is_of_engine else "error", "-c", LOGGED, example, log]
    done = subprocess.run(
        command, env=environment(omnigate_gateway), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert is_of_engine or done.stderr == ""
    assert "echo[gpt-4o-mini]" in done.stdout
    assert_no_key(done.stdout + log.read_text("utf-8"), omnigate_gateway.api_key)


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.proof
@pytest.mark.parametrize("block", python_blocks(), ids=lambda block: block.splitlines()[0][:50])
def test_a_python_block_of_the_readme_runs(
    block: str, omnigate_gateway: LocalGateway, tmp_path: Path
) -> None:
    script = tmp_path / "block.py"
    script.write_text(block, "utf-8")
    if "def test_" in block:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", script]
    else:
        command = [sys.executable, "-W", "error", script]
    environment_ = environment(omnigate_gateway) | {"OMNIGATE_ADMIN_KEY": omnigate_gateway.admin_key}
    done = subprocess.run(
        command, env=environment_, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_first_screen_of_the_readme_names_the_demo_and_pytest() -> None:
    first_screen = "\n".join(README.splitlines()[:45])
    assert "omnigate demo" in first_screen
    assert "pytest" in first_screen
    assert (ROOT / ".ci" / "run").read_text("utf-8").count("README") >= 1
