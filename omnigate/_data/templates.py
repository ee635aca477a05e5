"""Prompt templates: text with the names of fields in braces, filled from a row.

Only names: attribute and index access, conversions and format specifications are refused, so that data cannot
reach into objects and a template means the same for text from a CSV file and a number from a frame. The text
of a field is never parsed again.
"""

from __future__ import annotations

import datetime
import numbers
import string
import uuid
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from omnigate._data.rows import names_of
from omnigate._wire.checks import refusal
from omnigate._wire.redaction import shown
from omnigate._wire.values import scalar
from omnigate.exceptions import InvalidArgumentError

_BE_TEMPLATE: Final = "be text with the names of fields in braces, or a callable"

_BE_VALUE: Final = "be text, a number, a date, a time or a UUID"

_TEXTUAL: Final = (numbers.Number, Decimal, uuid.UUID, datetime.date, datetime.time, datetime.timedelta)

_parse = string.Formatter().parse


class Template:
    """A prompt with fields: `Template("Summarise: {text}")`.

    Args:
        text: the template; `{{` and `}}` are literal braces.

    Attributes:
        fields: the names of its fields, each once.

    Raises:
        InvalidArgumentError: it has no field, or something else than a name in braces.
    """

    def __init__(self, text: str) -> None:
        try:
            parsed = list(_parse(text))
        except ValueError as error:
            hint = "write {{ and }} for literal braces"
            raise refusal("prompt", text, f"{_BE_TEMPLATE}: {error}", hint=hint) from None
        parts: list[tuple[str, str | None]] = []
        for literal, name, specification, conversion in parsed:
            if name is not None:
                _check_field(text, name, specification, conversion)
            parts.append((literal, name))
        self.fields: tuple[str, ...] = tuple(dict.fromkeys(name for _, name in parts if name is not None))
        self._parts: tuple[tuple[str, str | None], ...] = tuple(parts)
        if not self.fields:
            hint = "without one, each row would be the same request"
            raise refusal("prompt", text, "name at least one field, as in 'Summarise: {text}'", hint=hint)

    def __repr__(self) -> str:
        return f"<Template of {names_of(self.fields)}>"

    def fill(self, row: Mapping[str, Any]) -> str:
        """Return the prompt of a row.

        Raises:
            InvalidArgumentError: a field is missing, null, or not something that has a text. The caller adds
                which row it is.
        """
        texts: list[str] = []
        for literal, name in self._parts:
            texts.append(literal)
            if name is not None:
                value = row.get(name)
                texts.append(value if type(value) is str else _text(value, name, row))
        return "".join(texts)


def _check_field(text: str, name: str, specification: str | None, conversion: str | None) -> None:
    hint = "a callable prompt= can do more"
    if not name:
        raise refusal("prompt", text, "name the field in each pair of braces", hint="'{text}', not '{}'")
    if conversion or specification:
        must = f"have the names of fields alone in braces, without conversion or format: {name!r}"
        raise refusal("prompt", text, must, hint=hint)
    if "." in name or "[" in name:
        must = f"have the names of fields in braces, without access to attributes or indices: {name!r}"
        raise refusal("prompt", text, must, hint=hint)


def _text(value: Any, name: str, row: Mapping[str, Any]) -> str:
    if value is None:
        if name in row:
            raise InvalidArgumentError(f"the field {name!r} of the prompt is null")
        raise InvalidArgumentError(f"there is no field {name!r} for the prompt, only {names_of(row)}")
    value = scalar(value)
    if isinstance(value, float) and value != value:
        raise InvalidArgumentError(f"the field {name!r} of the prompt is null (NaN)")
    if not isinstance(value, (str, *_TEXTUAL)):
        raise refusal(f"the field {name!r} of the prompt", value, _BE_VALUE, is_type=True, got=shown(value))
    try:
        return str(value)
    except ValueError:  # an integer of thousands of digits
        must = "be text, or a number of fewer digits"
        raise refusal(f"the field {name!r} of the prompt", value, must) from None
