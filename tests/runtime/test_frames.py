"""Warnings: they name the user's line, and a stderr that is closed does not turn them into errors."""

import subprocess
import sys

import pytest

from omnigate._runtime.frames import warn


def test_a_warning_names_the_line_of_the_caller_outside_the_package() -> None:
    with pytest.warns(UserWarning, match="mind") as caught:
        warn("mind this", UserWarning)
    assert caught[0].filename == __file__


def test_a_warning_with_a_closed_stderr_is_no_error() -> None:
    program = "import sys; from omnigate._runtime.frames import warn; sys.stderr.close(); warn('x', UserWarning); print('on')"
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, timeout=60, check=True
    )
    assert done.stdout == "on\n"
