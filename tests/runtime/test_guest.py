"""Trio as a guest of asyncio: both run in one thread, and each task belongs to one of them."""

import asyncio
from typing import Any

import anyio
import httpx
import pytest
import trio

from omnigate import AsyncClient
from omnigate._runtime.loops import current_loop, in_trio

from ..support.scripted import ChunkStream, chat_answer

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}


def answer(request: httpx.Request) -> httpx.Response:
    if b'"stream":true' in request.content:
        return httpx.Response(200, stream=ChunkStream([b"a", b"b"]))
    return chat_answer()


async def use(client: AsyncClient) -> list[str]:
    """Use what asks for the event loop: a call, a stream and a batch."""
    used = [(await client.chat(**HELLO)).content]
    async with client.chat_stream(**HELLO) as stream:
        used.append(await stream.text())
    async with client.batch([HELLO, HELLO]) as batch:
        used += [outcome.response.content async for outcome in batch if outcome.response]
    return used


def test_one_client_works_in_tasks_of_asyncio_and_of_trio_as_its_guest() -> None:
    async def guest() -> list[str]:
        assert in_trio()
        loops.append(current_loop())
        used = await use(client)
        host_may_end.set()
        await guest_may_end.wait()
        return used

    async def host() -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            guest,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.set_result,
            host_uses_signal_set_wakeup_fd=True,
        )
        with anyio.fail_after(10):
            await host_may_end_seen()
            assert not in_trio()
            assert current_loop() is loop
            assert await use(client) == ["hello", "ab", "hello", "hello"]
            guest_may_end.set()
            assert (await done).unwrap() == ["hello", "ab", "hello", "hello"]
            assert loops[0] is not loop
            await client.aclose()

    async def host_may_end_seen() -> None:
        while not host_may_end.is_set():
            await asyncio.sleep(0)

    loops: list[Any] = []
    host_may_end, guest_may_end = trio.Event(), trio.Event()
    client = AsyncClient("k", transport=httpx.MockTransport(answer))
    asyncio.run(host())


def test_no_event_loop_is_running_outside_of_one_even_where_trio_is_imported() -> None:
    assert not in_trio()
    with pytest.raises(RuntimeError, match="no running event loop"):
        current_loop()
