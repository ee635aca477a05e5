"""HTTP/1.1 without I/O: requests to bytes, bytes to responses.

Parsing is llhttp's (through httptools), in its strict mode: a response with two lengths, with a length and
chunks, with bare line feeds or with folded header lines is an error. This module adds what llhttp lacks:

- It has no limits. Here header blocks, chunk framing lines, trailers and consecutive interim responses have.
- It reports each header by a callback, which costs more than all the rest. Instead the header block is kept
  raw and parsed when `response.headers` is first read; most calls never read it.
- It cannot be told that the response to HEAD has no body, nor that the connection has ended.
- An interim response ends with its header block, whatever its headers say (RFC 9110, section 15.2). llhttp
  obeys the headers: after "Connection: close" it accepts nothing more. So what follows gets a new parser.
- Transfer codings other than plain `chunked` are never requested. llhttp follows RFC 9112, section 6.3, and
  reads such a body until the connection ends, so truncation would go unnoticed. They are rejected.

A reader handles one response. Bytes after its end are unsolicited and make the connection unusable. Making a
reader and its parser is a third of the cost of reading a response, so one that has read an ordinary response
to its end may be restarted for another, also of another connection.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn

import httptools
import httpx

from omnigate._wire.head import header_list

MAX_HEAD_BYTES: Final = 65_536

MAX_HEADERS: Final = 256

MAX_FRAMING_BYTES: Final = 16_384

MAX_INTERIM_RESPONSES: Final = 16

_SHORTEST_EXCESS: Final = 4 * MAX_HEADERS
"""The smallest head that can have too many headers, each being a name, a colon and a line end."""


def _head_too_long() -> httpx.RemoteProtocolError:
    return httpx.RemoteProtocolError(f"the response's headers are longer than {MAX_HEAD_BYTES:,} bytes")


def _check_coding(lowered: bytes) -> None:
    if b"\ntransfer-encoding:" in lowered:
        codings = [value for name, value in header_list(lowered) if name == b"transfer-encoding"]
        if codings != [b"chunked"]:
            raise httpx.RemoteProtocolError("the response has an unsupported transfer coding")


class _InterimEnd(Exception):
    """Raised by a callback to stop the parser at the end of an interim response; not an error."""


class ResponseReader:
    """Parses the bytes of one response.

    Attributes:
        head: the status line and the header block, once they are complete.
        is_encoded: whether the body may have a content encoding; known with the head.
        complete: whether the response has ended.
        reusable: whether another request may follow on its connection; known once it is complete.
        started: whether any byte of it has arrived.
        is_head: whether it responds to a HEAD request.
    """

    __slots__ = (
        "_body", "_buffer", "_forbidden", "_framing", "_interim", "_interim_bytes", "_parser",
        "_progress", "complete", "head", "is_encoded", "is_head", "reusable", "started", "status_code",
    )  # fmt: skip

    def __init__(self, method: str) -> None:
        """Prepare to parse the response to a request with this method."""
        self.head: bytes | None = None
        self.status_code: int = 0
        self.is_encoded: bool = False
        self.complete: bool = False
        self.reusable: bool = False
        self.started: bool = False
        self.is_head: bool = method == "HEAD"
        self._forbidden = False
        # The incomplete head. A bytearray once it takes more than one read, so that a head that arrives byte
        # by byte is not copied for each of them.
        self._buffer: bytes | bytearray = b""
        self._body: list[bytes] = []
        self._interim = self._interim_bytes = 0  # of the responses before the final one
        self._framing = 0
        self._progress = False
        self._parser: Any = httptools.HttpResponseParser(self)

    def restart(self, method: str) -> None:
        """Prepare to parse another response.

        Allowed once the reader is `reusable` and not of a HEAD request, so that its parser has read a
        response to its end and nothing more, and its body has been taken.
        """
        self.head, self.status_code = None, 0
        self.is_encoded = self.complete = self.reusable = self.started = False
        self.is_head = method == "HEAD"
        self._interim = self._interim_bytes = self._framing = 0

    def release(self) -> None:
        """Give up the parser once the response has ended.

        It refers to the reader; breaking the cycle spares the garbage collector.
        """
        self._parser = None

    def feed(self, data: bytes) -> None:
        """Parse the next bytes.

        Raises:
            httpx.RemoteProtocolError: they are not HTTP, or exceed a limit. Data before the error is kept.
        """
        self.started = True
        if self.complete:
            self.reusable = False
            return
        self._progress = False
        if self.head is None:
            if not self._buffer:
                self._buffer = data
            elif isinstance(self._buffer, bytearray):
                self._buffer += data
            else:
                self._buffer = bytearray(self._buffer + data)
        rest: bytes | bytearray = data
        while True:
            try:
                self._parser.feed_data(rest)
            except httptools.HttpParserError as error:
                if self._is_interim_end(error):
                    self._parser = httptools.HttpResponseParser(self)
                    rest = self._buffer
                    continue
            break
        if self.head is None:
            if self._interim_bytes + len(self._buffer) > MAX_HEAD_BYTES + 3:  # of the 4 that end the head
                raise _head_too_long()
        elif self.complete:
            if not self.reusable:
                self.release()
        elif self._progress:
            self._framing = 0
        else:
            self._framing += len(data)
            if self._framing > MAX_FRAMING_BYTES:
                raise httpx.RemoteProtocolError(
                    f"a chunk's size line or the trailers are longer than {MAX_FRAMING_BYTES:,} bytes"
                )

    def _is_interim_end(self, error: Exception) -> bool:
        """Return whether an interim response ended; raise if the response is malformed."""
        cause = error.__context__  # raised by a callback
        if isinstance(cause, _InterimEnd):
            return True
        if isinstance(cause, httpx.RemoteProtocolError):
            raise cause from None
        if isinstance(error, httptools.HttpParserCallbackError) and cause is not None:
            raise cause  # a signal handler's, in a thread that reads for a sync client
        if not self.complete:
            raise httpx.RemoteProtocolError(f"the response is not HTTP/1.1: {error}") from None
        self.reusable = False  # the bytes after the response are not HTTP
        return False

    def end(self, *, is_clean: bool = True) -> None:
        """Handle the end of the connection.

        Args:
            is_clean: whether the server announced it, as TLS requires (RFC 8446, section 6.1). Otherwise
                anyone on the way may have cut a body that only the end of the connection ends.

        Raises:
            httpx.RemoteProtocolError: the response is incomplete, or may be.
        """
        self.reusable = False
        if self.complete:
            return
        if self.head is None:
            if self.started:
                raise httpx.RemoteProtocolError("the server closed the connection in the response's headers")
            raise httpx.RemoteProtocolError("the server closed the connection without sending a response")
        names = {name.lower(): value for name, value in header_list(self.head)}
        chunked = names.get(b"transfer-encoding", b"").lower().endswith(b"chunked")
        if chunked or b"content-length" in names:
            raise httpx.RemoteProtocolError(
                "the server closed the connection before the end of the response's body"
            )
        if not is_clean:
            raise httpx.RemoteProtocolError(
                "the TLS connection ended without close_notify, so the response's body may be cut off"
            )
        self.complete = True  # RFC 9112, section 6.3: the end of the connection ends this body

    def forbid_reuse(self) -> None:
        """Mark the connection as not reusable, whatever the response says."""
        self._forbidden = True
        self.reusable = False

    def take_body(self) -> bytes:
        """Return and clear the body data received so far."""
        body = self._body
        if not body:
            return b""
        if len(body) == 1:
            return body.pop()
        self._body = []
        return b"".join(body)

    def put_back(self, body: bytes) -> None:
        """Undo `take_body`."""
        self._body.insert(0, body)

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        """Handle the start of a message."""
        if self.complete:
            self.reusable = False  # a response without a request

    def on_headers_complete(self) -> None:
        """Handle a complete header block."""
        if self.complete:
            return
        status = self._parser.get_status_code()
        buffer = self._buffer.lstrip(b"\r\n")  # the parser skips these, too
        end = buffer.find(b"\r\n\r\n")
        head = bytes(buffer[:end])
        length = self._interim_bytes + len(self._buffer)
        if length > _SHORTEST_EXCESS:
            if length - len(buffer) + end > MAX_HEAD_BYTES:  # includes earlier interim responses
                raise _head_too_long()
            if head.count(b"\r\n") > MAX_HEADERS:
                raise httpx.RemoteProtocolError(f"the response has more than {MAX_HEADERS} headers")
        if status < 200:
            self._interim_bytes = length - len(buffer) + end + 4
            self._buffer = bytes(buffer[end + 4 :])
            self._end_interim(status)
        self.status_code = status
        lowered = head.lower()
        if lowered.find(b"-encoding") >= 0:  # rare, and one search is half as long as two; `in` takes longer
            if not self.is_head and status not in (204, 304):
                _check_coding(lowered)
            self.is_encoded = b"content-encoding" in lowered
        self._buffer = b""
        self.head = head
        self._progress = True
        if self.is_head:
            self.complete = True
            is_alone = end + 4 == len(buffer)
            self.reusable = is_alone and not self._forbidden and self._parser.should_keep_alive()

    def _end_interim(self, status: int) -> NoReturn:
        """Stop the parser at the end of a response that is not the final one."""
        if status < 100:
            raise httpx.RemoteProtocolError(f"the response is not HTTP/1.1: it has the status {status}")
        if status == 101:
            raise httpx.RemoteProtocolError("the server switched protocols without being asked")
        self._interim += 1
        if self._interim > MAX_INTERIM_RESPONSES:
            raise httpx.RemoteProtocolError(f"more than {MAX_INTERIM_RESPONSES} interim responses in a row")
        raise _InterimEnd

    def on_body(self, body: bytes) -> None:
        """Store a part of the body."""
        self._progress = True
        if not self.complete:
            self._body.append(body)

    def on_chunk_header(self) -> None:
        """Handle the start of a chunk."""
        self._progress = True

    def on_message_complete(self) -> None:
        """Handle the end of the message."""
        if not self.complete:
            self.complete = True
            self.reusable = not self._forbidden and self._parser.should_keep_alive()
