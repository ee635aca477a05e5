"""The fuzz targets: each takes bytes and raises AssertionError, or any other exception, for a bug.

An input is: one byte of options, one byte whose last three bits say how many sizes follow, the sizes (used in
turn; none: the body comes byte by byte), and the body. The oracles are: bytes split anywhere decode the
same as whole; the result is what a plain reading of the specification says; only typed errors are raised;
nothing is buffered beyond its limit; and the work, counted in calls, is in proportion to the bytes.
"""

import codecs
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from omnigate._streams import decoders
from omnigate._streams.decoders import SENTINEL, EventDecoder, EventTooLongError, TextDecoder
from omnigate._streams.readers import CompletionReader, TextReader, UsageReader
from omnigate._transport import http11
from omnigate._transport.bodies import PIECE_BYTES, Inflater
from omnigate._transport.http11 import ResponseReader
from omnigate._transport.messages import RawResponse

from ..support.steps import at_most

EACH = 60
FIXED = 1_000
"""The most calls that a byte, and an input, may take."""

CORPUS = Path(__file__).parent / "corpus"


def pieces_of(data: bytes) -> tuple[int, bytes, list[bytes]]:
    """Return the options, the body, and the body split as the input asks."""
    if len(data) < 2:
        return 0, b"", []
    count = data[1] & 7
    sizes = [size or 256 for size in data[2 : 2 + count]] or [1]
    body = data[2 + count :]
    pieces: list[bytes] = []
    start = 0
    while start < len(body):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(body[start : start + size])
        start += size
    return data[0], body, pieces


@contextmanager
def limits(module: Any, **values: int) -> Iterator[None]:
    """Lower the limits of a module so that small inputs reach them."""
    before = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


# The stream decoders.


def fuzz_decoders(data: bytes) -> None:
    """Check the text protocol (bit 0 of the options clear) or events (set; bit 2: read as raw chunks).

    With low limits if bit 1 is set.
    """
    options, body, pieces = pieces_of(data)
    most = 24 if options & 2 else 1 << 20
    with limits(decoders, MAX_MESSAGE_CHARACTERS=most, MAX_EVENT_BYTES=most):
        if options & 1:
            check_events(body, pieces, most, as_chunks=bool(options & 4))
        else:
            check_text(body, pieces, most)


def check_text(body: bytes, pieces: list[bytes], most: int) -> None:
    text, sentinel, message = body.decode("utf-8", "replace").partition(SENTINEL)
    decoder = TextDecoder()
    seen = ""
    characters = codecs.getincrementaldecoder("utf-8")("replace")
    arrived = 0
    for piece in pieces:
        seen += decoder.feed(piece)
        arrived += len(characters.decode(piece))
        assert min(arrived, len(text)) - len(seen) < len(SENTINEL)  # only a possible sentinel is held back
    assert text.startswith(seen)
    seen += decoder.finish()
    assert seen == text
    assert decoder.message == (message[:most] if sentinel else None)
    assert decoder.overflowed == (len(message) > most)
    read = [_read(TextReader(str, request_id="r", secrets=("secret",)), parts) for parts in (pieces, [body])]
    assert read[0] == read[1]
    assert "".join(read[0][0]) == text
    assert (read[0][1] is not None) == bool(sentinel)


def check_events(body: bytes, pieces: list[bytes], most: int, *, as_chunks: bool = False) -> None:
    expected, too_long = events_of(body, most)
    for parts in (pieces, [body]):
        decoder = EventDecoder()
        events: list[bytes] = []
        try:
            for part in parts:
                events += decoder.feed(part)
                assert len(decoder._line) + decoder._size <= most
            events += decoder.finish()
        except EventTooLongError as error:
            events += error.events
            assert too_long
        else:
            assert not too_long
        assert events == expected

    def usage_reader() -> UsageReader[Any]:
        return UsageReader(str, lambda reader: [reader.usage], request_id="r", secrets=("secret",))

    def completion_reader() -> CompletionReader:
        return CompletionReader(request_id="r", secrets=("secret",))

    make: Callable[[], Any] = completion_reader if as_chunks else usage_reader
    whole = _read(make(), [body])
    assert _read(make(), pieces) == whole
    ended = any(event.strip(b" \t") == b"[DONE]" for event in expected)
    assert whole[2] or whole[1] is not None or not ended


def events_of(body: bytes, most: int) -> tuple[list[bytes], bool]:
    """Return the events of a body as the HTML standard defines them, and whether one is too long.

    An event is too long if its data lines, with their ends, and the current line exceed the limit.
    """
    lines = re.split(rb"\r\n|\n|\r", body)
    events: list[bytes] = []
    fields: list[bytes] = []
    for number, line in enumerate(lines):
        if sum(len(field) + 1 for field in fields) + len(line) > most:
            return events, True
        if number == 0 and line.startswith(codecs.BOM_UTF8):
            line = line[3:]
        if number == len(lines) - 1:
            last = b"\n".join([*fields, *_data_of(line)])
            return [*events, *([last] if last.strip(b" \t") == b"[DONE]" else [])], False
        if line:
            fields += _data_of(line)
        elif fields:
            events.append(b"\n".join(fields))
            fields = []
    raise AssertionError


def _data_of(line: bytes) -> list[bytes]:
    if line == b"data":
        return [b""]
    return [line[5:].removeprefix(b" ")] if line.startswith(b"data:") else []


def _read(reader: Any, pieces: list[bytes]) -> tuple[list[Any], tuple[type, str] | None, bool]:
    """Read as a stream does; return the pieces (text joined), the error, and whether it was complete."""
    read: list[Any] = []
    with at_most(sum(map(len, pieces)) + len(pieces), each=EACH, fixed=FIXED):
        for piece in pieces:
            read += reader.feed(piece)
            if reader.error is not None or reader.done:
                break
        else:
            read += reader.finish()
    error = reader.error
    if isinstance(reader, TextReader):
        read = ["".join(read)]
    return read, None if error is None else (type(error), str(error)), reader.done


# The transport's response path.


def fuzz_transport(data: bytes) -> None:
    """Check a response (bit 0: to HEAD; bit 1: low limits; bit 2: the connection ends after it).

    Bits 3 and 4 set: a compressed body instead, gzip or (bit 0) deflate.
    """
    options, body, pieces = pieces_of(data)
    if options & 24 == 24:
        check_inflater(body, pieces, "deflate" if options & 1 else "gzip")
    elif options & 2:
        with limits(http11, MAX_HEAD_BYTES=96, MAX_HEADERS=4, MAX_INTERIM_RESPONSES=2, _SHORTEST_EXCESS=16):
            check_response(body, pieces, options)
            with limits(http11, MAX_FRAMING_BYTES=32):  # counted piece by piece, so only approximate
                check_limits(body, pieces, options)
    else:
        check_response(body, pieces, options)


def check_response(body: bytes, pieces: list[bytes], options: int) -> None:
    method, ends = "HEAD" if options & 1 else "GET", bool(options & 4)
    single = [body[i : i + 1] for i in range(len(body))]
    *expected, reusable = _response(ResponseReader(method), single, ends)
    for parts in (pieces, [body]):
        reader = ResponseReader(method)
        *found, may_be_reused = _response(reader, parts, ends)
        assert found == expected
        if may_be_reused and not reader.is_head:  # nothing of it is left for the next response
            reader.restart("GET")
            assert _response(reader, [_OK], False) == (
                False,
                200,
                _OK.partition(b"\r\n\r\n")[0],
                b"ok",
                True,
                True,
            )
        *found, _ = _response(_used_reader(method), parts, ends)
        assert found == expected
        # llhttp skips empty lines silently if they arrive in one piece with the end.
        assert may_be_reused == reusable or _follows(ResponseReader(method), single).strip(b"\r\n") == b""


_OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def _used_reader(method: str) -> ResponseReader:
    reader = ResponseReader("POST")
    reader.feed(_OK)
    assert reader.reusable
    assert reader.take_body() == b"ok"
    reader.restart(method)
    return reader


def _follows(reader: ResponseReader, single: list[bytes]) -> bytes:
    """Return the bytes after a response."""
    for number, byte in enumerate(single, 1):
        reader.feed(byte)
        if reader.complete:
            return b"".join(single[number:])
    return b"it is not complete"


def check_limits(body: bytes, pieces: list[bytes], options: int) -> None:
    reader = ResponseReader("HEAD" if options & 1 else "GET")

    def check(piece: bytes) -> None:
        if reader.head is None:
            assert len(reader._buffer) <= http11.MAX_HEAD_BYTES + 3
        else:
            assert len(reader.head) <= http11.MAX_HEAD_BYTES
            assert reader.head.count(b"\r\n") <= http11.MAX_HEADERS
        assert reader._framing <= http11.MAX_FRAMING_BYTES
        assert sum(map(len, reader._body)) <= len(piece)

    _response(reader, pieces, bool(options & 4), check)


def _response(
    reader: ResponseReader, pieces: list[bytes], ends: bool, check: Callable[[bytes], None] | None = None
) -> tuple[Any, ...]:
    body = b""
    failed = False
    try:
        with at_most(sum(map(len, pieces)) + len(pieces), each=EACH, fixed=FIXED):
            for piece in pieces:
                reader.feed(piece)
                if check is not None:
                    check(piece)
                body += reader.take_body()
            if ends:
                reader.end()
                assert reader.complete
                assert not reader.reusable
    except httpx.RemoteProtocolError as error:
        assert str(error)
        failed = True
    body += reader.take_body()
    if reader.head is not None:
        response = RawResponse(reader.status_code, reader.head, httpx.ByteStream(b""))
        assert 200 <= response.status_code <= 999
        assert len(response.headers) <= len(reader.head)
        assert response.extensions["http_version"].startswith(b"HTTP/")
        assert response.is_encoded or "content-encoding" not in response.headers
    # After a failure past the head, the body received so far is still handed on.
    if failed:
        return True, reader.head, body, None
    return False, reader.status_code, reader.head, body, reader.complete, reader.reusable


def check_inflater(body: bytes, pieces: list[bytes], encoding: str) -> None:
    assert _inflate(pieces, encoding) == _inflate([body], encoding)


def _inflate(pieces: list[bytes], encoding: str) -> bytes | None:
    inflater = Inflater(encoding)
    decoded = bytearray()
    try:
        for piece in pieces:
            parts: list[bytes] = []
            with at_most(len(piece), each=EACH, fixed=FIXED):
                for part in inflater.feed(piece):
                    parts.append(part)
                    if len(decoded) + sum(map(len, parts)) > 1 << 20:
                        return None
            assert all(0 < len(part) <= PIECE_BYTES for part in parts)
            decoded += b"".join(parts)
            assert len(inflater._start) < 2
            assert inflater._stream is None or not inflater._stream.unused_data
        inflater.finish()
    except zlib.error:
        return None
    return bytes(decoded)


TARGETS: dict[str, Callable[[bytes], None]] = {"decoders": fuzz_decoders, "transport": fuzz_transport}
