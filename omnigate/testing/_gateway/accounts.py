"""Organisations, projects and keys of the local gateway, in memory."""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

KEY_PREFIX_LENGTH = 12


def new_key() -> str:
    """Return a new gateway key: `llmg_` and 43 URL-safe characters."""
    return f"llmg_{secrets.token_urlsafe(32)}"


def new_id() -> str:
    """Return a new id: a UUID."""
    return str(uuid.uuid4())


def iso(moment: datetime) -> str:
    """Format a UTC time as the protocol does."""
    return moment.isoformat().replace("+00:00", "Z")


@dataclass
class Org:
    """An organisation; budgets in USD, 0 for unlimited."""

    id: str
    name: str
    daily_budget: Decimal
    monthly_budget: Decimal
    created_at: datetime

    def body(self) -> dict[str, Any]:
        """Return it as JSON fields."""
        return {
            "id": self.id,
            "name": self.name,
            "daily_budget": f"{self.daily_budget:.4f}",
            "monthly_budget": f"{self.monthly_budget:.4f}",
            "created_at": iso(self.created_at),
        }


@dataclass
class Project:
    """A project; budgets in USD, 0 for unlimited."""

    id: str
    org: Org
    name: str
    key_prefix: str
    daily_budget: Decimal
    monthly_budget: Decimal
    rate_limit_per_min: int
    created_at: datetime
    providers: set[str] = field(default_factory=set[str])

    def body(self) -> dict[str, Any]:
        """Return it as JSON fields."""
        return {
            "id": self.id,
            "org_id": self.org.id,
            "name": self.name,
            "key_prefix": self.key_prefix,
            "daily_budget": f"{self.daily_budget:.4f}",
            "monthly_budget": f"{self.monthly_budget:.4f}",
            "rate_limit_per_min": self.rate_limit_per_min,
            "created_at": iso(self.created_at),
        }


@dataclass
class Key:
    """A gateway key of a project; a project's first key has no name and is not listed."""

    id: str
    project: Project
    name: str | None
    key_prefix: str
    created_at: datetime
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None

    def body(self) -> dict[str, Any]:
        """Return it as JSON fields, without the key itself."""
        return {
            "id": self.id,
            "name": self.name,
            "key_prefix": self.key_prefix,
            "created_at": iso(self.created_at),
            "last_used_at": None if self.last_used_at is None else iso(self.last_used_at),
            "revoked_at": None if self.revoked_at is None else iso(self.revoked_at),
        }


class Accounts:
    """All accounts of a gateway."""

    def __init__(self) -> None:
        self.orgs: dict[str, Org] = {}
        self.projects: dict[str, Project] = {}
        self._keys: dict[str, Key] = {}

    def create_org(self, name: str, daily: Decimal, monthly: Decimal, now: datetime) -> Org:
        """Create an organisation."""
        org = Org(new_id(), name, daily, monthly, now)
        self.orgs[org.id] = org
        return org

    def create_project(
        self,
        org: Org,
        name: str,
        daily: Decimal,
        monthly: Decimal,
        rate_limit_per_min: int,
        now: datetime,
        secret: str | None = None,
    ) -> tuple[Project, str]:
        """Create a project and its first key, random by default; return both."""
        secret = secret or new_key()
        prefix = secret[:KEY_PREFIX_LENGTH]
        project = Project(new_id(), org, name, prefix, daily, monthly, rate_limit_per_min, now)
        self.projects[project.id] = project
        self._keys[secret] = Key(new_id(), project, None, prefix, now)
        return project, secret

    def create_key(self, project: Project, name: str, now: datetime) -> tuple[Key, str]:
        """Create a named key; return its record and the key."""
        secret = new_key()
        key = self._keys[secret] = Key(new_id(), project, name, secret[:KEY_PREFIX_LENGTH], now)
        return key, secret

    def named_keys(self, project: Project) -> list[Key]:
        """Return a project's named keys."""
        return [key for key in self._keys.values() if key.project is project and key.name is not None]

    def find_key(self, secret: str) -> Key | None:
        """Return the record of a valid key, or None."""
        key = self._keys.get(secret)
        return None if key is None or key.revoked_at is not None else key
