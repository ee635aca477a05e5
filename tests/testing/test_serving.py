"""The local gateway over real sockets: start, stop, cuts, garbage, hang-ups, and the pytest fixture."""

import gc
import socket
import threading
from typing import Any

import anyio
import httpx
import pytest

from omnigate import AsyncClient, Client, ConnectionError, RetryConfig
from omnigate.testing import Answer, Cut, Garbage, LocalGateway, StreamFailure

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}
ONCE = RetryConfig(max_retries=0)
THREAD = "omnigate-local-gateway"


def gateway_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == THREAD]


@pytest.mark.anyio
async def test_it_serves_inside_async_with_on_either_event_loop() -> None:
    async with LocalGateway() as gateway:
        async with AsyncClient(gateway.api_key, base_url=gateway.url) as client:
            assert (await client.chat(**HELLO)).content == "echo[gpt-4o-mini]: hello"
        assert gateway_threads() == [THREAD]
    assert gateway_threads() == []


def test_stopping_leaves_no_thread_and_no_socket_whatever_clients_still_hold_open() -> None:
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


def test_it_can_be_served_again_with_what_it_remembers() -> None:
    gateway = LocalGateway()
    for _ in range(2):
        with gateway, Client(gateway.api_key, base_url=gateway.url) as client:
            client.chat(**HELLO)
    assert len(gateway.requests) == 2
    with pytest.raises(RuntimeError, match="is not running"):
        _ = gateway.url


def test_a_port_that_is_taken_is_an_error_at_once() -> None:
    with LocalGateway() as gateway:
        port = int(gateway.url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"), LocalGateway(port=port):
            pytest.fail("served")
        with pytest.raises(RuntimeError, match="is already running"):
            gateway.__enter__()


def test_the_fixture_serves_a_fresh_gateway(omnigate_gateway: LocalGateway) -> None:
    with Client(omnigate_gateway.api_key, base_url=omnigate_gateway.url) as client:
        assert client.me().configured_providers == ["anthropic", "gemini", "openai"]


@pytest.mark.parametrize(
    "fault", [Cut(), Cut(after_bytes=0), Cut(after_bytes=10), Garbage(b"\x00\x01garbage\r\n\r\n")]
)
def test_a_cut_and_garbage_are_connection_errors_and_only_for_the_scripted_call(
    omnigate_gateway: LocalGateway, fault: Any
) -> None:
    with Client(omnigate_gateway.api_key, base_url=omnigate_gateway.url, retry_config=ONCE) as client:
        omnigate_gateway.script(fault)
        with pytest.raises(ConnectionError) as caught:
            client.chat(**HELLO)
        assert caught.value.was_sent
        assert client.chat(**HELLO).content == "echo[gpt-4o-mini]: hello"


def test_a_stream_can_be_cut_at_any_byte(omnigate_gateway: LocalGateway) -> None:
    with Client(omnigate_gateway.api_key, base_url=omnigate_gateway.url, retries=0) as client:
        for cut in (0, 1, 19, 24):
            omnigate_gateway.script(Cut(after_bytes=cut))
            pieces: list[str] = []
            with pytest.raises(ConnectionError, match=f"broke after {cut} bytes"):
                for piece in client.chat_stream(**HELLO):
                    pieces.append(piece)
            assert "".join(pieces) == "echo[gpt-4o-mini]: hello"[:cut]


def test_a_model_with_a_line_break_is_answered_by_silence(omnigate_gateway: LocalGateway) -> None:
    body = {"model": "gpt\n", "messages": [{"role": "user", "content": "x"}]}
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        httpx.post(
            f"{omnigate_gateway.url}/v1/chat", json=body, headers={"x-api-key": omnigate_gateway.api_key}
        )


def test_any_text_split_at_any_byte_comes_through(omnigate_gateway: LocalGateway) -> None:
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
async def test_hanging_up_in_a_stream_records_nothing_and_reading_to_the_end_does() -> None:
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
async def test_hanging_up_at_done_loses_the_usage_record_which_our_client_does_not() -> None:
    async with LocalGateway(usage_delay_seconds=0.05) as gateway:
        await anyio.to_thread.run_sync(hang_up_at_done, gateway)
        async with AsyncClient(gateway.api_key, base_url=gateway.url) as client:
            async with client.completions_stream(**HELLO) as stream:
                async for _ in stream:
                    pass
        assert await anyio.to_thread.run_sync(requests_counted, gateway) == 1
