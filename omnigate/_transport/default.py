"""The default transport of clients.

It is chosen once, when the client is created, by its address and the environment at that time.
"""

from __future__ import annotations

import ssl

import httpx

from omnigate._transport.anyio_transport import AnyIOTransport
from omnigate._transport.certificates import ssl_context
from omnigate._transport.httpx_pool import PerLoopTransport
from omnigate._transport.proxies import ProxiedTransport, environment_proxy, proxy_variable
from omnigate._wire.checks import refusal

LIMITS = httpx.Limits(max_connections=1_024, max_keepalive_connections=1_024, keepalive_expiry=4.0)
"""The limits of `AnyIOTransport`; httpx's default of 100 connections is too few for a batch."""


def default_transport(base_url: httpx.URL, verify: bool | ssl.SSLContext) -> httpx.AsyncBaseTransport:
    """Return our own transport, or httpx's if the environment sets a proxy for `base_url`.

    Raises:
        InvalidArgumentError: the environment sets a proxy that cannot be used, or names certificates that
            cannot be read.
    """
    proxy = environment_proxy(base_url)
    if proxy is None:
        # A plain http:// address needs no certificates, so a bad variable is no error there.
        return AnyIOTransport(verify=ssl_context(verify) if base_url.scheme == "https" else verify)
    context = ssl_context(verify)  # created once rather than per event loop: it takes 20 ms
    variable = proxy_variable(base_url.scheme)

    def make() -> httpx.AsyncBaseTransport:
        return ProxiedTransport(proxy, context, LIMITS, variable)

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
        raise refusal(variable, None, must, got=problem)
    return PerLoopTransport(make)
