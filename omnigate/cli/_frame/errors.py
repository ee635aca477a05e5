"""What a failed command says, in one line, and the code it exits with."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final, cast

import click

from omnigate._runtime.extras import MissingExtraError
from omnigate._wire.redaction import one_line, redact

if TYPE_CHECKING:
    from omnigate.exceptions import GatewayError

FAILED: Final = 1
USAGE: Final = 2
AUTHENTICATION: Final = 4
INTERRUPTED: Final = 130
CLOSED_PIPE: Final = 141  # as of a program that SIGPIPE ended

_GIVE_KEY: Final = "Give {0} with --{1}, $OMNIGATE_{2} or `omnigate config set {1}`."

_LINE_LENGTH: Final = 1_000


def exit_code_of(error: BaseException) -> int:
    """Return the code to exit with after an error."""
    if is_interrupt(error):
        return INTERRUPTED
    if isinstance(error, click.ClickException):
        return error.exit_code
    if is_gateway_error(error):
        from omnigate.exceptions import AuthError, InvalidArgumentError

        if isinstance(error, AuthError):
            return AUTHENTICATION
        return USAGE if isinstance(error, InvalidArgumentError) else FAILED
    return FAILED


def is_interrupt(error: BaseException) -> bool:
    """Return whether Ctrl-C ended the command, also at a prompt."""
    return isinstance(error, KeyboardInterrupt) or (
        isinstance(error, click.Abort) and isinstance(error.__context__, KeyboardInterrupt)
    )


def is_gateway_error(error: BaseException) -> bool:
    """Return whether an error is one of the package; without importing it, if nothing has so far."""
    exceptions: Any = sys.modules.get("omnigate.exceptions")
    return exceptions is not None and isinstance(error, exceptions.GatewayError)


def line_of(error: BaseException) -> str:
    """Return an error as one line: what failed, what to do, and the request id."""
    if isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, MissingExtraError):
        text = str(error)
    elif isinstance(error, click.Abort | EOFError):
        text = "the input ended before an answer was given"
    elif is_gateway_error(error):
        text = _of_gateway(cast("GatewayError", error))
    elif isinstance(error, OSError) and error.strerror:
        place = "cannot write the output" if error.filename is None else os.fsdecode(error.filename)
        text = f"{place}: {error.strerror}"
    else:
        text = f"unexpected {type(error).__name__}: {error}. This is a bug; --debug shows the traceback"
    return one_line(cast("str", redact(text)), _LINE_LENGTH)


def notes_of(error: BaseException) -> list[str]:
    """Return the notes of an error, but for the package's hint, in whose place `line_of` has its own."""
    notes: list[str] = getattr(error, "__notes__", [])
    if not is_gateway_error(error):
        return notes
    from omnigate.exceptions import _HINTS

    return [text for text in notes if text not in _HINTS.values()]


def _of_gateway(error: GatewayError) -> str:
    text = str(error)
    if hint := _hint(error):
        text = f"{text.rstrip('.')}. {hint}"
    if error.request_id:
        text = f"{text} (request {error.request_id})"
    return text


def _hint(error: GatewayError) -> str:
    """Return what to do about an error, in the words of the command line; "" if the error says it."""
    from omnigate import exceptions as kinds

    if isinstance(error, kinds.AuthError):
        if "admin" in error.message:
            return _GIVE_KEY.format("a valid admin key", "admin-key", "ADMIN_KEY")
        return _GIVE_KEY.format("a valid key", "api-key", "API_KEY")
    if isinstance(error, kinds.ProviderError) and "key configured" in error.message:
        return f"Store one with `omnigate provider-key set {error.provider or 'PROVIDER'}`."
    if isinstance(error, kinds.RateLimitError) and error.retry_after is not None:
        return f"Try again in {error.retry_after:g} s."
    if isinstance(error, kinds.TimeoutError):
        return "Try again, or wait longer with --timeout."
    if isinstance(error, kinds.ConnectionError):
        return "Is the gateway running? Check --base-url, $OMNIGATE_BASE_URL or `omnigate config list`."
    if isinstance(error, kinds.APIError) and error.status_code == 404:
        return "Check the id, and that --base-url is the address of a gateway."
    if isinstance(error, kinds.APIError) and (error.status_code or 0) >= 500:
        return "Try again; `omnigate health` checks the gateway."
    return " ".join(getattr(error, "__notes__", []))
