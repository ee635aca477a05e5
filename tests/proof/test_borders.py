"""Trust boundaries: no injected headers, no redirected keys, a warning for plaintext keys, no endless responses.

A malicious or broken gateway can at worst make a call fail: with a typed error, in bounded memory and time.
"""

import re
import ssl
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
import trustme

from omnigate import (
    AdminClient,
    AnyIOTransport,
    APIError,
    AsyncAdminClient,
    AsyncClient,
    Client,
    ConnectionError,
    GatewayError,
    InvalidArgumentError,
    InvalidResponseError,
    PlaintextKeyWarning,
    ProviderError,
    RetryConfig,
)

from ..support.raw_server import chat_bytes, response_bytes
from ..support.scripted import ScriptedTransport, chat_answer
from ..support.servers import Peer, Served, serving

pytestmark = pytest.mark.anyio

KEY = "llmg_" + "k" * 43
HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}
ONCE = RetryConfig(max_retries=0)
MEGABYTE = 1 << 20


# Injection

BREAKS = [
    "\r\nx-injected: 1",
    "\nx-injected: 1",
    "\rx-injected: 1",
    "\x00",
    "\x0b",
    "\x7f",
]


@pytest.mark.parametrize("text", BREAKS, ids=ascii)
@pytest.mark.parametrize(
    "use",
    [
        lambda c, t: AsyncClient(f"llmg_{t}"),
        lambda c, t: AsyncAdminClient(f"admin{t}"),
        lambda c, t: setattr(c, "api_key", f"llmg_{t}"),
        lambda c, t: AsyncClient(KEY, user_id=f"u{t}"),
        lambda c, t: setattr(c, "user_id", f"u{t}"),
        lambda c, t: c.chat(**HELLO, user_id=f"u{t}"),
        lambda c, t: c.chat(**HELLO, extra_headers={"x": f"y{t}"}),
        lambda c, t: c.chat(**HELLO, extra_headers={f"x{t}": "y"}),
        lambda c, t: AsyncClient(KEY, headers={"x": f"y{t}"}),
        lambda c, t: AsyncClient(KEY, headers={f"x{t}": "y"}),
        lambda c, t: AsyncClient(KEY, base_url=f"https://gateway.test{t}"),
        lambda c, t: AsyncClient(KEY, base_url=f"https://gateway.test/prefix{t}"),
        lambda c, t: setattr(c, "base_url", f"https://gateway.test/{t}"),
        lambda c, t: c.model(f"gpt{t}"),
        lambda c, t: c.revoke_api_key(f"id{t}"),
        lambda c, t: AsyncAdminClient("a", transport=c._session.carrier.transport).org_metrics(f"org{t}"),
        lambda c, t: c.chat_stream(**HELLO, extra_headers={"x": f"y{t}"}),
    ],
)
async def test_line_breaks_and_control_characters_in_arguments_are_rejected(
    use: Callable[[AsyncClient, str], Any], text: str
) -> None:
    transport = ScriptedTransport(chat_answer)
    client = AsyncClient(KEY, base_url="https://gateway.test", transport=transport)
    with pytest.raises(InvalidArgumentError) as caught:
        result = use(client, text)
        if isinstance(result, Awaitable):
            await result
    assert transport.requests == []
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    ["a/../../v1/admin/orgs", "..", ".", "a//b", "/a", "a/", ""],
)
async def test_id_that_would_leave_its_path_segment_is_rejected(value: str) -> None:
    client = AsyncClient(KEY, transport=ScriptedTransport(chat_answer))
    with pytest.raises(InvalidArgumentError):
        await client.model(value)


@pytest.mark.parametrize(
    "value", ["a?x=1", "a#f", "a b", "%2e%2e", "%0d%0a", "a%2fb", "é", "a;b", "a\\..\\b", "@x:1"]
)
async def test_id_with_special_characters_stays_one_path_segment(value: str) -> None:
    async with (
        serving(response_bytes(b'{"id": "x"}')) as server,
        AsyncClient(KEY, base_url=server.url) as client,
    ):
        await client.model(value)
        await client.revoke_api_key(value)
    first, second = server.received
    for received in (first, second):
        target = received.target.encode("ascii")
        assert b"?" not in target
        assert b"#" not in target
        assert b"\\" not in target
        assert received.header("host") == server.url.removeprefix("http://")
    assert httpx.URL(server.url + first.target).path == f"/v1/models/{value}"
    assert httpx.URL(server.url + second.target).path == f"/v1/keys/api/{value}"


@pytest.mark.parametrize(
    "address",
    [
        "http://good.test@evil.test", "http://good.test:80@evil.test", "http://evil.test?good.test",
        "http://evil.test#good.test", "file:///etc/passwd", "//gateway.test", "http:gateway.test",
        "http://gateway.test?", "http://gateway.test/prefix#", "http://gateway.test/?#", "https://xn--a",
        "http://gateway..test", "http://.", f"http://{'a' * 64}.test",
        "http://gateway.test:99999", "http://gateway.test:port", "javascript:1", "http://[::1", "http://a b.test",
        "http://gate\tway.test", "unix:///run/x",
    ],
)  # fmt: skip
def test_ambiguous_or_malformed_base_url_is_rejected(address: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^base_url must be http\(s\)://host.*, got "):
        AsyncClient(KEY, base_url=address)
    client = AsyncClient(KEY, base_url="https://gateway.test")
    with pytest.raises(InvalidArgumentError, match=r"^base_url must be http\(s\)://host.*, got "):
        client.base_url = address
    assert client.base_url == "https://gateway.test"


@pytest.mark.parametrize(
    "address",
    [
        "https://xn--mnchen-3ya.test",
        "https://münchen.test",
        "https://gateway.test.",
        "https://a_b.test",
        "https://[::1]:1/x",
    ],
)
def test_unambiguous_base_url_is_accepted(address: str) -> None:
    assert AsyncClient(KEY, base_url=address).base_url == str(httpx.URL(address))


# Redirects


@asynccontextmanager
async def redirected(status: str, body: bytes = b"", **headers: str) -> AsyncIterator[tuple[Served, Served]]:
    """Serve a redirect to another host; yield both servers."""
    async with serving(chat_bytes(), host="127.0.0.2") as other:
        location = f"http://127.0.0.2:{other.port}/v1/chat"
        async with serving(response_bytes(body, status, location=location, **headers)) as first:
            yield first, other


REDIRECTS = [
    "300 Multiple Choices", "301 Moved Permanently", "302 Found", "303 See Other", "307 Temporary Redirect",
    "308 Permanent Redirect",
]  # fmt: skip
PAGE = b"<html><head><title>Moved</title></head></html>"
BODIES = [
    (b"", ""),
    (PAGE, "text/html"),
    (b"see elsewhere", "text/plain"),
    (b'{"detail": "Moved"}', "application/json"),
]


@pytest.mark.parametrize("make", [None, httpx.AsyncHTTPTransport])
@pytest.mark.parametrize("status", REDIRECTS)
async def test_redirect_is_not_followed_and_the_error_says_so(make: Any, status: str) -> None:
    for body, kind in BODIES:
        async with redirected(status, body, content_type=kind) as (first, other):
            transport = make and make()
            async with AsyncClient(KEY, base_url=first.url, transport=transport) as client:
                calls: list[Callable[[], Awaitable[Any]]] = [
                    lambda: client.chat(**HELLO),
                    lambda: client.models(),
                    lambda: client.chat_stream(**HELLO).text(),
                    lambda: client.chat_stream(**HELLO, include_usage=True).text(),
                    lambda: client.set_provider_key(provider="openai", api_key="sk-12345678"),
                ]
                for call in calls:
                    with pytest.raises(APIError, match="redirects are not followed") as caught:
                        await call()
                    assert caught.value.status_code == int(status[:3])
                    assert caught.value.attempts == 1
            assert len(first.received) == len(calls)
            assert other.accepted == 0


# Keys in the clear


@pytest.mark.parametrize("kind", [AsyncClient, AsyncAdminClient, Client, AdminClient])
@pytest.mark.parametrize(
    "host", ["gateway.test", "10.0.0.1", "128.0.0.1", "[2001:db8::1]", "127.0.0.1.evil.test"]
)
def test_key_over_plain_http_warns_once_per_client(kind: Any, host: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client = kind("a-key", base_url=f"http://{host}:8000/prefix")
        client.base_url = f"http://{host}:8001"
        client.base_url = "http://other.test"
    assert [warning.category for warning in caught] == [PlaintextKeyWarning]
    assert caught[0].filename == __file__
    assert host.strip("[]") in str(caught[0].message)
    assert "a-key" not in str(caught[0].message)


@pytest.mark.parametrize(
    "address",
    [
        "http://localhost",
        "http://LOCALHOST:1",
        "http://api.localhost",
        "http://127.0.0.1",
        "http://127.9.9.9",
        "http://[::1]:8000",
    ],
)
def test_key_over_plain_http_to_localhost_does_not_warn(address: str) -> None:
    for kind in (AsyncClient, AsyncAdminClient, Client, AdminClient):
        kind("a-key", base_url=address)


def test_https_a_missing_key_or_a_custom_transport_does_not_warn_of_a_plaintext_key() -> None:
    AsyncClient("a-key", base_url="https://gateway.test")
    AsyncClient(base_url="http://gateway.test")
    AsyncClient("a-key", base_url="http://gateway.test", transport=httpx.MockTransport(chat_answer))
    AsyncClient("a-key", base_url="http://gateway.test", transport=AnyIOTransport(uds="/run/gateway.sock"))


def test_setting_a_key_or_plain_http_address_later_warns_of_a_plaintext_key() -> None:
    client = AsyncClient(base_url="http://gateway.test")
    with pytest.warns(PlaintextKeyWarning) as caught:
        client.api_key = "a-key"
    assert caught[0].filename == __file__
    with Client("a-key", base_url="https://gateway.test") as sync:
        with pytest.warns(PlaintextKeyWarning):
            sync.base_url = "http://gateway.test"


SCRIPT = """
import asyncio, sys
from omnigate import AsyncClient, Client

def make():
    return Client("a-key", base_url="http://gateway.test")

async def make_async():
    return AsyncClient("a-key", base_url="http://gateway.test")

def move():
    client = Client("a-key", base_url="https://gateway.test")
    client.base_url = "http://gateway.test"
    return client

made = (make(), asyncio.run(make_async()), move())
print(*(client.base_url for client in made), *(client.api_key for client in made))
"""


@pytest.mark.parametrize("how", ["script", "-c"])
def test_plaintext_key_warning_points_at_the_scripts_own_line(how: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-W", "always", *([str(script)] if how == "script" else ["-c", SCRIPT])],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["http://gateway.test"] * 3 + ["a-key"] * 3
    lines = re.findall(r"^(.+): PlaintextKeyWarning", done.stderr, re.MULTILINE)
    file = str(script) if how == "script" else "<string>"
    assert lines == [f"{file}:{number}" for number in (6, 9, 13)]


@pytest.mark.parametrize(
    "header", [{"X-Api-Key": "a-key"}, {"authorization": "Bearer a-key"}, {"x-admin-key": "a-key"}]
)
def test_key_header_over_plain_http_warns(header: dict[str, str]) -> None:
    for kind in (AsyncClient, AsyncAdminClient, Client, AdminClient):
        with pytest.warns(PlaintextKeyWarning) as caught:
            kind(base_url="http://gateway.test", headers=header)
        assert caught[0].filename == __file__
        kind(base_url="https://gateway.test", headers=header)
        kind(base_url="http://localhost", headers=header)
        kind(base_url="http://gateway.test", headers={"x-team": "a", "x-api-key": ""})


# TLS


async def test_all_clients_verify_certificates_before_sending_the_key() -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    seen: list[bytes] = []

    async def listen(peer: Peer) -> None:
        seen.append(await peer.stream.receive())

    def sync(url: str) -> None:
        with Client(KEY, base_url=url, retries=0) as client:
            client.chat(**HELLO)

    def admin(url: str) -> None:
        with AdminClient("admin", base_url=url, retries=0) as client:
            client.list_orgs()

    async with serving(listen, tls=context) as server:
        async with AsyncClient(KEY, base_url=server.url, retries=0) as client:
            with pytest.raises(ConnectionError, match="certificate"):
                await client.chat(**HELLO)
            with pytest.raises(ConnectionError, match="certificate"):
                await client.chat_stream(**HELLO).text()
        for call in (sync, admin):
            with pytest.raises(ConnectionError, match="certificate"):
                await anyio.to_thread.run_sync(call, server.url)
    assert seen == []


# Bombs


@cache
def bomb() -> bytes:
    """Return a megabyte of gzip that inflates to a gigabyte of spaces: one full-flushed block, repeated."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = compressor.compress(b"") + compressor.flush(zlib.Z_FULL_FLUSH)
    block = compressor.compress(b" " * (16 * MEGABYTE)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return head + block * 64


def test_sample_gzip_bomb_inflates_a_megabyte_to_a_gigabyte() -> None:
    assert len(bomb()) < 1.1 * MEGABYTE
    assert len(zlib.decompressobj(31).decompress(bomb()[: len(bomb()) // 64])) > 15 * MEGABYTE


def chunked(data: bytes, status: str = "200 OK", **headers: str) -> Callable[[Peer], Awaitable[None]]:
    """Answer with a chunked body that begins with `data` and continues until the client hangs up."""

    async def handle(peer: Peer) -> None:
        await peer.request()
        lines = [f"HTTP/1.1 {status}", "transfer-encoding: chunked"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await peer.send("\r\n".join([*lines, "", ""]).encode())
        await peer.send(b"%x\r\n%b\r\n" % (len(data), data))
        piece = b"10000\r\n" + b" " * 65_536 + b"\r\n"
        while True:
            await peer.send(piece)

    return handle


def in_gzip(data: bytes) -> bytes:
    """Return a bomb that begins with `data`."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    start = compressor.compress(data) + compressor.flush(zlib.Z_FULL_FLUSH)
    return start + bomb()[10:]


GZIP = {"content_encoding": "gzip"}
SENTINEL = b"some text\n[error] "
EVENT = b'data: {"choices": [{"delta": {"content": "'

BOMBS: dict[str, tuple[Any, str, type[GatewayError], str]] = {
    "answer": (chunked(b'{"id": "'), "chat", InvalidResponseError, "max_response_bytes"),
    "answer of a known length": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n" + b" " * 10 * MEGABYTE,
        "chat", InvalidResponseError, "max_response_bytes",
    ),
    "answer in gzip": (response_bytes(bomb(), **GZIP), "chat", InvalidResponseError, "max_response_bytes"),
    "list in gzip": (response_bytes(bomb(), **GZIP), "models", InvalidResponseError, "max_response_bytes"),
    "text": (chunked(b" "), "text", InvalidResponseError, "max_response_bytes"),
    "text in gzip": (response_bytes(bomb(), **GZIP), "text", InvalidResponseError, "max_response_bytes"),
    "sentinel": (chunked(SENTINEL), "text", ProviderError, "^.502. *"),
    "sentinel in gzip": (response_bytes(in_gzip(SENTINEL), **GZIP), "text", ProviderError, "^.502. "),
    "event": (chunked(EVENT), "usage", InvalidResponseError, "an event is longer than"),
    "event in gzip": (response_bytes(in_gzip(EVENT), **GZIP), "usage", InvalidResponseError, "an event is longer"),
    "raw event": (chunked(EVENT), "chunks", InvalidResponseError, "an event is longer than"),
    "raw event in gzip": (
        response_bytes(in_gzip(EVENT), **GZIP), "chunks", InvalidResponseError, "an event is longer",
    ),
    "error": (chunked(b'{"detail": "', "400 Bad Request"), "chat", APIError, "^.400. "),
    "error in gzip": (response_bytes(bomb(), "400 Bad Request", **GZIP), "chat", APIError, "^.400. "),
    "error of a stream in gzip": (response_bytes(bomb(), "502 Bad", **GZIP), "usage", APIError, "^.502. "),
    "page in gzip": (
        response_bytes(in_gzip(b"<html><title>x"), "503 Busy", **GZIP), "chat", APIError, "^.503. ",
    ),
}  # fmt: skip


def call_of(client: AsyncClient, name: str) -> Callable[[], Awaitable[Any]]:
    async def chunks() -> list[Any]:
        async with client.completions_stream(**HELLO) as stream:
            return [chunk async for chunk in stream]

    return {
        "chat": lambda: client.chat(**HELLO),
        "models": lambda: client.models(),
        "completions": lambda: client.completions(**HELLO),
        "text": lambda: client.chat_stream(**HELLO).text(),
        "usage": lambda: client.chat_stream(**HELLO, include_usage=True).text(),
        "chunks": chunks,
    }[name]


@pytest.mark.parametrize("make", [AnyIOTransport, httpx.AsyncHTTPTransport])
@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.proof
async def test_response_over_its_size_limit_is_rejected_in_bounded_memory(name: str, make: Any) -> None:
    answer, call, kind, words = BOMBS[name]
    limit = 8 * MEGABYTE
    async with serving(answer) as server:
        client = AsyncClient(
            KEY, base_url=server.url, transport=make(), max_response_bytes=limit, retry_config=ONCE
        )
        async with client:
            tracemalloc.start()
            try:
                with pytest.raises(kind, match=words) as caught:
                    with anyio.fail_after(20):
                        await call_of(client, call)()
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
    assert len(str(caught.value)) < 1.1 * MEGABYTE
    assert peak < 3 * limit


# Malicious gateways


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """Return a response whose body ends with the connection, unless the headers frame it."""
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode("latin-1") + body


def chat(**changes: bytes) -> bytes:
    """Return a chat's body with the values of some fields replaced by other text."""
    fields = {
        "id": b'"1"', "provider": b'"p"', "model": b'"m"', "content": b'"c"',
        "usage": b'{"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}',
    }  # fmt: skip
    return (
        b"{"
        + b", ".join(b'"%b": %b' % (name.encode(), value) for name, value in (fields | changes).items())
        + b"}"
    )


DEEP = 200_000
MALICIOUS: dict[str, bytes] = {
    # not HTTP, or not one message
    "nothing": b"",
    "garbage": bytes(range(256)) * 300,
    "zeros": b"\x00" * MEGABYTE,
    "one line without end": b"H" * MEGABYTE,
    "HTTP/0.9": b"<html>hello</html>",
    "HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + b"\x00" * 18,
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "status 0": answer(b"", status="0 x"),
    "status 999": answer(b"x", status="999 x"),
    "status 20": answer(b"x", status="20 OK"),
    "status -1": answer(b"x", status="-1 OK"),
    "status 99999": answer(b"x", status="99999 OK"),
    "switching protocols": answer(b"x" * 1_000, "upgrade: websocket", "connection: upgrade", status="101 x"),
    "hints without end": answer(b"", status="103 Early Hints") * 50_000,
    "continue without end": answer(b"", status="100 Continue") * 50_000,
    "204 with a body": answer(chat_bytes(), status="204 No Content"),
    "304": answer(b"", status="304 Not Modified"),
    "two answers": chat_bytes() * 2,
    "an answer and a megabyte": chat_bytes() + b"x" * MEGABYTE,
    # framing
    "negative length": answer(b"{}", "content-length: -1"),
    "length in words": answer(b"{}", "content-length: two"),
    "length of 30 digits": answer(b"{}", "content-length: " + "9" * 30),
    "two lengths": answer(b"{}", "content-length: 2", "content-length: 3"),
    "length and chunks": answer(b"2\r\n{}\r\n0\r\n\r\n", "content-length: 2", "transfer-encoding: chunked"),
    "short": answer(b"{}", "content-length: 100"),
    "chunk of 2**64": answer(b"ffffffffffffffff\r\n{}", "transfer-encoding: chunked"),
    "chunk of 2**80": answer(b"f" * 20 + b"\r\n{}", "transfer-encoding: chunked"),
    "chunk of -1": answer(b"-1\r\n{}", "transfer-encoding: chunked"),
    "chunk extension without end": answer(b"2;" + b"x" * MEGABYTE, "transfer-encoding: chunked"),
    "chunks of one byte": answer(b"1\r\n \r\n" * 100_000, "transfer-encoding: chunked"),
    "trailers without end": answer(b"0\r\n" + b"a: b\r\n" * 100_000, "transfer-encoding: chunked"),
    "gzip as transfer coding": answer(b"{}", "transfer-encoding: gzip"),
    # heads
    "header without end": answer(b"", "a: " + "x" * MEGABYTE),
    "headers without end": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200_000,
    "header without a name": answer(b"{}", ": x"),
    "header without a colon": answer(b"{}", "x"),
    "folded header": answer(b"{}", "a: b", " c"),
    "header with NUL": answer(b"{}", "a: b\x00c"),
    "header with a bare return": answer(b"{}", "a: b\rc: d"),
    "nonsense in gateway headers": answer(
        chat(), "x-request-id: " + "\xff" * 5_000, "x-ratelimit-limit: " + "9" * 5_000, "x-ratelimit-remaining: -1",
        "x-ratelimit-reset: 1e999", "x-budget-project-daily-spend: 1e999999999", "x-llmgw-cached: maybe",
        "x-budget-org-daily-limit: NaN", "date: Thu, 99 Foo 99999 99:99:99 GMT", "content-type: \xe4",
    ),
    "retry after a long time": answer(b"{}", "retry-after: " + "9" * 400, status="429 x"),
    "negative retry after": answer(b"{}", "retry-after: -1", status="429 x"),
    "retry after an invalid date": answer(b"{}", "retry-after: Fri, 31 Feb 99999 00:00:00 +9999", status="503 x"),
    "encoding of a thousand layers": answer(b"{}", "content-encoding: " + "gzip, " * 1_000 + "gzip"),
    "broken gzip": answer(b"\x1f\x8b\x08\x00" + b"\xff" * 1_000, "content-encoding: gzip"),
    "gzip without end": answer(in_gzip(b"{")[:5_000], "content-encoding: gzip"),
    # JSON
    "empty": answer(b""),
    "null": answer(b"null"),
    "a list": answer(b"[]"),
    "not UTF-8": answer(b'{"id": "\xff\xfe"}'),
    "half a surrogate": answer(chat(content=b'"\\ud800"')),
    "NUL in text": answer(chat(content=b'"\\u0000"')),
    "deep lists": answer(b"[" * DEEP),
    "deep objects": answer(b'{"a":' * DEEP),
    "deep and closed": answer(b"[" * DEEP + b"]" * DEEP),
    "deep in an unknown field": answer(chat(x=b"[" * 900 + b"]" * 900)),
    "numbers without end": answer(chat(cost_usd=b"9" * 100_000)),
    "a number that is too large": answer(chat(cost_usd=b"1e999999")),
    "an integer that is too large": answer(chat(latency_ms=b"9" * 5_000)),
    "negative tokens": answer(chat(usage=b'{"prompt_tokens": -1, "completion_tokens": -1, "total_tokens": -1}')),
    "NaN": answer(chat(cost_usd=b"NaN")),
    "the same name twice": answer(chat()[:-1] + b', "content": "d"}'),
    "a million names": answer(b"{" + b",".join(b'"a%d":1' % n for n in range(50_000)) + b"}"),
    "wrong types": answer(chat(id=b"{}", content=b"[1]", usage=b'"x"')),
    # errors
    "deep detail": answer(b'{"detail": ' + b"[" * 900 + b"]" * 900 + b"}", status="400 x"),
    "very deep detail": answer(b'{"detail": ' + b"[" * DEEP, status="400 x"),
    "a long list of errors": answer(b'{"detail": [' + b'{"msg": "x"},' * 10_000 + b"{}]}", status="422 x"),
    "errors of wrong types": answer(b'{"detail": [{"msg": {}, "loc": {}}, 1, null]}', status="422 x"),
    "a page without end": answer(b"<html><body>" + b"<p" * 300_000, status="502 x"),
    "a page of comments": answer(b"<!--" * 100_000, status="502 x"),
    "a page of declarations": answer(b"<html><![x[<!x<?" * 10_000, status="502 x"),
    "a page of entities": answer(b"<html>" + b"&#x;&#99999999999;&" * 20_000, status="502 x"),
    "a provider without end": answer(b'{"detail": "' + b"A " * 100_000 + b'error 500: x"}', status="500 x"),
    # streams
    "error mark without end": answer(b"\n[error] " * 50_000),
    "almost error marks": answer(b"\n[error]\n" * 50_000),
    "half a character": answer(b"\xf0\x9f\x98"),
    "events of nothing": answer(b"data:\n\n" * 100_000),
    "comments without end": answer(b":" * MEGABYTE),
    "lines of data without end": answer(b"data: x\n" * 50_000),
    "returns": answer(b"\r" * 250_000),
    "events of wrong types": answer(b'data: {"choices": [{"delta": 1}]}\n\n'),
    "an event of deep lists": answer(b"data: " + b"[" * DEEP + b"\n\n"),
    "an event of many choices": answer(b'data: {"choices": [' + b"{}," * 100_000 + b"{}]}\n\n"),
    "an error event of wrong types": answer(b'data: {"error": [[]]}\n\ndata: [DONE]\n\n'),
    "done, and a megabyte": answer(b"data: [DONE]\n\n" + b"data: x\n\n" * 100_000),
}  # fmt: skip


@pytest.mark.proof
@pytest.mark.parametrize("name", MALICIOUS)
async def test_malicious_response_at_worst_makes_the_call_fail_in_bounded_memory(name: str) -> None:
    data = MALICIOUS[name]

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(data)

    async with serving(handle) as server:
        client = AsyncClient(
            KEY, base_url=server.url, timeout=5, retry_config=ONCE, max_response_bytes=4 * MEGABYTE
        )
        async with client:
            for call in ("chat", "models", "completions", "text", "usage", "chunks"):
                tracemalloc.start()
                try:
                    with anyio.fail_after(15):  # most take milliseconds, longer on a busy machine
                        result = await call_of(client, call)()
                except GatewayError as error:
                    assert len(str(error)) < 2 * MEGABYTE
                    repr(error)
                else:
                    repr(result)
                    repr(getattr(result, "meta", None))
                finally:
                    peak = tracemalloc.get_traced_memory()[1]
                    tracemalloc.stop()
                assert peak < 40 * MEGABYTE
            assert client._session.carrier.transport.stats()["in_use"] == 0  # type: ignore[attr-defined]


# The process as a whole

MEASURED = """
import resource, sys, zlib
from omnigate import AsyncClient, GatewayError, RetryConfig
import anyio, httpx

def bomb(start):
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = compressor.compress(start) + compressor.flush(zlib.Z_FULL_FLUSH)
    block = compressor.compress(b" " * (1 << 20)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return head + block * 1024

async def main():
    limit = 1 << 20
    async with AsyncClient("k", transport=httpx.MockTransport(None), max_response_bytes=limit) as client:
        for start, status, call in CASES:
            data = bomb(start)
            client._session.carrier.transport.handler = lambda request: httpx.Response(
                status, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(data)
            )
            try:
                await call(client)
            except GatewayError:
                continue
            raise AssertionError(start)

HELLO = {"model": "m", "messages": "x", "extra_headers": {}}
CASES = [
    (b'{"id": "', 200, lambda client: client.chat(**HELLO)),
    (b'{"detail": "', 400, lambda client: client.chat(**HELLO)),
    (b"text", 200, lambda client: client.chat_stream(**HELLO).text()),
    (b"text\\n[error] ", 200, lambda client: client.chat_stream(**HELLO).text()),
    (b'data: {"choices": "', 200, lambda client: client.chat_stream(**HELLO, include_usage=True).text()),
]
bomb(b"")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
anyio.run(main)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_gzip_bomb_of_a_gigabyte_costs_the_process_less_than_32_megabytes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURED], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32_000  # kilobytes
