"""The `omnigate` command. Needs the extra `cli`: `pip install 'omnigate[cli]'`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; without the extra, say what to install."""
    try:
        from omnigate.cli.commands import command
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("click", "rich", "starlette", "uvicorn", "pydantic"):
            raise
        sys.exit(f"omnigate: the command line needs {error.name}: pip install 'omnigate[cli]'")
    command(prog_name="omnigate")
