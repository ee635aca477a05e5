"""What a failed attempt says about the gateway, the provider and this machine."""

from __future__ import annotations

import errno
from enum import Enum
from typing import Final

import httpx

from omnigate._batch.pace.windows import RATE_WINDOW_SECONDS
from omnigate._transport.problems import causes_of
from omnigate.exceptions import (
    APIError,
    ConnectionError,
    GatewayError,
    ProviderRateLimitError,
    RateLimitError,
    TimeoutError,
)

_DOWN: Final = frozenset({502, 503, 504})

_NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL})


class Sign(Enum):
    """The kinds of failures, by what they say."""

    OWN = "the item's own failure, or a bug"
    WINDOW = "the gateway's rate limit for the key"
    REJECTED = "too many requests"
    LOAD = "perhaps too many calls at once"
    DOWN = "the provider, or the gateway, is down"
    CIRCUIT = "the gateway's circuit for the provider is open"
    UNREACHABLE = "the gateway cannot be reached"
    DESCRIPTORS = "too many open files"

    @property
    def is_outage(self) -> bool:
        """Whether the item could not be served now, whatever it is."""
        return self in _OUTAGES


_OUTAGES: Final = frozenset({Sign.DOWN, Sign.CIRCUIT, Sign.UNREACHABLE, Sign.DESCRIPTORS})


def sign_of(error: GatewayError) -> Sign:
    """Return what a failure says."""
    if isinstance(error, RateLimitError):
        return Sign.REJECTED if seconds_at_limit(error) is None else Sign.WINDOW
    if isinstance(error, ConnectionError):
        return _sign_of_connection(error)
    if isinstance(error, APIError):
        if error.status_code in _DOWN:
            is_open = isinstance(error.detail, str) and error.detail.endswith("circuit is open")
            return Sign.CIRCUIT if is_open else Sign.DOWN
        if error.status_code == 500:
            return Sign.LOAD
    return Sign.OWN


def seconds_at_limit(error: GatewayError) -> float | None:
    """Return the seconds to wait for the gateway's own rate limit; None if the error is not about it.

    Only the detail distinguishes it from a provider's limit (docs/protocol.md, "Errors"). If a proxy has
    removed or garbled `Retry-After`, wait for the end of the window: `reset` says when, else assume a whole
    window. Quick retries would all fall into the same window, and the item would fail.
    """
    if (
        not isinstance(error, RateLimitError)
        or isinstance(error, ProviderRateLimitError)
        or error.detail != "Rate limit exceeded"
    ):
        return None
    if error.retry_after is not None:
        return error.retry_after
    reset = None if error.rate_limit is None else error.rate_limit.reset_seconds
    return reset if reset is not None and 1 <= reset <= RATE_WINDOW_SECONDS else RATE_WINDOW_SECONDS


def _sign_of_connection(error: ConnectionError) -> Sign:
    """Return what it says that there was no answer."""
    if error.is_permanent:
        return Sign.OWN  # waiting does not mend a certificate
    causes = list(causes_of(error))
    if not any(isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout) for cause in causes):
        return Sign.LOAD if isinstance(error, TimeoutError) else Sign.OWN
    if any(isinstance(cause, OSError) and cause.errno in _NO_DESCRIPTORS for cause in causes):
        return Sign.DESCRIPTORS
    return Sign.UNREACHABLE
