"""The types of requests and results: requests are validated, unknown fields of results ignored.

The limits are those of `docs/protocol.md`. Some of them save money: requests that the gateway would fail
with a 500 *after* paying the provider are rejected here, before anything is sent.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Generic, Literal, TypeAlias, cast, get_args

import msgspec

from omnigate import _homes
from omnigate._wire.checks import BE_BOOL, Range, one_of, refusal
from omnigate._wire.results import ParsedT_co, Result
from omnigate._wire.structs import WireStruct, decoder_for, encode
from omnigate._wire.values import Integer, Number, is_sequence
from omnigate.exceptions import InvalidArgumentError

__all__ = [
    "ApiKeyCreated",
    "ApiKeyInfo",
    "ChatRequest",
    "ChatResponse",
    "MeResponse",
    "Message",
    "MessagesInput",
    "MetricsBreakdown",
    "MetricsResponse",
    "MetricsTimePoint",
    "MetricsTotals",
    "ModelInfo",
    "ModelPricing",
    "OrgInfo",
    "ProjectCreated",
    "ProjectInfo",
    "Role",
    "SignupResponse",
    "StreamChunk",
    "Usage",
    "coerce_messages",
]

Role: TypeAlias = Literal["system", "user", "assistant"]

# The gateway echoes the name in a Latin-1 header and stores 128 characters (docs/protocol.md, "Errors", 500).
_MODEL_PATTERN: Final = r"[\x20-\x7e\xa0-\xff]{1,128}"

# Only the JSON schema has the pattern: `_is_plain` is four times as fast for the usual names.
ModelName: TypeAlias = Annotated[
    str, msgspec.Meta(min_length=1, max_length=128, extra_json_schema={"pattern": f"^{_MODEL_PATTERN}$"})
]

_MODEL_NAME: Final = re.compile(_MODEL_PATTERN)

_Int64: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

# JSON numbers are finite, but decoders that accept numbers in strings also accept "nan" and "inf".
_Finite: TypeAlias = Annotated[float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)]

_TOKENS: Final = Range(minimum=1, is_integer=True)

_TEMPERATURES: Final = Range(minimum=0, maximum=2)

_PROBABILITIES: Final = Range(minimum=0, maximum=1)

_PENALTIES: Final = Range(minimum=-2, maximum=2)

_MODEL: Final = "text of 1 to 128 printable Latin-1 characters"

_BE_MESSAGE: Final = "be a Message or a dict with role and content"


class Message(WireStruct, kw_only=True, gc=False):
    """One message of a conversation. Raises `InvalidArgumentError` (a `ValueError`) if invalid.

    Attributes:
        role: "system", "user" or "assistant".
        content: the text.

    """

    _must: ClassVar[Mapping[str, str]] = {"role": f"be {one_of(get_args(Role))}", "content": "be text"}

    role: Role
    content: str

    def _is_plain(self) -> bool:
        return type(self.content) is str


MessagesInput: TypeAlias = str | Message | Mapping[str, Any] | Sequence[Message | Mapping[str, Any]]


class ChatRequest(WireStruct, kw_only=True, gc=False, omit_defaults=True):
    """A chat request. Raises `InvalidArgumentError` (a `ValueError`) if invalid.

    Attributes:
        model: name of the model, 1 to 128 printable Latin-1 characters.
        messages: at least one message.
        max_tokens: at least 1.
        temperature: 0 to 2.
        stream: whether the answer is streamed.
        top_p: 0 to 1.
        stop: one stop sequence, or a list of them.
        presence_penalty: -2 to 2.
        frequency_penalty: -2 to 2.
        seed: a signed 64-bit integer.
        fallback_models: at most five models to try when the first fails; not for streams.
        cache: opt in to or out of the gateway's cache; effective only with temperature 0, not for streams.

    """

    _refuse_unknown: ClassVar[bool] = True
    _must: ClassVar[Mapping[str, str]] = {
        **Message._must,
        "model": f"be {_MODEL}",
        "messages": "be text, a message, or a list of messages",
        "messages[]": _BE_MESSAGE,
        "max_tokens": f"be {_TOKENS}",
        "temperature": f"be {_TEMPERATURES}",
        "stream": BE_BOOL,
        "top_p": f"be {_PROBABILITIES}",
        "stop": "be text or a list of texts",
        "stop[]": "be text",
        "presence_penalty": f"be {_PENALTIES}",
        "frequency_penalty": f"be {_PENALTIES}",
        "seed": "be an integer of 64 bits",
        "fallback_models": "be a list of models",
        "fallback_models[]": f"be {_MODEL}",
        "cache": BE_BOOL,
    }

    @classmethod
    def _prepare(cls, arguments: dict[str, Any]) -> None:
        messages: Any = arguments.get("messages")
        if type(messages) is str:
            arguments["messages"] = [{"role": "user", "content": messages}]
        elif type(messages) is not list and isinstance(messages, (str, Message, Mapping)):
            arguments["messages"] = coerce_messages(cast("MessagesInput", messages))

    def _is_plain(self) -> bool:
        for message in self.messages:
            if type(message.content) is not str:
                return False
        model = self.model
        if type(model) is not str or not model.isascii() or not model.isprintable():
            return False
        if self.stop is None and self.fallback_models is None:
            return True
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return all(type(text) is str for text in stops) and all(
            type(name) is str and _MODEL_NAME.fullmatch(name) for name in self.fallback_models or ()
        )

    def _check(self) -> None:
        if not _MODEL_NAME.fullmatch(self.model):
            raise msgspec.ValidationError(f"Expected {_MODEL} - at `$.model`")
        for index, model in enumerate(self.fallback_models or ()):
            if not _MODEL_NAME.fullmatch(model):
                raise msgspec.ValidationError(f"Expected {_MODEL} - at `$.fallback_models[{index}]`")

    if TYPE_CHECKING:  # the constructor converts; at runtime it is that of all structs

        def __init__(
            self,
            *,
            model: str,
            messages: MessagesInput,
            max_tokens: Integer | None = None,
            temperature: Number | None = None,
            stream: bool = False,
            top_p: Number | None = None,
            stop: str | Sequence[str] | None = None,
            presence_penalty: Number | None = None,
            frequency_penalty: Number | None = None,
            seed: Integer | None = None,
            fallback_models: Sequence[str] | None = None,
            cache: bool | None = None,
        ) -> None: ...

    model: ModelName
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    max_tokens: Annotated[int, _TOKENS.meta] | None = None
    temperature: Annotated[float, _TEMPERATURES.meta] | None = None
    stream: bool = False
    top_p: Annotated[float, _PROBABILITIES.meta] | None = None
    stop: str | list[str] | None = None
    presence_penalty: Annotated[float, _PENALTIES.meta] | None = None
    frequency_penalty: Annotated[float, _PENALTIES.meta] | None = None
    seed: _Int64 | None = None
    fallback_models: Annotated[list[ModelName], msgspec.Meta(max_length=5)] | None = None
    cache: bool | None = None


class StreamOptions(WireStruct, kw_only=True, gc=False):
    """OpenAI's `stream_options`."""

    include_usage: bool


class CompletionRequest(ChatRequest, kw_only=True, gc=False, omit_defaults=True):
    """A chat request in OpenAI's format."""

    stream_options: StreamOptions | None = None

    @classmethod
    def _prepare(cls, arguments: dict[str, Any]) -> None:
        messages = arguments.get("messages")
        if is_sequence(messages):
            arguments["messages"] = [_without_developer(item) for item in cast("Sequence[Any]", messages)]
        elif isinstance(messages, Mapping):
            arguments["messages"] = _without_developer(messages)
        super()._prepare(arguments)


def encode_request(request: ChatRequest) -> bytes:
    """Return a chat request as JSON that always has `stream`, as version 0.1.0 sent it.

    Only the request sent has it: the digest by which a journal recognises a request leaves out defaults.
    """
    content = encode(request)
    return content if request.stream else content[:-1] + b',"stream":false}'


class Usage(WireStruct, kw_only=True, gc=False):
    """Token counts of a call."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class ChatResponse(Result, Generic[ParsedT_co], kw_only=True, gc=False):
    """A complete answer; `ChatResponse[City]` is one to a call with `response_type=City`.

    Attributes:
        id: the provider's id; not unique, a cache hit repeats it. `meta.request_id` identifies the call.
        provider: the provider that answered.
        model: the model that answered.
        content: the text.
        usage: token counts, with those of the answers in `rejected`.
        cost_usd: cost in USD, with that of the answers in `rejected`; 0 for a cache hit.
        finish_reason: why the model stopped ("stop", "length", …).
        cached: whether the gateway's cache answered.
        fallback_used: whether one of `fallback_models` answered.
        latency_ms: milliseconds the provider took.

    """

    id: str
    provider: str
    model: str
    content: str
    usage: Usage = msgspec.field(default_factory=Usage)
    cost_usd: _Finite = 0.0
    finish_reason: str | None = None
    cached: bool = False
    fallback_used: bool = False
    latency_ms: int = 0

    @property
    def parsed(self) -> ParsedT_co:
        """The text as the call's `response_type`; None if the call had none."""
        return cast("ParsedT_co", self._structured[0] if hasattr(self, "_structured") else None)

    @property
    def rejected(self) -> "tuple[ChatResponse, ...]":
        """The earlier answers of the same call, which did not fit its `response_type`."""
        return self._structured[1] if hasattr(self, "_structured") else ()


class StreamChunk(WireStruct, kw_only=True, gc=False):
    """A piece of a stream.

    Attributes:
        text: the text, empty in a chunk that only ends the stream.
        request_id: the gateway's id for the call.
        usage: token counts, in the last chunk of a stream opened with `include_usage=True`.
        finish_reason: why the model stopped, in that same chunk.

    """

    text: str = ""
    request_id: str | None = None
    usage: Usage | None = None
    finish_reason: str | None = None


class SignupResponse(Result, kw_only=True, gc=False):
    """A new account. The `api_key` is shown only this once; its repr is masked."""

    org_id: str
    project_id: str
    email: str
    api_key: str
    message: str = ""


class MeResponse(Result, kw_only=True, gc=False):
    """The project that the key belongs to. Budgets in USD: 0 for unlimited, None from older gateways."""

    project_id: str
    org_id: str
    project_name: str
    key_prefix: str
    rate_limit_per_min: int
    daily_budget: Decimal | None = None
    monthly_budget: Decimal | None = None
    configured_providers: list[str] = msgspec.field(default_factory=list[str])


class ApiKeyInfo(Result, kw_only=True, gc=False):
    """A gateway key as listed, without the key itself."""

    id: str
    name: str
    key_prefix: str
    created_at: datetime
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None


class ApiKeyCreated(ApiKeyInfo, kw_only=True, gc=False):
    """A new gateway key. The `api_key` is shown only this once; its repr is masked."""

    api_key: str


class ModelPricing(WireStruct, kw_only=True, gc=False):
    """Prices in USD per 1,000 tokens."""

    input_per_1k_usd: _Finite = 0.0
    output_per_1k_usd: _Finite = 0.0


class ModelInfo(Result, kw_only=True, gc=False):
    """A model's description; `pricing` is None if unknown."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = ""
    provider: str = ""
    pricing: ModelPricing | None = None


class ModelPage(WireStruct, kw_only=True, gc=False):
    """The gateway's envelope around the list of models."""

    data: list[ModelInfo]


class MetricsTotals(WireStruct, kw_only=True, gc=False):
    """Totals over the time range; rates are 0 to 1, latencies in milliseconds."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cost_usd: _Finite = 0.0
    error_rate: _Finite = 0.0
    cache_hit_rate: _Finite = 0.0
    avg_latency_ms: _Finite = 0.0
    p50_latency_ms: _Finite | None = None
    p95_latency_ms: _Finite | None = None
    p99_latency_ms: _Finite | None = None


class MetricsBreakdown(WireStruct, kw_only=True, gc=False):
    """One group of the breakdown; rates are 0 to 1, latencies in milliseconds."""

    key: str
    requests: int = 0
    total_tokens: int = 0
    cost_usd: _Finite = 0.0
    avg_latency_ms: _Finite = 0.0
    error_rate: _Finite = 0.0


class MetricsTimePoint(WireStruct, kw_only=True, gc=False):
    """One bucket of the time series; the gateway omits empty buckets."""

    bucket: datetime
    requests: int = 0
    total_tokens: int = 0
    cost_usd: _Finite = 0.0
    error_rate: _Finite = 0.0


class MetricsResponse(Result, kw_only=True, gc=False):
    """Usage of a project or organisation over a time range."""

    scope: str
    scope_id: str
    range_from: datetime
    range_to: datetime
    group_by: str | None = None
    granularity: str
    totals: MetricsTotals = msgspec.field(default_factory=MetricsTotals)
    breakdown: list[MetricsBreakdown] = msgspec.field(default_factory=list[MetricsBreakdown])
    timeseries: list[MetricsTimePoint] = msgspec.field(default_factory=list[MetricsTimePoint])


class OrgInfo(Result, kw_only=True, gc=False):
    """An organisation; budgets in USD, 0 for unlimited."""

    id: str
    name: str
    daily_budget: Decimal
    monthly_budget: Decimal
    created_at: datetime


class ProjectInfo(Result, kw_only=True, gc=False):
    """A project; budgets in USD, 0 for unlimited."""

    id: str
    org_id: str
    name: str
    key_prefix: str
    daily_budget: Decimal
    monthly_budget: Decimal
    rate_limit_per_min: int
    created_at: datetime


class ProjectCreated(ProjectInfo, kw_only=True, gc=False):
    """A new project. The `api_key` is shown only this once; its repr is masked."""

    api_key: str


def coerce_messages(messages: MessagesInput) -> list[Message]:
    """Return `messages` (text, one message, or a sequence of messages; dicts too) as a list of `Message`.

    Raises:
        InvalidArgumentError: a message is invalid (a `ValueError`).
        InvalidArgumentTypeError: `messages` is of another type (also a `TypeError`).

    """
    if isinstance(messages, str):
        return [Message(role="user", content=messages)]
    if isinstance(messages, Message):
        return [messages]
    if isinstance(messages, Mapping) and all(isinstance(name, str) for name in cast("Any", messages)):
        return [Message.model_validate(messages)]
    if is_sequence(messages):
        return [_coerce_message(item, index) for index, item in enumerate(cast("Sequence[Any]", messages))]
    raise refusal("messages", messages, ChatRequest._must["messages"], is_type=True)


def _without_developer(item: Any) -> Any:
    """Return a message with the role "developer", OpenAI's newer name for it, replaced by "system".

    See docs/protocol.md, "OpenAI-compatible".
    """
    if isinstance(item, Mapping):
        message = cast("Mapping[str, Any]", item)
        return {**message, "role": "system"} if message.get("role") == "developer" else message
    return item


def _coerce_message(item: Any, index: int) -> Message:
    if isinstance(item, Message):
        return item
    if not isinstance(item, Mapping):
        raise refusal(f"messages[{index}]", item, _BE_MESSAGE, is_type=True)
    try:
        return Message.model_validate(cast("Mapping[str, Any]", item))
    except InvalidArgumentError as error:
        raise type(error)(f"messages[{index}].{error}") from None


# Build all decoders at import, so that the first call does not pay for it.
for _kind in (
    ChatResponse, SignupResponse, MeResponse, ApiKeyCreated, ModelPage | list[ModelInfo], ModelInfo,
    MetricsResponse, OrgInfo, ProjectCreated, list[ApiKeyInfo], list[OrgInfo], list[ProjectInfo],
    dict[str, Any],
):  # fmt: skip
    decoder_for(_kind)


_homes.settle(__name__)
