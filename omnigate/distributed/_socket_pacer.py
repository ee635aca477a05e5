"""A worker's way to a `PacerServer`: connects when it is needed, and never makes a batch wait.

A connection belongs to one event loop, and one exchange uses it at a time; if two need one at once, there are
two. It is kept only after an exchange that has ended well: a cancelled or failed one closes it, so that no
exchange can see the answer to another. When to try again after a failure is the batch's decision: until then
it paces itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import anyio
import anyio.lowlevel
import httpx

from omnigate._batch.pace.messages import PacerMessageError
from omnigate._runtime.loops import PerLoop
from omnigate._transport.byte_stream import ByteStream
from omnigate._transport.connector import Connector
from omnigate._wire.checks import check_number
from omnigate.distributed._address import check_secret, parse_address
from omnigate.distributed._handshake import FRAME_BYTES_MAX, ClientSide, FrameReader, frame

__all__ = ["SocketPacer"]

_CONNECTIONS_MAX: Final = 8
"""How many are kept for each event loop."""


class SocketPacer:
    """The way to a `PacerServer`, for `client.batch(…, pacer=SocketPacer(…))`; sync clients take it, too.

    Nothing is connected before the first batch; connections are closed with the batch. Can be used by several
    batches, event loops and threads, and pickled (with the secret) for other processes.

    Args:
        address: the server's, "unix:/path/of/a.sock" or "tcp://host:port".
        secret: the server's; `$OMNIGATE_PACER_SECRET` if omitted.
        timeout_seconds: for one exchange, connecting included, 0.01 to 60. The batch goes on
            meanwhile.

    Raises:
        InvalidArgumentError: an argument is out of range, or there is no secret.

    """

    def __init__(
        self, address: str, *, secret: str | bytes | None = None, timeout_seconds: float = 1.5
    ) -> None:
        self._address = parse_address(address, is_server=False)
        self._secret = check_secret(secret)
        self._timeout = check_number(timeout_seconds, "timeout_seconds", minimum=0.01, maximum=60)
        self._connect = Connector(verify=False, uds=self._address.path)
        self._idle: PerLoop[list[_Connection]] = PerLoop(lambda _: [], drop=_abort_all)

    @property
    def address(self) -> str:
        """The server's address."""
        return str(self._address)

    async def exchange(self, report: bytes) -> bytes:
        """Send a report and return the grant that answers it; connect first if necessary.

        Raises:
            OSError: the server cannot be reached, refuses (`PermissionError` if it has another secret), does
                not answer in time, or answers with something else.

        """
        try:
            with anyio.fail_after(self._timeout):
                return await self._exchange(report)
        except TimeoutError as error:
            raise TimeoutError(
                f"the pacer at {self.address} has not answered in {self._timeout} s"
            ) from error
        except PermissionError as error:
            raise PermissionError(f"the pacer at {self.address} cannot be used: {error}") from None
        except (OSError, PacerMessageError) as error:
            raise ConnectionError(f"the pacer at {self.address} cannot be used: {error}") from None

    async def aclose(self) -> None:
        """Close the event loop's connections; the next exchange opens another."""
        _abort_all(self._idle.current())
        await anyio.lowlevel.checkpoint()

    async def _exchange(self, report: bytes) -> bytes:
        idle = self._idle.current()
        connection = _take_live(idle)
        if connection is None:
            connection = await self._open()
        try:
            grant = await connection.exchange(report)
        except BaseException:
            connection.abort()
            raise
        if len(idle) < _CONNECTIONS_MAX:
            idle.append(connection)
        else:
            connection.abort()
        return grant

    async def _open(self) -> _Connection:
        address = self._address
        try:
            stream = await self._connect(("http", address.host or "localhost", address.port or 80), None)
        except httpx.ConnectError as error:
            raise ConnectionError(str(error)) from None
        connection = _Connection(stream, self._secret)
        try:
            await connection.shake_hands()
        except BaseException:
            connection.abort()
            raise
        return connection

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(SocketPacer, secret=self._secret, timeout_seconds=self._timeout)
        return make, (self.address,)

    def __repr__(self) -> str:
        return f"<SocketPacer {self.address}>"


class _Connection:
    """A connection to the server."""

    __slots__ = ("_reader", "_side", "_stream")

    def __init__(self, stream: ByteStream, secret: bytes) -> None:
        self._stream = stream
        self._side = ClientSide(secret)
        self._reader = FrameReader()

    async def shake_hands(self) -> None:
        await self._send(self._side.prove(await self._next_frame()))
        self._side.check(await self._next_frame())
        self._reader.bytes_max = FRAME_BYTES_MAX

    async def exchange(self, report: bytes) -> bytes:
        await self._send(self._side.report(report))
        return self._side.grant(await self._next_frame())

    def is_quiet(self) -> bool:
        """Return whether the server has neither closed it nor sent anything unasked."""
        return not self._reader.is_partial and self._stream.is_quiet()

    def abort(self) -> None:
        self._stream.abort()

    async def _send(self, content: bytes) -> None:
        pending = self._stream.send(frame(content))
        if pending is not None:
            await pending

    async def _next_frame(self) -> bytes:
        while (content := self._reader.next()) is None:
            data = await self._stream.receive()
            if not data:
                raise ConnectionError("it has closed the connection")
            self._reader.feed(data)
        return content


def _take_live(idle: list[_Connection]) -> _Connection | None:
    """Take a connection that the server has not closed meanwhile."""
    while idle:
        connection = idle.pop()
        if connection.is_quiet():
            return connection
        connection.abort()
    return None


def _abort_all(connections: list[_Connection]) -> None:
    while connections:
        connections.pop().abort()
