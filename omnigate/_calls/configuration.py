"""What all calls of a client have in common, and the warning of a key sent in the clear.

It may be changed between calls, as with 0.1.0, and while other threads call.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from typing import Final, NamedTuple

import httpx

from omnigate._runtime.frames import level_of_caller
from omnigate._transport.messages import host_header, origin_of, request_head
from omnigate._version import __version__
from omnigate._wire.arguments import (
    USER_ID_HEADER,
    check_base_url,
    check_headers,
    check_key,
    check_user_id,
    is_loopback,
)
from omnigate._wire.endpoints import Endpoint
from omnigate._wire.redaction import mask, secrets_of


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


class Settings:
    """What all calls have in common, worked out once so that none of them has to.

    They are never changed but replaced as a whole: a call of another thread has all of the old ones or all of
    the new ones. Only templates are added, which are made of them alone.
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
            b"host": host_header(base_url),
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


class Configuration:
    """A client's settings, which may be replaced.

    Attributes:
        settings: the present ones; to be read once for each call.
    """

    def __init__(
        self,
        base_url: str,
        key_header: str,
        key: str | None,
        user_id: str | None,
        headers: Mapping[str, str] | None,
        *,
        warns: bool,
    ) -> None:
        """Begin.

        Args:
            base_url: the gateway's address.
            key_header: the header that the key is sent in.
            key: the key; None for none.
            user_id: the end user whom calls are attributed to; None or "" for none.
            headers: sent with every request.
            warns: whether a key that will be sent in the clear is warned of, once.

        Raises:
            InvalidArgumentError: an argument is not allowed.
        """
        self._key_header = key_header
        self._own_headers = check_headers(headers, "headers")
        self._has_warned = not warns
        self._lock = threading.RLock()  # a warning's handler may change the configuration, too
        self._key_argument = key_header.removeprefix("x-").replace("-", "_")  # what its errors name
        key, user_id = check_key(key, self._key_argument), check_user_id(user_id)
        self.settings: Settings
        self._replace(check_base_url(base_url), key, user_id)

    @property
    def base_url(self) -> str:
        """The gateway's address, without a trailing slash."""
        return self.settings.address

    @base_url.setter
    def base_url(self, value: str) -> None:
        url = check_base_url(value)
        with self._lock:
            self._replace(url, self.settings.key, self.settings.user_id)

    @property
    def key(self) -> str | None:
        """The key that is sent."""
        return self.settings.key

    @key.setter
    def key(self, value: str | None) -> None:
        key = check_key(value, self._key_argument)
        with self._lock:
            self._replace(self.settings.base_url, key, self.settings.user_id)

    @property
    def user_id(self) -> str | None:
        """The end user whom calls are attributed to, unless they say otherwise."""
        return self.settings.user_id

    @user_id.setter
    def user_id(self, value: str | None) -> None:
        user_id = check_user_id(value)
        with self._lock:
            self._replace(self.settings.base_url, self.settings.key, user_id)

    def _replace(self, base_url: httpx.URL, key: str | None, user_id: str | None) -> None:
        """Replace the settings, unless the warning of a key in the clear is an error."""
        settings = Settings(base_url, self._key_header, key, user_id, self._own_headers)
        if any(settings.secrets) and not self._has_warned:
            self._has_warned = warn_of_plaintext_key(base_url)
        self.settings = settings

    def __repr__(self) -> str:
        key = None if self.key is None else mask(self.key)
        return f"base_url={self.base_url!r}, api_key={key!r}"
