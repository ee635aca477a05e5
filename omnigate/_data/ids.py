"""Ids of rows and items, as text."""

from __future__ import annotations

import numbers
import uuid
from typing import Any, Final

from omnigate._wire.checks import BE_ENCODABLE, refusal

ID_FIELDS: Final = ("custom_id", "id")
"""The fields that identify an item, the first one that it has."""

_ID_BITS: Final = 8192  # Python refuses to format integers of more than a few thousand digits


def id_text(value: Any, argument: str) -> str:
    """Return an id as plain text.

    Args:
        value: text, an integer (also of numpy and its kin) or a UUID.
        argument: its name in errors.

    Raises:
        InvalidArgumentError: it is none of these, is empty, or cannot be encoded.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):  # numpy's, too
        number = int(value)
        if number.bit_length() > _ID_BITS:
            raise refusal(argument, value, f"be text, or an integer of at most {_ID_BITS} bits")
        return str(number)
    if isinstance(value, uuid.UUID):
        return str(value)
    if not isinstance(value, str):
        raise refusal(argument, value, "be text, an integer or a UUID", is_type=True)
    if not value:
        raise refusal(argument, value, "be text that is not empty, an integer or a UUID")
    if not _is_text(value):
        raise refusal(argument, value, BE_ENCODABLE)
    return "".join(value)  # plain text, even from a subclass of str


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True
