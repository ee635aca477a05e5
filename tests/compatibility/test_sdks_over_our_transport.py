"""The official SDKs, which use httpx2, over `AnyIOTransport`."""

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import anyio
import httpx2
import openai
import pytest

from omnigate import AnyIOTransport
from omnigate.testing import Delay, LocalGateway

from ..support.servers import Peer, serving, until

pytestmark = pytest.mark.anyio

HI: Any = [{"role": "user", "content": "Say hi in French"}]
TEXT = "echo[gpt-4o-mini]: Say hi in French"


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The SDKs sleep and look up their environment with asyncio."""
    name: str = request.param
    return name


@pytest.fixture
def transport() -> AnyIOTransport:
    return AnyIOTransport(max_connections=2)


@pytest.fixture
async def sdk(omnigate_gateway: LocalGateway, transport: AnyIOTransport) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{omnigate_gateway.url}/v1",
        api_key=omnigate_gateway.api_key,
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=transport),
    ) as client:
        yield client


async def test_the_openai_sdk_completes_over_our_transport(
    sdk: openai.AsyncOpenAI, transport: AnyIOTransport
) -> None:
    for _ in range(3):
        completion = await sdk.chat.completions.create(model="gpt-4o-mini", messages=HI)
        assert completion.choices[0].message.content == TEXT
    assert (transport.stats()["idle"], transport.stats()["in_use"]) == (1, 0)
    with pytest.raises(openai.NotFoundError):
        await sdk.models.retrieve("nope")


async def test_the_openai_sdk_streams_over_our_transport(
    sdk: openai.AsyncOpenAI, transport: AnyIOTransport
) -> None:
    stream = await sdk.chat.completions.create(model="gpt-4o-mini", messages=HI, stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == TEXT
    async with await sdk.chat.completions.create(model="gpt-4o-mini", messages=HI, stream=True) as stream:
        await anext(aiter(stream))
    assert transport.stats()["in_use"] == 0


async def test_the_openai_sdk_raises_its_errors_over_our_transport(
    sdk: openai.AsyncOpenAI, omnigate_gateway: LocalGateway
) -> None:
    omnigate_gateway.script(Delay(30))
    with pytest.raises(openai.APITimeoutError):
        await sdk.with_options(timeout=0.01).chat.completions.create(model="gpt-4o-mini", messages=HI)
    unreachable = sdk.with_options(base_url="http://127.0.0.1:9/v1")
    with pytest.raises(openai.APIConnectionError) as caught:
        await unreachable.models.list()
    assert isinstance(caught.value.__cause__, httpx2.ConnectError)


async def test_a_cancelled_call_of_the_openai_sdk_leaves_nothing_behind(transport: AnyIOTransport) -> None:
    reached = anyio.Event()

    async def stall(peer: Peer) -> None:
        await peer.request()
        await peer.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        reached.set()
        await peer.closed()

    async def call(stream: bool) -> None:
        answer: Any = await sdk.chat.completions.create(model="gpt-4o-mini", messages=HI, stream=stream)
        async for _ in answer:
            pass

    http_client = httpx2.AsyncClient(transport=transport)
    async with (
        serving(stall) as server,
        openai.AsyncOpenAI(base_url=server.url, api_key="k", http_client=http_client) as sdk,
    ):
        for stream in (False, True):
            reached = anyio.Event()
            with anyio.fail_after(10):
                async with anyio.create_task_group() as group:
                    group.start_soon(call, stream)
                    await reached.wait()
                    group.cancel_scope.cancel()
                await until(lambda: server.open == 0)
            stats = transport.stats()
            assert (stats["idle"], stats["in_use"], stats["opening"], stats["waiting"]) == (0, 0, 0, 0)


async def test_the_anthropic_sdk_works_over_our_transport(transport: AnyIOTransport) -> None:
    body = (
        b'{"id":"m","type":"message","role":"assistant","model":"claude","content":[{"type":"text","text":"hello"}],'
        b'"stop_reason":"end_turn","usage":{"input_tokens":1,"output_tokens":1}}'
    )
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with (
        serving(head + body) as server,
        anthropic.AsyncAnthropic(
            base_url=server.url, api_key="k", http_client=httpx2.AsyncClient(transport=transport)
        ) as sdk,
    ):
        message = await sdk.messages.create(model="claude", max_tokens=9, messages=HI)
    assert [getattr(block, "text", None) for block in message.content] == ["hello"]
    assert server.received[0].target == "/v1/messages"
