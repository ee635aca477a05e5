"""The transport on uvloop: its calls, and cancelling them at every await."""

import asyncio
from typing import Any

import anyio
import pytest
import uvloop

from omnigate._transport.anyio_transport import AnyIOTransport

from ..support.cancellation import ASYNCIO_WAYS
from ..support.servers import OK, Peer, serving
from .test_cancellation import CHUNKED, check_real, half_read, streamed_request, whole


def run(main: Any, *arguments: Any) -> None:
    async def bounded() -> None:
        with anyio.fail_after(30):
            await main(*arguments)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


def test_connections_are_kept_and_shared() -> None:
    async def main() -> None:
        async with serving() as server:
            transport = AnyIOTransport(max_connections=5)
            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(whole, transport, server.url)
            for _ in range(3):
                await whole(transport, server.url)
            assert server.accepted == 5
            await transport.aclose()

    run(main)


def test_what_came_unasked_is_noticed() -> None:
    async def main() -> None:
        async def talkative(peer: Peer) -> None:
            await peer.request()
            await peer.send(OK)
            await peer.send(OK)
            await peer.closed()

        async with serving(talkative) as server:
            for wait in range(30):
                transport = AnyIOTransport()
                await whole(transport, server.url)
                for _ in range(wait):
                    await asyncio.sleep(0)
                await asyncio.sleep(0.002)
                (pool,) = transport._pools.values()
                assert not any(connection.is_quiet() for stack in pool._idle.values() for connection in stack)
                await transport.aclose()

    run(main)


@pytest.mark.parametrize("way", dict.fromkeys(ASYNCIO_WAYS))
@pytest.mark.parametrize("use", [whole, streamed_request, half_read])
@pytest.mark.parametrize("is_kept", [False, True], ids=["new", "kept"])
def test_cancelled_everywhere(way: str, use: Any, is_kept: bool) -> None:
    async def main() -> None:
        async with serving(b"".join(CHUNKED)) as server:
            transport = AnyIOTransport(max_connections=2)
            assert await check_real(server, transport, use, way, is_kept=is_kept) >= 2

    run(main)
