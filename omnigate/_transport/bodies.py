"""Response bodies: undone of their content encoding, and bounded while they arrive.

`identity` is what is asked for, but a proxy may compress all the same. A megabyte of gzip can be a
gigabyte, so the bound is on what comes out, piece by piece, before it is kept.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Final

import httpx

from omnigate.exceptions import InvalidResponseError

PIECE_BYTES: Final = 65_536

_CODINGS = re.compile(r"[a-z0-9, -]{1,24}\Z")  # as names of codings look, and keys do not

_GZIP_MAGIC = b"\x1f\x8b"


class Inflater:
    """Undoes gzip (RFC 1952) or deflate (RFC 1950; the bare RFC 1951 too, as some servers send it)."""

    def __init__(self, encoding: str) -> None:
        """Begin; `encoding` is "gzip", "x-gzip" or "deflate"."""
        self._is_gzip = encoding != "deflate"
        self._start: bytes = b""  # what has come of the first two bytes of a member, which tell the format
        self._stream: zlib._Decompress | None = None  # of the member that has begun and not ended
        self._complete = False  # a member has ended
        self._padded = False  # what follows is no member: ignored

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` decodes to, in pieces of at most `PIECE_BYTES`.

        Raises:
            zlib.error: the data is corrupt.
        """
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
                self._stream = None  # which would keep all that follows
                self._complete = True
            elif not data and len(piece) < PIECE_BYTES:
                return

    def finish(self) -> None:
        """Check, at the end of the body, that it was complete. An empty body is.

        Raises:
            zlib.error: it was not.
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

    Owns nothing: whoever opened the response closes it.

    Attributes:
        received: decoded bytes so far.

    """

    __slots__ = ("_chunks", "_head", "_inflater", "_limit", "_pieces", "received")

    def __init__(self, response: httpx.Response, chunks: AsyncIterator[bytes], limit: int) -> None:
        """Begin.

        Args:
            response: the head.
            chunks: the body's raw chunks.
            limit: decoded bytes that the body may have.

        Raises:
            InvalidResponseError: the body's encoding is not one we can undo.

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
                raise self._invalid(f"the response is encoded as {name}, which was not asked for")

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
        self.received += len(piece)
        if self.received > self._limit:
            raise too_long(self._head, self._limit)
        return piece

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
        """Return the beginning of the body, at most `length` bytes, as far as it comes and can be decoded."""
        body = bytearray()
        try:
            while len(body) < length and (piece := await self.next()) is not None:
                body += piece[: length - len(body)]
        except (InvalidResponseError, httpx.TransportError):
            pass  # the beginning of an error's body is worth more than the fact that its end is lost
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
            raise self._invalid(f"the response's compressed body is broken: {error}") from error

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
