"""TLS against a real server, with a certificate and an authority made for the test."""

import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
import httpx
import pytest
import trustme

from omnigate import AsyncClient, Client, ConnectionError, RetryConfig
from omnigate._transport.anyio_transport import AnyIOTransport

from ..support.raw_server import chat_bytes
from ..support.servers import OK, Handler, Peer, open_sockets, secure_stream, serving, until

pytestmark = pytest.mark.anyio


@dataclass
class Identity:
    server: ssl.SSLContext
    trusting: ssl.SSLContext
    authority: trustme.CA


@pytest.fixture(scope="module")
def identity() -> Identity:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.set_alpn_protocols(["h2", "http/1.1"])
    authority.issue_cert("localhost", "127.0.0.1", "gateway.test").configure_cert(server)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return Identity(server, trusting, authority)


async def get(transport: AnyIOTransport, url: str) -> bytes:
    response = await transport.handle_async_request(httpx.Request("GET", url))
    return await response.aread()


async def test_tls_connection_to_a_trusted_server_is_reused(identity: Identity) -> None:
    async with serving(tls=identity.server) as server:
        transport = AnyIOTransport(verify=identity.trusting)
        for _ in range(3):
            assert await get(transport, server.url) == b"ok"
        assert await get(transport, server.url.replace("localhost", "127.0.0.1")) == b"ok"
        assert server.accepted == 2
        await transport.aclose()
        await until(lambda: server.open == 0)


async def test_sync_and_async_clients_accept_an_ssl_context(identity: Identity) -> None:
    def sync(url: str) -> str:
        with Client("k", base_url=url, verify=identity.trusting) as client:
            return client.chat(model="gpt-4o-mini", messages="hello").content

    async with serving(chat_bytes(), tls=identity.server) as server:
        async with AsyncClient("k", base_url=server.url, verify=identity.trusting) as client:
            response = await client.chat(model="gpt-4o-mini", messages="hello")
            assert response.content == "hello"
        assert await anyio.to_thread.run_sync(sync, server.url) == "hello"


async def test_tls_handshake_sends_alpn_and_sni(identity: Identity) -> None:
    names: list[str | None] = []
    protocols: list[str | None] = []
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["h2", "http/1.1"])
    identity.authority.issue_cert("localhost").configure_cert(context)
    context.sni_callback = lambda _, name, __: names.append(name)

    async def handle(peer: Peer) -> None:
        stream = await secure_stream(peer.stream, context)
        protocols.append(stream.extra(anyio.streams.tls.TLSAttribute.alpn_protocol))
        secure = Peer(stream)
        await secure.request()
        await secure.send(OK)
        await secure.closed()

    async with serving(handle) as server:
        transport = AnyIOTransport(verify=identity.trusting)
        assert await get(transport, f"https://localhost:{server.port}/") == b"ok"
        await transport.aclose()
    assert (names, protocols) == (["localhost"], ["http/1.1"])


async def test_untrusted_certificate_raises_a_connect_error_with_the_reason(identity: Identity) -> None:
    before = open_sockets()
    async with serving(tls=identity.server) as server:
        transport = AnyIOTransport()
        with pytest.raises(httpx.ConnectError, match=r"localhost:\d+: the certificate is not trusted: .+"):
            await get(transport, server.url)
        assert not server.received
        assert transport.stats()["opening"] == 0
        await transport.aclose()
        async with AsyncClient("k", base_url=server.url, retry_config=RetryConfig(max_retries=0)) as client:
            with pytest.raises(ConnectionError, match="the certificate is not trusted"):
                await client.health()
        await until(lambda: server.open == 0)
    await until(lambda: open_sockets() == before)


async def test_certificate_for_another_host_raises_a_connect_error(identity: Identity) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    identity.authority.issue_cert("elsewhere.test").configure_cert(context)
    async with serving(tls=context) as server:
        transport = AnyIOTransport(verify=identity.trusting)
        with pytest.raises(httpx.ConnectError, match="certificate is not trusted: .*localhost"):
            await get(transport, server.url)
        await transport.aclose()


async def test_verify_false_accepts_any_certificate(identity: Identity) -> None:
    async with serving(tls=identity.server) as server:
        transport = AnyIOTransport(verify=False)
        assert await get(transport, server.url) == b"ok"
        await transport.aclose()


async def test_server_that_does_not_speak_tls_raises_a_connect_error() -> None:
    async with serving(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n") as server:

        async def plain(peer: Peer) -> None:
            await peer.stream.receive()
            await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        async with serving(plain) as server:
            with pytest.raises(httpx.ConnectError, match=f"localhost:{server.port}: "):
                await get(AnyIOTransport(), f"https://localhost:{server.port}/")


async def test_server_that_hangs_up_during_the_tls_handshake_raises_a_connect_error() -> None:
    async def hang_up(peer: Peer) -> None:
        await peer.stream.receive()

    async with serving(hang_up) as server:
        with pytest.raises(httpx.ConnectError, match=f"localhost:{server.port}: "):
            await get(AnyIOTransport(), f"https://localhost:{server.port}/")


async def test_stalled_tls_handshake_raises_a_connect_timeout() -> None:
    async def stall(peer: Peer) -> None:
        await peer.closed()

    async with serving(stall) as server:
        transport = AnyIOTransport()
        request = httpx.Request(
            "GET", f"https://localhost:{server.port}/", extensions={"timeout": {"connect": 0.05}}
        )
        with pytest.raises(httpx.ConnectTimeout):
            await transport.handle_async_request(request)
        await until(lambda: server.open == 0)


def closing_tls(identity: Identity, answer: bytes, *, notifies: bool) -> Handler:
    """Return a handler that answers over TLS and closes, with or without announcing it by close_notify."""

    async def handle(peer: Peer) -> None:
        stream = await secure_stream(peer.stream, identity.server)
        secure = Peer(stream)
        await secure.request()
        await secure.send(answer)
        if notifies:
            with suppress(ssl.SSLWantReadError):
                stream._ssl_object.unwrap()
            await peer.stream.send(stream._write_bio.read())
        await peer.stream.aclose()

    return handle


async def test_tls_body_that_only_the_connection_ends_must_be_ended_by_close_notify(
    identity: Identity,
) -> None:
    whole = b"HTTP/1.1 200 OK\r\n\r\nhello"
    transport = AnyIOTransport(verify=identity.trusting)
    async with serving(closing_tls(identity, whole, notifies=True)) as server:
        assert await get(transport, f"https://localhost:{server.port}/") == b"hello"
    async with serving(closing_tls(identity, whole, notifies=False)) as server:
        with pytest.raises(httpx.RemoteProtocolError, match="close_notify"):
            await get(transport, f"https://localhost:{server.port}/")
    await transport.aclose()


@pytest.mark.parametrize("notifies", [True, False])
async def test_tls_body_that_is_shorter_than_its_length_is_an_error(
    identity: Identity, notifies: bool
) -> None:
    short = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello"
    transport = AnyIOTransport(verify=identity.trusting)
    async with serving(closing_tls(identity, short, notifies=notifies)) as server:
        with pytest.raises(httpx.RemoteProtocolError, match="before the end"):
            await get(transport, f"https://localhost:{server.port}/")
    await transport.aclose()


async def test_tls_body_that_is_framed_needs_no_close_notify(identity: Identity) -> None:
    transport = AnyIOTransport(verify=identity.trusting)
    async with serving(closing_tls(identity, OK, notifies=False)) as server:
        assert await get(transport, f"https://localhost:{server.port}/") == b"ok"
    await transport.aclose()


async def test_closing_a_tls_connection_does_not_wait_for_the_peers_close_notify(identity: Identity) -> None:
    release = anyio.Event()

    async def silent(peer: Peer) -> None:
        stream = await secure_stream(peer.stream, identity.server)
        secure = Peer(stream)
        await secure.request()
        await secure.send(OK)
        await release.wait()  # reads nothing more, answers no close_notify

    async with serving(silent) as server:
        transport = AnyIOTransport(verify=identity.trusting)
        assert await get(transport, f"https://localhost:{server.port}/") == b"ok"
        with anyio.fail_after(5):
            await transport.aclose()
        assert transport.stats()["idle"] == 0
        release.set()


class Records:
    """The server's side of TLS, record by record, so that the test decides which records share a packet."""

    def __init__(self, peer: Peer, context: ssl.SSLContext) -> None:
        self.peer = peer
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    async def call(self, func: Callable[[], object]) -> object:
        while True:
            try:
                return func()
            except ssl.SSLWantReadError:
                await self.flush()
                self.incoming.write(await self.peer.stream.receive())

    async def flush(self) -> None:
        if self.outgoing.pending:
            await self.peer.send(self.outgoing.read())


UNSOLICITED = b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nunasked"


@pytest.mark.parametrize(
    "unsolicited", [UNSOLICITED, UNSOLICITED + b"x" * 200_000, None], ids=["one", "many", "close_notify"]
)
async def test_tls_connection_with_an_unsolicited_record_is_not_reused(
    identity: Identity, unsolicited: bytes | None
) -> None:
    """If it arrived in the same packet as the response, the socket shows nothing to read."""

    async def handle(peer: Peer) -> None:
        records = Records(peer, identity.server)
        await records.call(records.tls.do_handshake)
        while True:
            await records.call(lambda: records.tls.read(65_536))
            records.tls.write(OK)
            if unsolicited is not None:
                records.tls.write(unsolicited)
            else:
                with suppress(ssl.SSLWantReadError):
                    records.tls.unwrap()
            await records.flush()
            if unsolicited is None:
                await peer.closed()
                return

    async with serving(handle) as server:
        transport = AnyIOTransport(verify=identity.trusting)
        for count in range(1, 4):
            request = httpx.Request("POST", f"https://localhost:{server.port}/")  # a POST is never resent
            assert await (await transport.handle_async_request(request)).aread() == b"ok"
            assert server.accepted == count
        await transport.aclose()


async def test_tls_connection_with_unsolicited_bytes_buffered_by_anyio_is_not_reused(
    identity: Identity,
) -> None:
    """anyio hands TLS 64 KiB at a time; here a response ends exactly there, and unsolicited bytes follow."""
    part = 65_536
    bodies = [b"ok"]

    async def handle(peer: Peer) -> None:
        records = Records(peer, identity.server)
        await records.call(records.tls.do_handshake)
        await records.flush()
        for answer in (OK, None):
            await records.call(lambda: records.tls.read(65_536))
            if answer is not None:
                records.tls.write(answer)
                await records.flush()
                continue
            overhead = 22  # bytes for each TLS 1.3 record
            sizes = [16_384] * 3
            sizes.append(part - sum(sizes) - overhead * 4)
            head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n"
            body = b"x" * (sum(sizes) - len(head % sum(sizes)))
            data = head % len(body) + body
            for size in sizes:
                records.tls.write(data[:size])
                data = data[size:]
            assert records.outgoing.pending == part
            bodies.append(body)
            records.tls.write(UNSOLICITED)
            await records.flush()
        await peer.closed()

    async with serving(handle) as server:
        transport = AnyIOTransport(verify=identity.trusting)
        for number in range(2):
            assert await get(transport, f"https://localhost:{server.port}/") == bodies[number]
        assert server.accepted == 1
        assert await get(transport, f"https://localhost:{server.port}/") == b"ok"
        assert server.accepted == 2
        await transport.aclose()


async def test_large_tls_response_arrives_whole_across_many_records(identity: Identity) -> None:
    body = bytes(range(256)) * 4_000
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    async with serving(answer, tls=identity.server) as server:
        transport = AnyIOTransport(verify=identity.trusting)
        for _ in range(3):
            assert await get(transport, server.url) == body
        assert server.accepted == 1
        await transport.aclose()


async def test_tls_works_over_a_unix_domain_socket(identity: Identity, tmp_path: Path) -> None:
    path = str(tmp_path / "gateway.sock")
    async with serving(tls=identity.server, uds=path) as server:
        transport = AnyIOTransport(verify=identity.trusting, uds=path)
        assert await get(transport, "https://gateway.test/") == b"ok"
        with pytest.raises(httpx.ConnectError, match="certificate is not trusted"):
            await get(transport, "https://elsewhere.test/")
        await transport.aclose()
        await until(lambda: server.open == 0)
