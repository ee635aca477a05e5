"""A program written for the published client 0.1.0, using all of it. Prints what it saw, one fact a line.

It is run with 0.1.0 and with this package, against the same local gateway, and must print the same.
"""

import asyncio
import os
from typing import Any

import httpx
import pydantic

import omnigate
import omnigate.exceptions
import omnigate.models
from omnigate import (
    APIError,
    ApiKeyCreated,
    AsyncClient,
    AuthError,
    BudgetExceededError,
    ChatRequest,
    ChatResponse,
    Client,
    ConnectionError,
    GatewayError,
    MeResponse,
    Message,
    MetricsBreakdown,
    MetricsResponse,
    MetricsTimePoint,
    MetricsTotals,
    ModelInfo,
    ModelPricing,
    ProviderError,
    RateLimitError,
    RetryConfig,
    SignupResponse,
    StreamChunk,
    Usage,
    classify,
)
from omnigate.exceptions import ConnectionError as GatewayConnectionError
from omnigate.models import coerce_messages

URL = os.environ["TEST_URL"]
KEYS = {name: os.environ[f"TEST_{name.upper()}_KEY"] for name in ("rich", "limited", "poor")}
MODEL = "gpt-4o-mini"


def show(*facts):
    print(*facts)


def caught(call):
    try:
        call()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is compared
        kinds = [kind.__name__ for kind in (AuthError, BudgetExceededError, RateLimitError, ProviderError, APIError,
                                            ConnectionError, GatewayError, ValueError, TypeError)
                 if isinstance(error, kind)]  # fmt: skip
        if isinstance(error, APIError):
            return (
                kinds[0],
                error.status_code,
                error.detail,
                error.message,
                str(error),
                bool(error.request_id),
            )
        return "ValueError" in kinds or "TypeError" in kinds or kinds
    return "nothing raised"


def sync_part():
    with Client(base_url=URL + "/") as nobody:
        account = nobody.signup(email="dev@acme.test", org_name="Acme", project_name="prod")
        show(type(account) is SignupResponse, account.email, account.api_key[:5], bool(account.message))
        show(nobody.health())
        show(nobody.base_url == URL, nobody.api_key, nobody.user_id)
        show("no key", caught(lambda: nobody.me()))

    client = Client(api_key=account.api_key, base_url=URL, user_id="u-42", timeout=30.0, retries=1,
                    headers={"x-team": "a"})  # fmt: skip
    show(client.set_provider_key(provider="openai", api_key="sk-12345678"))
    for messages in ("Say hi", {"role": "user", "content": "Say hi"}, Message(role="user", content="Say hi"),
                     [Message(role="system", content="x"), {"role": "user", "content": "Say hi"}]):  # fmt: skip
        answer = client.chat(model=MODEL, messages=messages, max_tokens=50, temperature=0.5, user_id="u-7")
        show(type(answer) is ChatResponse, answer.content, answer.provider, answer.model, answer.cost_usd,
             answer.usage.total_tokens, answer.finish_reason, answer.cached, answer.fallback_used)  # fmt: skip
        show(sorted(answer.model_dump()), sorted(answer.usage.model_dump().items()))
        show(ChatResponse.model_validate_json(answer.model_dump_json()) == answer)
    show("".join(client.chat_stream(model=MODEL, messages="Stream me a haiku")))
    chunks = list(client.chat_stream(model=MODEL, messages="Stream me a haiku", as_chunks=True))
    show({type(chunk) is StreamChunk for chunk in chunks}, len({chunk.request_id for chunk in chunks}))
    show("".join(chunk.text for chunk in chunks))
    for piece in client.chat_stream(model=MODEL, messages="Stream me a haiku"):
        show(piece[:1])
        break
    completion = client.completions(
        model=MODEL, messages="Say hi", max_tokens=9, temperature=0.1, user_id="u"
    )
    show(isinstance(completion, dict), completion["choices"], completion["usage"], completion["object"])
    models = client.models()
    show(
        isinstance(models, list),
        len(models),
        type(models[0]) is ModelInfo,
        type(models[0].pricing) is ModelPricing,
    )
    show([(card.id, card.owned_by, card.pricing.input_per_1k_usd) for card in models if card.pricing][:3])
    metrics = client.metrics(range="7d")
    show(
        type(metrics) is MetricsResponse, type(metrics.totals) is MetricsTotals, metrics.totals.requests >= 7
    )
    show(
        [type(point) is MetricsTimePoint for point in metrics.timeseries],
        metrics.breakdown,
        metrics.granularity,
    )
    show(
        metrics.range_to > metrics.range_from,
        client.metrics().group_by,
        sorted(metrics.model_dump(mode="json")),
    )
    key = client.create_api_key(name="ci")
    show(
        type(key) is ApiKeyCreated,
        key.name,
        key.api_key[:12] == key.key_prefix,
        key.last_used_at,
        key.created_at.year,
    )
    me = client.me()
    show(type(me) is MeResponse, me.project_name, me.configured_providers, me.rate_limit_per_min)
    client.close()


def error_part():
    client = Client(KEYS["rich"], base_url=URL, retries=0)
    show("bad key", caught(lambda: Client("llmg_wrong", base_url=URL).me()))
    show("no provider key", caught(lambda: client.chat(model="azure/x", messages="x")))
    show("unknown model", caught(lambda: client.chat(model="llama-3", messages="x")))
    for failure in ("FAIL401", "FAIL429", "FAIL500", "UNREACHABLE"):
        show(failure, caught(lambda failure=failure: client.chat(model=MODEL, messages=failure)))
    show("broke", caught(lambda: Client(KEYS["poor"], base_url=URL).chat(model=MODEL, messages="x")))
    limited = Client(KEYS["limited"], base_url=URL, retries=0)
    limited.chat(model=MODEL, messages="x")
    show("limit", caught(lambda: limited.chat(model=MODEL, messages="x")))
    try:
        limited.chat(model=MODEL, messages="x")
    except RateLimitError as error:
        show(isinstance(error.retry_after, float), 0 < error.retry_after <= 60)
    show("stream limit", caught(lambda: list(limited.chat_stream(model=MODEL, messages="x"))))
    show("midstream", caught(lambda: list(client.chat_stream(model=MODEL, messages="MIDSTREAM"))))
    show("at once", caught(lambda: list(client.chat_stream(model=MODEL, messages="FAIL401"))))
    seen = []
    try:
        for piece in client.chat_stream(model=MODEL, messages="MIDSTREAM"):
            seen.append(piece)
    except ProviderError as error:
        show("".join(seen), error.status_code, error.detail)
    nowhere = Client("k", base_url="http://127.0.0.1:9", retries=1, retry_config=RetryConfig(max_retries=0))
    show("nowhere", caught(lambda: nowhere.health()), caught(lambda: nowhere.chat(model="m", messages="x")))
    show(GatewayConnectionError is ConnectionError, issubclass(ConnectionError, GatewayError))
    for bad in ({"temperature": 3}, {"temperature": -1}, {"max_tokens": 0}, {"messages": []}, {"messages": 5},
                {"messages": [5]}, {"messages": [{"role": "robot", "content": "x"}]}, {"model": None}):  # fmt: skip
        show(sorted(bad), caught(lambda bad=bad: client.chat(**{"model": MODEL, "messages": "x", **bad})))
    show("robot", caught(lambda: Message(role="robot", content="x")))
    show("empty", caught(lambda: ChatRequest(model="m", messages=[])))


class Report(pydantic.BaseModel):
    usage: Usage
    answers: list[ChatResponse] = []
    anything: Any = None
    retry: RetryConfig = pydantic.Field(RetryConfig(), exclude=True)


def as_pydantic_models():
    answer = ChatResponse(
        id="1", provider="p", model="m", content="c", usage={"total_tokens": 3}, finish_reason=None
    )
    show(list(answer), dict(answer.usage), sorted(answer.model_fields_set))
    show(list(ChatResponse.model_fields), ChatResponse.model_fields["id"].is_required())
    show(answer.model_dump(exclude_unset=True), answer.model_dump_json(exclude_unset=True))
    show(repr(answer.model_copy(update={"content": "z"})), answer.model_copy(deep=True) == answer)
    for selection in ({"id"}, {"usage": {"total_tokens"}}, {"usage": True, "id": ...}, {"usage": set()}):
        show(answer.model_dump(include=selection), answer.model_dump(exclude=selection))
    for kind in (ChatResponse, MetricsResponse, ApiKeyCreated):
        schema = kind.model_json_schema()
        show(kind.__name__, schema["required"], sorted(schema.get("$defs", {})), sorted(schema["properties"]))
        show(pydantic.TypeAdapter(list[kind]).json_schema()["items"], sorted(schema["properties"]["id"].items())
             if "id" in schema["properties"] else "")  # fmt: skip
    report = Report(
        usage={"prompt_tokens": "2"}, answers=[answer], anything=answer, retry={"max_retries": "5"}
    )
    show(
        repr(report.usage),
        report.answers,
        report.retry.max_retries,
        report.answers[0] is answer,
        report.usage.model_fields_set,
    )
    show(report.model_dump(), report.model_dump(exclude={"usage": {"total_tokens"}, "answers": {0: {"id"}}}))
    show(
        report.model_dump_json(exclude_unset=True),
        Report.model_validate_json(report.model_dump_json()) == report,
    )
    try:
        Report(usage={"prompt_tokens": "many"})
    except pydantic.ValidationError as error:
        show(error.errors(include_url=False))


def pure_part():
    request = ChatRequest(
        model="m", messages=[{"role": "user", "content": "x"}], max_tokens="5", temperature=1
    )
    show(type(request.messages[0]) is Message, request.max_tokens, request.temperature, request.stream)
    show(request.model_dump(exclude_none=True))
    show(Message.model_validate({"role": "user", "content": "x", "more": 1}).model_dump())
    show([type(message) is Message for message in coerce_messages(["x"][0])])
    show(
        ChatResponse(id="1", provider="p", model="m", content="c", usage={"total_tokens": 3}).usage
        == Usage(total_tokens=3)
    )
    show(MetricsBreakdown(key="k").model_dump(), ModelInfo(id="x").pricing)
    as_pydantic_models()
    for status, detail in ((401, "Invalid API key"), (401, "OpenAI error 401: x"), (429, "x"), (402, "x"), (502, "x"),
                           (404, "Not Found"), (422, [{"loc": ["body", "x"], "msg": "bad"}]), (503, None)):  # fmt: skip
        error = classify(status, detail, retry_after=2.0, request_id="r")
        show(
            status,
            isinstance(error, (AuthError, ProviderError, RateLimitError, BudgetExceededError)),
            str(error),
        )
    config = RetryConfig(5, 0.1, 4.0, 0.0, frozenset({503}))
    show(
        config.max_retries,
        config.backoff_base,
        config.backoff_max,
        config.jitter,
        sorted(config.retry_statuses),
    )
    show(RetryConfig(max_retries=1) == RetryConfig(max_retries=1), sorted(RetryConfig().retry_statuses))
    show(sorted(name for name in ("Client", "models", "exceptions", "classify") if hasattr(omnigate, name)))


def transport_part():
    calls = []

    def handler(request):
        calls.append(
            (
                request.method,
                request.url.path,
                request.headers.get("x-api-key"),
                request.headers["user-agent"],
            )
        )
        if len(calls) == 1:
            return httpx.Response(503, json={"detail": "busy"})
        return httpx.Response(
            200, json={"id": "1", "provider": "p", "model": "m", "content": "c", "extra": 1}
        )

    quick = RetryConfig(backoff_base=0.0)
    with Client(
        "k", transport=httpx.MockTransport(handler), retry_config=quick, headers={"user-agent": "mine"}
    ) as client:
        show(client.chat(model="m", messages="x").content, calls)


async def async_part():
    async with AsyncClient(KEYS["rich"], base_url=URL, user_id="u") as client:
        show((await client.chat(model=MODEL, messages="Say hi")).content)
        show("".join([piece async for piece in client.chat_stream(model=MODEL, messages="Stream this")]))
        chunks = [
            chunk async for chunk in client.chat_stream(model=MODEL, messages="Stream this", as_chunks=True)
        ]
        show("".join(chunk.text for chunk in chunks), all(chunk.request_id for chunk in chunks))
        show((await client.completions(model=MODEL, messages="Say hi"))["choices"][0]["message"])
        show(
            len(await client.models()),
            (await client.metrics(range="1h")).scope,
            (await client.me()).project_name,
        )
        show(await client.health(), (await client.create_api_key(name="async")).name)
        show(await client.set_provider_key(provider="gemini", api_key="gemini-key"))
        show((await client.signup(email="a@b.test")).email)
        answers = await asyncio.gather(*[client.chat(model=MODEL, messages=f"n{n}") for n in range(20)])
        show([answer.content[-3:] for answer in answers])
        try:
            async for _ in client.chat_stream(model=MODEL, messages="MIDSTREAM"):
                pass
        except ProviderError as error:
            show(error.message)
        try:
            await client.chat(model="llama-3", messages="x")
        except ProviderError as error:
            show(error.status_code, error.detail)


sync_part()
error_part()
pure_part()
transport_part()
asyncio.run(async_part())
