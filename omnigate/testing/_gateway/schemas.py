"""The request bodies of the local gateway, and the 422 for invalid ones.

Like the real gateway it validates with pydantic, so that the errors are identical.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import Field
from starlette.requests import Request

M = TypeVar("M", bound=pydantic.BaseModel)


class BadRequestError(Exception):
    """A request to answer with an error; `detail` goes into its body."""

    def __init__(self, status: int, detail: Any, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail
        self.headers: dict[str, str] = headers or {}


class ChatMessage(pydantic.BaseModel):
    """A message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatBody(pydantic.BaseModel):
    """The body of `POST /v1/chat`."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0.0, le=2.0)
    stream: bool = False
    top_p: float | None = Field(default=None, ge=0.0, le=1.0)
    stop: str | list[str] | None = None
    presence_penalty: float | None = Field(default=None, ge=-2.0, le=2.0)
    frequency_penalty: float | None = Field(default=None, ge=-2.0, le=2.0)
    seed: int | None = None
    fallback_models: list[str] | None = Field(default=None, max_length=5)
    cache: bool | None = None


class StreamOptionsBody(pydantic.BaseModel):
    """OpenAI's `stream_options`."""

    include_usage: bool = False


class CompletionMessage(pydantic.BaseModel):
    """A message of a completion; unsupported content is rejected later, in OpenAI's envelope."""

    role: str
    content: Any = None


class CompletionBody(pydantic.BaseModel):
    """The body of `POST /v1/chat/completions`."""

    model: str
    messages: list[CompletionMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0.0, le=2.0)
    top_p: float | None = Field(default=None, ge=0.0, le=1.0)
    n: int | None = None
    stream: bool = False
    stream_options: StreamOptionsBody | None = None


class SignupBody(pydantic.BaseModel):
    """The body of `POST /v1/signup`."""

    email: str = Field(min_length=3, max_length=255)
    org_name: str | None = Field(default=None, max_length=255)
    project_name: str = Field(default="Default", max_length=255)


class ProviderKeyBody(pydantic.BaseModel):
    """The body of `POST /v1/keys`."""

    provider: Literal["openai", "anthropic", "gemini", "azure"]
    api_key: str = Field(min_length=8)
    meta: dict[str, Any] | None = None


class ApiKeyBody(pydantic.BaseModel):
    """The body of `POST /v1/keys/api`."""

    name: str = Field(min_length=1, max_length=255)


Amount = Annotated[Decimal, Field(ge=0)]


class OrgBody(pydantic.BaseModel):
    """The body of `POST /v1/admin/orgs`."""

    name: str = Field(min_length=1, max_length=255)
    daily_budget: Amount = Decimal(0)
    monthly_budget: Amount = Decimal(0)


class ProjectBody(pydantic.BaseModel):
    """The body of `POST /v1/admin/projects`."""

    org_id: str
    name: str = Field(min_length=1, max_length=255)
    daily_budget: Amount = Decimal(0)
    monthly_budget: Amount = Decimal(0)
    rate_limit_per_min: int = Field(default=60, ge=1)


async def read_json(request: Request) -> Any:
    """Return the parsed body, or plain text if the content type is not JSON.

    Raises:
        BadRequestError: it is not valid JSON, or not text.
    """
    body = await request.body()
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if not body:
        return None
    try:
        text = body.decode()
        return json.loads(text) if kind.endswith("json") else text
    except UnicodeDecodeError:
        raise BadRequestError(400, "There was an error parsing the body") from None
    except json.JSONDecodeError as error:
        detail = {
            "type": "json_invalid",
            "loc": ["body", error.pos],
            "msg": "JSON decode error",
            "input": {},
            "ctx": {"error": error.msg},
        }
        raise BadRequestError(422, [detail]) from None
    except RecursionError:
        raise BadRequestError(400, "There was an error parsing the body") from None


def validate(kind: type[M], body: Any) -> M:
    """Return the body as `kind`.

    Raises:
        BadRequestError: 422, it is invalid.
    """
    if body is None:
        missing = {"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}
        raise BadRequestError(422, [missing])
    try:
        return kind.model_validate(body)
    except pydantic.ValidationError as error:
        details: list[Any] = json.loads(error.json(include_url=False))
        raise BadRequestError(422, [{**item, "loc": ["body", *item["loc"]]} for item in details]) from None
