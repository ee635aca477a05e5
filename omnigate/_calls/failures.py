"""Turns what went wrong on the wire into the typed errors: responses, transport errors, stream messages."""

from __future__ import annotations

import contextlib
import http
import re
from datetime import datetime
from html.parser import HTMLParser
from typing import Any, Final, cast

import httpx
import msgspec

from omnigate._transport.carrier import Answer
from omnigate._transport.problems import is_permanent, reason_of, subject_of
from omnigate._wire.head import headers_of, parse_http_date, parse_retry_after, rate_limit_of
from omnigate._wire.redaction import redact, redact_cut
from omnigate.exceptions import (
    APIError,
    ConnectionError,
    InvalidResponseError,
    ProviderError,
    ProviderRateLimitError,
    TimeoutError,
    classify,
    normalise_detail,
    provider_of,
)

_TEXT_LENGTH: Final = 2_000

_EXCERPT_LENGTH: Final = 200

_READ_BYTES: Final = 65_536

_HTML = re.compile(r"\s*<(!doctype|html|head|body|!--)", re.IGNORECASE)

_SPACE = re.compile(r"\s+")

# Raised before a byte of the request was written.
_NOT_SENT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
)

_WAITED_FOR: Final[dict[type[httpx.TransportError], str]] = {
    httpx.ConnectTimeout: "connecting took longer than the timeout",
    httpx.ReadTimeout: "no bytes came within the timeout",
    httpx.WriteTimeout: "the request could not be written within the timeout",
    httpx.PoolTimeout: "no connection became free within the timeout",
}


def response_error(answer: Answer, *, secrets: tuple[str, ...] = (), show_body: bool = True) -> APIError:
    """Return the typed error for an error response.

    Args:
        answer: the response, with its body or the beginning of it.
        secrets: what must not appear in the error.
        show_body: whether anything of the body may.

    """
    status = answer.status
    headers = headers_of(answer.head)
    now: datetime | None = parse_http_date(headers.get("date"))
    raw, detail = _details(answer.body, secrets) if show_body else (None, None)
    # What came decides which error it is: a short key may look like a part of it. What is shown has no keys.
    error = classify(
        status,
        raw if normalise_detail(raw) else _status_text(status),
        retry_after=parse_retry_after(headers.get("retry-after"), now=now),
        request_id=headers.get("x-request-id"),
    )
    error.message = normalise_detail(detail) or _status_text(status)
    error.retry_after = parse_retry_after(headers.get("retry-after"), now=now)
    error.detail = detail
    if isinstance(error, ProviderError):
        error.provider = redact(error.provider, secrets)
    error.rate_limit = rate_limit_of(headers)
    if isinstance(detail, str) and _HTML.match(detail):
        error.message = f"{_status_text(status)}: {_text_of_html(detail)}"
    elif 300 <= status < 400 and detail is not None:
        error.message = f"{_status_text(status)}: {error.message}"
    error.args = (error.message,)
    return error


def excerpt(body: bytes, secrets: tuple[str, ...]) -> str:
    """Return the beginning of a body as an error may show it: as a repr, without keys."""
    if not body:
        return "nothing: it is empty"
    text = redact(body[:_READ_BYTES].decode("utf-8", "replace"), secrets)  # before a cut could halve a key
    return repr(text[:_EXCERPT_LENGTH])


def invalid_response(
    answer: Answer, problem: str, secrets: tuple[str, ...], *, show_body: bool
) -> InvalidResponseError:
    """Return the error for a body that is not what was promised, with its beginning."""
    start = excerpt(answer.body, secrets) if show_body else ""
    message = f"the response does not fit its type: {redact(problem, secrets)}"
    return InvalidResponseError(
        f"{message}; it starts with {start}" if start else message,
        status_code=answer.status,
        detail=start or None,
        request_id=headers_of(answer.head).get("x-request-id"),
    )


def connection_error(error: httpx.TransportError, base_url: str, attempts: int) -> ConnectionError:
    """Return the typed error for a transport's; whoever raises it chains the cause."""
    is_timeout = isinstance(error, httpx.TimeoutException)
    reason = str(redact(reason_of(error)))
    if is_timeout:
        reason = _WAITED_FOR.get(type(error), reason)
    kind = TimeoutError if is_timeout else ConnectionError
    subject = redact(subject_of(error)) or f"the gateway at {base_url}"
    failure = kind(f"Could not reach {subject} ({attempts_text(attempts)}): {reason}")
    failure.is_permanent = is_permanent(error)
    failure.reason = reason
    failure.attempts = attempts
    failure.was_sent = not isinstance(error, _NOT_SENT)
    return failure


def attempts_text(count: int) -> str:
    """Return "1 attempt", "2 attempts", …."""
    return f"{count} attempt{'' if count == 1 else 's'}"


def stream_error(message: str, *, request_id: str | None, secrets: tuple[str, ...] = ()) -> ProviderError:
    """Return the typed error for a failure that came inside a stream.

    Its `status_code` is 502, since the response's own says 200; the provider's, where the message tells
    it, is `provider_status`.
    """
    named = provider_of(message.strip()) or (None, None)
    kind = ProviderRateLimitError if named[1] == 429 else ProviderError
    text = redact_cut(message.strip(), secrets)
    error = kind(
        text or "the provider failed without a message (as it does when it times out)",
        status_code=502,
        detail=text,
        request_id=request_id,
    )
    error.provider, error.provider_status = redact(named[0], secrets), named[1]
    return error


def transient_status(message: str) -> int | None:
    """Return the HTTP status that a failure inside a stream would have had if it may pass, else None.

    A provider's 429 and 5xx, an unreachable provider, an open circuit, and no message at all (a provider
    that timed out).
    """
    message = message.strip()
    status = (provider_of(message) or (None, None))[1]
    if status is not None:
        return status if status == 429 or status >= 500 else None
    if not message or "request failed:" in message or "call failed:" in message:
        return 502
    return 503 if message.endswith("circuit is open") else None


def _details(body: bytes, secrets: tuple[str, ...]) -> tuple[Any, Any]:
    """Return the `detail` of a body as it came, and as it may be shown."""
    try:
        raw: Any = msgspec.json.decode(body)
        if isinstance(raw, dict):
            raw = cast("dict[str, Any]", raw).get("detail", cast("Any", raw))
        shown = redact(raw, secrets)
        normalise_detail(raw)
        normalise_detail(shown)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):  # too deep for any of these, perhaps
        text = body.decode("utf-8", "replace").strip()
        return text[:_TEXT_LENGTH] or None, redact_cut(text, secrets)[:_TEXT_LENGTH] or None
    return raw, shown


def _status_text(status: int) -> str:
    try:
        text = f"HTTP {status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        text = f"HTTP {status}"
    if 300 <= status < 400:
        text += " (redirects are not followed: set base_url to the final address)"
    return text


class _TextOfHtml(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.title = ""
        self.text = ""
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "title":
            self.title += data
        elif self._inside not in ("style", "script"):
            self.text += data


def _text_of_html(page: str) -> str:
    parser = _TextOfHtml()
    with contextlib.suppress(AssertionError):  # how the standard library's parser gives up on `<![x[`
        parser.feed(page)
    text = _SPACE.sub(" ", parser.title or parser.text).strip()
    return f"an HTML page, {text[:200]!r}" if text else "an HTML page"
