"""The sync client: the async client behind a portal. It contains no request logic.

Each method calls the async client's method of the same name in the portal's event loop. The signatures and
docstrings are written out for editors and `help()`; a test compares them with the async client's.
"""

import os
import ssl
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Literal, Unpack, cast, overload

from omnigate._batch.answers import Answers
from omnigate._batch.enough import StopAfterFailures
from omnigate._batch.estimate import Estimate
from omnigate._batch.items import SyncBatchSource, check_ids, check_source, open_source
from omnigate._batch.options import MAX_WAIT_SECONDS, STOP_ON, BatchSettings, StopOn
from omnigate._batch.progress import ProgressArgument
from omnigate._batch.recipe import PromptArgument
from omnigate._calls.retry import RetryConfig
from omnigate._calls.structured import RESPONSE_RETRIES
from omnigate._data.source import data_source, is_data
from omnigate._streams.chat import ChatStream
from omnigate._sync.batch import SyncBatch
from omnigate._sync.face import BaseClient
from omnigate._sync.loop_thread import Backend
from omnigate._sync.streams import SyncChatStream, SyncCompletionStream
from omnigate._transport.carrier import MAX_RESPONSE_BYTES
from omnigate._wire.arguments import Timeout
from omnigate._wire.options import (
    CallOptions,
    ChatDefaults,
    ChatStreamOptions,
    SamplingOptions,
    check_known,
)
from omnigate._wire.results import DictResult, ListResult, Parsed
from omnigate._wire.values import Id, Integer, Number
from omnigate.async_client import AsyncClient, Transport
from omnigate.exceptions import GatewayError, JournalError
from omnigate.models import (
    ApiKeyCreated,
    ApiKeyInfo,
    ChatResponse,
    MeResponse,
    MessagesInput,
    MetricsResponse,
    ModelInfo,
    SignupResponse,
    StreamChunk,
)


class Client(BaseClient):
    """A client of an OmniGate gateway for synchronous programs.

    Use it with `with`, or call `close()` at the end. Any number of threads may share it. Its first call
    starts a thread with an event loop, which does all that the caller's thread cannot do by itself. Ctrl-C
    cancels the call in flight. A client that was used before `os.fork()` raises `ForkedClientError` in the
    child process.

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
        backend: event loop of the client's thread, "asyncio" or "trio".

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
        backend: Backend = "asyncio",
    ) -> None:
        self._async = AsyncClient(
            api_key,
            base_url=base_url,
            user_id=user_id,
            timeout=timeout,
            retries=retries,
            retry_config=retry_config,
            headers=headers,
            transport=transport,
            verify=verify,
            max_response_bytes=max_response_bytes,
        )
        super().__init__(self._async, backend, name="Client")
        self._direct = self._async._for_threads()

    @property
    def api_key(self) -> str | None:
        """The gateway key; assign to it to change it for later calls."""
        return self._async.api_key

    @api_key.setter
    def api_key(self, value: str | None) -> None:
        self._async.api_key = value

    @property
    def user_id(self) -> str | None:
        """The end user calls are attributed to, unless they name another."""
        return self._async.user_id

    @user_id.setter
    def user_id(self, value: str | None) -> None:
        self._async.user_id = value

    def chat(
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
        # Hedging, asking again and deadlines need an event loop from the start.
        is_plain = hedge_after is None and response_type is None and options.get("deadline_seconds") is None
        client = self._direct if is_plain else self._async
        return self._portal.call(
            lambda: client.chat(
                model=model,
                messages=messages,
                max_tokens=max_tokens,
                temperature=temperature,
                user_id=user_id,
                top_p=top_p,
                stop=stop,
                presence_penalty=presence_penalty,
                frequency_penalty=frequency_penalty,
                seed=seed,
                fallback_models=fallback_models,
                cache=cache,
                hedge_after=hedge_after,
                response_type=response_type,
                response_retries=response_retries,
                **options,
            ),
            begins_here=is_plain and client._session.is_ready,
        )

    @overload
    def chat_stream(
        self,
        *,
        model: str,
        messages: MessagesInput,
        as_chunks: Literal[False] = False,
        include_usage: bool = False,
        **options: Unpack[ChatStreamOptions],
    ) -> SyncChatStream[str]: ...

    @overload
    def chat_stream(
        self,
        *,
        model: str,
        messages: MessagesInput,
        as_chunks: Literal[True],
        include_usage: bool = False,
        **options: Unpack[ChatStreamOptions],
    ) -> SyncChatStream[StreamChunk]: ...

    @overload
    def chat_stream(
        self,
        *,
        model: str,
        messages: MessagesInput,
        as_chunks: bool,
        include_usage: bool = False,
        **options: Unpack[ChatStreamOptions],
    ) -> SyncChatStream[str] | SyncChatStream[StreamChunk]: ...

    def chat_stream(
        self,
        *,
        model: str,
        messages: MessagesInput,
        as_chunks: bool = False,
        include_usage: bool = False,
        **options: Unpack[ChatStreamOptions],
    ) -> SyncChatStream[str] | SyncChatStream[StreamChunk]:
        """Return a model's response as a stream, to use with `with` and iterate.

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
        stream: ChatStream[Any] = self._async.chat_stream(
            model=model, messages=messages, as_chunks=as_chunks, include_usage=include_usage, **options
        )
        return SyncChatStream(self._portal, stream)

    def completions(
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
        return self._portal.call(lambda: self._async.completions(model=model, messages=messages, **options))

    def completions_stream(
        self,
        *,
        model: str,
        messages: MessagesInput,
        include_usage: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> SyncCompletionStream:
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
        return SyncCompletionStream(
            self._portal,
            self._async.completions_stream(
                model=model, messages=messages, include_usage=include_usage, **options
            ),
        )

    def models(self, **options: Unpack[CallOptions]) -> ListResult[ModelInfo]:
        """List the gateway's models (`GET /v1/models`).

        Args:
            options: see `CallOptions`.

        """
        return self._portal.call(lambda: self._async.models(**options))

    def model(self, id: str, **options: Unpack[CallOptions]) -> ModelInfo:
        """Return one model's card (`GET /v1/models/{id}`).

        Args:
            id: the model's name, which may contain slashes.
            options: see `CallOptions`.

        Raises:
            APIError: with `status_code` 404 if there is no such model.

        """
        return self._portal.call(lambda: self._async.model(id, **options))

    def metrics(
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
        return self._portal.call(
            lambda: self._async.metrics(
                range=range, start=start, end=end, group_by=group_by, granularity=granularity, **options
            )
        )

    def signup(
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
        return self._portal.call(
            lambda: self._async.signup(email=email, org_name=org_name, project_name=project_name, **options)
        )

    def set_provider_key(
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
        return self._portal.call(
            lambda: self._async.set_provider_key(provider=provider, api_key=api_key, meta=meta, **options)
        )

    def create_api_key(self, *, name: str, **options: Unpack[CallOptions]) -> ApiKeyCreated:
        """Create another gateway key, which is shown only once (`POST /v1/keys/api`).

        Never retried once sent, since that would create a second key that is never shown.

        Args:
            name: 1 to 255 characters.
            options: see `CallOptions`.

        """
        return self._portal.call(lambda: self._async.create_api_key(name=name, **options))

    def list_api_keys(self, **options: Unpack[CallOptions]) -> ListResult[ApiKeyInfo]:
        """List the project's gateway keys, without their secrets (`GET /v1/keys/api`).

        Args:
            options: see `CallOptions`.

        """
        return self._portal.call(lambda: self._async.list_api_keys(**options))

    def revoke_api_key(self, id: Id, **options: Unpack[CallOptions]) -> None:
        """Revoke a gateway key; revoking it again is not an error (`DELETE /v1/keys/api/{id}`).

        Args:
            id: the key's `id`, not the key itself.
            options: see `CallOptions`.

        Raises:
            APIError: with `status_code` 404 if there is no such key.

        """
        return self._portal.call(lambda: self._async.revoke_api_key(id, **options))

    def me(self, **options: Unpack[CallOptions]) -> MeResponse:
        """Return the project of the key in use (`GET /v1/me`).

        Args:
            options: see `CallOptions`.

        """
        return self._portal.call(lambda: self._async.me(**options))

    def health(self, **options: Unpack[CallOptions]) -> DictResult[Any]:
        """Return whether the gateway is up, and its version (`GET /health`). Needs no key.

        Args:
            options: see `CallOptions`.

        """
        return self._portal.call(lambda: self._async.health(**options))

    def ready(self, **options: Unpack[CallOptions]) -> DictResult[Any]:
        """Return whether the gateway can serve requests (`GET /health/ready`). Needs no key.

        The result is `{"status": "ready" | "not_ready", "checks": {…}}`, with `meta.status_code` 200 or 503;
        "not_ready" is not an error.

        Args:
            options: see `CallOptions`.

        """
        return self._portal.call(lambda: self._async.ready(**options))

    def version(self, **options: Unpack[CallOptions]) -> DictResult[Any]:
        """Return the gateway's name and version (`GET /version`). Needs no key.

        Args:
            options: see `CallOptions`.

        """
        return self._portal.call(lambda: self._async.version(**options))

    def batch(
        self,
        requests: SyncBatchSource,
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
        user_id: Id | None = None,
        response_type: type[Parsed] | None = None,
        response_retries: Integer = RESPONSE_RETRIES,
        **options: Unpack[ChatDefaults],
    ) -> SyncBatch[Parsed]:
        """Return a batch: chats run concurrently, within the rate limit and the provider's capacity.

        Use it as `with client.batch(…) as batch: for outcome in batch: …`. Every item ends in
        exactly one `Outcome`. Sends are paced by the gateway's rate limit headers. If the gateway returns a
        429 anyway, the item waits and is sent again, which does not count as a retry. All batches with the
        same key take turns. What cannot be sent now, during an outage or at a provider's limit, is waited
        for.

        The caller's thread iterates `requests`, ahead of the outcomes, and yields no outcome while it waits
        for an item. So a source must not wait for an outcome of the same batch.

        Args:
            requests: an iterable of items, read no faster than they can be sent. An
                item is a `ChatRequest`, a dict of its fields (and `id`), or, if `model` is given, messages:
                text, a message, or a list of messages. An invalid item becomes a failed outcome.
                Or data, see docs/data.md: a `pathlib.Path` of a file (JSON lines, such as OpenAI's batch
                input, a JSON array, CSV, TSV or Parquet, compressed or not; or a pattern,
                `Path("part-*.csv")`), a list of paths, an open file, or a frame or table of pandas, polars,
                Arrow or Hugging Face. A row is a dict of a request's fields, unless there is a `prompt`. Data
                that cannot be read is an error before anything is sent.
            model: model of items that name none.
            prompt: how a row, or a dict, becomes messages: a template with its fields in braces,
                `"Summarise: {text}"`; or a callable that takes the row and returns messages. All fields
                travel along, as `outcome.item`.
            id: the field that identifies a row. Otherwise that is its index, and a changed file cannot be
                resumed from a journal.
            max_concurrency: the most calls in flight, at least 1; "auto" adapts it to the provider's
                capacity, for all such batches with the same key and model together. Never exceeds the
                transport's connections.
            ordered: yield outcomes in the order of the items. A slow item then holds up later outcomes and,
                once a bounded number of them wait, the reading of more items.
            stop_on: types of errors that end the batch, or a callable that takes an error
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
            progress: True for a live display (needs the extra `cli`); or a callable that
                is called with `BatchStats` several times a second, in the client's own thread.
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
        check_source(requests, is_sync=True)
        if journal is not None or id is not None:
            check_ids(requests, id)
        make = partial(
            self._async.batch,
            model=model,
            prompt=prompt,
            id=id,
            max_concurrency=max_concurrency,
            ordered=ordered,
            stop_on=stop_on,
            journal=journal,
            journal_lock=journal_lock,
            replay=replay,
            progress=progress,
            max_wait_seconds=max_wait_seconds,
            stop_after_failures=stop_after_failures,
            dedupe=dedupe,
            max_cost_usd=max_cost_usd,
            max_tokens_total=max_tokens_total,
            max_seconds=max_seconds,
            tokens_per_minute=tokens_per_minute,
            user_id=user_id,
            response_type=response_type,
            response_retries=response_retries,
            **options,
        )
        return SyncBatch(self._portal, requests, make)

    @overload
    def chat_many(
        self,
        requests: SyncBatchSource,
        *,
        response_type: type[Parsed] | None = None,
        return_exceptions: Literal[False] = False,
        **options: Unpack[BatchSettings],
    ) -> list[ChatResponse[Parsed]]: ...

    @overload
    def chat_many(
        self,
        requests: SyncBatchSource,
        *,
        response_type: type[Parsed] | None = None,
        return_exceptions: Literal[True],
        **options: Unpack[BatchSettings],
    ) -> list[ChatResponse[Parsed] | GatewayError]: ...

    @overload
    def chat_many(
        self,
        requests: SyncBatchSource,
        *,
        response_type: type[Parsed] | None = None,
        return_exceptions: bool,
        **options: Unpack[BatchSettings],
    ) -> list[ChatResponse[Parsed]] | list[ChatResponse[Parsed] | GatewayError]: ...

    def chat_many(
        self,
        requests: SyncBatchSource,
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
                `tokens_per_minute`, `user_id`, `response_retries`, defaults of items (`system`, `max_tokens`,
                …), `timeout`, `deadline_seconds`, `extra_headers`; see `BatchSettings`, and `batch` for
                details.

        Raises:
            GatewayError: the first error of an item, unless `return_exceptions`.
            InvalidArgumentError: an argument is not allowed; nothing was sent.

        """
        check_known(options, BatchSettings, "Client.chat_many")
        answers = Answers(return_exceptions)
        batch = self.batch(requests, stop_on=answers.stop_on, response_type=response_type, **options)
        try:
            with batch:
                try:
                    for outcome in batch:
                        answers.add(outcome)
                except GatewayError as error:
                    if not answers.return_exceptions or batch._is_of_source(error):
                        raise
                    answers.fill(error, batch._count_items())
                answers.is_complete = True
        except JournalError as error:
            answers.warn_of(error)
        return cast("list[ChatResponse[Parsed]]", answers.in_order())

    def estimate(
        self,
        requests: SyncBatchSource,
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
        check_source(requests, is_sync=True)
        batch, census = self._async._census((), sample, response_type, options)
        recipe = batch._options.recipe
        recipe.check(requests)
        source: Any = requests
        if is_data(requests):
            source = data_source(requests)
            recipe.inspect(source, has_journal=False)
        for raw in cast("Iterator[Any]", open_source(source)):
            census.add(raw)
        return self._portal.call(lambda: self._async._estimate(census, response_type, options))

    def race(
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
        return self._portal.call(
            lambda: self._async.race(models=models, messages=messages, cache=cache, **options)
        )
