"""The local gateway speaks the protocol: tested over HTTP, in-process, with a fake clock."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from omnigate.testing import Answer, Delay, LocalGateway, ProviderFailure, Status, StreamFailure
from omnigate.testing._gateway.usage import _percentile

pytestmark = pytest.mark.anyio

HI = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say hi in French"}]}
LIMITS = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"]
BUDGETS = [f"x-budget-{who}-daily-{what}" for who in ("project", "org") for what in ("spend", "limit")]
NOON = 1_795_435_200.0  # 2026-11-23T12:00:00Z


class Outside:
    """A gateway whose clock the test sets, and an HTTP client for it."""

    def __init__(self, **arguments: Any) -> None:
        self.now = NOON
        self.gateway = LocalGateway(clock=lambda: self.now, admin_key="admin", **arguments)
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.gateway.app), base_url="http://gateway"
        )
        self.key = self.gateway.api_key

    async def post(self, path: str, body: Any, key: str | None = None, **headers: str) -> httpx.Response:
        named = {"x-api-key": key or self.key} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        return await self.http.post(path, json=body, headers=named)

    async def get(self, path: str, key: str | None = None) -> httpx.Response:
        return await self.http.get(path, headers={"x-api-key": key or self.key})

    async def admin(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return await self.http.request(method, path, json=body, headers={"x-admin-key": "admin"})

    async def chat(self, key: str | None = None, **fields: Any) -> httpx.Response:
        return await self.post("/v1/chat", HI | fields, key)


@pytest.fixture
async def outside() -> AsyncIterator[Outside]:
    made = Outside()
    async with made.http:
        yield made


async def test_chat_echoes_the_message_with_tokens_price_and_all_headers(outside: Outside) -> None:
    response = await outside.chat()
    body = response.json()
    assert response.status_code == 200
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", body.pop("id"))
    assert body.pop("latency_ms") >= 0
    assert body == {
        "provider": "openai",
        "model": "gpt-4o-mini",
        "content": "echo[gpt-4o-mini]: Say hi in French",
        "usage": {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9},
        "cost_usd": 4e-06,
        "finish_reason": "stop",
        "cached": False,
        "fallback_used": False,
    }
    assert response.headers["x-llmgw-provider"] == "openai"
    assert response.headers["x-llmgw-model"] == "gpt-4o-mini"
    assert (response.headers["x-llmgw-cached"], response.headers["x-llmgw-fallback"]) == ("false", "false")
    assert {*LIMITS, *BUDGETS} <= response.headers.keys()
    assert response.headers["x-budget-project-daily-spend"] == "0.000000"
    assert response.headers["x-budget-project-daily-limit"] == "0.0000"
    assert "x-budget-project-monthly-spend" not in response.headers
    assert (await outside.chat()).headers["x-budget-org-daily-spend"] == "0.000004"


async def test_chat_generates_its_request_id_and_other_endpoints_echo_or_generate_hex(
    outside: Outside,
) -> None:
    uuid = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    answered = await outside.post("/v1/chat", HI, x_request_id="mine")
    assert re.fullmatch(uuid, answered.headers["x-request-id"])
    refused = await outside.post("/v1/chat", {}, x_request_id="mine")
    assert refused.headers["x-request-id"] == "mine"
    assert re.fullmatch("[0-9a-f]{32}", (await outside.get("/health")).headers["x-request-id"])
    assert re.fullmatch(
        "[0-9a-f]{32}", (await outside.post("/v1/chat/completions", HI)).headers["x-request-id"]
    )


@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        ({}, "Missing x-api-key header (or Authorization: Bearer token)"),
        ({"x-api-key": ""}, "Missing x-api-key header (or Authorization: Bearer token)"),
        ({"authorization": "Basic x"}, "Missing x-api-key header (or Authorization: Bearer token)"),
        ({"x-api-key": "llmg_nope"}, "Invalid API key"),
        ({"authorization": "Bearer llmg_nope"}, "Invalid API key"),
    ],
)
async def test_missing_and_wrong_api_keys_get_different_401_errors(
    outside: Outside, headers: dict[str, str], detail: str
) -> None:
    response = await outside.http.post("/v1/chat", json=HI, headers=headers)
    assert (response.status_code, response.json()) == (401, {"detail": detail})
    assert not {*LIMITS} & response.headers.keys()


async def test_bearer_token_is_accepted_but_a_non_empty_api_key_header_wins(
    outside: Outside,
) -> None:
    bearer = {"authorization": f"Bearer {outside.key}"}
    assert (await outside.http.get("/v1/me", headers=bearer)).status_code == 200
    assert (await outside.http.get("/v1/me", headers=bearer | {"x-api-key": ""})).status_code == 200
    assert (await outside.http.get("/v1/me", headers=bearer | {"x-api-key": "wrong"})).status_code == 401


async def test_rate_limit_window_counts_rejected_calls_and_resets_each_minute(
    outside: Outside,
) -> None:
    key = outside.gateway.create_project(rate_limit_per_min=2).api_key
    outside.now = NOON + 48
    first, second, third = [await outside.chat(key) for _ in range(3)]
    assert [first.headers[name] for name in LIMITS] == ["2", "1", "12"]
    assert second.headers["x-ratelimit-remaining"] == "0"
    assert (third.status_code, third.json()) == (429, {"detail": "Rate limit exceeded"})
    assert [third.headers[name] for name in (*LIMITS, "retry-after")] == ["2", "0", "12", "12"]
    outside.now = NOON + 59.9
    assert (await outside.chat(key)).headers["retry-after"] == "1"
    outside.now = NOON + 60
    assert (await outside.chat(key)).headers["x-ratelimit-remaining"] == "1"


async def test_failed_chats_count_against_the_rate_limit_but_carry_no_limit_headers(outside: Outside) -> None:
    key = outside.gateway.create_project(rate_limit_per_min=5).api_key
    outside.gateway.script(ProviderFailure(401, "bad key"))
    answers = [
        await outside.chat(key),
        await outside.chat(key, model="llama-3"),
        await outside.chat(key, temperature=7),
    ]
    assert [answer.status_code for answer in answers] == [401, 400, 422]
    assert not any({*LIMITS, *BUDGETS} & answer.headers.keys() for answer in answers)
    assert (await outside.chat(key)).headers["x-ratelimit-remaining"] == "1"


async def test_chat_checks_json_then_key_then_rate_limit_then_budget(outside: Outside) -> None:
    poor = outside.gateway.create_project(rate_limit_per_min=2, daily_budget="0.000001").api_key
    broken = {"content-type": "application/json"}
    assert (await outside.http.post("/v1/chat", content=b'{"model": ', headers=broken)).status_code == 422
    assert (await outside.http.post("/v1/chat", json={})).status_code == 401
    assert (await outside.chat(poor)).status_code == 200
    over_budget = await outside.chat(poor, temperature=7)
    assert (over_budget.status_code, over_budget.json()) == (402, {"detail": "Project daily budget exceeded"})
    assert (await outside.chat(poor, temperature=7)).status_code == 429


async def test_malformed_json_gets_a_422_with_its_position_and_undecodable_bytes_a_400(
    outside: Outside,
) -> None:
    async def send(content: bytes) -> httpx.Response:
        headers = {"x-api-key": outside.key, "content-type": "application/json"}
        return await outside.http.post("/v1/chat", content=content, headers=headers)

    error = {
        "type": "json_invalid", "loc": ["body", 10], "msg": "JSON decode error", "input": {},
        "ctx": {"error": "Expecting value"},
    }  # fmt: skip
    assert (await send(b'{"model": ')).json() == {"detail": [error]}
    for content in (b'{"model": "\xff"}', b"\x1f\x8b\x08compressed"):
        response = await send(content)
        assert (response.status_code, response.json()) == (
            400,
            {"detail": "There was an error parsing the body"},
        )


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"temperature": 7}, {"type": "less_than_equal", "loc": ["body", "temperature"],
                              "msg": "Input should be less than or equal to 2", "input": 7, "ctx": {"le": 2.0}}),
        ({"messages": []}, {"type": "too_short", "loc": ["body", "messages"], "input": [],
                            "msg": "List should have at least 1 item after validation, not 0",
                            "ctx": {"field_type": "List", "min_length": 1, "actual_length": 0}}),
        ({"max_tokens": 0}, {"type": "greater_than_equal", "loc": ["body", "max_tokens"],
                             "msg": "Input should be greater than or equal to 1", "input": 0, "ctx": {"ge": 1}}),
    ],
)  # fmt: skip
async def test_chat_field_out_of_range_gets_a_422(outside: Outside, fields: Any, error: Any) -> None:
    response = await outside.chat(**fields)
    assert (response.status_code, response.json()) == (422, {"detail": [error]})


@pytest.mark.parametrize(
    ("model", "detail"),
    [
        ("llama-3", "No provider registered for model 'llama-3'"),
        ("claude-3-haiku", "No anthropic key configured for this project. Add one via POST /v1/keys."),
        ("models/gemini-1.5-pro", "No gemini key configured for this project. Add one via POST /v1/keys."),
        ("azure/gpt-4", "No azure key configured for this project. Add one via POST /v1/keys."),
    ],
)
async def test_model_is_routed_by_its_prefix_and_needs_a_provider_key(
    outside: Outside, model: str, detail: str
) -> None:
    key = outside.gateway.create_project(providers=["openai"]).api_key
    response = await outside.chat(key, model=model)
    assert (response.status_code, response.json()) == (400, {"detail": detail})


async def test_fallback_models_are_tried_in_order_and_the_last_error_is_reported(outside: Outside) -> None:
    key = outside.gateway.create_project(providers=["openai"]).api_key
    response = await outside.chat(key, model="claude-3-haiku", fallback_models=["llama-3", "gpt-4"])
    assert response.json()["model"] == "gpt-4"
    assert response.json()["fallback_used"] is True
    assert response.headers["x-llmgw-fallback"] == "true"
    response = await outside.chat(key, model="claude-3-haiku", fallback_models=["llama-3"])
    assert response.json() == {"detail": "No provider registered for model 'llama-3'"}


async def test_cache_answers_for_300_seconds_if_requested_and_temperature_is_0(
    outside: Outside,
) -> None:
    fresh = await outside.chat(temperature=0, cache=True)
    hit = await outside.chat(temperature=0, cache=True)
    assert hit.json() == fresh.json() | {"cached": True, "cost_usd": 0.0, "latency_ms": 0}
    assert hit.headers["x-llmgw-cached"] == "true"
    for fields in (
        {"temperature": 0.1, "cache": True},
        {"temperature": 0, "cache": False},
        {"seed": 1, "temperature": 0, "cache": True},
    ):
        assert (await outside.chat(**fields)).json()["cached"] is False
    outside.now += 301
    assert (await outside.chat(temperature=0, cache=True)).json()["cached"] is False


async def test_cache_is_keyed_by_what_decides_a_deterministic_answer(outside: Outside) -> None:
    async def cached(**fields: Any) -> bool:
        return bool((await outside.chat(temperature=0, cache=True, **fields)).json()["cached"])

    assert not await cached(stop="a")
    assert await cached(stop=["a"], presence_penalty=1, frequency_penalty=1, fallback_models=["gpt-4"])
    for fields in ({}, {"stop": ["a", "b"]}, {"stop": "a", "max_tokens": 9}, {"stop": "a", "top_p": 0.5}):
        assert not await cached(**fields)


async def test_cache_keeps_no_answer_of_a_fallback(outside: Outside) -> None:
    key = outside.gateway.create_project(providers=["openai"]).api_key
    fields = {"model": "claude-3-haiku", "fallback_models": ["gpt-4"], "temperature": 0, "cache": True}
    for _ in range(2):
        answer = (await outside.chat(key, **fields)).json()
        assert (answer["fallback_used"], answer["cached"]) == (True, False)


@pytest.mark.parametrize(
    ("failure", "status", "detail"),
    [
        (ProviderFailure(401, "no"), 401, "OpenAI error 401: no"),
        (ProviderFailure(429, "slow"), 429, "OpenAI error 429: slow"),
        (ProviderFailure(None, "reset"), 502, "OpenAI request failed: reset"),
        (ProviderFailure(None, ""), 502, "OpenAI request failed: "),
    ],
)
async def test_provider_failure_is_reported_with_its_status_in_each_protocol(
    outside: Outside, failure: ProviderFailure, status: int, detail: str
) -> None:
    outside.gateway.script(failure, times=4)
    response = await outside.chat()
    assert (response.status_code, response.json()) == (status, {"detail": detail})
    assert "retry-after" not in response.headers
    response = await outside.post("/v1/chat/completions", HI)
    kind = "provider_error" if status >= 500 else "invalid_request_error"
    error = {"message": detail, "type": kind, "param": None, "code": None}
    assert (response.status_code, response.json()) == (status, {"error": error})
    assert {*LIMITS, *BUDGETS} <= response.headers.keys()
    streamed = detail.removeprefix("OpenAI request failed: ")
    response = await outside.chat(stream=True)
    assert (response.status_code, response.text) == (200, f"\n[error] {streamed}")
    response = await outside.post("/v1/chat/completions", HI | {"stream": True})
    assert json.dumps({"message": streamed, "type": "provider_error"}, separators=(",", ":")) in response.text
    assert response.text.endswith("data: [DONE]\n\n")


async def test_circuit_opens_for_30_seconds_after_five_transient_failures(outside: Outside) -> None:
    outside.gateway.script(ProviderFailure(500, "x"), times=5)
    for _ in range(5):
        assert (await outside.chat()).status_code == 500
    response = await outside.chat()
    assert (response.status_code, response.json()) == (503, {"detail": "openai circuit is open"})
    assert "retry-after" not in response.headers
    assert (await outside.chat(model="gemini-1.5-pro")).status_code == 200
    outside.now += 30
    assert (await outside.chat()).status_code == 200
    assert (await outside.chat()).status_code == 200


async def test_circuit_stays_open_after_a_failed_trial_and_ignores_permanent_failures(
    outside: Outside,
) -> None:
    outside.gateway.script(ProviderFailure(400, "x"), times=6)
    for _ in range(6):
        assert (await outside.chat()).status_code == 400
    outside.gateway.script(ProviderFailure(503, "x"), times=6)
    for _ in range(5):
        await outside.chat()
    outside.now += 30
    assert (await outside.chat()).json() == {"detail": "OpenAI error 503: x"}
    assert (await outside.chat()).json() == {"detail": "openai circuit is open"}


async def test_text_stream_is_plain_text_with_stream_headers(outside: Outside) -> None:
    response = await outside.chat(stream=True)
    assert response.text == "echo[gpt-4o-mini]: Say hi in French"
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert {"x-llmgw-provider", "x-llmgw-model", "x-request-id", *LIMITS, *BUDGETS} <= response.headers.keys()
    assert not {"x-llmgw-cached", "content-length"} & response.headers.keys()


async def test_scripted_text_stream_can_fail_after_any_byte_and_hold_any_text(outside: Outside) -> None:
    outside.gateway.script(StreamFailure("two\nlines", after_bytes=7))
    assert (await outside.chat(stream=True)).text == "echo[gp\n[error] two\nlines"
    outside.gateway.script(Answer("text with\n[error] inside"))
    assert (await outside.chat(stream=True)).text == "text with\n[error] inside"
    outside.gateway.script(Answer([b"\xc3", b"\xa9"]))
    assert (await outside.chat(stream=True)).text == "é"


async def test_stream_that_fails_before_the_provider_is_called_gets_a_plain_error(
    outside: Outside,
) -> None:
    response = await outside.chat(stream=True, model="llama-3")
    assert (response.status_code, response.json()) == (
        400,
        {"detail": "No provider registered for model 'llama-3'"},
    )


def events(response: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize("include_usage", [False, True])
async def test_completions_stream_sends_openai_chunks(outside: Outside, include_usage: bool) -> None:
    body = HI | {"stream": True, "stream_options": {"include_usage": include_usage}}
    response = await outside.post("/v1/chat/completions", body)
    chunks = events(response)
    usage = chunks.pop() if include_usage else None
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant"}
    assert "".join(delta["content"] for delta in deltas[1:-1]) == "echo[gpt-4o-mini]: Say hi in French"
    assert (deltas[-1], chunks[-1]["choices"][0]["finish_reason"]) == ({}, "stop")
    assert {chunk["id"] for chunk in chunks} == {response.headers["x-request-id"]}
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    if usage is not None:
        assert usage["choices"] == []
        assert usage["usage"] == {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}


async def test_completion_has_openais_shape_and_accepts_openais_newer_field_names(outside: Outside) -> None:
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "one two three"}]
    response = await outside.post(
        "/v1/chat/completions",
        {"model": "gpt-4o", "messages": messages, "max_completion_tokens": 2, "unknown": True},
    )
    body = response.json()
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "echo[gpt-4o]: one"},
            "finish_reason": "length",
        }
    ]
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert body["object"] == "chat.completion"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": [{"role": "tool", "content": "x"}]}, "role 'tool' not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "multimodal not supported"),
        ({"n": 2}, "n > 1 is not supported"),
        ({"model": "llama-3"}, "No provider registered for model 'llama-3'"),
    ],
)
async def test_unsupported_completions_fields_are_rejected_in_openais_error_envelope(
    outside: Outside, fields: Any, message: str
) -> None:
    for stream in (False, True):
        response = await outside.post("/v1/chat/completions", HI | fields | {"stream": stream})
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        assert (response.status_code, response.json()) == (400, {"error": error})


async def test_signup_creates_an_account_that_needs_a_provider_key(outside: Outside) -> None:
    response = await outside.http.post("/v1/signup", json={"email": "dev@acme.test", "org_name": "Acme"})
    account = response.json()
    assert response.status_code == 201
    assert sorted(account) == ["api_key", "email", "message", "org_id", "project_id"]
    assert re.fullmatch(r"llmg_[\w-]{43}", account["api_key"])
    key = account["api_key"]
    assert (await outside.chat(key)).status_code == 400
    stored = await outside.post("/v1/keys", {"provider": "openai", "api_key": "sk-12345678"}, key)
    assert (stored.status_code, stored.content, stored.headers["content-type"]) == (
        204,
        b"",
        "application/json",
    )
    assert (await outside.chat(key)).status_code == 200
    me = (await outside.get("/v1/me", key)).json()
    assert me == {
        "project_id": account["project_id"],
        "org_id": account["org_id"],
        "project_name": "Default",
        "key_prefix": key[:12],
        "rate_limit_per_min": 60,
        "daily_budget": "0.0000",
        "monthly_budget": "0.0000",
        "configured_providers": ["openai"],
    }
    error = {"type": "string_too_short", "loc": ["body", "email"], "msg": "String should have at least 3 characters",
             "input": "x", "ctx": {"min_length": 3}}  # fmt: skip
    assert (await outside.http.post("/v1/signup", json={"email": "x"})).json() == {"detail": [error]}


async def test_azure_provider_key_needs_an_endpoint(outside: Outside) -> None:
    body: dict[str, Any] = {"provider": "azure", "api_key": "sk-12345678"}
    response = await outside.post("/v1/keys", body)
    detail = "Azure provider requires meta.endpoint (an https:// URL)."
    assert (response.status_code, response.json()) == (400, {"detail": detail})
    body["meta"] = {"endpoint": "https://x.openai.azure.test", "deployment": "d"}
    assert (await outside.post("/v1/keys", body)).status_code == 204
    assert (await outside.chat(model="azure/gpt-4")).json()["provider"] == "azure"


async def test_gateway_keys_can_be_created_listed_used_and_revoked(outside: Outside) -> None:
    created = (await outside.post("/v1/keys/api", {"name": "ci"})).json()
    secret = created.pop("api_key")
    assert created == {
        "id": created["id"],
        "name": "ci",
        "key_prefix": secret[:12],
        "created_at": "2026-11-23T12:00:00Z",
        "last_used_at": None,
        "revoked_at": None,
    }
    assert (await outside.get("/v1/keys/api")).json() == [created]
    assert (await outside.chat(secret)).status_code == 200
    assert (await outside.get("/v1/keys/api")).json()[0]["last_used_at"] == "2026-11-23T12:00:00Z"
    headers = {"x-api-key": outside.key}
    for _ in range(2):
        response = await outside.http.delete(f"/v1/keys/api/{created['id']}", headers=headers)
        assert (response.status_code, response.content) == (204, b"")
    assert (await outside.chat(secret)).json() == {"detail": "Invalid API key"}
    assert (await outside.get("/v1/keys/api")).json()[0]["revoked_at"] == "2026-11-23T12:00:00Z"
    response = await outside.http.delete("/v1/keys/api/33333333-3333-3333-3333-333333333333", headers=headers)
    assert (response.status_code, response.json()) == (404, {"detail": "API key not found"})
    assert (await outside.http.delete("/v1/keys/api/x", headers=headers)).status_code == 422


async def test_models_endpoints_list_and_describe_models(outside: Outside) -> None:
    page = (await outside.get("/v1/models")).json()
    assert page["object"] == "list"
    assert len(page["data"]) == 28
    assert [card["id"] for card in page["data"]] == sorted(card["id"] for card in page["data"])
    card = (await outside.get("/v1/models/gpt-4o-2024-08-06")).json()
    assert card == {
        "id": "gpt-4o-2024-08-06",
        "object": "model",
        "created": 0,
        "owned_by": "openai",
        "provider": "openai",
        "pricing": {"input_per_1k_usd": 0.0025, "output_per_1k_usd": 0.01},
    }
    assert (await outside.get("/v1/models/gemini-1.5-pro")).json()["owned_by"] == "google"
    missing = await outside.get("/v1/models/nope")
    assert missing.status_code == 404
    assert missing.json()["error"]["message"] == "model 'nope' not found"


async def test_metrics_tell_successes_failures_and_cache_hits_apart(outside: Outside) -> None:
    for _ in range(3):
        await outside.chat(temperature=0, cache=True)
    await outside.chat(model="llama-3")
    rows = (await outside.get("/v1/metrics?group_by=status")).json()["breakdown"]
    assert [(row["key"], row["requests"]) for row in rows] == [("cache_hit", 2), ("error", 1), ("ok", 1)]


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/completions"])
async def test_a_stream_that_cannot_start_is_not_recorded(outside: Outside, path: str) -> None:
    assert (await outside.post(path, HI | {"model": "llama-3", "stream": True})).status_code == 400
    assert (await outside.get("/v1/metrics")).json()["totals"]["requests"] == 0
    assert (await outside.post(path, HI | {"model": "llama-3"})).status_code == 400
    assert (await outside.get("/v1/metrics")).json()["totals"]["requests"] == 1


@pytest.mark.parametrize(
    ("latencies", "expected"),
    [([], [None] * 3), ([7], [7.0] * 3), ([0, 10], [5.0, 9.5, 9.9]), ([10, 20, 30], [20.0, 29.0, 29.8])],
)
def test_metrics_interpolate_latency_percentiles(latencies: list[int], expected: list[float | None]) -> None:
    assert [_percentile(latencies, fraction) for fraction in (0.5, 0.95, 0.99)] == pytest.approx(expected)


async def test_metrics_sum_requests_tokens_and_costs(outside: Outside) -> None:
    outside.gateway.script(ProviderFailure(400, "x"), when=lambda request: b"gpt-4o-mini" in request.body)
    await outside.post("/v1/chat", HI | {"model": "gpt-4"}, x_user_id="ada")
    await outside.chat(temperature=0, cache=True)
    outside.now += 3_700
    await outside.chat(model="gpt-4", temperature=0, cache=True)
    await outside.chat(model="gpt-4", temperature=0, cache=True)
    answer = (await outside.get("/v1/metrics?group_by=model")).json()
    assert (answer["scope"], answer["group_by"], answer["granularity"]) == ("project", "model", "hour")
    assert (answer["range_from"], answer["range_to"]) == ("2026-11-22T13:01:40Z", "2026-11-23T13:01:40Z")
    totals = answer["totals"]
    cost = 2 * (4 * 0.03 + 5 * 0.06) / 1000
    assert (
        totals["requests"],
        totals["prompt_tokens"],
        totals["completion_tokens"],
        totals["total_tokens"],
    ) == (4, 12, 15, 27)
    assert totals["cost_usd"] == pytest.approx(cost, abs=1e-6)
    assert (totals["error_rate"], totals["cache_hit_rate"]) == (0.25, 0.25)
    assert totals["p50_latency_ms"] <= totals["p95_latency_ms"] <= totals["p99_latency_ms"]
    assert [(row["key"], row["requests"], row["error_rate"]) for row in answer["breakdown"]] == [
        ("gpt-4", 3, 0.0),
        ("gpt-4o-mini", 1, 1.0),
    ]
    assert [(point["bucket"], point["requests"]) for point in answer["timeseries"]] == [
        ("2026-11-23T12:00:00Z", 2),
        ("2026-11-23T13:00:00Z", 2),
    ]
    users = (await outside.get("/v1/metrics?range=1h&group_by=user")).json()
    assert (users["granularity"], [row["key"] for row in users["breakdown"]]) == ("minute", ["unknown"])
    query = "from=2026-11-23T12:00:00Z&to=2026-11-23T12:30:00%2B00:00&group_by=user&granularity=day"
    window = (await outside.get(f"/v1/metrics?{query}")).json()
    assert {row["key"] for row in window["breakdown"]} == {"ada", "unknown"}
    assert window["timeseries"][0]["bucket"] == "2026-11-23T00:00:00Z"
    assert (await outside.get("/v1/metrics?group_by=status")).json()["breakdown"][0]["key"] == "ok"


@pytest.mark.parametrize(
    "query", ["range=2h", "range=1h&from=2026-01-01T00:00:00Z", "from=yesterday", "from=2026-01-01T00:00:00",
              "to=2026-01-01T00:00:00Z", "group_by=day", "granularity=week"]
)  # fmt: skip
async def test_bad_metrics_query_gets_a_422_with_a_message(outside: Outside, query: str) -> None:
    response = await outside.get(f"/v1/metrics?{query}")
    assert response.status_code == 422
    assert isinstance(response.json()["detail"], str)
    if query == "range=2h":
        assert response.json()["detail"] == "invalid range '2h'; expected one of 1h, 24h, 7d, 30d"


async def test_metrics_of_no_requests_have_no_percentiles(outside: Outside) -> None:
    totals = (await outside.get("/v1/metrics")).json()["totals"]
    assert (totals["requests"], totals["p50_latency_ms"], totals["avg_latency_ms"]) == (0, None, 0.0)


async def test_daily_and_monthly_budgets_of_project_and_organisation_are_enforced(outside: Outside) -> None:
    org = (await outside.admin("POST", "/v1/admin/orgs", {"name": "A", "daily_budget": 0.000005})).json()
    body = {"org_id": org["id"], "name": "p", "monthly_budget": "0.000009"}
    project = (await outside.admin("POST", "/v1/admin/projects", body)).json()
    key = project["api_key"]
    await outside.post("/v1/keys", {"provider": "openai", "api_key": "sk-12345678"}, key)
    assert [(await outside.chat(key)).status_code for _ in range(2)] == [200, 200]
    assert (await outside.chat(key)).json() == {"detail": "Organisation daily budget exceeded"}
    outside.now += 86_400
    third = await outside.chat(key)
    assert third.headers["x-budget-project-monthly-spend"] == "0.000008"
    assert third.headers["x-budget-org-daily-limit"] == "0.0000"
    assert (await outside.chat(key)).json() == {"detail": "Project monthly budget exceeded"}
    outside.now += 10 * 86_400
    assert (await outside.chat(key)).status_code == 200


async def test_admin_endpoints_need_the_admin_key_and_create_and_list_orgs_and_projects(
    outside: Outside,
) -> None:
    for method, path in (
        ("GET", "/v1/admin/orgs"),
        ("POST", "/v1/admin/projects"),
        ("GET", "/v1/admin/orgs/x/metrics"),
    ):
        response = await outside.http.request(method, path, json={} if method == "POST" else None)
        assert (response.status_code, response.json()) == (401, {"detail": "Invalid or missing x-admin-key"})
    org = (await outside.admin("POST", "/v1/admin/orgs", {"name": "Acme", "daily_budget": 5})).json()
    assert org == {
        "id": org["id"],
        "name": "Acme",
        "daily_budget": "5.0000",
        "monthly_budget": "0.0000",
        "created_at": "2026-11-23T12:00:00Z",
    }
    assert org in (await outside.admin("GET", "/v1/admin/orgs")).json()
    created = await outside.admin("POST", "/v1/admin/projects", {"org_id": org["id"], "name": "p"})
    project = created.json()
    assert created.status_code == 201
    assert project.pop("api_key")[:12] == project["key_prefix"]
    assert project["rate_limit_per_min"] == 60
    assert (await outside.admin("GET", f"/v1/admin/projects?org_id={org['id']}")).json() == [project]
    assert len((await outside.admin("GET", "/v1/admin/projects")).json()) == 2
    nobody = "33333333-3333-3333-3333-333333333333"
    for method, path, body in (
        ("POST", "/v1/admin/projects", {"org_id": nobody, "name": "p"}),
        ("GET", f"/v1/admin/orgs/{nobody}/metrics", None),
    ):
        assert (await outside.admin(method, path, body)).status_code == 404
    metrics = (await outside.admin("GET", f"/v1/admin/orgs/{org['id']}/metrics")).json()
    assert (metrics["scope"], metrics["scope_id"]) == ("org", org["id"])


async def test_health_version_and_prometheus_endpoints_need_no_key(outside: Outside) -> None:
    async def body(path: str) -> Any:
        return (await outside.http.get(path)).json()

    assert await body("/health") == {"status": "ok", "version": "0.2.0"}
    assert await body("/health/live") == {"status": "alive"}
    assert await body("/health/ready") == {"status": "ready", "checks": {"database": "ok", "redis": "ok"}}
    assert await body("/version") == {"name": "omnigate", "version": "0.2.0"}
    await outside.chat()
    assert "omnigate_requests_total 1\n" in (await outside.http.get("/metrics")).text


async def test_wrong_paths_get_a_404_wrong_methods_a_405_and_trailing_slashes_a_307(outside: Outside) -> None:
    missing = await outside.http.get("/nope")
    assert (missing.status_code, missing.json()) == (404, {"detail": "Not Found"})
    wrong = await outside.http.get("/v1/chat")
    assert (wrong.status_code, wrong.json()) == (405, {"detail": "Method Not Allowed"})
    moved = await outside.http.get("/v1/me/")
    assert (moved.status_code, moved.headers["location"]) == (307, "http://gateway/v1/me")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/completions"])
@pytest.mark.parametrize(
    ("model", "user_id"),
    [("gpt-" + "x" * 125, "u"), ("gpt-😀", "u"), ("gpt-\x00", "u"), ("gpt-4", "u" * 256)],
)
async def test_request_that_cannot_be_stored_gets_a_500_after_it_was_billed(
    outside: Outside, path: str, stream: bool, model: str, user_id: str
) -> None:
    response = await outside.post(path, HI | {"model": model, "stream": stream}, x_user_id=user_id)
    assert (response.status_code, response.text) == (500, "Internal Server Error")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert "x-request-id" not in response.headers
    totals = (await outside.get("/v1/metrics")).json()["totals"]
    assert (totals["requests"], totals["error_rate"]) == (1, 0.0)


async def test_line_break_in_the_model_drops_the_connection(outside: Outside) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await outside.chat(model="gpt-4\r\n")


async def test_scripted_statuses_and_delays_apply_to_matching_requests_only(outside: Outside) -> None:
    gateway = outside.gateway
    gateway.script(Delay(0.0))
    gateway.script(
        Status(503, {"detail": "x"}, {"retry-after": "5"}), times=2, path="/v1/chat", method="POST"
    )
    gateway.script(Status(418, "tea"), when=lambda request: request.headers.get("x-user-id") == "ada")
    assert (await outside.get("/v1/me")).status_code == 200
    assert len(gateway.pending_scripts) == 2
    first = await outside.chat()
    assert (first.status_code, first.json(), first.headers["retry-after"]) == (503, {"detail": "x"}, "5")
    assert (await outside.chat()).status_code == 503
    assert (await outside.chat()).status_code == 200
    tea = await outside.post("/v1/chat", HI, x_user_id="ada")
    assert (tea.status_code, tea.text) == (418, "tea")
    gateway.script(Status(500), times=3)
    gateway.clear_scripts()
    assert gateway.pending_scripts == []
    assert (await outside.chat()).status_code == 200


async def test_recorded_requests_do_not_show_keys_in_their_repr(outside: Outside) -> None:
    await outside.chat()
    recorded = outside.gateway.requests[-1]
    assert (recorded.method, recorded.path, json.loads(recorded.body)) == ("POST", "/v1/chat", HI)
    assert recorded.headers["x-api-key"] == outside.key
    assert outside.key not in repr(recorded) + repr(outside.gateway) + repr(outside.gateway.create_project())


@pytest.mark.parametrize(
    "arguments",
    [{"port": -1}, {"port": True}, {"rate_limit_per_min": 0}, {"rate_window_seconds": 61}, {"latency_seconds": -1},
     {"chunk_delay_seconds": float("nan")}, {"latency_seconds": True}, {"latency_seconds": "x"}, {"clock": 3},
     {"usage_delay_seconds": None}, {"admin_key": ""}, {"admin_key": 5}, {"admin_key": "a\n"}, {"host": ""},
     {"host": " "}, {"host": None}, {"port": -(10**5_000)}],
)  # fmt: skip
async def test_local_gateway_names_a_bad_argument(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(ValueError, match=rf"^{name} must .*, got "):
        LocalGateway(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [{"daily_budget": "abc"}, {"daily_budget": -1}, {"monthly_budget": "NaN"}, {"monthly_budget": None},
     {"daily_budget": float("inf")}, {"rate_limit_per_min": 0}, {"providers": ["cohere"]}, {"providers": "openai"},
     {"providers": 5}, {"providers": [5, "openai", []]}],
)  # fmt: skip
async def test_create_project_names_a_bad_argument(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    gateway = LocalGateway()
    with pytest.raises(ValueError, match=f"^{name} must .*, got "):
        gateway.create_project(**arguments)
    assert not gateway._state.accounts.projects


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"fault": "nonsense"}, "fault"), ({"fault": Status}, "fault"), ({"fault": None}, "fault"),
     ({"method": 5}, "method"), ({"path": b"/v1/chat"}, "path"), ({"when": True}, "when"), ({"times": 0}, "times")],
)  # fmt: skip
async def test_script_names_a_bad_argument(arguments: dict[str, Any], name: str) -> None:
    gateway = LocalGateway()
    with pytest.raises(ValueError, match=f"^{name} must .*, got "):
        gateway.script(**{"fault": Status(500), **arguments})
    assert gateway.pending_scripts == []
