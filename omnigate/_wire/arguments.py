"""Checks for arguments that are not struct fields: addresses, headers, times, path segments.

An error names the argument, what must hold and what was given (never a key). Nothing is sent.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final, TypeAlias, cast
from urllib.parse import quote

import httpx

from omnigate._wire.checks import BE_ENCODABLE, Range, check_choice, check_seconds, check_text, refusal
from omnigate._wire.redaction import SECRET_HEADERS, shown
from omnigate._wire.values import Number, scalar, text_of_id

DEFAULT_BASE_URL: Final = "http://localhost:8000"

_RANGES: Final = ("1h", "24h", "7d", "30d")

_GROUPS: Final = ("provider", "model", "user", "status")

_GRANULARITIES: Final = ("minute", "hour", "day")

Timeout: TypeAlias = Number | httpx.Timeout | None
"""Seconds for each of connect, write, read and waiting for a pooled connection; None for no limit."""


def base_url_or_environment(base_url: Any) -> httpx.URL:
    """Return the gateway's address: the argument, else `$OMNIGATE_BASE_URL`, else the default."""
    if base_url is not None:
        return check_base_url(base_url)
    value = os.environ.get("OMNIGATE_BASE_URL")
    return check_base_url(value, "$OMNIGATE_BASE_URL") if value else check_base_url(DEFAULT_BASE_URL)


def key_from_environment(variable: str) -> str | None:
    """Return the key in an environment variable."""
    return check_key(os.environ.get(variable), f"${variable}")


def sets_key(headers: Mapping[bytes, bytes | None], key_header: bytes) -> bool:
    """Return whether a program's own headers set the key, or leave it out explicitly.

    `Authorization: Bearer` is another way to send a gateway key, in place of `x-api-key`. Its other schemes
    are for proxies.
    """
    if key_header in headers:
        return True
    scheme = (headers.get(b"authorization") or b"").partition(b" ")[0]
    return key_header == KEY_HEADER and scheme.lower() == b"bearer"


def metrics_query(
    range: str | None,
    start: datetime | str | None,
    end: datetime | str | None,
    group_by: str | None,
    granularity: str | None,
) -> dict[str, str]:
    """Return the query parameters for a metrics endpoint (docs/protocol.md, "Metrics and health")."""
    query: dict[str, str] = {}
    if range is not None and (start is not None or end is not None):
        raise refusal("range", range, "not be given together with start or end")
    if end is not None and start is None:
        raise refusal("end", end, "be given together with start")
    if start is not None:
        query["from"] = check_moment(start, "start")
        if end is not None:
            query["to"] = check_moment(end, "end")
    else:
        query["range"] = "24h" if range is None else check_choice(range, "range", _RANGES)
    if group_by is not None:
        query["group_by"] = check_choice(group_by, "group_by", _GROUPS)
    if granularity is not None:
        query["granularity"] = check_choice(granularity, "granularity", _GRANULARITIES)
    return query


def address_of(
    host: str, *, is_url_host: bool = True
) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address that `host` is, without its zone, or None if it is a name.

    Args:
        host: the host of a URL, without brackets.
        is_url_host: whether it will be connected to: then the short and the hexadecimal forms of IPv4 count
            ("127.1"), which the system understands as well.
    """
    text = host.partition("%")[0].rstrip(".")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        if not is_url_host or not _NUMERIC.match(text):
            return None
        try:
            return ipaddress.IPv4Address(socket.inet_aton(text))
        except OSError:
            return None
    return (address.ipv4_mapped if address.version == 6 else None) or address


def is_loopback(host: str) -> bool:
    """Return whether `host` is loopback: localhost (RFC 6761, section 6.3), 127.0.0.0/8 or ::1."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = address_of(name)
    return address is not None and address.is_loopback


KEY_HEADER: Final = b"x-api-key"

_BEARER_HEADER: Final = b"authorization"

USER_ID_HEADER: Final = b"x-user-id"

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110, section 5.6.2

_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*\Z")  # RFC 9110, section 5.5

_NUMERIC = re.compile(r"[0-9a-fx.]+\Z")

_HOST = re.compile(rb"[A-Za-z0-9._-]+\Z")

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_FRAMING: Final = frozenset({"connection", "content-length", "te", "transfer-encoding", "upgrade"})

_USER_ID_LENGTH: Final = 255

_BE_ID: Final = "be an id as the gateway gives it"

_USD: Final = Range(minimum=0, unit="USD")

_OFFSET = re.compile(r"(Z|[+-]\d\d:?\d\d)\Z", re.IGNORECASE)


def check_base_url(value: Any, argument: str = "base_url") -> httpx.URL:
    """Return the gateway's address as a URL without a trailing slash."""
    must = "be http(s)://host[:port][/prefix] without user, query and fragment"
    given = scalar(value)
    if not isinstance(given, str | httpx.URL):
        raise refusal(argument, value, must, is_type=True)
    value = str(given)
    try:
        url = httpx.URL(value.rstrip("/"))
        _ = url.host  # may raise: it decodes lazily
    except (httpx.InvalidURL, UnicodeError) as error:
        raise refusal(argument, value, must, hint=str(error)) from None
    if url.userinfo:  # may be a password: not shown
        raise refusal(argument, None, must, got="one with a user or password")
    labels = url.raw_host.removesuffix(b".").split(b".")  # RFC 1035, section 2.3.4
    is_name = _HOST.match(url.raw_host) and all(0 < len(label) < 64 for label in labels)
    is_address = is_name or b":" in url.raw_host  # IPv6, already validated by httpx
    if url.scheme not in ("http", "https") or not is_address or (url.port or 0) > 65_535:
        raise refusal(argument, value, must)
    if "?" in str(url) or "#" in str(url):  # also empty ones, behind which the paths would be lost
        raise refusal(argument, value, must)
    return url


def check_headers(headers: Any, argument: str) -> dict[bytes, bytes | None]:
    """Return `headers` encoded as they are sent, keyed by lower-case name; None for one that is not sent."""
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise refusal(argument, headers, "be a dict of names and values", is_type=True)
    checked: dict[bytes, bytes | None] = {}
    for given, value in cast("Mapping[Any, Any]", headers).items():
        name = scalar(given)
        if not isinstance(name, str):
            raise refusal(argument, name, "have text as names", is_type=True)
        if not _TOKEN.match(name):
            raise refusal(argument, name, "have names of letters, digits and -_.")
        raw_name = name.lower().encode("ascii")
        if raw_name.decode() in _FRAMING:
            raise refusal(argument, name, "leave out the headers that the client itself sets")
        where = f"{argument}[{shown(name)}]"
        if value is None and raw_name == b"host":
            raise refusal(where, value, "be text: HTTP/1.1 requires it")
        if value is None:
            checked[raw_name] = None
            continue
        checked[raw_name] = _header_value(value, where, secret=raw_name in SECRET_HEADERS)
        if raw_name == USER_ID_HEADER:
            check_user_id(value, where)
    return checked


def _header_value(value: Any, argument: str, *, secret: bool) -> bytes:
    """Return a header's value as the bytes that are sent; a secret is not shown."""
    must = "be Latin-1 text without line breaks and control characters"
    text = scalar(value)
    if not isinstance(text, str):
        raise refusal(argument, value, must, is_type=True, secret=secret)
    if not _FIELD_VALUE.match(text):
        raise refusal(argument, value, must, secret=secret)
    return text.strip(" \t").encode("latin-1")


def check_key(value: Any, argument: str) -> str | None:
    """Return an API key, checked to be a valid header value."""
    if value is None:
        return None
    return _header_value(value, argument, secret=True).decode("latin-1")


def check_user_id(value: Any, argument: str = "user_id") -> str | None:
    """Return a user id, given as text or a UUID, as text of valid length.

    The gateway fails on longer ones after billing the call (docs/protocol.md, "Headers").
    """
    if value is None:
        return None
    must = f"be Latin-1 text of at most {_USER_ID_LENGTH} characters without line breaks"
    text = text_of_id(value)
    if not isinstance(text, str):
        raise refusal(argument, value, must, is_type=True)
    if len(text) > _USER_ID_LENGTH or not _FIELD_VALUE.match(text):
        raise refusal(argument, value, must)
    return text


def check_timeout(value: Any) -> dict[str, float | None]:
    """Return a timeout in the form of httpx's request extension."""
    if isinstance(value, httpx.Timeout):
        return {
            name: None
            if seconds is None
            else check_seconds(seconds, f"timeout.{name}", otherwise=", or None")
            for name, seconds in value.as_dict().items()
        }
    if value is not None:
        value = check_seconds(value, "timeout", otherwise=", an httpx.Timeout, or None")
    return httpx.Timeout(value).as_dict()


def check_id(value: Any, argument: str) -> str:
    """Return an id, given as text or a UUID, as text."""
    text = text_of_id(value)
    if not isinstance(text, str):
        raise refusal(argument, value, f"{_BE_ID}, text or a UUID", is_type=True)
    return _encodable(check_text(text, argument), argument)


def check_segment(value: Any, argument: str, *, slashes: bool = False) -> str:
    """Return an id percent-encoded as a URL path segment, without any way to traverse the path."""
    text = _encodable(check_text(value, argument), argument)
    parts = text.split("/") if slashes else [text]
    if any(part in ("", ".", "..") for part in parts) or _CONTROL.search(text):
        raise refusal(argument, value, _BE_ID)
    return quote(text, safe="/" if slashes else "")


def _encodable(text: str, argument: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise refusal(argument, text, BE_ENCODABLE) from None
    return text


def check_moment(value: Any, argument: str) -> str:
    """Return a time, given as an aware datetime or ISO-8601 text with an offset, as ISO-8601 text."""
    must = "be a datetime with a time zone, or ISO-8601 text with an offset"
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise refusal(argument, value, must)
        return value.isoformat()
    text = scalar(value)
    if not isinstance(text, str):
        raise refusal(argument, value, must, is_type=True)
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise refusal(argument, value, must) from None
    if not _OFFSET.search(text):
        raise refusal(argument, value, must)
    return text


def check_budget(value: Any, argument: str) -> int | float | str:
    """Return a budget in USD; 0 means unlimited."""
    must = f"be {_USD} (0 for no limit)"
    given = value if isinstance(value, Decimal) else scalar(value)
    if isinstance(given, bool) or not isinstance(given, int | float | Decimal | str):
        raise refusal(argument, value, must, is_type=True)
    try:
        amount = Decimal(given)
    except InvalidOperation:
        raise refusal(argument, value, must) from None
    if not amount.is_finite() or amount not in _USD:
        raise refusal(argument, value, must)
    return given if isinstance(given, int | float) else str(amount)


def key_in(headers: Mapping[bytes, bytes]) -> bytes:
    """Return what identifies the gateway key in a request's headers; empty if there is none."""
    return headers.get(KEY_HEADER) or headers.get(_BEARER_HEADER) or b""
