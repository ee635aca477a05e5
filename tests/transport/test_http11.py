"""The HTTP/1.1 parser and serializer: responses of every kind, whole and in pieces, and their limits."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnigate._transport.http11 import (
    MAX_FRAMING_BYTES,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_INTERIM_RESPONSES,
    ResponseReader,
)
from omnigate._transport.messages import RawResponse, outgoing


@dataclass(frozen=True)
class Case:
    data: bytes
    body: bytes
    reusable: bool
    status: int = 200
    method: str = "POST"
    ends: bool = False  # the body lasts until the connection closes


HEAD = b"HTTP/1.1 200 OK\r\n"
CASES = {
    "length": Case(HEAD + b"Content-Length: 5\r\n\r\nhello", b"hello", True),
    "length 0": Case(HEAD + b"Content-Length: 0\r\n\r\n", b"", True),
    "chunked": Case(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", b"hello!", True),
    "chunks with extensions and trailers": Case(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2;name=value\r\nok\r\n0;last\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n",
        b"ok",
        True,
    ),
    "until the connection ends": Case(HEAD + b"Content-Type: text/plain\r\n\r\nhello", b"hello", False, ends=True),
    "nothing until the connection ends": Case(HEAD + b"\r\n", b"", False, ends=True),
    "connection: close": Case(HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\nok", b"ok", False),
    "connection: a list": Case(
        HEAD + b"connection: Keep-Alive, CLOSE\r\nContent-Length: 2\r\n\r\nok", b"ok", False
    ),
    "connection: two lines": Case(
        HEAD + b"Connection: keep-alive\r\nConnection: x,close\r\nContent-Length: 2\r\n\r\nok", b"ok", False
    ),
    "connection: closed": Case(HEAD + b"Connection: closed\r\nContent-Length: 2\r\n\r\nok", b"ok", True),
    "upgrade offered but not made": Case(
        HEAD + b"Upgrade: h2\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nok", b"ok", True
    ),
    "chunked, closed": Case(
        HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n!\r\n0\r\n\r\n", b"!", False
    ),
    "HTTP/1.0 chunked": Case(
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n!\r\n0\r\n\r\n", b"!", False
    ),
    "HTTP/1.0": Case(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok", False),
    "HTTP/1.0 kept alive": Case(
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", b"ok", True
    ),
    "HTTP/1.0 until the end": Case(b"HTTP/1.0 200 OK\r\n\r\nold", b"old", False, ends=True),
    "204": Case(b"HTTP/1.1 204 No Content\r\n\r\n", b"", True, 204),
    "304 with a length": Case(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b"", True, 304),
    "HEAD with a length": Case(HEAD + b"Content-Length: 9\r\n\r\n", b"", True, method="HEAD"),
    "HEAD with chunks": Case(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"", True, method="HEAD"),
    "HEAD with close": Case(HEAD + b"Connection: close\r\n\r\n", b"", False, method="HEAD"),
    "after a 100": Case(b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"Content-Length: 2\r\n\r\nok", b"ok", True),
    "after a 103 with headers and a 102": Case(
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
        + HEAD
        + b"Content-Length: 2\r\n\r\nok",
        b"ok",
        True,
    ),
    "after a 103 that closes": Case(
        b"HTTP/1.1 103 Early Hints\r\nConnection: close\r\n\r\n" + HEAD + b"Content-Length: 2\r\n\r\nok", b"ok", True
    ),
    "after a 100 of HTTP/1.0 and a 102": Case(
        b"HTTP/1.0 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + HEAD + b"Content-Length: 2\r\n\r\nok",
        b"ok",
        True,
    ),
    "after a 103 with a length": Case(
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\n\r\n" + HEAD + b"Content-Length: 2\r\n\r\nok", b"ok", True
    ),
    "after a 103 with chunks and an upgrade": Case(
        b"HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"
        + HEAD
        + b"Transfer-Encoding: chunked\r\n\r\n1\r\n!\r\n0\r\n\r\n",
        b"!",
        True,
    ),
    "HEAD after a 103 that closes": Case(
        b"HTTP/1.1 103 Early Hints\r\nConnection: close\r\n\r\n" + HEAD + b"Content-Length: 9\r\n\r\n",
        b"",
        True,
        method="HEAD",
    ),
    "chunked, in other case and spacing": Case(
        HEAD + b"TRANSFER-encoding:\t Chunked \r\n\r\n1\r\n!\r\n0\r\n\r\n", b"!", True
    ),
    "HEAD with an unknown transfer coding": Case(HEAD + b"Transfer-Encoding: gzip\r\n\r\n", b"", False, method="HEAD"),
    "304 with an unknown transfer coding": Case(b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: gzip\r\n\r\n", b"", True, 304),
    "after an empty line": Case(b"\r\n" + HEAD + b"Content-Length: 2\r\n\r\nok", b"ok", True),
    "no reason phrase": Case(b"HTTP/1.1 429 \r\nRetry-After: 3\r\nContent-Length: 2\r\n\r\nno", b"no", True, 429),
    "with leftover bytes": Case(HEAD + b"Content-Length: 2\r\n\r\nok?", b"ok", False),
    "chunked with leftover bytes": Case(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nmore", b"", False),
    "two responses": Case((HEAD + b"Content-Length: 2\r\n\r\nok") * 2, b"ok", False),
    "a body after 204": Case(b"HTTP/1.1 204 No Content\r\n\r\nbody", b"", False, 204),
    "a body after HEAD": Case(HEAD + b"Content-Length: 4\r\n\r\nbody", b"", False, method="HEAD"),
}  # fmt: skip


def read(case: Case, *pieces: bytes) -> tuple[int, httpx.Headers, bytes, bool]:
    reader = ResponseReader(case.method)
    body = b""
    for piece in pieces:
        reader.feed(piece)
        body += reader.take_body()
    if case.ends:
        assert not reader.complete
        reader.end()
    assert reader.complete
    assert reader.started
    assert reader.head is not None
    response = RawResponse(reader.status_code, reader.head, httpx.ByteStream(b""))
    return reader.status_code, response.headers, body + reader.take_body(), reader.reusable


@pytest.mark.parametrize("name", CASES)
def test_response_reader_parses_status_headers_body_and_reuse(name: str) -> None:
    case = CASES[name]
    status, headers, body, reusable = read(case, case.data)
    assert (status, body, reusable) == (case.status, case.body, case.reusable)
    assert (
        len(headers) == case.data.rpartition(HEAD)[2].split(b"\r\n\r\n")[0].count(b":") or case.status != 200
    )


@pytest.mark.parametrize("name", CASES)
def test_response_reader_parses_the_same_wherever_a_response_is_split(name: str) -> None:
    case = CASES[name]
    whole = read(case, case.data)
    for cut in range(1, len(case.data)):
        assert read(case, case.data[:cut], case.data[cut:]) == whole, cut
    assert read(case, *(case.data[i : i + 1] for i in range(len(case.data)))) == whole


@given(st.sampled_from(sorted(CASES)), st.data())
def test_response_reader_parses_the_same_for_any_number_of_pieces(name: str, data: st.DataObject) -> None:
    case = CASES[name]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(case.data) - 1))))
    pieces = [case.data[a:b] for a, b in zip([0, *cuts], [*cuts, len(case.data)], strict=True)]
    assert read(case, *pieces) == read(case, case.data)


def test_response_reader_rejects_a_response_truncated_at_any_byte() -> None:
    for name in ("length", "chunked", "chunks with extensions and trailers", "204", "HEAD with a length"):
        case = CASES[name]
        for cut in range(len(case.data)):
            reader = ResponseReader(case.method)
            if cut:
                reader.feed(case.data[:cut])
            with pytest.raises(httpx.RemoteProtocolError, match="the server closed the connection"):
                reader.end()


def test_response_reader_joins_chunks_that_arrived_together() -> None:
    reader = ResponseReader("GET")
    reader.feed(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 1_000)
    assert reader.take_body() == b"a" * 1_000
    assert reader.take_body() == b""


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"garbage\r\n\r\n", "not HTTP/1.1"),
        (b"\x16\x03\x01\x02\x00", "not HTTP/1.1"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 banana\r\n\r\n", "not HTTP/1.1"),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", "not HTTP/1.1"),
        (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "not HTTP/1.1"),
        (HEAD + b"Content-Length: -5\r\n\r\n", "not HTTP/1.1"),
        (HEAD + b"Content-Length: 99999999999999999999999999\r\n\r\n", "not HTTP/1.1"),
        (HEAD + b"X-Folded: a\r\n b\r\n\r\n", "not HTTP/1.1"),
        (HEAD + b"X Space: a\r\n\r\n", "not HTTP/1.1"),
        (HEAD + b"X-Nul: a\x00b\r\n\r\n", "not HTTP/1.1"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", "not HTTP/1.1"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", "not HTTP/1.1"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nokay\r\n", "not HTTP/1.1"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 020 OK\r\nContent-Length: 2\r\n\r\nok", "status 20"),
        (
            b"HTTP/1.1 199 Hints\r\nContent-Length: 2\r\n\r\nok" + HEAD + b"\r\n",
            "not HTTP/1.1",
        ),
        (b"HTTP/1.1 199 Hints\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "not HTTP/1.1"),
        (HEAD + b"Transfer-Encoding: chunked;q=1\r\n\r\n1\r\n!\r\n0\r\n\r\n", "transfer coding"),
        (HEAD + b"Transfer-Encoding: gzip\r\n\r\nx", "transfer coding"),
        (HEAD + b"Transfer-Encoding: identity\r\n\r\nx", "transfer coding"),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "transfer coding"),
        (HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", "transfer coding"),
        (
            HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "transfer coding",
        ),
        (HEAD + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "transfer coding"),
        (HEAD + b"transfer-encoding: chunked\r\nX: y\r\nTRANSFER-ENCODING: gzip\r\n\r\n0", "transfer coding"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "switched protocols"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
            "switched protocols",
        ),
    ],
)
def test_response_reader_rejects_what_is_not_http11(data: bytes, words: str) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match=words):
        ResponseReader("POST").feed(data)
    reader = ResponseReader("POST")
    with pytest.raises(httpx.RemoteProtocolError, match=words):
        for i in range(len(data)):
            reader.feed(data[i : i + 1])


def feed_in_pieces(data: bytes, size: int) -> None:
    reader = ResponseReader("POST")
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])


@pytest.mark.parametrize("size", [1_000, 10_000_000])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (HEAD + b"X: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n", "longer than 65,536 bytes"),
        (HEAD + b"X: " + b"a" * MAX_HEAD_BYTES, "longer than 65,536 bytes"),
        (HEAD + b"X: a\r\n" * (MAX_HEADERS + 1) + b"\r\n", "more than 256 headers"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" * (MAX_INTERIM_RESPONSES + 1), "more than 16 interim responses"),
        (
            (b"HTTP/1.1 103 Hints\r\nX: " + b"a" * 9_000 + b"\r\n\r\n") * 8 + HEAD + b"\r\n",
            "longer than 65,536 bytes",
        ),
    ],
)
def test_response_reader_limits_the_size_of_heads_and_the_number_of_headers_and_interim_responses(
    data: bytes, words: str, size: int
) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match=words):
        feed_in_pieces(data, size)


@pytest.mark.parametrize("start", [b"1;", b"0\r\nX: ", b"00000000"])
def test_response_reader_limits_the_size_of_chunk_framing(start: bytes) -> None:
    filler = b"0" if start.isdigit() else b"x"
    data = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + start + filler * MAX_FRAMING_BYTES * 2
    with pytest.raises(httpx.RemoteProtocolError, match="longer than 16,384 bytes|not HTTP"):
        feed_in_pieces(data, 1_000)


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_response_reader_accepts_a_response_just_within_its_limits(size: int) -> None:
    filler = b"X: " + b"a" * (MAX_HEAD_BYTES - len(HEAD) - 3)
    for data in (
        HEAD + b"X: a\r\n" * (MAX_HEADERS - 1) + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * MAX_INTERIM_RESPONSES + HEAD + b"Content-Length: 0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 15_000 + b"\r\na\r\n0\r\n\r\n",
    ):
        feed_in_pieces(data, size)
    for step in (1_000, 65_535, 65_540):
        feed_in_pieces(HEAD + filler + b"\r\n\r\n", step)
        with pytest.raises(httpx.RemoteProtocolError, match="longer than 65,536 bytes"):
            feed_in_pieces(HEAD + filler + b"a\r\n\r\n", step)


async def body(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def test_request_with_a_small_body_is_serialized_as_one_message() -> None:
    request = httpx.Request("POST", "http://h:1/p?q=%20", headers={"X-A": "b"}, content=b"hello")
    message = outgoing(request)
    assert message.start.startswith(b"POST /p?q=%20 HTTP/1.1\r\nHost: h:1\r\n")
    assert b"X-A: b\r\n" in message.start
    assert message.start.endswith(b"\r\n\r\nhello")
    assert (message.body, message.origin) == (None, ("http", "h", 1))


def test_bytes_body_is_chunked_if_the_request_asks_for_chunked_encoding() -> None:
    for content, expected in ((b"hello", b"5\r\nhello\r\n0\r\n\r\n"), (b"", b"0\r\n\r\n")):
        request = httpx.Request(
            "POST",
            "http://h/",
            headers={"Transfer-Encoding": "chunked"},
            stream=httpx.ByteStream(content),
        )
        assert outgoing(request).start.endswith(b"\r\n\r\n" + expected)


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"X-A": "b\r\nX-Evil: 1"}, "X-A"),
        ({"X-A": "b\nX-Evil: 1"}, "X-A"),
        ({"X-A": "b\x00"}, "X-A"),
        ({"X A": "b"}, "X A"),
        ({"X-A:": "b"}, "X-A:"),
        ({"": "b"}, "must have a name of letters"),
        ({"Content-Length": "7"}, "not as long as"),
        ({"Content-Length": "five"}, "not a number"),
        ({"Content-Length": "+5"}, "not a number"),
        ({"Content-Length": "5", "Transfer-Encoding": "chunked"}, "contradict"),
        ({"Transfer-Encoding": "gzip"}, "contradict"),
    ],
)
def test_request_header_that_would_change_the_framing_is_rejected(
    headers: dict[str, str], words: str
) -> None:
    request = httpx.Request("POST", "http://h/", headers=headers, stream=httpx.ByteStream(b"hello"))
    with pytest.raises(httpx.LocalProtocolError, match=words):
        outgoing(request)


def test_request_with_two_content_lengths_is_rejected() -> None:
    headers = [("Content-Length", "5"), ("Content-Length", "5")]
    request = httpx.Request("POST", "http://h/", headers=headers, stream=httpx.ByteStream(b"hello"))
    with pytest.raises(httpx.LocalProtocolError, match="contradict"):
        outgoing(request)


@pytest.mark.parametrize("method", ["GET /evil HTTP/1.1\r\nX:", "G T", "", "GÉT"])
def test_request_with_an_invalid_method_is_rejected(method: str) -> None:
    with pytest.raises(httpx.LocalProtocolError, match="request line"):
        outgoing(httpx.Request(method, "http://h/"))


def test_request_target_cannot_break_out_of_the_request_line() -> None:
    request = httpx.Request("GET", "http://h/")
    request.url = httpx.URL("http://h/").copy_with(raw_path=b"/a%0d%0aX:1")
    assert outgoing(request).start.startswith(b"GET /a%0d%0aX:1 HTTP/1.1\r\n")
    request = httpx.Request("GET", "http://h/a b c\u00e9?x=\u00fc y")
    line = outgoing(request).start.split(b"\r\n")[0]
    assert line.count(b" ") == 2


def test_request_with_a_scheme_other_than_http_is_rejected() -> None:
    with pytest.raises(httpx.UnsupportedProtocol, match="'ftp'"):
        outgoing(httpx.Request("GET", "ftp://h/"))


def test_streamed_request_body_without_framing_headers_is_rejected() -> None:
    request = httpx.Request("POST", "http://h/", content=body(b"a"))
    del request.headers["Transfer-Encoding"]
    with pytest.raises(httpx.LocalProtocolError, match="needs Content-Length or Transfer-Encoding"):
        outgoing(request)


def test_sync_request_body_is_rejected_by_the_async_transport() -> None:
    with pytest.raises(RuntimeError, match="sync request body"):
        outgoing(httpx.Request("POST", "http://h/", content=iter([b"a"])))


def test_raw_response_offers_the_attributes_that_httpx_reads() -> None:
    head = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After:\t3 \r\nSet-Cookie: a=1\r\nSet-Cookie: b=2"
    response = RawResponse(429, head, httpx.ByteStream(b"no"))
    assert response.headers["retry-after"] == "3"
    assert response.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert response.extensions == {"http_version": b"HTTP/1.1", "reason_phrase": b"Too Many Requests"}
    assert (response.reason_phrase, response.http_version, response.is_error) == (
        "Too Many Requests",
        "HTTP/1.1",
        True,
    )
    assert response.history == []
    assert not response.is_encoded
    assert RawResponse(200, b"HTTP/1.1 200 OK\r\nContent-ENCODING: gzip", httpx.ByteStream(b"")).is_encoded
