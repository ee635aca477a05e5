"""The typed errors for error responses, transport errors and messages inside a stream."""

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
from omnigate._wire.arguments import DEFAULT_BASE_URL
from omnigate._wire.head import headers_of, parse_http_date, parse_retry_after, rate_limit_of
from omnigate._wire.redaction import one_line, printable, redact, redact_cut
from omnigate._wire.structs import decode
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

_PAGE_LENGTH: Final = 16_384
"""Characters of an HTML page that are parsed: its title is near the start, and parsers of HTML backtrack."""

_HTML = re.compile(r"\s*<(!doctype|html|head|body|!--)", re.IGNORECASE)

_SPACE = re.compile(r"\s+")

_ADDED_PATH: Final = "/v1"

# Raised before a byte of the request was written.
_NOT_SENT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
)

_FAILED: Final[dict[tuple[type[httpx.TransportError], ...], str]] = {
    (httpx.ConnectError, httpx.ConnectTimeout): "Could not reach the gateway at {}",
    (httpx.ProxyError,): "Could not reach, through the proxy, the gateway at {}",
    (httpx.PoolTimeout,): "No free connection to the gateway at {}",
    (httpx.TimeoutException,): "No answer in time from the gateway at {}",
    (httpx.LocalProtocolError, httpx.UnsupportedProtocol): "Could not send the request to the gateway at {}",
    (httpx.NetworkError,): "Lost the connection to the gateway at {}",
}
"""What failed, by the transport's error; the first that fits."""

_HOW_TO_START: Final = (
    ". If no gateway is running there, start a local one with `omnigate gateway` "
    "(pip install 'omnigate[cli]'), which prints its address; or set base_url or $OMNIGATE_BASE_URL"
)

_any_decoder: Final = msgspec.json.Decoder()

_WAITED_FOR: Final[dict[type[httpx.TransportError], str]] = {
    httpx.ConnectTimeout: "connecting took longer than the timeout",
    httpx.ReadTimeout: "no bytes came within the timeout",
    httpx.WriteTimeout: "the request could not be written within the timeout",
    httpx.PoolTimeout: "no connection became free within the timeout",
}


def response_error(
    answer: Answer, *, secrets: tuple[str, ...] = (), show_body: bool = True, address: str = ""
) -> APIError:
    """Return the typed error for an error response.

    Args:
        answer: the response, with its body or the beginning of it.
        secrets: what must not appear in the error.
        show_body: whether anything of the body may.
        address: the client's base_url, for a hint if the response says that it is wrong.

    """
    status = answer.status
    headers = headers_of(answer.head)
    status_text = _status_text(status, redact(headers.get("location", ""), secrets))
    now: datetime | None = parse_http_date(headers.get("date"))
    raw, detail = _details(answer.body, secrets) if show_body else (None, None)
    # The raw detail decides the type, since redacting a short key may alter it; only redacted text is shown.
    error = classify(
        status,
        raw if normalise_detail(raw) else status_text,
        retry_after=parse_retry_after(headers.get("retry-after"), now=now),
        request_id=headers.get("x-request-id"),
    )
    message = one_line(normalise_detail(detail), _TEXT_LENGTH)
    error.retry_after = parse_retry_after(headers.get("retry-after"), now=now)
    error.detail = detail
    if isinstance(error, ProviderError):
        error.provider = redact(error.provider, secrets)
    error.rate_limit = rate_limit_of(headers)
    if isinstance(detail, str) and is_html(detail):
        message = f"{status_text}: {_text_of_html(detail)}"
    elif 300 <= status < 400 and message:
        message = f"{status_text}: {message}"
    error.message = (message or status_text) + (_hint_of_path(address) if status in (404, 405) else "")
    error.args = (error.message,)
    return error


def excerpt(body: bytes, secrets: tuple[str, ...]) -> str:
    """Return the beginning of a body for an error message: a repr without keys."""
    if not body:
        return "nothing: it is empty"
    text = redact(body[:_READ_BYTES].decode("utf-8", "replace"), secrets)  # before a cut could halve a key
    return repr(text[:_EXCERPT_LENGTH])


def invalid_response(
    answer: Answer, problem: str, secrets: tuple[str, ...], *, show_body: bool
) -> InvalidResponseError:
    """Return the error for a body of the wrong type, quoting its beginning."""
    start = excerpt(answer.body, secrets) if show_body else ""
    page = redact_cut(answer.body[:_PAGE_LENGTH].decode("utf-8", "replace"), secrets)
    if show_body and is_html(page):
        problem = f"it is {_text_of_html(page)}, which something between here and the gateway may have sent"
    message = f"the response does not fit its type: {one_line(redact(problem, secrets), _TEXT_LENGTH)}"
    return InvalidResponseError(
        f"{message}; it starts with {start}" if start else message,
        status_code=answer.status,
        detail=start or None,
        request_id=headers_of(answer.head).get("x-request-id"),
    )


def connection_error(error: httpx.TransportError, base_url: str, attempts: int) -> ConnectionError:
    """Return the typed error for a transport error; the caller decides whether to chain the cause."""
    is_timeout = isinstance(error, httpx.TimeoutException)
    reason = one_line(str(redact(reason_of(error))), _TEXT_LENGTH)
    if is_timeout:
        reason = _WAITED_FOR.get(type(error), reason)
    kind = TimeoutError if is_timeout else ConnectionError
    subject = redact(subject_of(error))
    what = f"Could not reach {subject}" if subject else _what_failed(error).format(base_url)
    message = f"{what} ({attempts_text(attempts)}): {reason}"
    if isinstance(error, httpx.ConnectError) and base_url == DEFAULT_BASE_URL and not subject:
        message += _HOW_TO_START
    failure = kind(message)
    failure.is_permanent = is_permanent(error)
    failure.reason = reason
    failure.attempts = attempts
    failure.was_sent = not is_unsent(error)
    return failure


def is_unsent(error: BaseException) -> bool:
    """Return whether a transport's error was raised before a byte of the request was written."""
    return isinstance(error, _NOT_SENT)


def _what_failed(error: httpx.TransportError) -> str:
    """Return a description of what failed, with a placeholder for the gateway's address."""
    for kinds, text in _FAILED.items():
        if isinstance(error, kinds):
            return text
    return "No valid answer from the gateway at {}"


def attempts_text(count: int) -> str:
    """Return "1 attempt", "2 attempts", …."""
    return f"{count} attempt{'' if count == 1 else 's'}"


def stream_error(message: str, *, request_id: str | None, secrets: tuple[str, ...] = ()) -> ProviderError:
    """Return the typed error for a failure inside a stream.

    Its `status_code` is 502, because the response itself says 200; `provider_status` is the provider's, if
    the message gives it.
    """
    named = provider_of(message.strip()) or (None, None)
    kind = ProviderRateLimitError if named[1] == 429 else ProviderError
    text = redact_cut(message.strip(), secrets)
    error = kind(
        one_line(text, _TEXT_LENGTH)
        or "the provider failed without a message (as it does when it times out)",
        status_code=502,
        detail=text,
        request_id=request_id,
    )
    error.provider, error.provider_status = redact(named[0], secrets), named[1]
    return error


def transient_status(message: str) -> int | None:
    """Return the HTTP status that a transient failure inside a stream stands for, or None if not transient.

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
    """Return the `detail` of a body, raw and redacted."""
    try:
        raw: Any = decode(_any_decoder, body)
        if isinstance(raw, dict):
            raw = cast("dict[str, Any]", raw).get("detail", cast("Any", raw))
        shown = redact(raw, secrets)
        normalise_detail(raw)
        normalise_detail(shown)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):  # not JSON, or nested too deeply
        text = body[:_READ_BYTES].decode("utf-8", "replace").strip()
        return text[:_TEXT_LENGTH] or None, redact_cut(text, secrets)[:_TEXT_LENGTH] or None
    return raw, shown


def is_html(text: str) -> bool:
    """Return whether text is an HTML page."""
    return _HTML.match(text) is not None


def _hint_of_path(address: str) -> str:
    """Return a hint, in parentheses, if the address has the path that the client adds to it itself."""
    start, found, rest = address.rpartition(_ADDED_PATH)
    if not found or (rest and not rest.startswith("/")):
        return ""
    return (
        f" (base_url ends in {printable(found + rest)}, but the client adds {_ADDED_PATH}/… itself: "
        f"set it to {printable(start)})"
    )


def _status_text(status: int, location: str) -> str:
    try:
        text = f"HTTP {status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        text = f"HTTP {status}"
    if 300 <= status < 400:
        place = f" to {location[:_EXCERPT_LENGTH]!r}" if location else ""
        text += f"{place} (redirects are not followed: set base_url to the final address)"
    return text


class _TextOfHtml(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.title: list[str] = []
        self.text: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "title":
            self.title.append(data)
        elif self._inside not in ("style", "script"):
            self.text.append(data)


def _text_of_html(page: str) -> str:
    parser = _TextOfHtml()
    with contextlib.suppress(AssertionError):  # how the standard library's parser gives up on `<![x[`
        parser.feed(page[:_PAGE_LENGTH])
    text = _SPACE.sub(" ", "".join(parser.title) or "".join(parser.text)).strip()
    return f"an HTML page, {text[:_EXCERPT_LENGTH]!r}" if text else "an HTML page"
