"""Records which fields of a struct were given to its constructor, for pydantic's `exclude_unset`.

Decoded structs have no record, which means all fields: the gateway sends every field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

import msgspec

from omnigate._wire.dumping import fields_of
from omnigate._wire.values import is_sequence


def has_optional(kind: type[msgspec.Struct]) -> bool:
    """Return whether a struct of this type has fields that need not be given."""
    return not all(field.required for field in fields_of(kind))


def note_given(made: msgspec.Struct, arguments: Mapping[str, Any]) -> None:
    """Record which fields of a struct, and of the structs nested in it, were given."""
    names, nested = _fields(type(made))
    cast("Any", made)._given = names.intersection(arguments)
    for name in nested:
        if name in arguments:
            _note_nested(getattr(made, name), arguments[name])


def _note_nested(made: object, argument: object) -> None:
    if isinstance(made, msgspec.Struct) and isinstance(argument, Mapping):
        if has_optional(type(made)):
            note_given(made, cast("Mapping[str, Any]", argument))
    elif isinstance(made, list) and is_sequence(argument):
        for item, given in zip(cast("list[object]", made), cast("Sequence[object]", argument), strict=True):
            _note_nested(item, given)


@cache
def _fields(kind: type[msgspec.Struct]) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the names of all fields, and of those that hold structs with optional fields."""
    nested = tuple(
        field.name
        for field in fields_of(kind)
        if any(map(has_optional, _struct_types(msgspec.inspect.type_info(field.type))))
    )
    return frozenset(kind.__struct_fields__), nested


def _struct_types(kind: msgspec.inspect.Type) -> list[type[msgspec.Struct]]:
    match kind:
        case msgspec.inspect.StructType(cls=struct):
            return [struct]
        case msgspec.inspect.ListType(item_type=item):
            return _struct_types(item)
        case msgspec.inspect.UnionType(types=types):
            return [struct for one in types for struct in _struct_types(one)]
        case _:
            return []
