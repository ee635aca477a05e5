"""Structs as dicts, whole or in part: `model_dump`, with the nested `include` and `exclude` of pydantic.

A selection is a collection of names, or a mapping of names to nested selections, `True` standing for
everything. For lists the names are indices (negative ones count from the end), and "__all__" means each item.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any, Final, NamedTuple, TypeAlias, cast

import msgspec

from omnigate._wire.checks import refusal
from omnigate._wire.values import encode_foreign

Selection: TypeAlias = Collection[str] | Collection[int] | Mapping[str, Any] | Mapping[int, Any]
"""Names of fields or indices of items; or a mapping of them to `True` or a nested selection."""

_Selected: TypeAlias = dict[Any, Any]
"""A selection with all its values as given: `True`, or a nested selection."""

_BE_SELECTION: Final = "be a set of names, or a dict of names to True or to a nested selection"


class DumpOptions(NamedTuple):
    """What is left out at every level, and whether only values that JSON has are returned."""

    is_json: bool = False
    exclude_unset: bool = False
    exclude_defaults: bool = False
    exclude_none: bool = False


@cache
def fields_of(kind: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """Return the fields of a struct's type."""
    return msgspec.structs.fields(kind)


def dump(
    value: msgspec.Struct,
    options: DumpOptions,
    include: object = None,
    exclude: object = None,
    *,
    kind: type[msgspec.Struct] | None = None,
) -> dict[str, Any]:
    """Return a struct's fields as a dict, nested structs too.

    Args:
        value: the struct.
        options: what to leave out at every level.
        include: the selection to return; None for everything.
        exclude: the selection to leave out.
        kind: a base class of the struct's type, to return only that class's fields.

    Raises:
        InvalidArgumentError: `include` or `exclude` is not a selection.
    """
    included = None if include is None else _selected(include, "include")
    excluded = _selected(exclude, "exclude") if exclude else {}
    given: frozenset[str] | None = getattr(value, "_given", None) if options.exclude_unset else None
    made: dict[str, Any] = {}
    for field in fields_of(kind or type(value)):
        name, item = field.name, getattr(value, field.name)
        if (included is not None and name not in included) or excluded.get(name) is True:
            continue
        if (given is not None and name not in given) or (options.exclude_none and item is None):
            continue
        if options.exclude_defaults and _is_default(field, item):
            continue
        made[name] = _dump(item, options, _nested(included, name), excluded.get(name))
    return made


def _dump(value: Any, options: DumpOptions, include: object, exclude: object) -> Any:
    if isinstance(value, msgspec.Struct):
        return dump(value, options, include, exclude)
    if isinstance(value, list):
        return _dump_list(cast("list[Any]", value), options, include, exclude)
    return msgspec.to_builtins(value, enc_hook=encode_foreign) if options.is_json else value


def _dump_list(items: list[Any], options: DumpOptions, include: object, exclude: object) -> list[Any]:
    included = None if include is None else _by_index(include, "include", len(items))
    excluded = _by_index(exclude, "exclude", len(items)) if exclude else {}
    return [
        _dump(item, options, _nested(included, index), excluded.get(index))
        for index, item in enumerate(items)
        if (included is None or index in included) and excluded.get(index) is not True
    ]


def _nested(included: _Selected | None, key: object) -> object:
    """Return the selection within a selected field or item; None for everything."""
    nested = None if included is None else included[key]
    return None if nested is True else nested


def _selected(selection: object, argument: str) -> _Selected:
    """Return a selection as a dict; None in `exclude` excludes nothing."""
    if isinstance(selection, Mapping):
        chosen: _Selected = {}
        for key, nested in cast("Mapping[Any, Any]", selection).items():
            if nested is None and argument == "exclude":
                continue
            if nested is None or nested is True or nested is ...:
                chosen[key] = True
            elif _is_selection(nested):
                chosen[key] = nested
            else:
                raise refusal(f"{argument}[{key!r}]", nested, _BE_SELECTION, is_type=True)
        return chosen
    if not _is_selection(selection):
        raise refusal(argument, selection, _BE_SELECTION, is_type=True)
    return dict.fromkeys(cast("Collection[Any]", selection), True)


def _is_selection(value: object) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str | bytes | bytearray)


def _by_index(selection: object, argument: str, length: int) -> _Selected:
    """Return the selection of a list's items by their indices from 0."""
    chosen = _selected(selection, argument)
    each = chosen.pop("__all__", None)
    made: _Selected = {} if each is None else dict.fromkeys(range(length), each)
    for key, nested in chosen.items():
        if isinstance(key, int) and -length <= key < length:
            index = key % length
            made[index] = _merged(made[index], nested, argument) if index in made else nested
    return made


def _merged(each: object, own: object, argument: str) -> object:
    """Return the selection within an item: its own, with that of each item added where both name parts."""
    if each is True or own is True:
        return own
    both = _selected(each, argument)
    for key, nested in _selected(own, argument).items():
        both[key] = _merged(both[key], nested, argument) if key in both else nested
    return both


def _is_default(field: msgspec.structs.FieldInfo, value: Any) -> bool:
    if field.default_factory is not msgspec.NODEFAULT:
        return bool(value == cast("Callable[[], Any]", field.default_factory)())
    return field.default is not msgspec.NODEFAULT and bool(value == field.default)
