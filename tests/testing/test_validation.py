"""The local gateway's checks against the same ones made by FastAPI and pydantic, as the real gateway's are."""

import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import anyio
import httpx
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnigate.testing import LocalGateway
from omnigate.testing._gateway import schemas

from ..support.reference_gateway import (
    ADMIN_KEY,
    BODIES,
    ORG,
    VALUES,
    Case,
    body_cases,
    field_cases,
    headers_of,
    reference,
    route_cases,
)

pytestmark = pytest.mark.anyio

SCHEMAS: dict[str, type[pydantic.BaseModel]] = {
    "/v1/chat": schemas.ChatBody,
    "/v1/chat/completions": schemas.CompletionBody,
    "/v1/signup": schemas.SignupBody,
    "/v1/keys": schemas.ProviderKeyBody,
    "/v1/keys/api": schemas.ApiKeyBody,
    "/v1/admin/orgs": schemas.OrgBody,
    "/v1/admin/projects": schemas.ProjectBody,
}
PARSING = {"detail": "There was an error parsing the body"}
REFERENCE = reference()


def client_of(app: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://gateway")


async def ask(client: httpx.AsyncClient, case: Case, **keys: str) -> httpx.Response:
    url = f"http://gateway{case.path}"
    headers = headers_of(case, **keys)
    return await client.send(httpx.Request(case.method, url, content=case.content, headers=headers))


def says(response: httpx.Response) -> Any:
    """Return what both must say alike of a request that is refused."""
    names = ("content-type", "allow", "location")
    return response.status_code, response.text, [response.headers.get(name) for name in names]


def differs(case: Case, expected: httpx.Response, got: httpx.Response) -> bool:
    if expected.status_code != 200:
        return says(got) != says(expected)
    if got.status_code in (307, 401, 405, 422) or got.text in (json.dumps(PARSING), '{"detail":"Not Found"}'):
        return True
    if case.path not in SCHEMAS or case.method != "POST":
        return False
    accepted = schemas.validate(SCHEMAS[case.path], json.loads(case.content)).model_dump(mode="json")
    return json.dumps(accepted, sort_keys=True) != json.dumps(expected.json()["accepted"], sort_keys=True)


async def differences(cases: Iterable[Case]) -> list[Any]:
    """Return the cases that the local gateway answers differently, with both answers."""
    gateway = LocalGateway(admin_key=ADMIN_KEY)
    key = gateway.api_key
    found: list[Any] = []
    count = 0
    async with client_of(REFERENCE) as judge, client_of(gateway.app) as local:
        for case in cases:
            count += 1
            expected, got = await ask(judge, case), await ask(local, case, key=key)
            if differs(case, expected, got):
                found.append((case.path, case.name, says(expected), says(got)))
    assert count
    return found


@pytest.mark.proof
@pytest.mark.parametrize("path", BODIES)
async def test_each_value_of_each_field_is_refused_or_converted_as_by_pydantic(path: str) -> None:
    assert await differences(field_cases(path)) == []


@pytest.mark.parametrize("path", BODIES)
async def test_unusual_bodies_and_content_types_are_answered_as_by_fastapi(path: str) -> None:
    assert await differences(body_cases(path)) == []


async def test_wrong_paths_methods_slashes_ids_and_keys_are_answered_as_by_fastapi() -> None:
    assert await differences(route_cases()) == []


VALUE = st.recursive(
    st.sampled_from(VALUES) | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@st.composite
def requests(draw: st.DrawFn) -> list[Case]:
    """A few requests of valid bodies with some fields replaced, added and left out."""
    made: list[Case] = []
    for path, (kind, least) in BODIES.items():
        names = [*kind.model_fields, "unknown"]
        body = least | draw(st.dictionaries(st.sampled_from(names), VALUE, max_size=4))
        for name in draw(st.sets(st.sampled_from(names), max_size=1)):
            body.pop(name, None)
        made.append(Case(f"{body!r:.200}", "POST", path, json.dumps(body).encode()))
    return made


@pytest.mark.proof
@given(requests())
def test_any_bodies_are_refused_or_converted_as_by_pydantic(cases: list[Case]) -> None:
    assert anyio.run(differences, cases) == []


@pytest.fixture
async def local() -> AsyncIterator[httpx.AsyncClient]:
    """A client of a local gateway, with its keys."""
    gateway = LocalGateway(admin_key=ADMIN_KEY)
    async with client_of(gateway.app) as client:
        client.headers.update({"x-api-key": gateway.api_key, "x-admin-key": ADMIN_KEY})
        yield client


def problems(response: httpx.Response) -> Any:
    return [(error["loc"][1:], error["type"]) for error in response.json()["detail"]]


NOT_STOP = [(["stop", "str"], "string_type"), (["stop", "list[str]"], "list_type")]


@pytest.mark.parametrize(
    ("path", "fields", "expected"),
    [
        ("/v1/chat/completions", {"n": 0}, [(["n"], "greater_than_equal")]),
        ("/v1/chat/completions", {"presence_penalty": 3}, [(["presence_penalty"], "less_than_equal")]),
        ("/v1/chat/completions", {"frequency_penalty": -3}, [(["frequency_penalty"], "greater_than_equal")]),
        ("/v1/chat/completions", {"stop": 5}, NOT_STOP),
        ("/v1/chat/completions", {"user": 5}, [(["user"], "string_type")]),
        ("/v1/chat/completions", {"seed": 1.5}, [(["seed"], "int_from_float")]),
        ("/v1/chat/completions", {"stream_options": []}, [(["stream_options"], "dict_type")]),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]},
         [(["messages", 0, "content", "str"], "string_type"), (["messages", 0, "content", "list[any]"], "list_type")]),
        ("/v1/chat", {"fallback_models": None}, [(["fallback_models"], "list_type")]),
        ("/v1/chat", {"fallback_models": ["gpt-4"] * 6}, [(["fallback_models"], "too_long")]),
        ("/v1/chat", {"messages": [{"role": "user", "content": None}]}, [(["messages", 0, "content"], "string_type")]),
        ("/v1/chat", {"messages": [5]}, [(["messages", 0], "model_attributes_type")]),
        ("/v1/chat", {"stream": None}, [(["stream"], "bool_type")]),
    ],
)  # fmt: skip
async def test_fields_that_the_gateway_refuses_are_refused(
    local: httpx.AsyncClient, path: str, fields: Any, expected: Any
) -> None:
    response = await local.post(path, json=BODIES[path][1] | fields)
    assert (response.status_code, problems(response)) == (422, expected)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": None}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}),
        (
            "/v1/chat/completions",
            {"n": "1", "stop": ["a"], "user": "u", "stream_options": {"x": 1}, "tools": 5},
        ),
        ("/v1/chat/completions", {"n": None, "stop": None, "stream_options": None, "presence_penalty": None}),
        ("/v1/chat", {"max_tokens": "5", "temperature": "1.5", "stream": "no", "seed": True, "cache": 1}),
        (
            "/v1/chat",
            {"max_tokens": 5.0, "stop": "a", "messages": [{"role": "user", "content": "x", "name": 5}]},
        ),
        ("/v1/chat", {"fallback_models": []}),
    ],
)
async def test_fields_that_the_gateway_accepts_are_accepted(
    local: httpx.AsyncClient, path: str, fields: Any
) -> None:
    assert (await local.post(path, json=BODIES[path][1] | fields)).status_code == 200


async def test_an_empty_message_of_a_completion_is_empty_text(local: httpx.AsyncClient) -> None:
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": None}]}
    answer = (await local.post("/v1/chat/completions", json=body)).json()
    assert answer["choices"][0]["message"]["content"] == "echo[gpt-4]: "
    assert answer["usage"]["prompt_tokens"] == 0


async def test_usage_is_streamed_for_any_include_usage_that_is_true(local: httpx.AsyncClient) -> None:
    for value, expected in (("no", True), (1, True), (0, False), (None, False)):
        body = BODIES["/v1/chat/completions"][1] | {
            "stream": True,
            "stream_options": {"include_usage": value},
        }
        assert ('"usage"' in (await local.post("/v1/chat/completions", json=body)).text) is expected


@pytest.mark.parametrize("path", BODIES)
async def test_a_body_of_null_is_refused_as_a_missing_body(local: httpx.AsyncClient, path: str) -> None:
    response = await local.post(path, content=b"null")
    error = {"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}
    assert (response.status_code, response.json()) == (422, {"detail": [error]})


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_a_refused_value_that_json_cannot_express_is_an_unhandled_500(
    local: httpx.AsyncClient, value: str
) -> None:
    response = await local.post("/v1/chat", content=f'{{"model": "gpt-4", "messages": [], "top_p": {value}}}')
    assert (response.status_code, response.text) == (500, "Internal Server Error")
    assert "x-request-id" not in response.headers


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/signup", {"email": "a\0b"}),
        ("/v1/signup", {"org_name": "\0"}),
        ("/v1/signup", {"project_name": "\0"}),
        ("/v1/keys/api", {"name": "\0"}),
        ("/v1/admin/orgs", {"name": "\0"}),
        ("/v1/admin/orgs", {"daily_budget": 10**8}),
        ("/v1/admin/orgs", {"monthly_budget": "1e8"}),
        ("/v1/admin/projects", {"rate_limit_per_min": 2**31}),
    ],
)
async def test_a_value_that_does_not_fit_the_database_is_an_unhandled_500(
    local: httpx.AsyncClient, path: str, fields: Any
) -> None:
    org = (await local.post("/v1/admin/orgs", json={"name": "Acme"})).json()["id"]
    body = BODIES[path][1] | ({"org_id": org} if path == "/v1/admin/projects" else {}) | fields
    response = await local.post(path, json=body)
    assert (response.status_code, response.text) == (500, "Internal Server Error")
    assert "x-request-id" not in response.headers
    assert len((await local.get("/v1/admin/orgs")).json()) == 2
    assert (await local.get("/v1/keys/api")).json() == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/completions"])
async def test_a_lone_surrogate_fails_the_providers_call(
    local: httpx.AsyncClient, path: str, stream: bool
) -> None:
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": "\ud800"}], "stream": stream}
    response = await local.post(path, content=json.dumps(body))
    assert response.status_code == (200 if stream else 502)
    assert "surrogates not allowed" in response.text
    assert ("openai call failed: " in response.text) is not stream


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("range=2h", "invalid range '2h'; expected one of 1h, 24h, 7d, 30d"),
        ("range=1h&range=2h", "invalid range '2h'; expected one of 1h, 24h, 7d, 30d"),
        ("range=1H", "invalid range '1H'; expected one of 1h, 24h, 7d, 30d"),
        ("range=it's", 'invalid range "it\'s"; expected one of 1h, 24h, 7d, 30d'),
        ("range=1h&from=2026-01-01T00:00:00Z", "'range' is mutually exclusive with 'from'/'to'"),
        ("range=&from=2026-01-01T00:00:00Z", "'range' is mutually exclusive with 'from'/'to'"),
        ("range=2h&to=x", "'range' is mutually exclusive with 'from'/'to'"),
        ("to=2026-01-01T00:00:00Z", "'from' is required when 'to' is supplied"),
        ("from=2026-01-01T00:00:00", "'from' must be timezone-aware"),
        ("from=2026-01-01", "'from' must be timezone-aware"),
        ("from=2026-01-01T00:00:00Z&to=2026-01-02T00:00:00", "'to' must be timezone-aware"),
        ("from=2026-01-02T00:00:00Z&to=2026-01-02T00:00:00Z", "'to' must be after 'from'"),
        ("from=9999-01-01T00:00:00Z", "'to' must be after 'from'"),
        ("from=", "Invalid isoformat string: ''"),
        ("from=yesterday", "Invalid isoformat string: 'yesterday'"),
        ("from=2026-01-01T00:00:00+00:00", "Invalid isoformat string: '2026-01-01T00:00:00 00:00'"),
        ("range=2h&group_by=day", "invalid range '2h'; expected one of 1h, 24h, 7d, 30d"),
        ("group_by=day&granularity=week", "invalid group_by; expected one of provider, model, user, status"),
        ("group_by=", "invalid group_by; expected one of provider, model, user, status"),
        ("granularity=week", "invalid granularity; expected one of minute, hour, day"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/metrics", "/v1/admin/orgs/ORG/metrics"])
async def test_a_refused_metrics_query_says_why_in_the_gateways_words(
    local: httpx.AsyncClient, path: str, query: str, detail: str
) -> None:
    org = (await local.post("/v1/admin/orgs", json={"name": "Acme"})).json()["id"]
    response = await local.get(f"{path.replace('ORG', org)}?{query}")
    assert (response.status_code, response.json()) == (422, {"detail": detail})


@pytest.mark.parametrize(
    ("query", "granularity"),
    [("", "hour"), ("range=", "hour"), ("granularity=", "hour"), ("range=2h&range=1h", "minute"), ("range=7d", "day"),
     ("from=2026-01-01%2000:00:00%2B01:00&to=2026-01-01T00:30:00Z", "hour"), ("from=20260101T000000Z", "day"),
     ("from=0001-01-01T00:00:00Z", "day"), ("unknown=1", "hour")],
)  # fmt: skip
async def test_a_metrics_query_is_read_as_liberally_as_by_the_gateway(
    local: httpx.AsyncClient, query: str, granularity: str
) -> None:
    response = await local.get(f"/v1/metrics?{query}")
    assert (response.status_code, response.json().get("granularity")) == (200, granularity)
    if "%2B01:00" in query:
        assert response.json()["range_from"] == "2025-12-31T23:00:00Z"


async def test_a_time_outside_of_the_calendar_is_an_unhandled_500(local: httpx.AsyncClient) -> None:
    response = await local.get("/v1/metrics?from=0001-01-01T00:00:00%2B01:00")
    assert (response.status_code, response.text) == (500, "Internal Server Error")


async def test_head_requests_are_answered_405_as_by_fastapi(local: httpx.AsyncClient) -> None:
    response = await local.head("/health")
    assert (response.status_code, response.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize(
    "model", ["GPT-4", "Gpt-4o", "O1-mini", "ChatGPT-x", "CLAUDE-3-haiku", "Models/Gemini-x"]
)
async def test_models_are_routed_in_any_case(local: httpx.AsyncClient, model: str) -> None:
    response = await local.post("/v1/chat", json=BODIES["/v1/chat"][1] | {"model": model})
    assert (response.status_code, response.json()["model"]) == (200, model)


async def test_empty_and_repeated_fallbacks_are_left_out(local: httpx.AsyncClient) -> None:
    body = BODIES["/v1/chat"][1] | {"model": "", "fallback_models": [""]}
    response = await local.post("/v1/chat", json=body)
    assert response.json() == {"detail": "No provider candidate could handle the request"}
    assert response.status_code == 502
    answer = (await local.post("/v1/chat", json=body | {"fallback_models": ["", "gpt-4"]})).json()
    assert (answer["model"], answer["fallback_used"]) == ("gpt-4", True)


@pytest.mark.parametrize(
    ("model", "input_price"),
    [
        ("gpt-4o-2024-08-06", 0.0025),
        ("azure/gpt-4o", 0.0025),
        ("gemini-1.5-flash-002", 0.000075),
        ("claude-3-haiku-20240307", 0.00025),
        ("gpt-4-0613", None),
        ("gpt-4o-mini-tts", None),
        ("GPT-4o", None),
        ("models/gemini-1.5-pro", None),
        ("azure-gpt-4o", None),
        (ORG, None),
    ],
)
async def test_the_models_endpoint_finds_exactly_models_with_a_price(
    local: httpx.AsyncClient, model: str, input_price: float | None
) -> None:
    response = await local.get(f"/v1/models/{model}")
    if input_price is None:
        assert response.status_code == 404
        assert response.json()["error"]["message"] == f"model {model!r} not found"
    else:
        assert response.json()["pricing"]["input_per_1k_usd"] == input_price
