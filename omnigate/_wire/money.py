"""Amounts of money: added without drift, and shown without an exponent."""

from __future__ import annotations

import math
from decimal import Context, Decimal
from typing import Any, Final

_EXACT: Final = Context(prec=40)  # not the thread's, which the program may have changed

_SMALL: Final = 0.01

_UNITS: Final = 1e12  # of which 1 USD consists

_LARGE: Final = 1000.0  # USD; below it, an amount in units has at most 15 digits

_WHOLE: Final = 1.5 * 2**52  # added and subtracted again, it rounds a float below 2**51 to a whole number


class Usd(float):
    """An amount in USD. A plain number, except that it is shown as money: 0.00008, not 8e-05."""

    __slots__ = ()

    def __repr__(self) -> str:
        return positional(self)

    __str__ = __repr__

    def __reduce__(self) -> tuple[Any, ...]:
        return float, (float(self),)


class Sum:
    """A sum of amounts; exact, unlike one of floats, which drifts with each addition."""

    __slots__ = ("_total", "_units")

    def __init__(self) -> None:
        self._total = Decimal()
        self._units = 0  # the rest of the sum

    def add(self, amount: float) -> None:
        """Add an amount."""
        if -_LARGE < amount < _LARGE:
            units = amount * _UNITS + _WHOLE - _WHOLE
            if units / _UNITS == amount:  # with at most 15 digits, only one decimal number reads as `amount`
                self._units += int(units)
                return
        self._total = _EXACT.add(self._total, Decimal(float.__repr__(float(amount))))

    def value(self) -> float:
        """Return the sum, correctly rounded."""
        return float(_EXACT.add(self._total, Decimal(self._units).scaleb(-12, _EXACT)))


def positional(amount: float) -> str:
    """Return the shortest text of a number that reads back as the same number, without an exponent."""
    text = float.__repr__(float(amount))
    return format(Decimal(text), "f") if "e" in text and math.isfinite(amount) else text


def shown_usd(amount: float) -> str:
    """Return an amount for a display: four decimals, or two significant digits if it is below a cent."""
    if not 0 < abs(amount) < _SMALL:
        return f"{amount:,.4f} USD"
    return f"{positional(float(f'{amount:.1e}'))} USD"
