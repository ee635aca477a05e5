"""The settings shared by all calls of a client, and the warning about a key sent in the clear.

It may be changed between calls, as in 0.1.0, even while other threads make calls.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from typing import Final, NamedTuple

import httpx

from omnigate import _homes
from omnigate._runtime.frames import level_of_caller
from omnigate._transport.messages import host_header, origin_of, request_head
from omnigate._version import __version__
from omnigate._wire.arguments import (
    USER_ID_HEADER,
    base_url_or_environment,
    check_base_url,
    check_headers,
    check_key,
    check_user_id,
    is_loopback,
    key_from_environment,
    sets_key,
)
from omnigate._wire.endpoints import Endpoint
from omnigate._wire.redaction import mask, secrets_of
from omnigate._wire.values import Id


class PlaintextKeyWarning(UserWarning):
    """A key will be sent over plain `http://` to another machine, readable by anyone on the network path."""


def warn_of_plaintext_key(url: httpx.URL) -> bool:
    """Warn if traffic to `url` can be read on the network path, and return whether it can."""
    if url.scheme != "http" or is_loopback(url.host):
        return False
    warnings.warn(
        f"the key will be sent unencrypted to {url.host}: take an https:// address as base_url",
        PlaintextKeyWarning,
        stacklevel=level_of_caller(),
    )
    return True


class _Template(NamedTuple):
    """The parts that all calls of an endpoint share."""

    url: httpx.URL
    headers: dict[bytes, bytes]
    head: bytes

    def __repr__(self) -> str:
        return f"<_Template {self.url}>"


class Settings:
    """The settings all calls share, computed once.

    Immutable and replaced as a whole, so a call in another thread sees all of the old settings or all of the
    new ones. Only templates are added, which depend on nothing else.
    """

    __slots__ = (
        "_own_headers",
        "address",
        "base_url",
        "headers",
        "implied_key_header",
        "key",
        "origin",
        "secrets",
        "templates",
        "user_id",
    )

    def __init__(
        self,
        base_url: httpx.URL,
        key_header: str,
        key: str | None,
        user_id: str | None,
        own_headers: Mapping[bytes, bytes | None],
        *,
        is_implied: bool,
    ) -> None:
        """Compute the settings.

        Args:
            base_url: the gateway's address.
            key_header: the header that the key is sent in.
            key: the key.
            user_id: the end user.
            own_headers: headers set by the program; None leaves one out.
            is_implied: whether the key is from the environment, so that a call's own headers take precedence.
        """
        self.base_url: Final = base_url
        self.key: Final = key
        self.user_id: Final = user_id
        self.address: Final = str(base_url)
        self.origin: Final = origin_of(base_url)
        self._own_headers = own_headers
        headers: dict[bytes, bytes] = {
            b"host": host_header(base_url),
            b"user-agent": f"omnigate/{__version__}".encode("ascii"),
            b"accept": b"*/*",
            b"accept-encoding": b"identity",
        }
        replace_headers(headers, own_headers)
        raw_key_header = key_header.encode("ascii")
        if key:
            headers[raw_key_header] = key.encode("latin-1")
        self.implied_key_header: Final = raw_key_header if key and is_implied else None
        if user_id:
            headers[USER_ID_HEADER] = user_id.encode("latin-1")
        self.headers: Final = headers
        self.secrets: Final = secrets_of(headers)
        self.templates: Final[dict[Endpoint, _Template]] = {}

    def add_template(self, endpoint: Endpoint, *, has_body: bool) -> _Template:
        """Compute and keep the template for `endpoint`."""
        headers = self.headers
        if has_body and b"content-type" not in self._own_headers:
            headers = headers | {b"content-type": b"application/json"}
        url = httpx.URL(f"{self.address}{endpoint.path}")
        head = request_head(endpoint.method, url.raw_path, list(headers.items()))
        template = self.templates[endpoint] = _Template(url, headers, head)
        return template


def replace_headers(headers: dict[bytes, bytes], own: Mapping[bytes, bytes | None]) -> None:
    """Replace headers in place with the program's own; None removes one."""
    for name, value in own.items():
        if value is None:
            headers.pop(name, None)
        else:
            headers[name] = value


class Configuration:
    """A client's settings, which may be replaced.

    Attributes:
        settings: the current ones; read them once per call.
    """

    def __init__(
        self,
        base_url: str | None,
        key_header: str,
        key: str | None,
        user_id: Id | None,
        headers: Mapping[str, str | None] | None,
        *,
        warns: bool,
        key_variable: str | None = None,
    ) -> None:
        """Compute the first settings. Explicit arguments take precedence over the environment.

        Args:
            base_url: the gateway's address; None for the environment's, or the default.
            key_header: the header that the key is sent in.
            key: the key; None for the environment's, unless `headers` have one.
            user_id: the end user whom calls are attributed to; None or "" for none.
            headers: sent with every request; None for one that is not sent.
            warns: whether to warn, once, of a key sent unencrypted.
            key_variable: the environment variable of the key; None for no key from there.

        Raises:
            InvalidArgumentError: an argument is not allowed.
        """
        self._key_header = key_header
        self._own_headers = check_headers(headers, "headers")
        self._has_warned = not warns
        self._lock = threading.RLock()  # re-entrant: a warning's handler may change the configuration
        self._key_argument = key_header.removeprefix("x-").replace("-", "_")  # what its errors name
        checked_key, checked_user_id = check_key(key, self._key_argument), check_user_id(user_id)
        self._is_implied = False
        if (
            checked_key is None
            and key_variable
            and not sets_key(self._own_headers, key_header.encode("ascii"))
        ):
            checked_key = key_from_environment(key_variable)
            self._is_implied = True
        self.settings: Settings
        self._replace(base_url_or_environment(base_url), checked_key, checked_user_id)

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
            self._is_implied = False
            self._replace(self.settings.base_url, key, self.settings.user_id)

    @property
    def user_id(self) -> str | None:
        """The end user calls are attributed to, unless they name another."""
        return self.settings.user_id

    @user_id.setter
    def user_id(self, value: str | None) -> None:
        user_id = check_user_id(value)
        with self._lock:
            self._replace(self.settings.base_url, self.settings.key, user_id)

    def _replace(self, base_url: httpx.URL, key: str | None, user_id: str | None) -> None:
        """Replace the settings, unless the warning of a key in the clear is an error."""
        settings = Settings(
            base_url, self._key_header, key, user_id, self._own_headers, is_implied=self._is_implied
        )
        if any(settings.secrets) and not self._has_warned:
            self._has_warned = warn_of_plaintext_key(base_url)
        self.settings = settings

    def __repr__(self) -> str:
        key = None if self.key is None else mask(self.key)
        return f"base_url={self.base_url!r}, api_key={key!r}"


_homes.settle(__name__)
