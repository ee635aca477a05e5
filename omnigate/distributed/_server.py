"""A pacer as a server on a socket, for processes that no engine connects: pods, a `multiprocessing` pool.

It keeps nothing on disk: after a restart the workers tell the new server what it has to know. Strangers are
expected: a peer that sends garbage, too much, too slowly or nothing at all is dropped, and costs next to no
memory before it has proved that it knows the secret (`_handshake`). Nothing a peer does ends the server.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
import sys
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import anyio
import anyio.abc

from omnigate._batch.pace.messages import PacerMessageError
from omnigate._runtime.isolation import bounded
from omnigate._runtime.threads import in_thread
from omnigate._wire.checks import check_integer
from omnigate.distributed._address import PacerAddress, check_secret, parse_address
from omnigate.distributed._handshake import ANOTHER_SECRET, FRAME_BYTES_MAX, FrameReader, ServerSide, frame
from omnigate.distributed._shared import SharedPacer
from omnigate.distributed._unix_sockets import UnixStream, listen

__all__ = ["PacerServer"]

logger: Final = logging.getLogger("omnigate")

_HANDSHAKE_SECONDS: Final = 5.0

_FRAME_SECONDS: Final = 5.0
"""Between the first and the last byte of a message."""

_IDLE_SECONDS: Final = 60.0
"""Without a message; a worker with a batch reports every few seconds."""

_PAUSE_SECONDS: Final = 0.1
"""After a connection that could not be accepted."""

_Stream: TypeAlias = anyio.abc.SocketStream | UnixStream

_LOST: Final = (OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


class PacerServer:
    """Serves one pacer to all processes that know the secret, on a unix domain socket or over TCP.

    Use it as `async with PacerServer(…) as server:`, on asyncio or trio; or run it as a command:
    `python -m omnigate.distributed unix:/run/pacer.sock`. Workers use `SocketPacer`. It may be stopped and
    started again at any time: meanwhile each worker paces itself by the gateway's headers, and afterwards the
    workers tell the server what it has missed.

    Both sides prove that they know the secret, and no message can be forged or changed. They are not
    encrypted: beyond the loopback interface others may see how many calls are made to which models, but
    neither keys nor prompts.

    Args:
        address: "unix:/path/of/a.sock" (created readable by its owner only), or "tcp://host:port"; port 0 for
            any free one.
        secret: what workers and server share, at least 16 bytes; `$OMNIGATE_PACER_SECRET` if omitted.
        max_connections: how many workers may be connected, 1 to 65,536; more are refused.

    Raises:
        InvalidArgumentError: an argument is out of range, or there is no secret.
        OSError: the address is not available (raised on entering).

    """

    def __init__(
        self, address: str, *, secret: str | bytes | None = None, max_connections: int = 1_024
    ) -> None:
        self._address = parse_address(address, is_server=True)
        self._secret = check_secret(secret)
        self._max_connections = check_integer(max_connections, "max_connections", minimum=1, maximum=65_536)
        self._pacer = SharedPacer()
        self._group: anyio.abc.TaskGroup | None = None
        self._listeners: list[Any] = []
        self._socket_id: tuple[int, int] | None = None  # of the file of a unix domain socket
        self._connections = 0

    @property
    def address(self) -> str:
        """Its address, for `SocketPacer`; once it is entered, with the port that was free."""
        return str(self._address)

    async def __aenter__(self) -> Self:
        """Start listening."""
        if self._group is not None:
            raise RuntimeError("this PacerServer is running already")
        try:
            await self._listen()
            group = anyio.create_task_group()
            await group.__aenter__()
        except BaseException:
            await bounded(self._close)
            raise
        self._group = group
        for listener in self._listeners:
            group.start_soon(self._accept, listener, group)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Stop listening and close all connections."""
        group = self._group
        assert group is not None
        try:
            group.cancel_scope.cancel()
            return await group.__aexit__(kind, error, traceback)
        except BaseExceptionGroup as errors:
            if errors.exceptions != (error,):
                raise
            return False  # the block's own error leaves it as it is
        finally:
            self._group = None
            await bounded(self._close)

    async def _close(self) -> None:
        listeners, self._listeners = self._listeners, []
        socket_id, self._socket_id = self._socket_id, None
        for listener in listeners:
            await listener.aclose()
        if socket_id is not None and self._address.path is not None:
            await in_thread(_remove, self._address.path, socket_id)

    async def _listen(self) -> None:
        address = self._address
        if address.path is None:
            multi = await anyio.create_tcp_listener(local_host=address.host, local_port=address.port)
            self._listeners = list(multi.listeners)
            port = self._listeners[0].extra(anyio.abc.SocketAttribute.local_port)
            self._address = PacerAddress(None, address.host, port)
        else:
            if sys.platform == "win32":
                raise OSError("this system has no unix domain sockets: pass a tcp:// address")
            await in_thread(_check_path, address.path)
            self._listeners = [await listen(address.path)]
            self._socket_id = await in_thread(_id_of, address.path)

    async def _accept(self, listener: Any, group: anyio.abc.TaskGroup) -> None:
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                logger.warning("%r could not accept a connection: %s", self, error)
                await anyio.sleep(_PAUSE_SECONDS)  # without descriptors, say, it would spin
                continue
            group.start_soon(self._serve, stream)

    async def _serve(self, stream: _Stream) -> None:
        """Serve one connection to its end."""
        side, reader = ServerSide(self._secret), FrameReader()
        self._connections += 1
        try:
            async with stream:
                try:
                    await self._converse(stream, side, reader)
                except PacerMessageError as error:
                    logger.warning("%r drops a connection: %s", self, error)
                except TimeoutError:
                    logger.debug("%r drops a silent connection", self)
                except _LOST:
                    logger.debug("%r has lost a connection", self)
        finally:
            self._connections -= 1

    async def _converse(self, stream: _Stream, side: ServerSide, reader: FrameReader) -> None:
        with anyio.fail_after(_HANDSHAKE_SECONDS):
            if self._connections > self._max_connections:
                await stream.send(frame(side.refuse(f"it has {self._max_connections:,} connections already")))
                return
            await stream.send(frame(side.hello()))
            proof = await _next_frame(stream, reader)
            try:
                answer = side.prove(proof)
            except PacerMessageError:
                await stream.send(frame(side.refuse(ANOTHER_SECRET)))
                raise
            await stream.send(frame(answer))
        reader.bytes_max = FRAME_BYTES_MAX
        while True:
            report = side.report(await _next_frame(stream, reader))
            try:
                answer = side.grant(self._exchange(report))
            except PacerMessageError as error:
                await _send(stream, frame(side.refuse(str(error))))
                raise
            await _send(stream, frame(answer))

    def _exchange(self, report: bytes) -> bytes:
        try:
            return self._pacer.exchange(report, anyio.current_time())
        except PacerMessageError:
            raise
        except Exception:
            # A report that leads to a bug must not end the server for all others.
            logger.exception("%r failed to answer a report", self)
            raise PacerMessageError("the pacer failed") from None

    def __repr__(self) -> str:
        state = f"{self._connections} connections" if self._group is not None else "closed"
        return f"<PacerServer {self._address}: {state}, {self._pacer!r}>"


async def _next_frame(stream: _Stream, reader: FrameReader) -> bytes:
    content = reader.next()
    if content is not None:
        return content
    if not reader.is_partial:
        with anyio.fail_after(_IDLE_SECONDS):
            reader.feed(await stream.receive())
    with anyio.fail_after(_FRAME_SECONDS):
        while (content := reader.next()) is None:
            reader.feed(await stream.receive())
    return content


async def _send(stream: _Stream, data: bytes) -> None:
    with anyio.fail_after(_FRAME_SECONDS):
        await stream.send(data)


def _check_path(path: str) -> None:
    """Check that no other server listens at a path, and remove what a killed one has left."""
    if sys.platform == "win32":  # has no such sockets
        return
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise FileExistsError(errno.EEXIST, "there is a file that is no socket", path)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, "another server listens there", path)


def _id_of(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _remove(path: str, socket_id: tuple[int, int]) -> None:
    """Remove the file of a socket, unless another server has replaced it."""
    with contextlib.suppress(OSError):
        if _id_of(path) == socket_id:
            os.unlink(path)
