"""The engine of a stream, from request to pieces; the public async and sync streams wrap it.

`states` has the table of its states. Every exit from a step of reading (an error, a cancellation, `aclose()`)
leads to a resting state, with the response released unless the stream stays open. If a stream is dropped
while open, its finalizer has the event loop close the response, and warns.

A stream cancelled midway is closed for good; ending quietly would pass for a complete answer.

`aclose()` can be called while another task is in a step of reading. It then stops the step and waits until
that task has left and cleaned up, so only one of them ever uses the response. A step is stopped through its
cancel scope; a read over our own transport, which has none (a scope costs more than the read), by closing the
connection.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Generic, NamedTuple, TypeVar

import anyio
import anyio.lowlevel
import httpx

from omnigate._calls.attempts import Call, Opening
from omnigate._calls.session import Session
from omnigate._streams.readers import StreamReader
from omnigate._streams.states import ABANDONED, BUSY, HOLDING, REFUSALS, SETTLED, TRANSITIONS, Event, State
from omnigate._transport.carrier import Reply
from omnigate._transport.direct import DirectReader
from omnigate._wire.head import Meta
from omnigate.exceptions import (
    ConnectionError,
    GatewayError,
    StreamClosedError,
)

T = TypeVar("T")

_TAIL_SECONDS: Final = 1.0

_TAIL_BYTES: Final = 65_536

_READ: Final = Event.READ  # looking up an enum's members is slow, and these two are needed for each piece
_PAUSE: Final = Event.PAUSE


class Face(NamedTuple):
    """How messages name a stream: its public class, and how to use and close it."""

    name: str
    block: str = "`async with`"
    close: str = "`aclose()`"


class StreamCore(Generic[T]):
    """One stream: opens it, reads its pieces, closes it.

    Attributes:
        state: the current state.
        pieces: pieces that have arrived and were not taken.
        meta: metadata from the head of the response; None before it arrives.
        reader: parser of the response; None before it arrives.

    """

    def __init__(
        self, name: str, session: Session, call: Call, new_reader: Callable[[str | None], StreamReader[T]]
    ) -> None:
        """Prepare a stream; nothing is sent yet.

        Args:
            name: the public class, for messages.
            session: the session to send with.
            call: the call to send.
            new_reader: returns a reader for a response, given its request id.

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
        self._scope: anyio.CancelScope | None = None  # of the current step
        self._left: anyio.Event | None = (
            None  # set when the task inside leaves, if another task waits for that
        )

    @property
    def is_closed(self) -> bool:
        """Whether the stream holds no response, and has no pieces left."""
        return self.state is State.CLOSED or (self.state is State.ENDED and not self.pieces)

    async def open(self) -> None:
        """Wait for the head of the response, sending the request if needed.

        Raises:
            GatewayError: as for a call.
            StreamClosedError: the stream was closed, or another task is opening it.

        """
        if self.state in SETTLED:
            await anyio.lowlevel.checkpoint()
        elif self.state not in HOLDING:
            await self._step(self._receive_head)

    async def next(self) -> T:
        """Return the next piece.

        Raises:
            StopAsyncIteration: there are no more.
            GatewayError: reading failed.

        """
        if self.pieces:
            await anyio.lowlevel.checkpoint()
        elif not await self.fill():
            raise StopAsyncIteration
        return self.pieces.popleft()

    async def fill(self) -> bool:
        """Wait for pieces; return True once there are some, False at the end.

        Raises:
            GatewayError: reading failed.

        """
        while not self.pieces:
            if self.state not in SETTLED:
                await self._step(self._advance)
                continue
            await anyio.lowlevel.checkpoint()
            if self.state is State.ENDED:
                return False
            if self._failure is not None:  # else another task has raised it or closed the stream
                (error, _), self._failure = self._failure, None
                self._move(Event.TELL)
                try:
                    raise error
                finally:
                    del error  # breaks the cycle of the error, its traceback and this frame
        return True

    async def fetch(self) -> list[T]:
        """Wait for pieces and return all that have arrived; an empty list at the end.

        Raises:
            GatewayError: reading failed.

        """
        return self.take() if await self.fill() else []

    def take(self) -> list[T]:
        """Return the pieces that have arrived, without waiting."""
        pieces = list(self.pieces)
        self.pieces.clear()
        return pieces

    def lend(self) -> DirectReader | None:
        """Return a reader of the body for another thread, or None if only the event loop can read it.

        What it reads is to be given to `accept`. The next step here ends it.
        """
        if self.state is not State.OPEN or self._reply is None or self.needs_loop:
            return None
        if self._attempts is None or self._attempts.deadline != math.inf:
            return None
        return self._reply.lend()

    @property
    def needs_loop(self) -> bool:
        """Whether what was read in another thread calls for a step here: an end mark, or an error."""
        return self.reader is None or self.reader.done or self.reader.error is not None

    def accept(self, data: bytes) -> Iterable[T]:
        """Return the pieces in `data`, read in the calling thread; the stream must be closed after an error.

        Raises:
            InvalidResponseError: the body is too long.

        """
        reply, reader = self._reply, self.reader
        if reply is None or reader is None:  # closed meanwhile
            return ()
        reply.count(data)
        pieces = reader.feed(data)
        self._arrived += len(pieces)
        return pieces

    async def aclose(self) -> None:
        """Close the stream, making a task inside leave; return once the response is released."""
        self.pieces.clear()
        was_busy = self.state in BUSY
        self._move(Event.CLOSE)
        if was_busy:
            await self._until_left()
        elif self.state is State.CLOSING:
            try:
                if self.reader is not None and (self.reader.done or self.reader.finished):
                    await self._drain()
            finally:
                await self._release()

    def forget(self) -> None:
        """Mark the stream closed without releasing its response, whose event loop has ended."""
        self.pieces.clear()
        if self.state not in BUSY:  # else the task inside is being cancelled, and marks it
            self._reply = None
            self._move(Event.CLOSE)
            if self.state is State.CLOSING:
                self._move(Event.RELEASE)

    def _move(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]

    async def _step(self, step: Callable[[Opening], Awaitable[None]]) -> None:
        """Run one step of reading within the deadline; if it is interrupted, the stream is closed."""
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
            if self.state not in ABANDONED:  # else `aclose` caused it
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
        """Wait until the task inside has left and cleaned up; if STOPPING, make it leave."""
        if self._left is None:
            self._left = anyio.Event()
        left = self._left
        if self.state is State.STOPPING:
            if self._scope is not None:
                self._scope.cancel()
            else:
                await (
                    self._close()
                )  # no scope: our own transport, which closes without awaiting, and the read fails
        await left.wait()

    def _leave(self) -> None:
        left, self._left = self._left, None
        if left is not None:
            left.set()

    async def _release(self) -> None:
        """Close the response and mark the stream closed, even if closing fails or is cancelled."""
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
        """Send the request, with retries, until the head of a successful response arrives."""
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
        """Read until there are pieces, the end, or an error to raise."""
        if self._reply is None:
            await self._open(attempts)
            if self.state in ABANDONED:  # just as the head arrived
                return
        reply, reader = self._reply, self.reader
        assert reply is not None
        assert reader is not None
        if reader.done:
            await self._finish(reader, attempts)
            return
        if reader.error is not None:  # read in another thread
            await self._close()
            self._fail(reader.error, reader.transient, attempts)
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
        if reader.done:  # hand on the last pieces before waiting for the tail
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
        """Read the tail, then end with the success or failure that the gateway reported before it."""
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
        """Fail, or prepare to reopen the stream if no piece has arrived and the failure is transient.

        Args:
            error: the failure.
            transient: the HTTP status to judge a transient failure by; None if it is permanent.
            attempts: the attempts of the call.
            broke: whether the connection broke, which is judged as in a call.

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
        """Handle a broken connection: hand on held-back text, then fail or prepare to open again."""
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
        if reader.error is not None:  # the provider failed, and at least the beginning of its message arrived
            reader.error.__cause__ = error
            self._fail(reader.error, reader.transient, attempts)
        else:
            self._fail(error, None, attempts, broke=True)

    async def _drain(self) -> None:
        """Read what follows a complete answer, within bounds: the gateway writes its usage record last."""
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
