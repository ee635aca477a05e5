"""The transport of a client that is given none.

It is chosen once, when the client is created, by its address and the environment at that time.
"""

from __future__ import annotations

import os
import ssl
import urllib.request

import httpx

from omnigate._transport.anyio_transport import AnyIOTransport
from omnigate._transport.httpx_pool import HttpxTransport, PerLoopTransport
from omnigate._wire.arguments import is_loopback
from omnigate._wire.checks import refusal

LIMITS = httpx.Limits(max_connections=1_024, max_keepalive_connections=1_024, keepalive_expiry=4.0)
"""The limits of `AnyIOTransport`; httpx's default of 100 connections is too few for a batch."""


def default_transport(base_url: httpx.URL, verify: bool | ssl.SSLContext) -> httpx.AsyncBaseTransport:
    """Return our own transport, or httpx's if the environment sets a proxy for `base_url`.

    Raises:
        InvalidArgumentError: the environment sets a proxy that cannot be used.
    """
    proxy = environment_proxy(base_url)
    if proxy is None:
        return AnyIOTransport(verify=verify)
    # Created once rather than per event loop: it takes 20 ms.
    context = verify if isinstance(verify, ssl.SSLContext) else httpx.create_ssl_context(verify=verify)

    def make() -> httpx.AsyncBaseTransport:
        return HttpxTransport(
            httpx.AsyncHTTPTransport(verify=context, limits=LIMITS, proxy=proxy, trust_env=False)
        )

    # Errors are neither chained nor shown, since the address may contain a password.
    try:
        url = httpx.URL(proxy)
        problem = None if url.host and (url.port or 0) <= 65_535 else "no address"
        make()  # opens nothing
    except ImportError:
        problem = "a SOCKS address, which needs the package socksio: pip install 'httpx[socks]'"
    except (ValueError, httpx.InvalidURL):
        problem = "no address, or one of an unknown kind"
    if problem is not None:
        must = (
            f"be the address of a proxy for {base_url.host}, http://, https://, socks5:// or socks5h:// and "
            f"host[:port], unless NO_PROXY exempts the host"
        )
        raise refusal(_variable(base_url.scheme), None, must, got=problem)
    return PerLoopTransport(make)


def environment_proxy(base_url: httpx.URL) -> str | None:
    """Return the proxy for `base_url` from `HTTP_PROXY`, `HTTPS_PROXY` or `ALL_PROXY`, or None.

    Also None if `NO_PROXY` exempts the host, and always for loopback addresses: a remote proxy would connect
    to itself, and requests to this machine should not leave it.
    """
    proxies = urllib.request.getproxies()
    proxy = proxies.get(base_url.scheme) or proxies.get("all")
    if not proxy or is_loopback(base_url.host):
        return None
    if urllib.request.proxy_bypass(base_url.netloc.decode("ascii")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _variable(scheme: str) -> str:
    """Return the name of the environment variable that sets the proxy for a scheme."""
    for name in (f"{scheme}_proxy", "all_proxy"):
        found = [known for known, value in os.environ.items() if known.lower() == name and value]
        if found:
            return name if name in found else found[0]  # the same precedence as urllib
    return "the system's setting"
