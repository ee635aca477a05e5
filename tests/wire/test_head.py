"""What the head of a response says of the rate limit, however it is written."""

import httpx
import pytest

from omnigate._limits import RateLimit
from omnigate._wire.head import Meta, rate_limit_of

GATEWAYS = b"HTTP/1.1 200 OK\r\nserver: x\r\nx-ratelimit-limit: 60\r\nx-ratelimit-remaining: 59\r\nx-ratelimit-reset: 7\r\na: b"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (GATEWAYS, RateLimit(60, 59, 7)),
        (GATEWAYS.title(), RateLimit(60, 59, 7)),
        (b"HTTP/1.1 200 OK\r\nx-ratelimit-reset:7 \r\nx-ratelimit-limit:\t60", RateLimit(60, None, 7)),
        (b"HTTP/1.1 200 OK\r\nx-ratelimit-remaining: 0", RateLimit(None, 0, None)),
        (b"HTTP/1.1 200 OK\r\nx-ratelimit-remaining: -1", None),
        (b"HTTP/1.1 200 OK\r\nx-ratelimit-remaining: 1.5", None),
        (b"HTTP/1.1 200 OK\r\nx-ratelimit-remaining: " + b"9" * 19, None),
        (b"HTTP/1.1 200 OK\r\nx-ratelimit-remaining:", None),
        (b"HTTP/1.1 200 OK\r\nx-ratelimit-remaining-tokens: 5", None),
        (b"HTTP/1.1 200 OK\r\nold-x-ratelimit-limit: 5", None),
        (b"HTTP/1.1 200 OK", None),
        (b"", None),
    ],
)
def test_a_rate_limit_is_read_from_the_head_and_from_parsed_headers(
    head: bytes, expected: RateLimit | None
) -> None:
    assert rate_limit_of(head) == expected
    pairs = [line.partition(b":") for line in head.split(b"\r\n")[1:]]
    headers = httpx.Headers([(name, value.strip()) for name, _, value in pairs])
    assert rate_limit_of(headers) == expected
    assert Meta(200, head, attempts=1, elapsed=0).rate_limit == expected
