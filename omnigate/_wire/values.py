"""Converts text, numbers and ids of other libraries to Python's own types.

Templates render to subclasses of `str`, data frames hold numpy scalars, ORMs return UUIDs. All are accepted
as text, numbers and ids. They are converted on entry, so that nothing keeps a template, a parse tree or an
array alive, and only plain values are encoded.
"""

from __future__ import annotations

import numbers
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, SupportsFloat, SupportsIndex, TypeAlias, cast
from uuid import UUID

import msgspec

Integer: TypeAlias = int | SupportsIndex
"""An integer, including those of other libraries: any `numbers.Integral`, such as numpy's."""

Number: TypeAlias = float | SupportsFloat
"""A number, including those of other libraries: any `numbers.Real`, such as numpy's, or a `Decimal`."""

Id: TypeAlias = str | UUID
"""An id as text or a UUID."""

_OWN = frozenset({str, int, float, bool, type(None)})


def scalar(value: Any) -> Any:
    """Return text, a number or a truth value as Python's own type; anything else as it is."""
    if type(value) in _OWN:
        return value
    if isinstance(value, str):
        return str.__str__(value)  # not `str()`, which returns the name of an enum's member
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    numpy = sys.modules.get("numpy")  # already imported if the value is from it
    if numpy is not None and isinstance(value, numpy.bool_):
        return bool(value)
    return value


def number(value: Any) -> Any:
    """Return a number as `int` or `float`; anything else as it is."""
    return float(value) if isinstance(value, Decimal) else scalar(value)


def text_of_id(value: Any) -> Any:
    """Return an id, text or a UUID, as plain text; anything else as it is."""
    return str(value) if isinstance(value, UUID) else scalar(value)


def is_sequence(value: object) -> bool:
    """Return whether `value` is a sequence of items, and not text or bytes."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)


def plain(value: Any) -> Any:
    """Return `value` with Python's own types in place of other libraries', recursively."""
    if type(value) in _OWN or isinstance(value, msgspec.Struct):
        return value
    if isinstance(value, Mapping):
        mapping = cast("Mapping[Any, Any]", value)
        return {scalar(name): plain(item) for name, item in mapping.items()}
    if is_sequence(value):
        return [plain(item) for item in cast("Sequence[Any]", value)]
    return scalar(value)


def encode_foreign(value: Any) -> Any:
    """Return another library's value as one that JSON can express: the hook for msgspec's encoders.

    Raises:
        TypeError: it has no counterpart.
    """
    made = plain(value)
    if made is value:
        raise TypeError(f"objects of type {type(value).__name__} have no counterpart")
    return made
