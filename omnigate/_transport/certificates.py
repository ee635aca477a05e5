"""The certificate authorities that TLS connections trust."""

from __future__ import annotations

import os
import ssl
from typing import Final

import httpx

from omnigate._transport.problems import FULL
from omnigate._wire.checks import refusal

_VARIABLES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Environment variables that name authorities (OpenSSL's, requests', curl's); the first one set wins."""


def ssl_context(verify: bool | ssl.SSLContext) -> ssl.SSLContext:
    """Return the context for a `verify` argument; a context is returned as it is.

    True: the authorities that the environment names, else those of the package certifi. Takes about 20 ms.

    Raises:
        InvalidArgumentError: a variable of the environment names no readable certificates.
    """
    if isinstance(verify, ssl.SSLContext):
        return verify
    if verify:
        for variable in _VARIABLES:
            path = os.environ.get(variable)
            if path:
                return _from_environment(variable, path)
    return httpx.create_ssl_context(verify=verify, trust_env=False)


def _from_environment(variable: str, path: str) -> ssl.SSLContext:
    # OpenSSL ignores a missing directory; SSL_CERT_DIR may list several.
    if variable == "SSL_CERT_DIR":
        if not any(os.path.isdir(part) for part in path.split(os.pathsep)):
            raise refusal(variable, path, "name a directory of certificates, or be unset")
        return ssl.create_default_context(capath=path)
    if variable != "SSL_CERT_FILE" and os.path.isdir(path):  # requests allows this
        return ssl.create_default_context(capath=path)
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:  # an ssl.SSLError is one
        if error.errno in FULL:
            raise
        reason = error.strerror or str(error)
        must = "name a readable file of PEM certificates, or be unset"
        raise refusal(variable, path, must, hint=reason) from None
