"""The retry policy, as tables."""

import math
from datetime import UTC, datetime

import pytest

from omnigate import InvalidArgumentError, RetryConfig
from omnigate._calls.retry import compute_delay, should_retry
from omnigate._wire.head import parse_retry_after

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("Tue, 24 Nov 2026 12:00:30 GMT", 30.0),
        ("Tue, 24 Nov 2026 11:59:00 GMT", 0.0),
        ("31536000", 31_536_000.0),
        (None, None),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("inf", None),
        ("nan", None),
        ("1e400", None),
        ("1_0", None),
        ("٥", None),
        ("9" * 400, None),
        ("40000000", None),
        ("Tue, 24 Nov 2099 12:00:30 GMT", None),
        ("Tue, 99 Nov 2026 12:00:30 GMT", None),
    ],
)
def test_parse_retry_after_reads_every_form_and_ignores_invalid_ones(
    header: str | None, seconds: float | None
) -> None:
    assert parse_retry_after(header, now=NOW) == seconds


@pytest.mark.parametrize(
    ("attempts", "low", "middle", "high"),
    [(1, 0.4, 0.5, 0.6), (2, 0.8, 1.0, 1.2), (5, 6.4, 8.0, 9.6), (5_000, 6.4, 8.0, 9.6)],
)
def test_backoff_doubles_up_to_its_maximum_and_varies_by_the_jitter(
    attempts: int, low: float, middle: float, high: float
) -> None:
    config = RetryConfig()
    assert compute_delay(attempts, config, uniform=lambda a, b: a) == pytest.approx(low)
    assert compute_delay(attempts, config, uniform=lambda a, b: (a + b) / 2) == pytest.approx(middle)
    assert compute_delay(attempts, config, uniform=lambda a, b: b) == pytest.approx(high)


def test_a_retry_after_is_the_delay_without_jitter() -> None:
    assert compute_delay(1, RetryConfig(), 42.0) == 42.0


@pytest.mark.parametrize(
    ("status", "was_sent", "resend", "retry_sent", "expected"),
    [
        (None, False, "billed", True, True),
        (None, False, "billed", False, True),
        (None, False, "never", True, True),
        (None, True, "billed", True, True),
        (None, True, "billed", False, False),
        (None, True, "safe", False, True),
        (None, True, "never", True, False),
        (503, True, "billed", True, True),
        (503, True, "billed", False, False),
        (503, True, "safe", False, True),
        (503, True, "never", True, False),
        (429, True, "billed", False, True),
        (429, True, "never", True, False),
        (400, True, "safe", True, False),
        (200, True, "safe", True, False),
    ],
)
def test_should_retry_decides_by_status_resend_rule_and_whether_it_was_sent(
    status: int | None, was_sent: bool, resend: str, retry_sent: bool, expected: bool
) -> None:
    config = RetryConfig(retry_sent=retry_sent)
    answer = should_retry(config, attempts=1, status=status, was_sent=was_sent, resend=resend)
    assert answer is expected


def test_should_retry_stops_after_max_retries() -> None:
    config = RetryConfig(max_retries=2)
    given = [should_retry(config, attempts=n, status=503, was_sent=True, resend="safe") for n in (1, 2, 3)]
    assert given == [True, True, False]


def test_a_retry_after_beyond_its_maximum_is_not_retried() -> None:
    config = RetryConfig()
    for retry_after, expected in ((60.0, True), (60.5, False)):
        answer = should_retry(
            config, attempts=1, status=429, was_sent=True, resend="billed", retry_after=retry_after
        )
        assert answer is expected


def test_retry_config_keeps_its_published_defaults() -> None:
    config = RetryConfig()
    assert (config.max_retries, config.backoff_base, config.backoff_max, config.jitter) == (2, 0.5, 8.0, 0.2)
    assert config.retry_statuses == frozenset({429, 500, 502, 503, 504})
    assert (config.retry_after_max, config.retry_sent) == (60.0, True)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_retries": -1},
        {"max_retries": -(10**5_000)},
        {"backoff_base": 10**400},
        {"backoff_max": -(10**5_000)},
        {"retry_after_max": 10**400},
        {"jitter": 10**5_000},
        {"retry_statuses": {"429"}},
        {"retry_statuses": b"abc"},
        {"retry_statuses": [True]},
        {"retry_statuses": [429, 5]},
        {"retry_statuses": 10**5_000},
        {"retry_sent": "no"},
        {"retry_sent": None},
        {"max_retries": 1.5},
        {"max_retries": True},
        {"backoff_base": -0.1},
        {"backoff_base": math.nan},
        {"backoff_max": math.inf},
        {"backoff_max": "8"},
        {"jitter": 1.1},
        {"retry_after_max": -1},
        {"retry_statuses": "429"},
        {"retry_statuses": 429},
    ],
)
def test_retry_config_names_a_bad_argument(arguments: dict[str, object]) -> None:
    (name,) = arguments
    with pytest.raises(InvalidArgumentError, match=f"^{name} must be .*, got "):
        RetryConfig(**arguments)  # type: ignore[arg-type]
