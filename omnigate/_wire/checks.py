"""Callables that a user passes in and that are called without an await: those that want one are refused.

A coroutine nobody awaits does nothing, and is true: as an answer it would always say yes.
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
    """Return a finite number above a bound, or of at least a minimum."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidArgumentTypeError(f"{argument}={shown(value)} is not allowed: {allowed}")
    if not (above < value and minimum <= value <= _MOST):  # also an integer of any size
        raise InvalidArgumentError(f"{argument}={shown(value)} is not allowed: {allowed}")
    return value


def check_bool(value: Any, argument: str) -> bool:
    """Return True or False."""
    if not isinstance(value, bool):
        raise InvalidArgumentTypeError(f"{argument}={shown(value)} is not allowed: True or False")
    return value


def check_verify(value: Any) -> bool | ssl.SSLContext:
    """Return what certificates are verified with."""
    if not isinstance(value, bool | ssl.SSLContext):
        raise InvalidArgumentTypeError(
            f"verify={shown(value)} is not allowed: True, False or an ssl.SSLContext"
        )
    return value


def check_callable(value: Any, argument: str, allowed: str) -> None:
    """Check that something can be called."""
    if not callable(value):
        raise InvalidArgumentTypeError(f"{argument}={shown(value)} is not allowed: {allowed}")


def check_integer(value: Any, argument: str, *, minimum: int) -> int:
    """Return an integer of at least `minimum`."""
    allowed = f"an integer of at least {minimum}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgumentTypeError(f"{argument}={shown(value)} is not allowed: {allowed}")
    if value < minimum:
        raise InvalidArgumentError(f"{argument}={shown(value)} is not allowed: {allowed}")
    return value


def check_text(
    value: Any, argument: str, *, minimum: int = 1, maximum: int | None = None, secret: bool = False
) -> str:
    """Return text of a length within limits; a secret's value is not shown."""
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
    """Return one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise InvalidArgumentError(f"{argument}={shown(value)} is not allowed: one of {', '.join(choices)}")
    return value


def check_not_async(given: object, name: str, *, takes: str) -> None:
    """Check that an argument, if it can be called, does its work when it is called.

    Args:
        given: the argument.
        name: its name.
        takes: what it is to be, in words.

    Raises:
        InvalidArgumentTypeError: it is a coroutine function, an async generator function, or an object with
            such a `__call__`.
    """
    for function in (given, getattr(type(given), "__call__", None)):  # noqa: B004 - it is looked at, not called
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise InvalidArgumentTypeError(
                f"{name}={shown(given)} is not allowed: {takes}, and is not async (its result is not awaited)"
            )


def check_not_awaitable(result: object, name: str) -> None:
    """Check that what a callable has returned is no coroutine or the like; a coroutine is closed.

    Raises:
        GatewayError: it is.
    """
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()  # else Python warns that it was never awaited
        raise GatewayError(
            f"{name} returned a {type(result).__name__}, which nobody awaits: pass one that is not async"
        )
