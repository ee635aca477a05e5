"""The package without its extras: `core_only.py` passes while they are hidden."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .core_only import EXTRAS

CHECKS = Path(__file__).with_name("core_only.py")
HIDDEN = """
import os, sys
for package in sys.argv[2:]:
    sys.modules[package] = None
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "omnigate.testing.plugin", "-c", os.devnull, sys.argv[1]]))
"""


@pytest.mark.proof
def test_the_core_alone_imports_loads_the_plugin_and_makes_calls(tmp_path: Path) -> None:
    checks = tmp_path / CHECKS.name
    checks.write_bytes(CHECKS.read_bytes())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", HIDDEN, checks, *EXTRAS],
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
