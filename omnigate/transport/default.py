"""Which transport a client takes when it is given none."""

from __future__ import annotations

import ssl
import urllib.request

import httpx

from omnigate.transport.per_loop import PerLoopTransport

LIMITS = httpx.Limits(max_connections=1_024, max_keepalive_connections=1_024, keepalive_expiry=4.0)
"""httpx's own default of 100 connections is less than a batch needs. The gateway closes idle connections
after 5 s; a client that gives up a second earlier does not run into that."""


def default_transport(base_url: httpx.URL, verify: bool | ssl.SSLContext) -> httpx.AsyncBaseTransport:
    """Return the transport for a gateway, through the proxy that the environment names for it, if any."""
    proxy = environment_proxy(base_url)
    context: bool | ssl.SSLContext = verify
    if base_url.scheme == "http" and proxy is None:
        context = False  # never used; making a real one takes 20 ms
    elif not isinstance(verify, ssl.SSLContext):
        context = httpx.create_ssl_context(verify=verify)  # once, not for every event loop
    return PerLoopTransport(
        lambda: httpx.AsyncHTTPTransport(verify=context, limits=LIMITS, proxy=proxy, trust_env=False)
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
