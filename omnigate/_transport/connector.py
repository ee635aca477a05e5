"""Opens byte streams: looks names up, connects to one of their addresses, and adds TLS.

Names are resolved anew for each connection; nothing is cached. But simultaneous look-ups of one name are
shared: each takes a thread, of which asyncio has only a few, and a thousand calls may start together. The
first caller looks the name up, and the others wait for it. If it is cancelled, the next one takes over.

A cancelled await leaves nothing behind: a stream that was connected meanwhile is closed immediately.
"""

from __future__ import annotations

import math
import socket
import ssl
from collections.abc import Iterable
from typing import Any, Final, cast

import anyio
import httpx

from omnigate._runtime.loops import PerLoop, in_trio
from omnigate._transport import asyncio_stream, sockets
from omnigate._transport.byte_stream import ByteStream
from omnigate._transport.certificates import ssl_context
from omnigate._transport.messages import Origin
from omnigate._transport.problems import ConnectFailure, lack_of_files
from omnigate._wire.arguments import address_of


class Connector:
    """Opens streams: TCP (with happy eyeballs) or a unix domain socket, optionally with TLS."""

    def __init__(self, verify: bool | ssl.SSLContext, uds: str | None) -> None:
        self._verify = verify
        self._uds = uds
        self._context: ssl.SSLContext | None = None
        self._lookups: PerLoop[dict[str, _Lookup]] = PerLoop(lambda _: {})

    async def __call__(self, origin: Origin, timeout: float | None) -> ByteStream:
        """Open a new stream to `origin`.

        Args:
            origin: the scheme, host and port to connect to.
            timeout: seconds for connecting, including the look-up and TLS; None for no limit.

        Raises:
            httpx.ConnectError: it cannot be reached, or its certificate is not trusted.
            httpx.ConnectTimeout: connecting took longer than `timeout`.
            InvalidArgumentError: a variable of the environment names no readable certificates.
        """
        address = self._uds or f"{origin[1]}:{origin[2]}"
        deadline = math.inf if timeout is None else anyio.current_time() + timeout
        try:
            with anyio.CancelScope(deadline=deadline):  # `fail_after` adds much to the memory of a burst
                return await self._connect(origin)
        except TimeoutError as error:  # pragma: no cover - the system's own
            raise httpx.ConnectTimeout(f"connecting to {address} took too long: {error}") from None
        except ssl.SSLCertVerificationError as error:
            raise ConnectFailure(
                f"{address}: the certificate is not trusted: {error.verify_message}", is_permanent=True
            ) from None
        except OSError as error:
            raise httpx.ConnectError(f"{address}: {lack_of_files(error) or _reason(error)}") from None
        raise httpx.ConnectTimeout(f"connecting to {address} took longer than {timeout} s")

    async def _connect(self, origin: Origin) -> ByteStream:
        scheme, host, port = origin
        if not 0 < port < 65_536:
            raise OSError("the port must be between 1 and 65535")
        context = self._ssl_context() if scheme == "https" else None
        if self._uds is not None:
            sock = await sockets.connect_unix(self._uds)
        else:
            addresses = [host] if address_of(host) is not None else await self._look_up(host, port)
            sock = await sockets.connect(addresses, port)
        # A certificate and SNI name a host without its final dot (RFC 6066, section 3) and without a zone.
        hostname = host.partition("%")[0].rstrip(".")
        if in_trio():
            from omnigate._transport import trio_stream

            return await trio_stream.open_stream(sock, context, hostname)
        return await asyncio_stream.open_stream(sock, context, hostname)

    async def _look_up(self, host: str, port: int) -> list[str]:
        """Return the addresses of a name, in the order in which to try them.

        Raises:
            OSError: it has none.
        """
        lookups = self._lookups.current()
        while (running := lookups.get(host)) is not None:
            await running.ended.wait()
            if running.addresses is not None:
                return running.addresses
            if running.error is not None:
                raise type(running.error)(*running.error.args)
        lookup = lookups[host] = _Lookup()
        try:
            found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            lookup.addresses = _interleaved((family, sockaddr[0]) for family, _, _, _, sockaddr in found)
            if not lookup.addresses:
                raise OSError("the name has no address")
            return lookup.addresses
        except UnicodeError as error:  # a label that is empty or too long
            lookup.error = OSError(f"not the name of a host: {error}")
            raise lookup.error from error
        except OSError as error:
            lookup.error = _lack_of_files()
            if lookup.error is not None:
                raise lookup.error from error
            lookup.error = error
            raise
        finally:
            del lookups[host]
            lookup.ended.set()

    def _ssl_context(self) -> ssl.SSLContext:
        if self._context is None:
            context = ssl_context(self._verify)
            context.set_alpn_protocols(["http/1.1"])
            self._context = context
        return self._context


class _Lookup:
    """A look-up in progress; if it has ended without a result, it was cancelled."""

    def __init__(self) -> None:
        self.ended: Final = anyio.Event()
        self.addresses: list[str] | None = None
        self.error: OSError | None = None


def _interleaved(found: Iterable[tuple[Any, str]]) -> list[str]:
    """Return addresses with their families alternating, starting with the first (RFC 8305, section 4)."""
    families: dict[Any, list[str]] = {}
    for family, address in found:
        known = families.setdefault(family, [])
        if address not in known:
            known.append(address)
    columns = list(families.values())
    longest = max(map(len, columns), default=0)
    return [column[row] for row in range(longest) for column in columns if row < len(column)]


def _lack_of_files() -> OSError | None:
    """Return the error if no socket can be opened, which a look-up reports as an unknown name."""
    try:
        socket.socket().close()
    except OSError as reason:
        return OSError(*reason.args)
    return None


def _reason(error: BaseException) -> str:
    """Return why connecting failed; if several addresses did, why each of them failed."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        causes = cast("BaseExceptionGroup[BaseException]", cause).exceptions
        return "; ".join(dict.fromkeys(_reason(each) for each in causes))
    return str(error) or type(error).__name__
