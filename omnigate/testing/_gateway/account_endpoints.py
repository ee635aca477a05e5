"""The local gateway's endpoints other than chat: accounts, keys, models, metrics, health, administration."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, TypeAlias

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp

from omnigate.testing._gateway.answers import BadRequestError, UnhandledError, answer_json
from omnigate.testing._gateway.pricing import PRICES, card
from omnigate.testing._gateway.schemas import (
    ApiKeyBody,
    OrgBody,
    ProjectBody,
    ProviderKeyBody,
    SignupBody,
    check_storable,
    check_uuid,
    read_json,
    validate,
)
from omnigate.testing._gateway.state import VERSION, State
from omnigate.testing._gateway.usage import Scope

Endpoint: TypeAlias = Callable[[State, Request], Awaitable[ASGIApp]]

_RANGES: Final = {
    "1h": timedelta(hours=1),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}

# As the recorded gateway says it.
_SIGNED_UP: Final = (
    "Save your api_key now — it cannot be retrieved later. "
    "Add a provider key via POST /v1/keys before calling /v1/chat."
)

_GROUPS: Final = ("provider", "model", "user", "status")

_GRANULARITIES: Final = ("minute", "hour", "day")


async def signup(state: State, request: Request) -> Response:
    """`POST /v1/signup`."""
    body = validate(SignupBody, await read_json(request))
    check_storable(body.email, body.org_name, body.project_name)
    now = state.now()
    org = state.accounts.create_org(body.org_name or body.email, Decimal(0), Decimal(0), now)
    project, secret = state.accounts.create_project(
        org, body.project_name, Decimal(0), Decimal(0), state.rate_limit_per_min, now
    )
    created = {
        "org_id": org.id,
        "project_id": project.id,
        "email": body.email,
        "api_key": secret,
        "message": _SIGNED_UP,
    }
    return answer_json(created, 201)


async def set_provider_key(state: State, request: Request) -> Response:
    """`POST /v1/keys`."""
    parsed = await read_json(request)
    project = state.authenticate(request).project
    body = validate(ProviderKeyBody, parsed)
    if body.provider == "azure":
        meta = body.meta or {}
        if not str(meta.get("endpoint") or "").startswith("https://"):
            raise BadRequestError(400, "Azure provider requires meta.endpoint (an https:// URL).")
        if not meta.get("deployment"):
            raise BadRequestError(400, "Azure provider requires meta.deployment (the deployment name).")
    project.providers.add(body.provider)
    return _no_content()


async def create_api_key(state: State, request: Request) -> Response:
    """`POST /v1/keys/api`."""
    parsed = await read_json(request)
    project = state.authenticate(request).project
    body = validate(ApiKeyBody, parsed)
    check_storable(body.name)
    key, secret = state.accounts.create_key(project, body.name, state.now())
    return answer_json({**key.body(), "api_key": secret}, 201)


async def list_api_keys(state: State, request: Request) -> Response:
    """`GET /v1/keys/api`."""
    project = state.authenticate(request).project
    return answer_json([key.body() for key in state.accounts.named_keys(project)])


async def revoke_api_key(state: State, request: Request) -> Response:
    """`DELETE /v1/keys/api/{id}`."""
    project = state.authenticate(request).project
    key_id = check_uuid(request.path_params["key_id"], "path", "key_id")
    for key in state.accounts.named_keys(project):
        if key.id == key_id:
            key.revoked_at = key.revoked_at or state.now()
            return _no_content()
    raise BadRequestError(404, "API key not found")


async def me(state: State, request: Request) -> Response:
    """`GET /v1/me`."""
    key = state.authenticate(request)
    project = key.project
    return answer_json(
        {
            "project_id": project.id,
            "org_id": project.org.id,
            "project_name": project.name,
            "key_prefix": key.key_prefix,
            "rate_limit_per_min": project.rate_limit_per_min,
            "daily_budget": f"{project.daily_budget:.4f}",
            "monthly_budget": f"{project.monthly_budget:.4f}",
            "configured_providers": sorted(project.providers),
        }
    )


async def models(state: State, request: Request) -> Response:
    """`GET /v1/models`."""
    state.authenticate(request)
    return answer_json({"object": "list", "data": [card(model) for model in sorted(PRICES)]})


async def model(state: State, request: Request) -> Response:
    """`GET /v1/models/{id}`."""
    state.authenticate(request)
    found = card(request.path_params["model_id"])
    if found is None:
        message = f"model {request.path_params['model_id']!r} not found"
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        return answer_json({"error": error}, 404)
    return answer_json(found)


async def metrics(state: State, request: Request) -> Response:
    """`GET /v1/metrics`."""
    project = state.authenticate(request).project
    return _metrics(state, request, "project_id", project.id)


async def org_metrics(state: State, request: Request) -> Response:
    """`GET /v1/admin/orgs/{org_id}/metrics`."""
    state.authenticate_admin(request)
    org_id = check_uuid(request.path_params["org_id"], "path", "org_id")
    if org_id not in state.accounts.orgs:
        raise BadRequestError(404, "Organisation not found")
    return _metrics(state, request, "org_id", org_id)


async def create_org(state: State, request: Request) -> Response:
    """`POST /v1/admin/orgs`."""
    parsed = await read_json(request)
    state.authenticate_admin(request)
    body = validate(OrgBody, parsed)
    check_storable(body.name, body.daily_budget, body.monthly_budget)
    org = state.accounts.create_org(body.name, body.daily_budget, body.monthly_budget, state.now())
    return answer_json(org.body(), 201)


async def list_orgs(state: State, request: Request) -> Response:
    """`GET /v1/admin/orgs`."""
    state.authenticate_admin(request)
    return answer_json([org.body() for org in state.accounts.orgs.values()])


async def create_project(state: State, request: Request) -> Response:
    """`POST /v1/admin/projects`."""
    parsed = await read_json(request)
    state.authenticate_admin(request)
    body = validate(ProjectBody, parsed)
    org = state.accounts.orgs.get(str(body.org_id))
    if org is None:
        raise BadRequestError(404, "Organisation not found")
    check_storable(body.name, body.daily_budget, body.monthly_budget, body.rate_limit_per_min)
    project, secret = state.accounts.create_project(
        org, body.name, body.daily_budget, body.monthly_budget, body.rate_limit_per_min, state.now()
    )
    return answer_json({**project.body(), "api_key": secret}, 201)


async def list_projects(state: State, request: Request) -> Response:
    """`GET /v1/admin/projects`."""
    state.authenticate_admin(request)
    wanted = request.query_params.get("org_id")
    if wanted is not None:
        wanted = check_uuid(wanted, "query", "org_id")
    projects = state.accounts.projects.values()
    return answer_json([project.body() for project in projects if wanted in (None, project.org.id)])


async def health(state: State, request: Request) -> Response:
    """`GET /health`."""
    return answer_json({"status": "ok", "version": VERSION})


async def live(state: State, request: Request) -> Response:
    """`GET /health/live`."""
    return answer_json({"status": "alive"})


async def ready(state: State, request: Request) -> Response:
    """`GET /health/ready`."""
    return answer_json({"status": "ready", "checks": {"database": "ok", "redis": "ok"}})


async def version(state: State, request: Request) -> Response:
    """`GET /version`."""
    return answer_json({"name": "omnigate", "version": VERSION})


async def prometheus(state: State, request: Request) -> Response:
    """`GET /metrics`: Prometheus text."""
    lines = [
        "# HELP omnigate_requests_total Chat requests that were recorded.",
        "# TYPE omnigate_requests_total counter",
        f"omnigate_requests_total {state.usage.count()}",
        "# HELP omnigate_projects Projects.",
        "# TYPE omnigate_projects gauge",
        f"omnigate_projects {len(state.accounts.projects)}",
    ]
    return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


def _no_content() -> Response:
    return Response(status_code=204, headers={"content-type": "application/json"})


def _metrics(state: State, request: Request, scope: Scope, scope_id: str) -> Response:
    query = request.query_params
    try:
        start, end = _window(state, query.get("range"), query.get("from"), query.get("to"))
    except ValueError as error:
        raise BadRequestError(422, str(error)) from None
    except OverflowError:  # its offset moves a time out of the calendar
        raise UnhandledError from None
    group_by = query.get("group_by")
    if group_by is not None and group_by not in _GROUPS:
        raise BadRequestError(422, f"invalid group_by; expected one of {', '.join(_GROUPS)}")
    granularity = query.get("granularity") or None
    if granularity is not None and granularity not in _GRANULARITIES:
        raise BadRequestError(422, f"invalid granularity; expected one of {', '.join(_GRANULARITIES)}")
    return answer_json(state.usage.metrics(scope, scope_id, start, end, group_by, granularity))


def _window(state: State, range: str | None, start: str | None, end: str | None) -> tuple[datetime, datetime]:
    """Return the start and end of a query's window.

    Raises:
        ValueError: the parameters are invalid; the message goes into the response.
        OverflowError: a time is out of the calendar in UTC.
    """
    if start is None and end is None:
        length = _RANGES.get(range or "24h")
        if length is None:
            raise ValueError(f"invalid range {range!r}; expected one of {', '.join(_RANGES)}")
        now = state.now()
        return now - length, now
    if range is not None:
        raise ValueError("'range' is mutually exclusive with 'from'/'to'")
    if start is None:
        raise ValueError("'from' is required when 'to' is supplied")
    first = _moment(start, "from")
    last = state.now() if end is None else _moment(end, "to")
    if last <= first:
        raise ValueError("'to' must be after 'from'")
    return first, last


def _moment(value: str, name: str) -> datetime:
    moment = datetime.fromisoformat(value)  # fails on an unescaped `+`, which arrives as a space
    if moment.tzinfo is None:
        raise ValueError(f"'{name}' must be timezone-aware")
    return moment.astimezone(UTC)
