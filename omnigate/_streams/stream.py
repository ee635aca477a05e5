"""Streams: what a user iterates while a response arrives.

A stream is a class, not an async generator, because a generator that is dropped in the middle cleans up
when the garbage collector pleases, in whatever task that is. Its state is one of: new (nothing sent),
open (it holds a response), closed (it holds nothing). Every way out of "open" goes through `_close`:
the end of the body, an error, a cancellation, `aclose()`, leaving `async with`. If the object is dropped
while open, the finalizer hands the response to the event loop to be closed, and says so.

What is cancelled in the middle is closed and cannot be read further: a silent end would look like a
complete answer.

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
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

import anyio
import anyio.lowlevel
import httpx

from omnigate._calls.attempts import Attempts, Call
from omnigate._calls.session import Session
from omnigate._runtime.isolation import close_soon
from omnigate._runtime.loops import current_loop
from omnigate._streams.readers import StreamReader
from omnigate._transport.adapters import async_chunks, close_stream
from omnigate._transport.bodies import BodyReader
from omnigate._transport.messages import RawResponse
from omnigate._wire.head import Meta
from omnigate.exceptions import (
    APIError,
    ConnectionError,
    GatewayError,
    InvalidResponseError,
    StreamClosedError,
)

T = TypeVar("T")

_CLOSED: Final = "the stream was closed before its end"

_TAIL_SECONDS: Final = 1.0

_TAIL_BYTES: Final = 65_536


class _Incoming:
    """The response of an open stream, and what reads it.

    Attributes:
        is_own: whether it is our own transport's, whose closing takes no await and ends a read.
        in_tail: whether only what follows the end mark is being read.
    """

    __slots__ = ("body", "chunks", "in_tail", "is_own", "loop", "response")

    body: BodyReader

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.is_own = isinstance(response, RawResponse)
        self.in_tail = False
        self.loop = current_loop()
        self.chunks = async_chunks(response.stream)

    async def close(self) -> None:
        await close_stream(self.response.stream, self.chunks)


class BaseStream(Generic[T]):
    """What all streams are: an async iterator of pieces and an async context manager.

    Use it as `async with client.chat_stream(…) as stream: async for piece in stream: …`. Entering returns
    when the head of the response has come, before the first text. Without `async with` the head is waited
    for with the first piece, and a loop that is left early should be followed by `aclose()`. A stream opens
    once: entered again, it goes on where it was, yields nothing if it has ended, and raises
    `StreamClosedError` if it was closed before its end.

    Reading raises `ProviderError` when the provider fails on the way, `ConnectionError` when the body ends
    too early, and what a call raises while the stream opens. A failure before the first piece is retried
    like that of a call; after it nothing is.
    """

    _words: tuple[str, str, str] = (
        "",
        "`async with`",
        "`aclose()`",
    )  # for messages; a sync stream sets its own

    def __init__(self, session: Session, call: Call) -> None:
        self._session = session
        self._call = call
        self._incoming: _Incoming | None = None  # while open
        self._attempts: Attempts | None = None
        self._reader: StreamReader[T] | None = None
        self._meta: Meta | None = None
        self._pieces: deque[T] = deque()
        self._delivered = False  # pieces were handed on, so nothing is retried
        self._error: GatewayError | None = None  # raised once the pieces before it are handed on
        self._ended = False  # nothing more will come, and that is well
        self._is_closed = False  # nothing more can be read
        self._failure: tuple[GatewayError, int | None] | None = (
            None  # to recover from before the next attempt
        )
        self._busy = False  # a task is in a step, or closes the stream
        self._scope: anyio.CancelScope | None = None  # of the step
        self._left: anyio.Event | None = None  # set when that task leaves, if somebody waits for it

    def _new_reader(self, request_id: str | None) -> StreamReader[T]:
        raise NotImplementedError

    @property
    def meta(self) -> Meta:
        """What the head of the response said; there is none before the stream is open.

        If the first attempt failed inside the stream and was retried, it is the last attempt's.
        """
        if self._meta is None:
            raise AttributeError(
                f"the stream is not open yet and has no meta; enter it with {self._words[1]}"
            )
        return self._meta

    @property
    def is_closed(self) -> bool:
        """Whether the stream holds nothing and can not be read any further."""
        return self._is_closed and self._incoming is None and not self._busy

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._pieces:
            await anyio.lowlevel.checkpoint()
        elif not await self.fill():
            raise StopAsyncIteration
        return self._pieces.popleft()

    async def fill(self) -> bool:
        """Wait until there are pieces to take, and return whether there are: False at the end.

        Raises:
            GatewayError: as reading does.

        """
        while not self._pieces:
            if self._ended or self._error is not None:
                await anyio.lowlevel.checkpoint()
            if self._error is not None:
                error, self._error = self._error, None
                self._is_closed = True
                raise error
            if self._ended:
                return False
            await self._step(self._advance)
        return True

    async def fetch(self) -> list[T]:
        """Wait until there are pieces, and return all that have arrived; none at the end.

        Raises:
            GatewayError: as reading does.

        """
        return self.take() if await self.fill() else []

    def take(self) -> list[T]:
        """Return the pieces that have arrived and were not taken, without waiting."""
        pieces = list(self._pieces)
        self._pieces.clear()
        return pieces

    async def __aenter__(self) -> Self:
        if self._ended or self._error is not None:
            await anyio.lowlevel.checkpoint()
        elif self._incoming is None:
            await self._step(self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the stream; its connection is given back if its body has ended, else closed.

        If the gateway has said that it is done, the little that it still sends is read first (at most 1 s).
        A task that is reading the stream gets a `StreamClosedError`; if it is waiting for the head of the
        response, the request is given up.
        """
        self._is_closed = True
        self._pieces.clear()
        if self._busy:
            await self._stop()
            return
        self._busy = True
        try:
            if self._reader is not None and self._reader.done:
                await self._read_tail()
        finally:
            try:
                await self._close()
            finally:
                self._leave()

    async def _step(self, step: Callable[[Attempts], Awaitable[None]]) -> None:
        """Do one step of reading, within the deadline; whatever stops it closes the stream."""
        if self._is_closed:
            raise StreamClosedError(_CLOSED)
        if self._busy:
            raise StreamClosedError("the stream is already being read by another task")
        if self._attempts is None:
            self._attempts = self._session.attempts(self._call)
        attempts = self._attempts
        incoming = self._incoming
        self._busy = True
        finished = False
        try:
            if incoming is not None and incoming.is_own and attempts.deadline == math.inf:
                await step(attempts)
            else:
                with anyio.CancelScope(deadline=attempts.deadline) as self._scope:
                    await step(attempts)
                if self._scope.cancelled_caught and not self._is_closed:
                    raise attempts.overdue()
            finished = self._ended or not self._is_closed
        except Exception:
            if not self._is_closed:  # else it is what `aclose` has brought about
                raise
        finally:
            self._scope = None
            try:
                if not finished:
                    self._is_closed = True
                    self._failure = None
                    await self._close()
            finally:
                self._leave()
        if not finished:
            raise StreamClosedError(_CLOSED)

    async def _stop(self) -> None:
        """Stop the step that another task is in, and wait until it has left and cleaned up."""
        if self._left is None:
            self._left = anyio.Event()
        if self._scope is not None:
            self._scope.cancel()
        elif self._incoming is not None and not self._incoming.in_tail:
            await self._close()  # without an await, since it is our own: the read fails
        await self._left.wait()

    def _leave(self) -> None:
        self._busy = False
        left, self._left = self._left, None
        if left is not None:
            left.set()

    async def _open(self, attempts: Attempts) -> None:
        """Send the request, again if need be, until a head of success has come."""
        if self._failure is not None:
            (failed, status), self._failure = self._failure, None
            try:
                await attempts.recover(failed, status=status)
            finally:
                del failed  # breaks the cycle of the error, its traceback and this frame
        while True:
            attempts.count += 1
            try:
                await self._session.run(self._open_once, attempts)
            except httpx.TransportError as error:
                failure = self._session.failure_of(error, attempts)
            except (APIError, ConnectionError) as error:
                failure = error
            else:
                return
            try:
                await self._close()
                await attempts.recover(failure)
            finally:
                del failure  # breaks the cycle of the error, its traceback and this frame

    async def _open_once(self, attempts: Attempts) -> None:
        session = self._session
        response = await session.open(self._call)
        # Kept on the object at once: if the caller is cancelled now, it finds it there and closes it.
        incoming = self._incoming = _Incoming(response)
        if not 200 <= response.status_code < 300:
            raise await session.error_of(response, incoming.chunks, self._call)
        incoming.body = BodyReader(response, incoming.chunks, session.max_response_bytes)
        self._meta = attempts.meta(response)
        self._reader = self._new_reader(response.headers.get("x-request-id"))

    async def _advance(self, attempts: Attempts) -> None:
        """Read until there are pieces, or the end, or an error to raise."""
        if self._incoming is None:
            await self._open(attempts)
        incoming, reader = self._incoming, self._reader
        assert incoming is not None
        assert reader is not None
        if reader.done:
            await self._read_tail()
            await self._close()
            if reader.error is None:
                self._ended = True
            else:
                self._fail(reader.error, reader.transient, attempts)
            return
        try:
            data = await self._session.run(incoming.body.next)
        except httpx.TransportError as error:
            if not self._is_closed:
                await self._break(error, attempts)
            return
        if self._is_closed:  # by another task, meanwhile
            return
        pieces = reader.finish() if data is None else reader.feed(data)
        self._pieces.extend(pieces)
        self._delivered = self._delivered or bool(pieces)
        if reader.done:
            return  # what came before is handed on before the tail is waited for
        if reader.error is not None:
            await self._close()
            self._fail(reader.error, reader.transient, attempts)
        elif data is None:
            if reader.ends_with_body:
                await self._close()
                self._ended = True
            else:
                await self._break(None, attempts)

    def _fail(self, error: APIError, transient: int | None, attempts: Attempts) -> None:
        """End with a failure that came inside the stream, or prepare to open anew."""
        error.attempts = attempts.count
        if transient is None or self._delivered:
            self._error = error
        else:
            self._failure = error, transient

    async def _break(self, cause: httpx.TransportError | None, attempts: Attempts) -> None:
        """End with a connection that broke, what was held back handed on first, or prepare to open anew."""
        assert self._incoming is not None
        assert self._reader is not None
        self._pieces.extend(self._reader.flush())
        self._delivered = self._delivered or bool(self._pieces)
        received = f"after {self._incoming.body.received:,} bytes of the stream, before its end"
        address = self._session.base_url
        error: GatewayError
        if cause is None:
            error = ConnectionError(f"The connection to the gateway at {address} ended {received}")
        else:
            error = self._session.failure_of(cause, attempts)
            if isinstance(error, ConnectionError):
                error.args = (f"The connection to the gateway at {address} broke {received}: {error.reason}",)
        error.attempts = attempts.count
        error.request_id = None if self._meta is None else self._meta.request_id
        if self._reader.error is not None:  # the provider's failure, of which at least the beginning came
            self._reader.error.__cause__ = error
            self._fail(self._reader.error, self._reader.transient, attempts)
        elif self._delivered:
            self._error = error
        else:
            self._failure = error, None
        await self._close()

    async def _read_tail(self) -> None:
        """Read what follows the end mark, bounded: the gateway writes its usage record meanwhile."""
        incoming = self._incoming
        if incoming is None:
            return
        incoming.in_tail = True
        body = incoming.body
        limit = body.received + _TAIL_BYTES

        async def read() -> None:
            try:
                while body.received < limit and await body.next() is not None:
                    pass
            except (httpx.TransportError, InvalidResponseError):
                pass  # the answer is complete; how the connection ends after it does not matter

        with anyio.move_on_after(_TAIL_SECONDS, shield=True):
            await self._session.run(read)

    async def _close(self) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            await self._session.discard(incoming.response, incoming.chunks)

    def __del__(self) -> None:
        incoming: _Incoming | None = getattr(self, "_incoming", None)
        if incoming is not None:
            self._incoming = None
            close_soon(incoming.loop, incoming.close)
            prefix, block, close = self._words
            warnings.warn(
                f"{prefix}{type(self).__name__} was dropped before its end; use {block}, or call {close}",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def __repr__(self) -> str:
        if self._incoming is not None:
            state = "open"
        elif self._ended:
            state = "ended"
        else:
            state = "closed" if self._is_closed else "new"
        return f"<{type(self).__name__} {state}>"
