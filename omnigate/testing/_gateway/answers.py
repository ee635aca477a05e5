"""JSON answers of the local gateway, encoded as the real one encodes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from starlette.responses import PlainTextResponse, Response

UNHANDLED: Final = b"omnigate-unhandled"
"""A header that marks an unhandled failure, whose response has no request id. It is not sent."""


class BadRequestError(Exception):
    """A request that is answered with an error; `detail` is the body's `detail`."""

    def __init__(self, status: int, detail: Any, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail
        self.headers: dict[str, str] = headers or {}


class UnhandledError(Exception):
    """The real gateway fails here without handling it: a bare 500."""


def answer_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response.

    Raises:
        UnhandledError: JSON cannot express the value: NaN, an infinity, a lone surrogate.
    """
    try:
        text = json.dumps(
            value, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain
        ).encode()
    except (ValueError, RecursionError):  # a UnicodeError is a ValueError
        raise UnhandledError from None
    return Response(text, status, headers, "application/json")


def unhandled() -> Response:
    """Return the bare 500 of an unhandled failure."""
    return PlainTextResponse("Internal Server Error", 500, {UNHANDLED.decode(): "1"})


def _plain(value: Any) -> Any:
    """Return what a detail of pydantic's holds besides JSON's own types, as FastAPI encodes it."""
    if isinstance(value, bytes):
        return value.decode()
    assert isinstance(value, Decimal)
    return int(value) if value == value.to_integral_value() else float(value)
