"""The values of rows, whatever library they come from, as a few plain types.

None, bool, int, float, str, bytes, datetime, date, time, timedelta, Decimal, UUID; lists, and dicts with text
as keys. Every writer handles these; anything else becomes its text.
"""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final, cast

import msgspec

from omnigate._wire.money import positional
from omnigate._wire.values import is_sequence, scalar

_PLAIN: Final = frozenset(
    {
        type(None),
        bool,
        int,
        float,
        bytes,
        datetime.datetime,
        datetime.date,
        datetime.time,
        datetime.timedelta,
        decimal.Decimal,
        uuid.UUID,
    }
)

_DEPTH_MAX: Final = 100


def plain_row(row: Mapping[str, object]) -> dict[str, Any]:
    """Return a row with plain values."""
    return {name if type(name) is str else str(name): plain_cell(value) for name, value in row.items()}


def plain_cell(given: object, depth: int = 0) -> Any:
    """Return a value as one of the plain types."""
    if type(given) is str:
        return _encodable(given)
    if type(given) in _PLAIN:
        return given
    value: Any = scalar(given)
    if isinstance(value, str):
        return _encodable(value)
    if type(value) in _PLAIN:
        return value
    if depth >= _DEPTH_MAX:
        return "…"  # nested deeper than JSON readers allow, or within itself
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    if isinstance(value, Mapping):
        mapping = cast("Mapping[Any, Any]", value)
        return {str(key): plain_cell(nested, depth + 1) for key, nested in mapping.items()}
    if is_sequence(value) or isinstance(value, AbstractSet):
        return [plain_cell(nested, depth + 1) for nested in cast("Iterable[Any]", value)]
    if isinstance(value, bytearray | memoryview):
        return bytes(cast("bytearray", value))
    return _foreign(value, depth)


def _foreign(value: Any, depth: int) -> Any:
    """Return a value of another library: of an array its items, of a pandas or numpy time Python's own."""
    if type(value).__name__ in ("NaTType", "NAType"):  # pandas' missing values
        return None
    for name in ("to_pydatetime", "to_pytimedelta", "tolist", "to_list"):
        convert = getattr(value, name, None)
        if callable(convert):
            made = convert()
            return plain_cell(made, depth + 1) if type(made) is not type(value) else str(value)
    for base in (datetime.datetime, datetime.date, datetime.time, datetime.timedelta, decimal.Decimal):
        if isinstance(value, base):  # a subclass
            return value
    return _encodable(str(value))


def _encodable(text: str) -> str:
    """Return text with lone surrogates, which UTF-8 cannot encode, escaped."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace").decode()
    return text


def json_of(value: object) -> str:
    """Return a plain value as JSON text; bytes as Base64."""
    return msgspec.json.encode(value).decode()


def text_of(value: Any) -> str:
    """Return a plain value as text: numbers and times in their usual forms, lists and dicts as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, float):
        return positional(value)
    if isinstance(value, decimal.Decimal | uuid.UUID):
        return str(value)
    if isinstance(value, bytes | datetime.timedelta):
        return json_of(value).strip('"')
    return json_of(value)
