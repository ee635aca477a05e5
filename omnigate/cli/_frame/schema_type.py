"""A JSON schema in a file as the type of answers, for `--type`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Final, cast

import click

from omnigate._calls.structured import SchemaType
from omnigate._runtime.extras import extra

_LARGEST_BYTES: Final = 1 << 20

_PROBLEMS_SHOWN: Final = 5


class _SchemaValue(SchemaType):
    """Base of the types that `schema_type` makes."""

    _validator: ClassVar[Any]

    @classmethod
    def checked(cls, value: Any) -> Any:
        """Return a value that matches the schema.

        Raises:
            ValueError: it does not; the error names the first mistakes and their places.
        """
        problems = [
            f"{problem.json_path}: {problem.message}"
            for problem in islice(cls._validator.iter_errors(value), _PROBLEMS_SHOWN)
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return value


def schema_type(path: str) -> type[Any]:
    """Return a type for the `response_type` of a call, from a file with a JSON schema.

    Args:
        path: the file.

    Raises:
        click.UsageError: it is not a JSON schema, or refers to another document.
        MissingExtraError: jsonschema is not installed.
        OSError: it cannot be read.
    """
    with extra("cli", "--type"):
        jsonschema: Any = import_module("jsonschema")
        referencing: Any = import_module("referencing.jsonschema")
        from referencing.exceptions import Unresolvable

    schema = _read(path)
    kind: Any = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise click.UsageError(f"{path} is not a JSON schema: {error.json_path}: {error.message}") from None
    resource = referencing.Resource.from_contents(schema, default_specification=referencing.DRAFT202012)
    registry = referencing.Registry()  # retrieves nothing: a schema must not make this machine call others
    resolver = registry.with_resource("", resource).resolver()
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable:
            raise click.UsageError(f"{path} refers to {reference!r}, which is not in it") from None
    name = schema.get("title")
    attributes = {"json_schema": schema, "_validator": kind(schema, registry=registry)}
    return type(name if isinstance(name, str) and name else Path(path).stem, (_SchemaValue,), attributes)


def _read(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        content = file.read(_LARGEST_BYTES + 1)
    if len(content) > _LARGEST_BYTES:
        raise click.UsageError(f"{path} is larger than {_LARGEST_BYTES:,} bytes")
    try:
        schema = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise click.UsageError(f"{path} is not a JSON schema: it must be an object")
    return cast("dict[str, Any]", schema)


def _references(part: Any) -> Iterator[str]:
    """Yield the references in a schema; none of parts with an address of their own, which they start from."""
    pending = [part]
    while pending:
        part = pending.pop()
        if isinstance(part, Mapping):
            fields = cast("Mapping[str, Any]", part)
            if "$id" in fields:
                continue
            if isinstance(reference := fields.get("$ref"), str):
                yield reference
            pending.extend(fields.values())
        elif isinstance(part, list):
            pending.extend(cast("list[Any]", part))
