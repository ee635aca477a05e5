"""Which authorities TLS trusts, by the environment and by `verify=`, and client certificates."""

import ssl
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme

from omnigate import (
    AdminClient,
    AsyncAdminClient,
    AsyncClient,
    Client,
    ConnectionError,
    InvalidArgumentError,
)
from omnigate._transport.anyio_transport import AnyIOTransport

from ..support.raw_server import chat_bytes
from ..support.servers import serving

pytestmark = pytest.mark.anyio

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}

VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def bundle(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certificates") / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
async def test_environment_variable_names_the_certificate_authorities_to_trust(
    authority: trustme.CA, bundle: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(bundle))
    async with serving(chat_bytes(), tls=server_context(authority)) as server:
        async with AsyncClient("k", base_url=server.url) as client:
            assert (await client.chat(**HELLO)).content == "hello"
        async with AsyncClient("k", base_url=server.url, transport=AnyIOTransport()) as client:
            assert (await client.chat(**HELLO)).content == "hello"


async def test_environment_variable_may_name_a_directory_of_certificates(
    authority: trustme.CA, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = ssl.create_default_context(cafile=str(bundle))
    assert probe.cert_store_stats()["x509_ca"] == 1
    loaded: list[str | None] = []
    create = ssl.create_default_context

    def recording(*arguments: Any, capath: str | None = None, **others: Any) -> ssl.SSLContext:
        loaded.append(capath)
        return create(*arguments, capath=capath, **others)

    monkeypatch.setattr(ssl, "create_default_context", recording)
    for variable in ("REQUESTS_CA_BUNDLE", "SSL_CERT_DIR"):
        monkeypatch.setenv(variable, str(tmp_path))  # the latter has precedence
        AsyncClient("k", base_url="https://gateway.test")
    assert loaded == [str(tmp_path)] * 2


async def test_ssl_cert_file_wins_over_requests_ca_bundle(
    authority: trustme.CA, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "missing.pem"))
    async with serving(chat_bytes(), tls=server_context(authority)) as server:
        async with AsyncClient("k", base_url=server.url) as client:
            assert (await client.chat(**HELLO)).content == "hello"


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("proxy", [False, True])
@pytest.mark.parametrize("make", [AsyncClient, Client, AsyncAdminClient, AdminClient])
async def test_missing_certificate_files_are_named_at_construction(
    make: Any, proxy: bool, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "/no/such/bundle.pem")
    if proxy:
        monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:1")
    with pytest.raises(InvalidArgumentError) as caught:
        make("k", base_url="https://gateway.test")
    assert str(caught.value).startswith(f"{variable} must name a ")
    assert "got '/no/such/bundle.pem'" in str(caught.value)
    make("k", base_url="https://gateway.test", verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    make("k", base_url="https://gateway.test", verify=False)
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    make("k", base_url="http://127.0.0.1:8000")  # needs none


async def test_certificate_files_that_are_not_pem_are_named_at_construction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, words in ((tmp_path / "x.pem", "no certificate"), (tmp_path, "irectory")):
        if path.suffix:
            path.write_text("not a certificate")
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        with pytest.raises(InvalidArgumentError, match=rf"SSL_CERT_FILE must name .*{words}"):
            AsyncClient("k", base_url="https://gateway.test")


async def test_transport_names_missing_certificates_at_its_first_tls_connection_and_is_not_retried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/bundle.pem")
    transport = AnyIOTransport()
    async with AsyncClient("k", base_url="https://gateway.test", transport=transport) as client:
        with pytest.raises(InvalidArgumentError, match="SSL_CERT_FILE must name"):
            await client.chat(**HELLO)
        assert transport.stats()["opening"] == 0


async def test_untrusted_certificate_is_not_retried(authority: trustme.CA) -> None:
    async with serving(chat_bytes(), tls=server_context(authority)) as server:
        async with AsyncClient("k", base_url=server.url) as client:
            with pytest.raises(ConnectionError, match="the certificate is not trusted") as caught:
                await client.chat(**HELLO)
        assert (caught.value.attempts, caught.value.is_permanent, len(server.received)) == (1, True, 0)


async def test_untrusted_certificate_is_not_retried_over_httpxs_own_transport(authority: trustme.CA) -> None:
    import httpx

    async with serving(chat_bytes(), tls=server_context(authority)) as server:
        transport = httpx.AsyncHTTPTransport()
        async with AsyncClient("k", base_url=server.url, transport=transport) as client:
            with pytest.raises(ConnectionError, match="the certificate is not trusted: .+") as caught:
                await client.chat(**HELLO)
        assert (caught.value.attempts, caught.value.is_permanent, len(server.received)) == (1, True, 0)


async def test_client_certificate_is_sent_from_the_context_given_as_verify(
    authority: trustme.CA, bundle: Path, tmp_path: Path
) -> None:
    server_side = server_context(authority)
    authority.configure_trust(server_side)
    server_side.verify_mode = ssl.CERT_REQUIRED
    issued = authority.issue_cert("client@example.test")
    issued.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "client.pem"))
    async with serving(chat_bytes(), tls=server_side) as server:
        context = ssl.create_default_context(cafile=str(bundle))
        async with AsyncClient("k", base_url=server.url, verify=context, retries=0) as client:
            with pytest.raises(ConnectionError):  # TLS 1.3 says so only after the handshake
                await client.chat(**HELLO)
        context.load_cert_chain(str(tmp_path / "client.pem"))
        async with AsyncClient("k", base_url=server.url, verify=context) as client:
            assert (await client.chat(**HELLO)).content == "hello"


async def test_final_dot_of_a_host_is_left_out_of_sni_and_of_the_certificates_check(
    authority: trustme.CA, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str | None] = []
    context = server_context(authority)
    context.sni_callback = lambda _, name, __: names.append(name)
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    resolve = anyio.getaddrinfo
    monkeypatch.setattr(
        anyio, "getaddrinfo", lambda host, port, **more: resolve(host.rstrip("."), port, **more)
    )
    async with serving(chat_bytes(), tls=context) as server:
        async with AsyncClient("k", base_url=f"https://localhost.:{server.port}") as client:
            assert (await client.chat(**HELLO)).content == "hello"
    assert names == ["localhost"]
