"""The exceptions this package raises, and `classify`, which picks one for an error response.

The hard question is whose failure it is: the gateway forwards a provider's failure *with the provider's own
status*, so a 401 may mean a bad gateway key or a bad provider key, and a 429 the gateway's limit or the
provider's. Only the text of `detail` tells them apart (docs/protocol.md, "Errors").

No I/O. Nothing here may hold a secret: text from the wire is redacted before it gets here.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from omnigate import _homes

if TYPE_CHECKING:
    from omnigate._limits import RateLimit
    from omnigate.models import ChatResponse

__all__ = [
    "APIError",
    "AuthError",
    "BatchLimitError",
    "BudgetExceededError",
    "ClientClosedError",
    "ConnectionError",
    "ForkedClientError",
    "GatewayConnectionError",
    "GatewayError",
    "InvalidArgumentError",
    "InvalidArgumentTypeError",
    "InvalidResponseError",
    "JournalError",
    "MaxWaitError",
    "NotStartedError",
    "ProviderError",
    "ProviderRateLimitError",
    "RaceError",
    "RateLimitError",
    "ResponseFormatError",
    "StreamClosedError",
    "TimeoutError",
    "TooManyFailuresError",
    "classify",
    "normalise_detail",
]


class GatewayError(Exception):
    """Base class of every error this package raises.

    Attributes:
        request_id: the response's `x-request-id`, if there was one.
        attempts: how many attempts were made, if the request was sent at all.
        billed: the answers that arrived before the failure and were billed: those of a call with
            `response_type` that did not fit it.

    """

    request_id: str | None = None
    attempts: int | None = None
    billed: tuple[ChatResponse, ...] = ()


class APIError(GatewayError):
    """An error response, or a response that is not what was asked for.

    Attributes:
        message: the error in one line of text.
        status_code: the HTTP status; for an error inside a stream 502, the status it would have had.
        detail: the parsed `detail` of the body (text, list, dict or None), with keys redacted.
        retry_after: seconds to wait before another request, if the response said so.
        rate_limit: the gateway's rate limit, if the response contained it.

    """

    retry_after: float | None = None
    rate_limit: RateLimit | None = None

    def __init__(
        self,
        message: str,
        *,
        status_code: int | None = None,
        detail: Any = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status_code = status_code
        self.detail = detail
        self.request_id = request_id

    def __str__(self) -> str:
        return self.message if self.status_code is None else f"[{self.status_code}] {self.message}"


class AuthError(APIError):
    """401: the gateway key (or the admin key) is missing or wrong."""


class BudgetExceededError(APIError):
    """402: a daily or monthly budget of the project or organisation is exhausted."""


class RateLimitError(APIError):
    """429: too many requests; `retry_after` is the number of seconds to wait, if known."""

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        status_code: int | None = None,
        detail: Any = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, status_code=status_code, detail=detail, request_id=request_id)
        self.retry_after = retry_after


class ProviderError(APIError):
    """The provider behind the gateway failed, or the project is not set up to use it.

    Attributes:
        provider: the provider as named in the gateway's detail ("OpenAI", "openai"), if it is.
        provider_status: the provider's own HTTP status, if the detail contains it.

    """

    provider: str | None = None
    provider_status: int | None = None


class ProviderRateLimitError(RateLimitError, ProviderError):
    """429 from the provider, not the gateway: the gateway's own limit may have room."""


class InvalidResponseError(APIError, ValueError):
    """A response that does not match its documented type, is too large, or has an unknown encoding."""


class ResponseFormatError(GatewayError, ValueError):
    """No answer of a call fitted its `response_type`.

    `billed` has all of them, each with its tokens and cost.

    Attributes:
        text: the last answer, as the model wrote it.
        problem: why it does not fit.

    """

    text: str = ""
    problem: str = ""


class ConnectionError(GatewayError, builtins.ConnectionError):
    """The gateway could not be reached, or the connection broke.

    The transport's error is chained (`__cause__`), unless nothing was reached and it says no more than this
    one; `attempts` is the number of attempts made.

    Attributes:
        reason: the message of the underlying error.
        was_sent: whether the request may have reached the gateway, and so may have been processed.
        is_permanent: whether another attempt would fail in the same way, so that none is made: a certificate
            that is not trusted, a proxy that refuses.

    """

    reason: str = ""
    was_sent: bool = True
    is_permanent: bool = False


class TimeoutError(ConnectionError, builtins.TimeoutError):
    """No answer within `timeout` or `deadline_seconds`."""


GatewayConnectionError = ConnectionError


class InvalidArgumentError(GatewayError, ValueError):
    """An argument that cannot be sent. Nothing was sent."""


class InvalidArgumentTypeError(InvalidArgumentError, TypeError):
    """An argument of a type that cannot be sent. Nothing was sent."""


class ClientClosedError(GatewayError, RuntimeError):
    """The client was used after it was closed, or closed while in use."""


class StreamClosedError(GatewayError, RuntimeError):
    """A stream was read after being closed or cancelled before its end, or by two tasks simultaneously."""


class NotStartedError(GatewayError, RuntimeError):
    """A client, stream or batch was used outside its `with` block, or from within its own callback.

    Also raised if the thread of a sync client cannot start: there are too many, or the interpreter exits.
    """


class JournalError(GatewayError):
    """The journal of a batch cannot be used or written, or contradicts the batch's items."""


class MaxWaitError(GatewayError):
    """An item of a batch could not be sent within `max_wait_seconds` of waiting.

    Attributes:
        waited_for: what it waited for last: "rate window", "provider", "token limit" or "outage".

    """

    waited_for: str = ""


class TooManyFailuresError(GatewayError):
    """A batch ended because too many of its items failed (`stop_after_failures`).

    The last failure is chained (`__cause__`).

    Attributes:
        failed: how many items had failed.
        ended: how many had ended.

    """

    failed: int = 0
    ended: int = 0


class BatchLimitError(GatewayError):
    """A batch ended at its `max_cost_usd`, `max_tokens_total` or `max_seconds`, with items not started.

    Attributes:
        limit: the name of the limit.
        cost_usd: what the run has spent, in USD.
        total_tokens: what the run has spent, in tokens.
        seconds: how long the run took.
        ended: how many items were called in this run.

    """

    limit: str = ""
    cost_usd: float = 0.0
    total_tokens: int = 0
    seconds: float = 0.0
    ended: int = 0


class RaceError(ExceptionGroup[GatewayError], GatewayError):
    """All calls of a race failed; `exceptions` are their errors, in the order of the models."""

    def derive(self, excs: Sequence[GatewayError], /) -> RaceError:  # type: ignore[override]
        """Return a group of `excs`, a subset of these errors, for `split` and `except*`."""
        return RaceError(self.message, excs)


class ForkedClientError(GatewayError, RuntimeError):
    """A sync client was used in a child process, but its thread lives in the parent."""


# Details that always come from the gateway itself (docs/protocol.md, "Errors").
_GATEWAY_DETAILS = frozenset(
    {
        "Rate limit exceeded",
        "Invalid API key",
        "Invalid or missing x-admin-key",
        "Missing x-api-key header (or Authorization: Bearer token)",
    }
)

# How the gateway names the provider: "OpenAI error 401: …", "OpenAI request failed: …",
# "openai call failed: …", "openai circuit is open", "No openai key configured …".
_PROVIDER_STATUS = re.compile(r"(?P<provider>[A-Za-z][\w .-]{0,63}?) error (?P<status>[1-5]\d\d)\b")

_PROVIDER_FAILED = re.compile(
    r"(?P<provider>[A-Za-z][\w .-]{0,63}?) (?:request failed:|call failed:|circuit is open)"
)

_NO_PROVIDER_KEY = re.compile(r"No (?P<provider>\S{1,64}) key configured")

# The published 0.1.0 treated these prefixes, and "error 4xx"/"error 5xx" anywhere, as a provider's failure.
_PROVIDER_BEGINNINGS = ("openai", "anthropic", "gemini", "azure", "no provider")

_ERROR_STATUS = re.compile(r"\berror [45]\d\d\b", re.IGNORECASE)

_HINTS: dict[type[APIError], str] = {
    AuthError: "Pass a valid gateway key as api_key= or in OMNIGATE_API_KEY; it may have been revoked.",
    BudgetExceededError: "Raise the budget, or wait for the next UTC day or month.",
    RateLimitError: "Wait for retry_after seconds, or ask for a higher rate_limit_per_min.",
    ProviderRateLimitError: "The provider's limit, not the gateway's: slow down or use fallback_models.",
}


def normalise_detail(detail: Any) -> str:
    """Return a `detail` value as one line of text.

    Validation errors become `path: message; …`; OpenAI's envelope and `{"message": …}` become their message.
    """
    if detail is None:
        return ""
    if isinstance(detail, str):
        return detail
    if isinstance(detail, list):
        items = cast("list[Any]", detail)
        return "; ".join(_validation_text(item) for item in items) or str(items)
    if isinstance(detail, dict):
        body = cast("dict[str, Any]", detail)
        inner = _envelope(body)
        message = inner.get("message") if inner else body.get("message", body.get("error"))
        if isinstance(message, str):
            return message
    return str(cast("object", detail))


def _envelope(detail: Any) -> dict[str, Any] | None:
    """Return the inner object of OpenAI's `{"error": {…}}`, or None for any other detail."""
    error = cast("dict[str, Any]", detail).get("error") if isinstance(detail, dict) else None
    return cast("dict[str, Any]", error) if isinstance(error, dict) else None


def _validation_text(item: Any) -> str:
    if not isinstance(item, dict) or "msg" not in item:
        return str(cast("object", item))
    fields = cast("dict[str, Any]", item)
    loc = fields.get("loc")
    place = ".".join(str(part) for part in cast("list[Any]", loc)) if isinstance(loc, list) else ""
    return f"{place}: {fields['msg']}" if place else str(fields["msg"])


def provider_of(text: str) -> tuple[str | None, int | None] | None:
    """Return (provider, its status) if `text` is a detail about a provider's failure, else None.

    Both parts may be None: the text may say that a provider failed without saying which.
    """
    if text in _GATEWAY_DETAILS or text.lstrip().startswith(
        "<"
    ):  # a proxy's HTML page is not about providers
        return None
    if match := _PROVIDER_STATUS.match(text):
        return match["provider"], int(match["status"])
    if match := _PROVIDER_FAILED.match(text) or _NO_PROVIDER_KEY.match(text):
        return match["provider"], None
    if text.lower().startswith(_PROVIDER_BEGINNINGS) or _ERROR_STATUS.search(text):
        return None, None
    return None


def classify(
    status_code: int,
    detail: Any,
    *,
    retry_after: float | None = None,
    request_id: str | None = None,
) -> APIError:
    """Return the typed error for an error response (docs/protocol.md, "Errors").

    Args:
        status_code: the HTTP status.
        detail: the body's `detail` (text, or a list of validation errors), a whole body of another
            shape (such as OpenAI's `{"error": {…}}`), or None.
        retry_after: seconds, from the `Retry-After` header.
        request_id: from the `x-request-id` header.

    """
    message = normalise_detail(detail)
    envelope = _envelope(detail)
    named = provider_of(message) if envelope or isinstance(detail, str) else None
    is_provider = (
        named is not None
        or status_code == 502
        or (envelope is not None and envelope.get("type") == "provider_error")
    )
    message = message or f"HTTP {status_code}"
    error: APIError
    if status_code == 429:
        kind = ProviderRateLimitError if is_provider else RateLimitError
        error = kind(message, retry_after=retry_after, status_code=429, detail=detail, request_id=request_id)
    else:
        kinds: dict[int, type[APIError]] = {401: AuthError, 402: BudgetExceededError}
        chosen = ProviderError if is_provider else kinds.get(status_code, APIError)
        error = chosen(message, status_code=status_code, detail=detail, request_id=request_id)
    if isinstance(error, ProviderError) and named is not None:
        error.provider, error.provider_status = named
    if hint := _HINTS.get(type(error)):
        error.add_note(hint)
    return error


_homes.settle(__name__)
