"""Checks for arguments that are not struct fields: addresses, headers, times, path segments.

An error names the argument, its value (never a key) and what is allowed. Nothing is sent.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final, TypeAlias, cast
from urllib.parse import quote
from uuid import UUID

import httpx

from omnigate._wire.checks import check_choice, check_number, check_text
from omnigate._wire.redaction import SECRET_HEADERS, shown
from omnigate.exceptions import InvalidArgumentError, InvalidArgumentTypeError

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
        raise InvalidArgumentError("range is not allowed together with start and end: one or the other")
    if end is not None and start is None:
        raise InvalidArgumentError("end is not allowed without start")
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


def is_loopback(host: str) -> bool:
    """Return whether `host` is loopback: localhost (RFC 6761, section 6.3), 127.0.0.0/8 or ::1."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


USER_ID_HEADER: Final = b"x-user-id"

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110, section 5.6.2

_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*\Z")  # RFC 9110, section 5.5

_HOST = re.compile(rb"[A-Za-z0-9._-]+\Z")

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_FRAMING: Final = frozenset({"connection", "content-length", "te", "transfer-encoding", "upgrade"})

_USER_ID_LENGTH: Final = 255

_OFFSET = re.compile(r"(Z|[+-]\d\d:?\d\d)\Z", re.IGNORECASE)


def check_base_url(value: Any) -> httpx.URL:
    """Return `base_url` as a URL without a trailing slash."""
    allowed = "http(s)://host[:port][/prefix], without user, query and fragment"
    if not isinstance(value, str | httpx.URL):
        raise InvalidArgumentTypeError(f"base_url={shown(value)} is not allowed: {allowed}")
    try:
        url = httpx.URL(str(value).rstrip("/"))
        _ = url.host  # may raise: it decodes lazily
    except (httpx.InvalidURL, UnicodeError) as error:
        raise InvalidArgumentError(
            f"base_url={shown(str(value))} is not allowed ({error}): {allowed}"
        ) from None
    if url.userinfo:  # may hold a password, so it is not shown
        raise InvalidArgumentError(f"base_url with a user or password is not allowed: {allowed}")
    labels = url.raw_host.removesuffix(b".").split(b".")  # RFC 1035, section 2.3.4
    is_name = _HOST.match(url.raw_host) and all(0 < len(label) < 64 for label in labels)
    is_address = is_name or b":" in url.raw_host  # IPv6, already validated by httpx
    if url.scheme not in ("http", "https") or not is_address or (url.port or 0) > 65_535:
        raise InvalidArgumentError(f"base_url={shown(str(value))} is not allowed: {allowed}")
    if "?" in str(url) or "#" in str(url):  # even if empty: paths appended after it would be lost
        raise InvalidArgumentError(f"base_url={shown(str(value))} is not allowed: {allowed}")
    return url


def check_header(name: Any, value: Any, where: str, *, secret: bool = False) -> tuple[bytes, bytes]:
    """Return a header encoded as it is sent.

    Args:
        name: the header's name.
        value: its value.
        where: the argument it came from.
        secret: whether the value must be kept out of errors.

    """
    if not isinstance(name, str) or not isinstance(value, str):
        culprit = name if not isinstance(name, str) else value
        what = f"of type {type(culprit).__name__}" if secret else shown(culprit)
        raise InvalidArgumentTypeError(f"{where} {what} is not allowed: header names and values are text")
    if not _TOKEN.match(name):
        raise InvalidArgumentError(
            f"{where} header name {shown(name)} is not allowed: letters, digits and -_."
        )
    if not _FIELD_VALUE.match(value):
        text = "with a line break or the like" if secret else f"{name}: {shown(value)}"
        raise InvalidArgumentError(
            f"{where} {text} is not allowed: Latin-1 without line breaks and control characters"
        )
    return name.lower().encode("ascii"), value.strip(" \t").encode("latin-1")


def check_headers(headers: Any, where: str) -> dict[bytes, bytes]:
    """Return `headers` encoded as they are sent, keyed by lower-case name."""
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise InvalidArgumentTypeError(f"{where}={shown(headers)} is not allowed: a dict of names and values")
    checked: dict[bytes, bytes] = {}
    for name, value in cast("Mapping[Any, Any]", headers).items():
        secret = isinstance(name, str) and name.lower().encode("latin-1", "replace") in SECRET_HEADERS
        raw_name, raw_value = check_header(name, value, where, secret=secret)
        if raw_name.decode() in _FRAMING:
            raise InvalidArgumentError(f"{where} {name!r} is not allowed: the client itself sets that header")
        if raw_name == USER_ID_HEADER:
            check_user_id(value, f"{where} {name}")
        checked[raw_name] = raw_value
    return checked


def check_key(value: Any, argument: str) -> str | None:
    """Return an API key, checked to be a valid header value."""
    if value is None:
        return None
    check_header("x-api-key", value, argument, secret=True)
    return str(value).strip(" \t")  # as `check_header` strips it


def check_user_id(value: Any, argument: str = "user_id") -> str | None:
    """Return a user id of valid length.

    The gateway fails on longer ones after billing the call (docs/protocol.md, "Headers").
    """
    if value is None:
        return None
    allowed = f"Latin-1 text of at most {_USER_ID_LENGTH} characters without line breaks"
    if not isinstance(value, str):
        raise InvalidArgumentTypeError(f"{argument}={shown(value)} is not allowed: {allowed}")
    if len(value) > _USER_ID_LENGTH or not _FIELD_VALUE.match(value):
        raise InvalidArgumentError(f"{argument}={shown(value)} is not allowed: {allowed}")
    return value


def check_timeout(value: Any) -> dict[str, float | None]:
    """Return a timeout in the form of httpx's request extension."""
    if isinstance(value, httpx.Timeout):
        parts = value.as_dict()
        for name, seconds in parts.items():
            if seconds is not None:
                check_number(seconds, f"timeout.{name}", "seconds above 0, or None", above=0)
        return parts
    if value is not None:
        check_number(value, "timeout", "seconds above 0, an httpx.Timeout, or None", above=0)
    return httpx.Timeout(value).as_dict()


def check_id(value: Any, argument: str) -> str:
    """Return an id, given as text or a UUID, as text."""
    text = str(value) if isinstance(value, UUID) else value
    if not isinstance(text, str):
        raise InvalidArgumentTypeError(
            f"{argument}={shown(value)} is not allowed: an id as the gateway gives it, text or a UUID"
        )
    check_text(text, argument)
    return _encodable(text, argument)


def check_segment(value: Any, argument: str, *, slashes: bool = False) -> str:
    """Return an id percent-encoded as a URL path segment, without any way to traverse the path."""
    text = _encodable(check_text(value, argument), argument)
    parts = text.split("/") if slashes else [text]
    if any(part in ("", ".", "..") for part in parts) or _CONTROL.search(text):
        raise InvalidArgumentError(f"{argument}={shown(value)} is not allowed: an id as the gateway gives it")
    return quote(text, safe="/" if slashes else "")


def _encodable(text: str, argument: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(
            f"{argument}={shown(text)} is not allowed: text that UTF-8 can encode"
        ) from None
    return text


def check_moment(value: Any, argument: str) -> str:
    """Return a time, given as an aware datetime or ISO-8601 text with an offset, as ISO-8601 text."""
    allowed = "a datetime with a time zone, or ISO-8601 text with an offset"
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise InvalidArgumentError(f"{argument}={value!r} is not allowed: {allowed}")
        return value.isoformat()
    if not isinstance(value, str):
        raise InvalidArgumentTypeError(f"{argument}={shown(value)} is not allowed: {allowed}")
    try:
        datetime.fromisoformat(value)
    except ValueError:
        raise InvalidArgumentError(f"{argument}={shown(value)} is not allowed: {allowed}") from None
    if not _OFFSET.search(value):
        raise InvalidArgumentError(f"{argument}={shown(value)} is not allowed: {allowed}")
    return value


def check_budget(value: Any, argument: str) -> int | float | str:
    """Return a budget in USD; 0 means unlimited."""
    allowed = "USD, a finite number of at least 0 (0: none)"
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        raise InvalidArgumentTypeError(f"{argument}={shown(value)} is not allowed: {allowed}")
    try:
        amount = Decimal(value)
    except InvalidOperation:
        raise InvalidArgumentError(f"{argument}={shown(value)} is not allowed: {allowed}") from None
    if not amount.is_finite() or amount < 0:
        raise InvalidArgumentError(f"{argument}={shown(value)} is not allowed: {allowed}")
    return value if isinstance(value, int | float) else str(amount)
