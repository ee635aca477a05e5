"""The pytest plugin: a factory with settings, gateways in-process, and trio's autojump clock."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
import trio.testing

from omnigate import AsyncClient, Client, ConnectionError, ProviderError, RateLimitError
from omnigate.testing import Cut, Fault, Garbage, GatewayFactory, GatewaySettings, LocalGateway

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}
AUTOJUMP = "does not work under trio's autojump clock"


def test_the_factory_serves_gateways_with_their_own_settings(
    omnigate_gateway_factory: GatewayFactory,
) -> None:
    tight = omnigate_gateway_factory(rate_limit_per_min=1, latency_seconds=0.01)
    loose = omnigate_gateway_factory()
    assert tight.url != loose.url
    with Client(base_url=tight.url) as newcomer:
        account = newcomer.signup(email="dev@acme.test")
    with Client(account.api_key, base_url=tight.url, retries=0) as client:
        client.set_provider_key(provider="openai", api_key="sk-any-key-will-do")
        assert client.chat(**HELLO).content == "echo[gpt-4o-mini]: hello"
        with pytest.raises(RateLimitError):
            client.chat(**HELLO)


def test_gateway_settings_are_the_arguments_of_a_local_gateway() -> None:
    arguments = inspect.signature(LocalGateway).parameters
    assert set(GatewaySettings.__annotations__) == set(arguments)


def test_a_gateway_without_providers_answers_with_the_error_for_a_missing_provider_key(
    omnigate_gateway_factory: GatewayFactory,
) -> None:
    gateway = omnigate_gateway_factory(providers=())
    with Client(gateway.api_key, base_url=gateway.url) as client:
        with pytest.raises(ProviderError, match="No openai key configured"):
            client.chat(**HELLO)


@pytest.mark.parametrize("providers", ["openai", ["openai", "acme"], 3])
def test_a_gateway_refuses_providers_that_it_does_not_know(providers: Any) -> None:
    with pytest.raises(ValueError, match="providers must be an iterable, each item "):
        LocalGateway(providers=providers)


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_a_gateway_in_process_follows_virtual_time(omnigate_gateway_factory: GatewayFactory) -> None:
    gateway = omnigate_gateway_factory(serve=False, latency_seconds=1_000)
    project = gateway.create_project(rate_limit_per_min=1)
    async with AsyncClient(project.api_key, transport=gateway.asgi_transport(), timeout=None) as client:
        began = anyio.current_time()
        for _ in range(5):  # each in a window of its own
            await client.chat(**HELLO)
        assert anyio.current_time() - began >= 5_000
        assert [request.path for request in gateway.requests] == ["/v1/chat"] * 5


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_a_client_waits_out_the_rate_limit_of_a_gateway_in_process_in_virtual_time(
    omnigate_gateway_in_process: LocalGateway,
) -> None:
    project = omnigate_gateway_in_process.create_project(rate_limit_per_min=2)
    transport = omnigate_gateway_in_process.asgi_transport()
    began = anyio.current_time()
    with anyio.fail_after(3_600):
        async with AsyncClient(project.api_key, transport=transport) as client:
            attempts = [(await client.chat(**HELLO)).meta.attempts for _ in range(6)]
    assert sum(attempts) == 6 + 2  # the third and the fifth call are refused once
    assert 60 < anyio.current_time() - began < 240


@pytest.mark.anyio
@pytest.mark.parametrize("fault", [Cut(), Cut(after_bytes=3), Garbage(b"x")])
async def test_a_scripted_cut_in_process_raises_a_connection_error(
    omnigate_gateway_in_process: LocalGateway, fault: Fault
) -> None:
    omnigate_gateway_in_process.script(fault)
    transport = omnigate_gateway_in_process.asgi_transport()
    async with AsyncClient(omnigate_gateway_in_process.api_key, transport=transport, retries=0) as client:
        with pytest.raises(ConnectionError):
            await client.chat(**HELLO)
        assert (await client.chat(**HELLO)).content == "echo[gpt-4o-mini]: hello"


@pytest.mark.anyio
async def test_a_served_gateway_refuses_to_start_under_the_autojump_clock(anyio_backend_name: str) -> None:
    if anyio_backend_name != "trio":
        async with LocalGateway() as gateway:
            assert gateway.url
        return

    async def enter() -> None:
        with pytest.raises(RuntimeError, match=AUTOJUMP):
            async with LocalGateway():
                pytest.fail("served")
        with pytest.raises(RuntimeError, match=AUTOJUMP):
            with LocalGateway():
                pytest.fail("served")

    def in_a_thread() -> None:
        trio.run(enter, clock=trio.testing.MockClock(autojump_threshold=0))

    await anyio.to_thread.run_sync(in_a_thread)


def test_a_served_gateway_starts_under_a_clock_that_does_not_jump() -> None:
    async def enter() -> str:
        async with LocalGateway() as gateway:
            return gateway.url

    assert trio.run(enter, clock=trio.testing.MockClock(rate=1.0)).startswith("http://127.0.0.1:")


TESTS = """
import pytest, trio, trio.testing
from omnigate import AsyncClient

@pytest.mark.trio
async def test_pytest_trio_served(omnigate_gateway, autojump_clock):
    print("ran")

@pytest.fixture(params=[("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)})])
def anyio_backend(request):
    return request.param

@pytest.mark.anyio
async def test_anyio_served(omnigate_gateway):
    print("ran")

@pytest.mark.anyio
async def test_factory_served(omnigate_gateway_factory):
    omnigate_gateway_factory()
    print("ran")

@pytest.mark.trio
async def test_pytest_trio_in_process(omnigate_gateway_in_process, autojump_clock):
    gateway = omnigate_gateway_in_process
    async with AsyncClient(gateway.api_key, transport=gateway.asgi_transport()) as client:
        answer = await client.chat(model="gpt-4o-mini", messages="hi")
        assert answer.content == "echo[gpt-4o-mini]: hi"

@pytest.mark.trio
async def test_pytest_trio_served_in_real_time(omnigate_gateway):
    async with AsyncClient(omnigate_gateway.api_key, base_url=omnigate_gateway.url) as client:
        await client.chat(model="gpt-4o-mini", messages="hi")
"""


@pytest.mark.proof
def test_a_test_with_a_served_gateway_and_the_autojump_clock_fails_with_what_to_use(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "test_it.py"],
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "500"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    assert [re.findall(r"::(\w+)", line)[0] for line in failed] == [
        "test_pytest_trio_served",
        "test_anyio_served",
        "test_factory_served",
    ], done.stdout
    assert all(AUTOJUMP in line for line in failed), done.stdout
    assert done.stdout.count("omnigate_gateway_factory(serve=False)") >= 3
    assert "2 passed" in done.stdout
    assert "ran" not in done.stdout.split()
