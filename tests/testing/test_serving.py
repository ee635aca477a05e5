"""The local gateway over real sockets: start, stop, cuts, garbage, client hang-ups, and the pytest fixture."""

import gc
import socket
import threading
from typing import Any

import anyio
import httpx
import pytest

from omnigate import APIError, AsyncClient, Client, ConnectionError, InvalidArgumentError, RetryConfig
from omnigate.testing import Answer, Cut, Garbage, LocalGateway, StreamFailure

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}
ONCE = RetryConfig(max_retries=0)
THREAD = "omnigate-local-gateway"


def gateway_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == THREAD]


@pytest.mark.anyio
async def test_local_gateway_serves_inside_async_with() -> None:
    async with LocalGateway() as gateway:
        async with AsyncClient(gateway.api_key, base_url=gateway.url) as client:
            assert (await client.chat(**HELLO)).content == "echo[gpt-4o-mini]: hello"
        assert gateway_threads() == [THREAD]
    assert gateway_threads() == []


def test_stopping_the_gateway_leaves_no_thread_or_listener_despite_open_clients() -> None:
    with LocalGateway(chunk_delay_seconds=60) as gateway:
        address = gateway.url.removeprefix("http://").split(":")
        idle = socket.create_connection((address[0], int(address[1])))
        with Client(gateway.api_key, base_url=gateway.url) as client:
            stream = client.chat_stream(**HELLO)
            assert next(stream) == "echo[gpt-4o-mini]: "
            gateway.__exit__(None, None, None)
            with pytest.raises(ConnectionError):
                next(stream)
        idle.close()
    assert gateway_threads() == []
    gc.collect()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((address[0], int(address[1])))


def test_local_gateway_can_be_restarted_and_keeps_its_state() -> None:
    gateway = LocalGateway()
    for _ in range(2):
        with gateway, Client(gateway.api_key, base_url=gateway.url) as client:
            client.chat(**HELLO)
    assert len(gateway.requests) == 2
    with pytest.raises(RuntimeError, match="is not running"):
        _ = gateway.url


def test_local_gateway_on_a_port_in_use_raises_on_entry() -> None:
    with LocalGateway() as gateway:
        port = int(gateway.url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"), LocalGateway(port=port):
            pytest.fail("served")
        with pytest.raises(RuntimeError, match="is already running"):
            gateway.__enter__()


def test_pytest_fixture_serves_a_fresh_gateway(omnigate_gateway: LocalGateway) -> None:
    with Client(omnigate_gateway.api_key, base_url=omnigate_gateway.url) as client:
        assert client.me().configured_providers == ["anthropic", "gemini", "openai"]


@pytest.mark.parametrize(
    "fault", [Cut(), Cut(after_bytes=0), Cut(after_bytes=10), Garbage(b"\x00\x01garbage\r\n\r\n")]
)
def test_scripted_cut_or_garbage_raises_a_connection_error_for_that_call_only(
    omnigate_gateway: LocalGateway, fault: Any
) -> None:
    with Client(omnigate_gateway.api_key, base_url=omnigate_gateway.url, retry_config=ONCE) as client:
        omnigate_gateway.script(fault)
        with pytest.raises(ConnectionError) as caught:
            client.chat(**HELLO)
        assert caught.value.was_sent
        assert client.chat(**HELLO).content == "echo[gpt-4o-mini]: hello"


def test_scripted_cut_ends_a_stream_after_the_given_bytes(omnigate_gateway: LocalGateway) -> None:
    with Client(omnigate_gateway.api_key, base_url=omnigate_gateway.url, retries=0) as client:
        for cut in (0, 1, 19, 24):
            omnigate_gateway.script(Cut(after_bytes=cut))
            pieces: list[str] = []
            with pytest.raises(ConnectionError, match=f"broke after {cut} bytes"):
                for piece in client.chat_stream(**HELLO):
                    pieces.append(piece)
            assert "".join(pieces) == "echo[gpt-4o-mini]: hello"[:cut]


def test_served_gateway_drops_the_connection_for_a_model_with_a_line_break(
    omnigate_gateway: LocalGateway,
) -> None:
    body = {"model": "gpt\n", "messages": [{"role": "user", "content": "x"}]}
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        httpx.post(
            f"{omnigate_gateway.url}/v1/chat", json=body, headers={"x-api-key": omnigate_gateway.api_key}
        )


def test_client_reads_any_text_split_into_single_bytes(omnigate_gateway: LocalGateway) -> None:
    text = "Héllo 👩‍👩‍👧 日本語\n[err"
    with Client(omnigate_gateway.api_key, base_url=omnigate_gateway.url) as client:
        omnigate_gateway.script(Answer([bytes([byte]) for byte in text.encode()]))
        assert client.chat_stream(**HELLO).text() == text
        omnigate_gateway.script(StreamFailure("boom", after_bytes=3))
        with pytest.raises(Exception, match="boom"):
            client.chat_stream(**HELLO).text()


def requests_counted(gateway: LocalGateway) -> int:
    with Client(gateway.api_key, base_url=gateway.url) as client:
        return client.metrics().totals.requests


@pytest.mark.anyio
async def test_stream_usage_is_recorded_only_if_read_to_the_end() -> None:
    async with LocalGateway(chunk_delay_seconds=0.01, usage_delay_seconds=0.05) as gateway:
        async with AsyncClient(gateway.api_key, base_url=gateway.url) as client:
            async with client.chat_stream(**HELLO) as stream:
                await anext(stream)
            assert await anyio.to_thread.run_sync(requests_counted, gateway) == 0
            for include_usage in (False, True):
                async with client.chat_stream(**HELLO, include_usage=include_usage) as stream:
                    await stream.text()
            async with client.completions_stream(**HELLO) as stream:
                async for _ in stream:
                    pass
            assert await anyio.to_thread.run_sync(requests_counted, gateway) == 3


def hang_up_at_done(gateway: LocalGateway) -> None:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x"}], "stream": True}
    url, headers = f"{gateway.url}/v1/chat/completions", {"x-api-key": gateway.api_key}
    with httpx.stream("POST", url, json=body, headers=headers) as response:
        for line in response.iter_lines():
            if line == "data: [DONE]":
                break


@pytest.mark.anyio
async def test_our_client_keeps_the_usage_record_that_hanging_up_at_done_loses() -> None:
    async with LocalGateway(usage_delay_seconds=0.05) as gateway:
        await anyio.to_thread.run_sync(hang_up_at_done, gateway)
        async with AsyncClient(gateway.api_key, base_url=gateway.url) as client:
            async with client.completions_stream(**HELLO) as stream:
                async for _ in stream:
                    pass
        assert await anyio.to_thread.run_sync(requests_counted, gateway) == 1


def outcomes_of(gateway: LocalGateway) -> list[int]:
    """Call a gateway without retries, and return the statuses."""
    statuses = []
    with gateway, Client(gateway.api_key, base_url=gateway.url, retries=0) as client:
        for model in ["gpt-4o-mini", "claude-3-5-haiku-latest"] * 30:
            try:
                client.chat(model=model, messages="hi")
                statuses.append(200)
            except APIError as error:
                statuses.append(error.status_code or 0)
    return statuses


def test_failures_by_chance_are_the_same_with_the_same_seed() -> None:
    first = outcomes_of(LocalGateway(fail_rate=0.2, seed=1))
    assert first == outcomes_of(LocalGateway(fail_rate=0.2, seed=1))
    assert first != outcomes_of(LocalGateway(fail_rate=0.2, seed=2))
    assert {200, 500, 503, 429} <= set(first)
    assert 30 <= first.count(200) <= 57
    assert set(outcomes_of(LocalGateway())) == {200}
    assert 200 not in outcomes_of(LocalGateway(fail_rate=1))


def test_a_project_has_the_key_that_it_is_given() -> None:
    with LocalGateway() as gateway:
        project = gateway.create_project(api_key="llmg_a-fixed-key")
        assert project.api_key == "llmg_a-fixed-key"
        with Client("llmg_a-fixed-key", base_url=gateway.url) as client:
            assert client.me().project_id == project.project_id
        with pytest.raises(InvalidArgumentError, match=r"^api_key must be no other project's, got \*\*\*$"):
            gateway.create_project(api_key="llmg_a-fixed-key")


WRONG_KEYS = [
    "llmg_short",
    "",
    "a-key-of-another-form",
    "llmg_with a blank",
    "llmg_schlüssel",
    "LLMG_a-fixed-key",
]


@pytest.mark.parametrize("wrong", WRONG_KEYS)
def test_a_fixed_key_has_the_form_of_a_key_and_is_not_shown_when_refused(wrong: str) -> None:
    must = r"^api_key must be 'llmg_' and at least 7 letters, digits, '-' or '_', got \*\*\*$"
    with pytest.raises(InvalidArgumentError, match=must):
        LocalGateway(api_key=wrong)
    with pytest.raises(InvalidArgumentError, match=must):
        LocalGateway().create_project(api_key=wrong)


def test_a_gateway_with_a_fixed_key_takes_it_from_the_first_call() -> None:
    with LocalGateway(api_key="llmg_a-fixed-key") as gateway:
        with Client("llmg_a-fixed-key", base_url=gateway.url) as client:
            assert client.chat(**HELLO).content
            assert client.me().configured_providers == ["anthropic", "gemini", "openai"]
        assert gateway.api_key == "llmg_a-fixed-key"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fail_rate": 1.5}, "fail_rate must be "),
        ({"fail_rate": -0.1}, "fail_rate must be "),
        ({"seed": -1}, "seed must be an integer"),
        ({"seed": "x"}, "seed must be an integer"),
    ],
)
def test_settings_for_failures_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LocalGateway(**options)
