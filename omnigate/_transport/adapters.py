"""Adapts every kind of httpx transport to one interface: `httpx.AsyncBaseTransport` with async streams.

Three kinds need adapting. A sync-only transport runs in worker threads with its own limiter, so that it uses
none of the application's threads. A transport of httpx2, the maintained successor of httpx, gets requests of
httpx2's classes. And an async transport may answer with a sync stream, or the reverse.

A worker thread cannot be interrupted, so a cancelled call abandons it immediately, and the thread closes
whatever it receives afterwards.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any, Protocol, TypeVar, TypeVarTuple, Unpack, cast

import anyio
import httpx

from omnigate._runtime.loops import PerLoop
from omnigate._runtime.threads import in_thread
from omnigate._transport.httpx2_requests import TranslatedErrors
from omnigate._transport.httpx_pool import HttpxTransport, drop_lost_connections
from omnigate._wire.checks import a_type, refusal
from omnigate._wire.pickling import UnpicklableClient

T = TypeVar("T")

Args = TypeVarTuple("Args")

MAX_THREADS = 128
"""Maximum worker threads, and so calls in flight, per sync-only transport and event loop."""


class _Closable(Protocol):
    def close(self) -> None: ...


def adapt(transport: object) -> httpx.AsyncBaseTransport:
    """Return `transport` as an async httpx transport.

    Raises:
        InvalidArgumentTypeError: it is not a transport of a known kind.

    """
    if isinstance(transport, httpx.AsyncHTTPTransport):
        return HttpxTransport(transport)
    if isinstance(transport, httpx.AsyncBaseTransport):
        return transport
    if isinstance(transport, httpx.BaseTransport):
        return ThreadedTransport(transport)
    httpx2 = sys.modules.get("httpx2")  # imported, if the transport is one of its
    if httpx2 is not None and isinstance(transport, (httpx2.AsyncBaseTransport, httpx2.BaseTransport)):
        return Httpx2Transport(transport, httpx2)
    must = "be an httpx.AsyncBaseTransport or httpx.BaseTransport (or httpx2's)"
    raise refusal("transport", transport, must, is_type=True, got=a_type(transport))


def async_chunks(stream: object) -> AsyncIterator[bytes]:
    """Return an async iterator over a sync or async response stream."""
    if hasattr(stream, "__aiter__"):
        return aiter(cast("httpx.AsyncByteStream", stream))
    return ThreadedStream(cast("httpx.SyncByteStream", stream), Threads())


async def close_stream(stream: object, chunks: AsyncIterator[bytes] | None) -> None:
    """Close a sync or async response stream, and the iterator over it."""
    if isinstance(chunks, ThreadedStream):
        await chunks.aclose()
        return
    aclose = getattr(stream, "aclose", None)
    if aclose is None:
        await Threads().run(cast("_Closable", stream).close)
        return
    try:
        await aclose()
    finally:
        if isinstance(chunks, AsyncGenerator):
            await _finish(cast("AsyncGenerator[bytes]", chunks))


async def _finish(chunks: AsyncGenerator[bytes]) -> None:
    """Finish an async generator and the generators it reads from.

    httpx's streams are nested generators. Closing only the outer one would leave the inner ones to the
    garbage collector, which trio warns about. The stream is already closed, so reading on ends or fails
    immediately, which finishes them all.
    """
    try:
        while getattr(chunks, "ag_frame", None) is not None:
            await chunks.__anext__()
    except (StopAsyncIteration, httpx.HTTPError, httpx.StreamError, RuntimeError, OSError):
        pass  # finished
    finally:
        await chunks.aclose()


class Threads:
    """Worker threads for one sync object, with its own limiter per event loop."""

    def __init__(self) -> None:
        self._limiters = PerLoop(lambda loop: anyio.CapacityLimiter(MAX_THREADS))

    async def run(
        self,
        func: Callable[[Unpack[Args]], T],
        *args: *Args,
        dispose: Callable[[T], None] | None = None,
    ) -> T:
        """Run `func(*args)` in a worker thread; a cancelled caller does not wait for it.

        Args:
            func: the blocking function.
            args: its arguments.
            dispose: called in that thread with the result if the caller was cancelled.

        """
        return await in_thread(func, *args, dispose=dispose, limiter=self._limiters.current())


class ThreadedStream(httpx.AsyncByteStream):
    """A sync response stream, read in worker threads."""

    def __init__(self, stream: httpx.SyncByteStream, threads: Threads) -> None:
        self._stream = stream
        self._threads = threads
        self._iterator: Iterator[bytes] | None = None
        self._lock = threading.Lock()  # held by the thread that runs the stream's code
        self._closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self._threads.run(self._next)
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Close the stream; if an abandoned thread is still reading it, that thread closes it."""
        self._closed = True
        await self._threads.run(self._close_if_free)

    def _next(self) -> bytes | None:
        try:
            with self._lock:
                if self._iterator is None:
                    self._iterator = iter(self._stream)
                return next(self._iterator, None)
        finally:
            if self._closed:
                self._close_if_free()

    def _close_if_free(self) -> None:
        if self._lock.acquire(blocking=False):
            try:
                self._stream.close()
            finally:
                self._lock.release()


class ThreadedTransport(UnpicklableClient, httpx.AsyncBaseTransport):
    """A sync-only transport, run in worker threads."""

    def __init__(self, transport: httpx.BaseTransport) -> None:
        self._transport = transport
        self._threads = Threads()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request` in a worker thread."""
        response = await self._threads.run(
            self._transport.handle_request, request, dispose=httpx.Response.close
        )
        stream = response.stream
        if not isinstance(stream, httpx.AsyncByteStream):
            stream = ThreadedStream(stream, self._threads)
        return httpx.Response(
            response.status_code, headers=response.headers, stream=stream, extensions=response.extensions
        )

    async def aclose(self) -> None:
        """Close the transport, in a worker thread."""
        await self._threads.run(self._transport.close)

    def __repr__(self) -> str:
        return f"<ThreadedTransport of {self._transport!r}>"


class Httpx2Transport(UnpicklableClient, httpx.AsyncBaseTransport):
    """An httpx2 transport, async or sync, behind httpx's classes."""

    def __init__(self, transport: Any, httpx2: Any) -> None:
        self._transport = transport
        self._httpx2 = httpx2
        self._threads = None if isinstance(transport, httpx2.AsyncBaseTransport) else Threads()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`, converted to httpx2's class; errors become httpx's of the same name."""
        foreign = self._httpx2.Request(
            request.method,
            str(request.url),
            headers=request.headers.raw,
            stream=self._httpx2.ByteStream(await request.aread()),
            extensions=dict(request.extensions),
        )
        with TranslatedErrors(self._httpx2, httpx):
            if self._threads is None:
                try:
                    response = await self._transport.handle_async_request(foreign)
                except BaseException:
                    await drop_lost_connections(self._transport)
                    raise
            else:
                response = await self._threads.run(
                    self._transport.handle_request, foreign, dispose=lambda late: late.close()
                )
        return httpx.Response(
            response.status_code,
            headers=response.headers.raw,
            stream=_Httpx2Stream(response.stream, self._httpx2),
            extensions=dict(response.extensions),
        )

    async def aclose(self) -> None:
        """Close the transport."""
        if self._threads is None:
            await self._transport.aclose()
        else:
            await self._threads.run(self._transport.close)

    def __repr__(self) -> str:
        return f"<Httpx2Transport of {self._transport!r}>"


class _Httpx2Stream(httpx.AsyncByteStream):
    def __init__(self, stream: Any, httpx2: Any) -> None:
        self._stream = stream
        self._httpx2 = httpx2
        self._chunks: AsyncIterator[bytes] | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._chunks is None:
            self._chunks = async_chunks(self._stream)
        with TranslatedErrors(self._httpx2, httpx):
            return await self._chunks.__anext__()

    async def aclose(self) -> None:
        await close_stream(self._stream, self._chunks)
