"""One task that reads for all tasks that wait on trio: when it runs, what it never misses, and where it does without."""

import errno
import logging
import select
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio.lowlevel import spawn_system_task

from omnigate import AnyIOTransport, AsyncClient
from omnigate._transport import trio_receiver
from omnigate._transport.trio_receiver import current_receiver
from omnigate._transport.trio_stream import TrioStream

from ..support.cancellation import count_system_tasks
from ..support.raw_server import chat_bytes
from ..support.servers import Peer, serving, until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True),
    pytest.mark.skipif(not trio_receiver.HAS_EPOLL, reason="there is no epoll"),
]

TASK = "omnigate: receive"


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve a task even if it alone waits."""
    monkeypatch.setattr(trio_receiver, "FEW", 0)


@contextmanager
def pair() -> Iterator[tuple[TrioStream, socket.socket]]:
    """Yield a stream, and the other end of its connection."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    stream = TrioStream(ours)
    try:
        with theirs:
            yield stream, theirs
    finally:
        stream.abort()


def receivers() -> int:
    return count_system_tasks(TASK)


async def receive_into(received: list[Any], stream: TrioStream) -> None:
    try:
        received.append(await stream.receive())
    except OSError as error:
        received.append(error)


@asynccontextmanager
async def receiving(stream: TrioStream) -> AsyncIterator[list[Any]]:
    """Receive in a task that is served: it waits when the block begins, and has ended when it ends."""
    received: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive_into, received, stream)
        await until(lambda: stream._task is not None)
        yield received


async def test_one_task_reads_for_many_and_ends_when_none_waits() -> None:
    may_answer = trio.Event()

    async def answers_late(peer: Peer) -> None:
        while True:
            await peer.request()
            await may_answer.wait()
            await peer.send(chat_bytes())

    async with serving(answers_late) as server:
        transport = AnyIOTransport(max_connections=None)
        async with AsyncClient("llmg_test", base_url=server.url, transport=transport) as client:
            contents: list[str] = []

            async def call() -> None:
                contents.append((await client.chat(model="m", messages="hello")).content)

            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    for _ in range(trio_receiver.FEW):
                        nursery.start_soon(call)
                    await until(lambda: current_receiver().alone == trio_receiver.FEW)
                    assert receivers() == 0
                    for _ in range(50):
                        nursery.start_soon(call)
                    await until(lambda: current_receiver().served == 50)
                    assert receivers() == 1
                    may_answer.set()
            assert contents == [contents[0]] * (50 + trio_receiver.FEW)
            await until(lambda: receivers() == 0)
            assert current_receiver().alone == current_receiver().served == 0


@pytest.mark.usefixtures("always")
async def test_what_arrives_while_no_task_waits_is_received_at_once() -> None:
    with pair() as (stream, other), pair() as (silent, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(silent.receive)  # keeps the task that reads
            received: list[Any] = []
            nursery.start_soon(receive_into, received, stream)
            await trio.testing.wait_all_tasks_blocked()
            other.send(b"first")
            await until(lambda: received == [b"first"])
            other.send(b"second")
            await until(lambda: stream._may_have_more)
            with trio.fail_after(5):
                assert await stream.receive() == b"second"
                nursery.start_soon(receive_into, received, stream)
                await until(lambda: stream._task is not None)
                other.send(b"third")
                await until(lambda: received == [b"first", b"third"])
            nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("always")
async def test_the_end_that_came_with_the_last_bytes_is_received_after_them() -> None:
    with pair() as (stream, other):
        async with receiving(stream) as received:
            other.send(b"last")
            other.shutdown(socket.SHUT_WR)
        with trio.fail_after(5):
            assert await stream.receive() == b""
            assert await stream.receive() == b""
        assert received == [b"last"]


@pytest.mark.usefixtures("always")
async def test_more_than_one_read_takes_is_received_whole() -> None:
    sent = bytes(range(256)) * 1_000
    with pair() as (stream, other):
        other.setblocking(False)
        received = bytearray()

        async def receive() -> None:
            while len(received) < len(sent):
                received.extend(await stream.receive())

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                await trio.testing.wait_all_tasks_blocked()
                start = 0
                while start < len(sent):
                    try:
                        start += other.send(sent[start:])
                    except BlockingIOError:
                        await trio.lowlevel.checkpoint()
        assert received == sent


@pytest.mark.usefixtures("always")
async def test_a_server_that_sends_faster_than_is_read_does_not_keep_others_from_running() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    with pair() as (stream, other):
        other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        async with receiving(stream) as received:
            other.setblocking(False)
            sent = other.send(bytes(1 << 20))
        assert [len(data) for data in received] == [65_536]
        assert sent >= 3 * 65_536
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            await until(lambda: turns > 0)
            before = turns
            for _ in range(2):
                assert len(await stream.receive()) == 65_536
            assert turns > before
            nursery.cancel_scope.cancel()
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.receive()
        assert scope.cancelled_caught
        assert len(await stream.receive()) > 0


@pytest.mark.usefixtures("always")
async def test_a_wait_that_is_cancelled_loses_nothing_and_ends_the_task() -> None:
    with pair() as (stream, other):
        with trio.move_on_after(0):
            await stream.receive()
        assert stream._task is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive)
            await until(lambda: stream._task is not None)
            assert receivers() == 1
            nursery.cancel_scope.cancel()
        await until(lambda: receivers() == 0)
        other.send(b"after all")
        with trio.fail_after(5):
            assert await stream.receive() == b"after all"


@pytest.mark.usefixtures("always")
async def test_closing_wakes_the_task_that_waits() -> None:
    with pair() as (stream, _):
        async with receiving(stream) as received:
            stream.abort()
        assert [str(error) for error in received] == ["the connection was closed"]
        await until(lambda: receivers() == 0)
        assert current_receiver()._epoll is None
        with pytest.raises(OSError, match="the connection was closed"):
            await stream.receive()


@pytest.mark.usefixtures("always")
async def test_a_reset_is_raised_by_the_task_that_waits() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    stream = TrioStream(ours)
    async with receiving(stream) as received:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        theirs.close()
    assert [error.errno for error in received] == [errno.ECONNRESET]
    stream.abort()


@pytest.mark.usefixtures("always")
async def test_a_connection_that_is_lent_is_not_watched_meanwhile() -> None:
    with pair() as (stream, other):
        async with receiving(stream) as received:
            other.send(b"one")
        assert current_receiver()._streams
        descriptor = stream.lend()
        assert descriptor is not None
        assert not current_receiver()._streams
        with socket.socket(fileno=descriptor) as lent:
            other.send(b"two")
            assert lent.recv(3) == b"two"
            other.send(b"three")
            stream.take_back()
            with trio.fail_after(5):
                assert await stream.receive() == b"three"
        assert received == [b"one"]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("at", ["epoll", "register", "task"])
async def test_tasks_wait_for_themselves_where_the_system_has_no_room(
    at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> Any:
        if at == "task":
            raise RuntimeError("the nursery is closed")
        raise OSError(errno.EMFILE, "too many open files")

    class Full:
        register = fails

        def close(self) -> None:
            pass

    if at == "task":
        monkeypatch.setattr(trio_receiver, "spawn_system_task", fails)
    else:
        monkeypatch.setattr(select, "epoll", fails if at == "epoll" else Full)
    with pair() as (stream, other):
        received: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_into, received, stream)
            await until(lambda: current_receiver().alone == 1)
            other.send(b"hello")
        assert received == [b"hello"]
        assert receivers() == 0


@pytest.mark.usefixtures("always")
async def test_a_bug_in_the_task_that_reads_is_logged_and_loses_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pair() as (stream, other):
        with caplog.at_level(logging.ERROR, logger="omnigate"), monkeypatch.context() as patch:

            def buggy(*_: object) -> None:
                raise ZeroDivisionError

            patch.setattr(TrioStream, "arrived", buggy)
            async with receiving(stream) as received:
                other.send(b"hello")
        assert received == [b"hello"]
        assert [record.getMessage() for record in caplog.records] == ["the task that receives failed"]
        other.send(b"again")
        assert await stream.receive() == b"again"
        assert current_receiver().alone == current_receiver().served == 0


@pytest.mark.usefixtures("always")
async def test_closing_all_connections_in_the_turn_the_task_starts_ends_it() -> None:
    for _ in range(3):
        with pair() as (stream, _other):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive_into, [], stream)
                while stream._task is None:
                    await trio.lowlevel.checkpoint()
                stream.abort()  # the task that reads may not have run yet
        await until(lambda: receivers() == 0)


def test_clean_up_that_outlives_the_main_task_waits_for_itself(
    monkeypatch: pytest.MonkeyPatch, anyio_backend: object
) -> None:
    monkeypatch.setattr(trio_receiver, "FEW", 0)
    received: list[Any] = []

    async def clean_up(stream: TrioStream) -> None:
        with trio.CancelScope(shield=True):
            received.append(await stream.receive())

    async def answer(other: socket.socket) -> None:
        with trio.CancelScope(shield=True):
            await until(lambda: current_receiver().alone == 1)
            other.send(b"the end")

    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    async def main() -> None:
        stream = TrioStream(ours)
        spawn_system_task(clean_up, stream)
        spawn_system_task(answer, theirs)
        await until(lambda: stream._task is not None)
        assert receivers() == 1

    with ours, theirs:
        trio.run(main)
    assert received == [b"the end"]
