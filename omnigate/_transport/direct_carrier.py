"""Carries the calls of sync clients: in the caller's thread if that is possible, else in the event loop.

A call begins in the caller's thread, where its coroutine is run without an event loop and may await nothing
but `to_loop`. That suspends it, and the portal continues it in the event loop: if no connection is ready, and
after anything but a small success. So retries, errors and the pool are the event loop's in any case.
"""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from typing import Any, Final, TypeVar

import httpx

from omnigate._runtime.loops import is_in_loop
from omnigate._transport.carrier import Answer, Carrier, Sendable, message_of, read_and_discard, reply_of
from omnigate._transport.connection import Connection
from omnigate._transport.direct import Parked, is_of_a_handler
from omnigate._transport.exchange import IDEMPOTENT, ResponseStream, Timeouts
from omnigate._transport.http11 import ResponseReader
from omnigate._transport.messages import RawResponse
from omnigate._transport.pool import Pool

T = TypeVar("T")

_SMALL_BYTES: Final = 16_384

_ALONE_CALLS: Final = 3
"""How many calls in a row must have been alone before the next begins in its caller's thread. The event loop
serves many threads better: their calls share its wake-ups."""


@types.coroutine
def to_loop() -> Generator[None, None, None]:
    """Suspend a coroutine that was begun outside of its event loop."""
    yield


@types.coroutine
def continued(coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Continue a coroutine that is suspended in `to_loop`, in its event loop."""
    return (yield from coroutine.__await__())


class Interrupted(BaseException):
    """Carries what a signal handler has raised past the retry policy, which judges what the network raises.

    Attributes:
        error: what was raised.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


class DirectCarrier(Carrier):
    """Carries calls over our own transport, from the threads of a sync client."""

    def __init__(self, carrier: Carrier) -> None:
        super().__init__(carrier.transport, carrier._limit)
        self._pool: Pool | None = None  # of the portal's loop
        self._running = 0  # calls in the event loop
        self._alone = 0  # how many of them in a row overlapped with no other

    @property
    def is_ready(self) -> bool:
        """Whether a call that begins in the caller's thread is likely to end there."""
        return self._pool is not None and bool(self._pool.parked)

    async def fetch(self, call: Sendable) -> Answer:
        """Send a request and return its answer, read and closed.

        Raises:
            InvalidResponseError: a success's body is corrupt, too long, or in an unknown content encoding.
            httpx.TransportError: as the transport raises it.
        """
        if is_in_loop():
            return await self._fetch_in_loop(call)
        pool, reader = self._pool, ResponseReader(call.endpoint.method)
        was_sent, error = False, None
        # Only this list refers to the connection: an interrupt just before it is added, or after it is
        # removed, drops it, which closes it, even while the traceback keeps this frame.
        held: list[Parked] = []
        try:
            if pool is not None:
                was_sent, error = self._exchange_here(call, pool, held, reader)
                answer = self._answer(reader) if error is None else None
                if answer is not None:
                    pool.parked.append(held.pop())
                    pool.note_parked()
                    return answer
        except BaseException as interrupt:  # noqa: BLE001 - raised by the portal
            _close(held)
            raise Interrupted(interrupt) from None
        try:
            await to_loop()
        except BaseException:
            _close(held)
            raise
        if pool is None or not held:
            return await self._fetch_in_loop(call)
        return await self._finish(call, pool, held.pop().take_back(), reader, error, was_sent=was_sent)

    def _exchange_here(
        self, call: Sendable, pool: Pool, held: list[Parked], reader: ResponseReader
    ) -> tuple[bool, httpx.TransportError | None]:
        """Send a request in this thread and read the response, over a connection that is added to `held`.

        Returns whether any byte of the request may have been sent, and the error, if there was one.
        """
        message = message_of(call).start
        if len(message) > _SMALL_BYTES:
            return False, None
        try:
            held.append(pool.parked.pop())
        except IndexError as error:
            if is_of_a_handler(error):
                raise
            return False, None  # another thread has just taken it
        if not pool.is_good(held[0], call.origin):
            _close(held)
            return False, None
        timeouts: Timeouts = call.extensions.get("timeout") or {}
        return held[0].exchange(message, reader, timeouts.get("write"), timeouts.get("read"))

    def _answer(self, reader: ResponseReader) -> Answer | None:
        """Return a whole success whose connection can be used again; None for the event loop to look at."""
        if not (reader.complete and reader.reusable) or reader.is_encoded or reader.head is None:
            return None
        if not 200 <= reader.status_code < 300:
            return None
        body = reader.take_body()
        if len(body) > self._limit:
            reader.put_back(body)
            return None
        reader.release()
        return Answer(reader.status_code, reader.head, body)

    async def _finish(
        self,
        call: Sendable,
        pool: Pool,
        connection: Connection,
        reader: ResponseReader,
        error: httpx.TransportError | None,
        *,
        was_sent: bool,
    ) -> Answer:
        """Go on with an exchange in the event loop."""
        is_success = 200 <= reader.status_code < 300
        if reader.head is None or (error is not None and is_success):
            assert error is not None
            pool.discard(connection)
            is_dead = isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError) and not reader.started
            if is_dead and (not was_sent or call.endpoint.method in IDEMPOTENT):
                pool.drop_idle(call.origin)
                return await self._fetch_in_loop(call)
            raise error
        timeouts: Timeouts = call.extensions.get("timeout") or {}
        broken = None if error is None else str(error)
        stream = ResponseStream(pool, connection, reader, timeouts.get("read"), broken)
        response = RawResponse(reader.status_code, reader.head, stream)
        return await read_and_discard(reply_of(response, self._limit))

    async def _fetch_in_loop(self, call: Sendable) -> Answer:
        self._alone = 0 if self._running else self._alone + 1
        self._running += 1
        try:
            answer = await super().fetch(call)
        finally:
            self._running -= 1
        if self._alone >= _ALONE_CALLS and not self._running:
            self._pool = self._own.pool
            self._pool.park(call.origin)
        return answer


def _close(held: list[Parked]) -> None:
    for parked in held:
        parked.close()
    held.clear()
