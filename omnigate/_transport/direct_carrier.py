"""Carries the calls of sync clients: in the caller's thread if that is possible, else in the event loop.

A call begins in the caller's thread, where its coroutine is driven by hand and nothing may be awaited but
`to_loop`. That suspends it, and the portal continues it in the event loop: if there is no connection ready, and
if anything happens that is not a small success. So retries, errors and pools are the event loop's in any case.
"""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from typing import Any, Final, TypeVar

import httpx

from omnigate._runtime.loops import is_in_loop
from omnigate._transport.carrier import Answer, Carrier, Sendable, message_of, read_and_discard, reply_of
from omnigate._transport.direct import Parked
from omnigate._transport.exchange import IDEMPOTENT, ResponseStream
from omnigate._transport.http11 import ResponseReader
from omnigate._transport.messages import RawResponse
from omnigate._transport.pool import Pool

T = TypeVar("T")

TO_LOOP: Final = "to be continued in the event loop"

_SMALL_BYTES: Final = 16_384

_ALONE_CALLS: Final = 3
"""How many calls in a row must have been alone before the next begins in its caller's thread. Many threads are
served better by the event loop, where their calls share its wake-ups."""


@types.coroutine
def to_loop() -> Generator[str, None, None]:
    """Suspend a coroutine that was begun outside of its event loop."""
    yield TO_LOOP


@types.coroutine
def continued(coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Continue a coroutine that is suspended in `to_loop`, in its event loop."""
    return (yield from coroutine.__await__())


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
        pool, message = self._pool, message_of(call)
        if pool is None or len(message) > _SMALL_BYTES:
            await to_loop()
            return await self._fetch_in_loop(call)
        parked = pool.borrow(call.origin)
        if parked is None:
            await to_loop()
            return await self._fetch_in_loop(call)
        timeouts = call.extensions.get("timeout") or {}
        reader = ResponseReader(call.endpoint.method)
        was_sent, error = parked.exchange(message, reader, timeouts.get("write"), timeouts.get("read"))
        del message
        if error is None and reader.complete and reader.reusable and not reader.is_encoded:
            if reader.head is not None and 200 <= reader.status_code < 300:
                body = reader.take_body()
                if len(body) <= self._limit:
                    pool.park_again(parked)
                    return Answer(reader.status_code, reader.head, body)
                reader._body = [body]
        await to_loop()
        return await self._finish(call, pool, parked, reader, error, was_sent=was_sent)

    async def _finish(
        self,
        call: Sendable,
        pool: Pool,
        parked: Parked,
        reader: ResponseReader,
        error: httpx.TransportError | None,
        *,
        was_sent: bool,
    ) -> Answer:
        """Go on with an exchange in the event loop."""
        connection = parked.take_back()
        is_success = 200 <= reader.status_code < 300
        if reader.head is None or (error is not None and is_success):
            assert error is not None
            pool.discard(connection)
            is_dead = isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError) and not reader.started
            if is_dead and (not was_sent or call.endpoint.method in IDEMPOTENT):
                pool.drop_idle(call.origin)
                return await self._fetch_in_loop(call)
            raise error
        read = (call.extensions.get("timeout") or {}).get("read")
        broken = None if error is None else str(error)
        stream = ResponseStream(pool, connection, reader, read, broken)
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
