"""The gateway's endpoints as data: method, path, and what sending a request twice does (docs/protocol.md)."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias

Resend: TypeAlias = Literal["safe", "billed", "never"]
"""What sending a request twice does: no harm, a second bill, or a second key that nobody sees."""


class Endpoint(NamedTuple):
    """One endpoint.

    Attributes:
        method: the HTTP method.
        path: the path; a variable part is appended to it.
        resend: what it does to send a request twice.
        mints_key: whether the answer holds a new key, so that no part of it may be in an error.

    """

    method: str
    path: str
    resend: Resend = "safe"
    mints_key: bool = False


CHAT: Final = Endpoint("POST", "/v1/chat", "billed")

COMPLETIONS: Final = Endpoint("POST", "/v1/chat/completions", "billed")

MODELS: Final = Endpoint("GET", "/v1/models")

MODEL: Final = Endpoint("GET", "/v1/models/")

METRICS: Final = Endpoint("GET", "/v1/metrics")

SIGNUP: Final = Endpoint("POST", "/v1/signup", "never", mints_key=True)

PROVIDER_KEY: Final = Endpoint("POST", "/v1/keys")

CREATE_API_KEY: Final = Endpoint("POST", "/v1/keys/api", "never", mints_key=True)

LIST_API_KEYS: Final = Endpoint("GET", "/v1/keys/api")

REVOKE_API_KEY: Final = Endpoint("DELETE", "/v1/keys/api/")

ME: Final = Endpoint("GET", "/v1/me")

HEALTH: Final = Endpoint("GET", "/health")

READY: Final = Endpoint("GET", "/health/ready")

VERSION: Final = Endpoint("GET", "/version")

CREATE_ORG: Final = Endpoint("POST", "/v1/admin/orgs", "billed")

LIST_ORGS: Final = Endpoint("GET", "/v1/admin/orgs")

CREATE_PROJECT: Final = Endpoint("POST", "/v1/admin/projects", "never", mints_key=True)

LIST_PROJECTS: Final = Endpoint("GET", "/v1/admin/projects")

ORG_METRICS: Final = Endpoint("GET", "/v1/admin/orgs/")
