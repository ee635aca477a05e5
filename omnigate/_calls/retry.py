"""The one retry policy: whether a failed request is sent again, and after how many seconds.

Pure: no I/O, no clock and no random numbers of its own; the caller passes them in.
"""

import random
from collections.abc import Callable, Collection, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from omnigate import _homes
from omnigate._wire.checks import Range, check_bool, check_integer, check_number, refusal
from omnigate._wire.endpoints import Resend
from omnigate._wire.head import parse_retry_after
from omnigate._wire.values import Integer, Number, scalar

__all__ = ["RetryConfig", "compute_delay", "parse_retry_after", "should_retry"]

_DEFAULT_STATUSES: Final = frozenset({429, 500, 502, 503, 504})

_STATUSES: Final = Range(minimum=100, maximum=999, is_integer=True)


@dataclass(frozen=True)
class RetryConfig:
    """How failed requests are retried.

    Attributes:
        max_retries: attempts after the first one, 0 or more.
        backoff_base: seconds before the first retry; doubles with each one.
        backoff_max: seconds that cap a backoff before jitter (`Retry-After` has a limit of its own).
        jitter: the fraction, 0 to 1, of a backoff that is added or subtracted at random.
        retry_statuses: HTTP statuses that are retried.
        retry_after_max: the longest `Retry-After`, in seconds, that is waited for. It is waited for in full,
            and never less than the backoff. A longer one raises the error immediately. The default is the
            gateway's rate-limit window.
        retry_sent: whether to send a POST again when the first may have been carried out (timeouts, 5xx,
            connections that broke after bytes were sent), so that it may be billed twice. A request that
            certainly was not carried out (a connect error, a 429) is retried anyway.

    Raises:
        InvalidArgumentError: a value is out of its limits.

    """

    max_retries: int = 2
    backoff_base: float = 0.5
    backoff_max: float = 8.0
    jitter: float = 0.2
    retry_statuses: AbstractSet[int] | Sequence[int] = _DEFAULT_STATUSES  # pydantic knows no `Collection`
    retry_after_max: float = 60.0
    retry_sent: bool = True

    if TYPE_CHECKING:  # other libraries' numbers are taken, and kept as Python's own

        def __init__(
            self,
            max_retries: Integer = 2,
            backoff_base: Number = 0.5,
            backoff_max: Number = 8.0,
            jitter: Number = 0.2,
            retry_statuses: Collection[int] = _DEFAULT_STATUSES,
            retry_after_max: Number = 60.0,
            retry_sent: bool = True,
        ) -> None: ...

    def __post_init__(self) -> None:
        checked: dict[str, object] = {
            "max_retries": check_integer(self.max_retries, "max_retries", minimum=0),
            "jitter": check_number(self.jitter, "jitter", minimum=0, maximum=1),
            "retry_sent": check_bool(self.retry_sent, "retry_sent"),
        }
        for name in ("backoff_base", "backoff_max", "retry_after_max"):
            checked[name] = check_number(getattr(self, name), name, minimum=0)
        _check_statuses(self.retry_statuses)
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen


def _check_statuses(value: Any) -> None:
    must = f"be a collection of HTTP statuses, each {_STATUSES}"
    if isinstance(value, str | bytes | bytearray) or not isinstance(value, Collection):
        raise refusal("retry_statuses", value, must, is_type=True)
    statuses = cast("Collection[Any]", value)
    is_type = not all(isinstance(scalar(status), int) for status in statuses)
    if is_type or not all(status in _STATUSES for status in statuses):
        raise refusal("retry_statuses", statuses, must, is_type=is_type)


def should_retry(
    config: RetryConfig,
    *,
    attempts: int,
    status: int | None,
    was_sent: bool,
    resend: Resend,
    retry_after: float | None = None,
) -> bool:
    """Return whether a failed request may be sent again.

    Args:
        config: the policy.
        attempts: how many times it has been tried.
        status: the response's HTTP status, None if there was no response.
        was_sent: whether bytes of the request may have reached the gateway.
        resend: what it does to send the request twice.
        retry_after: seconds the server asked to wait.

    """
    if attempts > config.max_retries:
        return False
    if status is not None and status not in config.retry_statuses:
        return False
    if retry_after is not None and retry_after > config.retry_after_max:
        return False
    if resend == "never":
        return not was_sent
    return resend == "safe" or config.retry_sent or not was_sent or status == 429


def compute_delay(
    attempts: int,
    config: RetryConfig,
    retry_after: float | None = None,
    *,
    uniform: Callable[[float, float], float] = random.uniform,
) -> float:
    """Return the seconds to wait before the next attempt.

    The backoff is `backoff_base * 2 ** (attempts - 1)`, at most `backoff_max`, made shorter or longer by a
    random part of up to `jitter` of it. A server that asks for a longer wait gets it in full; one that asks
    for less, or for none ("Retry-After: 0", a date in the past), does not shorten the backoff.

    Args:
        attempts: how many times it has been tried, at least 1.
        config: the policy.
        retry_after: seconds the server asked to wait.
        uniform: draws a number between two, evenly.

    """
    exponent = min(attempts - 1, 1023)  # 2.0 ** 1024 overflows
    delay = min(config.backoff_base * 2.0**exponent, config.backoff_max)
    return max(delay * (1 + uniform(-config.jitter, config.jitter)), retry_after or 0.0)


_homes.settle(__name__)
