"""The base class of wire structs: msgspec with constructors that convert and validate.

msgspec validates decoded input but trusts constructor arguments. Hand-written `Message(role=…)` needs
validation too, so the metaclass passes constructor arguments through `msgspec.convert`; decoding bypasses
it at no extra cost. The `model_*` methods are those of the published 0.1.0.

Errors name the argument, what must hold and what was given, and never show a key.
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self, TypeVar, cast

import msgspec

from omnigate._wire.checks import BE_ENCODABLE, refusal
from omnigate._wire.redaction import mask, redact
from omnigate.exceptions import InvalidArgumentError, InvalidArgumentTypeError

_encoder: Final = msgspec.json.Encoder()

_SECRET_FIELDS = frozenset({"api_key"})

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
"""What msgspec's names for kinds of values are in Python."""

_KIND = re.compile(r"`(\w+)`")

_SURROGATES = re.compile(
    rb"(?:\\\\)+|\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\u[dD][c-fC-F][0-9a-fA-F]{2})?|\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
"""In JSON: backslashes that are escaped (so begin no other escape), a pair of surrogates, or half of one."""

_PATH_PART = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")


def encode(body: object) -> bytes:
    """Return `body` as JSON.

    Raises:
        InvalidArgumentError: it contains text that is not valid UTF-8, or an object JSON cannot represent.

    """
    try:
        return _encoder.encode(body)
    except UnicodeEncodeError:
        failure = _encoding_error(body, "the request")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        failure = InvalidArgumentTypeError(f"the request cannot be written as JSON: {error}")
    raise failure  # outside the except clauses: some of those errors contain the text itself


class _ConvertingMeta(msgspec.StructMeta):
    """Make `Struct(**arguments)` convert and validate as decoding does."""

    if not TYPE_CHECKING:  # type checkers see the fields as constructor arguments

        def __call__(self, /, *positional, **arguments):
            if positional:
                raise TypeError(f"{self.__name__} takes keyword arguments only")
            result = construct(self, arguments)
            if self._refuse_unknown and (unknown := arguments.keys() - set(self.__struct_fields__)):
                raise InvalidArgumentTypeError(
                    f"{self.__name__} has no argument {', '.join(map(repr, sorted(unknown)))}; "
                    f"it takes {', '.join(self.__struct_fields__)}"
                )
            return result


class WireStruct(msgspec.Struct, kw_only=True, gc=False, metaclass=_ConvertingMeta):
    """Base class of all structs: keyword-only, unknown fields ignored."""

    _must: ClassVar[Mapping[str, str]] = {}
    """What must hold, as the words after "must", where msgspec's own would not be clear.

    By field name; "name[]" is an item of the list in that field.
    """
    _refuse_unknown: ClassVar[bool] = False
    """Whether the constructor rejects unknown arguments."""

    @classmethod
    def _prepare(cls, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the constructor's arguments after conversions that msgspec does not do itself."""
        return arguments

    @classmethod
    def model_validate(cls, obj: object) -> Self:
        """Return `obj`, a mapping of fields or an instance, as this type.

        Raises:
            InvalidArgumentError: it is invalid.

        """
        if isinstance(obj, cls):
            return obj
        if not isinstance(obj, Mapping):
            raise refusal("obj", obj, f"be a {cls.__name__} or a mapping of its fields", is_type=True)
        return construct(cls, cast("Mapping[str, Any]", obj))

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray) -> Self:
        """Parse the JSON object `json_data` as this type.

        Raises:
            InvalidArgumentError: it is not JSON, or is invalid.

        """
        try:
            return cast("Self", decoder_for(cls).decode(json_data))
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise InvalidArgumentError(f"{cls.__name__}.model_validate_json: {error}") from error

    def model_dump(
        self,
        *,
        mode: Literal["python", "json"] = "python",
        include: Collection[str] | None = None,
        exclude: Collection[str] | None = None,
        exclude_none: bool = False,
        exclude_defaults: bool = False,
    ) -> dict[str, Any]:
        """Return the fields, without `meta`, as a dict; nested structs become dicts, too.

        Args:
            mode: "json" turns times and decimals into text, "python" keeps them.
            include: names of the fields to include; None for all.
            exclude: names of the fields to leave out.
            exclude_none: leave out fields that are None, at every level.
            exclude_defaults: leave out fields that equal their default, at every level.

        """
        fields: dict[str, Any] = {}
        for field in msgspec.structs.fields(self):
            name, value = field.name, getattr(self, field.name)
            if (include is not None and name not in include) or (exclude is not None and name in exclude):
                continue
            if (exclude_none and value is None) or (exclude_defaults and _is_default(field, value)):
                continue
            fields[name] = _dump(value, mode, exclude_none, exclude_defaults)
        return fields

    def model_dump_json(
        self,
        *,
        indent: int | None = None,
        include: Collection[str] | None = None,
        exclude: Collection[str] | None = None,
        exclude_none: bool = False,
        exclude_defaults: bool = False,
    ) -> str:
        """Return the fields as JSON text.

        Args:
            indent: spaces per level; None for compact output on one line.
            include: as in `model_dump`.
            exclude: as in `model_dump`.
            exclude_none: as in `model_dump`.
            exclude_defaults: as in `model_dump`.

        """
        fields = self.model_dump(
            mode="json",
            include=include,
            exclude=exclude,
            exclude_none=exclude_none,
            exclude_defaults=exclude_defaults,
        )
        text = msgspec.json.encode(fields)
        return (text if indent is None else msgspec.json.format(text, indent=indent)).decode()

    def __rich_repr__(self) -> Any:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            yield name, mask(value) if name in _SECRET_FIELDS and isinstance(value, str) else value

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({fields})"


S = TypeVar("S", bound=WireStruct)

T = TypeVar("T")


@cache
def decoder_for(kind: Any) -> msgspec.json.Decoder[Any]:
    """Return the cached JSON decoder for `kind`; it accepts numbers in strings."""
    return msgspec.json.Decoder(kind, strict=False)


def decode(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    """Decode JSON from the gateway; what is not text in it (lone surrogates, invalid UTF-8) becomes U+FFFD.

    A model's answer that was cut within a character has been paid for, and is more use than an error.

    Raises:
        msgspec.MsgspecError: it is not JSON, or not of the decoder's type.
        RecursionError: it is nested too deeply.

    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError):
        repaired = _SURROGATES.sub(_replaced, data.decode("utf-8", "replace").encode())
        if repaired == data:
            raise
    return decoder.decode(repaired)


def _replaced(found: re.Match[bytes]) -> bytes:
    """Return U+FFFD for half of a pair of surrogates, anything else unchanged."""
    text = found[0]
    return b"\\ufffd" if len(text) == 6 and text[1] == ord("u") else text


def construct(kind: type[S], arguments: Mapping[str, Any]) -> S:
    """Construct `kind` from `arguments`, converted and validated; unknown ones are ignored.

    Raises:
        InvalidArgumentError: an argument is missing or invalid.

    """
    arguments = kind._prepare(arguments)
    try:
        return msgspec.convert(arguments, kind, strict=False)
    except (msgspec.ValidationError, UnicodeError, RecursionError):
        # Accept str subclasses (enums) and other libraries' numbers: retry with plain values.
        try:
            return msgspec.convert(_plain(arguments), kind, strict=False)
        except UnicodeError:
            failure = _encoding_error(arguments, kind.__name__)
        except (msgspec.ValidationError, RecursionError) as error:
            raise _argument_error(kind, arguments, str(error)) from None
    raise failure


def _argument_error(
    kind: type[WireStruct], arguments: Mapping[str, Any], problem: str
) -> InvalidArgumentError:
    what, _, path = problem.partition(" - at `")
    is_key = path.startswith("key` in `")  # a mapping with keys that are not text
    path = path.removeprefix("key` in `").removeprefix("$").removeprefix(".").removesuffix("`")
    if missing := _MISSING_FIELD.match(what):
        where = f"{path}.{missing[1]}" if path else missing[1]
        return InvalidArgumentTypeError(f"{where} is required")
    if not path and is_key:
        key = next(name for name in cast("Mapping[Any, Any]", arguments) if not isinstance(name, str))
        return refusal(kind.__name__, key, "have text as the names of its fields", is_type=True)
    if not path:
        return InvalidArgumentTypeError(f"{kind.__name__}: {redact(what)}")
    value: Any = arguments
    name = where = ""
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
        name = key or name
        is_item = key is None
        where += part[0]
    where = where.removeprefix(".") or path
    if length := _LIST_LENGTH.match(what):
        bound = "at least" if length[1] == ">=" else "at most"
        must = f"have {bound} {length[2]} item{'' if length[2] == '1' else 's'}"
    else:
        must = kind._must.get(f"{name}[]" if is_item else name, "")
    hint = ""
    if not must and what.startswith("Expected "):
        expected = what.removeprefix("Expected ").partition(", got `")[0]
        must = "be " + _KIND.sub(lambda found: _KINDS.get(found[1], found[1]), expected)
    elif not must:
        must, hint = "be valid", redact(what[0].lower() + what[1:])
    is_type = is_key or ", got " in what
    return refusal(
        where, cast("object", value), must, is_type=is_type, secret=name in _SECRET_FIELDS, hint=hint
    )


def _encoding_error(value: object, whole: str) -> InvalidArgumentError:
    """Return the path of the first string that is not valid UTF-8, or None."""
    try:
        found = _unencodable(value)
    except RecursionError:
        found = None
    path, culprit = found or ("", value)
    name = next((key for key, _ in reversed(_PATH_PART.findall(path)) if key), "")
    if not path:
        return refusal(whole, value, BE_ENCODABLE, got="text that does")
    return refusal(path.removeprefix("."), culprit, BE_ENCODABLE, secret=name in _SECRET_FIELDS)


def _unencodable(value: object) -> tuple[str, object] | None:
    """Return the path of the first string that is not valid UTF-8, and the string, or None."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return "", value
        return None
    parts: Iterable[tuple[str, Any]] = ()
    if isinstance(value, WireStruct):
        parts = ((f".{name}", getattr(value, name)) for name in value.__struct_fields__)
    elif isinstance(value, Mapping):
        mapping = cast("Mapping[Any, Any]", value)
        if any(_unencodable(name) is not None for name in mapping):
            return "", mapping
        parts = ((f".{name}", item) for name, item in mapping.items())
    elif isinstance(value, (list, tuple)):
        parts = ((f"[{index}]", item) for index, item in enumerate(cast("list[Any]", value)))
    for name, item in parts:
        found = _unencodable(item)
        if found is not None:
            path, culprit = found
            return name + path, culprit
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return str.__str__(value)
    if value is None or isinstance(value, (bool, msgspec.Struct)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Mapping):
        mapping = cast("Mapping[Any, Any]", value)
        return {_plain(name): _plain(item) for name, item in mapping.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in cast("list[Any]", value)]
    return value


def _dump(value: Any, mode: Literal["python", "json"], exclude_none: bool, exclude_defaults: bool) -> Any:
    if isinstance(value, WireStruct):
        return value.model_dump(mode=mode, exclude_none=exclude_none, exclude_defaults=exclude_defaults)
    if isinstance(value, list):
        items = cast("list[Any]", value)
        return [_dump(item, mode, exclude_none, exclude_defaults) for item in items]
    return msgspec.to_builtins(value) if mode == "json" else value


def _is_default(field: msgspec.structs.FieldInfo, value: Any) -> bool:
    if field.default_factory is not msgspec.NODEFAULT:
        return bool(value == cast("Callable[[], Any]", field.default_factory)())
    return field.default is not msgspec.NODEFAULT and bool(value == field.default)
