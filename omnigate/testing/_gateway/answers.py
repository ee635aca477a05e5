"""JSON answers of the local gateway, encoded as the real one encodes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from starlette.responses import PlainTextResponse, Response

UNHANDLED: Final = b"omnigate-unhandled"
"""An internal header that marks an unhandled failure, whose response carries no request id. Never sent."""


class BadRequestError(Exception):
    """A request to answer with an error; `detail` goes into its body."""

    def __init__(self, status: int, detail: Any, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail
        self.headers: dict[str, str] = headers or {}


class UnhandledError(Exception):
    """A request for which the real gateway fails with an unhandled exception: a bare 500."""


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
    """Convert what pydantic's error details hold besides JSON's own types, as FastAPI does."""
    if isinstance(value, bytes):
        return value.decode()
    assert isinstance(value, Decimal)
    return int(value) if value == value.to_integral_value() else float(value)
