"""The state shared by the local gateway's endpoints: accounts, usage, limits, cache and clock."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from starlette.requests import Request

from omnigate.testing._gateway.accounts import Accounts, Key, Project
from omnigate.testing._gateway.answers import BadRequestError
from omnigate.testing._gateway.limits import CircuitBreakers, RateLimiter
from omnigate.testing._gateway.model import Accidents
from omnigate.testing._gateway.usage import Usage
from omnigate.testing.faults import Fault, RecordedRequest

VERSION: Final = "0.2.0"

CACHE_SECONDS: Final = 300.0


@dataclass
class State:
    """The state of one gateway."""

    clock: Callable[[], float]
    admin_key: str
    rate_limit_per_min: int
    limiter: RateLimiter
    latency_seconds: float
    chunk_delay_seconds: float
    usage_delay_seconds: float
    accidents: Accidents
    accounts: Accounts = field(default_factory=Accounts)
    usage: Usage = field(default_factory=Usage)
    breakers: CircuitBreakers = field(default_factory=CircuitBreakers)
    cache: dict[Any, tuple[float, dict[str, Any]]] = field(default_factory=dict[Any, Any])

    def now(self) -> datetime:
        """Return the current time in UTC."""
        return datetime.fromtimestamp(self.clock(), UTC)

    def authenticate(self, request: Request) -> Key:
        """Return the record of a request's key.

        Raises:
            BadRequestError: 401.
        """
        secret = request.headers.get("x-api-key", "")
        if not secret:
            scheme, _, token = request.headers.get("authorization", "").partition(" ")
            secret = token.strip() if scheme.lower() == "bearer" else ""
        if not secret:
            raise BadRequestError(401, "Missing x-api-key header (or Authorization: Bearer token)")
        key = self.accounts.find_key(secret)
        if key is None:
            raise BadRequestError(401, "Invalid API key")
        if key.name is not None:
            key.last_used_at = self.now()
        return key

    def authenticate_admin(self, request: Request) -> None:
        """Check the admin key.

        Raises:
            BadRequestError: 401.
        """
        if request.headers.get("x-admin-key") != self.admin_key:
            raise BadRequestError(401, "Invalid or missing x-admin-key")

    def check_budgets(self, project: Project) -> None:
        """Check that no budget is exhausted.

        Raises:
            BadRequestError: 402.
        """
        now = self.clock()
        for owner, name in ((project, "Project"), (project.org, "Organisation")):
            for budget, period in ((owner.daily_budget, "daily"), (owner.monthly_budget, "monthly")):
                if budget > 0 and self.usage.spent(owner.id, now, period) >= budget:  # type: ignore[arg-type]
                    raise BadRequestError(402, f"{name} {period} budget exceeded")

    def budget_headers(self, project: Project) -> dict[str, str]:
        """Return the budget headers, excluding the current call."""
        now = self.clock()
        headers: dict[str, str] = {}
        for owner, name in ((project, "project"), (project.org, "org")):
            spent = self.usage.spent(owner.id, now, "daily")
            _add_budget(headers, f"x-budget-{name}-daily", spent, owner.daily_budget)
        for owner, name in ((project, "project"), (project.org, "org")):
            if owner.monthly_budget > 0:
                spent = self.usage.spent(owner.id, now, "monthly")
                _add_budget(headers, f"x-budget-{name}-monthly", spent, owner.monthly_budget)
        return headers


def _add_budget(headers: dict[str, str], name: str, spent: Decimal, budget: Decimal) -> None:
    headers[f"{name}-spend"] = f"{spent:.6f}"
    headers[f"{name}-limit"] = f"{budget:.4f}"


def request_id(request: Request) -> str:
    """Return the response's id: the one the request sent, or a new one of 32 hex digits."""
    return request.headers.get("x-request-id") or uuid.uuid4().hex


def faults_of(request: Request) -> list[Fault]:
    """Return the faults scripted for a request."""
    faults: list[Fault] = request.scope.get("omnigate.faults", [])
    return faults


def recorded(request: Request, body: bytes) -> RecordedRequest:
    """Return the record of a request that tests can inspect."""
    return RecordedRequest(request.method, request.url.path, request.url.query, dict(request.headers), body)
