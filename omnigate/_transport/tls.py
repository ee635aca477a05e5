"""TLS over another byte stream, for trio.

trio's own `SSLStream` cannot tell whether a record has arrived that nobody asked for, nor, with the ends that
HTTP servers make, whether the server announced the end. Both must be known before a connection is used again.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable
from typing import Final

from omnigate._transport.byte_stream import ByteStream

_MAX_RECEIVE_BYTES: Final = 262_144


class TLSStream:
    """The client's side of TLS over a byte stream."""

    __slots__ = ("_incoming", "_outgoing", "_stream", "_tls")

    def __init__(self, stream: ByteStream, context: ssl.SSLContext, hostname: str) -> None:
        """Start before the handshake.

        Args:
            stream: the stream underneath, owned from now on.
            context: the settings and trusted authorities.
            hostname: the name that the server's certificate must have.
        """
        self._stream = stream
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)

    async def handshake(self) -> None:
        """Shake hands.

        Raises:
            OSError: the peer does not speak TLS, or its certificate is not trusted.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except ssl.SSLError:
                await self._flush()  # tells the server why
                raise
            else:
                await self._flush()
                return

    def send(self, data: bytes) -> Awaitable[None] | None:
        """Send `data`; return None if nothing is left to wait for."""
        self._tls.write(data)  # a memory BIO takes everything
        return self._stream.send(self._outgoing.read())

    async def receive(self) -> bytes:
        """Return the next bytes; b"" at the end, announced or not."""
        while True:
            try:
                return self._tls.read(_MAX_RECEIVE_BYTES)
            except ssl.SSLWantReadError:
                await self._flush()  # the answer to an update of keys, for instance
                await self._fill()
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLEOFError:
                return b""

    def is_quiet(self) -> bool:
        """Return whether nothing has arrived that was not received, neither a record nor the end."""
        if not self._stream.is_quiet():
            return False
        try:
            # A record that arrived together with the response's last one has already left the socket.
            self._tls.read(1)
        except ssl.SSLWantReadError:
            return True
        except ssl.SSLError:
            pass
        return False

    def has_clean_end(self) -> bool:
        """Return whether the server announced the end."""
        try:
            return self._tls.read(1) == b""  # after close_notify; a cut connection keeps raising
        except ssl.SSLError:
            return False

    def lend(self) -> None:
        """Return None: only this object can decrypt what arrives."""
        return

    def take_back(self) -> None:
        """Do nothing: it is never lent."""

    def abort(self) -> None:
        """Close the stream immediately, without telling the server."""
        self._stream.abort()

    async def _flush(self) -> None:
        if self._outgoing.pending:
            pending = self._stream.send(self._outgoing.read())
            if pending is not None:
                await pending

    async def _fill(self) -> None:
        data = await self._stream.receive()
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
