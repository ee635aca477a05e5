"""The proxy set by the environment for an address, and errors that name it.

Which proxy: `HTTP_PROXY`, `HTTPS_PROXY` and `ALL_PROXY`, in either case (the lower case first), as the
standard library reads them; where none is set, the settings of macOS and Windows.

Which hosts are exempt: `NO_PROXY`, by our own rule, since the standard library's knows neither networks nor
stars. Entries are separated by commas or blanks. It follows Go (`golang.org/x/net/http/httpproxy`) and curl
(`lib/noproxy.c`); where they differ, the host is exempt, because a proxy would see the key:

- `*` exempts everything, `10.0.0.0/8` and `fd00::/8` a network, `10.1.2.3`, `fd00::1` and `[fd00::1]` an
  address, however it is written in the URL, with or without a zone;
- `example.com` and `.example.com` exempt the domain and its subdomains (curl; for Go a leading dot means the
  subdomains alone), `*.example.com` the subdomains alone (Go; curl has no stars);
- `host:port`, `10.1.2.3:port` and `[fd00::1]:port` exempt one port alone (Go);
- names are compared without regard to case and to a final dot, and in their IDNA form.

Loopback addresses never go through a proxy (Go): it would connect to itself.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import urllib.request
from typing import Any, Final, TypeAlias

import httpx

from omnigate._transport.httpx_pool import HttpxTransport
from omnigate._transport.messages import origin_of
from omnigate._transport.problems import ConnectFailure, ConnectTimedOut, is_permanent, reason_of
from omnigate._wire.arguments import address_of, is_loopback

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_SEPARATORS: Final = re.compile(r"[\s,]+")

_TRANSIENT: Final = ("408", "429", "500", "502", "503", "504")


def environment_proxy(base_url: httpx.URL) -> str | None:
    """Return the proxy that the environment sets for `base_url`, or None.

    None as well if `NO_PROXY` exempts the host, and always for loopback addresses.
    """
    proxies = urllib.request.getproxies()
    proxy = proxies.get(base_url.scheme) or proxies.get("all")
    if not proxy or is_loopback(base_url.host):
        return None
    variables = urllib.request.getproxies_environment()
    if variables:
        exempt = is_exempt(base_url, variables.get("no", ""))
    else:  # the system's settings have a rule of their own
        exempt = bool(urllib.request.proxy_bypass(base_url.netloc.decode("ascii")))
    if exempt:
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def proxy_variable(scheme: str) -> str:
    """Return the name of the environment variable that sets the proxy for a scheme."""
    for name in (f"{scheme}_proxy", "all_proxy"):
        found = [known for known, value in os.environ.items() if known.lower() == name and value]
        if found:
            return name if name in found else found[0]  # the same precedence as urllib
    return "the system's setting"


def is_exempt(url: httpx.URL, entries: str) -> bool:
    """Return whether an entry of `NO_PROXY` exempts a URL's host."""
    name = url.raw_host.decode("ascii").lower().rstrip(".")
    address, port = address_of(name), origin_of(url)[2]
    return any(_matches(entry.lower(), name, address, port) for entry in _SEPARATORS.split(entries) if entry)


def _matches(entry: str, name: str, address: Address | None, port: int) -> bool:
    if entry == "*":
        return True
    if "/" in entry:
        try:
            network = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
        return address is not None and address in network
    host, only_port = _split_port(entry)
    if only_port and only_port != str(port):
        return False
    wanted = address_of(host, is_url_host=False)
    if wanted is not None or address is not None:
        return wanted == address
    domain = _ascii(host.removeprefix("*").strip("."))
    if not domain:
        return False
    return name.endswith(f".{domain}") or (name == domain and not host.startswith("*"))


def _split_port(entry: str) -> tuple[str, str]:
    """Return the host and the port of an entry; "" for none."""
    if entry.startswith("["):
        host, _, rest = entry[1:].partition("]")
        return host, rest.removeprefix(":")
    if entry.count(":") == 1:
        host, _, port = entry.partition(":")
        return host, port
    return entry, ""


def _ascii(domain: str) -> str:
    """Return a domain in its IDNA form, as URLs have it; "" if it has none."""
    if domain.isascii():
        return domain
    try:
        return httpx.URL(f"http://{domain}").raw_host.decode("ascii")
    except (httpx.InvalidURL, UnicodeError):
        return ""


class ProxiedTransport(HttpxTransport):
    """httpx's own transport through a proxy; its errors say whether proxy or gateway was not reached."""

    def __init__(self, proxy: str, context: ssl.SSLContext, limits: httpx.Limits, variable: str) -> None:
        """Create the transport; nothing is opened yet.

        Args:
            proxy: the proxy's address.
            context: for TLS with the gateway, and with the proxy if its address is https://.
            limits: of the connections.
            variable: the variable that set the proxy, for errors.

        Raises:
            ValueError: the proxy is of an unknown kind.
            httpx.InvalidURL: its address is not a URL.
            ImportError: it is a SOCKS proxy, and the package for SOCKS is missing.
        """
        url = httpx.URL(proxy)
        settings = httpx.Proxy(url, ssl_context=context if url.scheme == "https" else None)
        super().__init__(
            httpx.AsyncHTTPTransport(verify=context, limits=limits, proxy=settings, trust_env=False)
        )
        # `netloc` has no user and password.
        self._proxy = f"the proxy {url.scheme}://{url.netloc.decode('ascii')} (from {variable})"

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`; see httpx."""
        steps = _Steps()
        request.extensions = {**request.extensions, "trace": steps.trace}
        try:
            return await super().handle_async_request(request)
        except httpx.TransportError as error:
            if steps.are_with_proxy or isinstance(error, httpx.ProxyError):
                raise self._failure(error) from error
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                gateway = f"{request.url.scheme}://{request.url.netloc.decode('ascii')}"
                raise self._failure(error, f"the gateway at {gateway} through {self._proxy}") from error
            raise

    def _failure(self, error: httpx.TransportError, subject: str | None = None) -> httpx.TransportError:
        subject = subject or self._proxy
        if isinstance(error, httpx.TimeoutException):
            return ConnectTimedOut("no answer within the timeout", subject=subject)
        reason = reason_of(error)
        permanent = is_permanent(error)
        if isinstance(error, httpx.ProxyError):  # its answer to CONNECT: the status and the words for it
            permanent = permanent or not reason.startswith(_TRANSIENT)
            reason = f"it refused to connect to the gateway: {reason}"
        return ConnectFailure(reason, subject=subject, is_permanent=permanent)

    def __repr__(self) -> str:
        return f"<ProxiedTransport through {self._proxy}>"


class _Steps:
    """Follows httpcore's steps of one request, to know whether the last was with the proxy.

    Attributes:
        are_with_proxy: whether the last step was with the proxy itself: connecting to it, its TLS, or asking
            it for a tunnel.
    """

    def __init__(self) -> None:
        self.are_with_proxy = False

    async def trace(self, name: str, info: dict[str, Any]) -> None:
        """Record a step; httpcore awaits this before and after each."""
        layer, _, step = name.partition(".")
        if step in ("connect_tcp.started", "setup_socks5_connection.started"):
            self.are_with_proxy = True
        elif step == "start_tls.started":  # "connection" is the one to the proxy
            self.are_with_proxy = layer == "connection"
        elif step == "send_request_headers.started":
            self.are_with_proxy = getattr(info.get("request"), "method", b"") == b"CONNECT"
