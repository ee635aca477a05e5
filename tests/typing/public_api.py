"""Only type-checked, never run: what a type checker must know of the public surface."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, TypedDict, Unpack, assert_type
from uuid import UUID

import anyio
import httpx
import httpx2
import msgspec
import numpy
import polars
import pydantic

from omnigate import (
    AdminClient,
    AnyIOTransport,
    APIError,
    ApiKeyCreated,
    ApiKeyInfo,
    AsyncClient,
    AuthError,
    Batch,
    BatchSettings,
    BatchStats,
    CallOptions,
    ChatRequest,
    ChatResponse,
    ChatStream,
    ChatStreamOptions,
    Client,
    CompletionStream,
    DictResult,
    Estimate,
    GatewayError,
    JournalMerge,
    JournalRecovery,
    ListResult,
    MeResponse,
    Message,
    Meta,
    MetricsResponse,
    ModelInfo,
    OrgInfo,
    Outcome,
    ProjectCreated,
    ProjectInfo,
    ProviderRateLimitError,
    RaceError,
    RateLimit,
    ResponseFormatError,
    RetryConfig,
    SamplingOptions,
    SignupResponse,
    StreamChunk,
    SyncBatch,
    SyncChatStream,
    SyncCompletionStream,
    Usage,
    classify,
    merge_journals,
    recover_journal,
)


async def asynchronous(client: AsyncClient) -> None:
    response = await client.chat(
        model="m", messages="x", timeout=5, deadline_seconds=9.5, extra_headers={"a": "b", "user-agent": None}
    )
    assert_type(response, ChatResponse)
    assert_type(response.meta, Meta)
    assert_type(response.meta.rate_limit, RateLimit | None)
    await client.chat(model="m", messages=[{"role": "user", "content": "x"}])
    assert_type(client.chat_stream(model="m", messages="x"), ChatStream[str])
    assert_type(client.chat_stream(model="m", messages="x", as_chunks=False), ChatStream[str])
    assert_type(client.chat_stream(model="m", messages="x", as_chunks=True), ChatStream[StreamChunk])
    async with client.chat_stream(model="m", messages="x") as stream:
        async for piece in stream:
            assert_type(piece, str)
        assert_type(await stream.text(), str)
        assert_type(stream.usage, Usage | None)
    async for chunk in client.chat_stream(model="m", messages="x", as_chunks=True, include_usage=True):
        assert_type(chunk, StreamChunk)
    assert_type(client.completions_stream(model="m", messages="x"), CompletionStream)
    assert_type(await client.completions(model="m", messages="x"), DictResult[Any])
    assert_type(await client.models(), ListResult[ModelInfo])
    assert_type(await client.list_api_keys(), ListResult[ApiKeyInfo])
    async with client.batch(["a", ["b"], {"prompt": "c"}], model="m", stop_on=lambda error: True) as batch:
        assert_type(batch, Batch)
        async for outcome in batch:
            assert_type(outcome, Outcome)
            assert_type(outcome.unwrap(), ChatResponse)
        assert_type(batch.stats, BatchStats)
    assert_type(await client.batch(["a"], model="m", journal="j", journal_lock=False).run(), BatchStats)
    assert_type(await client.chat_many(["a"], model="m"), list[ChatResponse])
    assert_type(await client.chat_many(["a"], max_cost_usd=1, dedupe=True), list[ChatResponse])
    assert_type(await client.estimate(["a"], model="m", sample=3, max_tokens_total=9), Estimate)
    await client.chat_many(anyio.Path("batch.jsonl"), model="m", journal="j", journal_lock=False)
    assert_type(
        await client.chat_many(["a"], model="m", return_exceptions=True), list[ChatResponse | GatewayError]
    )
    assert_type(await client.chat_many(["a"], return_exceptions=False), list[ChatResponse])
    assert_type(await client.model("m"), ModelInfo)
    assert_type(await client.metrics(range="1h"), MetricsResponse)
    assert_type(await client.signup(email="a@b.test"), SignupResponse)
    await client.set_provider_key(provider="openai", api_key="sk-12345678")
    assert_type(await client.create_api_key(name="n"), ApiKeyCreated)
    await client.revoke_api_key("id")
    assert_type(await client.me(), MeResponse)
    assert_type(await client.health(), DictResult[Any])
    assert_type(await client.race(models=["a", "b"], messages="x"), ChatResponse)
    assert_type(await client.chat(model="m", messages="x", hedge_after=0.5), ChatResponse)


def synchronous(sync: Client, admin: AdminClient) -> None:
    assert_type(sync.chat(model="m", messages="x", timeout=None), ChatResponse)
    assert_type(sync.chat(model="m", messages=[Message(role="user", content="x")]).usage, Usage)
    assert_type(sync.chat_stream(model="m", messages="x"), SyncChatStream[str])
    assert_type(sync.chat_stream(model="m", messages="x", as_chunks=False), SyncChatStream[str])
    assert_type(sync.chat_stream(model="m", messages="x", as_chunks=True), SyncChatStream[StreamChunk])
    assert_type(
        sync.chat_stream(model="m", messages="x", as_chunks=True, include_usage=True),
        SyncChatStream[StreamChunk],
    )
    with sync.chat_stream(model="m", messages="x") as stream:
        assert_type(stream.is_closed, bool)
        for piece in stream:
            assert_type(piece, str)
        assert_type(stream.text(), str)
        assert_type(stream.usage, Usage | None)
        assert_type(stream.meta, Meta)
    for chunk in sync.chat_stream(model="m", messages="x", as_chunks=True):
        assert_type(chunk, StreamChunk)
    assert_type(sync.completions(model="m", messages="x"), DictResult[Any])
    assert_type(sync.completions_stream(model="m", messages="x"), SyncCompletionStream)
    for completion in sync.completions_stream(model="m", messages="x"):
        assert_type(completion, dict[str, Any])
    with sync.batch(Path("batch.jsonl"), stop_on=AuthError, max_concurrency=5) as batch:
        assert_type(batch, SyncBatch)
        for outcome in batch:
            assert_type(outcome, Outcome)
        assert_type(batch.stats, BatchStats)
    assert_type(sync.batch(anyio.Path("batch.jsonl"), model="m").run(), BatchStats)
    recovery = recover_journal(Path("journal.jsonl"), journal_lock=False)
    assert_type(recovery, JournalRecovery)
    assert_type((recovery.kept, recovery.dropped, recovery.backup), tuple[int, int, str | None])
    merge = merge_journals([Path("a.jsonl"), "b.jsonl"], "all.jsonl")
    assert_type(merge, JournalMerge)
    assert_type((merge.succeeded, merge.conflicts[0].id, merge.conflicts[0].kept), tuple[int, str, str])
    assert_type(sync.chat_many(["a"], model="m"), list[ChatResponse])
    assert_type(sync.estimate(["a"], model="m", tokens_per_minute=1_000), Estimate)
    assert_type(sync.chat_many(["a"], return_exceptions=False), list[ChatResponse])
    assert_type(sync.chat_many(["a"], return_exceptions=True), list[ChatResponse | GatewayError])
    assert_type(sync.race(models=["a", "b"], messages="x"), ChatResponse)
    assert_type(sync.models(), ListResult[ModelInfo])
    assert_type(sync.model("m"), ModelInfo)
    assert_type(sync.metrics(range="1h"), MetricsResponse)
    assert_type(sync.signup(email="a@b.test"), SignupResponse)
    sync.set_provider_key(provider="openai", api_key="sk-12345678")
    assert_type(sync.create_api_key(name="n"), ApiKeyCreated)
    assert_type(sync.list_api_keys(), ListResult[ApiKeyInfo])
    sync.revoke_api_key("id")
    assert_type(sync.me(), MeResponse)
    assert_type(sync.health(), DictResult[Any])
    assert_type(sync.ready(), DictResult[Any])
    assert_type(sync.version(), DictResult[Any])
    assert_type(sync.api_key, str | None)
    with sync as entered:
        assert_type(entered, Client)
    assert_type(admin.create_org(name="o"), OrgInfo)
    assert_type(admin.list_orgs(), ListResult[OrgInfo])
    assert_type(admin.create_project(org_id="o", name="p"), ProjectCreated)
    assert_type(admin.list_projects(), ListResult[ProjectInfo])
    assert_type(admin.org_metrics("o"), MetricsResponse)


async def data(client: AsyncClient, sync: Client, path: Path, frame: polars.DataFrame) -> None:
    def messages(row: Mapping[str, Any]) -> list[dict[str, str]]:
        return [{"role": "user", "content": row["text"]}]

    async with client.batch(path, model="m", prompt="{text}", id="key", system="s", temperature=0) as batch:
        async for outcome in batch:
            assert_type(outcome.item, Mapping[str, Any] | None)
    await client.chat_many([path, path / "*.csv"], model="m", prompt=messages, max_tokens=5, cache=True)
    await client.chat_many(frame, model="m", prompt="{text}")
    with path.open() as text, path.open("rb") as binary:
        sync.chat_many(text, model="m", prompt="{text}", stop="x", seed=1, fallback_models=["n"])
        sync.batch(binary, model="m", prompt=messages, id=None, top_p=0.5).run()
    sync.chat_many(frame, model="m", prompt=messages)
    client.batch(["a"], model="m", colour=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def values_of_other_libraries(
    client: AsyncClient,
    sync: Client,
    admin: AdminClient,
    flag: bool,
    integer: numpy.int64,
    single: numpy.float32,
    text: numpy.str_,
    id: UUID,
    texts: Sequence[str],
) -> None:
    await client.chat(
        model=text,
        messages=(Message(role="user", content=text), {"role": "user", "content": "x"}),
        max_tokens=integer,
        temperature=single,
        top_p=Decimal("0.5"),
        presence_penalty=Fraction(1, 2),
        seed=integer,
        stop=texts,
        fallback_models=("a", "b"),
        user_id=id,
        hedge_after=single,
        timeout=integer,
        deadline_seconds=single,
    )
    sync.chat(model="m", messages=deque([Message(role="user", content="x")]), stop=("a",), max_tokens=integer)
    sync.race(models=texts, messages=texts[0], stop=texts, temperature=single)
    sync.batch([texts, deque([Message(role="user", content="x")])], model=text, max_concurrency=integer)
    sync.chat_many(texts, model="m", max_wait_seconds=single, user_id=id)
    sync.revoke_api_key(id)
    admin.create_project(org_id=id, name=text, daily_budget=single, rate_limit_per_min=integer)
    Client(text, retries=integer, user_id=id, timeout=single, max_response_bytes=integer)
    RetryConfig(max_retries=integer, jitter=single, retry_statuses=[503])
    AnyIOTransport(max_connections=integer, idle_timeout_seconds=single)
    assert_type(
        client.chat_stream(model="m", messages="x", as_chunks=flag), ChatStream[str] | ChatStream[StreamChunk]
    )
    assert_type(
        sync.chat_stream(model="m", messages="x", as_chunks=flag),
        SyncChatStream[str] | SyncChatStream[StreamChunk],
    )
    assert_type(
        await client.chat_many(["a"], return_exceptions=flag),
        list[ChatResponse] | list[ChatResponse | GatewayError],
    )
    assert_type(
        sync.chat_many(["a"], return_exceptions=flag), list[ChatResponse] | list[ChatResponse | GatewayError]
    )


class City(msgspec.Struct):
    name: str


@dataclass
class Country:
    name: str


class River(TypedDict):
    name: str


class Mountain(pydantic.BaseModel):
    name: str


def any_response(response: ChatResponse) -> None:
    assert_type(response.parsed, object)


def any_outcome(outcome: Outcome) -> None:
    assert_type(outcome.unwrap().parsed, object)


async def parsed(client: AsyncClient, sync: Client, kind: type[City] | None) -> None:
    response = await client.chat(model="m", messages="x", response_type=City, response_retries=1)
    assert_type(response, ChatResponse[City])
    assert_type(response.parsed.name, str)
    assert_type(response.rejected, tuple[ChatResponse, ...])
    assert_type((await client.chat(model="m", messages="x", response_type=Country)).parsed, Country)
    assert_type(sync.chat(model="m", messages="x", response_type=River).parsed, River)
    assert_type(sync.chat(model="m", messages="x", response_type=Mountain).parsed, Mountain)
    assert_type(sync.chat(model="m", messages="x", response_type=list[City]).parsed, list[City])
    assert_type(sync.chat(model="m", messages="x", response_type=kind).parsed, City)
    any_response(response)
    assert_type(await client.chat_many(["x"], model="m", response_type=City), list[ChatResponse[City]])
    assert_type(
        sync.chat_many(["x"], response_type=City, return_exceptions=True),
        list[ChatResponse[City] | GatewayError],
    )
    async with client.batch(["x"], model="m", response_type=City) as batch:
        assert_type(batch, Batch[City])
        async for outcome in batch:
            assert_type(outcome.unwrap().parsed, City)
            any_outcome(outcome)
            if outcome.error is None:
                assert_type(outcome.response, ChatResponse[City])
            else:
                assert_type(outcome.error.billed, tuple[ChatResponse, ...])
    with sync.batch(["x"], model="m", response_type=Mountain) as sync_batch:
        assert_type(sync_batch, SyncBatch[Mountain])
        assert_type([one.response.parsed for one in sync_batch if one.error is None], list[Mountain])
    try:
        sync.chat(model="m", messages="x", response_type=City)
    except ResponseFormatError as error:
        assert_type((error.text, error.problem), tuple[str, str])
    sync.chat(model="m", messages="x", response_type="City")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sync.chat_stream(model="m", messages="x", response_type=City)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def converted(texts: Sequence[str], integer: numpy.int64) -> None:
    assert_type(ChatRequest(model="m", messages="x"), ChatRequest)
    request = ChatRequest(model="m", messages=[{"role": "user", "content": "x"}], stop=texts, seed=integer)
    ChatRequest(model="m", messages=Message(role="user", content="x"), fallback_models=("a",), temperature=1)
    assert_type(request.messages, list[Message])
    assert_type(request.stop, str | list[str] | None)
    ChatRequest(model="m")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ChatRequest(model="m", messages=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def transports() -> None:
    AsyncClient(transport=httpx.AsyncHTTPTransport())
    AsyncClient(transport=httpx.HTTPTransport())
    httpx.AsyncClient(transport=AnyIOTransport())
    httpx2.AsyncClient(transport=AnyIOTransport())
    AsyncClient(transport=httpx2.AsyncHTTPTransport())
    Client(transport=httpx2.HTTPTransport())
    AdminClient(transport=httpx2.AsyncHTTPTransport())
    Client(transport=AnyIOTransport())
    transport = AnyIOTransport()
    assert_type(await transport.handle_async_request(httpx.Request("GET", "/")), httpx.Response)
    assert_type(await transport.handle_async_request(httpx2.Request("GET", "/")), httpx2.Response)
    Client(transport="http://proxy.test")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def as_pydantic_models(response: ChatResponse) -> None:
    assert_type(response.model_dump(include={"usage": {"total_tokens"}}, exclude={"id"}), dict[str, Any])
    assert_type(response.model_dump_json(exclude_unset=True), str)
    assert_type(response.model_copy(update={"content": "x"}), ChatResponse)
    assert_type(response.model_fields_set, set[str])
    assert_type(ChatResponse.model_json_schema(), dict[str, Any])
    assert_type(ChatResponse.model_fields["id"].is_required(), bool)
    assert_type(ChatResponse.model_construct(id="1"), ChatResponse)
    for name, value in response:
        assert_type(name, str)
        assert_type(value, Any)


class Wrapper:
    """A program's own client, which passes arguments on to the methods of ours."""

    def __init__(self, client: Client, asynchronous: AsyncClient) -> None:
        self._client = client
        self._async = asynchronous

    def me(self, **options: Unpack[CallOptions]) -> MeResponse:
        return self._client.me(**options)

    def ask(self, text: str, **options: Unpack[SamplingOptions]) -> str:
        return self._client.chat(model="m", messages=text, **options).content

    def race(self, text: str, **options: Unpack[SamplingOptions]) -> str:
        return self._client.race(models=["m"], messages=text, **options).content

    def stream(self, text: str, **options: Unpack[ChatStreamOptions]) -> SyncChatStream[str]:
        return self._client.chat_stream(model="m", messages=text, **options)

    def many(self, *texts: str, **settings: Unpack[BatchSettings]) -> list[ChatResponse]:
        return self._client.chat_many(texts, **settings)

    def batch(self, *texts: str, **settings: Unpack[BatchSettings]) -> SyncBatch:
        return self._client.batch(texts, ordered=True, **settings)

    async def completions(self, text: str, **options: Unpack[SamplingOptions]) -> DictResult[Any]:
        return await self._async.completions(model="m", messages=text, **options)

    async def answers(self, *texts: str, **settings: Unpack[BatchSettings]) -> list[ChatResponse]:
        return await self._async.chat_many(texts, **settings)


def wrapped(wrapper: Wrapper) -> None:
    wrapper.ask("x", temperature=0.5, seed=1, timeout=5, stop=["a"])
    wrapper.many("a", "b", model="m", max_concurrency="auto", journal=Path("j.jsonl"), deadline_seconds=5)
    wrapper.ask("x", temprature=0.5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def errors(error: GatewayError) -> None:
    assert_type(error.request_id, str | None)
    if isinstance(error, ProviderRateLimitError):
        assert_type(error.retry_after, float | None)
        assert_type(error.provider, str | None)
    if isinstance(error, RaceError):
        assert_type(error.exceptions, tuple[GatewayError | ExceptionGroup[GatewayError], ...])
    assert_type(classify(401, "x"), APIError)


async def narrowed(client: AsyncClient, sync: Client, outcome: Outcome, outcomes: list[Outcome]) -> None:
    if outcome.error is None:
        assert_type(outcome.response, ChatResponse)
        assert_type(outcome.request, ChatRequest)
    else:
        assert_type(outcome.response, None)
    if outcome.error is not None:
        assert_type(outcome.error, GatewayError)
        assert_type(outcome.response, None)
        return
    assert_type(outcome.response.content, str)
    for each in outcomes:
        if each.response is None:
            assert_type(each.error, GatewayError)
            continue
        assert_type(each.error, None)
    async with client.batch(["a"], model="m") as batch:
        async for one in batch:
            assert_type(one.response if one.error is None else one.error, ChatResponse | GatewayError)
    with sync.batch(["a"], model="m") as sync_batch:
        assert_type([one.response.content for one in sync_batch if one.error is None], list[str])


def an_outcome(given: object) -> None:
    if isinstance(given, Outcome):
        assert_type(given.index, int)
        assert_type(given.error, GatewayError | None)


def refused(client: Client) -> None:
    client.chat(model="m")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.chat(model="m", messages="x", max_token=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.chat_stream(model="m", messages="x", cache=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    client.chat_stream(model="m", messages="x", max_token=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    client.race(models=["m"], messages="x", temperature="hot")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.me(deadline=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.chat_many(["a"], max_concurrency="all")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
