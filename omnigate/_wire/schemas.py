"""Describes structs: their fields, their JSON schemas, and the attributes of dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, cast, get_type_hints

import msgspec

from omnigate._wire.dumping import fields_of


@dataclasses.dataclass(frozen=True, slots=True)
class FieldInfo:
    """A field of a struct, with the names of pydantic's `FieldInfo`.

    Attributes:
        annotation: its type, without constraints.
        default: its default; `msgspec.NODEFAULT` if it is required or has a factory.
        default_factory: makes the default, or None.

    """

    annotation: Any
    default: Any
    default_factory: Callable[[], Any] | None

    def is_required(self) -> bool:
        """Return whether the constructor needs it."""
        return self.default is msgspec.NODEFAULT and self.default_factory is None

    def get_default(self, *, call_default_factory: bool = False) -> Any:
        """Return the default; None for that of a factory that is not called."""
        if self.default_factory is None:
            return self.default
        return self.default_factory() if call_default_factory else None


class ModelFields:
    """The descriptor `model_fields`."""

    def __get__(self, instance: object, owner: type[msgspec.Struct]) -> dict[str, FieldInfo]:
        hints = get_type_hints(owner)
        return {
            field.name: FieldInfo(
                hints[field.name],
                field.default,
                None if field.default_factory is msgspec.NODEFAULT else field.default_factory,
            )
            for field in fields_of(owner)
        }


class DataclassAttribute:
    """A descriptor for the attributes that `dataclasses` stores in a class.

    FastAPI treats an argument as the request's body if its type is a pydantic model or a dataclass; data
    frames and JSON encoders read dataclasses, too.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type[msgspec.Struct]) -> Any:
        return getattr(_twin(owner), self._name)


@cache
def _twin(kind: type[msgspec.Struct]) -> type:
    """Return a dataclass with the same fields."""
    specification: list[Any] = []
    for name, field in cast("Any", kind).model_fields.items():
        options: dict[str, Any] = {}
        if field.default_factory is not None:
            options["default_factory"] = field.default_factory
        elif field.default is not msgspec.NODEFAULT:
            options["default"] = field.default
        specification.append((name, field.annotation, dataclasses.field(kw_only=True, **options)))
    return dataclasses.make_dataclass(kind.__name__, specification, repr=False, eq=False)


class _Definitions:
    """The JSON schemas of structs that refer to each other, by name.

    Args:
        ref_template: the reference to a definition, with "{model}" for its name.
        is_output: whether the schemas describe output (serialized values) rather than accepted input.
    """

    def __init__(self, ref_template: str, *, is_output: bool) -> None:
        self._ref_template = ref_template
        self._is_output = is_output
        self.schemas: dict[str, dict[str, Any]] = {}

    def of_struct(self, kind: type[msgspec.Struct]) -> dict[str, Any]:
        """Return the schema of a struct's type."""
        info = cast("msgspec.inspect.StructType", msgspec.inspect.type_info(kind))
        schema: dict[str, Any] = {
            "properties": {field.name: self._of_type(field.type) for field in info.fields},
            "type": "object",
        }
        if required := [field.name for field in info.fields if field.required]:
            schema["required"] = required
        complete_schema(kind, schema)
        return schema

    def _of_type(self, kind: msgspec.inspect.Type) -> dict[str, Any]:
        match kind:
            case msgspec.inspect.StructType(cls=struct):
                name = struct.__name__
                if name not in self.schemas:
                    self.schemas[name] = {}  # before the fields, which may refer to it
                    self.schemas[name] = self.of_struct(struct)
                return {"$ref": self._ref_template.format(model=name)}
            case msgspec.inspect.UnionType(types=types):
                made = [self._of_type(one) for one in types]
                return {"anyOf": [one for schema in made for one in schema.get("anyOf", [schema])]}
            case msgspec.inspect.ListType(item_type=item):
                schema = {"type": "array", "items": self._of_type(item)}
                return schema | _given(minItems=kind.min_length, maxItems=kind.max_length)
            case msgspec.inspect.StrType():
                return {"type": "string"}
            case msgspec.inspect.Metadata(type=inner):
                return self._of_type(inner) | additions_of(kind)
            case msgspec.inspect.LiteralType(values=values):
                return {"enum": list(values), "type": "string"}
            case msgspec.inspect.IntType():
                return {"type": "integer"} | bounds_of(kind, "minimum", "maximum")
            case msgspec.inspect.FloatType():
                return {"type": "number"} | bounds_of(kind, "minimum", "maximum")
            case msgspec.inspect.BoolType():
                return {"type": "boolean"}
            case msgspec.inspect.NoneType():
                return {"type": "null"}
            case msgspec.inspect.DateTimeType():
                return {"format": "date-time", "type": "string"}
            case msgspec.inspect.DecimalType():
                text = {"type": "string"}
                return text if self._is_output else {"anyOf": [{"type": "number"}, text]}
            case _:
                raise TypeError(f"no JSON schema is known for {kind}")


def json_schema(kind: type[msgspec.Struct], ref_template: str, *, is_output: bool) -> dict[str, Any]:
    """Return the JSON schema of a struct's type, as pydantic would write it.

    Args:
        kind: the type.
        ref_template: the reference to a definition, with "{model}" for its name.
        is_output: whether it describes output (serialized values) rather than accepted input.
    """
    definitions = _Definitions(ref_template, is_output=is_output)
    schema = definitions.of_struct(kind)
    nested = dict(sorted(definitions.schemas.items()))
    return {"$defs": nested, **schema} if nested else schema


def complete_schema(kind: type[msgspec.Struct], schema: dict[str, Any]) -> None:
    """Add titles, defaults and the description to a struct's JSON schema."""
    schema["title"] = kind.__name__
    schema["description"] = inspect.cleandoc(kind.__doc__ or "")
    for field in fields_of(kind):
        schema_of_field = schema["properties"][field.name]
        if field.default is not msgspec.NODEFAULT:
            schema_of_field["default"] = field.default
        if not _is_reference(schema_of_field):
            schema_of_field["title"] = field.name.replace("_", " ").title()


def _is_reference(schema: Mapping[str, Any]) -> bool:
    return "$ref" in schema or any("$ref" in one for one in schema.get("anyOf", ()))


def _given(**constraints: Any) -> dict[str, Any]:
    return {name: value for name, value in constraints.items() if value is not None}


def additions_of(kind: msgspec.inspect.Metadata) -> dict[str, Any]:
    """Return what a type says about its JSON schema besides what msgspec knows."""
    additions: dict[str, Any] | None = cast("Any", kind).extra_json_schema
    return additions or {}


def bounds_of(
    kind: msgspec.inspect.IntType | msgspec.inspect.FloatType, least: str, greatest: str
) -> dict[str, Any]:
    """Return the bounds of a number; none if they only exclude infinity."""
    if isinstance(kind, msgspec.inspect.FloatType) and kind.ge is not None and kind.ge < -1e308:
        return {}
    return _given(**{least: kind.ge, greatest: kind.le})
