"""The gateway's limits as plain values."""

from decimal import Decimal
from typing import NamedTuple

from omnigate import _homes


class RateLimit(NamedTuple):
    """The gateway's rate limit when the request *arrived* (docs/protocol.md, "Headers")."""

    limit: int | None
    """Calls allowed per window of one UTC minute."""
    remaining: int | None
    """Calls left in the window when the request arrived."""
    reset_seconds: int | None
    """Seconds from the request's arrival to the end of the window, 1 to 60."""


class Budget(NamedTuple):
    """Spending in USD before this call; a limit of 0 means unlimited, None that the header was missing."""

    project_daily_spend: Decimal | None
    project_daily_limit: Decimal | None
    org_daily_spend: Decimal | None
    org_daily_limit: Decimal | None
    project_monthly_spend: Decimal | None
    project_monthly_limit: Decimal | None
    org_monthly_spend: Decimal | None
    org_monthly_limit: Decimal | None


_homes.settle(__name__)
