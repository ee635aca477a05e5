"""Only type-checked, never run: what a type checker must know of the public surface."""

from pathlib import Path
from typing import Any, assert_type

from omnigate import (
    AdminClient,
    ApiKeyInfo,
    AsyncClient,
    AuthError,
    Batch,
    BatchStats,
    ChatResponse,
    ChatStream,
    Client,
    CompletionStream,
    DictResult,
    GatewayError,
    ListResult,
    Meta,
    ModelInfo,
    Outcome,
    ProjectCreated,
    RateLimit,
    StreamChunk,
    SyncBatch,
    SyncChatStream,
    SyncCompletionStream,
    Usage,
)


async def asynchronous(client: AsyncClient) -> None:
    response = await client.chat(
        model="m", messages="x", timeout=5, deadline_seconds=9.5, extra_headers={"a": "b"}
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
    assert_type(await client.chat_many(["a"], model="m"), list[ChatResponse])
    assert_type(
        await client.chat_many(["a"], model="m", return_exceptions=True), list[ChatResponse | GatewayError]
    )
    assert_type(await client.race(models=["a", "b"], messages="x"), ChatResponse)
    assert_type(await client.chat(model="m", messages="x", hedge_after=0.5), ChatResponse)


def synchronous(client: Client, admin: AdminClient) -> None:
    assert_type(client.chat(model="m", messages="x", timeout=None), ChatResponse)
    assert_type(client.chat_stream(model="m", messages="x"), SyncChatStream[str])
    assert_type(client.chat_stream(model="m", messages="x", as_chunks=True), SyncChatStream[StreamChunk])
    with client.chat_stream(model="m", messages="x") as stream:
        for piece in stream:
            assert_type(piece, str)
        assert_type(stream.text(), str)
    assert_type(client.completions_stream(model="m", messages="x"), SyncCompletionStream)
    for completion in client.completions_stream(model="m", messages="x"):
        assert_type(completion, dict[str, Any])
    with client.batch(Path("batch.jsonl"), stop_on=AuthError, max_concurrency=5) as batch:
        assert_type(batch, SyncBatch)
        for outcome in batch:
            assert_type(outcome, Outcome)
        assert_type(batch.stats, BatchStats)
    assert_type(client.chat_many(["a"], model="m"), list[ChatResponse])
    assert_type(client.chat_many(["a"], return_exceptions=True), list[ChatResponse | GatewayError])
    assert_type(client.race(models=["a", "b"], messages="x"), ChatResponse)
    assert_type(client.models(), ListResult[ModelInfo])
    assert_type(admin.create_project(org_id="o", name="p"), ProjectCreated)


def refused(client: Client) -> None:
    client.chat(model="m")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.chat(model="m", messages="x", max_token=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.chat_stream(model="m", messages="x", cache=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
