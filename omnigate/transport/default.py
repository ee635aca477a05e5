"""Which transport a client takes when it is given none."""

from __future__ import annotations

import ssl
import urllib.request

import httpx

from omnigate.transport.anyio_transport import AnyIOTransport
from omnigate.transport.lost_connections import HttpxTransport
from omnigate.transport.per_loop import PerLoopTransport

LIMITS = httpx.Limits(max_connections=1_024, max_keepalive_connections=1_024, keepalive_expiry=4.0)
"""Those of `AnyIOTransport`, in place of httpx's 100 connections, which are less than a batch needs."""


def default_transport(base_url: httpx.URL, verify: bool | ssl.SSLContext) -> httpx.AsyncBaseTransport:
    """Return our own transport or, where the environment names a proxy for it, httpx's through that."""
    proxy = environment_proxy(base_url)
    if proxy is None:
        return AnyIOTransport(verify=verify)
    # once, not for every event loop: it takes 20 ms
    context = verify if isinstance(verify, ssl.SSLContext) else httpx.create_ssl_context(verify=verify)
    return PerLoopTransport(
        lambda: HttpxTransport(
            httpx.AsyncHTTPTransport(verify=context, limits=LIMITS, proxy=proxy, trust_env=False)
        )
    )


def environment_proxy(base_url: httpx.URL) -> str | None:
    """Return the proxy for `base_url` that `HTTP_PROXY`, `HTTPS_PROXY` or `ALL_PROXY` names, or None.

    None, too, if `NO_PROXY` exempts its host.
    """
    proxies = urllib.request.getproxies()
    proxy = proxies.get(base_url.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(base_url.netloc.decode("ascii")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
