"""What a program says explicitly takes precedence over the environment; None for a header leaves it out."""

import ssl
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from omnigate import AdminClient, AsyncAdminClient, AsyncClient, Client, InvalidArgumentError
from omnigate._transport.anyio_transport import AnyIOTransport
from omnigate._transport.httpx_pool import PerLoopTransport

from ..support.scripted import ScriptedTransport, chat_answer

pytestmark = pytest.mark.anyio

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}
ENVIRONMENT = "llmg_from_the_environment"
PROGRAM = "llmg_from_the_program"
BEARER = f"Bearer {PROGRAM}"
KEYS = ("x-api-key", "authorization", "x-admin-key")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIGATE_API_KEY", ENVIRONMENT)
    monkeypatch.setenv("OMNIGATE_ADMIN_KEY", ENVIRONMENT)
    monkeypatch.setenv("OMNIGATE_BASE_URL", "https://environment.test")


def keys_of(request: httpx.Request) -> dict[str, str]:
    return {name: request.headers[name] for name in KEYS if name in request.headers}


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ({}, {"x-api-key": ENVIRONMENT}),
        ({"api_key": PROGRAM}, {"x-api-key": PROGRAM}),
        ({"api_key": ""}, {}),
        ({"headers": {"x-api-key": PROGRAM}}, {"x-api-key": PROGRAM}),
        ({"headers": {"X-API-Key": PROGRAM}}, {"x-api-key": PROGRAM}),
        ({"headers": {"x-api-key": None}}, {}),
        ({"headers": {"Authorization": BEARER}}, {"authorization": BEARER}),
        ({"headers": {"authorization": BEARER.lower()}}, {"authorization": BEARER.lower()}),
        (
            {"headers": {"Authorization": "Basic Zm9v"}},  # for a proxy: no gateway key
            {"authorization": "Basic Zm9v", "x-api-key": ENVIRONMENT},
        ),
        ({"headers": {"Authorization": None}}, {"x-api-key": ENVIRONMENT}),
        (
            {"headers": {"Authorization": BEARER}, "api_key": "llmg_argument"},
            {"authorization": BEARER, "x-api-key": "llmg_argument"},
        ),
    ],
)
async def test_an_explicit_key_of_the_client_replaces_that_of_the_environment(
    arguments: Mapping[str, Any], sent: Mapping[str, str]
) -> None:
    transport = ScriptedTransport(chat_answer)
    async with AsyncClient(transport=transport, **arguments) as client:
        await client.chat(**HELLO)
        await client.chat_stream(**HELLO).text()
    assert [keys_of(request) for request in transport.requests] == [sent, sent]


@pytest.mark.parametrize(
    ("arguments", "extra", "sent"),
    [
        ({}, {"x-api-key": PROGRAM}, {"x-api-key": PROGRAM}),
        ({}, {"x-api-key": None}, {}),
        ({}, {"Authorization": BEARER}, {"authorization": BEARER}),
        ({}, {"x-other": "1"}, {"x-api-key": ENVIRONMENT}),
        ({"api_key": "llmg_argument"}, {"x-api-key": None}, {}),
        (
            {"api_key": "llmg_argument"},
            {"Authorization": BEARER},
            {"authorization": BEARER, "x-api-key": "llmg_argument"},
        ),
        ({"headers": {"Authorization": BEARER}}, {"authorization": None}, {}),
    ],
)
async def test_an_explicit_key_of_a_call_replaces_that_of_the_environment(
    arguments: Mapping[str, Any], extra: Mapping[str, str | None], sent: Mapping[str, str]
) -> None:
    transport = ScriptedTransport(chat_answer)
    async with AsyncClient(transport=transport, **arguments) as client:
        await client.chat(**HELLO, extra_headers=extra)
        async with client.batch(["hello"], model="gpt-4o-mini", extra_headers=extra) as batch:
            assert [outcome.error async for outcome in batch] == [None]
    assert [keys_of(request) for request in transport.requests] == [sent, sent]


async def test_an_assigned_api_key_overrides_the_environment() -> None:
    transport = ScriptedTransport(chat_answer)
    async with AsyncClient(transport=transport) as client:
        client.api_key = "llmg_assigned"
        await client.chat(**HELLO, extra_headers={"Authorization": BEARER})
        client.api_key = None
        await client.chat(**HELLO)
    sent = [keys_of(request) for request in transport.requests]
    assert sent == [{"authorization": BEARER, "x-api-key": "llmg_assigned"}, {}]


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        ({}, {"x-admin-key": ENVIRONMENT}),
        ({"x-admin-key": PROGRAM}, {"x-admin-key": PROGRAM}),
        ({"x-admin-key": None}, {}),
        ({"Authorization": BEARER}, {"authorization": BEARER, "x-admin-key": ENVIRONMENT}),
    ],
)
async def test_an_explicit_admin_key_replaces_that_of_the_environment(
    headers: Mapping[str, str | None], sent: Mapping[str, str]
) -> None:
    transport = ScriptedTransport(lambda _: httpx.Response(200, json=[]))
    async with AsyncAdminClient(transport=transport, headers=headers) as admin:
        await admin.list_orgs()
    assert [keys_of(request) for request in transport.requests] == [sent]


async def test_an_explicit_address_replaces_that_of_the_environment() -> None:
    assert Client(transport=httpx.MockTransport(chat_answer)).base_url == "https://environment.test"
    assert AsyncClient(base_url="https://program.test").base_url == "https://program.test"
    assert AsyncAdminClient(base_url="https://program.test").base_url == "https://program.test"


async def test_an_explicit_transport_or_context_replaces_the_environments_proxy_and_certificates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:1")
    proxied = AsyncClient()
    assert isinstance(proxied._session.carrier.transport, PerLoopTransport)
    mine = AnyIOTransport()
    assert AsyncClient(transport=mine)._session.carrier.transport is mine
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    context = ssl.create_default_context(cafile=None)
    AsyncClient(base_url="https://program.test", verify=context)  # reads nothing of the environment


async def test_none_leaves_out_a_header_that_the_client_sends() -> None:
    transport = ScriptedTransport(chat_answer)
    async with AsyncClient(
        transport=transport, user_id="u", headers={"User-Agent": None, "x-mine": "1", "Content-Type": None}
    ) as client:
        await client.chat(**HELLO)
        await client.chat(**HELLO, extra_headers={"X-Mine": None, "x-user-id": None, "accept": None})
    first, second = (request.headers for request in transport.requests)
    assert "user-agent" not in first
    assert "content-type" not in first
    assert (first["x-mine"], first["x-user-id"], first["accept"]) == ("1", "u", "*/*")
    assert {"x-mine", "x-user-id", "accept", "user-agent"}.isdisjoint(second)
    with pytest.raises(InvalidArgumentError, match=r"headers\['host'\] must be text"):
        AsyncClient(headers={"host": None})


async def test_an_explicit_content_type_is_sent() -> None:
    transport = ScriptedTransport(chat_answer)
    async with AsyncClient(
        transport=transport, headers={"content-type": "application/json; charset=utf-8"}
    ) as client:
        await client.chat(**HELLO)
    assert transport.requests[0].headers["content-type"] == "application/json; charset=utf-8"


@pytest.mark.parametrize(
    ("variable", "make"),
    [
        ("OMNIGATE_API_KEY", Client),
        ("OMNIGATE_API_KEY", AsyncClient),
        ("OMNIGATE_ADMIN_KEY", AdminClient),
        ("OMNIGATE_ADMIN_KEY", AsyncAdminClient),
        ("OMNIGATE_BASE_URL", Client),
        ("OMNIGATE_BASE_URL", AsyncAdminClient),
    ],
)
async def test_a_malformed_value_of_the_environment_names_its_variable(
    variable: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "llmg_secret\n")
    with pytest.raises(InvalidArgumentError, match=rf"^\${variable} must ") as caught:
        make()
    if "KEY" in variable:
        assert "secret" not in str(caught.value)


async def test_a_malformed_value_of_the_environment_that_is_not_used_does_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMNIGATE_API_KEY", "bad\nkey")
    monkeypatch.setenv("OMNIGATE_BASE_URL", "nowhere")
    client = AsyncClient(PROGRAM, base_url="https://program.test")
    assert (client.api_key, client.base_url) == (PROGRAM, "https://program.test")
    with pytest.raises(InvalidArgumentError, match=r"^api_key must "):
        AsyncClient("bad\nkey", base_url="https://program.test")
