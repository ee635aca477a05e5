"""Callables that a user passes in and that are called without an await: those that want one are refused.

A coroutine nobody awaits does nothing, and is true: as an answer it would always say yes.
"""

from __future__ import annotations

import inspect

from omnigate.exceptions import GatewayError, InvalidArgumentTypeError
from omnigate.structs import shown


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
