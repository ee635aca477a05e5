"""Runs a command to its exit code: reports its error, and copes with an output that is closed or full."""

from __future__ import annotations

import errno
import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import IO, Any, NoReturn, cast

import click

from omnigate._wire.redaction import one_line, printable, redact
from omnigate.cli._frame.errors import CLOSED_PIPE, INTERRUPTED, exit_code_of, is_interrupt, line_of
from omnigate.cli._frame.invocation import Invocation
from omnigate.cli._frame.terminal import note

_WARNING_LENGTH = 1_000


def run(action: Callable[[Invocation], object]) -> NoReturn:
    """Run a command and exit.

    Exit codes: 0, or 1 for an error, 2 for wrong usage, 4 for a key that is not accepted, 130 for Ctrl-C, 141
    for a pipe that was closed.

    Args:
        action: the command; it gets an object to keep its common options in.
    """
    invocation = Invocation()
    shown, warnings.showwarning = warnings.showwarning, _show_warning
    for stream in (sys.stdout, sys.stderr):  # what an encoding lacks must not be an error
        if hasattr(stream, "reconfigure"):
            cast("Any", stream).reconfigure(errors="backslashreplace")
    try:
        code = _code_of(action, invocation)
    except KeyboardInterrupt:  # again, while the first was being reported
        code = INTERRUPTED
    finally:
        warnings.showwarning = shown
    sys.exit(code)


def interrupt_on_sigterm() -> None:
    """Have SIGTERM end the program as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def _code_of(action: Callable[[Invocation], object], invocation: Invocation) -> int:
    try:
        try:
            action(invocation)
            code = 0
        except click.exceptions.Exit as end:
            code = end.exit_code
        if sys.stdout is not None:
            sys.stdout.flush()
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - each one is reported
        code = _report(error, invocation)
    return code


def _report(error: BaseException, invocation: Invocation) -> int:
    """Say on standard error what failed, and return the exit code."""
    _drop_unwritable(sys.stdout)
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        _drop_unwritable(sys.stderr)
        return CLOSED_PIPE
    with suppress(OSError):  # standard error is closed, too
        if invocation.is_debug and not isinstance(error, click.ClickException):
            import traceback

            sys.stderr.write(printable(redact("".join(traceback.format_exception(error)))))
        if isinstance(error, click.UsageError) and error.ctx is not None:
            path = error.ctx.command_path
            click.echo(f"{error.ctx.get_usage()}\nTry '{path} --help' for help.\n", err=True)
        note("\nInterrupted." if is_interrupt(error) else f"Error: {line_of(error)}")
    _drop_unwritable(sys.stderr)
    return exit_code_of(error)


def _drop_unwritable(stream: IO[str] | None) -> None:
    """Drop what a stream cannot write; else Python tries again as it exits, and complains."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: str | None = None,
) -> None:
    """Show a warning as one line, without a place in the code."""
    with suppress(OSError):
        click.echo(f"Warning: {one_line(str(redact(str(message))), _WARNING_LENGTH)}", err=True)
