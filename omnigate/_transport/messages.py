"""Conversion of requests and responses between httpx objects and bytes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, Final, TypeAlias

import httpx
import msgspec

from omnigate._wire.head import header_list

_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")

_UNSAFE_VALUE: Final = re.compile(rb"[\x00\r\n]")

_TARGET: Final = re.compile(rb"[\x21-\x7e\x80-\xff]+\Z")

Origin: TypeAlias = tuple[str, str, int]
"""Scheme, host and port."""


def request_head(method: str, target: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return the request line and the header block, without the blank line that ends it.

    Raises:
        httpx.LocalProtocolError: a part contains characters that would change the message's framing.
    """
    raw_method = method.encode("ascii", "replace")
    if not _TOKEN.match(raw_method) or not _TARGET.match(target):
        raise httpx.LocalProtocolError(
            f"a request line must have a method and a target without spaces and control characters, "
            f"got {method!r} and {target!r}"
        )
    lines = [b"%b %b HTTP/1.1\r\n" % (raw_method, target)]
    for name, value in headers:
        if not _TOKEN.match(name) or _UNSAFE_VALUE.search(value):
            raise httpx.LocalProtocolError(
                f"the header {name!r} must have a name of letters, digits and -_., "
                f"and a value without control characters"
            )
        lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join(lines)


class PreparedRequest(httpx.Request):
    """A request that is already encoded; its `headers` are built when first read."""

    # Sets the attributes of httpx.Request directly: its constructor costs several times as much.
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
        """The headers as they are sent."""
        return httpx.Headers(header_list(self._head))

    @property
    def stream(self) -> httpx.ByteStream:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        """The body."""
        return httpx.ByteStream(self._content)


class OutgoingMessage(msgspec.Struct, frozen=True, gc=False):
    """A request as it is sent.

    Attributes:
        method: the method.
        origin: the scheme, host and port to send it to.
        start: the whole message, or only its head if the body is a stream.
        body: the body if it is a stream.
        length: the length of that stream; None if it is sent chunked.
        closes: whether it has the header "Connection: close".
    """

    method: str
    origin: Origin
    start: bytes
    body: AsyncIterator[bytes] | None = None
    length: int | None = None
    closes: bool = False

    def __repr__(self) -> str:  # hides keys: it is a local in many tracebacks
        return f"<OutgoingMessage {self.method} to {self.origin}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # in place of msgspec's, which shows all
        return [("method", self.method), ("origin", self.origin)]


def outgoing(request: httpx.Request) -> OutgoingMessage:
    """Encode any httpx request.

    Raises:
        httpx.LocalProtocolError: its framing is ambiguous, or a part would change the message's framing.
        httpx.UnsupportedProtocol: its URL is not http or https.
    """
    origin = origin_of(request.url)
    headers = request.headers.raw
    if b"%" in request.url.netloc:  # httpx puts the zone of an IPv6 address into the Host header
        headers = [
            (name, _without_zone(value) if name.lower() == b"host" else value) for name, value in headers
        ]
    head = request_head(request.method, request.url.raw_path, headers) + b"\r\n"
    options = request.headers.get_list("connection", split_commas=True)
    closes = any(option.strip().lower() == "close" for option in options)
    lengths = request.headers.get_list("content-length")
    codings = request.headers.get_list("transfer-encoding")
    if len(lengths) > 1 or (lengths and codings) or (codings and codings != ["chunked"]):
        raise httpx.LocalProtocolError(
            "the request's Content-Length and Transfer-Encoding headers contradict each other"
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
        httpx.UnsupportedProtocol: its scheme is neither http nor https.
    """
    scheme = url.scheme
    if scheme not in ("http", "https"):
        raise httpx.UnsupportedProtocol(f"the URL's scheme must be http or https, got {scheme!r}")
    port = url.port
    if port is None:
        port = 443 if scheme == "https" else 80
    return scheme, url.host.replace("%25", "%"), port  # the zone of an IPv6 address (RFC 6874)


def host_header(url: httpx.URL) -> bytes:
    """Return the `Host` header for a URL, without the zone of an IPv6 address (RFC 6874, section 4)."""
    return _without_zone(url.netloc)


def _without_zone(netloc: bytes) -> bytes:
    address, percent, rest = netloc.partition(b"%")
    return address + b"]" + rest.partition(b"]")[2] if percent else netloc


class RawResponse(httpx.Response):
    """A response with a raw header block; its `headers` are parsed when first read."""

    # Sets the attributes of httpx.Response directly: its constructor parses all headers. Attributes that
    # rarely change have their defaults in the class.
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
        """The httpx extensions "http_version" and "reason_phrase"."""
        if self._extensions is None:
            version, _, rest = self.head.partition(b"\r\n")[0].partition(b" ")
            self._extensions = {"http_version": version, "reason_phrase": rest.partition(b" ")[2]}
        return self._extensions

    @extensions.setter
    def extensions(self, value: dict[str, Any]) -> None:
        self._extensions = value

    @property
    def history(self) -> list[httpx.Response]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The redirects that led here, set by httpx's client."""
        if self._history is None:
            self._history = []
        return self._history

    @history.setter
    def history(self, value: list[httpx.Response]) -> None:
        self._history = value

    @property
    def is_encoded(self) -> bool:
        """Whether the body may have a content encoding, without parsing the headers."""
        return b"content-encoding" in self.head.lower()
