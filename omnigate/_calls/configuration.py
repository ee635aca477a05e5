"""What all calls of a client have in common, worked out once, and the warning of a key sent in the clear."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Final, NamedTuple

import httpx

from omnigate._runtime.frames import level_of_caller
from omnigate._transport.messages import origin_of, request_head
from omnigate._version import __version__
from omnigate._wire.arguments import USER_ID_HEADER, is_loopback
from omnigate._wire.endpoints import Endpoint
from omnigate._wire.redaction import secrets_of


class PlaintextKeyWarning(UserWarning):
    """A key will be sent over plain `http://` to a host that is not this one, readable to all on the way."""


def warn_of_plaintext_key(url: httpx.URL) -> bool:
    """Warn if what is sent to `url` can be read on the way, and return whether it can."""
    if url.scheme != "http" or is_loopback(url.host):
        return False
    warnings.warn(
        f"the key will be sent unencrypted to {url.host}: take an https:// address as base_url",
        PlaintextKeyWarning,
        stacklevel=level_of_caller(),
    )
    return True


class _Template(NamedTuple):
    """What all calls of an endpoint have in common."""

    url: httpx.URL
    headers: dict[bytes, bytes]
    head: bytes

    def __repr__(self) -> str:
        return f"<_Template {self.url}>"


class Configuration:
    """What all calls have in common, worked out once so that none of them has to.

    It is never changed but replaced as a whole: a call of another thread has all of the old one or all of the
    new one. Only templates are added, which are made of it alone.
    """

    __slots__ = ("address", "base_url", "headers", "key", "origin", "secrets", "templates", "user_id")

    def __init__(
        self,
        base_url: httpx.URL,
        key_header: str,
        key: str | None,
        user_id: str | None,
        own_headers: Mapping[bytes, bytes],
    ) -> None:
        self.base_url: Final = base_url
        self.key: Final = key
        self.user_id: Final = user_id
        self.address: Final = str(base_url)
        self.origin: Final = origin_of(base_url)
        headers = {
            b"host": base_url.netloc,
            b"user-agent": f"omnigate/{__version__}".encode("ascii"),
            b"accept": b"*/*",
            b"accept-encoding": b"identity",
            **own_headers,
        }
        if key:
            headers[key_header.encode("ascii")] = key.encode("latin-1")
        if user_id:
            headers[USER_ID_HEADER] = user_id.encode("latin-1")
        self.headers: Final = headers
        self.secrets: Final = secrets_of(headers)
        self.templates: Final[dict[Endpoint, _Template]] = {}

    def add_template(self, endpoint: Endpoint, *, has_body: bool) -> _Template:
        """Keep what all calls of `endpoint` have in common, and return it."""
        headers = self.headers | {b"content-type": b"application/json"} if has_body else self.headers
        url = httpx.URL(f"{self.address}{endpoint.path}")
        head = request_head(endpoint.method, url.raw_path, list(headers.items()))
        template = self.templates[endpoint] = _Template(url, headers, head)
        return template
