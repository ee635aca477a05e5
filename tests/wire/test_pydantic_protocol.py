"""Pydantic and FastAPI take our types as they took 0.1.0's, which were pydantic models."""

import subprocess
import sys
from collections.abc import Callable
from typing import Annotated, Any

import anyio
import fastapi
import httpx
import pydantic
import pytest

from omnigate import (
    ApiKeyCreated,
    ApiKeyInfo,
    ChatRequest,
    ChatResponse,
    DictResult,
    InvalidArgumentError,
    ListResult,
    Message,
    Meta,
    ModelInfo,
    OrgInfo,
    RetryConfig,
    Usage,
)

WHOLE: dict[str, Any] = {
    "id": "1",
    "provider": "p",
    "model": "m",
    "content": "c",
    "usage": {"prompt_tokens": 1, "completion_tokens": 0, "total_tokens": 0},
    "cost_usd": 0.0,
    "finish_reason": None,
    "cached": False,
    "fallback_used": False,
    "latency_ms": 0,
}
GIVEN: dict[str, Any] = {
    "id": "1", "provider": "p", "model": "m", "content": "c", "usage": {"prompt_tokens": 1},
}  # fmt: skip
HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def an_answer() -> ChatResponse:
    return ChatResponse(id="1", provider="p", model="m", content="c", usage=Usage(prompt_tokens=1))


def a_key() -> ApiKeyCreated:
    return ApiKeyCreated(
        id="1", name="n", key_prefix="k", created_at="2026-01-01T00:00:00Z", api_key="llmg_secret"
    )


def meta() -> Meta:
    return Meta(200, httpx.Headers(), attempts=1, elapsed=0.5)


class Report(pydantic.BaseModel):
    usage: Usage
    messages: list[Message] = []
    answer: ChatResponse | None = None
    anything: Any = None


def asked(app: fastapi.FastAPI, method: str = "GET", path: str = "/", **options: Any) -> httpx.Response:
    """Return the answer of an app to one request."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app.test") as client:
            return await client.request(method, path, **options)

    return anyio.run(ask)


def got(route: Callable[..., Any], **options: Any) -> httpx.Response:
    """Return the answer of a route, called once."""
    app = fastapi.FastAPI()
    app.get("/", **options)(route)
    return asked(app)


def posted(route: Callable[..., Any], body: Any) -> httpx.Response:
    """Return the answer of a route that reads a body."""
    app = fastapi.FastAPI()
    app.post("/")(route)
    return asked(app, "POST", json=body)


def test_a_route_annotated_with_a_result_returns_it() -> None:
    def route() -> ChatResponse:
        return an_answer()

    assert got(route).json() == WHOLE


def test_a_route_without_annotation_returns_a_result() -> None:
    def route():  # type: ignore[no-untyped-def]
        return an_answer()

    assert got(route).json() == WHOLE


def test_a_route_returns_a_result_within_other_data() -> None:
    def route() -> dict[str, Any]:
        return {"answers": [an_answer()]}

    assert got(route).json() == {"answers": [WHOLE]}


def test_a_route_returns_a_list_of_results() -> None:
    def route() -> list[ChatResponse]:
        return [an_answer()]

    def listed() -> ListResult[ModelInfo]:
        return ListResult([ModelInfo(id="m")], meta=meta())

    def raw() -> DictResult[Any]:
        return DictResult({"status": "ready"}, meta=meta())

    assert got(route).json() == [WHOLE]
    assert got(listed).json()[0]["id"] == "m"
    assert got(raw).json() == {"status": "ready"}


def test_a_route_makes_a_result_of_a_dict() -> None:
    def route() -> ChatResponse:
        return GIVEN  # type: ignore[return-value]

    assert got(route).json() == WHOLE


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"response_model_exclude_unset": True}, GIVEN),
        ({"response_model_exclude_defaults": True}, GIVEN),
        ({"response_model_exclude_none": True}, {k: v for k, v in WHOLE.items() if v is not None}),
        ({"response_model_include": {"content"}}, {"content": "c"}),
        ({"response_model_exclude": {"usage"}}, {k: v for k, v in WHOLE.items() if k != "usage"}),
    ],
    ids=str,
)
def test_a_route_follows_fastapis_response_model_options(options: dict[str, Any], expected: Any) -> None:
    assert got(an_answer, response_model=ChatResponse, **options).json() == expected


def test_a_route_for_a_key_without_its_secret_does_not_show_the_secret() -> None:
    def route() -> ApiKeyInfo:
        return a_key()

    def routes() -> list[ApiKeyInfo]:
        return [a_key()]

    assert "secret" not in got(route).text
    assert "secret" not in got(routes).text
    assert got(a_key, response_model=ApiKeyCreated).json()["api_key"] == "llmg_secret"


def test_a_route_of_several_types_returns_the_one_it_has() -> None:
    assert got(an_answer, response_model=ApiKeyCreated | ChatResponse).json() == WHOLE


def test_a_request_and_a_message_are_bodies_of_a_route() -> None:
    def route(request: ChatRequest) -> ChatRequest:
        assert isinstance(request, ChatRequest)
        assert isinstance(request.messages[0], Message)
        return request

    def several(message: Message, usage: Usage) -> list[Any]:
        return [message, usage]

    answer = posted(route, HELLO | {"temperature": 1})
    assert answer.status_code == 200
    assert answer.json().items() >= (HELLO | {"temperature": 1.0, "seed": None}).items()
    body = {"message": {"role": "user", "content": "x"}, "usage": {"total_tokens": "5"}}
    assert posted(several, body).json()[1]["total_tokens"] == 5


@pytest.mark.parametrize(
    ("body", "kind", "location"),
    [
        ({**HELLO, "temperature": 3}, "less_than_equal", ["temperature"]),
        ({**HELLO, "max_tokens": 0}, "greater_than_equal", ["max_tokens"]),
        ({**HELLO, "model": "m" * 129}, "string_pattern_mismatch", ["model"]),
        ({**HELLO, "model": "m\n"}, "string_pattern_mismatch", ["model"]),
        ({**HELLO, "fallback_models": ["m"] * 6}, "too_long", ["fallback_models"]),
        ({**HELLO, "messages": "x"}, "list_type", ["messages"]),
        ({**HELLO, "messages": []}, "too_short", ["messages"]),
        ({**HELLO, "messages": [{"role": "me", "content": "x"}]}, "literal_error", ["messages", 0, "role"]),
        ({"messages": HELLO["messages"]}, "missing", ["model"]),
    ],
)
def test_a_bad_body_is_a_422_that_names_the_place(body: Any, kind: str, location: list[Any]) -> None:
    def route(request: ChatRequest) -> ChatRequest:
        return request

    answer = posted(route, body)
    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert (problem["type"], problem["loc"]) == (kind, ["body", *location])


def test_the_schema_of_a_fastapi_app_names_omnigate_types() -> None:
    app = fastapi.FastAPI()

    @app.post("/")
    def route(request: Annotated[ChatRequest, fastapi.Body()]) -> ChatResponse:
        raise NotImplementedError

    @app.get("/orgs")
    def orgs() -> list[OrgInfo]:
        raise NotImplementedError

    schemas = asked(app, path="/openapi.json").json()["components"]["schemas"]
    assert {"ChatRequest", "ChatResponse", "Message", "OrgInfo", "Usage"} <= schemas.keys()
    assert schemas["ChatResponse"]["properties"]["usage"] == {"$ref": "#/components/schemas/Usage"}
    assert schemas["ChatRequest"]["properties"]["temperature"]["anyOf"][0]["maximum"] == 2
    assert schemas["OrgInfo"]["properties"]["daily_budget"]["type"] == "string"


def test_omnigate_types_can_be_fields_of_a_pydantic_model() -> None:
    report = Report(
        usage={"total_tokens": "3"},  # type: ignore[arg-type]
        messages=[Message(role="user", content="x")],
        answer=an_answer(),
        anything=[an_answer()],
    )
    assert report.usage == Usage(total_tokens=3)
    assert report.answer is not None
    dumped = report.model_dump()
    assert dumped["answer"] == WHOLE
    assert dumped["messages"] == [{"role": "user", "content": "x"}]
    assert (
        report.model_dump_json(include={"anything"}) == '{"anything":[' + an_answer().model_dump_json() + "]}"
    )
    assert Report.model_validate_json(report.model_dump_json()).answer == report.answer
    assert report.model_copy(deep=True) == report


def test_a_pydantic_model_selects_within_omnigate_types() -> None:
    report = Report(usage=Usage(total_tokens=3), messages=[Message(role="user", content=c) for c in "ab"])
    chosen = report.model_dump(include={"usage": {"total_tokens"}, "messages": {-1: {"content"}}})
    assert chosen == {"usage": {"total_tokens": 3}, "messages": [{"content": "b"}]}
    assert report.model_dump(exclude_unset=True)["usage"] == {"total_tokens": 3}


def test_a_pydantic_model_keeps_meta_and_which_fields_were_given() -> None:
    answer = an_answer()
    answer._meta = meta()
    report = Report(usage=Usage(), answer=answer)
    assert report.answer is answer
    assert Report.model_validate({"usage": {"total_tokens": 1}}).usage.model_fields_set == {"total_tokens"}


def test_a_pydantic_error_names_the_field_of_an_omnigate_type() -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        Report.model_validate({"usage": {"total_tokens": "many"}})
    (problem,) = caught.value.errors()
    assert (problem["type"], problem["loc"]) == ("int_parsing", ("usage", "total_tokens"))


def test_results_that_are_lists_and_dicts_are_fields_of_pydantic_models() -> None:
    class Page(pydantic.BaseModel):
        models: ListResult[ModelInfo]
        health: DictResult[Any]

    models = ListResult([ModelInfo(id="m")], meta=meta())
    page = Page(models=models, health=DictResult({"status": "ok"}, meta=meta()))
    assert page.model_dump()["models"][0]["id"] == "m"
    assert page.models[0] is models[0]
    with pytest.raises(pydantic.ValidationError):
        Page.model_validate({"models": [{}], "health": {}})


def test_a_retry_policy_is_a_field_of_a_pydantic_model() -> None:
    class Settings(pydantic.BaseModel):
        retry: RetryConfig = RetryConfig()

    settings = Settings.model_validate({"retry": {"max_retries": 5, "retry_statuses": [503]}})
    assert settings.retry == RetryConfig(max_retries=5, retry_statuses=settings.retry.retry_statuses)
    assert 503 in settings.retry.retry_statuses
    with pytest.raises(pydantic.ValidationError, match="jitter must be"):
        Settings.model_validate({"retry": {"jitter": 2}})


def test_a_value_that_pydantic_did_not_validate_is_dumped_with_a_warning() -> None:
    report = Report.model_construct(usage={"total_tokens": 3})
    with pytest.warns(UserWarning, match="Expected|expected"):
        assert report.model_dump()["usage"] == {"total_tokens": 3}


def test_pydantic_refuses_what_the_constructor_refuses() -> None:
    adapter = pydantic.TypeAdapter(ChatRequest)
    for fields in ({**HELLO, "seed": 2**64}, {**HELLO, "model": ""}, {**HELLO, "top_p": "nan"}):
        with pytest.raises(pydantic.ValidationError):
            adapter.validate_python(fields)
        with pytest.raises(InvalidArgumentError):
            ChatRequest(**fields)


def test_pydantic_is_not_imported_until_it_asks() -> None:
    program = (
        "import sys, omnigate\n"
        "answer = omnigate.ChatResponse(id='1', provider='p', model='m', content='c')\n"
        "answer.model_dump_json(); answer.model_json_schema(); answer.model_fields; answer.model_copy(deep=True)\n"
        "assert not any(name.startswith('pydantic') for name in sys.modules)\n"
        "sys.modules['pydantic'] = None\n"
        "assert not hasattr(answer, '__pydantic_serializer__')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
