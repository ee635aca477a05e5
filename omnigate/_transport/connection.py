"""One connection: an anyio byte stream that is idle, in use, or closed.

Closing is synchronous, because neither a shield nor awaited clean-up withstands asyncio's `Task.cancel()`.
`close_now` therefore runs the stream's `aclose()` only as far as it goes without waiting; by then anyio's
socket streams have closed their socket.
"""

from __future__ import annotations

import select
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Literal, cast

import anyio
import httpx
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSAttribute

from omnigate._transport.messages import Origin
from omnigate._transport.timers import Limit

MAX_RECEIVE_BYTES: Final = 262_144
"""The most that asyncio reads in one go, so that nothing stays in anyio's own buffer."""

_STEPS: Final = 8


class Connection:
    """A connection to an origin.

    Attributes:
        state: "idle", "in use" or "closed".
        idle_since: when it became idle, by the pool's clock.
        used: whether it has already carried a complete response.
        limit: the time limit of the current read or write.
    """

    __slots__ = ("_poll", "_queue", "_tls", "idle_since", "limit", "origin", "state", "stream", "used")

    def __init__(self, stream: ByteStream, origin: Origin, limit: Limit) -> None:
        self.stream: ByteStream = stream
        self.origin: Origin = origin
        self.limit: Limit = limit
        self.state: Literal["idle", "in use", "closed"] = "in use"
        self.idle_since: float = 0.0
        self.used: bool = False
        raw_socket = stream.extra(SocketAttribute.raw_socket, None)
        self._tls: ssl.SSLObject | None = stream.extra(TLSAttribute.ssl_object, None)
        # Data that anyio has already read from an asyncio transport: uvloop may deliver it unasked, and TLS
        # may consume only part of what arrived together.
        beneath = getattr(stream, "transport_stream", stream)
        self._queue: Any = getattr(getattr(beneath, "_protocol", None), "read_queue", None)
        self._poll = None if raw_socket is None else _poll_of(raw_socket)

    def is_quiet(self) -> bool:
        """Return whether nothing has arrived since the last response, neither data nor EOF."""
        if (self._poll is not None and self._poll(0)) or self._queue:
            return False
        if self._tls is None:
            return True
        try:
            # Data that arrived in one packet with the response's last record has already left the socket.
            self._tls.read(1)
        except ssl.SSLWantReadError:
            return True
        except ssl.SSLError:
            pass
        return False

    def close(self) -> None:
        """Close the connection immediately."""
        if self.state != "closed":
            self.state = "closed"
            self._poll = None
            close_now(self.stream)

    def __repr__(self) -> str:
        scheme, host, port = self.origin
        return f"<Connection to {scheme}://{host}:{port}: {self.state}>"


def _poll_of(raw_socket: socket.socket) -> Callable[[int], list[Any]]:
    """Return a function that, given the timeout 0, returns a truthy value if the socket has data or EOF."""
    if sys.platform == "win32" or not hasattr(select, "poll"):
        return lambda timeout: select.select([raw_socket], [], [], timeout)[0]
    poll = select.poll()
    poll.register(raw_socket.fileno(), select.POLLIN)
    return poll.poll


def close_now(stream: Any) -> None:
    """Close an anyio stream without waiting, even if its event loop has ended."""
    closing = stream.aclose()
    try:
        for _ in range(_STEPS):
            if closing.send(None) is not None:  # a bare yield (None) can be stepped, a future cannot
                break
    except StopIteration:
        pass
    except (OSError, ssl.SSLError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass  # the stream was broken; it is closed either way
    except RuntimeError:
        # The event loop has ended. asyncio closes the descriptor when it is collected; shutting the socket
        # down ends the connection for the server now.
        with suppress(OSError):
            stream.extra(SocketAttribute.raw_socket).shutdown(socket.SHUT_RDWR)
    finally:
        closing.close()


class Connector:
    """Opens streams: TCP (with anyio's happy eyeballs) or a unix domain socket, optionally with TLS."""

    def __init__(self, verify: bool | ssl.SSLContext, uds: str | None) -> None:
        self._verify = verify
        self._uds = uds
        self._context: ssl.SSLContext | None = None

    async def __call__(self, origin: Origin, timeout: float | None) -> ByteStream:
        """Open a new stream to `origin`.

        Args:
            origin: the scheme, host and port to connect to.
            timeout: seconds for connecting, including TLS; None for no limit.

        Raises:
            httpx.ConnectError: it cannot be reached, or its certificate is not trusted.
            httpx.ConnectTimeout: connecting took longer than `timeout`.
        """
        address = self._uds or f"{origin[1]}:{origin[2]}"
        try:
            with anyio.fail_after(timeout):
                return await self._connect(origin)
        except TimeoutError as error:
            if type(error) is not TimeoutError:  # pragma: no cover - the system's own connect timeout
                raise httpx.ConnectError(f"{address}: {error}") from error
            raise httpx.ConnectTimeout(f"connecting to {address} took longer than {timeout} s") from error
        except ssl.SSLCertVerificationError as error:
            raise httpx.ConnectError(
                f"{address}: the certificate is not trusted: {error.verify_message}"
            ) from error
        except (OSError, ssl.SSLError, anyio.BrokenResourceError, anyio.EndOfStream) as error:
            raise httpx.ConnectError(f"{address}: {_reason(error)}") from error

    async def _connect(self, origin: Origin) -> ByteStream:
        scheme, host, port = origin
        if not 0 < port < 65_536:
            raise OSError("the port must be between 1 and 65535")
        context = self._ssl_context() if scheme == "https" else None
        if self._uds is None:
            if context is None:
                return await anyio.connect_tcp(host, port)
            return await anyio.connect_tcp(
                host, port, ssl_context=context, tls_hostname=host, tls_standard_compatible=False
            )
        stream = await anyio.connect_unix(self._uds)
        if context is None:
            return stream
        try:
            from anyio.streams.tls import TLSStream

            return await TLSStream.wrap(
                stream, server_side=False, hostname=host, ssl_context=context, standard_compatible=False
            )
        except BaseException:
            close_now(stream)
            raise

    def _ssl_context(self) -> ssl.SSLContext:
        if self._context is None:
            if isinstance(self._verify, ssl.SSLContext):
                self._context = self._verify
            else:
                self._context = httpx.create_ssl_context(verify=self._verify)
            self._context.set_alpn_protocols(["http/1.1"])
        return self._context


def _reason(error: BaseException) -> str:
    """Return why connecting failed: anyio says only that all attempts failed, and chains the cause."""
    cause = error.__cause__
    causes: Sequence[BaseException] = (error,)
    if isinstance(cause, BaseExceptionGroup):
        causes = cast("BaseExceptionGroup[BaseException]", cause).exceptions
    elif isinstance(cause, OSError):
        causes = (cause,)
    return "; ".join(str(cause) or type(cause).__name__ for cause in causes)
