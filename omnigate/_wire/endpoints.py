"""The gateway's endpoints as data: method, path, and the effect of a resend (docs/protocol.md)."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias

Resend: TypeAlias = Literal["safe", "billed", "never"]
"""The effect of sending a request twice: none, a second charge, or a second key that is lost."""


class Endpoint(NamedTuple):
    """One endpoint.

    Attributes:
        name: the client method that calls it.
        method: the HTTP method.
        path: the path; a variable part is appended.
        resend: the effect of sending a request twice.
        mints_key: whether the response contains a new key, so that errors must not quote it.

    """

    name: str
    method: str
    path: str
    resend: Resend = "safe"
    mints_key: bool = False


CHAT: Final = Endpoint("chat", "POST", "/v1/chat", "billed")

COMPLETIONS: Final = Endpoint("completions", "POST", "/v1/chat/completions", "billed")

MODELS: Final = Endpoint("models", "GET", "/v1/models")

MODEL: Final = Endpoint("model", "GET", "/v1/models/")

METRICS: Final = Endpoint("metrics", "GET", "/v1/metrics")

SIGNUP: Final = Endpoint("signup", "POST", "/v1/signup", "never", mints_key=True)

PROVIDER_KEY: Final = Endpoint("set_provider_key", "POST", "/v1/keys")

CREATE_API_KEY: Final = Endpoint("create_api_key", "POST", "/v1/keys/api", "never", mints_key=True)

LIST_API_KEYS: Final = Endpoint("list_api_keys", "GET", "/v1/keys/api")

REVOKE_API_KEY: Final = Endpoint("revoke_api_key", "DELETE", "/v1/keys/api/")

ME: Final = Endpoint("me", "GET", "/v1/me")

HEALTH: Final = Endpoint("health", "GET", "/health")

READY: Final = Endpoint("ready", "GET", "/health/ready")

VERSION: Final = Endpoint("version", "GET", "/version")

CREATE_ORG: Final = Endpoint("create_org", "POST", "/v1/admin/orgs", "billed")

LIST_ORGS: Final = Endpoint("list_orgs", "GET", "/v1/admin/orgs")

CREATE_PROJECT: Final = Endpoint("create_project", "POST", "/v1/admin/projects", "never", mints_key=True)

LIST_PROJECTS: Final = Endpoint("list_projects", "GET", "/v1/admin/projects")

ORG_METRICS: Final = Endpoint("org_metrics", "GET", "/v1/admin/orgs/")
