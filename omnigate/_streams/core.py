"""Reads one stream, from its call to its pieces; the faces for async and sync programs stand on it.

Its states are a table of their own (see `states`). Each way out of a step of reading, be it an error, a
cancellation or `aclose()`, leads to a state of rest, with the response released unless the stream is open. If
a stream is dropped while open, the finalizer hands the response to the event loop to be closed, and says so.

A stream cancelled midway is closed for good; ending quietly would pass for a complete answer.

`aclose()` may come while another task is in a step of reading. Then it stops the step and waits until that
task has left it, and so has cleaned up: only one of the two ever uses the response. A step is stopped by its
cancel scope; a read over our own transport, which has none (it would cost more than the read), by closing the
connection.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Generic, NamedTuple, TypeVar

import anyio
import anyio.lowlevel
import httpx

from omnigate._calls.attempts import Call, Opening
from omnigate._calls.session import Session
from omnigate._streams.readers import StreamReader
from omnigate._streams.states import ABANDONED, BUSY, HOLDING, REFUSALS, SETTLED, TRANSITIONS, Event, State
from omnigate._transport.carrier import Reply
from omnigate._wire.head import Meta
from omnigate.exceptions import (
    ConnectionError,
    GatewayError,
    StreamClosedError,
)

T = TypeVar("T")

_TAIL_SECONDS: Final = 1.0

_TAIL_BYTES: Final = 65_536

_READ: Final = Event.READ  # an enum's attributes are slow, and these two come with each piece
_PAUSE: Final = Event.PAUSE


class Face(NamedTuple):
    """How messages speak of a stream: by its public class, and by how that is used."""

    name: str
    block: str = "`async with`"
    close: str = "`aclose()`"


class StreamCore(Generic[T]):
    """One stream: opens it, reads its pieces, closes it.

    Attributes:
        state: where it is.
        pieces: those that have arrived and were not taken.
        meta: what the head of the response said; None before there is one.
        reader: what reads the response; None before there is one.

    """

    def __init__(
        self, name: str, session: Session, call: Call, new_reader: Callable[[str | None], StreamReader[T]]
    ) -> None:
        """Begin.

        Args:
            name: of the public class, for messages.
            session: what sends.
            call: what is sent.
            new_reader: makes the reader of a response, given its request id.

        """
        self.state: State = State.NEW
        self.pieces: deque[T] = deque()
        self.meta: Meta | None = None
        self.reader: StreamReader[T] | None = None
        self.face: Face = Face(name)
        self._session = session
        self._call = call
        self._new_reader = new_reader
        self._reply: Reply | None = None
        self._attempts: Opening | None = None
        self._arrived: int = 0  # pieces; once there is one, nothing is retried
        # While FAILED, the error to raise. While RETRYING, what to recover from; the HTTP status to judge by.
        self._failure: tuple[GatewayError, int | None] | None = None
        self._scope: anyio.CancelScope | None = None  # of the step
        self._left: anyio.Event | None = None  # set when the task inside leaves, if another waits for it

    @property
    def is_closed(self) -> bool:
        """Whether nothing is held, and nothing is left to hand on."""
        return self.state is State.CLOSED or (self.state is State.ENDED and not self.pieces)

    async def open(self) -> None:
        """Return when the head of the response has come, or had.

        Raises:
            GatewayError: as a call does.
            StreamClosedError: the stream was closed, or another task is opening it.

        """
        if self.state in SETTLED:
            await anyio.lowlevel.checkpoint()
        elif self.state not in HOLDING:
            await self._step(self._receive_head)

    async def next(self) -> T:
        """Return the next piece.

        Raises:
            StopAsyncIteration: there is none.
            GatewayError: as reading does.

        """
        if self.pieces:
            await anyio.lowlevel.checkpoint()
        elif not await self.fill():
            raise StopAsyncIteration
        return self.pieces.popleft()

    async def fill(self) -> bool:
        """Wait until there are pieces to take, and return whether there are: False at the end.

        Raises:
            GatewayError: as reading does.

        """
        while not self.pieces:
            if self.state not in SETTLED:
                await self._step(self._advance)
                continue
            await anyio.lowlevel.checkpoint()
            if self.state is State.ENDED:
                return False
            if self._failure is not None:  # else another task has been told or has closed the stream
                (error, _), self._failure = self._failure, None
                self._move(Event.TELL)
                try:
                    raise error
                finally:
                    del error  # breaks the cycle of the error, its traceback and this frame
        return True

    async def fetch(self) -> list[T]:
        """Wait until there are pieces, and return all that have arrived; none at the end.

        Raises:
            GatewayError: as reading does.

        """
        return self.take() if await self.fill() else []

    def take(self) -> list[T]:
        """Return the pieces that have arrived and were not taken, without waiting."""
        pieces = list(self.pieces)
        self.pieces.clear()
        return pieces

    async def aclose(self) -> None:
        """Close the stream, or have the task that is inside leave it, and return when it holds nothing."""
        self.pieces.clear()
        was_busy = self.state in BUSY
        self._move(Event.CLOSE)
        if was_busy:
            await self._until_left()
        elif self.state is State.CLOSING:
            try:
                if self.reader is not None and self.reader.done:
                    await self._drain()
            finally:
                await self._release()

    def _move(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]

    async def _step(self, step: Callable[[Opening], Awaitable[None]]) -> None:
        """Do one step of reading, within the deadline; one that does not come to rest closes the stream."""
        if self.state in REFUSALS:
            raise StreamClosedError(REFUSALS[self.state])
        if self._attempts is None:
            self._attempts = self._session.opening(self._call)
        attempts = self._attempts
        reply = self._reply
        self._move(Event.SEND if reply is None else _READ)
        try:
            if reply is not None and reply.ends_reads and attempts.deadline == math.inf:
                await step(attempts)
            else:
                with anyio.CancelScope(deadline=attempts.deadline) as self._scope:
                    await step(attempts)
                if self._scope.cancelled_caught and self.state not in ABANDONED:
                    raise attempts.overdue()
        except Exception:
            if self.state not in ABANDONED:  # else it is what `aclose` has brought about
                raise
        finally:
            self._scope = None
            if self.state in BUSY:
                self._move(Event.BREAK)
                await self._release()
            elif self._left is not None:
                self._leave()
        if self.state in REFUSALS:
            raise StreamClosedError(REFUSALS[self.state])

    async def _until_left(self) -> None:
        """Wait until the task inside has left and cleaned up; one that is STOPPING is made to leave first."""
        if self._left is None:
            self._left = anyio.Event()
        left = self._left
        if self.state is State.STOPPING:
            if self._scope is not None:
                self._scope.cancel()
            else:
                await self._close()  # without an await, since it is our own: the read fails
        await left.wait()

    def _leave(self) -> None:
        left, self._left = self._left, None
        if left is not None:
            left.set()

    async def _release(self) -> None:
        """Close the response, whatever happens meanwhile, and leave the stream closed."""
        self._failure = None
        try:
            await self._close()
        finally:
            self._move(Event.RELEASE)
            self._leave()

    async def _receive_head(self, attempts: Opening) -> None:
        await self._open(attempts)
        self._move(_PAUSE)

    async def _open(self, attempts: Opening) -> None:
        """Send the request, again if need be, until a head of success has come."""
        failure, status = self._failure or (None, None)
        self._failure = None
        try:
            reply = self._reply = await attempts.repeat(failure, status)
        finally:
            del failure  # breaks the cycle of the error, its traceback and this frame
        meta = self.meta = attempts.meta(reply)
        self.reader = self._new_reader(meta.request_id)
        self._move(Event.HEAD)

    async def _advance(self, attempts: Opening) -> None:
        """Read until there are pieces, or the end, or an error to raise."""
        if self._reply is None:
            await self._open(attempts)
            if self.state in ABANDONED:  # just as the head came
                return
        reply, reader = self._reply, self.reader
        assert reply is not None
        assert reader is not None
        if reader.done:
            await self._finish(reader, attempts)
            return
        try:
            data = await reply.next()
        except httpx.TransportError as error:
            if self.state not in ABANDONED:
                await self._break(reply, reader, error, attempts)
            return
        if self.state in ABANDONED:
            return
        pieces = reader.finish() if data is None else reader.feed(data)
        self.pieces.extend(pieces)
        self._arrived += len(pieces)
        if reader.done:  # what came before is handed on before the tail is waited for
            self._move(_PAUSE)
        elif reader.error is not None:
            await self._close()
            self._fail(reader.error, reader.transient, attempts)
        elif data is not None:
            self._move(_PAUSE)
        elif reader.ends_with_body:
            await self._close()
            self._move(Event.END)
        else:
            await self._break(reply, reader, None, attempts)

    async def _finish(self, reader: StreamReader[T], attempts: Opening) -> None:
        """Read the tail, and end as the gateway has said before it."""
        self._move(Event.MARK)
        await self._drain()
        await self._close()
        if reader.error is None:
            self._move(Event.END)
        else:
            self._fail(reader.error, reader.transient, attempts)

    def _fail(
        self, error: GatewayError, transient: int | None, attempts: Opening, *, broke: bool = False
    ) -> None:
        """End with a failure that came inside the stream, or prepare to open anew.

        Args:
            error: the failure.
            transient: the HTTP status to judge by whether it may pass; None if it may not.
            attempts: those of the call.
            broke: whether it is the connection's, which is judged as a call's.

        """
        error.attempts = attempts.count
        self._failure = error, transient
        may_retry = not self._arrived and (broke or transient is not None)
        self._move(Event.RETRY if may_retry else Event.FAIL)

    async def _break(
        self,
        reply: Reply,
        reader: StreamReader[T],
        cause: httpx.TransportError | None,
        attempts: Opening,
    ) -> None:
        """End with a connection that broke, what was held back handed on first, or prepare to open anew."""
        pieces = reader.flush()
        self.pieces.extend(pieces)
        self._arrived += len(pieces)
        received = f"after {reply.received:,} bytes of the stream, before its end"
        address = self._call.address
        error = None if cause is None else attempts.judge(cause)
        if error is None:
            error = ConnectionError(f"The connection to the gateway at {address} ended {received}")
        elif isinstance(error, ConnectionError):
            error.args = (f"The connection to the gateway at {address} broke {received}: {error.reason}",)
        error.attempts = attempts.count
        error.request_id = None if self.meta is None else self.meta.request_id
        await self._close()
        if reader.error is not None:  # the provider's failure, of which at least the beginning came
            reader.error.__cause__ = error
            self._fail(reader.error, reader.transient, attempts)
        else:
            self._fail(error, None, attempts, broke=True)

    async def _drain(self) -> None:
        """Read what follows the end mark, bounded: the gateway writes its usage record meanwhile."""
        if self._reply is not None:
            await self._reply.drain(_TAIL_BYTES, _TAIL_SECONDS)

    async def _close(self) -> None:
        reply, self._reply = self._reply, None
        if reply is not None:
            await reply.discard()

    def __del__(self) -> None:
        reply: Reply | None = getattr(self, "_reply", None)
        if reply is not None:
            self._reply = None
            reply.drop()
            name, block, close = self.face
            warnings.warn(
                f"{name} was dropped before its end; use {block}, or call {close}",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def __repr__(self) -> str:
        state = self.state.value
        reply = self._reply
        if reply is not None and self.state in HOLDING and reply.received:
            pieces = "1 piece" if self._arrived == 1 else f"{self._arrived:,} pieces"
            state += f": {reply.received:,} bytes, {pieces}"
        return f"<{self.face.name} {state}>"
