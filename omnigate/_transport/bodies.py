"""Response bodies, decompressed and size-limited as they arrive.

Requests ask for `identity`, but a proxy may compress anyway. A megabyte of gzip can decompress to a
gigabyte, so the limit applies to the output, piece by piece, before it is stored.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Final

import httpx

from omnigate.exceptions import InvalidResponseError

PIECE_BYTES: Final = 65_536

_STEP_BYTES: Final = 4_096
"""The compressed bytes given to zlib at a time. It copies what it leaves over, once for each piece and each
member, so more would be copied again and again."""

_CODINGS = re.compile(r"[a-z0-9, -]{1,24}\Z")  # safe to show: matches names of codings, not keys

_GZIP_MAGIC = b"\x1f\x8b"


class Inflater:
    """Decompresses gzip (RFC 1952) or deflate (RFC 1950, or raw RFC 1951 as some servers send it)."""

    def __init__(self, encoding: str) -> None:
        """Prepare for `encoding`: "gzip", "x-gzip" or "deflate"."""
        self._is_gzip = encoding != "deflate"
        self._start: bytes = b""  # buffered until there are the two bytes that identify a member's format
        self._stream: zlib._Decompress | None = None  # for the current member
        self._complete = False  # at least one member has ended
        self._padded = False  # trailing data that is not a member follows: ignored

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` decodes to, in pieces of at most `PIECE_BYTES`.

        Raises:
            zlib.error: the data is corrupt.
        """
        for start in range(0, len(data), _STEP_BYTES):
            yield from self._feed(data[start : start + _STEP_BYTES])

    def _feed(self, data: bytes) -> Iterator[bytes]:
        while not self._padded:
            if self._stream is None:
                data = self._start + data
                if len(data) < 2:
                    self._start = data
                    return
                self._start = b""
                if self._complete and not (self._is_gzip and data.startswith(_GZIP_MAGIC)):
                    self._padded = True  # only gzip has several members
                    return
                self._stream = zlib.decompressobj(self._window_bits(data))
            piece = self._stream.decompress(data, PIECE_BYTES)
            if piece:
                yield piece
            data = self._stream.unconsumed_tail
            if self._stream.eof:
                data = self._stream.unused_data
                self._stream = None  # it would keep a copy of the remaining data
                self._complete = True
            elif not data and len(piece) < PIECE_BYTES:
                return

    def finish(self) -> None:
        """Check at the end of the body that it was complete; an empty body is.

        Raises:
            zlib.error: it is incomplete.
        """
        if self._stream is not None or (self._start and not self._complete):
            raise zlib.error("it is incomplete")

    def _window_bits(self, data: bytes) -> int:
        if self._is_gzip:
            return zlib.MAX_WBITS | 16
        has_header = data[0] & 15 == 8 and (data[0] << 8 | data[1]) % 31 == 0  # RFC 1950, section 2.2
        return zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS


class BodyReader:
    """Reads the decoded body of one response, piece by piece.

    Owns nothing: the caller that opened the response closes it.

    Attributes:
        received: decoded bytes so far.

    """

    __slots__ = ("_chunks", "_head", "_inflater", "_limit", "_pieces", "received")

    def __init__(self, response: httpx.Response, chunks: AsyncIterator[bytes], limit: int) -> None:
        """Prepare to read a body.

        Args:
            response: the response, for its headers.
            chunks: the body's raw chunks.
            limit: maximum decoded bytes of the body.

        Raises:
            InvalidResponseError: the body's encoding is not supported.

        """
        self.received: int = 0
        self._chunks = chunks
        self._limit = limit
        self._head = response
        self._pieces: Iterator[bytes] = iter(())
        self._inflater: Inflater | None = None
        encoding = response.headers.get("content-encoding")
        if encoding is not None:
            encoding = encoding.strip().lower()
            if encoding in ("gzip", "x-gzip", "deflate"):
                self._inflater = Inflater(encoding)
            elif encoding not in ("", "identity"):
                name = repr(encoding) if _CODINGS.match(encoding) else "something unknown"
                raise self._invalid(f"the response has an unsupported content encoding: {name}")

    async def next(self) -> bytes | None:
        """Return the next piece, or None at the end of the body.

        Raises:
            InvalidResponseError: the body is corrupt or too long.

        """
        if self._inflater is None:
            try:
                piece = await self._chunks.__anext__()
            except StopAsyncIteration:
                return None
        else:
            found = await self._next_inflated(self._inflater)
            if found is None:
                return None
            piece = found
        self.count(piece)
        return piece

    @property
    def is_encoded(self) -> bool:
        """Whether the body has a content encoding."""
        return self._inflater is not None

    def count(self, piece: bytes) -> None:
        """Count a piece of the decoded body.

        Raises:
            InvalidResponseError: the body is too long.

        """
        self.received += len(piece)
        if self.received > self._limit:
            raise too_long(self._head, self._limit)

    async def read(self) -> bytes:
        """Return the whole body.

        Raises:
            InvalidResponseError: the body is corrupt or too long.

        """
        first = await self.next()
        if first is None:
            return b""
        body = [first]
        while (piece := await self.next()) is not None:
            body.append(piece)
        return first if len(body) == 1 else b"".join(body)

    async def read_start(self, length: int) -> bytes:
        """Return up to `length` bytes of the body, as much as arrives and can be decoded."""
        body = bytearray()
        try:
            while len(body) < length and (piece := await self.next()) is not None:
                body += piece[: length - len(body)]
        except (InvalidResponseError, httpx.TransportError):
            pass  # the start of an error's body is more useful than the failure to read the rest
        return bytes(body)

    async def _next_inflated(self, inflater: Inflater) -> bytes | None:
        try:
            while True:
                piece = next(self._pieces, None)
                if piece is not None:
                    return piece
                try:
                    chunk = await self._chunks.__anext__()
                except StopAsyncIteration:
                    inflater.finish()
                    return None
                self._pieces = inflater.feed(chunk)
        except zlib.error as error:
            raise self._invalid(f"the response's compressed body is corrupt: {error}") from None

    def _invalid(self, message: str) -> InvalidResponseError:
        return _invalid(self._head, message)


def too_long(response: httpx.Response, limit: int) -> InvalidResponseError:
    """Return the error for a body that is longer than `limit` bytes."""
    return _invalid(response, f"the response is longer than max_response_bytes={limit:,} allows")


def _invalid(response: httpx.Response, message: str) -> InvalidResponseError:
    return InvalidResponseError(
        message,
        status_code=response.status_code,
        request_id=response.headers.get("x-request-id"),
    )
