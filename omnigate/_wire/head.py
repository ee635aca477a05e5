"""`Meta`: the metadata of a call, from the headers of its response.

Headers are parsed when an attribute is first read, since most calls never read any. A missing or malformed
header reads as None: a misbehaving proxy must never make a good response fail.
"""

from __future__ import annotations

import email.utils
import math
import re
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Final, TypeAlias

import httpx

from omnigate import _homes
from omnigate._limits import Budget, RateLimit

Head: TypeAlias = httpx.Headers | bytes
"""The head of a response: its headers, or all of it as it came."""


class Meta:
    """Metadata of a call.

    Attributes:
        status_code: the HTTP status.
        attempts: how many times the request was sent, including the successful attempt.
        elapsed: seconds from the start of the call to its end (for a stream: to its response head),
            including waits between attempts.

    """

    __slots__ = ("_headers", "attempts", "elapsed", "status_code")

    def __init__(self, status_code: int, headers: Head, attempts: int, elapsed: float) -> None:
        self.status_code: int = status_code
        self.attempts: int = attempts
        self.elapsed: float = elapsed
        self._headers = headers

    @property
    def headers(self) -> httpx.Headers:
        """All headers of the response."""
        headers = self._headers = headers_of(self._headers)
        return headers

    @property
    def request_id(self) -> str | None:
        """The gateway's id for the call; quote it in support requests."""
        return self._text("x-request-id")

    @property
    def rate_limit(self) -> RateLimit | None:
        """The state of the rate limit, or None if the response had no rate-limit headers."""
        return rate_limit_of(self._headers)

    @property
    def budget(self) -> Budget | None:
        """The state of the budgets, or None if the response had no budget headers."""
        names = (f"x-budget-{field.replace('_', '-')}" for field in Budget._fields)
        values = [self._decimal(name) for name in names]
        return None if all(value is None for value in values) else Budget(*values)

    @property
    def provider(self) -> str | None:
        """The provider that answered."""
        return self._text("x-llmgw-provider")

    @property
    def model(self) -> str | None:
        """The model that answered; after a fallback not the one requested."""
        return self._text("x-llmgw-model")

    @property
    def cached(self) -> bool | None:
        """Whether the answer came from the gateway's cache."""
        return _BOOLEANS.get(self.headers.get("x-llmgw-cached", "").lower())

    @property
    def fallback(self) -> bool | None:
        """Whether one of `fallback_models` answered."""
        return _BOOLEANS.get(self.headers.get("x-llmgw-fallback", "").lower())

    def _text(self, name: str) -> str | None:
        value: str | None = self.headers.get(name)
        return value

    def _decimal(self, name: str) -> Decimal | None:
        text = self.headers.get(name, "")
        if len(text) > _LONGEST_VALUE:
            return None
        try:
            value = Decimal(text)
        except InvalidOperation:
            return None
        return value if value.is_finite() else None

    def __repr__(self) -> str:
        shown = ("request_id", "rate_limit", "budget", "provider", "model", "cached", "fallback")
        known = [(name, getattr(self, name)) for name in (*shown, "attempts", "elapsed")]
        return f"Meta({', '.join(f'{name}={value!r}' for name, value in known if value is not None)})"


_BOOLEANS = {"true": True, "false": False}

_RATE_LIMIT = re.compile(rb"\r\nx-ratelimit-(limit|remaining|reset):[ \t]*(\d{1,18})[ \t]*(?![^\r])")

_USUAL_RATE_LIMIT = re.compile(
    rb"\r\nx-ratelimit-limit: (\d{1,18})\r\nx-ratelimit-remaining: (\d{1,18})"
    rb"\r\nx-ratelimit-reset: (\d{1,18})\r"
)
"""The form in which the gateway itself sends them: matching it is twice as fast."""


def rate_limit_of(headers: Head) -> RateLimit | None:
    """Return the rate limit from headers, or from a raw head; None if there is none."""
    if not isinstance(headers, bytes):
        headers = b"".join(b"\r\n%b: %b" % pair for pair in headers.raw)
    if usual := _USUAL_RATE_LIMIT.search(headers):
        limit, remaining, reset = usual.groups()
        return RateLimit(int(limit), int(remaining), int(reset))
    found = dict(_RATE_LIMIT.findall(headers.lower()))
    if not found:
        return None
    limit, remaining, reset = found.get(b"limit"), found.get(b"remaining"), found.get(b"reset")
    return RateLimit(limit and int(limit), remaining and int(remaining), reset and int(reset))


_LONGEST_VALUE: Final = 128
"""More characters than any number or date of a header has."""

_SECONDS = re.compile(r"[0-9]+(\.[0-9]*)?\Z")

_ABSURD_SECONDS: Final = 366 * 86_400.0


def parse_retry_after(value: str | None, *, now: datetime | None = None) -> float | None:
    """Return the wait in seconds from a `Retry-After` header, or None if it has no usable value.

    RFC 9110, section 10.2.3: an integer or an HTTP-date; proxies send fractions, too. A date in the past
    is 0. Values that are malformed, not finite, negative or longer than a year are ignored.

    Args:
        value: the header.
        now: what a date is measured against: the server's `Date` if sent (so that the clocks need not
            agree), otherwise the current time.

    """
    text = (value or "").strip()
    if not text or len(text) > _LONGEST_VALUE:
        return None
    seconds = float(text) if _SECONDS.match(text) else _seconds_until(text, now or datetime.now(UTC))
    return seconds if 0 <= seconds <= _ABSURD_SECONDS else None


def parse_http_date(value: str | None) -> datetime | None:
    """Parse an HTTP-date (RFC 9110, section 5.6.7) to a UTC time; None if malformed."""
    if value is None or len(value) > _LONGEST_VALUE:
        return None
    try:
        moment = email.utils.parsedate_to_datetime(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    except (ValueError, OverflowError):
        return None


def _seconds_until(text: str, now: datetime) -> float:
    moment = parse_http_date(text)
    return math.nan if moment is None else max(0.0, (moment - now).total_seconds())


def header_list(head: bytes) -> list[tuple[bytes, bytes]]:
    """Return the headers in a raw head, without its first line."""
    lines = head.split(b"\r\n")
    pairs = (line.partition(b":") for line in lines[1:] if line)
    return [(name, value.strip(b" \t")) for name, _, value in pairs]


def headers_of(head: Head) -> httpx.Headers:
    """Return the headers of a head."""
    return httpx.Headers(header_list(head)) if isinstance(head, bytes) else head


_homes.settle(__name__)
