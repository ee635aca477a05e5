"""Checks of arguments, and the wording of their errors: "temperature must be between 0 and 2, got 3".

Every error of an argument is made by `refusal`. The bounds of a number are a `Range`, which both checks
and words them, so that the text cannot disagree with the check.
"""

from __future__ import annotations

import inspect
import ssl
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import msgspec

from omnigate._wire.redaction import shown
from omnigate._wire.values import number, scalar
from omnigate.exceptions import GatewayError, InvalidArgumentError, InvalidArgumentTypeError

BE_BOOL: Final = "be True or False"

BE_ENCODABLE: Final = "not contain lone surrogates, which UTF-8 cannot encode"


def refusal(
    argument: str,
    value: object,
    must: str,
    *,
    is_type: bool = False,
    secret: bool = False,
    got: str | None = None,
    hint: str = "",
) -> InvalidArgumentError:
    """Return the error for an argument that cannot be sent: "<argument> must <must>, got <value> (<hint>)".

    Args:
        argument: its name, or its place in the argument ("messages[0].role").
        value: what was given; keys in it are masked, and it is shortened.
        must: what must hold, as the words after "must".
        is_type: whether the type is wrong, not just the value.
        secret: whether the value must not be shown.
        got: words for the value, where it cannot be shown itself.
        hint: what may help, in parentheses at the end.
    """
    if got is None and secret:
        got = a_type(value) if is_type else "***"
    kind = InvalidArgumentTypeError if is_type else InvalidArgumentError
    ending = f" ({hint})" if hint else ""
    return kind(f"{argument} must {must}, got {shown(value) if got is None else got}{ending}")


def a_type(value: object) -> str:
    """Return a description of a value that shows only its type."""
    return f"an object of type {type(value).__name__}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The range of numbers that an argument accepts, and its wording in errors.

    Attributes:
        minimum: the least, if there is one.
        maximum: the greatest, if there is one.
        above: what it must be greater than, in place of a minimum.
        is_integer: whether only integers count.
        unit: what is counted ("seconds"), where the argument's name does not say it.
    """

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    is_integer: bool = False
    unit: str = ""

    def __contains__(self, value: float | Decimal) -> bool:
        highest = self.maximum
        if highest is None and not self.is_integer:
            highest = sys.float_info.max  # also for an integer of any size
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (highest is None or value <= highest)
        )

    def __str__(self) -> str:
        if self.minimum is not None and self.maximum is not None:
            return f"{'an integer ' if self.is_integer else ''}between {self.minimum} and {self.maximum}"
        noun = "an integer" if self.is_integer else "a finite number"
        if self.unit:
            noun += f" of {self.unit}"
        if self.above is not None:
            return f"{noun} above {self.above}"
        if self.is_integer:
            return f"{noun} of at least {self.minimum}"
        return f"{noun}, at least {self.minimum}"

    @property
    def meta(self) -> msgspec.Meta:
        """The same bounds for msgspec."""
        if self.above is not None:
            return msgspec.Meta(gt=self.above, le=self.maximum)
        return msgspec.Meta(ge=self.minimum, le=self.maximum)

    def check(self, value: Any, argument: str, *, otherwise: str = "") -> Any:
        """Return `value` as an `int` or `float` if it is one of these numbers.

        Args:
            value: the argument; also another library's number.
            argument: its name.
            otherwise: what else it may be, for the error's text (", or None").
        """
        given = scalar(value) if self.is_integer else number(value)
        is_type = isinstance(given, bool) or not isinstance(given, int if self.is_integer else int | float)
        if is_type or given not in self:
            raise refusal(argument, value, f"be {self}{otherwise}", is_type=is_type)
        return given


SECONDS: Final = Range(above=0, unit="seconds")
"""A limit of time."""


def check_number(
    value: Any,
    argument: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    otherwise: str = "",
) -> float:
    """Return a finite number within bounds."""
    number: float = Range(minimum=minimum, maximum=maximum, above=above).check(
        value, argument, otherwise=otherwise
    )
    return number


def check_seconds(value: Any, argument: str, *, otherwise: str = "") -> float:
    """Return a number of seconds above 0."""
    seconds: float = SECONDS.check(value, argument, otherwise=otherwise)
    return seconds


def check_integer(
    value: Any, argument: str, *, minimum: int, maximum: int | None = None, otherwise: str = ""
) -> int:
    """Return an integer within bounds."""
    if type(value) is int and minimum <= value and (maximum is None or value <= maximum):
        return value
    integer: int = Range(minimum=minimum, maximum=maximum, is_integer=True).check(
        value, argument, otherwise=otherwise
    )
    return integer


def check_bool(value: Any, argument: str) -> bool:
    """Check that `value` is a `bool`, or numpy's, and return it as a `bool`."""
    given = scalar(value)
    if not isinstance(given, bool):
        raise refusal(argument, value, BE_BOOL, is_type=True)
    return given


def check_verify(value: Any) -> bool | ssl.SSLContext:
    """Check the `verify` argument and return it."""
    if not isinstance(value, bool | ssl.SSLContext):
        raise refusal("verify", value, "be True, False or an ssl.SSLContext", is_type=True)
    return value


def check_callable(value: Any, argument: str, kind: str) -> None:
    """Check that something can be called; `kind` says what it must be ("a callable that …")."""
    if not callable(value):
        raise refusal(argument, value, f"be {kind}", is_type=True)


def check_text(
    value: Any, argument: str, *, minimum: int = 1, maximum: int | None = None, secret: bool = False
) -> str:
    """Return text within the length limits as a plain `str`; a secret stays out of errors."""
    must = f"be {text_of(minimum, maximum)}"
    text = scalar(value)
    if not isinstance(text, str):
        raise refusal(argument, value, must, is_type=True, secret=secret)
    if len(text) < minimum or (maximum is not None and len(text) > maximum):
        raise refusal(argument, value, must, secret=secret)
    return text


def text_of(minimum: int, maximum: int | None) -> str:
    """Return the words for text of a length within limits."""
    if maximum is None:
        return f"text of at least {minimum} character{'' if minimum == 1 else 's'}"
    if minimum == 0:
        return f"text of at most {maximum} characters"
    return f"text of {minimum} to {maximum} characters"


def check_choice(value: Any, argument: str, choices: Sequence[str]) -> str:
    """Return one of `choices` as a plain `str`."""
    text = scalar(value)
    if not isinstance(text, str) or text not in choices:
        raise refusal(argument, value, f"be {one_of(choices)}", is_type=not isinstance(text, str))
    return text


def one_of(choices: Sequence[str]) -> str:
    """Return the words for one of several texts: "'a', 'b' or 'c'"."""
    *others, last = map(repr, choices)
    return f"{', '.join(others)} or {last}" if others else last


def check_not_async(given: object, argument: str, kind: str) -> None:
    """Check that an argument is not an async callable, which would do nothing when called.

    A coroutine that is never awaited does nothing, and is truthy: as a return value it would always mean yes.

    Args:
        given: the argument.
        argument: its name.
        kind: what it must be ("a callable that …").

    Raises:
        InvalidArgumentTypeError: it is a coroutine function, an async generator function, or an object with
            such a `__call__`.
    """
    for function in (given, getattr(type(given), "__call__", None)):  # noqa: B004 - inspected, not called
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            must = f"be {kind}, and not async"
            raise refusal(argument, given, must, is_type=True, hint="its result is not awaited")


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
