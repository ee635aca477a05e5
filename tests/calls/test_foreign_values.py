"""Calls with text, numbers and ids of other libraries: what is sent is what their plain values would send."""

import collections
import enum
import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx
import numpy
import pytest

from omnigate import AsyncClient, ChatResponse, GatewayError

from ..support.scripted import ChunkStream, ScriptedTransport, chat_answer

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

KEY = "llmg_Abcdefg" + "x" * 36


class Rendered(str):
    """Text of a template, as markupsafe.Markup or Django's SafeString."""

    def __str__(self) -> str:
        return "not the text"


class Setting(str, enum.Enum):  # noqa: UP042 - whose `str()` is not its text
    MODEL = "gpt-4o"
    KEY = KEY
    URL = "http://gateway.test"
    PROVIDER = "azure"
    HOUR = "1h"


FOREIGN: dict[str, Any] = {
    "max_tokens": numpy.int64(5),
    "temperature": numpy.float32(0.5),
    "user_id": UUID(int=7),
    "top_p": numpy.float64(0.5),
    "stop": collections.deque([Rendered("a"), "b"]),
    "seed": numpy.uint8(7),
    "timeout": numpy.int64(5),
    "deadline_seconds": numpy.float32(9),
    "extra_headers": {Rendered("x-tag"): Setting.MODEL},
}
PLAIN: dict[str, Any] = {
    "max_tokens": 5,
    "temperature": 0.5,
    "user_id": str(UUID(int=7)),
    "top_p": 0.5,
    "stop": ["a", "b"],
    "seed": 7,
    "timeout": 5,
    "deadline_seconds": 9.0,
    "extra_headers": {"x-tag": "gpt-4o"},
}
FOREIGN_CHAT: dict[str, Any] = {
    "model": Setting.MODEL,
    "messages": [{"role": numpy.str_("user"), "content": Rendered("hello")}],
    **FOREIGN,
}
PLAIN_CHAT: dict[str, Any] = {"model": "gpt-4o", "messages": "hello", **PLAIN}
MODELS = (Rendered("a"), "b")

CALLS: list[tuple[Callable[[AsyncClient], Any], Callable[[AsyncClient], Any]]] = [
    (
        lambda c: c.chat(**FOREIGN_CHAT, fallback_models=MODELS, hedge_after=numpy.int8(5)),
        lambda c: c.chat(**PLAIN_CHAT, fallback_models=["a", "b"], hedge_after=5),
    ),
    (lambda c: c.completions(**FOREIGN_CHAT), lambda c: c.completions(**PLAIN_CHAT)),
    (
        lambda c: c.race(models=collections.deque([Rendered("a")]), messages=Rendered("x"), **FOREIGN),
        lambda c: c.race(models=["a"], messages="x", **PLAIN),
    ),
    (
        lambda c: c.signup(email=Rendered("a@b.test"), org_name=numpy.str_("o"), project_name=Setting.MODEL),
        lambda c: c.signup(email="a@b.test", org_name="o", project_name="gpt-4o"),
    ),
    (
        lambda c: c.set_provider_key(
            provider=Setting.PROVIDER,
            api_key=Rendered("sk-12345678"),
            meta={"endpoint": Rendered("https://a.test")},
        ),
        lambda c: c.set_provider_key(
            provider="azure", api_key="sk-12345678", meta={"endpoint": "https://a.test"}
        ),
    ),
    (lambda c: c.create_api_key(name=Rendered("n")), lambda c: c.create_api_key(name="n")),
    (lambda c: c.revoke_api_key(UUID(int=5)), lambda c: c.revoke_api_key(str(UUID(int=5)))),
    (lambda c: c.model(Rendered("a/b")), lambda c: c.model("a/b")),
    (lambda c: c.metrics(range=Setting.HOUR), lambda c: c.metrics(range="1h")),
]


async def sent(call: Callable[[AsyncClient], Any], **options: Any) -> tuple[Any, ...]:
    """Return what a call sends: method, address, headers and body."""
    transport = ScriptedTransport(httpx.Response(400, json={"detail": "enough"}))
    async with AsyncClient(transport=transport, **options) as client:
        with pytest.raises((GatewayError, ExceptionGroup)):
            await call(client)
    (request,) = transport.requests
    body = json.loads(request.content) if request.content else None
    return request.method, str(request.url), request.headers.raw, body, request.extensions["timeout"]


@pytest.mark.parametrize(("foreign", "plain"), CALLS)
async def test_a_call_sends_foreign_values_as_their_plain_ones(
    foreign: Callable[[AsyncClient], Any], plain: Callable[[AsyncClient], Any]
) -> None:
    options: dict[str, Any] = {
        "api_key": Setting.KEY,
        "base_url": Setting.URL,
        "user_id": UUID(int=1),
        "timeout": numpy.float64(30),
        "retries": numpy.int64(0),
        "max_response_bytes": numpy.int64(10_000),
        "headers": {Rendered("x-app"): Rendered("app")},
    }
    plains: dict[str, Any] = {
        "api_key": KEY,
        "base_url": "http://gateway.test",
        "user_id": str(UUID(int=1)),
        "timeout": 30.0,
        "retries": 0,
        "max_response_bytes": 10_000,
        "headers": {"x-app": "app"},
    }
    assert await sent(foreign, **options) == await sent(plain, **plains)


async def test_a_stream_takes_foreign_values() -> None:
    for flag, expected in ((numpy.True_, "chunk"), (numpy.False_, "text")):
        transport = ScriptedTransport(lambda _: httpx.Response(200, stream=ChunkStream([b"hello"])))
        async with AsyncClient(KEY, transport=transport) as client:
            async with client.chat_stream(as_chunks=flag, **FOREIGN_CHAT) as stream:  # type: ignore[call-overload]
                pieces = [piece async for piece in stream]
        assert ("chunk" if hasattr(pieces[0], "text") else "text") == expected
        body = json.loads(transport.requests[0].content)
        assert (body["model"], body["stop"], body["seed"]) == ("gpt-4o", ["a", "b"], 7)


async def test_a_batch_takes_foreign_values() -> None:
    transport = ScriptedTransport(chat_answer)
    items = [
        Rendered("a"),
        numpy.str_("b"),
        collections.deque([{"role": "user", "content": Rendered("c")}]),
        {"prompt": Rendered("d"), "max_tokens": numpy.int64(5)},
    ]
    async with AsyncClient(KEY, transport=transport) as client:
        async with client.batch(
            items,
            model=Setting.MODEL,
            max_concurrency=numpy.int64(1),
            max_wait_seconds=numpy.float32(60),
            user_id=UUID(int=7),
        ) as batch:
            outcomes = [outcome async for outcome in batch]
    assert [outcome.error for outcome in outcomes] == [None] * 4
    bodies = [json.loads(request.content) for request in transport.requests]
    assert [body["messages"][0]["content"] for body in bodies] == ["a", "b", "c", "d"]
    assert {body["model"] for body in bodies} == {"gpt-4o"}
    assert bodies[3]["max_tokens"] == 5
    assert {request.headers["x-user-id"] for request in transport.requests} == {str(UUID(int=7))}


async def test_a_chat_response_as_a_batch_source_is_refused() -> None:
    answer = ChatResponse(id="1", provider="p", model="m", content="c")
    async with AsyncClient(KEY, transport=ScriptedTransport(chat_answer)) as client:
        for source in (answer, answer.usage):
            with pytest.raises(TypeError, match="requests must be an iterable of items"):
                client.batch(source, model="m")  # type: ignore[arg-type]


async def test_all_fields_of_a_decoded_answer_count_as_given() -> None:
    async with AsyncClient(KEY, transport=ScriptedTransport(chat_answer)) as client:
        answer = await client.chat(model="m", messages="x")
    assert answer.model_fields_set == set(answer.__struct_fields__)
    assert answer.model_dump(exclude_unset=True) == answer.model_dump()
    assert answer.model_copy(update={"content": "z"}).meta is answer.meta
