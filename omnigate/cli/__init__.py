"""The `omnigate` command. Needs the extra `cli`: `pip install 'omnigate[cli]'`."""

from __future__ import annotations

import sys

from omnigate._runtime.extras import MissingExtraError, extra
from omnigate.cli._frame.streams import prepare_streams


def main() -> None:
    """Run the command line and exit; without the extra, say what to install."""
    try:
        prepare_streams()
        with extra("cli", "the omnigate command"):
            from omnigate.cli._frame.app import command
        command(prog_name="omnigate")
    except MissingExtraError as error:
        sys.exit(f"omnigate: {error}")
    except KeyboardInterrupt:  # while the command was being imported
        sys.exit(130)
