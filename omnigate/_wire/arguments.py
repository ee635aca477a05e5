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
from uuid import UUID

import httpx

from omnigate._wire.checks import BE_ENCODABLE, Range, check_choice, check_seconds, check_text, refusal
from omnigate._wire.redaction import SECRET_HEADERS, shown

_DEFAULT_BASE_URL: Final = "http://localhost:8000"

_RANGES: Final = ("1h", "24h", "7d", "30d")

_GROUPS: Final = ("provider", "model", "user", "status")

_GRANULARITIES: Final = ("minute", "hour", "day")

Timeout: TypeAlias = float | httpx.Timeout | None
"""Seconds for each of connect, write, read and waiting for a pooled connection; None for no limit."""


def environment_base_url(base_url: str | None) -> str:
    """Return the gateway's address: the argument, else `$OMNIGATE_BASE_URL`, else the default."""
    return (os.environ.get("OMNIGATE_BASE_URL") or _DEFAULT_BASE_URL) if base_url is None else base_url


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


def check_base_url(value: Any) -> httpx.URL:
    """Return `base_url` as a URL without a trailing slash."""
    must = "be http(s)://host[:port][/prefix] without user, query and fragment"
    if not isinstance(value, str | httpx.URL):
        raise refusal("base_url", value, must, is_type=True)
    try:
        url = httpx.URL(str(value).rstrip("/"))
        _ = url.host  # may raise: it decodes lazily
    except (httpx.InvalidURL, UnicodeError) as error:
        raise refusal("base_url", str(value), must, hint=str(error)) from None
    if url.userinfo:  # may be a password: not shown
        raise refusal("base_url", None, must, got="one with a user or password")
    labels = url.raw_host.removesuffix(b".").split(b".")  # RFC 1035, section 2.3.4
    is_name = _HOST.match(url.raw_host) and all(0 < len(label) < 64 for label in labels)
    is_address = is_name or b":" in url.raw_host  # IPv6, already validated by httpx
    if url.scheme not in ("http", "https") or not is_address or (url.port or 0) > 65_535:
        raise refusal("base_url", str(value), must)
    if "?" in str(url) or "#" in str(url):  # also empty ones, behind which the paths would be lost
        raise refusal("base_url", str(value), must)
    return url


def check_headers(headers: Any, argument: str) -> dict[bytes, bytes]:
    """Return `headers` encoded as they are sent, keyed by lower-case name."""
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise refusal(argument, headers, "be a dict of names and values", is_type=True)
    checked: dict[bytes, bytes] = {}
    for name, value in cast("Mapping[Any, Any]", headers).items():
        if not isinstance(name, str):
            raise refusal(argument, name, "have text as names", is_type=True)
        if not _TOKEN.match(name):
            raise refusal(argument, name, "have names of letters, digits and -_.")
        raw_name = name.lower().encode("ascii")
        if raw_name.decode() in _FRAMING:
            raise refusal(argument, name, "leave out the headers that the client itself sets")
        where = f"{argument}[{shown(name)}]"
        checked[raw_name] = _header_value(value, where, secret=raw_name in SECRET_HEADERS)
        if raw_name == USER_ID_HEADER:
            check_user_id(value, where)
    return checked


def _header_value(value: Any, argument: str, *, secret: bool) -> bytes:
    """Return a header's value as the bytes that are sent; a secret is not shown."""
    must = "be Latin-1 text without line breaks and control characters"
    if not isinstance(value, str):
        raise refusal(argument, value, must, is_type=True, secret=secret)
    if not _FIELD_VALUE.match(value):
        raise refusal(argument, value, must, secret=secret)
    return value.strip(" \t").encode("latin-1")


def check_key(value: Any, argument: str) -> str | None:
    """Return an API key, checked to be a valid header value."""
    if value is None:
        return None
    return _header_value(value, argument, secret=True).decode("latin-1")


def check_user_id(value: Any, argument: str = "user_id") -> str | None:
    """Return a user id of valid length.

    The gateway fails on longer ones after billing the call (docs/protocol.md, "Headers").
    """
    if value is None:
        return None
    must = f"be Latin-1 text of at most {_USER_ID_LENGTH} characters without line breaks"
    if not isinstance(value, str):
        raise refusal(argument, value, must, is_type=True)
    if len(value) > _USER_ID_LENGTH or not _FIELD_VALUE.match(value):
        raise refusal(argument, value, must)
    return value


def check_timeout(value: Any) -> dict[str, float | None]:
    """Return a timeout in the form of httpx's request extension."""
    if isinstance(value, httpx.Timeout):
        parts = value.as_dict()
        for name, seconds in parts.items():
            if seconds is not None:
                check_seconds(seconds, f"timeout.{name}", otherwise=", or None")
        return parts
    if value is not None:
        check_seconds(value, "timeout", otherwise=", an httpx.Timeout, or None")
    return httpx.Timeout(value).as_dict()


def check_id(value: Any, argument: str) -> str:
    """Return an id, given as text or a UUID, as text."""
    text = str(value) if isinstance(value, UUID) else value
    if not isinstance(text, str):
        raise refusal(argument, value, f"{_BE_ID}, text or a UUID", is_type=True)
    check_text(text, argument)
    return _encodable(text, argument)


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
    if not isinstance(value, str):
        raise refusal(argument, value, must, is_type=True)
    try:
        datetime.fromisoformat(value)
    except ValueError:
        raise refusal(argument, value, must) from None
    if not _OFFSET.search(value):
        raise refusal(argument, value, must)
    return value


def check_budget(value: Any, argument: str) -> int | float | str:
    """Return a budget in USD; 0 means unlimited."""
    must = f"be {_USD} (0 for no limit)"
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        raise refusal(argument, value, must, is_type=True)
    try:
        amount = Decimal(value)
    except InvalidOperation:
        raise refusal(argument, value, must) from None
    if not amount.is_finite() or amount not in _USD:
        raise refusal(argument, value, must)
    return value if isinstance(value, int | float) else str(amount)
