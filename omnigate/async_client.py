"""The async client: one short method per endpoint, with only what is specific to it.

It is bound to no event loop before the first call, and never owns a task.
"""

import os
import ssl
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal, Protocol, TypeAlias, Unpack, cast, overload

from omnigate import _homes
from omnigate._batch.answers import Answers
from omnigate._batch.batch import Batch
from omnigate._batch.enough import StopAfterFailures
from omnigate._batch.estimate import Census, Estimate
from omnigate._batch.items import BatchSource
from omnigate._batch.options import (
    MAX_WAIT_SECONDS,
    STOP_ON,
    BatchOptions,
    BatchSettings,
    StopOn,
)
from omnigate._batch.outcomes import Outcome
from omnigate._batch.pace.gate import Gates
from omnigate._batch.pace.link import PacerLink
from omnigate._batch.progress import ProgressArgument
from omnigate._batch.recipe import PromptArgument, Recipe
from omnigate._calls.asking import fetch_copies, fetch_fitting
from omnigate._calls.base_client import BaseAsyncClient
from omnigate._calls.racing import race
from omnigate._calls.retry import RetryConfig
from omnigate._calls.session import Session
from omnigate._calls.structured import RESPONSE_RETRIES, Asks, check_response_type
from omnigate._streams.chat import ChatStream, CompletionStream
from omnigate._transport.carrier import MAX_RESPONSE_BYTES
from omnigate._wire import endpoints
from omnigate._wire.arguments import (
    Timeout,
    check_id,
    check_segment,
    metrics_query,
)
from omnigate._wire.checks import check_bool, check_choice, check_integer, check_seconds, check_text, refusal
from omnigate._wire.options import (
    CallOptions,
    ChatDefaults,
    ChatStreamOptions,
    SamplingOptions,
    check_known,
    split_options,
)
from omnigate._wire.results import DictResult, ListResult, Parsed, list_with_meta
from omnigate._wire.structs import construct
from omnigate._wire.values import Id, Integer, Number, is_sequence, plain
from omnigate.exceptions import GatewayError, JournalError
from omnigate.models import (
    ApiKeyCreated,
    ApiKeyInfo,
    ChatRequest,
    ChatResponse,
    CompletionRequest,
    MeResponse,
    MessagesInput,
    MetricsResponse,
    ModelInfo,
    ModelPage,
    SignupResponse,
    StreamChunk,
)

_NOT_ESTIMATED: Final = frozenset({"journal", "progress"})
"""Arguments of a batch that `estimate` ignores."""

_OF_SAMPLES: Final = frozenset(
    {"max_concurrency", "max_wait_seconds", "max_cost_usd", "max_tokens_total", "max_seconds", "user_id"}
    | {"response_retries", "tokens_per_minute", "pacer"}
)
"""Arguments of a batch that apply to a sample of it; the others are part of its requests by then."""


class _AsyncTransport(Protocol):
    """An async transport of httpx or httpx2."""

    async def handle_async_request(self, request: Any, /) -> Any: ...

    async def aclose(self) -> None: ...


class _SyncTransport(Protocol):
    """A sync transport of httpx or httpx2."""

    def handle_request(self, request: Any, /) -> Any: ...

    def close(self) -> None: ...


Transport: TypeAlias = _AsyncTransport | _SyncTransport
"""A transport of httpx or httpx2, async or sync."""

_PROVIDERS: Final = ("openai", "anthropic", "gemini", "azure")


class AsyncClient(BaseAsyncClient):
    """A client of an OmniGate gateway for trio and asyncio.

    Use it with `async with`, or call `aclose()` at the end. Any number of tasks may share it. Once its event
    loop has ended, it may be used in another.

    Args:
        api_key: the gateway key (`llmg_…`); else `$OMNIGATE_API_KEY`. `signup` and `health` need none.
        base_url: the gateway's address, `http(s)://host[:port][/prefix]`; else `$OMNIGATE_BASE_URL`, else
            "http://localhost:8000". Sending a key to another machine over plain `http://` warns
            (`PlaintextKeyWarning`), once per client without a `transport`.
        user_id: the end user to attribute calls to, at most 255 Latin-1 characters; "" for none.
        timeout: seconds for each of connecting, writing, reading and waiting for a connection; an
            `httpx.Timeout` sets them separately; None for no limit.
        retries: how many times to retry a failed request; ignored if `retry_config` is given.
        retry_config: the whole retry policy.
        headers: headers to send with every request; None leaves out one that the client would send. A gateway
            key in them (`x-api-key`, or `Authorization: Bearer …`) is used in place of `$OMNIGATE_API_KEY`.
        transport: any httpx transport, async or sync; closed with the client. The default is an
            `AnyIOTransport`; or httpx's own, if `HTTP_PROXY`, `HTTPS_PROXY` or `ALL_PROXY` names a proxy for
            `base_url` and `NO_PROXY` does not exempt it. Loopback addresses never go through a proxy.
        verify: whether to verify TLS certificates, or the `ssl.SSLContext` to use.
        max_response_bytes: the largest response to accept, in bytes after decompression.

    Raises:
        InvalidArgumentError: an argument is not allowed (a `ValueError`).

    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        user_id: Id | None = None,
        timeout: Timeout = 60.0,
        retries: Integer = 2,
        retry_config: RetryConfig | None = None,
        headers: Mapping[str, str | None] | None = None,
        transport: Transport | None = None,
        verify: bool | ssl.SSLContext = True,
        max_response_bytes: Integer = MAX_RESPONSE_BYTES,
    ) -> None:
        self._session = Session(
            base_url=base_url,
            key_header="x-api-key",
            key=api_key,
            key_variable="OMNIGATE_API_KEY",
            user_id=user_id,
            timeout=timeout,
            retries=retries,
            retry_config=retry_config,
            headers=headers,
            transport=transport,
            verify=verify,
            max_response_bytes=max_response_bytes,
        )
        self._gates = Gates(is_shared=transport is None)

    @property
    def api_key(self) -> str | None:
        """The gateway key; assign to it to change it for later calls."""
        return self._session.configuration.key

    @api_key.setter
    def api_key(self, value: str | None) -> None:
        self._session.configuration.key = value

    @property
    def user_id(self) -> str | None:
        """The end user calls are attributed to, unless they name another."""
        return self._session.configuration.user_id

    @user_id.setter
    def user_id(self, value: str | None) -> None:
        self._session.configuration.user_id = value

    async def chat(
        self,
        *,
        model: str,
        messages: MessagesInput,
        max_tokens: Integer | None = None,
        temperature: Number | None = None,
        user_id: Id | None = None,
        top_p: Number | None = None,
        stop: str | Sequence[str] | None = None,
        presence_penalty: Number | None = None,
        frequency_penalty: Number | None = None,
        seed: Integer | None = None,
        fallback_models: Sequence[str] | None = None,
        cache: bool | None = None,
        hedge_after: Number | None = None,
        response_type: type[Parsed] | None = None,
        response_retries: Integer = RESPONSE_RETRIES,
        **options: Unpack[CallOptions],
    ) -> ChatResponse[Parsed]:
        """Return a model's complete response (`POST /v1/chat`).

        Args:
            model: the model's name; its prefix selects the provider (`gpt-…`, `claude-…`, `gemini-…`, …).
            messages: text, a message, or a sequence of messages; a message may be a dict with `role` and
                `content`.
            max_tokens: the most tokens to generate, at least 1.
            temperature: 0 to 2.
            user_id: the end user, overriding the client's; "" for none.
            top_p: 0 to 1.
            stop: one or more strings at which the model stops.
            presence_penalty: -2 to 2.
            frequency_penalty: -2 to 2.
            seed: a signed 64-bit integer.
            fallback_models: up to five models to try if the first fails.
            cache: whether to use the gateway's cache; only takes effect with `temperature=0`.
            hedge_after: seconds to wait for a response before sending a second copy of the request; the
                first response wins, and the other call is cancelled. Reduces tail latency (Dean and
                Barroso, "The Tail at Scale", CACM 56 (2), 2013); the 95th percentile of the latency is a
                good value. Off by default, because the gateway bills both.
            response_type: a type that the response has to fit: a msgspec Struct, a dataclass, a TypedDict, a
                pydantic model, or a list of them. Its JSON schema is added to the system message, and the
                response's text, also within a fenced block or prose, is decoded to `response.parsed`.
            response_retries: how often to ask again, with the response and what is wrong with it, if it does
                not fit. Every response is billed; those that did not fit are in `response.rejected`.
            options: `timeout`, `deadline_seconds`, `extra_headers`; see `CallOptions`.

        Raises:
            InvalidArgumentError: an argument is not allowed; nothing was sent.
            APIError: the gateway or the provider returned an error; see its subclasses.
            ConnectionError: no response was received.
            TimeoutError: no response was received in time.
            ResponseFormatError: no response fitted `response_type`.

        """
        session = self._session
        format = None if response_type is None else check_response_type(response_type)
        retries = check_integer(response_retries, "response_retries", minimum=0)
        if hedge_after is not None:
            hedge_after = check_seconds(hedge_after, "hedge_after", otherwise=", or None")
        request = construct(
            ChatRequest,
            {
                "model": model,
                "messages": messages,
                "max_tokens": max_tokens,
                "temperature": temperature,
                "top_p": top_p,
                "stop": stop,
                "presence_penalty": presence_penalty,
                "frequency_penalty": frequency_penalty,
                "seed": seed,
                "fallback_models": fallback_models,
                "cache": cache,
            },
        )
        if format is not None:
            return await fetch_fitting(
                session,
                partial(session.prepare, endpoints.CHAT, user_id=user_id, options=options),
                Asks(request, format, retries),
                hedge_after,
            )
        call = session.prepare(endpoints.CHAT, body=request, user_id=user_id, options=options)
        del request  # it is encoded, and may be large: not held while the call waits
        if hedge_after is None:
            return cast("ChatResponse[Parsed]", await session.fetch(ChatResponse, call))
        copies = (session.fetching(ChatResponse, call), session.fetching(ChatResponse, call))
        return cast("ChatResponse[Parsed]", await fetch_copies(copies, hedge_after))

    @overload
    def chat_stream(
        self,
        *,
        model: str,
        messages: MessagesInput,
        as_chunks: Literal[False] = False,
        include_usage: bool = False,
        **options: Unpack[ChatStreamOptions],
    ) -> ChatStream[str]: ...

    @overload
    def chat_stream(
        self,
        *,
        model: str,
        messages: MessagesInput,
        as_chunks: Literal[True],
        include_usage: bool = False,
        **options: Unpack[ChatStreamOptions],
    ) -> ChatStream[StreamChunk]: ...

    @overload
    def chat_stream(
        self,
        *,
        model: str,
        messages: MessagesInput,
        as_chunks: bool,
        include_usage: bool = False,
        **options: Unpack[ChatStreamOptions],
    ) -> ChatStream[str] | ChatStream[StreamChunk]: ...

    def chat_stream(
        self,
        *,
        model: str,
        messages: MessagesInput,
        as_chunks: bool = False,
        include_usage: bool = False,
        **options: Unpack[ChatStreamOptions],
    ) -> ChatStream[str] | ChatStream[StreamChunk]:
        """Return a model's response as a stream, to use with `async with` and iterate.

        Nothing is sent until the stream is entered or iterated. The plain stream (`POST /v1/chat`) is bare
        text: it has no usage or cost, and ends early if the model's own text looks like the gateway's error
        mark. `include_usage=True` uses the OpenAI-compatible endpoint, which has neither limitation: `usage`
        and `finish_reason` are set at the end.

        Args:
            model: as in `chat`.
            messages: as in `chat`.
            as_chunks: yield `StreamChunk`s instead of `str`; with `include_usage` the last one has `usage`
                and `finish_reason`.
            include_usage: whether to use the OpenAI-compatible endpoint.
            options: sampling options (`max_tokens`, `temperature`, …), `user_id`, `timeout`,
                `deadline_seconds` (from opening to the last piece), `extra_headers`; see `ChatStreamOptions`
                and `SamplingOptions`. `fallback_models` and `cache` are rejected, because the gateway ignores
                them for streams.

        Raises:
            InvalidArgumentError: an argument is not allowed; nothing was sent.

        """
        fields, user_id, call_options = split_options(
            options, ChatStreamOptions, f"{self._session.owner}.chat_stream"
        )
        as_chunks = check_bool(as_chunks, "as_chunks")
        include_usage = check_bool(include_usage, "include_usage")
        for argument in ("fallback_models", "cache"):
            value = fields.pop(argument, None)
            if value is not None:
                must = "be None for a stream"
                raise refusal(argument, value, must, is_type=True, hint="the gateway ignores it")
        request = construct(
            CompletionRequest if include_usage else ChatRequest,
            {
                "model": model,
                "messages": messages,
                "stream": True,
                **fields,
                **_stream_options(include_usage),
            },
        )
        endpoint = endpoints.COMPLETIONS if include_usage else endpoints.CHAT
        call = self._session.prepare(endpoint, body=request, user_id=user_id, options=call_options)
        if as_chunks:
            return ChatStream(self._session, call, StreamChunk, include_usage=include_usage)
        return ChatStream(self._session, call, str, include_usage=include_usage)

    async def completions(
        self,
        *,
        model: str,
        messages: MessagesInput,
        **options: Unpack[SamplingOptions],
    ) -> DictResult[Any]:
        """Return a model's complete response in OpenAI's format, as a dict (`POST /v1/chat/completions`).

        Args:
            model: as in `chat`.
            messages: as in `chat`; roles also include "developer".
            options: sampling options (`max_tokens`, `temperature`, …), `user_id`, `timeout`,
                `deadline_seconds`, `extra_headers`; see `SamplingOptions`.

        Raises:
            InvalidArgumentError: an argument is not allowed; nothing was sent.
            APIError: the gateway or the provider returned an error; see its subclasses.
            ConnectionError: no response was received.
            TimeoutError: no response was received in time.

        """
        fields, user_id, call_options = split_options(
            options, SamplingOptions, f"{self._session.owner}.completions"
        )
        request = construct(CompletionRequest, {"model": model, "messages": messages, **fields})
        call = self._session.prepare(
            endpoints.COMPLETIONS, body=request, user_id=user_id, options=call_options
        )
        return await self._session.fetch_dict(call)

    def completions_stream(
        self,
        *,
        model: str,
        messages: MessagesInput,
        include_usage: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> CompletionStream:
        """Return a model's response as a stream of OpenAI's chunks, as dicts.

        Args:
            model: as in `chat`.
            messages: as in `completions`.
            include_usage: end with a chunk that has `usage` and no choices.
            options: sampling options (`max_tokens`, `temperature`, …), `user_id`, `timeout`,
                `deadline_seconds` (from opening to the last piece), `extra_headers`; see `SamplingOptions`.

        Raises:
            InvalidArgumentError: an argument is not allowed; nothing was sent.

        """
        fields, user_id, call_options = split_options(
            options, SamplingOptions, f"{self._session.owner}.completions_stream"
        )
        include_usage = check_bool(include_usage, "include_usage")
        request = construct(
            CompletionRequest,
            {
                "model": model,
                "messages": messages,
                "stream": True,
                **fields,
                **_stream_options(include_usage),
            },
        )
        call = self._session.prepare(
            endpoints.COMPLETIONS, body=request, user_id=user_id, options=call_options
        )
        return CompletionStream(self._session, call)

    async def models(self, **options: Unpack[CallOptions]) -> ListResult[ModelInfo]:
        """List the gateway's models (`GET /v1/models`).

        Args:
            options: see `CallOptions`.

        """
        call = self._session.prepare(endpoints.MODELS, options=options)
        page, meta = await self._session.fetch_any(ModelPage | list[ModelInfo], call)
        return list_with_meta(page.data if isinstance(page, ModelPage) else page, meta)

    async def model(self, id: str, **options: Unpack[CallOptions]) -> ModelInfo:
        """Return one model's card (`GET /v1/models/{id}`).

        Args:
            id: the model's name, which may contain slashes.
            options: see `CallOptions`.

        Raises:
            APIError: with `status_code` 404 if there is no such model.

        """
        suffix = check_segment(id, "id", slashes=True)
        return await self._session.fetch(
            ModelInfo, self._session.prepare(endpoints.MODEL, suffix=suffix, options=options)
        )

    async def metrics(
        self,
        *,
        range: str | None = None,
        start: datetime | str | None = None,
        end: datetime | str | None = None,
        group_by: str | None = None,
        granularity: str | None = None,
        **options: Unpack[CallOptions],
    ) -> MetricsResponse:
        """Return the project's usage (`GET /v1/metrics`).

        Args:
            range: "1h", "24h", "7d" or "30d" up to now; default "24h", unless `start` is given.
            start: instead of `range`: a datetime with a time zone, or ISO-8601 text with an offset.
            end: same types, after `start`; default now.
            group_by: "provider", "model", "user" or "status": fills `breakdown`, up to 100 rows.
            granularity: of `timeseries`: "minute", "hour" or "day"; default by the length of the window.
            options: see `CallOptions`.

        """
        query = metrics_query(range, start, end, group_by, granularity)
        return await self._session.fetch(
            MetricsResponse, self._session.prepare(endpoints.METRICS, query=query, options=options)
        )

    async def signup(
        self,
        *,
        email: str,
        org_name: str | None = None,
        project_name: str = "Default",
        **options: Unpack[CallOptions],
    ) -> SignupResponse:
        """Create an account and return its key, which is shown only once (`POST /v1/signup`).

        Needs no key. Never retried once sent, since that would create a second account.

        Args:
            email: 3 to 255 characters.
            org_name: at most 255 characters.
            project_name: at most 255 characters.
            options: see `CallOptions`.

        """
        body = {
            "email": check_text(email, "email", minimum=3, maximum=255),
            "project_name": check_text(project_name, "project_name", minimum=0, maximum=255),
        }
        if org_name is not None:
            body["org_name"] = check_text(org_name, "org_name", minimum=0, maximum=255)
        return await self._session.fetch(
            SignupResponse, self._session.prepare(endpoints.SIGNUP, body=body, options=options)
        )

    async def set_provider_key(
        self,
        *,
        provider: str,
        api_key: str,
        meta: Mapping[str, str] | None = None,
        **options: Unpack[CallOptions],
    ) -> None:
        """Set or replace the project's key for a provider (`POST /v1/keys`).

        Args:
            provider: "openai", "anthropic", "gemini" or "azure".
            api_key: the provider's key, at least 8 characters.
            meta: for Azure: "endpoint" (an https URL), "deployment", and optionally "api_version".
            options: see `CallOptions`.

        """
        if meta is not None and not isinstance(meta, Mapping):
            raise refusal("meta", meta, "be a dict, or None", is_type=True)
        body: dict[str, Any] = {
            "provider": check_choice(provider, "provider", _PROVIDERS),
            "api_key": check_text(api_key, "api_key", minimum=8, secret=True),
            **({} if meta is None else {"meta": plain(meta)}),
        }
        secrets = (body["api_key"],)
        call = self._session.prepare(endpoints.PROVIDER_KEY, body=body, secrets=secrets, options=options)
        await self._session.perform(call)

    async def create_api_key(self, *, name: str, **options: Unpack[CallOptions]) -> ApiKeyCreated:
        """Create another gateway key, which is shown only once (`POST /v1/keys/api`).

        Never retried once sent, since that would create a second key that is never shown.

        Args:
            name: 1 to 255 characters.
            options: see `CallOptions`.

        """
        body = {"name": check_text(name, "name", maximum=255)}
        return await self._session.fetch(
            ApiKeyCreated, self._session.prepare(endpoints.CREATE_API_KEY, body=body, options=options)
        )

    async def list_api_keys(self, **options: Unpack[CallOptions]) -> ListResult[ApiKeyInfo]:
        """List the project's gateway keys, without their secrets (`GET /v1/keys/api`).

        Args:
            options: see `CallOptions`.

        """
        call = self._session.prepare(endpoints.LIST_API_KEYS, options=options)
        return await self._session.fetch_list(ApiKeyInfo, call)

    async def revoke_api_key(self, id: Id, **options: Unpack[CallOptions]) -> None:
        """Revoke a gateway key; revoking it again is not an error (`DELETE /v1/keys/api/{id}`).

        Args:
            id: the key's `id`, not the key itself.
            options: see `CallOptions`.

        Raises:
            APIError: with `status_code` 404 if there is no such key.

        """
        suffix = check_segment(check_id(id, "id"), "id")
        await self._session.perform(
            self._session.prepare(endpoints.REVOKE_API_KEY, suffix=suffix, options=options)
        )

    async def me(self, **options: Unpack[CallOptions]) -> MeResponse:
        """Return the project of the key in use (`GET /v1/me`).

        Args:
            options: see `CallOptions`.

        """
        return await self._session.fetch(MeResponse, self._session.prepare(endpoints.ME, options=options))

    async def health(self, **options: Unpack[CallOptions]) -> DictResult[Any]:
        """Return whether the gateway is up, and its version (`GET /health`). Needs no key.

        Args:
            options: see `CallOptions`.

        """
        return await self._session.fetch_dict(self._session.prepare(endpoints.HEALTH, options=options))

    async def ready(self, **options: Unpack[CallOptions]) -> DictResult[Any]:
        """Return whether the gateway can serve requests (`GET /health/ready`). Needs no key.

        The result is `{"status": "ready" | "not_ready", "checks": {…}}`, with `meta.status_code` 200 or 503;
        "not_ready" is not an error.

        Args:
            options: see `CallOptions`.

        """
        return await self._session.fetch_dict(
            self._session.prepare(endpoints.READY, options=options), reports=True
        )

    async def version(self, **options: Unpack[CallOptions]) -> DictResult[Any]:
        """Return the gateway's name and version (`GET /version`). Needs no key.

        Args:
            options: see `CallOptions`.

        """
        return await self._session.fetch_dict(self._session.prepare(endpoints.VERSION, options=options))

    def batch(
        self,
        requests: BatchSource,
        *,
        model: str | None = None,
        prompt: PromptArgument | None = None,
        id: str | None = None,
        max_concurrency: Integer | Literal["auto"] = "auto",
        ordered: bool = False,
        stop_on: StopOn = STOP_ON,
        journal: str | os.PathLike[str] | None = None,
        journal_lock: bool = True,
        replay: bool = True,
        progress: ProgressArgument = False,
        max_wait_seconds: Number = MAX_WAIT_SECONDS,
        stop_after_failures: StopAfterFailures = "auto",
        dedupe: bool = False,
        max_cost_usd: Number | None = None,
        max_tokens_total: Integer | None = None,
        max_seconds: Number | None = None,
        tokens_per_minute: Integer | None = None,
        pacer: PacerLink | None = None,
        user_id: Id | None = None,
        response_type: type[Parsed] | None = None,
        response_retries: Integer = RESPONSE_RETRIES,
        **options: Unpack[ChatDefaults],
    ) -> Batch[Parsed]:
        """Return a batch: chats run concurrently, within the rate limit and the provider's capacity.

        Use it as `async with client.batch(…) as batch: async for outcome in batch: …`. Every item ends in
        exactly one `Outcome`. Sends are paced by the gateway's rate limit headers. If the gateway returns a
        429 anyway, the item waits and is sent again, which does not count as a retry. All batches with the
        same key take turns. What cannot be sent now, during an outage or at a provider's limit, is waited
        for.

        Args:
            requests: an iterable or async iterable of items, read no faster than they can be sent. An
                item is a `ChatRequest`, a dict of its fields (and `id`), or, if `model` is given, messages:
                text, a message, or a list of messages. An invalid item becomes a failed outcome.
                An async generator is closed at the end.
                Or data, see docs/data.md: a `pathlib.Path` of a file (JSON lines, such as OpenAI's batch
                input, a JSON array, CSV, TSV or Parquet, compressed or not; or a pattern,
                `Path("part-*.csv")`), a list of paths, an open file, or a frame or table of pandas, polars,
                Arrow or Hugging Face. A row is a dict of a request's fields, unless there is a `prompt`. Data
                that cannot be read is an error before anything is sent.
            model: model of items that name none.
            prompt: how a row, or a dict, becomes messages: a template with its fields in braces,
                `"Summarise: {text}"`; or a sync callable that takes the row and returns messages. All fields
                travel along, as `outcome.item`.
            id: the field that identifies a row. Otherwise that is its index, and a changed file cannot be
                resumed from a journal.
            max_concurrency: the most calls in flight, at least 1; "auto" adapts it to the provider's
                capacity, for all such batches with the same key and model together. Never exceeds the
                transport's connections.
            ordered: yield outcomes in the order of the items. A slow item then holds up later outcomes and,
                once a bounded number of them wait, the reading of more items.
            stop_on: types of errors that end the batch, or a sync callable that takes an error
                and returns whether to stop. The callable is called once for each failed item, so not for a
                429 of the gateway that is waited out; a type that matches such a 429 does end the batch.
                Calls in flight are completed and yielded, then iterating raises the error, or the
                callable's exception.
            journal: path of a file to append outcomes to, one line each; a later run resumes from it and
                does not repeat successful calls. Its layout is that of OpenAI's batch output. Each item needs
                an id of its own (else its index is used), the same in every run; another request under the
                id of a success is a `JournalError`. When all items have ended, the file is compacted to the
                last line of each id; if that fails, it is a `JournalWarning`, and nothing is lost. See
                docs/journal.md for what survives what.
            journal_lock: False to use the journal without a lock, on a file system that has none: then make
                sure that no other run uses it.
            replay: whether to yield successes from the journal (`outcome.replayed`). If False, items that
                succeeded in an earlier run are skipped, even if that run never yielded them: outcomes
                written just before its block was left, or it was killed, are then only in the journal.
            progress: True for a live display (needs the extra `cli`); or a sync callable that
                is called with `BatchStats` several times a second, in the event loop's thread.
            max_wait_seconds: how long an item may wait in all, above 0: for the rate limit, for a provider
                that rejects more calls, and for the end of an outage. Then it fails with the error that made
                it wait, or with `MaxWaitError` if it was never sent. A 429 of the gateway with a longer
                `Retry-After` ends the batch with that `RateLimitError`, without holding back other batches.
                Without a usable `Retry-After` it counts as a minute, unless it says when the window ends.
            stop_after_failures: after how many failed items to end the batch with `TooManyFailuresError`: an
                integer; or a float, a share (above 0, at most 1) of the items that ended, once twenty have;
                or None for never. "auto": when the first twenty items fail with the same 400, 404 or 422.
            dedupe: whether to call equal requests only once. Every item has an outcome of its own (and a line
                in the journal); those of the later ones have `attempts` 0, and cost and tokens 0. A failure
                is shared, too. Without a journal, the distinct responses are kept in memory until the end.
            max_cost_usd: end the batch with `BatchLimitError` before it spends more, in USD above 0. No item
                is started once it would pass the limit, at the mean cost so far, together with those in
                flight; these are completed and yielded. Until the first cost is known, items are called one
                at a time. Only this run counts, not what the journal has of earlier ones.
            max_tokens_total: the same for the tokens of prompts and responses, at least 1.
            max_seconds: the same for the time since the batch was entered: no item is started that would take
                longer, at the mean duration so far.
            tokens_per_minute: the provider's limit for a model, at least 1, which the gateway does not tell.
                A call reserves an estimate: a token for each four bytes of the request, and its `max_tokens`,
                or else the mean of the responses so far. Its response settles how many they were. A call
                larger than the limit goes alone. Batches with this limit count together, for each key and
                model in an event loop.
            pacer: the way to a pacer that shares the rate limit among all processes that use it
                (`omnigate.distributed`). While it does not answer, the batch paces itself by the headers.
            user_id: the end user, overriding the client's; "" for none.
            response_type: a type that all responses have to fit, as in `chat`. A success in the journal that
                does not fit is called again.
            response_retries: as in `chat`; each ask is paced like an item, and counts in `outcome.attempts`.
            options: `ChatDefaults`, for items that have none: `system`, `max_tokens`, `temperature`, `top_p`,
                `stop`, `presence_penalty`, `frequency_penalty`, `seed`, `fallback_models`, `cache`; and for
                each call `timeout`, `deadline_seconds` (from the first send), `extra_headers`.

        Raises:
            InvalidArgumentError: an argument is not allowed; nothing was sent.

        """
        method = f"{self._session.owner}.batch"
        defaults, _, call_options = split_options(options, ChatDefaults, method)
        system = defaults.pop("system", None)
        return Batch(
            self._session,
            self._gates,
            BatchOptions(
                requests=requests,
                recipe=Recipe(model, prompt, system, id, defaults),
                max_concurrency=cast("int | Literal['auto']", max_concurrency),  # it converts these
                ordered=ordered,
                stop_on=stop_on,
                journal=journal,
                journal_lock=journal_lock,
                replay=replay,
                progress=progress,
                max_wait_seconds=cast("float", max_wait_seconds),
                stop_after_failures=stop_after_failures,
                dedupe=dedupe,
                max_cost_usd=cast("float | None", max_cost_usd),
                max_tokens_total=cast("int | None", max_tokens_total),
                max_seconds=cast("float | None", max_seconds),
                tokens_per_minute=cast("int | None", tokens_per_minute),
                pacer=pacer,
                user_id=cast("str | None", user_id),
                response_type=response_type,
                response_retries=cast("int", response_retries),
                call_options=call_options,
                method=method,
            ),
        )

    @overload
    async def chat_many(
        self,
        requests: BatchSource,
        *,
        response_type: type[Parsed] | None = None,
        return_exceptions: Literal[False] = False,
        **options: Unpack[BatchSettings],
    ) -> list[ChatResponse[Parsed]]: ...

    @overload
    async def chat_many(
        self,
        requests: BatchSource,
        *,
        response_type: type[Parsed] | None = None,
        return_exceptions: Literal[True],
        **options: Unpack[BatchSettings],
    ) -> list[ChatResponse[Parsed] | GatewayError]: ...

    @overload
    async def chat_many(
        self,
        requests: BatchSource,
        *,
        response_type: type[Parsed] | None = None,
        return_exceptions: bool,
        **options: Unpack[BatchSettings],
    ) -> list[ChatResponse[Parsed]] | list[ChatResponse[Parsed] | GatewayError]: ...

    async def chat_many(
        self,
        requests: BatchSource,
        *,
        response_type: type[Parsed] | None = None,
        return_exceptions: bool = False,
        **options: Unpack[BatchSettings],
    ) -> list[ChatResponse[Parsed]] | list[ChatResponse[Parsed] | GatewayError]:
        """Run many chats concurrently; return their responses in the order of the items.

        Args:
            requests: as in `batch`.
            response_type: as in `batch`.
            return_exceptions: return an item's error in place of its response. An error that ends a batch
                (`stop_on` has its default, a wait is too long, the journal cannot be written) stands in the
                place of each item that was not called. If False, the first error cancels the other calls and
                is raised.
            options: `model`, `prompt`, `id`, `max_concurrency`, `journal`, `progress`, `max_wait_seconds`,
                `stop_after_failures`, `dedupe`, `max_cost_usd`, `max_tokens_total`, `max_seconds`,
                `tokens_per_minute`, `pacer`, `user_id`, `response_retries`, defaults of items (`system`,
                `max_tokens`, …), `timeout`, `deadline_seconds`, `extra_headers`; see `BatchSettings`, and
                `batch` for details.

        Raises:
            GatewayError: the first error of an item, unless `return_exceptions`.
            InvalidArgumentError: an argument is not allowed; nothing was sent.

        """
        check_known(options, BatchSettings, f"{self._session.owner}.chat_many")
        answers = Answers(return_exceptions)
        batch = self.batch(requests, stop_on=answers.stop_on, response_type=response_type, **options)
        try:
            async with batch:
                try:
                    async for outcome in batch:
                        answers.add(outcome)
                except GatewayError as error:
                    if not answers.return_exceptions or batch._is_of_source(error):
                        raise
                    answers.fill(error, await batch._count_items())
                answers.is_complete = True
        except JournalError as error:
            answers.warn_of(error)
        return cast("list[ChatResponse[Parsed]]", answers.in_order())

    async def estimate(
        self,
        requests: BatchSource,
        *,
        sample: Integer = 0,
        response_type: type[Any] | None = None,
        **options: Unpack[BatchSettings],
    ) -> Estimate:
        """Estimate what a batch will cost and how long it will take, without sending any of its items.

        Only the models' prices are fetched (`GET /v1/models`). Ranges are wide without a sample: prompts are
        counted by their size, a fifth to a third of a token for each byte of UTF-8, and a response has from
        one token to the item's `max_tokens`. A sample is sent, billed and extrapolated.

        Args:
            requests: as in `batch`. They are all read: an iterator is exhausted then.
            sample: how many items to send, drawn at random; 0 for none.
            response_type: as in `batch`.
            options: as in `chat_many`, see `BatchSettings`; `journal` and `progress` are ignored.

        Raises:
            InvalidArgumentError: an argument is not allowed; nothing was sent.
            APIError: the gateway returned an error; see its subclasses.
            ConnectionError: no response was received.
            TimeoutError: no response was received in time.

        """
        batch, census = self._census(requests, sample, response_type, options)
        await batch._inspect()
        await census.add_all(batch._source)
        return await self._estimate(census, response_type, options)

    def _census(
        self,
        requests: BatchSource,
        sample: Integer,
        response_type: type[Any] | None,
        options: BatchSettings,
    ) -> tuple[Batch[Any], Census]:
        """Check the arguments of `estimate`; return a batch of them, and what counts its items."""
        check_known(options, BatchSettings, f"{self._session.owner}.estimate")
        count = check_integer(sample, "sample", minimum=0)
        arguments: Any = {name: value for name, value in options.items() if name not in _NOT_ESTIMATED}
        batch = self.batch(requests, response_type=response_type, **arguments)
        return batch, batch._census(count)

    async def _estimate(
        self, census: Census, response_type: type[Any] | None, options: BatchSettings
    ) -> Estimate:
        """Return the estimate of items that were counted."""
        names = CallOptions.__optional_keys__
        call_options: Any = {name: value for name, value in options.items() if name in names}
        prices = {model.id: model.pricing for model in await self.models(**call_options)}
        settings: Any = {name: value for name, value in options.items() if name in _OF_SAMPLES}
        arguments: Any = {"response_type": response_type, "stop_after_failures": None, **settings}
        outcomes: list[Outcome] = []
        if census.sample:
            async with self.batch(census.sample, **arguments, **call_options) as batch:
                outcomes = [outcome async for outcome in batch]
        rate_limit = None
        if census.first is not None:
            rate_limit = self.batch((), **arguments, **call_options)._rate_limit(census.first)
        return census.estimate(prices, outcomes, rate_limit)

    async def race(
        self,
        *,
        models: Sequence[str],
        messages: MessagesInput,
        cache: bool | None = None,
        **options: Unpack[SamplingOptions],
    ) -> ChatResponse:
        """Send the same request to several models; return the first response and cancel the other calls.

        The gateway bills the calls of all models, including the cancelled ones.

        Args:
            models: at least one name.
            messages: as in `chat`.
            cache: as in `chat`.
            options: sampling options (`max_tokens`, `temperature`, …), `user_id`, `timeout`,
                `deadline_seconds`, `extra_headers`; see `SamplingOptions`.

        Raises:
            RaceError: all models failed; its `exceptions` are in the order of `models`.
            InvalidArgumentError: an argument is not allowed; nothing was sent.

        """
        fields, user_id, call_options = split_options(options, SamplingOptions, f"{self._session.owner}.race")
        if not is_sequence(models):
            raise refusal("models", models, "be a list of models", is_type=True)
        if not models:
            raise refusal("models", models, "be a list of at least one model")
        calls = [
            self._session.prepare(
                endpoints.CHAT,
                body=construct(ChatRequest, {"model": model, "messages": messages, "cache": cache, **fields}),
                user_id=user_id,
                options=call_options,
            )
            for model in models
        ]
        return await race([partial(self._session.fetch, ChatResponse, call) for call in calls])


def _stream_options(include_usage: bool) -> dict[str, Any]:
    return {"stream_options": {"include_usage": True}} if include_usage else {}


_homes.settle(__name__)
