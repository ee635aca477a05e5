"""Checks for plain arguments: numbers, text, choices, and callables that must not be async.

Callbacks are called without `await`. A coroutine they returned would never run, and being truthy it would
always count as "yes".
"""

from __future__ import annotations

import inspect
import ssl
import sys
from typing import Any, Final

from omnigate._wire.redaction import shown
from omnigate.exceptions import GatewayError, InvalidArgumentError, InvalidArgumentTypeError

_MOST: Final = sys.float_info.max


def check_number(
    value: Any, argument: str, allowed: str, *, above: float = -_MOST, minimum: float = -_MOST
) -> float:
    """Check that `value` is a finite number above a bound, or at least a minimum, and return it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidArgumentTypeError(f"{argument}={shown(value)} is not allowed: {allowed}")
    if not (above < value and minimum <= value <= _MOST):  # compares integers of any size, too
        raise InvalidArgumentError(f"{argument}={shown(value)} is not allowed: {allowed}")
    return value


def check_bool(value: Any, argument: str) -> bool:
    """Check that `value` is a bool and return it."""
    if not isinstance(value, bool):
        raise InvalidArgumentTypeError(f"{argument}={shown(value)} is not allowed: True or False")
    return value


def check_verify(value: Any) -> bool | ssl.SSLContext:
    """Check the `verify` argument and return it."""
    if not isinstance(value, bool | ssl.SSLContext):
        raise InvalidArgumentTypeError(
            f"verify={shown(value)} is not allowed: True, False or an ssl.SSLContext"
        )
    return value


def check_callable(value: Any, argument: str, allowed: str) -> None:
    """Check that `value` is callable."""
    if not callable(value):
        raise InvalidArgumentTypeError(f"{argument}={shown(value)} is not allowed: {allowed}")


def check_integer(value: Any, argument: str, *, minimum: int) -> int:
    """Check that `value` is an integer of at least `minimum` and return it."""
    allowed = f"an integer of at least {minimum}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgumentTypeError(f"{argument}={shown(value)} is not allowed: {allowed}")
    if value < minimum:
        raise InvalidArgumentError(f"{argument}={shown(value)} is not allowed: {allowed}")
    return value


def check_text(
    value: Any, argument: str, *, minimum: int = 1, maximum: int | None = None, secret: bool = False
) -> str:
    """Check that `value` is text within the length limits and return it; a secret stays out of errors."""
    allowed = (
        f"text of {minimum} to {maximum} characters" if maximum else f"text of at least {minimum} characters"
    )
    what = argument if secret else f"{argument}={shown(value)}"
    if not isinstance(value, str):
        raise InvalidArgumentTypeError(f"{what} is not allowed: {allowed}")
    if len(value) < minimum or (maximum is not None and len(value) > maximum):
        raise InvalidArgumentError(f"{what} is not allowed: {allowed}")
    return value


def check_choice(value: Any, argument: str, choices: tuple[str, ...]) -> str:
    """Check that `value` is one of `choices` and return it."""
    if not isinstance(value, str) or value not in choices:
        raise InvalidArgumentError(f"{argument}={shown(value)} is not allowed: one of {', '.join(choices)}")
    return value


def check_not_async(given: object, name: str, *, takes: str) -> None:
    """Check that an argument, if callable, is not async.

    Args:
        given: the argument.
        name: its name.
        takes: what the argument must be, for the error message.

    Raises:
        InvalidArgumentTypeError: it is a coroutine function, an async generator function, or an object with
            such a `__call__`.
    """
    for function in (given, getattr(type(given), "__call__", None)):  # noqa: B004 - inspected, not called
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise InvalidArgumentTypeError(
                f"{name}={shown(given)} is not allowed: {takes}, and is not async (its result is not awaited)"
            )


def check_not_awaitable(result: object, name: str) -> None:
    """Check that a callback did not return an awaitable; close it if it is a coroutine.

    Raises:
        GatewayError: it did.
    """
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()  # otherwise Python warns that it was never awaited
        raise GatewayError(
            f"{name} must be a plain function, not async: it returned a {type(result).__name__}"
        )
