"""Calls of the async client over a scripted transport: what is sent, retried, refused and returned."""

import copy
import gzip
import logging
import math
import pickle
import threading
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

import anyio
import httpx
import msgspec
import pytest

import omnigate
from omnigate import (
    APIError,
    AsyncAdminClient,
    AsyncClient,
    AuthError,
    ChatResponse,
    ClientClosedError,
    GatewayError,
    InvalidArgumentError,
    InvalidResponseError,
    Message,
    PlaintextKeyWarning,
    ProviderError,
    RateLimitError,
    RetryConfig,
)
from omnigate._wire import endpoints

from ..support.scripted import ChunkStream, ScriptedTransport, Step, chat_answer, error_answer

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

KEY = "llmg_Abcdefg" + "x" * 36
HUGE = 10**400  # no float
HUGEST = 10**5_000  # not even text
HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}
NO_JITTER = RetryConfig(jitter=0)


class Unspeakable:
    def __repr__(self) -> str:
        raise ZeroDivisionError


def repickled(value: Any, protocol: int) -> Any:
    return pickle.loads(pickle.dumps(value, protocol))


def client_of(*steps: Step, **arguments: Any) -> tuple[AsyncClient, ScriptedTransport]:
    transport = ScriptedTransport(*steps)
    arguments.setdefault("retry_config", NO_JITTER)
    return AsyncClient(
        KEY, base_url="http://gateway.test/prefix/", transport=transport, **arguments
    ), transport


async def test_a_chat_sends_only_the_fields_that_are_set_and_stream() -> None:
    client, transport = client_of(chat_answer)
    await client.chat(**HELLO)
    (request,) = transport.requests
    assert (request.method, str(request.url)) == ("POST", "http://gateway.test/prefix/v1/chat")
    assert msgspec.json.decode(request.content) == {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": False,  # a program for 0.1.0 may read it in a mocked transport
    }
    headers = dict(request.headers)
    assert headers.pop("user-agent") == f"omnigate/{omnigate.__version__}"
    assert headers == {
        "host": "gateway.test",
        "accept": "*/*",
        "accept-encoding": "identity",
        "x-api-key": KEY,
        "content-type": "application/json",
        "content-length": str(len(request.content)),
    }


async def test_a_completion_says_that_it_is_no_stream_as_in_0_1_0() -> None:
    client, transport = client_of(lambda _: httpx.Response(200, json={"choices": []}))
    await client.completions(**HELLO)
    assert msgspec.json.decode(transport.requests[0].content) == {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": False,
    }


async def test_every_argument_of_a_chat_reaches_the_wire() -> None:
    client, transport = client_of(chat_answer)
    arguments: dict[str, Any] = {
        "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "stop": ["a"], "presence_penalty": 1.0,
        "frequency_penalty": -1.0, "seed": 7, "fallback_models": ["gpt-4"], "cache": True,
    }  # fmt: skip
    await client.chat(model="m", messages=[Message(role="system", content="é")], user_id="ü", **arguments)
    sent = msgspec.json.decode(transport.requests[0].content)
    assert sent == {
        "model": "m",
        "messages": [{"role": "system", "content": "é"}],
        "stream": False,
        **arguments,
    }
    assert dict(transport.requests[0].headers.raw)[b"x-user-id"] == "ü".encode("latin-1")


async def test_a_chat_returns_a_typed_response_with_its_meta() -> None:
    head = {
        "x-request-id": "r-1", "x-ratelimit-limit": "60", "x-ratelimit-remaining": "59", "x-ratelimit-reset": "12",
        "x-budget-project-daily-spend": "0.000004", "x-budget-project-daily-limit": "0.0000",
        "x-budget-org-monthly-limit": "5.0000", "x-llmgw-provider": "openai", "x-llmgw-model": "gpt-4o-mini",
        "x-llmgw-cached": "false", "x-llmgw-fallback": "true", "x-new": "kept",
    }  # fmt: skip

    def answer(_: httpx.Request) -> httpx.Response:
        response = chat_answer(meta={"request_id": "forged"})
        response.headers.update(head)
        return response

    client, _ = client_of(answer)
    response = await client.chat(**HELLO)
    assert (response.content, response.usage.total_tokens, response.cost_usd) == ("hello", 3, 0.000004)
    meta = response.meta
    assert meta.request_id == "r-1"
    assert meta.rate_limit == (60, 59, 12)
    assert meta.budget is not None
    assert meta.budget.project_daily_spend == Decimal("0.000004")
    assert meta.budget.org_monthly_limit == Decimal("5.0000")
    assert meta.budget.org_daily_limit is None
    assert (meta.provider, meta.model, meta.cached, meta.fallback) == ("openai", "gpt-4o-mini", False, True)
    assert (meta.attempts, meta.status_code, meta.headers["x-new"]) == (1, 200, "kept")
    assert meta.elapsed >= 0
    assert "request_id='r-1'" in repr(meta)
    assert "meta" not in response.model_dump()


async def test_malformed_response_headers_read_as_none_in_meta() -> None:
    names = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-budget-org-daily-spend", "x-llmgw-cached")

    def answer(_: httpx.Request) -> httpx.Response:
        response = chat_answer()
        response.headers.update(dict(zip(names, ("x", "-1", "nan", "perhaps"), strict=True)))
        return response

    client, _ = client_of(answer)
    meta = (await client.chat(**HELLO)).meta
    assert (meta.rate_limit, meta.budget, meta.cached) == (None, None, None)


async def test_list_and_raw_results_have_meta() -> None:
    card = {"id": "gpt-4o", "object": "model", "pricing": {"input_per_1k_usd": 1}}
    client, _ = client_of(lambda _: httpx.Response(200, json={"data": [card]}, headers={"x-request-id": "r"}))
    models = await client.models()
    assert models[0].pricing is not None
    assert models[0].pricing.input_per_1k_usd == 1.0
    assert (models.meta.request_id, models[0].meta.request_id) == ("r", "r")
    health = await client.health()
    assert health == {"data": [card]}
    assert health.meta.request_id == "r"


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        *(partial(repickled, protocol=n) for n in range(2, pickle.HIGHEST_PROTOCOL + 1)),
    ],
)
async def test_a_copied_or_pickled_result_keeps_its_meta(copied: Callable[[Any], Any]) -> None:
    client, _ = client_of(chat_answer)
    answer = await client.chat(**HELLO)
    for _ in range(2):  # the head is parsed when it is first read
        again = copied(answer)
        assert (type(again), again) == (type(answer), answer)
        assert repr(again.meta) == repr(answer.meta)
        assert again.meta.headers == answer.meta.headers
        assert (again.meta.attempts, again.meta.elapsed, again.meta.status_code) == (
            1,
            answer.meta.elapsed,
            200,
        )
    assert KEY.encode() not in pickle.dumps(answer)
    client, _ = client_of(
        lambda _: httpx.Response(200, json=[{"id": "gpt-4o"}], headers={"x-request-id": "r"})
    )
    models = copied(await client.models())
    assert (models[0].meta.request_id, models.meta.request_id) == ("r", "r")
    made = copied(ChatResponse(id="i", provider="p", model="m", content="c"))
    assert made.content == "c"
    with pytest.raises(AttributeError, match="has no meta: it was not returned by a call"):
        _ = made.meta


async def test_models_accepts_a_bare_list() -> None:
    client, _ = client_of(lambda _: httpx.Response(200, json=[{"id": "gpt-4o"}]))
    assert [model.id for model in await client.models()] == ["gpt-4o"]


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (error_answer(401, "Invalid API key"), AuthError),
        (error_answer(401, "OpenAI error 401: bad key"), ProviderError),
        (error_answer(404, "Not Found"), APIError),
        (lambda _: httpx.Response(307, headers={"location": "http://evil.test/"}), APIError),
        (lambda _: httpx.Response(200, json={"id": 5}), InvalidResponseError),
        (lambda _: httpx.Response(200, content=b"<html>"), InvalidResponseError),
        (lambda _: httpx.Response(200, content=b"[" * 100_000), InvalidResponseError),
        (lambda _: httpx.Response(200, content=b"\xff"), InvalidResponseError),
        (lambda _: httpx.Response(204), InvalidResponseError),
    ],
)
async def test_permanent_failures_are_not_retried(step: Step, kind: type[APIError]) -> None:
    client, transport = client_of(step)
    with pytest.raises(kind) as caught:
        await client.chat(**HELLO)
    assert type(caught.value) is kind
    assert caught.value.attempts == 1 or kind is InvalidResponseError
    assert len(transport.requests) == 1


async def test_an_invalid_response_error_shows_the_body_start_status_and_request_id() -> None:
    body = {"id": "llmg_" + "k" * 43, "provider": 5}
    client, _ = client_of(lambda _: httpx.Response(200, json=body, headers={"x-request-id": "r"}))
    with pytest.raises(InvalidResponseError, match=r"\$.provider.*starts with.*llmg_\*\*\*") as caught:
        await client.chat(**HELLO)
    assert (caught.value.status_code, caught.value.request_id) == (200, "r")
    assert caught.value.__cause__ is None


async def test_an_invalid_response_to_key_creation_does_not_leak_the_key() -> None:
    body = {"api_key": "llmg_secret", "id": 5}
    client, transport = client_of(lambda _: httpx.Response(201, json=body))
    with pytest.raises(InvalidResponseError) as caught:
        await client.create_api_key(name="ci")
    assert "secret" not in repr(caught.value) + repr(caught.value.detail)
    assert len(transport.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_transient_statuses_are_retried_with_exponential_backoff(status: int) -> None:
    client, transport = client_of(error_answer(status, "x"), error_answer(status, "x"), chat_answer)
    response = await client.chat(**HELLO)
    assert response.meta.attempts == 3
    waits = [later - earlier for earlier, later in zip(transport.times, transport.times[1:], strict=False)]
    assert waits == pytest.approx([0.5, 1.0], abs=1e-3)
    assert len({request.content for request in transport.requests}) == 1


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("refused"), httpx.ReadTimeout(""), httpx.ReadError("reset")]
)
async def test_transport_errors_are_retried_and_chained_as_the_cause(error: httpx.TransportError) -> None:
    client, transport = client_of(error, retry_config=RetryConfig(max_retries=1))
    with pytest.raises(
        omnigate.ConnectionError, match=r"http://gateway.test/prefix \(2 attempts\)"
    ) as caught:
        await client.chat(**HELLO)
    assert len(transport.requests) == 2
    assert caught.value.attempts == 2
    assert caught.value.__cause__ is error
    assert isinstance(caught.value, omnigate.TimeoutError) is isinstance(error, httpx.TimeoutException)
    assert caught.value.was_sent is not isinstance(error, httpx.ConnectError)


async def test_an_unknown_exception_of_the_transport_is_raised_unchanged() -> None:
    client, _ = client_of(AssertionError("a bug in a test's handler"))
    with pytest.raises(AssertionError, match="a bug"):
        await client.chat(**HELLO)


@pytest.mark.parametrize(("header", "wait"), [("42", 42.0), ("1.5", 1.5), ("nan", 0.5), ("-3", 0.5)])
async def test_a_call_waits_for_the_full_retry_after(header: str, wait: float) -> None:
    client, transport = client_of(error_answer(429, "Rate limit exceeded", retry_after=header), chat_answer)
    await client.chat(**HELLO)
    assert transport.times[1] - transport.times[0] == pytest.approx(wait, abs=1e-3)


@pytest.mark.parametrize("header", ["0", "0.1", "Wed, 21 Oct 2015 07:28:00 GMT"])
async def test_a_retry_after_that_is_short_or_past_does_not_shorten_the_backoff(header: str) -> None:
    client, transport = client_of(error_answer(503, "x", retry_after=header))
    with pytest.raises(APIError):
        await client.chat(**HELLO)
    waits = [later - earlier for earlier, later in zip(transport.times, transport.times[1:], strict=False)]
    assert waits == pytest.approx([0.5, 1.0], abs=1e-3)


async def test_a_call_does_not_wait_for_a_retry_after_beyond_its_maximum() -> None:
    client, transport = client_of(error_answer(429, "Rate limit exceeded", retry_after="61"))
    with pytest.raises(RateLimitError) as caught:
        await client.chat(**HELLO)
    assert caught.value.retry_after == 61.0
    assert len(transport.requests) == 1
    assert anyio.current_time() - transport.times[0] < 0.1


@pytest.mark.parametrize(
    ("step", "sends"),
    [
        (httpx.ConnectError("refused"), 3),
        (httpx.PoolTimeout("full"), 3),
        (error_answer(429, "Rate limit exceeded"), 3),
        (error_answer(503, "busy"), 1),
        (httpx.ReadTimeout("slow"), 1),
        (httpx.RemoteProtocolError("broken"), 1),
    ],
)
async def test_retry_sent_false_never_resends_a_billable_call(step: Step, sends: int) -> None:
    client, transport = client_of(step, retry_config=RetryConfig(retry_sent=False))
    with pytest.raises(GatewayError):
        await client.chat(**HELLO)
    assert len(transport.requests) == sends
    transport.requests.clear()
    with pytest.raises(GatewayError):
        await client.me()
    assert len(transport.requests) == 3  # reading twice does no harm


@pytest.mark.parametrize(
    ("step", "sends"),
    [(httpx.ConnectError("refused"), 3), (httpx.ReadTimeout("slow"), 1), (error_answer(500, "x"), 1)],
)
async def test_calls_that_create_keys_are_never_resent(step: Step, sends: int) -> None:
    async with AsyncAdminClient("admin", transport=ScriptedTransport(step), retry_config=NO_JITTER) as admin:
        client, transport = client_of(step)
        calls: list[Callable[[], Any]] = [
            lambda: client.signup(email="dev@acme.test"),
            lambda: client.create_api_key(name="ci"),
            lambda: admin.create_project(org_id="o", name="p"),
        ]
        for call in calls:
            with pytest.raises(GatewayError) as caught:
                await call()
            assert caught.value.attempts == sends
        assert len(transport.requests) == 2 * sends


@pytest.mark.parametrize("retries", [0, 1, 4])
async def test_the_retries_argument_counts_attempts_after_the_first(retries: int) -> None:
    client, transport = client_of(error_answer(500, "x"), retries=retries, retry_config=None)
    with pytest.raises(APIError):
        await client.chat(**HELLO)
    assert len(transport.requests) == retries + 1


async def test_a_deadline_covers_all_attempts_and_waits() -> None:
    async def slow(_: httpx.Request) -> httpx.Response:
        await anyio.sleep(1)
        return error_answer(503, "busy")(_)

    client, _ = client_of(
        slow, retry_config=RetryConfig(max_retries=100, backoff_base=1, backoff_max=1, jitter=0)
    )
    started = anyio.current_time()
    with pytest.raises(omnigate.TimeoutError, match=r"deadline_seconds=4.5 \(3 attempts\)") as caught:
        await client.chat(**HELLO, deadline_seconds=4.5)
    assert anyio.current_time() - started == pytest.approx(4.5, abs=1e-2)
    assert caught.value.attempts == 3


async def test_a_backoff_that_would_exceed_the_deadline_is_not_started() -> None:
    client, transport = client_of(error_answer(429, "Rate limit exceeded", retry_after="30"))
    with pytest.raises(omnigate.TimeoutError) as caught:
        await client.chat(**HELLO, deadline_seconds=10)
    assert isinstance(caught.value.__cause__, RateLimitError)
    assert anyio.current_time() - transport.times[0] < 0.1


async def test_a_backoff_can_be_cancelled_at_any_moment() -> None:
    client, transport = client_of(error_answer(429, "Rate limit exceeded", retry_after="60"))
    with anyio.move_on_after(7) as scope:
        await client.chat(**HELLO)
    assert scope.cancelled_caught
    assert anyio.current_time() - transport.times[0] == pytest.approx(7, abs=1e-2)


async def test_timeout_and_headers_of_a_call_apply_to_that_call_only() -> None:
    client, transport = client_of(chat_answer, headers={"X-Team": "a", "User-Agent": "mine"}, timeout=5)
    await client.chat(
        **HELLO, timeout=httpx.Timeout(3, connect=1), extra_headers={"x-team": "b", "X-Api-Key": "other"}
    )
    await client.chat(**HELLO, timeout=None)
    await client.chat(**HELLO)
    timeouts = [request.extensions["timeout"] for request in transport.requests]
    assert timeouts[0] == {"connect": 1, "read": 3, "write": 3, "pool": 3}
    assert timeouts[1] == dict.fromkeys(("connect", "read", "write", "pool"))
    assert timeouts[2] == dict.fromkeys(("connect", "read", "write", "pool"), 5)
    assert [request.headers["x-team"] for request in transport.requests] == ["b", "a", "a"]
    assert [request.headers["x-api-key"] for request in transport.requests] == ["other", KEY, KEY]
    assert transport.requests[0].headers["user-agent"] == "mine"


async def test_an_empty_user_id_sends_no_user_header_for_a_call_or_a_client() -> None:
    client, transport = client_of(chat_answer, user_id="alice", headers={"x-user-id": "bob"})
    await client.chat(**HELLO)
    await client.chat(**HELLO, user_id="")
    await client.race(models=["m"], messages="x", user_id="")
    await client.chat(**HELLO, user_id="", extra_headers={"x-user-id": "carol"})
    assert [request.headers.get("x-user-id") for request in transport.requests] == [
        "alice",
        None,
        None,
        "carol",
    ]
    client, transport = client_of(chat_answer, user_id="")
    await client.chat(**HELLO, extra_headers={"x-user-id": "x" * 255})
    await client.chat(**HELLO)
    assert [request.headers.get("x-user-id") for request in transport.requests] == ["x" * 255, None]


async def test_client_configuration_can_be_changed_between_calls_as_in_0_1_0() -> None:
    client, transport = client_of(chat_answer)
    await client.chat(**HELLO)
    client.api_key, client.user_id, client.base_url = "llmg_new", "user", "https://other.test"
    await client.chat(**HELLO)
    request = transport.requests[1]
    assert str(request.url) == "https://other.test/v1/chat"
    assert (request.headers["host"], request.headers["x-api-key"], request.headers["x-user-id"]) == (
        "other.test", "llmg_new", "user",
    )  # fmt: skip
    assert (client.api_key, client.user_id, client.base_url) == ("llmg_new", "user", "https://other.test")


def prepared(client: AsyncClient) -> tuple[str, bytes, bytes, bool]:
    """Return where a call goes, its host, its key, and whether its head as bytes has both."""
    call = client._session.prepare(endpoints.ME)
    host, key = call.headers[b"host"], call.headers[b"x-api-key"]
    return str(call.url), host, key, call.head is not None and host in call.head and key in call.head


@pytest.mark.blocks
async def test_a_call_during_a_configuration_change_uses_the_old_or_the_new_one_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = ("https://old.test/v1/me", b"old.test", b"old-key", True)
    client = AsyncClient("old-key", base_url="https://old.test")
    meanwhile: list[Any] = []

    def warned(*_: Any) -> None:
        with ThreadPoolExecutor(1) as threads:
            meanwhile.append(threads.submit(prepared, client).result(10))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", warned)
        client.base_url = "http://new.test"
    assert meanwhile == [old]
    assert prepared(client) == ("http://new.test/v1/me", b"new.test", b"old-key", True)
    client.api_key = "new-key"
    assert prepared(client) == ("http://new.test/v1/me", b"new.test", b"new-key", True)


async def test_a_configuration_warning_raised_as_an_error_changes_nothing() -> None:
    client = AsyncClient("old-key", base_url="https://old.test")
    for _ in range(2):
        with pytest.raises(PlaintextKeyWarning):  # warnings are errors in all these tests
            client.base_url = "http://new.test"
        assert (client.base_url, client.api_key) == ("https://old.test", "old-key")
        assert prepared(client) == ("https://old.test/v1/me", b"old.test", b"old-key", True)
    keyless = AsyncClient(base_url="http://new.test")
    with pytest.raises(PlaintextKeyWarning):
        keyless.api_key = "a-key"
    assert keyless.api_key is None
    assert b"x-api-key" not in keyless._session.prepare(endpoints.ME).headers


async def test_concurrent_configuration_changes_in_threads_lose_none() -> None:
    client = AsyncClient("k", base_url="https://a.test")
    start = threading.Barrier(3)

    def change(name: str, prefix: str) -> None:
        start.wait(10)
        for number in range(200):
            setattr(client, name, f"{prefix}{number}")
            prepared(client)

    with ThreadPoolExecutor(3) as threads:
        parts = [("api_key", "key-"), ("user_id", "user-"), ("base_url", "https://a.test/")]
        for done in [threads.submit(change, *part) for part in parts]:
            done.result(30)
    assert (client.api_key, client.user_id, client.base_url) == ("key-199", "user-199", "https://a.test/199")
    assert prepared(client) == ("https://a.test/199/v1/me", b"a.test", b"key-199", True)


async def test_a_client_takes_its_address_and_keys_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMNIGATE_BASE_URL", "https://env.test:1")
    monkeypatch.setenv("OMNIGATE_API_KEY", "llmg_env")
    monkeypatch.setenv("OMNIGATE_ADMIN_KEY", "admin_env")
    assert (AsyncClient().base_url, AsyncClient().api_key) == ("https://env.test:1", "llmg_env")
    assert AsyncAdminClient().admin_key == "admin_env"
    assert (AsyncClient("k", base_url="https://x.test").base_url, AsyncClient("k").api_key) == (
        "https://x.test",
        "k",
    )
    monkeypatch.delenv("OMNIGATE_BASE_URL")
    assert AsyncClient().base_url == "http://localhost:8000"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"base_url": "ftp://x"},
            "base_url must be http(s)://host[:port][/prefix] without user, query and fragment, got 'ftp://x'",
        ),
        (
            {"base_url": "gateway.test"},
            "base_url must be http(s)://host[:port][/prefix] without user, query and fragment, got 'gateway.test'",
        ),
        (
            {"base_url": "http://"},
            "base_url must be http(s)://host[:port][/prefix] without user, query and fragment, got 'http://'",
        ),
        (
            {"base_url": "http://x\r\n.test"},
            "base_url must be http(s)://host[:port][/prefix] without user, query and fragment, got 'http://x\\",
        ),
        (
            {"base_url": "http://x?query"},
            "base_url must be http(s)://host[:port][/prefix] without user, query and fragment, got 'http://x?query'",
        ),
        (
            {"base_url": 5},
            "base_url must be http(s)://host[:port][/prefix] without user, query and fragment, got 5",
        ),
        (
            {"user_id": "x" * 256},
            "user_id must be Latin-1 text of at most 255 characters without line breaks, got 'xxxxxxxxx",
        ),
        (
            {"user_id": "😀"},
            "user_id must be Latin-1 text of at most 255 characters without line breaks, got '😀'",
        ),
        (
            {"user_id": "a\r\nb: c"},
            "user_id must be Latin-1 text of at most 255 characters without line breaks, got 'a\\r\\nb: c'",
        ),
        (
            {"timeout": 0},
            "timeout must be a finite number of seconds above 0, an httpx.Timeout, or None, got 0",
        ),
        (
            {"timeout": math.nan},
            "timeout must be a finite number of seconds above 0, an httpx.Timeout, or None, got nan",
        ),
        (
            {"timeout": "5"},
            "timeout must be a finite number of seconds above 0, an httpx.Timeout, or None, got '5'",
        ),
        (
            {"timeout": HUGE},
            "timeout must be a finite number of seconds above 0, an httpx.Timeout, or None, got 1000000000",
        ),
        (
            {"timeout": -HUGEST},
            "timeout must be a finite number of seconds above 0, an httpx.Timeout, or None, got <int>",
        ),
        (
            {"timeout": httpx.Timeout(5, read=math.nan)},
            "timeout.read must be a finite number of seconds above 0, or None, got nan",
        ),
        (
            {"timeout": httpx.Timeout(5, connect="5")},
            "timeout.connect must be a finite number of seconds above 0, or None, got '5'",
        ),  # type: ignore[arg-type]
        (
            {"timeout": httpx.Timeout(-1)},
            "timeout.connect must be a finite number of seconds above 0, or None, got -1",
        ),
        (
            {"timeout": httpx.Timeout(5, pool=True)},
            "timeout.pool must be a finite number of seconds above 0, or None, got True",
        ),
        (
            {"timeout": httpx.Timeout(HUGE)},
            "timeout.connect must be a finite number of seconds above 0, or None, got 1000000000",
        ),
        ({"retries": -HUGEST}, "retries must be an integer of at least 0, got <int>"),
        ({"retry_config": Unspeakable()}, "retry_config must be a RetryConfig, or None, got <Unspeakable>"),
        (
            {"user_id": Unspeakable()},
            "user_id must be Latin-1 text of at most 255 characters without line breaks, got <Unspeakable>",
        ),
        (
            {"base_url": Unspeakable()},
            "base_url must be http(s)://host[:port][/prefix] without user, query and fragment, got <Unspeakable>",
        ),
        ({"verify": Unspeakable()}, "verify must be True, False or an ssl.SSLContext, got <Unspeakable>"),
        ({"verify": None}, "verify must be True, False or an ssl.SSLContext, got None"),
        ({"max_response_bytes": -HUGEST}, "max_response_bytes must be an integer of at least 1, got <int>"),
        ({"retries": -1}, "retries must be an integer of at least 0, got -1"),
        ({"retry_config": 3}, "retry_config must be a RetryConfig, or None, got 3"),
        (
            {"headers": {"X-User-Id": "x" * 256}},
            "headers['X-User-Id'] must be Latin-1 text of at most 255 characters without line breaks, got 'xxxxxxxxx",
        ),
        ({"headers": {"a\r\nb": "c"}}, "headers must have names of letters, digits and -_., got 'a\\r\\nb'"),
        (
            {"headers": {"a": "b\r\nc: d"}},
            "headers['a'] must be Latin-1 text without line breaks and control characters, got 'b\\r\\nc: d'",
        ),
        (
            {"headers": {"a": "b\x00"}},
            "headers['a'] must be Latin-1 text without line breaks and control characters, got 'b\\x00'",
        ),
        (
            {"headers": {"a": 5}},
            "headers['a'] must be Latin-1 text without line breaks and control characters, got 5",
        ),
        (
            {"headers": {"Content-Length": "5"}},
            "headers must leave out the headers that the client itself sets, got 'Content-Length'",
        ),
        (
            {"headers": {"transfer-encoding": "chunked"}},
            "headers must leave out the headers that the client itself sets, got 'transfer-encoding'",
        ),
        ({"headers": 5}, "headers must be a dict of names and values, got 5"),
        (
            {"transport": "http"},
            "transport must be an httpx.AsyncBaseTransport or httpx.BaseTransport (or httpx2's), got an object of type str",
        ),
        ({"verify": "ca.pem"}, "verify must be True, False or an ssl.SSLContext, got 'ca.pem'"),
        ({"max_response_bytes": 0}, "max_response_bytes must be an integer of at least 1, got 0"),
    ],
)
async def test_a_client_names_a_bad_constructor_argument(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        AsyncClient(KEY, **arguments)
    assert words in str(caught.value)


async def test_a_client_refuses_a_password_in_the_address_or_a_broken_key_without_showing_it() -> None:
    with pytest.raises(InvalidArgumentError, match="user or password") as caught:
        AsyncClient(KEY, base_url="http://me:hunter2@gateway.test")
    assert "hunter2" not in str(caught.value)
    for key in ("llmg_secret\n", "sécrét😀"):
        with pytest.raises(InvalidArgumentError, match="api_key") as caught:
            AsyncClient(key)
        assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: c.chat(**HELLO, user_id="x" * 256), "user_id must be Latin-1 text of at most 255 characters without line breaks, got 'xxxxxxxxx"),
        (lambda c: c.chat(**HELLO, extra_headers={"x-user-id": "x" * 256}), "extra_headers['x-user-id'] must be Latin-1 text of at most 255 characters without line breaks, got 'xxxxxxxxx"),
        (lambda c: c.chat(**HELLO, user_id=0), "user_id must be Latin-1 text of at most 255 characters without line breaks, got 0"),
        (lambda c: c.chat(**HELLO, user_id=False), "user_id must be Latin-1 text of at most 255 characters without line breaks, got False"),
        (lambda c: c.chat(**HELLO, user_id=[]), "user_id must be Latin-1 text of at most 255 characters without line breaks, got []"),
        (lambda c: c.race(models=["m"], messages="x", user_id=0), "user_id must be Latin-1 text of at most 255 characters without line breaks, got 0"),
        (lambda c: c.completions(**HELLO, user_id={}), "user_id must be Latin-1 text of at most 255 characters without line breaks, got {}"),
        (lambda c: c.chat_stream(**HELLO, user_id=b""), "user_id must be Latin-1 text of at most 255 characters without line breaks, got b''"),
        (lambda c: c.chat(**HELLO, timeout=-1), "timeout must be a finite number of seconds above 0, an httpx.Timeout, or None, got -1"),
        (lambda c: c.chat(**HELLO, deadline_seconds=0), "deadline_seconds must be a finite number of seconds above 0, or None, got 0"),
        (lambda c: c.chat(**HELLO, deadline_seconds=math.inf), "deadline_seconds must be a finite number of seconds above 0, or None, got inf"),
        (lambda c: c.chat(**HELLO, extra_headers={"x": "\r\n"}), "extra_headers['x'] must be Latin-1 text without line breaks and control characters, got '\\r\\n'"),
        (lambda c: c.chat(**HELLO, time_out=5), "unknown argument 'time_out'"),
        (lambda c: c.chat(**HELLO, timeout=HUGE), "timeout must be a finite number of seconds above 0, an httpx.Timeout, or None, got 1000000000"),
        (lambda c: c.chat(**HELLO, timeout=httpx.Timeout(5, write=0)), "timeout.write must be a finite number of seconds above 0, or None, got 0"),
        (lambda c: c.chat(**HELLO, deadline_seconds=HUGE), "deadline_seconds must be a finite number of seconds above 0, or None, got 1000000000"),
        (lambda c: c.chat(**HELLO, deadline_seconds=-HUGEST), "deadline_seconds must be a finite number of seconds above 0, or None, got <int>"),
        (lambda c: c.chat(**HELLO, hedge_after=HUGE), "hedge_after must be a finite number of seconds above 0, or None, got 10000000000000000000000000000000000000000000000000000000000000000000000000000000…"),
        (lambda c: c.chat(**HELLO, hedge_after=-HUGEST), "hedge_after must be a finite number of seconds above 0, or None, got <int>"),
        (lambda c: c.batch([], max_wait_seconds=HUGE), "max_wait_seconds must be a finite number above 0, got 10000000000000000000000000000000000000000000000000000000000000000000000000000000…"),
        (lambda c: c.batch([], max_wait_seconds=-HUGEST), "max_wait_seconds must be a finite number above 0, got <int>"),
        (lambda c: c.batch([], max_concurrency=-HUGEST), "max_concurrency must be an integer of at least 1, or 'auto', got <int>"),
        (lambda c: c.chat_stream(**HELLO, include_usage="no"), "include_usage must be True or False, got 'no'"),
        (lambda c: c.chat_stream(**HELLO, as_chunks="no"), "as_chunks must be True or False, got 'no'"),
        (lambda c: c.completions_stream(**HELLO, include_usage=1), "include_usage must be True or False, got 1"),
        (lambda c: c.chat(model="m", messages=[Unspeakable()]), "messages[0] must be a Message or a dict with role and content, got <Unspeakable>"),
        (lambda c: c.chat(model="m", messages=[{1: 2}]), "messages[0] must be a Message or a dict with role and content, got {1: 2}"),
        (lambda c: c.completions(model="m", messages=[{1: 2}]), "messages[0] must be a Message or a dict with role and content, got {1: 2}"),
        (lambda c: c.chat(model="m", messages={1: 2}), "messages must be text, a message, or a list of messages, got {1: 2}"),
        (lambda c: c.chat(model="m", messages={"x"}), "messages must be text, a message, or a list of messages, got {'x'}"),
        (lambda c: c.chat(**HELLO, stop={1}), "stop must be text or a list of texts, got {1}"),
        (lambda c: c.chat(model="m", messages="\ud800"), "messages[0].content must not contain lone surrogates, which UTF-8 cannot encode, got '\\ud800'"),
        (lambda c: c.chat(model="m", messages=[{"role": "\ud800", "content": ""}]), "messages[0].role must not contain lone surrogates, which UTF-8 cannot encode, got '\\ud800'"),
        (lambda c: c.chat(**HELLO, stop=["a", "\ud800"]), "stop[1] must not contain lone surrogates, which UTF-8 cannot encode, got '\\ud800'"),
        (lambda c: c.signup(email="\ud800@b.test"), "email must not contain lone surrogates, which UTF-8 cannot encode, got '\\ud800@b.test'"),
        (lambda c: c.set_provider_key(provider="azure", api_key="sk-12345678", meta={"\ud800": "x"}), "meta must not contain lone surrogates, which UTF-8 cannot encode, got {'\\ud800': 'x'}"),
        (lambda c: c.model(None), "id must be text of at least 1 character, got None"),
        (lambda c: c.model([]), "id must be text of at least 1 character, got []"),
        (lambda c: c.model(UUID(int=5)), "id must be text of at least 1 character, got UUID('00000000-0000-0000-0000-000000000005')"),
        (lambda c: c.model("\ud800"), "id must not contain lone surrogates, which UTF-8 cannot encode, got '\\ud800'"),
        (lambda c: c.revoke_api_key(None), "id must be an id as the gateway gives it, text or a UUID, got None"),
        (lambda c: c.revoke_api_key(5), "id must be an id as the gateway gives it, text or a UUID, got 5"),
        (lambda c: c.chat(model="m", messages=[]), "messages must have at least 1 item, got []"),
        (lambda c: c.chat(model="m" * 129, messages="x"), "model must be text of 1 to 128 printable Latin-1 characters, got 'mmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm…"),
        (lambda c: c.chat(**HELLO, fallback_models=["m"] * 6), "fallback_models must have at most 5 items, got ['m', 'm', 'm', 'm', 'm', 'm']"),
        (lambda c: c.model(""), "id must be text of at least 1 character, got ''"),
        (lambda c: c.model("../../admin"), "id must be an id as the gateway gives it, got '../../admin'"),
        (lambda c: c.revoke_api_key(".."), "id must be an id as the gateway gives it, got '..'"),
        (lambda c: c.metrics(range="2h"), "range must be '1h', '24h', '7d' or '30d', got '2h'"),
        (lambda c: c.metrics(range="1h", start=datetime.now(UTC)), "range must not be given together with start or end, got '1h'"),
        (lambda c: c.metrics(end=datetime.now(UTC)), "end must be given together with start, got datetime.datetime("),
        (lambda c: c.metrics(start=datetime(2026, 1, 1)), "start must be a datetime with a time zone, or ISO-8601 text with an offset, got datetime.datetime(2026, 1, 1, 0, 0)"),
        (lambda c: c.metrics(start="2026-01-01T00:00:00"), "start must be a datetime with a time zone, or ISO-8601 text with an offset, got '2026-01-01T00:00:00'"),
        (lambda c: c.metrics(start="yesterday"), "start must be a datetime with a time zone, or ISO-8601 text with an offset, got 'yesterday'"),
        (lambda c: c.metrics(start=5), "start must be a datetime with a time zone, or ISO-8601 text with an offset, got 5"),
        (lambda c: c.metrics(group_by="day"), "group_by must be 'provider', 'model', 'user' or 'status', got 'day'"),
        (lambda c: c.metrics(granularity="week"), "granularity must be 'minute', 'hour' or 'day', got 'week'"),
        (lambda c: c.signup(email="x"), "email must be text of 3 to 255 characters, got 'x'"),
        (lambda c: c.signup(email="a@b.test", org_name="x" * 256), "org_name must be text of at most 255 characters, got 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…"),
        (lambda c: c.set_provider_key(provider="cohere", api_key="sk-12345678"), "provider must be 'openai', 'anthropic', 'gemini' or 'azure', got 'cohere'"),
        (lambda c: c.set_provider_key(provider="openai", api_key="short"), "api_key must be text of at least 8 characters, got ***"),
        (lambda c: c.set_provider_key(provider="azure", api_key="sk-12345678", meta="x"), "meta must be a dict, or None, got 'x'"),
        (lambda c: c.create_api_key(name=""), "name must be text of 1 to 255 characters, got ''"),
    ],
)  # fmt: skip
async def test_a_call_refuses_a_bad_argument_before_anything_is_sent(
    call: Callable[[AsyncClient], Any], words: str
) -> None:
    client, transport = client_of(chat_answer)
    with pytest.raises(InvalidArgumentError) as caught:
        await call(client)
    assert words in str(caught.value)
    assert transport.requests == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: c.create_org(name=""), "name must be text of 1 to 255 characters, got ''"),
        (
            lambda c: c.create_org(name="x", daily_budget=-1),
            "daily_budget must be a finite number of USD, at least 0 (0 for no limit), got -1",
        ),
        (
            lambda c: c.create_org(name="x", monthly_budget="NaN"),
            "monthly_budget must be a finite number of USD, at least 0 (0 for no limit), got 'NaN'",
        ),
        (
            lambda c: c.create_org(name="x", monthly_budget="lots"),
            "monthly_budget must be a finite number of USD, at least 0 (0 for no limit), got 'lots'",
        ),
        (
            lambda c: c.create_project(org_id="o", name="p", rate_limit_per_min=0),
            "rate_limit_per_min must be an integer of at least 1, got 0",
        ),
        (
            lambda c: c.create_project(org_id="", name="p"),
            "org_id must be text of at least 1 character, got ''",
        ),
        (lambda c: c.org_metrics(".."), "org_id must be an id as the gateway gives it, got '..'"),
        (
            lambda c: c.org_metrics(None),
            "org_id must be an id as the gateway gives it, text or a UUID, got None",
        ),
        (lambda c: c.org_metrics(""), "org_id must be text of at least 1 character, got ''"),
        (
            lambda c: c.list_projects(org_id=False),
            "org_id must be an id as the gateway gives it, text or a UUID, got False",
        ),
        (
            lambda c: c.list_projects(org_id="\ud800"),
            "org_id must not contain lone surrogates, which UTF-8 cannot encode, got '\\ud800'",
        ),
        (
            lambda c: c.create_project(org_id=[], name="p"),
            "org_id must be an id as the gateway gives it, text or a UUID, got []",
        ),
        (
            lambda c: c.create_project(org_id=UUID(int=5), name="p", rate_limit_per_min=-HUGEST),
            "rate_limit_per_min must be an integer of at least 1, got <int>",
        ),
        (lambda c: c.org_metrics("o", range="1y"), "range must be '1h', '24h', '7d' or '30d', got '1y'"),
    ],
)
async def test_the_admin_client_refuses_bad_arguments(
    call: Callable[[AsyncAdminClient], Any], words: str
) -> None:
    transport = ScriptedTransport(chat_answer)
    async with AsyncAdminClient("admin", transport=transport) as admin:
        with pytest.raises(InvalidArgumentError) as caught:
            await call(admin)
    assert words in str(caught.value)
    assert transport.requests == []


async def test_each_endpoint_is_called_as_the_protocol_says() -> None:
    client, transport = client_of(
        lambda _: httpx.Response(500, json={"detail": "x"}), retries=0, retry_config=None
    )
    admin = AsyncAdminClient("admin", base_url="http://gateway.test", transport=transport, retries=0)
    key_id = UUID("33333333-3333-3333-3333-333333333333")
    moment = datetime(2026, 11, 24, 12, tzinfo=UTC)
    calls: list[tuple[Any, str, str, Any]] = [
        (client.models(), "GET", "/prefix/v1/models", None),
        (client.model("models/gemini 1?#"), "GET", "/prefix/v1/models/models/gemini%201%3F%23", None),
        (client.metrics(), "GET", "/prefix/v1/metrics?range=24h", None),
        (client.metrics(start=moment, end="2026-11-24T13:00:00Z", group_by="model", granularity="day"), "GET",
         "/prefix/v1/metrics?from=2026-11-24T12%3A00%3A00%2B00%3A00&to=2026-11-24T13%3A00%3A00Z&group_by=model&granularity=day",
         None),
        (client.signup(email="dev@acme.test", org_name="Acme"), "POST", "/prefix/v1/signup",
         {"email": "dev@acme.test", "project_name": "Default", "org_name": "Acme"}),
        (client.set_provider_key(provider="azure", api_key="sk-12345678", meta={"endpoint": "https://x", "deployment": "d"}),
         "POST", "/prefix/v1/keys",
         {"provider": "azure", "api_key": "sk-12345678", "meta": {"endpoint": "https://x", "deployment": "d"}}),
        (client.create_api_key(name="ci"), "POST", "/prefix/v1/keys/api", {"name": "ci"}),
        (client.list_api_keys(), "GET", "/prefix/v1/keys/api", None),
        (client.revoke_api_key(key_id), "DELETE", f"/prefix/v1/keys/api/{key_id}", None),
        (client.me(), "GET", "/prefix/v1/me", None),
        (client.health(), "GET", "/prefix/health", None),
        (client.ready(), "GET", "/prefix/health/ready", None),
        (client.version(), "GET", "/prefix/version", None),
        (client.completions(model="m", messages=[{"role": "developer", "content": "x"}]), "POST",
         "/prefix/v1/chat/completions", {"model": "m", "messages": [{"role": "system", "content": "x"}], "stream": False}),
        (admin.create_org(name="Acme", daily_budget=Decimal("5.5")), "POST", "/v1/admin/orgs",
         {"name": "Acme", "daily_budget": "5.5", "monthly_budget": 0}),
        (admin.list_orgs(), "GET", "/v1/admin/orgs", None),
        (admin.create_project(org_id=key_id, name="p", rate_limit_per_min=1), "POST", "/v1/admin/projects",
         {"org_id": str(key_id), "name": "p", "daily_budget": 0, "monthly_budget": 0, "rate_limit_per_min": 1}),
        (admin.list_projects(org_id="o"), "GET", "/v1/admin/projects?org_id=o", None),
        (admin.org_metrics("o", range="7d"), "GET", "/v1/admin/orgs/o/metrics?range=7d", None),
    ]  # fmt: skip
    for call, method, path, body in calls:
        with pytest.raises(APIError):
            await call
        request = transport.requests.pop()
        assert (request.method, request.url.raw_path.decode()) == (method, path)
        assert (msgspec.json.decode(request.content) if request.content else None) == body
        assert ("content-length" in request.headers) is (body is not None)
        assert ("x-admin-key" in request.headers) is ("admin" in path)


async def test_ready_returns_a_negative_answer_without_raising() -> None:
    body = {"status": "not_ready", "checks": {"database": "down", "redis": "ok"}}
    client, transport = client_of(lambda _: httpx.Response(503, json=body))
    ready = await client.ready()
    assert ready == body
    assert ready.meta.status_code == 503
    assert len(transport.requests) == 1


async def test_calls_with_an_empty_response_return_none() -> None:
    client, _ = client_of(lambda _: httpx.Response(204, headers={"content-type": "application/json"}))
    assert await client.set_provider_key(provider="openai", api_key="sk-12345678") is None  # type: ignore[func-returns-value]
    assert await client.revoke_api_key("1") is None  # type: ignore[func-returns-value]


async def test_a_provider_key_echoed_by_the_gateway_is_not_in_the_error() -> None:
    detail = [{"loc": ["body", "api_key"], "msg": "bad", "input": {"api_key": "azure-key-without-prefix"}}]
    client, _ = client_of(error_answer(422, detail))
    with pytest.raises(APIError) as caught:
        await client.set_provider_key(provider="azure", api_key="azure-key-without-prefix")
    assert "azure-key-without-prefix" not in repr(caught.value.detail) + repr(caught.value)


def body_step(stream: ChunkStream, status: int = 200, **headers: str) -> Step:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: httpx.Response(status, headers=named, stream=stream)


def deflate(body: bytes, wbits: int) -> bytes:
    compressor = zlib.compressobj(wbits=wbits)
    return compressor.compress(body) + compressor.flush()


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", lambda body: gzip.compress(body[:50]) + gzip.compress(body[50:]) + b"\x00\x00"),
        ("deflate", lambda body: deflate(body, 15)),
        ("deflate", lambda body: deflate(body, -15)),
        ("identity", lambda body: body),
    ],
)
async def test_a_compressed_response_is_decoded_however_it_is_split(
    encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    body = compress(chat_answer(content="x" * 200_000).content)
    for size in (1, 7, len(body)):
        if size == 1 and len(body) > 10_000:
            continue
        stream = ChunkStream([body[i : i + size] for i in range(0, len(body), size)])
        client, _ = client_of(body_step(stream, content_encoding=encoding))
        assert len((await client.chat(**HELLO)).content) == 200_000
        assert stream.closed


@pytest.mark.parametrize(
    ("encoding", "body", "words"),
    [
        ("br", b"x", "content encoding: 'br'"),
        ("gzip, gzip", b"x", "content encoding: 'gzip, gzip'"),
        ("gzip", b"not gzip", "compressed body is corrupt"),
        ("gzip", gzip.compress(b"{}")[:-3], "incomplete"),
        ("deflate", b"\xff\xff\xff", "compressed body is corrupt"),
    ],
)
async def test_an_undecodable_content_encoding_is_a_typed_error(
    encoding: str, body: bytes, words: str
) -> None:
    stream = ChunkStream([body])
    client, _ = client_of(body_step(stream, content_encoding=encoding))
    with pytest.raises(InvalidResponseError, match=words):
        await client.chat(**HELLO)
    assert stream.closed


async def test_a_response_over_the_size_limit_is_refused_while_it_arrives() -> None:
    def endless() -> Any:
        while True:
            yield b"x" * 1_000

    stream = ChunkStream(endless())
    client, _ = client_of(body_step(stream), max_response_bytes=10_000)
    with pytest.raises(InvalidResponseError, match="max_response_bytes=10,000"):
        await client.chat(**HELLO)
    assert stream.closed


async def test_a_gzip_bomb_is_refused_before_it_fills_the_memory() -> None:
    bomb = gzip.compress(b"\x00" * 200_000_000)
    stream = ChunkStream([bomb])
    client, _ = client_of(body_step(stream, content_encoding="gzip"), max_response_bytes=1_000_000)
    import tracemalloc

    tracemalloc.start()
    try:
        with pytest.raises(InvalidResponseError, match="max_response_bytes"):
            await client.chat(**HELLO)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


async def test_only_the_beginning_of_an_endless_error_body_is_read() -> None:
    def endless() -> Any:
        while True:
            yield b"x" * 100_000

    stream = ChunkStream(endless())
    client, _ = client_of(body_step(stream, status=400))
    with pytest.raises(APIError) as caught:
        await client.chat(**HELLO)
    assert len(caught.value.message) == 2_000
    assert stream.closed


async def test_a_broken_response_body_is_a_connection_error_and_is_retried() -> None:
    stream = ChunkStream([b'{"id"', httpx.RemoteProtocolError("peer closed")])
    client, _ = client_of(body_step(stream), chat_answer)
    assert (await client.chat(**HELLO)).meta.attempts == 2
    assert stream.closed


async def test_a_client_closes_every_response_and_its_transport() -> None:
    streams = [ChunkStream([b"busy"]), ChunkStream([chat_answer().content])]
    client, transport = client_of(body_step(streams[0], status=503), body_step(streams[1]))
    async with client:
        await client.chat(**HELLO)
    assert all(stream.closed and stream.exhausted for stream in streams)
    assert transport.closed
    await client.aclose()


async def test_a_call_of_a_closed_client_is_an_error_that_says_so() -> None:
    client, _ = client_of(chat_answer)
    await client.aclose()
    with pytest.raises(ClientClosedError, match="closed"):
        await client.chat(**HELLO)
    with pytest.raises(RuntimeError):
        client.chat_stream(**HELLO)
    assert "closed" in repr(client)


async def test_the_repr_of_a_client_shows_the_address_and_not_the_key() -> None:
    client, _ = client_of(chat_answer)
    assert repr(client) == "AsyncClient(base_url='http://gateway.test/prefix', api_key='llmg_Abcdefg…')"
    assert (
        repr(AsyncClient(base_url="http://x.test")) == "AsyncClient(base_url='http://x.test', api_key=None)"
    )
    assert "hunter2" not in repr(AsyncAdminClient("hunter2-hunter2-hunter2-hunter2"))


async def test_retries_are_logged_without_the_key(caplog: pytest.LogCaptureFixture) -> None:
    client, _ = client_of(error_answer(503, f"bad {KEY}"), chat_answer)
    with caplog.at_level(logging.DEBUG):
        await client.chat(**HELLO)
    assert "attempt 1 failed" in caplog.text
    assert KEY not in caplog.text


async def test_concurrent_calls_get_their_own_responses() -> None:
    async def echo(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.01)
        return chat_answer(content=msgspec.json.decode(request.content)["messages"][0]["content"])

    client, _ = client_of(echo)
    contents: list[tuple[str, str]] = []

    async def one(text: str) -> None:
        contents.append((text, (await client.chat(model="m", messages=text)).content))

    async with anyio.create_task_group() as group:
        for number in range(200):
            group.start_soon(one, str(number))
    assert len(contents) == 200
    assert all(sent == received for sent, received in contents)
