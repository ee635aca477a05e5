"""Values of the gateway as short text for people."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal


def moment(when: datetime | None, otherwise: str = "-") -> str:
    """Return a point in time in UTC, to the minute."""
    return otherwise if when is None else when.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def budget(amount: Decimal | None) -> str:
    """Return a budget in USD."""
    if amount is None:
        return "unknown"
    return f"{amount:f} USD" if amount else "unlimited"


def usd(amount: float) -> str:
    """Return an amount of money."""
    from omnigate._wire.money import shown_usd

    return shown_usd(amount)


def share(fraction: float) -> str:
    """Return a share as a percentage."""
    return f"{fraction * 100:.1f} %"


def counted(count: int, noun: str) -> str:
    """Return a number of things: "1 line", "2 lines"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
