"""HTTP/1.1 without I/O: requests to bytes, bytes to responses.

Parsing is llhttp's (through httptools), in its strict mode: a response with two lengths, with a length and
chunks, with bare line feeds or with folded header lines is an error. What llhttp does not do is done here:

- It has no limits. A header block, a line of chunk framing, trailers and interim responses in a row do here.
- It tells of each header by a callback, which costs more than all the rest. The header block is kept as it
  came instead, and taken apart when somebody reads `response.headers`; most calls never do.
- It cannot be told that the answer to HEAD has no body, and not that the connection has ended.
- An interim response ends with its header block, whatever that says (RFC 9110, section 15.2). llhttp goes by
  what it says: after "Connection: close" it takes nothing more. So a parser is used for one response only.
- A transfer coding that is not just `chunked` was not asked for. llhttp, as RFC 9112 has it (section 6.3),
  reads such a body up to the end of the connection, and nobody notices if it is cut off. It is refused.

A reader serves one response. Bytes that follow it were not asked for: they make its connection unusable.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, Final, NamedTuple, TypeAlias

import httptools
import httpx

MAX_HEAD_BYTES: Final = 65_536
MAX_HEADERS: Final = 256
MAX_FRAMING_BYTES: Final = 16_384
MAX_INTERIM_RESPONSES: Final = 16

_SHORTEST_EXCESS: Final = 4 * MAX_HEADERS
"""Bytes of a head that could have too many headers: a name, a colon and the line's end each."""

_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_UNSAFE_VALUE: Final = re.compile(rb"[\x00\r\n]")
_CLOSE: Final = re.compile(rb"\r\nconnection:(?:[^\r]*,)?[ \t]*close[ \t]*[,\r]", re.IGNORECASE)
_CODINGS: Final = re.compile(rb"\ntransfer-encoding:[ \t]*([^\r]*?)[ \t]*(?:\r|\Z)")
_TARGET: Final = re.compile(rb"[\x21-\x7e\x80-\xff]+\Z")


def request_head(method: str, target: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return the request line and the header block, without the blank line that ends it.

    Raises:
        httpx.LocalProtocolError: a part would change the meaning of the rest.
    """
    raw_method = method.encode("ascii", "replace")
    if not _TOKEN.match(raw_method) or not _TARGET.match(target):
        raise httpx.LocalProtocolError(f"the request line {method!r} {target!r} is not allowed")
    lines = [b"%b %b HTTP/1.1\r\n" % (raw_method, target)]
    for name, value in headers:
        if not _TOKEN.match(name) or _UNSAFE_VALUE.search(value):
            raise httpx.LocalProtocolError(
                f"the header {name!r} is not allowed: a name or value with controls"
            )
        lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join(lines)


Origin: TypeAlias = tuple[str, str, int]
"""Scheme, host and port."""


class PreparedRequest(httpx.Request):
    """A request that is bytes already; its `headers` are made when somebody asks for them."""

    # The attributes are those of httpx.Request, whose constructor costs several times as much.
    def __init__(
        self,
        method: str,
        url: httpx.URL,
        origin: Origin,
        head: bytes,
        content: bytes,
        extensions: dict[str, Any],
    ) -> None:
        self.method = method
        self.url = url
        self.extensions = extensions
        self.origin = origin
        self.message: bytes = head + b"\r\n" + content
        self._head = head
        self._content = content

    @property
    def headers(self) -> httpx.Headers:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        """The headers, as they are sent."""
        return httpx.Headers(header_list(self._head))

    @property
    def stream(self) -> httpx.ByteStream:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        """The body."""
        return httpx.ByteStream(self._content)


class OutgoingMessage(NamedTuple):
    """A request as it is sent.

    Attributes:
        method: the method.
        origin: where to.
        start: the whole message, or, where the body is a stream, its head.
        body: the body, where it is a stream.
        length: the length of that stream; None where it is sent in chunks.
        closes: whether it says that no other request follows on its connection.
    """

    method: str
    origin: Origin
    start: bytes
    body: AsyncIterator[bytes] | None
    length: int | None = None
    closes: bool = False

    def __repr__(self) -> str:  # is a local in many a traceback, and holds keys
        return f"<OutgoingMessage {self.method} to {self.origin}>"


def outgoing(request: httpx.Request) -> OutgoingMessage:
    """Return any request of httpx as it is sent.

    Raises:
        httpx.LocalProtocolError: its framing is not clear, or a part would change the meaning of the rest.
        httpx.UnsupportedProtocol: its URL is not http or https.
    """
    origin = origin_of(request.url)
    head = request_head(request.method, request.url.raw_path, request.headers.raw) + b"\r\n"
    closes = _CLOSE.search(head) is not None
    lengths = request.headers.get_list("content-length")
    codings = request.headers.get_list("transfer-encoding")
    if len(lengths) > 1 or (lengths and codings) or (codings and codings != ["chunked"]):
        raise httpx.LocalProtocolError(
            "the request's Content-Length and Transfer-Encoding headers contradict"
        )
    if lengths and not (lengths[0].isascii() and lengths[0].isdigit()):
        raise httpx.LocalProtocolError(f"the request's Content-Length {lengths[0]!r} is not a number")
    length = int(lengths[0]) if lengths else None
    if isinstance(request.stream, httpx.ByteStream):
        content = b"".join(request.stream)
        if codings and content:
            content = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
        elif codings:
            content = b"0\r\n\r\n"
        elif (length or 0) != len(content):
            raise httpx.LocalProtocolError("the request's body is not as long as its Content-Length")
        return OutgoingMessage(request.method, origin, head + content, None, None, closes)
    if not lengths and not codings:
        raise httpx.LocalProtocolError(
            "a request with a streamed body needs Content-Length or Transfer-Encoding"
        )
    if not isinstance(request.stream, AsyncIterable):
        raise RuntimeError("a sync request body cannot be sent by an async transport")
    return OutgoingMessage(request.method, origin, head, aiter(request.stream), length, closes)


def origin_of(url: httpx.URL) -> Origin:
    """Return the origin of a URL.

    Raises:
        httpx.UnsupportedProtocol: neither http nor https.
    """
    scheme = url.scheme
    if scheme not in ("http", "https"):
        raise httpx.UnsupportedProtocol(f"the URL's scheme {scheme!r} is not allowed: http or https")
    port = url.port
    if port is None:
        port = 443 if scheme == "https" else 80
    return scheme, url.host, port


class RawResponse(httpx.Response):
    """A response whose header block is bytes still; its `headers` are made when somebody asks for them."""

    # The attributes are those of httpx.Response, whose constructor takes all headers apart; those that hardly
    # ever change begin in the class.
    _request = None
    next_request: httpx.Request | None = None
    is_closed = False
    is_stream_consumed = False
    default_encoding = "utf-8"
    _num_bytes_downloaded = 0
    _headers: httpx.Headers | None = None
    _extensions: dict[str, Any] | None = None
    _history: list[httpx.Response] | None = None

    def __init__(self, status_code: int, head: bytes, stream: httpx.AsyncByteStream) -> None:
        self.status_code = status_code
        self.head = head
        self.stream = stream

    @property
    def headers(self) -> httpx.Headers:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The headers."""
        if self._headers is None:
            self._headers = httpx.Headers(header_list(self.head))
        return self._headers

    @headers.setter
    def headers(self, value: httpx.Headers) -> None:
        self._headers = value

    @property
    def extensions(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The extensions of httpx: "http_version" and "reason_phrase"."""
        if self._extensions is None:
            version, _, rest = self.head.partition(b"\r\n")[0].partition(b" ")
            self._extensions = {"http_version": version, "reason_phrase": rest.partition(b" ")[2]}
        return self._extensions

    @extensions.setter
    def extensions(self, value: dict[str, Any]) -> None:
        self._extensions = value

    @property
    def history(self) -> list[httpx.Response]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The redirects that led here, which httpx's client fills in."""
        if self._history is None:
            self._history = []
        return self._history

    @history.setter
    def history(self, value: list[httpx.Response]) -> None:
        self._history = value

    @property
    def is_encoded(self) -> bool:
        """Whether the body may have a content encoding; cheaper than to read the headers."""
        return b"content-encoding" in self.head.lower()


def header_list(head: bytes) -> list[tuple[bytes, bytes]]:
    """Return the headers of a head, without its first line."""
    lines = head.split(b"\r\n")
    pairs = (line.partition(b":") for line in lines[1:] if line)
    return [(name, value.strip(b" \t")) for name, _, value in pairs]


def _head_too_long() -> httpx.RemoteProtocolError:
    return httpx.RemoteProtocolError(f"the response's headers are longer than {MAX_HEAD_BYTES:,} bytes")


def _check_coding(head: bytes) -> None:
    if b"\ntransfer-encoding:" in head and _CODINGS.findall(head) != [b"chunked"]:
        raise httpx.RemoteProtocolError("the response has a transfer coding that was not asked for")


class _InterimEnd(Exception):
    """The header block of an interim response is complete: no error, but how a callback stops the parser."""


class ResponseReader:
    """Takes the bytes of one response apart.

    Attributes:
        head: the status line and the header block, once they are complete.
        complete: whether the response has ended.
        reusable: whether another request may follow on its connection; known once it is complete.
        started: whether any byte of it has come.
    """

    __slots__ = (
        "_body", "_buffer", "_forbidden", "_framing", "_head_bytes", "_interim", "_is_head", "_parser",
        "_progress", "complete", "head", "reusable", "started", "status_code",
    )  # fmt: skip

    def __init__(self, method: str) -> None:
        """Begin the response to a request with this method."""
        self.head: bytes | None = None
        self.status_code: int = 0
        self.complete: bool = False
        self.reusable: bool = False
        self.started: bool = False
        self._is_head = method == "HEAD"
        self._forbidden = False
        self._buffer = b""  # the head as far as it has come
        self._head_bytes = 0
        self._body: list[bytes] = []
        self._interim = 0
        self._framing = 0
        self._progress = False
        self._parser: Any = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Take bytes in.

        Raises:
            httpx.RemoteProtocolError: they are not HTTP, or exceed a limit. What came before is taken in.
        """
        self.started = True
        if self.complete:
            self.reusable = False
            return
        self._progress = False
        if self.head is None:
            self._buffer = self._buffer + data if self._buffer else data
            self._head_bytes += len(data)
        rest = data
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
            if self._head_bytes > MAX_HEAD_BYTES + 3:  # of the four that end it
                raise _head_too_long()
        elif self.complete:
            self._parser = None  # which refers to this: without the cycle there is nothing for the collector
        elif self._progress:
            self._framing = 0
        else:
            self._framing += len(data)
            if self._framing > MAX_FRAMING_BYTES:
                raise httpx.RemoteProtocolError(
                    f"a chunk's size line or the trailers are longer than {MAX_FRAMING_BYTES:,} bytes"
                )

    def _is_interim_end(self, error: Exception) -> bool:
        """Return whether the parser stopped for that, or raise what was wrong in the response."""
        cause = error.__context__  # what a callback raised
        if isinstance(cause, _InterimEnd):
            return True
        if isinstance(cause, httpx.RemoteProtocolError):
            raise cause from None
        if not self.complete:
            raise httpx.RemoteProtocolError(f"the response is not HTTP/1.1: {error}") from error
        self.reusable = False  # what followed the response is not HTTP
        return False

    def end(self) -> None:
        """Take in that the connection has ended.

        Raises:
            httpx.RemoteProtocolError: the response was not complete.
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
        self.complete = True  # RFC 9112, section 6.3: such a body ends with the connection

    def forbid_reuse(self) -> None:
        """Let the connection not be used again, whatever the response says."""
        self._forbidden = True
        self.reusable = False

    def take_body(self) -> bytes:
        """Return the part of the body that has come and was not taken."""
        body = self._body
        if not body:
            return b""
        self._body = []
        return body[0] if len(body) == 1 else b"".join(body)

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        """Take in that a message begins."""
        if self.complete:
            self.reusable = False  # a response without a request

    def on_headers_complete(self) -> None:
        """Take in that a header block is complete."""
        if self.complete:
            return
        status = self._parser.get_status_code()
        buffer = self._buffer.lstrip(b"\r\n")  # as the parser does
        end = buffer.find(b"\r\n\r\n")
        head = buffer[:end]
        if self._head_bytes - len(buffer) + end > MAX_HEAD_BYTES:  # with the interim responses before it
            raise _head_too_long()
        if end > _SHORTEST_EXCESS and head.count(b"\r\n") > MAX_HEADERS:
            raise httpx.RemoteProtocolError(f"the response has more than {MAX_HEADERS} headers")
        if status < 100:
            raise httpx.RemoteProtocolError(f"the response is not HTTP/1.1: it has the status {status}")
        self.status_code = status
        if status == 101:
            raise httpx.RemoteProtocolError("the server switched to a protocol that was not asked for")
        if status < 200:
            self._interim += 1
            if self._interim > MAX_INTERIM_RESPONSES:
                raise httpx.RemoteProtocolError(
                    f"more than {MAX_INTERIM_RESPONSES} interim responses in a row"
                )
            self._buffer = buffer[end + 4 :]
            raise _InterimEnd
        if not self._is_head and status not in (204, 304):
            _check_coding(head.lower())
        self._buffer = b""
        self.head = head
        self._progress = True
        if self._is_head:
            self.complete = True
            self.reusable = end + 4 == len(buffer) and self._may_be_reused()

    def on_body(self, body: bytes) -> None:
        """Take in a part of the body."""
        self._progress = True
        if not self.complete:
            self._body.append(body)

    def on_chunk_header(self) -> None:
        """Take in that a chunk begins."""
        self._progress = True

    def on_message_complete(self) -> None:
        """Take in that the message has ended."""
        if not self.complete:
            self.complete = True
            self.reusable = self._may_be_reused()

    def _may_be_reused(self) -> bool:
        return not self._forbidden and self._parser.should_keep_alive()
