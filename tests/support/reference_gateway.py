"""A reference for the local gateway's checks: `docs/protocol.md` written once more, as a FastAPI application.

Refusals are FastAPI's and pydantic's own, as in the real gateway. Behind the checks there is nothing: an accepted body
is answered with the values that it was converted to. The second half of the file makes the requests to compare by,
above all a table of values that validators are known to disagree about, for each field of each endpoint.
"""

import copy
import inspect
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Literal, NamedTuple
from uuid import UUID

from fastapi import Depends, FastAPI, Header, HTTPException, Response
from pydantic import BaseModel, Field

KEY = "llmg_" + "k" * 43
ADMIN_KEY = "admin"
ORG = "e4a3439c-703e-4294-9595-32a46d8cb2e0"


class Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


# Errors come in the order of the fields, so this order is a part of it.


class Chat(BaseModel):
    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0.0, le=2.0)
    stream: bool = False
    top_p: float | None = Field(None, ge=0.0, le=1.0)
    stop: str | list[str] | None = None
    presence_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    frequency_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    seed: int | None = None
    fallback_models: list[str] = Field([], max_length=5)
    cache: bool | None = None


class OpenAIMessage(BaseModel):
    role: str
    content: str | list[Any] | None = None
    name: str | None = None


class Completion(BaseModel):
    model: str
    messages: list[OpenAIMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0.0, le=2.0)
    top_p: float | None = Field(None, ge=0.0, le=1.0)
    stop: str | list[str] | None = None
    presence_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    frequency_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    seed: int | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    user: str | None = None
    n: int | None = Field(None, ge=1)


class Signup(BaseModel):
    email: str = Field(min_length=3, max_length=255)
    org_name: str | None = Field(None, max_length=255)
    project_name: str = Field("Default", max_length=255)


class ProviderKey(BaseModel):
    provider: Literal["openai", "anthropic", "gemini", "azure"]
    api_key: str = Field(min_length=8)
    meta: dict[str, Any] | None = None


class ApiKey(BaseModel):
    name: str = Field(min_length=1, max_length=255)


class Org(BaseModel):
    name: str = Field(min_length=1, max_length=255)
    daily_budget: Decimal = Field(Decimal(0), ge=0)
    monthly_budget: Decimal = Field(Decimal(0), ge=0)


class Project(BaseModel):
    org_id: UUID
    name: str = Field(min_length=1, max_length=255)
    daily_budget: Decimal = Field(Decimal(0), ge=0)
    monthly_budget: Decimal = Field(Decimal(0), ge=0)
    rate_limit_per_min: int = Field(60, ge=1)


def with_key(x_api_key: str | None = Header(None), authorization: str | None = Header(None)) -> None:
    if not x_api_key and (authorization or "").lower().startswith("bearer "):
        x_api_key = (authorization or "")[7:].strip()
    if not x_api_key:
        raise HTTPException(401, "Missing x-api-key header (or Authorization: Bearer token)")
    if x_api_key != KEY:
        raise HTTPException(401, "Invalid API key")


def with_admin_key(x_admin_key: str | None = Header(None)) -> None:
    if x_admin_key != ADMIN_KEY:
        raise HTTPException(401, "Invalid or missing x-admin-key")


def reference() -> FastAPI:
    """Return the reference application."""
    arguments: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    if "strict_content_type" in inspect.signature(FastAPI).parameters:
        arguments["strict_content_type"] = (
            False  # newer FastAPI asks for a content type, the gateway does not
        )
    app = FastAPI(**arguments)
    keyed, admin = [Depends(with_key)], [Depends(with_admin_key)]

    def post(path: str, kind: type[BaseModel], guards: list[Any]) -> None:
        def endpoint(payload: BaseModel) -> Any:
            # In ASCII, since pydantic lets lone surrogates pass.
            return Response(
                json.dumps({"accepted": payload.model_dump(mode="json")}), media_type="application/json"
            )

        endpoint.__annotations__["payload"] = kind
        app.post(path, dependencies=guards)(endpoint)

    def get(path: str, guards: list[Any]) -> None:
        app.get(path, dependencies=guards)(lambda: {"accepted": None})

    post("/v1/signup", Signup, [])
    post("/v1/keys", ProviderKey, keyed)
    get("/v1/me", keyed)
    post("/v1/chat", Chat, keyed)
    post("/v1/chat/completions", Completion, keyed)
    get("/v1/models", keyed)
    get("/v1/models/{model_id:path}", keyed)
    get("/v1/metrics", keyed)
    post("/v1/keys/api", ApiKey, keyed)
    get("/v1/keys/api", keyed)

    @app.delete("/v1/keys/api/{key_id}", dependencies=keyed)
    def revoke(key_id: UUID) -> Any:
        return {"accepted": str(key_id)}

    post("/v1/admin/orgs", Org, admin)
    get("/v1/admin/orgs", admin)
    post("/v1/admin/projects", Project, admin)

    @app.get("/v1/admin/projects", dependencies=admin)
    def projects(org_id: UUID | None = None) -> Any:
        return {"accepted": str(org_id)}

    @app.get("/v1/admin/orgs/{org_id}/metrics", dependencies=admin)
    def metrics(org_id: UUID) -> Any:
        return {"accepted": str(org_id)}

    for path in ("/health", "/health/live", "/health/ready", "/version", "/metrics"):
        get(path, [])
    return app


HI = {"role": "user", "content": "hi"}

BODIES: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "/v1/chat": (Chat, {"model": "gpt-4", "messages": [HI]}),
    "/v1/chat/completions": (Completion, {"model": "gpt-4", "messages": [HI]}),
    "/v1/signup": (Signup, {"email": "dev@acme.test"}),
    "/v1/keys": (ProviderKey, {"provider": "openai", "api_key": "sk-12345678"}),
    "/v1/keys/api": (ApiKey, {"name": "ci"}),
    "/v1/admin/orgs": (Org, {"name": "Acme"}),
    "/v1/admin/projects": (Project, {"name": "p", "org_id": ORG}),
}
"""For each endpoint with a body: its model, and the least that it accepts."""

VALUES: list[Any] = [
    None, True, False, 0, 1, 2, 3, 5, -1, -2, -3, 2**31, 2**63, 10**30, 10**400,
    0.0, -0.0, 0.5, 1.0, 1.5, 2.0, 2.0000001, -2.0, -2.5, 1e15, 1e300, float("nan"), float("inf"), float("-inf"),
    "", " ", "0", "1", "2", "5", "-1", "+1", "1.0", "1.5", " 1 ", "1e0", "1_0", "0x1", "01", "NaN", "Infinity", "9" * 30,
    "true", "False", "yes", "no", "on", "off", "t", "f", "null", "None", "x", "xy", "xyz", "x" * 7, "x" * 8,
    "x" * 255, "x" * 256, "é", "😀" * 255, "😀" * 256, "\ud800", "a\tb",
    "system", "user", "User", "assistant", "developer", "tool", "openai", "OpenAI", "azure",
    ORG, ORG.upper(), ORG.replace("-", ""), f"{{{ORG}}}", f"urn:uuid:{ORG}", ORG[:-1], f"{ORG} ",
    [], ["a"], ["a"] * 5, ["a"] * 6, [1], [None], [True], [[]], [{}], ["\ud800"], [float("nan")], [HI], [HI, 5], HI,
    {}, {"a": 1}, {"endpoint": "https://x", "deployment": "d"}, {"include_usage": True}, {"include_usage": "no"},
]  # fmt: skip


class Case(NamedTuple):
    """A request and its name."""

    name: str
    method: str
    path: str
    content: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def field_cases(path: str) -> Iterator[Case]:
    """Yield a request for each value of each field of an endpoint, and without the field."""
    kind, least = BODIES[path]
    places: list[list[Any]] = [[name] for name in kind.model_fields]
    if "messages" in kind.model_fields:
        places += [
            ["messages", 0],
            *(["messages", 0, name] for name in ("role", "content", "name", "unknown")),
        ]
    for place in [*places, ["unknown"]]:
        for value in VALUES:
            body = copy.deepcopy(least)
            holder: Any = body
            for step in place[:-1]:
                holder = holder[step]
            holder[place[-1]] = value
            yield Case(f"{place}={value!r:.60}", "POST", path, json.dumps(body).encode())
    for name in least:
        body = {other: value for other, value in least.items() if other != name}
        yield Case(f"without {name}", "POST", path, json.dumps(body).encode())


def body_cases(path: str) -> Iterator[Case]:
    """Yield requests with a special body or content type; without `null`, which FastAPI's versions answer differently."""
    least = json.dumps(BODIES[path][1])
    texts: dict[str, bytes] = {
        "no body": b"", "a blank": b" ", "a list": b"[]", "a list of one": f"[{least}]".encode(), "a text": b'"x"',
        "a number": b"5", "false": b"false", "NaN": b"NaN", "cut": least[:-1].encode(), "two": (least + least).encode(),
        "a trailing comma": (least[:-1] + ",}").encode(), "single quotes": least.replace('"', "'").encode(),
        "a BOM": b"\xef\xbb\xbf" + least.encode(), "UTF-16": least.encode("utf-16"), "UTF-32": least.encode("utf-32-be"),
        "a lone BOM": b"\xff\xfe", "not UTF-8": b'{"x": "\xff"}', "a surrogate": b'{"x": "\xed\xa0\x80"}',
        "compressed": b"\x1f\x8b\x08\x00", "a NUL": least.encode() + b"\0", "padded": f" \n{least}\t".encode(),
        "a key twice": ('{"model": 5, "name": 5, "email": 5, "provider": 5, ' + least[1:]).encode(),
        "an unknown field": ('{"__proto__": 1, "logit_bias": {}, ' + least[1:]).encode(),
        "an unknown NaN": ('{"unknown": NaN, ' + least[1:]).encode(),
        "a long integer": ('{"unknown": ' + "9" * 5_000 + ", " + least[1:]).encode(),
        "a control character": b'{"x": "\n"}', "deep": b"[" * 100_000,
    }  # fmt: skip
    for name, content in texts.items():
        yield Case(name, "POST", path, content)
    for kind in ("application/json; charset=latin-1", "APPLICATION/JSON", "application/problem+json", "application/JSON ",
                 "text/json", "text/plain", "application/x-www-form-urlencoded", "application/jsonl", "json", "", ";",
                 "multipart/form-data; boundary=x", "application/json, text/plain"):  # fmt: skip
        for content in (least.encode(), b"\xff", b""):
            yield Case(
                f"content-type {kind!r}, {content[:3]!r}", "POST", path, content, (("content-type", kind),)
            )


def route_cases() -> Iterator[Case]:
    """Yield requests to every path by every method, slashes at the end, ids, and keys."""
    paths = [*BODIES, "/v1/me", "/v1/models", "/v1/metrics", "/v1/keys/api/x", f"/v1/admin/orgs/{ORG}/metrics", "/health",
             "/health/live", "/health/ready", "/version", "/metrics", "/", "/nope", "/v1", "/v1/keys/api/x/y",
             "/v1//chat", "/V1/chat", "/v1/models/gpt-4"]  # fmt: skip
    for path in paths:
        for end in ("", "/", "//"):
            for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW"):
                yield Case(f"{method} {path}{end}", method, path + end)
    for text in (
        "x",
        "5",
        ORG,
        ORG.upper(),
        f"{{{ORG}}}",
        f"urn:uuid:{ORG}",
        ORG.replace("-", ""),
        "%20",
        "%00",
        "%FF",
    ):
        yield Case(f"key {text}", "DELETE", f"/v1/keys/api/{text}")
        yield Case(f"metrics of {text}", "GET", f"/v1/admin/orgs/{text}/metrics")
        yield Case(f"projects of {text}", "GET", f"/v1/admin/projects?org_id={text}")
        yield Case(f"projects of two, {text}", "GET", f"/v1/admin/projects?org_id={ORG}&org_id={text}")
    yield Case("projects of none", "GET", "/v1/admin/projects?org_id=")
    yield Case("projects of a flag", "GET", "/v1/admin/projects?org_id")
    unkeyed = [("x-api-key", ""), ("x-api-key", "llmg_no"), ("authorization", f"Bearer {KEY}"),
               ("authorization", f"bearer  {KEY} "), ("authorization", "Bearer"), ("authorization", "Bearer "),
               ("authorization", f"Basic {KEY}"), ("authorization", KEY), ("x-admin-key", "")]  # fmt: skip
    for name, value in unkeyed:
        for path in ("/v1/chat", "/v1/me", "/v1/keys/api/x", "/v1/admin/orgs/x/metrics", "/v1/admin/orgs"):
            for content in (b"{}", b"{"):
                method = {"/v1/keys/api/x": "DELETE", "/v1/chat": "POST", "/v1/admin/orgs": "POST"}.get(
                    path, "GET"
                )
                yield Case(f"{method} {path} {content!r} {name}: {value}", method, path, content,
                           (("x-api-key", ""), ("x-admin-key", "no"), (name, value)))  # fmt: skip


def headers_of(case: Case, key: str = KEY) -> dict[str, str]:
    """Return the headers of a case: its own over those of a request that may pass, with a gateway's key."""
    headers = {"x-api-key": KEY, "x-admin-key": ADMIN_KEY, **dict(case.headers)}
    return {name: value.replace(KEY, key) for name, value in headers.items()}
