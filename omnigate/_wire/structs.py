"""The base class of wire structs: msgspec with constructors that convert and validate.

msgspec validates decoded input but trusts constructor arguments. Hand-written `Message(role=…)` needs
validation too, so the metaclass passes constructor arguments through `msgspec.convert`; decoding bypasses
it at no extra cost. The `model_*` methods are those of the published 0.1.0.

Errors name the argument, what must hold and what was given, and never show a key.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self, TypeVar, cast

import msgspec

from omnigate._wire.checks import check_choice, refusal
from omnigate._wire.dumping import DumpOptions, Selection, dump
from omnigate._wire.given import has_optional, note_given
from omnigate._wire.mistakes import SECRET_FIELDS, argument_error, encoding_error
from omnigate._wire.pydantic_protocol import PydanticSerializer, core_schema
from omnigate._wire.redaction import mask
from omnigate._wire.schemas import DataclassAttribute, ModelFields, complete_schema, json_schema
from omnigate._wire.values import encode_foreign, plain
from omnigate.exceptions import InvalidArgumentError, InvalidArgumentTypeError

if TYPE_CHECKING:
    from omnigate._wire.head import Meta

_encoder: Final = msgspec.json.Encoder(enc_hook=encode_foreign)

_SURROGATES = re.compile(
    rb"(?:\\\\)+|\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\u[dD][c-fC-F][0-9a-fA-F]{2})?|\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
"""In JSON: escaped backslashes (which start no other escape), surrogate pairs, and lone surrogates."""


def encode(body: object) -> bytes:
    """Return `body` as JSON.

    Raises:
        InvalidArgumentError: it contains text that is not valid UTF-8, or an object JSON cannot represent.

    """
    try:
        return _encoder.encode(body)
    except UnicodeEncodeError:
        failure = encoding_error(body, "the request")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        failure = InvalidArgumentTypeError(f"the request cannot be written as JSON: {error}")
    raise failure  # outside the except clauses: some of those errors contain the text itself


class _ConvertingMeta(msgspec.StructMeta):
    """Make `Struct(**arguments)` convert and validate as decoding does."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._names = frozenset(self.__struct_fields__)
        self._notes_given = has_optional(cast("type[msgspec.Struct]", self))

    if not TYPE_CHECKING:  # type checkers see the fields as constructor arguments

        def __call__(self, /, *positional, **arguments):
            if positional:
                raise TypeError(f"{self.__name__} takes keyword arguments only")
            result = construct(self, arguments)
            if self._refuse_unknown and not self._names.issuperset(arguments):
                unknown = arguments.keys() - self._names
                raise InvalidArgumentTypeError(
                    f"{self.__name__} has no argument {', '.join(map(repr, sorted(unknown)))}; "
                    f"it takes {', '.join(self.__struct_fields__)}"
                )
            if self._notes_given:
                note_given(result, arguments)
            return result


class _Slots:
    """Slots that are not struct fields: neither decoded, encoded, compared nor dumped."""

    __slots__ = ("_given", "_meta", "_structured")

    if TYPE_CHECKING:  # at runtime msgspec would make them fields
        _given: frozenset[str]
        """The fields that were given, if the struct was not decoded; absent for all."""
        _meta: Meta
        """The metadata of a result that a call returned."""
        _structured: tuple[Any, tuple[Any, ...]]
        """The value of an answer to a call with `response_type`, and the answers before that did not fit."""


class WireStruct(_Slots, msgspec.Struct, kw_only=True, gc=False, metaclass=_ConvertingMeta):
    """Base class of all structs: keyword-only, unknown fields ignored."""

    _must: ClassVar[Mapping[str, str]] = {}
    """The words after "must" in errors, by field name, where msgspec's would be unclear.

    "name[]" stands for the items of the list in that field.
    """
    _refuse_unknown: ClassVar[bool] = False
    """Whether the constructor rejects unknown arguments."""

    model_fields: ClassVar[ModelFields] = ModelFields()
    """The fields by name, each with `annotation`, `default`, `default_factory` and `is_required()`."""

    __dataclass_fields__: ClassVar[Any] = DataclassAttribute("__dataclass_fields__")
    __dataclass_params__: ClassVar[Any] = DataclassAttribute("__dataclass_params__")
    __pydantic_serializer__: ClassVar[Any] = PydanticSerializer()

    @classmethod
    def _prepare(cls, arguments: dict[str, Any]) -> None:
        """Convert constructor arguments that msgspec does not convert itself, in place."""

    def _is_plain(self) -> bool:
        """Return whether all text is of the type `str` itself (msgspec lets subclasses through) and valid."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            texts = cast("list[object]", value) if type(value) is list else (value,)
            if any(isinstance(text, str) and type(text) is not str for text in texts):
                return False
        return True

    def _check(self) -> None:
        """Check what msgspec does not.

        Raises:
            msgspec.ValidationError: a field is invalid; with its path, as in msgspec's own messages.
        """

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
        fields = cast("Mapping[str, Any]", obj)
        made = construct(cls, dict(fields))
        if cls._notes_given:
            note_given(made, fields)
        return made

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray) -> Self:
        """Parse the JSON object `json_data` as this type.

        Raises:
            InvalidArgumentError: it is not JSON, or is invalid.

        """
        try:
            made = cast("Self", decoder_for(cls).decode(json_data))
            made._check()
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise InvalidArgumentError(f"{cls.__name__}.model_validate_json: {error}") from error
        if cls._notes_given:
            note_given(made, msgspec.json.decode(json_data))
        return made

    @classmethod
    def model_construct(cls, _fields_set: set[str] | None = None, **values: Any) -> Self:
        """Return a struct of values that are known to be valid: none is checked or converted.

        Args:
            _fields_set: the names of the fields that count as given; None for those in `values`.
            values: the fields; those without a default are required.

        """
        made = cast("Self", cast("Any", msgspec.StructMeta).__call__(cls, **values))
        made._given = frozenset(values if _fields_set is None else _fields_set)
        return made

    @classmethod
    def model_json_schema(
        cls, by_alias: bool = True, ref_template: str = "#/$defs/{model}", *, mode: str = "validation"
    ) -> dict[str, Any]:
        """Return the JSON schema of this type.

        Args:
            by_alias: without effect, there are no aliases.
            ref_template: the reference to a definition, with "{model}" for its name.
            mode: "validation" for what is accepted, "serialization" for what `model_dump_json` returns.

        Raises:
            InvalidArgumentError: the mode is another.

        """
        is_output = check_choice(mode, "mode", ("validation", "serialization")) == "serialization"
        return json_schema(cls, ref_template, is_output=is_output)

    @property
    def model_fields_set(self) -> set[str]:
        """The names of the fields that were given to the constructor; all those of an answer."""
        return set(getattr(self, "_given", self.__struct_fields__))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy, which keeps `meta`.

        Args:
            update: fields to change, by name; they are not validated.
            deep: copy nested structs and lists too.

        Raises:
            InvalidArgumentError: `update` names no field.

        """
        made = copy.deepcopy(self) if deep else copy.copy(self)
        if update:
            if unknown := update.keys() - type(self)._names:
                raise refusal("update", sorted(unknown), f"name fields of {type(self).__name__} alone")
            for name, value in update.items():
                setattr(made, name, value)
            made._given = frozenset(made.model_fields_set | update.keys())
        return made

    def model_dump(
        self,
        *,
        mode: Literal["python", "json"] = "python",
        include: Selection | None = None,
        exclude: Selection | None = None,
        by_alias: bool | None = None,
        exclude_unset: bool = False,
        exclude_defaults: bool = False,
        exclude_none: bool = False,
        round_trip: bool = False,
        warnings: bool = True,
    ) -> dict[str, Any]:
        """Return the fields, without `meta`, as a dict; nested structs become dicts, too.

        Args:
            mode: "json" turns times and decimals into text, "python" keeps them.
            include: names of the fields to include, or a dict of names to `True` or to what is included of
                their value; None for all. Items of lists are named by index, or "__all__".
            exclude: the same for what is left out.
            by_alias: without effect, there are no aliases.
            exclude_unset: leave out fields that were not given to the constructor, at every level. All
                fields of the gateway's answers count as given.
            exclude_defaults: leave out fields that equal their default, at every level.
            exclude_none: leave out fields that are None, at every level.
            round_trip: without effect.
            warnings: without effect.

        Raises:
            InvalidArgumentError: `include` or `exclude` is of another form.

        """
        options = DumpOptions(mode == "json", exclude_unset, exclude_defaults, exclude_none)
        return dump(self, options, include, exclude)

    def model_dump_json(
        self,
        *,
        indent: int | None = None,
        include: Selection | None = None,
        exclude: Selection | None = None,
        by_alias: bool | None = None,
        exclude_unset: bool = False,
        exclude_defaults: bool = False,
        exclude_none: bool = False,
        round_trip: bool = False,
        warnings: bool = True,
    ) -> str:
        """Return the fields as JSON text.

        Args:
            indent: spaces per level; None for compact output on one line.
            include: as in `model_dump`.
            exclude: as in `model_dump`.
            by_alias: as in `model_dump`.
            exclude_unset: as in `model_dump`.
            exclude_defaults: as in `model_dump`.
            exclude_none: as in `model_dump`.
            round_trip: as in `model_dump`.
            warnings: as in `model_dump`.

        """
        options = DumpOptions(True, exclude_unset, exclude_defaults, exclude_none)
        text = msgspec.json.encode(dump(self, options, include, exclude))
        return (text if indent is None else msgspec.json.format(text, indent=indent)).decode()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return core_schema(cls, handler, cls.model_validate)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        made: dict[str, Any] = handler(schema)
        complete_schema(cls, handler.resolve_ref_schema(made))
        return made

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter([(name, getattr(self, name)) for name in self.__struct_fields__])

    def __copy__(self) -> Self:
        made: Self = cast("Any", super()).__copy__()
        for name in _Slots.__slots__:
            if hasattr(self, name):
                setattr(made, name, getattr(self, name))
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        reduced = cast("tuple[Any, ...]", super().__reduce__())
        slots = {name: getattr(self, name) for name in _Slots.__slots__ if hasattr(self, name)}
        return (*reduced, (None, slots)) if slots else reduced

    def __rich_repr__(self) -> Any:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            yield name, mask(value) if name in SECRET_FIELDS and isinstance(value, str) else value

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
    """Decode JSON from the gateway; lone surrogates and invalid UTF-8 become U+FFFD.

    A response cut off inside a character has been billed, and is worth more than an error.

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
    """Return U+FFFD for a lone surrogate, anything else unchanged."""
    text = found[0]
    return b"\\ufffd" if len(text) == 6 and text[1] == ord("u") else text


def construct(kind: type[S], arguments: dict[str, Any]) -> S:
    """Construct `kind` from `arguments`, converted and validated; unknown ones are ignored.

    Args:
        kind: the struct's type.
        arguments: its fields; the dict may be changed.

    Raises:
        InvalidArgumentError: an argument is missing or invalid.

    """
    kind._prepare(arguments)
    try:
        made = msgspec.convert(arguments, kind)
        if made._is_plain():
            return made
    except (msgspec.ValidationError, UnicodeError, RecursionError):
        pass
    # Accept numbers in strings, subclasses of str, other sequences and other libraries' numbers.
    try:
        made = msgspec.convert(plain(arguments), kind, strict=False)
        made._check()
        return made
    except UnicodeError:
        failure = encoding_error(arguments, kind.__name__)
    except (msgspec.ValidationError, RecursionError) as error:
        raise argument_error(kind.__name__, arguments, str(error), kind._must) from None
    raise failure
