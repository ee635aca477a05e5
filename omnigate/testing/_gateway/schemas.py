"""The request bodies of the local gateway, and the 422 for invalid ones.

Like the real gateway it validates with pydantic, so that the errors are identical.
"""

from __future__ import annotations

import json
import uuid
from decimal import Decimal
from email.message import Message
from typing import Annotated, Any, Final, Literal, TypeVar

import pydantic
from pydantic import Field
from starlette.requests import Request

from omnigate.testing._gateway.answers import BadRequestError, UnhandledError

M = TypeVar("M", bound=pydantic.BaseModel)


class ChatMessage(pydantic.BaseModel):
    """A message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


MaxTokens = Annotated[int | None, Field(ge=1)]
Temperature = Annotated[float | None, Field(ge=0, le=2)]
TopP = Annotated[float | None, Field(ge=0, le=1)]
Penalty = Annotated[float | None, Field(ge=-2, le=2)]


class ChatBody(pydantic.BaseModel):
    """The body of `POST /v1/chat`."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: MaxTokens = None
    temperature: Temperature = None
    stream: bool = False
    top_p: TopP = None
    stop: str | list[str] | None = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    seed: int | None = None
    fallback_models: list[str] = Field(default=[], max_length=5)
    cache: bool | None = None


class CompletionMessage(pydantic.BaseModel):
    """A message of a completion; unsupported content is rejected later, in OpenAI's envelope."""

    role: str
    content: str | list[Any] | None = None
    name: str | None = None


class CompletionBody(pydantic.BaseModel):
    """The body of `POST /v1/chat/completions`. Fields of OpenAI's that are not here are ignored."""

    model: str
    messages: list[CompletionMessage] = Field(min_length=1)
    max_tokens: MaxTokens = None
    max_completion_tokens: MaxTokens = None
    temperature: Temperature = None
    top_p: TopP = None
    stop: str | list[str] | None = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    seed: int | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    user: str | None = None
    n: int | None = Field(default=None, ge=1)


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

    org_id: uuid.UUID
    name: str = Field(min_length=1, max_length=255)
    daily_budget: Amount = Decimal(0)
    monthly_budget: Amount = Decimal(0)
    rate_limit_per_min: int = Field(default=60, ge=1)


_UUID: Final = pydantic.TypeAdapter(uuid.UUID)

_MAX_AMOUNT: Final = Decimal(10) ** 8

_MAX_INTEGER: Final = 2**31


async def read_json(request: Request) -> Any:
    """Return the parsed body: None if there is none, bytes if it is not declared as JSON.

    Raises:
        BadRequestError: 422 if it is not JSON, 400 if it cannot be decoded.
    """
    body = await request.body()
    if not body:
        return None
    if not _is_json(request.headers.get("content-type")):
        return body
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        detail = {
            "type": "json_invalid",
            "loc": ["body", error.pos],
            "msg": "JSON decode error",
            "input": {},
            "ctx": {"error": error.msg},
        }
        raise BadRequestError(422, [detail]) from None
    except (ValueError, RecursionError):  # not Unicode, an integer of over 4,300 digits, nested too deeply
        raise BadRequestError(400, "There was an error parsing the body") from None


def validate(kind: type[M], body: Any) -> M:
    """Return the body as `kind`.

    Raises:
        BadRequestError: 422, it is invalid.
    """
    if body is None:  # `null` counts as no body
        missing = {"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}
        raise BadRequestError(422, [missing])
    try:
        # from_attributes, since FastAPI sets it: it decides the error for a body that is not an object.
        return kind.model_validate(body, from_attributes=True)
    except pydantic.ValidationError as error:
        raise _refused(error, "body") from None


def check_uuid(value: str, *place: str) -> str:
    """Return a UUID in canonical form.

    Raises:
        BadRequestError: 422, it is not a UUID.
    """
    try:
        return str(_UUID.validate_python(value))
    except pydantic.ValidationError as error:
        raise _refused(error, *place) from None


def check_storable(*values: str | int | Decimal | None) -> None:
    """Check that these values fit the real gateway's database.

    Raises:
        UnhandledError: NUL in a text, or a number that is too large.
    """
    for value in values:
        if isinstance(value, str):
            storable = "\0" not in value
        elif isinstance(value, Decimal):
            storable = value < _MAX_AMOUNT
        else:
            storable = value is None or value < _MAX_INTEGER
        if not storable:
            raise UnhandledError


def _refused(error: pydantic.ValidationError, *place: str) -> BadRequestError:
    return BadRequestError(
        422, [{**item, "loc": [*place, *item["loc"]]} for item in error.errors(include_url=False)]
    )


def _is_json(content_type: str | None) -> bool:
    if not content_type:
        return True
    message = Message()
    message["content-type"] = content_type
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (
        subtype == "json" or subtype.endswith("+json")
    )
