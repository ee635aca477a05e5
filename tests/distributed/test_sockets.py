"""`PacerServer` and `SocketPacer` over real sockets: strangers, silence, restarts, cancellation."""

import logging
import os
import pickle
import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from omnigate._batch.pace.messages import Report, decode_grant, encode
from omnigate.distributed import PacerServer, SocketPacer, _server

pytestmark = pytest.mark.anyio

SECRET = "a secret of enough bytes"


def report(worker: str = "worker", **fields: Any) -> bytes:
    return encode(Report(1, b"digest of a key", worker, is_hungry=True, want=5, **fields))


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"unix:{tmp_path}/pacer.sock" if request.param == "unix" else "tcp://127.0.0.1:0"


@pytest.fixture
def unix(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/pacer.sock"


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.005)


async def connected(server: PacerServer) -> anyio.abc.SocketStream:
    kind, _, rest = server.address.partition(":")
    if kind == "unix":
        return await anyio.connect_unix(rest)
    return await anyio.connect_tcp("127.0.0.1", int(rest.rpartition(":")[2]))


async def rest_of(stream: anyio.abc.SocketStream) -> bytes:
    """Read to the end; the server must close the connection."""
    data = b""
    with anyio.fail_after(10):
        try:
            while True:
                data += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return data


async def test_reports_are_answered_with_grants_over_one_connection(address: str) -> None:
    async with PacerServer(address, secret=SECRET) as server:
        link = SocketPacer(server.address, secret=SECRET)
        assert server._connections == 0, "connected lazily"
        epochs = {decode_grant(await link.exchange(report())).epoch for _ in range(3)}
        assert len(epochs) == 1
        assert server._connections == 1
        assert repr(server) == f"<PacerServer {server.address}: 1 connections, {server._pacer!r}>"
        await link.aclose()
        await until(lambda: server._connections == 0)
        await link.exchange(report())
        await link.aclose()
    assert "closed" in repr(server)


async def test_several_workers_exchange_at_the_same_time(address: str) -> None:
    leases: list[int] = []

    async def work(link: SocketPacer, name: str) -> None:
        for _ in range(5):
            leases.append(decode_grant(await link.exchange(report(name))).lease)

    async with PacerServer(address, secret=SECRET) as server:
        link = SocketPacer(server.address, secret=SECRET)
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(work, link, f"worker {number}")
        assert len(leases) == 100
        assert len(link._idle.current()) <= 8
        await link.aclose()


async def test_the_file_of_a_socket_is_private_and_removed_at_the_end(unix: str) -> None:
    path = unix.removeprefix("unix:")
    async with PacerServer(unix, secret=SECRET):
        assert os.stat(path).st_mode & 0o777 == 0o600
    assert not os.path.exists(path)  # noqa: ASYNC240


async def test_what_a_killed_server_left_is_replaced_but_a_living_one_is_not(unix: str) -> None:
    path = unix.removeprefix("unix:")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    async with PacerServer(unix, secret=SECRET) as server:
        with pytest.raises(OSError, match="another server listens there"):
            async with PacerServer(unix, secret=SECRET):
                raise AssertionError("entered")
        link = SocketPacer(server.address, secret=SECRET)
        await link.exchange(report())
        await link.aclose()


async def test_a_file_that_is_no_socket_is_not_replaced(unix: str) -> None:
    path = Path(unix.removeprefix("unix:"))
    path.write_text("data")  # noqa: ASYNC240
    with pytest.raises(FileExistsError):
        async with PacerServer(unix, secret=SECRET):
            raise AssertionError("entered")
    assert path.read_text() == "data"  # noqa: ASYNC240


async def test_a_port_in_use_is_an_error_of_its_own() -> None:
    async with PacerServer("tcp://127.0.0.1:0", secret=SECRET) as server:
        with pytest.raises(OSError, match="in use"):
            async with PacerServer(server.address, secret=SECRET):
                raise AssertionError("entered")


async def test_an_error_in_the_block_is_raised_as_it_is(unix: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with PacerServer(unix, secret=SECRET):
            _ = 1 / 0


async def test_cancelling_the_block_closes_everything(address: str) -> None:
    server = PacerServer(address, secret=SECRET)
    with anyio.CancelScope() as scope:
        async with server:
            link = SocketPacer(server.address, secret=SECRET)
            await link.exchange(report())
            scope.cancel()
            await anyio.sleep_forever()
    assert (server._connections, server._listeners, server._group) == (0, [], None)
    with pytest.raises(ConnectionError):
        await link.exchange(report())


async def test_a_wrong_secret_is_a_permission_error_that_shows_neither(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with PacerServer(address, secret=SECRET) as server:
        link = SocketPacer(server.address, secret="some other secret, as long")
        with pytest.raises(PermissionError, match="cannot be used: it has another secret") as raised:
            await link.exchange(report())
        right = SocketPacer(server.address, secret=SECRET)
        await right.exchange(report())
        await right.aclose()
    shown = f"{raised.value!r} {link!r} {server!r} {caplog.text}"
    assert "the worker does not know the secret" in caplog.text
    assert SECRET not in shown
    assert "other secret, as long" not in shown


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"\xff" * 4,
        bytes(4),
        (64).to_bytes(4, "big") + bytes(64),
        bytes(100_000),
    ],
)
async def test_strangers_are_dropped_and_do_not_disturb_workers(address: str, data: bytes) -> None:
    async with PacerServer(address, secret=SECRET) as server:
        link = SocketPacer(server.address, secret=SECRET)
        await link.exchange(report())
        async with await connected(server) as stranger:
            try:
                await stranger.send(data)
            except anyio.BrokenResourceError:
                pass  # was dropped in the middle of it
            assert len(await rest_of(stranger)) < 200
        await until(lambda: server._connections == 1)
        await link.exchange(report())
        await link.aclose()


@pytest.mark.parametrize("sent", [b"", b"\0", (64).to_bytes(4, "big") + b"half of a proof"])
async def test_a_peer_that_falls_silent_is_dropped(
    unix: str, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(_server, "_HANDSHAKE_SECONDS", 0.05)
    async with PacerServer(unix, secret=SECRET) as server, await connected(server) as peer:
        if sent:
            await peer.send(sent)
        await rest_of(peer)
        await until(lambda: server._connections == 0)


async def test_a_worker_that_falls_silent_is_dropped_and_connects_again(
    unix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_server, "_IDLE_SECONDS", 0.05)
    async with PacerServer(unix, secret=SECRET) as server:
        link = SocketPacer(server.address, secret=SECRET)
        await link.exchange(report())
        await until(lambda: server._connections == 0)
        await link.exchange(report())  # a connection that was closed meanwhile is not used
        await link.aclose()


async def test_a_worker_that_sends_half_a_message_is_dropped(
    unix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_server, "_FRAME_SECONDS", 0.05)
    async with PacerServer(unix, secret=SECRET) as server:
        link = SocketPacer(server.address, secret=SECRET)
        await link.exchange(report())
        (connection,) = link._idle.current()
        connection._stream.send(b"\0\0")
        await until(lambda: server._connections == 0)
        await link.aclose()


async def test_a_message_that_is_no_report_is_refused_with_a_reason(unix: str) -> None:
    async with PacerServer(unix, secret=SECRET) as server:
        link = SocketPacer(server.address, secret=SECRET)
        for bad, reason in [
            (b"garbage", "not a report"),
            (encode(Report(9, bytes(8), "w")), "of version 1, got 9"),
        ]:
            with pytest.raises(ConnectionError, match=reason):
                await link.exchange(bad)
        await link.exchange(report())
        await link.aclose()


async def test_a_bug_of_the_pacer_does_not_end_the_server(
    unix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with PacerServer(unix, secret=SECRET) as server:
        link = SocketPacer(server.address, secret=SECRET)
        with monkeypatch.context() as patch:
            patch.setattr(server._pacer, "exchange", lambda *_: 1 / 0)
            with pytest.raises(ConnectionError, match="the pacer failed"):
                await link.exchange(report())
        assert "ZeroDivisionError" in caplog.text
        await link.exchange(report())
        await link.aclose()


async def test_connections_beyond_the_bound_are_refused(unix: str) -> None:
    async with PacerServer(unix, secret=SECRET, max_connections=2) as server:
        links = [SocketPacer(server.address, secret=SECRET) for _ in range(3)]
        for link in links[:2]:
            await link.exchange(report())
        with pytest.raises(ConnectionError, match="it has 2 connections already"):
            await links[2].exchange(report())
        await links[0].aclose()
        await until(lambda: server._connections == 1)
        for link in links[1:]:
            await link.exchange(report())
            await link.aclose()


async def test_accepting_goes_on_after_a_lack_of_descriptors(
    unix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Listener:
        """Fails before each connection that it accepts."""

        def __init__(self, listener: Any) -> None:
            self.listener, self.is_lacking = listener, False

        async def accept(self) -> Any:
            self.is_lacking = not self.is_lacking
            if self.is_lacking:
                raise OSError(24, "Too many open files")
            return await self.listener.accept()

        async def aclose(self) -> None:
            await self.listener.aclose()

    listen = _server.listen

    async def lacking(path: str) -> Any:
        return Listener(await listen(path))

    monkeypatch.setattr(_server, "listen", lacking)
    monkeypatch.setattr(_server, "_PAUSE_SECONDS", 0.01)
    async with PacerServer(unix, secret=SECRET) as server:
        for _ in range(2):
            link = SocketPacer(server.address, secret=SECRET)
            await link.exchange(report())
            await link.aclose()
    assert "could not accept a connection: [Errno 24]" in caplog.text


async def test_waits_that_are_cancelled_as_the_peer_closes_are_quiet(unix: str) -> None:
    """On uvloop, anyio's own sockets report an `InvalidStateError` then."""
    streams = []
    async with PacerServer(unix, secret=SECRET) as server:
        for _ in range(8):
            streams.append(await connected(server))
            await streams[-1].receive()  # the server's first frame: now it waits for ours
        await until(lambda: server._connections == 8)
        for stream in streams:
            stream.extra(anyio.abc.SocketAttribute.raw_socket).shutdown(socket.SHUT_RDWR)
    for stream in streams:
        await stream.aclose()


async def test_a_restarted_server_is_found_again(unix: str) -> None:
    link = SocketPacer(unix, secret=SECRET)
    with pytest.raises(ConnectionError, match="cannot be used: .*No such file"):
        await link.exchange(report())
    epochs = set()
    for _ in range(2):
        async with PacerServer(unix, secret=SECRET):
            epochs.add(decode_grant(await link.exchange(report())).epoch)
        with pytest.raises(ConnectionError):
            await link.exchange(report())
    assert len(epochs) == 2, "another pacer, which the workers tell what it has to know"


async def serve_one(listener: Any, talk: Callable[[anyio.abc.SocketStream], Any]) -> None:
    stream = await listener.accept()
    async with stream:
        await talk(stream)
        await anyio.sleep_forever()


@pytest.mark.parametrize("words", [b"", b"\0", b"SSH-2.0-OpenSSH_9.2\r\n" * 20, b"\0\0\0\x05hello"])
async def test_a_server_that_is_none_fails_the_exchange_in_bounded_time(unix: str, words: bytes) -> None:
    async def talk(stream: anyio.abc.SocketStream) -> None:
        if words:
            await stream.send(words)

    async with await anyio.create_unix_listener(unix.removeprefix("unix:")) as listener:
        async with anyio.create_task_group() as group:
            group.start_soon(serve_one, listener, talk)
            link = SocketPacer(unix, secret=SECRET, timeout_seconds=0.1)
            with pytest.raises(OSError, match="has not answered in|cannot be used"):
                await link.exchange(report())
            group.cancel_scope.cancel()


@pytest.mark.parametrize("when", ["connecting", "answering"])
async def test_a_cancelled_exchange_leaves_no_connection_and_no_answer_behind(
    unix: str, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    async with PacerServer(unix, secret=SECRET) as server:
        link = SocketPacer(server.address, secret=SECRET)
        if when == "answering":
            await link.exchange(report())
        with anyio.CancelScope() as scope:
            scope.cancel()
            await link.exchange(report("cancelled"))
        assert scope.cancelled_caught
        assert link._idle.current() == []
        await until(lambda: server._connections == 0)
        decode_grant(await link.exchange(report()))
        await link.aclose()


async def test_a_link_is_pickled_with_its_secret_but_does_not_show_it(unix: str) -> None:
    link = SocketPacer(unix, secret=SECRET, timeout_seconds=3)
    copy = pickle.loads(pickle.dumps(link))
    assert (copy.address, copy._secret, copy._timeout) == (unix, SECRET.encode(), 3)
    assert SECRET not in repr(link) + str(link)
    async with PacerServer(unix, secret=SECRET):
        await copy.exchange(report())
        await copy.aclose()


def test_each_event_loop_has_connections_of_its_own(unix: str) -> None:
    """Two loops in threads use one link; those of ended loops are closed when another loop comes."""
    started, stopped = threading.Event(), threading.Event()

    async def serve() -> None:
        async with PacerServer(unix, secret=SECRET):
            started.set()
            await anyio.to_thread.run_sync(stopped.wait)

    async def use(link: SocketPacer) -> None:
        await link.exchange(report())

    thread = threading.Thread(target=anyio.run, args=(serve,))
    thread.start()
    try:
        assert started.wait(10)
        link = SocketPacer(unix, secret=SECRET)
        for _ in range(3):  # on asyncio an abandoned connection is a warning of asyncio's own
            anyio.run(partial(use, link), backend="trio")
            assert sum(map(len, link._idle.values())) == 1

        async def close() -> None:
            await link.aclose()

        anyio.run(close)
        assert sum(map(len, link._idle.values())) == 0
    finally:
        stopped.set()
        thread.join(10)


@pytest.fixture(autouse=True)
def _log_all(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "omnigate")
