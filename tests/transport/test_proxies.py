"""The environment's proxies: which hosts are exempt from them, and errors that name the one that failed."""

import ssl
from typing import Any

import anyio
import httpx
import pytest
import trustme

from omnigate import AsyncClient, ConnectionError, RetryConfig, TimeoutError
from omnigate._transport import sockets
from omnigate._transport.proxies import environment_proxy, is_exempt

from ..support.raw_server import chat_bytes
from ..support.servers import Peer, open_sockets, secure_stream, serving, until

pytestmark = pytest.mark.anyio

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}

GO_LIST = (
    "foobar.com, .barbaz.net, *.wildcard.io, 192.168.1.1, 192.168.1.2:81, 192.168.1.3:80, 10.0.0.0/30, "
    "2001:db8::52:0:1, [2001:db8::52:0:2]:443, [2001:db8::52:0:3]:80, 2002:db8:a::45/64"
)

# The sources: "go" is the rule of golang.org/x/net/http/httpproxy (`Config.NoProxy` and its tests), "curl" that of
# lib/noproxy.c and its unit test 1614, "url" what makes two spellings one host (RFC 3986, 3987, 6874).
RULES: list[tuple[str, str, str, bool]] = [
    ("go", GO_LIST, "http://192.168.1.1", True),
    ("go", GO_LIST, "http://192.168.1.2", False),
    ("go", GO_LIST, "http://192.168.1.2:81", True),
    ("go", GO_LIST, "http://192.168.1.3", True),
    ("go", GO_LIST, "https://192.168.1.3", False),
    ("go", GO_LIST, "http://192.168.1.4", False),
    ("go", GO_LIST, "http://10.0.0.2", True),
    ("go", GO_LIST, "http://10.0.0.4", False),
    ("go", GO_LIST, "http://[2001:db8::52:0:1]", True),
    ("go", GO_LIST, "http://[2001:db8::52:0:2]", False),
    ("go", GO_LIST, "https://[2001:db8::52:0:2]", True),
    ("go", GO_LIST, "http://[2001:db8::52:0:3]", True),
    ("go", GO_LIST, "http://[2002:db8:a::123]", True),
    ("go", GO_LIST, "http://[fe80::424b:c8be:1643:a1b6]", False),
    ("go", GO_LIST, "http://www.barbaz.net", True),
    ("go", GO_LIST, "http://foobar.com", True),
    ("go", GO_LIST, "http://www.foobar.com", True),
    ("go", GO_LIST, "http://foofoobar.com", False),
    ("go", GO_LIST, "http://baz.com", False),
    ("go", GO_LIST, "http://barbarbaz.net", False),
    ("go", GO_LIST, "http://wildcard.io", False),
    ("go", GO_LIST, "http://nested.wildcard.io", True),
    ("go", GO_LIST, "http://awildcard.io", False),
    ("go", "*.corp.example:8000", "http://gw.corp.example:8000", True),
    ("go", "*.corp.example:8000", "http://gw.corp.example", False),
    ("go", "corp.example:443", "https://gw.corp.example", True),
    ("go", "*", "http://anything.test", True),
    ("go", "a.test,*", "http://[fd00::1]", True),
    ("go", "ample.com", "http://example.com", False),
    ("go", ":1", "http://example.com:1", False),
    ("go", "[]:1", "http://example.com:1", False),
    ("go", ".示例.com", "http://www.示例.com", True),
    ("go", "xn--fsq092h.com", "http://www.示例.com", True),
    ("go", "示例.com", "http://www.xn--fsq092h.com", True),
    ("go", "10.0.0.0/33", "http://10.0.0.1", False),
    ("go", "0.0.0.0/0", "http://10.0.0.1", True),
    ("go", "10.0.0.0/8", "http://10.example", False),
    ("go", "example.com", "http://[1000::%25.example.com]:123", False),
    ("curl", "localhost,.example.com", "http://example.com", True),  # for Go, the subdomains alone
    ("curl", "example.com.", "http://www.example.com", True),
    ("curl", "example.com", "http://www.example.com.", True),
    ("curl", ".example.com.", "http://EXAMPLE.com.", True),
    ("curl", "WWW.Example.COM", "http://www.example.com", True),
    ("curl", "www.example.com", "http://example.com", False),
    ("curl", "example.com", "http://nonexample.com", False),
    ("curl", "a.test b.test\tc.test", "http://c.test", True),
    ("curl", " , ,example.com,,", "http://example.com", True),
    ("curl", "192.168.0.0/16", "http://192.168.1.1", True),
    ("curl", "192.168.0.0/24", "http://192.168.1.1", False),
    ("curl", "fd00::1", "http://[fd00::1]:8000", True),
    ("curl", "fd00::1", "http://[fd00:0:0:0::0001]:8000", True),
    ("curl", "fd00::/8", "http://[fd12::1]", True),
    ("curl", "[fd00::1]", "http://[fd00::1]:8000", True),
    ("curl", "1.2.3.4", "http://1.2.3.4.example.com", False),
    ("curl", "4", "http://1.2.3.4", False),
    ("url", "10.0.0.0/8", "http://10.1", True),
    ("url", "10.0.0.0/8", "http://0xa.1.2.3", True),
    ("url", "10.1.2.3", "http://10.1.2.3.", True),
    ("url", "10.0.0.0/8", "http://[::ffff:10.1.2.3]", True),
    ("url", "10.1.2.3", "http://[::ffff:10.1.2.3]", True),
    ("url", "fe80::/10", "http://[fe80::1%25eth0]:8000", True),
    ("url", "fe80::1%eth0", "http://[fe80::1%25eth0]:8000", True),
    ("url", "bücher.example", "http://BÜCHER.example", True),
    ("url", "b\N{BULLET}", "http://example.com", False),
    ("url", "", "http://example.com", False),
]


@pytest.mark.parametrize(("source", "entries", "url", "exempt"), RULES)
async def test_no_proxy_exempts_what_go_and_curl_exempt(
    source: str, entries: str, url: str, exempt: bool
) -> None:
    assert is_exempt(httpx.URL(url), entries) is exempt, source


@pytest.mark.parametrize("host", ["127.0.0.1.", "127.1", "0x7f.0.0.1", "[::ffff:127.0.0.1]", "a.localhost."])
async def test_loopback_address_never_has_a_proxy_however_it_is_written(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.test:1")
    assert environment_proxy(httpx.URL(f"http://{host}:8000")) is None


async def test_lower_case_variable_wins_over_the_upper_case_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://upper.test:1")
    monkeypatch.setenv("http_proxy", "http://lower.test:1")
    assert environment_proxy(httpx.URL("http://gateway.test")) == "http://lower.test:1"
    monkeypatch.setenv("NO_PROXY", "elsewhere.test")
    monkeypatch.setenv("no_proxy", "*.test")
    assert environment_proxy(httpx.URL("http://gateway.test")) is None


@pytest.mark.parametrize(
    ("exempt", "host"),
    [("203.0.113.0/24", "203.0.113.9"), ("*.corp.test", "gw.corp.test"), ("gw.corp.test", "gw.corp.test.")],
)
@pytest.mark.filterwarnings("ignore:the key will be sent")
async def test_key_does_not_reach_a_proxy_from_which_its_host_is_exempt(
    monkeypatch: pytest.MonkeyPatch, exempt: str, host: str
) -> None:
    async with serving(chat_bytes()) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        async with AsyncClient("llmg_KEY", base_url=f"http://{host}:8000") as client:
            await client.chat(**HELLO)
        assert proxy.accepted == 1
        monkeypatch.setenv("NO_PROXY", exempt)

        async def unreachable(*_: object, **__: object) -> None:
            raise OSError("nobody there")

        monkeypatch.setattr(sockets, "connect", unreachable)
        monkeypatch.setattr(anyio, "getaddrinfo", unreachable)
        async with AsyncClient("llmg_KEY", base_url=f"http://{host}:8000", retries=0) as client:
            with pytest.raises(ConnectionError, match="nobody there"):
                await client.chat(**HELLO)
        assert proxy.accepted == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_unreachable_proxy_is_named_and_not_called_the_gateway(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    async with serving() as proxy:
        pass
    monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://user:hunter2@127.0.0.1:{proxy.port}")
    async with AsyncClient(base_url=f"{scheme}://gateway.test", retries=0) as client:
        with pytest.raises(ConnectionError) as caught:
            await client.health()
    error = caught.value
    assert str(error).startswith(
        f"Could not reach the proxy http://127.0.0.1:{proxy.port} (from {scheme.upper()}_PROXY) (1 attempt): "
    )
    assert (error.was_sent, error.is_permanent) == (False, False)
    assert "gateway" not in str(error)
    assert "hunter2" not in str(error)


@pytest.mark.parametrize(
    ("answer", "attempts"), [("407 Proxy Authentication Required", 1), ("503 Service Unavailable", 3)]
)
async def test_proxy_that_refuses_to_connect_is_retried_only_if_that_may_pass(
    monkeypatch: pytest.MonkeyPatch, answer: str, attempts: int
) -> None:
    async with serving(f"HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n".encode()) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        policy = RetryConfig(backoff_base=0)
        async with AsyncClient("k", base_url="https://gateway.test", retry_config=policy) as client:
            with pytest.raises(ConnectionError) as caught:
                await client.chat(**HELLO)
    error = caught.value
    assert f"the proxy {proxy.url} (from HTTPS_PROXY)" in str(error)
    assert error.reason == f"it refused to connect to the gateway: {answer}"
    assert (error.attempts, error.was_sent) == (attempts, False)


async def test_proxy_that_hangs_up_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang_up(peer: Peer) -> None:
        await peer.request()

    async with serving(hang_up) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        async with AsyncClient("k", base_url="https://gateway.test", retries=0) as client:
            with pytest.raises(ConnectionError, match=rf"^Could not reach the proxy {proxy.url} ") as caught:
                await client.chat(**HELLO)
            assert not caught.value.was_sent  # the request, that is


async def test_silent_proxy_raises_a_timeout_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def say_nothing(peer: Peer) -> None:
        await peer.request()
        await peer.closed()

    async with serving(say_nothing) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        async with AsyncClient("k", base_url="https://gateway.test", retries=0, timeout=0.1) as client:
            with pytest.raises(TimeoutError, match=rf"^Could not reach the proxy {proxy.url} "):
                await client.chat(**HELLO)


async def test_untrusted_gateway_behind_a_proxy_is_named_and_not_retried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("gateway.test").configure_cert(context)

    async def tunnel(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            await secure_stream(peer.stream, context)
        except ssl.SSLError:
            pass

    async with serving(tunnel) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        async with AsyncClient("k", base_url="https://gateway.test") as client:
            with pytest.raises(ConnectionError, match="the certificate is not trusted: .+") as caught:
                await client.chat(**HELLO)
    assert f"the gateway at https://gateway.test through the proxy {proxy.url}" in str(caught.value)
    assert (caught.value.attempts, caught.value.is_permanent) == (1, True)


async def test_proxy_with_tls_is_trusted_by_the_same_authorities_as_the_gateway(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    async with serving(chat_bytes(), tls=context) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        async with AsyncClient(base_url="http://gateway.test") as client:
            assert (await client.chat(**HELLO)).content == "hello"


@pytest.mark.virtual_time
async def test_connections_that_a_proxy_has_closed_are_closed_without_another_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_close = anyio.Event()

    async def answer_once(peer: Peer) -> None:
        await peer.request()
        await peer.send(chat_bytes())
        await may_close.wait()

    async with serving(answer_once) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        before = open_sockets()
        async with AsyncClient(base_url="http://gateway.test") as client:
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(lambda: client.chat(**HELLO))
            may_close.set()
            await until(lambda: proxy.open == 0)
            assert len(open_sockets() - before) == 5
            await anyio.sleep(5.1)
            assert open_sockets() == before
