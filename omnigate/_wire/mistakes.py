"""Rewords msgspec's errors about a struct's fields: what must hold, and what was given."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

import msgspec

from omnigate._wire.checks import BE_ENCODABLE, refusal
from omnigate._wire.redaction import redact
from omnigate._wire.values import is_sequence
from omnigate.exceptions import InvalidArgumentError, InvalidArgumentTypeError

SECRET_FIELDS: Final = frozenset({"api_key"})
"""Fields whose values are hidden in errors and masked in reprs."""

_MISSING_FIELD = re.compile(r"Object missing required field `(.+)`")

_LIST_LENGTH = re.compile(r"Expected `array` of length (>=|<=) (\d+)")

_KINDS: Final = {
    "array": "a list",
    "bool": "True or False",
    "float": "a number",
    "int": "an integer",
    "null": "None",
    "object": "a dict",
    "str": "text",
}
"""Python's words for msgspec's names of types."""

_KIND = re.compile(r"`(\w+)`")

_PATH_PART = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")


def argument_error(
    name: str, arguments: Mapping[str, Any], problem: str, musts: Mapping[str, str]
) -> InvalidArgumentError:
    """Return the error for arguments that a struct does not accept.

    Args:
        name: the struct's.
        arguments: its fields, as given.
        problem: msgspec's message.
        musts: the words after "must" by field name, where msgspec's would be unclear; "name[]" stands for the
            items of the list in that field.
    """
    what, _, path = problem.partition(" - at `")
    is_key = path.startswith("key` in `")  # a mapping with keys that are not text
    path = path.removeprefix("key` in `").removeprefix("$").removeprefix(".").removesuffix("`")
    if missing := _MISSING_FIELD.match(what):
        where = f"{path}.{missing[1]}" if path else missing[1]
        return InvalidArgumentTypeError(f"{where} is required")
    if not path and is_key:
        key = next(name for name in cast("Mapping[Any, Any]", arguments) if not isinstance(name, str))
        return refusal(name, key, "have text as the names of its fields", is_type=True)
    if not path:
        return InvalidArgumentTypeError(f"{name}: {redact(what)}")
    value: Any = arguments
    field = where = ""
    is_item = False
    for part in _PATH_PART.finditer("." + path):
        key, index = part.groups()
        try:
            if index:
                value = value[int(index)]
            elif isinstance(value, Mapping):
                value = cast("Mapping[str, Any]", value)[key]
            else:
                value = getattr(value, key)
        except (LookupError, AttributeError, TypeError):  # e.g. an item of a set: blame the set
            break
        field = key or field
        is_item = key is None
        where += part[0]
    where = where.removeprefix(".") or path
    if length := _LIST_LENGTH.match(what):
        bound = "at least" if length[1] == ">=" else "at most"
        must = f"have {bound} {length[2]} item{'' if length[2] == '1' else 's'}"
    else:
        must = musts.get(f"{field}[]" if is_item else field, "")
    hint = ""
    if not must and what.startswith("Expected "):
        expected = what.removeprefix("Expected ").partition(", got `")[0]
        must = "be " + _KIND.sub(lambda found: _KINDS.get(found[1], found[1]), expected)
    elif not must:
        must, hint = "be valid", redact(what[0].lower() + what[1:])
    is_type = is_key or ", got " in what
    return refusal(
        where, cast("object", value), must, is_type=is_type, secret=field in SECRET_FIELDS, hint=hint
    )


def encoding_error(value: object, whole: str) -> InvalidArgumentError:
    """Return an error that names the first string in a value that is not valid UTF-8.

    Args:
        value: the value.
        whole: the value's name, used if it is that string itself.
    """
    try:
        found = _unencodable(value)
    except RecursionError:
        found = None
    path, culprit = found or ("", value)
    name = next((key for key, _ in reversed(_PATH_PART.findall(path)) if key), "")
    if not path:
        return refusal(whole, value, BE_ENCODABLE, got="text that does")
    return refusal(path.removeprefix("."), culprit, BE_ENCODABLE, secret=name in SECRET_FIELDS)


def _unencodable(value: object) -> tuple[str, object] | None:
    """Return the path of the first string that is not valid UTF-8, and the string, or None."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return "", value
        return None
    parts: Iterable[tuple[str, Any]] = ()
    if isinstance(value, msgspec.Struct):
        parts = ((f".{name}", getattr(value, name)) for name in value.__struct_fields__)
    elif isinstance(value, Mapping):
        mapping = cast("Mapping[Any, Any]", value)
        if any(_unencodable(name) is not None for name in mapping):
            return "", mapping
        parts = ((f".{name}", item) for name, item in mapping.items())
    elif is_sequence(value):
        parts = ((f"[{index}]", item) for index, item in enumerate(cast("Sequence[Any]", value)))
    for name, item in parts:
        found = _unencodable(item)
        if found is not None:
            path, culprit = found
            return name + path, culprit
    return None
