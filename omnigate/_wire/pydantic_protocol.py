"""Makes structs usable as pydantic types: in models, type adapters and FastAPI routes.

Programs written for 0.1.0, whose models were pydantic models, use results in these places. Pydantic is
imported only when pydantic itself asks for a schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, cast

import msgspec

from omnigate._wire.dumping import DumpOptions, dump
from omnigate._wire.schemas import additions_of, bounds_of


class PydanticSerializer:
    """The descriptor by which pydantic serializes a struct in a field of the type `Any`."""

    def __get__(self, instance: object, owner: type[msgspec.Struct]) -> Any:
        try:
            return _pydantic_serializer(owner)
        except ImportError:
            raise AttributeError("pydantic is not installed") from None


@cache
def _pydantic_serializer(kind: type[msgspec.Struct]) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind).serializer


def core_schema(
    kind: type[msgspec.Struct], handler: Any, construct: Callable[[Mapping[str, Any]], msgspec.Struct]
) -> Any:
    """Return pydantic's schema of a struct's type.

    Pydantic validates the fields, so that its errors have locations; then the struct's constructor applies
    the other rules. A struct is passed through unchanged. Only the fields of `kind` are serialized: a route
    for `ApiKeyInfo` that returns an `ApiKeyCreated` does not show the key.

    Args:
        kind: the type.
        handler: the handler that pydantic passes to `__get_pydantic_core_schema__`.
        construct: creates the struct from validated fields.
    """
    from pydantic_core import PydanticSerializationUnexpectedValue, core_schema

    def validate(value: Any, inner: Callable[[Any], Mapping[str, Any]]) -> Any:
        return value if isinstance(value, kind) else construct(inner(value))

    def serialize(value: Any, info: Any) -> dict[str, Any]:
        if not isinstance(value, kind):
            raise PydanticSerializationUnexpectedValue(
                f"expected {kind.__name__}, got {type(value).__name__}"
            )
        options = DumpOptions(
            info.mode == "json", info.exclude_unset, info.exclude_defaults, info.exclude_none
        )
        return dump(value, options, info.include, info.exclude, kind=kind)

    info = cast("msgspec.inspect.StructType", msgspec.inspect.type_info(kind))
    fields = {
        field.name: core_schema.typed_dict_field(
            _core_type(core_schema, field.type, handler), required=field.required
        )
        for field in info.fields
    }
    return core_schema.no_info_wrap_validator_function(
        validate,
        core_schema.typed_dict_schema(fields),
        ref=f"{kind.__module__}.{kind.__qualname__}:{id(kind)}",
        serialization=core_schema.plain_serializer_function_ser_schema(serialize, info_arg=True),
    )


def _core_type(core: Any, kind: msgspec.inspect.Type, handler: Any) -> Any:
    match kind:
        case msgspec.inspect.StructType(cls=struct):
            return handler.generate_schema(struct)
        case msgspec.inspect.UnionType(types=types):
            others = [one for one in types if not isinstance(one, msgspec.inspect.NoneType)]
            made = [_core_type(core, one, handler) for one in others]
            schema = made[0] if len(made) == 1 else core.union_schema(made)
            return core.nullable_schema(schema) if len(others) < len(types) else schema
        case msgspec.inspect.ListType(item_type=item):
            return core.list_schema(
                _core_type(core, item, handler), min_length=kind.min_length, max_length=kind.max_length
            )
        case msgspec.inspect.StrType():
            return core.str_schema()
        case msgspec.inspect.Metadata(type=msgspec.inspect.StrType()):
            return core.str_schema(pattern=additions_of(kind).get("pattern"))
        case msgspec.inspect.LiteralType(values=values):
            return core.literal_schema(list(values))
        case msgspec.inspect.IntType():
            return core.int_schema(**bounds_of(kind, "ge", "le"))
        case msgspec.inspect.FloatType():
            return core.float_schema(allow_inf_nan=False, **bounds_of(kind, "ge", "le"))
        case msgspec.inspect.BoolType():
            return core.bool_schema()
        case msgspec.inspect.DateTimeType():
            return core.datetime_schema()
        case msgspec.inspect.DecimalType():
            return core.decimal_schema()
        case _:
            raise TypeError(f"no pydantic schema is known for {kind}")
