"""The `omnigate` command. Needs the extra `cli`: `pip install 'omnigate[cli]'`."""

from __future__ import annotations

import sys

from omnigate._runtime.extras import MissingExtraError, extra


def main() -> None:
    """Run the command line; without the extra, say what to install."""
    try:
        with extra("cli", "the omnigate command"):
            from omnigate.cli._commands import command
        command(prog_name="omnigate")
    except MissingExtraError as error:
        sys.exit(f"omnigate: {error}")
