"""`AnyIOTransport`: an HTTP/1.1 httpx transport on asyncio and trio, at a constant cost per request.

What a cancelled await leaves behind, on trio or asyncio, cancelled by a scope or natively:

- waiting for a connection: nothing; a connection assigned meanwhile goes to the next waiter;
- connecting: nothing; the socket is closed, and the slot is freed;
- writing the request, or reading the response or its body: the connection is closed immediately, without
  another await, since its state is unknown; its slot is freed.

There are no background tasks, but timers: one closes idle connections, another watches deadlines. On trio,
which has no timers, each is a system task that ends when it has nothing left to wait for. A response read to
its end returns its connection to the pool before yielding its last bytes.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, overload

import anyio
import anyio.lowlevel
import httpx

from omnigate import _homes
from omnigate._runtime.loops import PerLoop
from omnigate._runtime.threads import is_exiting
from omnigate._transport.connection import Connection
from omnigate._transport.connector import Connector
from omnigate._transport.exchange import Exchange, Timeouts
from omnigate._transport.httpx2_requests import answer_httpx2
from omnigate._transport.messages import Origin, OutgoingMessage, PreparedRequest, outgoing
from omnigate._transport.pool import Pool
from omnigate._transport.problems import NoFreeConnection
from omnigate._wire.checks import check_callable, check_integer, check_number, check_text, check_verify
from omnigate._wire.pickling import UnpicklableClient
from omnigate._wire.values import Integer, Number
from omnigate.exceptions import ClientClosedError, ConnectionError

if TYPE_CHECKING:
    import httpx2

    # httpx2's client takes any object with a transport's methods, but is annotated with its own base class.
    class _Transport(httpx.AsyncBaseTransport, httpx2.AsyncBaseTransport):  # type: ignore[misc]
        pass
else:
    _Transport = httpx.AsyncBaseTransport


class AnyIOTransport(UnpicklableClient, _Transport):
    """An HTTP/1.1 transport for `httpx.AsyncClient`, `httpx2.AsyncClient` and the clients of this package.

    It runs on asyncio and trio, in successive or simultaneous event loops.

    Args:
        max_connections: open connections per event loop, over all origins; None for no limit.
        max_idle_connections: idle connections kept for reuse; None for no limit but `max_connections`.
        idle_timeout_seconds: seconds after which an idle connection is closed. The gateway closes
            them after 5.
        max_connection_age_seconds: seconds after which a connection carries no further request, so that
            names are resolved anew; each connection draws its own age from the last fifth. None for no limit.
        verify: whether to verify TLS certificates, or the `ssl.SSLContext` to use (with a client
            certificate, for instance). True trusts the authorities that `SSL_CERT_FILE`, `SSL_CERT_DIR`,
            `REQUESTS_CA_BUNDLE` or `CURL_CA_BUNDLE` names, the first that is set, else certifi's.
        uds: path of a unix domain socket to connect to, whatever the URL's host.
        clock: returns the time in seconds, for the age of connections; None for the event loop's.

    Raises:
        InvalidArgumentError: an argument is invalid (a `ValueError`).
    """

    def __init__(
        self,
        *,
        max_connections: Integer | None = 1_024,
        max_idle_connections: Integer | None = None,
        idle_timeout_seconds: Number = 4.0,
        max_connection_age_seconds: Number | None = 300.0,
        verify: bool | ssl.SSLContext = True,
        uds: str | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if max_connections is not None:
            max_connections = check_integer(max_connections, "max_connections", minimum=1)
        if max_idle_connections is not None:
            max_idle_connections = check_integer(max_idle_connections, "max_idle_connections", minimum=0)
        idle_timeout_seconds = check_number(idle_timeout_seconds, "idle_timeout_seconds", minimum=0)
        if max_connection_age_seconds is not None:
            max_connection_age_seconds = check_number(
                max_connection_age_seconds, "max_connection_age_seconds", minimum=0
            )
        check_verify(verify)
        if uds is not None:
            uds = check_text(uds, "uds")
        if clock is not None:
            check_callable(clock, "clock", "a callable that returns seconds")
        self.max_connections = max_connections
        self._connect = Connector(verify, uds)
        self._pools: PerLoop[Pool] = PerLoop(
            partial(
                Pool,
                max_connections,
                max_idle_connections,
                idle_timeout_seconds,
                max_connection_age_seconds,
                clock,
            ),
            drop=Pool.close,
        )
        self._closed = False

    @overload
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response: ...
    @overload
    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response: ...
    async def handle_async_request(
        self, request: httpx.Request | httpx2.Request
    ) -> httpx.Response | httpx2.Response:
        """Send a request and return its response, whose stream the caller must read or close.

        Args:
            request: the request, of httpx or of httpx2; its "timeout" extension is a dict of seconds, or None
                for no limit, for "connect", "read", "write" and "pool".

        Raises:
            httpx.TransportError: under the same conditions as with httpx's own transports; for a request of
                httpx2, its error of the same name.
            ClientClosedError: the transport is closed, or was closed meanwhile (a `RuntimeError`).
        """
        if not isinstance(request, httpx.Request):  # pyright: ignore[reportUnnecessaryIsInstance]
            return await answer_httpx2(request, partial(AnyIOTransport.handle_async_request, self))
        message = (
            OutgoingMessage(request.method, request.origin, request.message)
            if isinstance(request, PreparedRequest)
            else outgoing(request)
        )
        return await self._exchange(message, request.extensions).run(Exchange.response)

    def _exchange(self, message: OutgoingMessage, extensions: Mapping[str, Any]) -> Exchange:
        """Return the exchange of a request and its response, for `handle_async_request` and the clients.

        Raises:
            ClientClosedError: the transport is closed.
        """
        if self._closed:
            raise ClientClosedError("the transport is closed")
        return Exchange(self._pools.current(), self, message, extensions.get("timeout") or {})

    @property
    def pool(self) -> Pool:
        """The running event loop's pool."""
        return self._pools.current()

    async def aclose(self) -> None:
        """Close all connections, in other event loops on their next iteration; calls in flight fail."""
        self._closed = True  # first, so that a request that is just starting sees it once it is connected
        self._pools.end(Pool.close)
        await anyio.lowlevel.checkpoint()

    def stats(self) -> dict[str, Any]:
        """Return the counts "idle", "in_use", "opening" and "waiting", and per origin under "origins"."""
        total: dict[str, Any] = {"idle": 0, "in_use": 0, "opening": 0, "waiting": 0, "origins": {}}
        for pool in self._pools.values():
            stats = pool.stats()
            for name in ("idle", "in_use", "opening", "waiting"):
                total[name] += stats[name]
            for origin, numbers in stats["origins"].items():
                known = total["origins"].setdefault(origin, dict.fromkeys(numbers, 0))
                for name, number in numbers.items():
                    known[name] += number
        return total

    def __repr__(self) -> str:
        stats = self.stats()
        origins = [
            f"{origin}: {n['idle']} idle, {n['in_use']} in use, {n['waiting']} waiting"
            for origin, n in stats["origins"].items()
        ]
        return f"<AnyIOTransport {'closed' if self._closed else '; '.join(origins) or 'without connections'}>"

    async def _connection(
        self, pool: Pool, origin: Origin, timeouts: Timeouts, *, has_slot: bool
    ) -> Connection:
        """Open a connection, for an exchange; without a slot for it, wait for one, or for a connection.

        Raises:
            httpx.TransportError: it could not be opened, or none became free.
            ClientClosedError: the transport was closed.
        """
        if not has_slot:
            seconds = timeouts.get("pool")
            try:
                with anyio.fail_after(seconds):
                    waited = await pool.wait(origin)
            except TimeoutError:
                raise NoFreeConnection(
                    f"no connection became free within {seconds:g} s: {self.max_connections:,} were in use "
                    f"(max_connections)"
                ) from None
            if self._closed:
                if waited is None:
                    pool.free_slot()
                else:
                    pool.discard(waited)
                raise ClientClosedError("the transport was closed")
            if waited is not None and waited.is_quiet():
                return waited
            if waited is not None:
                pool.keep_slot(waited)
        stream = None
        try:
            with anyio.CancelScope() as scope:
                pool.opening.add(scope)
                try:
                    stream = await self._connect(origin, timeouts.get("connect"))
                except RuntimeError as error:
                    if not is_exiting():
                        raise
                    raise ConnectionError(f"cannot connect while the interpreter exits: {error}") from error
                finally:
                    pool.opening.discard(scope)
            if stream is None or self._closed:
                raise ClientClosedError("the transport was closed")
            return pool.add(stream, origin)
        except BaseException:
            if stream is not None:
                stream.abort()
            pool.free_slot()
            raise


_homes.settle(__name__)
