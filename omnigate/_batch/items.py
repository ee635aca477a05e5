"""Parse a batch's input into requests: Python items or the lines of a file.

An item that is not a valid request raises nothing here: it becomes an `Item` with an error, and later a
failed outcome, while the batch continues. Problems with the source as a whole are raised.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, AsyncIterator, ItemsView, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import IO, Any, Final, Protocol, TypeAlias, cast

import msgspec

from omnigate._data.ids import ID_FIELDS, id_text
from omnigate._data.rows import Again, InvalidRow, Row, names_of
from omnigate._data.source import DataSource, data_source, is_data
from omnigate._wire.checks import one_of, refusal
from omnigate._wire.redaction import shown
from omnigate._wire.structs import WireStruct, construct
from omnigate._wire.values import is_sequence
from omnigate.exceptions import InvalidArgumentError, InvalidArgumentTypeError
from omnigate.models import ChatRequest, CompletionRequest, Message

BatchItem: TypeAlias = ChatRequest | Message | str | Mapping[str, Any] | Sequence[Any]
"""A `ChatRequest`, a dict of its fields (and `id`), or, where `model=` is given, messages."""


class ArrowTable(Protocol):
    """A frame or table that offers the Arrow PyCapsule interface."""

    def __arrow_c_stream__(self, requested_schema: Any = None) -> object: ...


class DataFrame(Protocol):
    """A frame or table that offers the dataframe interchange protocol."""

    def __dataframe__(self, nan_as_null: bool = False, allow_copy: bool = True) -> Any: ...


SyncBatchSource: TypeAlias = (
    Iterable[BatchItem | os.PathLike[str]] | os.PathLike[str] | IO[str] | IO[bytes] | ArrowTable | DataFrame
)
"""Items, or data: a path or several, an open file, a frame or table."""

BatchSource: TypeAlias = SyncBatchSource | AsyncIterable[BatchItem]

_BE_ITEM: Final = (
    "be a ChatRequest, a dict of its fields (and id), or, where model= is given, messages: "
    "text, a message, or a list of messages"
)

_URLS: Final = ("/v1/chat", "/v1/chat/completions")

_TABLE_FIELDS: Final = frozenset({*ChatRequest.__struct_fields__, "prompt"})
"""Columns of a table that are fields of the request."""

_NONE: Final[Mapping[str, Any]] = MappingProxyType({})

_IGNORABLE: Final[Mapping[str, Any]] = {"n": 1, "stream": False}
"""Fields of OpenAI's requests that are dropped if they have this value: the only supported one."""


class Item(msgspec.Struct, frozen=True, gc=False):
    """One parsed item of a batch.

    Attributes:
        index: position in the input, from 0.
        id: its id, else its index as text.
        request: the request, or None if invalid.
        error: why it is invalid, or None.
        row: the fields it was made from, if it was a row or a mapping.
    """

    index: int
    id: str
    request: ChatRequest | None
    error: InvalidArgumentError | None
    row: Mapping[str, Any] | None = None


def check_source(requests: Any, *, is_sync: bool) -> None:
    """Check that `requests` is a source of items.

    Raises:
        InvalidArgumentTypeError: it is not, looks like a single item, or iterates over something else than
            items: an array of several dimensions over its rows, an async file over its lines.
    """
    given: object = requests
    must = "be an iterable of items, or data: a pathlib.Path of a file, an open file, a frame or table"
    if isinstance(given, str | bytes | bytearray):
        hint = "for a file, write Path(…); for one item, write [item]"
        raise refusal("requests", given, must, is_type=True, hint=hint)
    if isinstance(given, Mapping | WireStruct):
        hint = "for one item, write [item]"
        raise refusal("requests", cast("object", given), must, is_type=True, hint=hint)
    if is_data(requests):
        return
    if instead := _not_of_items(given):
        what, hint = instead
        raise refusal("requests", given, must, is_type=True, got=what, hint=hint)
    if isinstance(requests, Iterable):
        return
    if not isinstance(requests, AsyncIterable):
        if not is_sync:
            must = must.replace("iterable", "iterable or async iterable")
        raise refusal("requests", given, must, is_type=True)
    if is_sync:
        must = "be an iterable or a pathlib.Path for the sync client"
        raise refusal("requests", given, must, is_type=True, hint="AsyncClient reads async iterables")


def check_ids(requests: object, id: str | None = None) -> None:
    """Check that no two items of a list have the same id; other sources are checked while they are read.

    Args:
        requests: the source.
        id: the field that identifies an item, in place of `id` and `custom_id`.

    Raises:
        InvalidArgumentError: two have.
    """
    if not isinstance(requests, list | tuple) or is_data(cast("object", requests)):
        return
    items = cast("list[object]", requests)
    seen: set[str] = set()
    for index, raw in enumerate(items):
        found = _id_or_index(raw, index, id)
        if found in seen:
            first = next(other for other, raw in enumerate(items) if _id_or_index(raw, other, id) == found)
            must = "give each item an id of its own" + (", since there is a journal" if id is None else "")
            got = f"{shown(found)} for items {first} and {index}"
            hint = "items without an id get their index" if id is None else f"by id={id!r}"
            raise refusal("requests", None, must, got=got, hint=hint)
        seen.add(found)


def _not_of_items(requests: object) -> tuple[str, str] | None:
    """Return a description of a source without items, and what to pass instead; None if it has items."""
    kind = type(requests)
    name = f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
    if hasattr(kind, "readline") or hasattr(kind, "readlines"):
        hint = "pass its path, or the file opened with open()"
        return f"an open file ({name}) that is not read so", hint
    if hasattr(kind, "collect") and hasattr(kind, "collect_schema"):
        return f"a query ({name}), not its result", "pass frame.collect()"
    columns = getattr(kind, "columns", None)  # of the class: an instance might compute it
    if columns is not None and not callable(columns):
        hint = "pass its rows as dicts, or a frame of pandas, polars or Arrow"
        return f"a table ({name}), which does not iterate over rows", hint
    if getattr(kind, "ndim", None) is not None and getattr(requests, "ndim", 1) != 1:
        return f"an array of {getattr(requests, 'ndim', 0)} dimensions", "pass a list of items"
    if isinstance(requests, ItemsView):
        return "the items of a dict", "pass [{'id': id, 'prompt': prompt} for id, prompt in prompts.items()]"
    return None


def is_async_source(requests: BatchSource | DataSource) -> bool:
    """Return whether `open_source` returns an async iterator, which itself need not have `__aiter__`."""
    return not (is_data(requests) or isinstance(requests, Iterable))


def open_source(requests: BatchSource | DataSource) -> Iterator[Any] | AsyncIterator[Any]:
    """Return an iterator over the raw items of a source: for data, over its rows."""
    if is_data(requests):
        return data_source(requests).rows()
    if isinstance(requests, Iterable):
        return iter(cast("Iterable[Any]", requests))
    return aiter(cast("AsyncIterable[Any]", requests))


def read_item(
    raw: object,
    index: int,
    model: str | None,
    defaults: Mapping[str, Any] = _NONE,
    *,
    system: str | None = None,
    id: str | None = None,
) -> Item:
    """Parse a raw item; an invalid one is returned with its error.

    Args:
        raw: the item, as the source yielded it.
        index: its position.
        model: model to use if it names none.
        defaults: other fields of the request, for those that it lacks.
        system: the system message, if it has none.
        id: the field that identifies it, in place of `id` and `custom_id`.
    """
    row: Mapping[str, Any] | None = None
    if type(raw) is str and model is not None:  # the most common
        fields: dict[str, Any] = {"model": model, "messages": raw, **defaults}
        own_id = str(index)
    elif isinstance(raw, ChatRequest):
        return _checked(_with_defaults(raw, defaults, system), raw, index, str(index), None)
    elif isinstance(raw, InvalidRow):
        return Item(index, str(index), None, raw.error)
    else:
        row = row_of(raw)
        if row is None and not (isinstance(raw, str | Message) or is_sequence(raw)):
            hint = "for files, pass a list of their paths" if hasattr(raw, "__fspath__") else ""
            error = refusal(f"item {index}", raw, _BE_ITEM, is_type=True, hint=hint)
            return Item(index, str(index), None, error)
        try:
            own_id = str(index) if row is None else item_id(row, index, id)
            fields = {"messages": raw} if row is None else _fields(raw, row, id)
        except InvalidArgumentError as error:
            problem = type(error)(f"{place_of(raw, index)}: {error}")
            return Item(index, _id_or_index(row, index, id), None, problem, row)
        if model is not None and fields.get("model") is None:
            fields["model"] = model
        for name, value in defaults.items():
            if fields.get(name) is None:
                fields[name] = value
    return make_item(fields, raw, index, own_id, row, system)


def make_item(
    fields: dict[str, Any],
    raw: object,
    index: int,
    id: str,
    row: Mapping[str, Any] | None,
    system: str | None,
) -> Item:
    """Return the item of a request's fields, with its error if they are not valid.

    Args:
        fields: of the request.
        raw: the item, as the source yielded it.
        index: the item's position.
        id: its id.
        row: the fields it was made from, or None.
        system: the system message, if there is none among its messages.
    """
    try:
        request = construct(ChatRequest, fields)
    except InvalidArgumentError as error:
        problem = str(error)
        if fields.get("model") is None:
            problem = "model is required: name it in the item, or pass model= to the batch"
        return Item(index, id, None, type(error)(f"{place_of(raw, index)} (id {shown(id)}): {problem}"), row)
    if system is not None:
        _add_system(request, system)
    return _checked(request, raw, index, id, row)


def row_of(raw: object) -> Mapping[str, Any] | None:
    """Return the fields of an item that is a row or a mapping; None for another."""
    if isinstance(raw, Row):
        return raw.fields
    return cast("Mapping[str, Any]", raw) if isinstance(raw, Mapping) else None


def place_of(raw: object, index: int) -> str:
    """Return where an item is in the input, for messages."""
    return raw.place if isinstance(raw, Row) else f"item {index}"


def _with_defaults(request: ChatRequest, defaults: Mapping[str, Any], system: str | None) -> ChatRequest:
    """Return a request with the fields and the system message that it lacks; the given one is unchanged."""
    lacking = {name: value for name, value in defaults.items() if getattr(request, name) is None}
    if lacking:
        request = request.model_copy(update=lacking)
    if system is not None:
        request = request.model_copy(update={"messages": list(request.messages)})
        _add_system(request, system)
    return request


def _add_system(request: ChatRequest, text: str) -> None:
    if all(message.role != "system" for message in request.messages):
        request.messages.insert(0, Message(role="system", content=text))


def _checked(request: ChatRequest, raw: object, index: int, id: str, row: Mapping[str, Any] | None) -> Item:
    if request.stream:
        argument = f"{place_of(raw, index)} (id {shown(id)}): stream"
        return Item(index, id, None, refusal(argument, request.stream, "be False in a batch"), row)
    return Item(index, id, request, None, row)


def _fields(raw: object, row: Mapping[str, Any], id: str | None) -> dict[str, Any]:
    """Return the fields of the request that a mapping, or a row, is by itself.

    The columns of a table that no request has are data; an empty cell of a text file is no value.
    """
    was_row = isinstance(raw, Again) and raw.keys().isdisjoint(("role", "body"))  # of a table, perhaps
    if was_row or (isinstance(raw, Row) and raw.origin.is_table):
        row = {name: value for name, value in row.items() if name in _TABLE_FIELDS and not _is_empty(value)}
    ignored = ID_FIELDS if id is None else (*ID_FIELDS, id)
    if "role" in row:
        return {"messages": {name: value for name, value in row.items() if name not in ignored}}
    if "body" in row:
        return _body(row)
    fields = {name: value for name, value in row.items() if name not in ignored}
    if "prompt" in fields:
        if "messages" in fields:
            raise refusal("prompt", fields["prompt"], "not be given together with messages")
        fields["messages"] = fields.pop("prompt")
    _refuse_unknown(fields)
    return fields


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value)


def item_id(row: Mapping[str, Any], index: int, id: str | None) -> str:
    """Return the id of an item, or its index as text if it has none.

    Args:
        row: its fields.
        index: its position.
        id: the field that has it, which then must be there; None for `custom_id` or `id`.

    Raises:
        InvalidArgumentError: it has none in that field, or one that is not valid. The caller adds which item
            it is.
    """
    if isinstance(row, Again):
        return row.id
    if id is not None:
        value: Any = row.get(id)
        if type(value) is str and value and value.isascii():
            return value
        if value is None:
            what = "is null" if id in row else f"is missing, there are only {names_of(row)}"
            raise InvalidArgumentError(f"the field {id!r} (id=) {what}")
        return id_text(value, f"the field {id!r} (id=)")
    value = row.get("id") if row.get("custom_id") is None else row["custom_id"]
    return str(index) if value is None else id_text(value, "id")


def _id_or_index(raw: object, index: int, id: str | None = None) -> str:
    row = row_of(raw)
    try:
        return str(index) if row is None else item_id(row, index, id)
    except InvalidArgumentError:
        return str(index)


def _body(line: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a request of OpenAI's batch input to the fields of `/v1/chat`."""
    method, url, body = line.get("method", "POST"), line.get("url", _URLS[1]), line["body"]
    if method != "POST":
        raise refusal("method", method, "be 'POST'")
    if url not in _URLS:
        raise refusal("url", url, f"be {one_of(_URLS)}")
    if not isinstance(body, Mapping):
        raise refusal("body", body, "be a JSON object", is_type=True)
    fields = {
        name: value
        for name, value in cast("Mapping[str, Any]", body).items()
        if value is not None and not (name in _IGNORABLE and value == _IGNORABLE[name])
    }
    if "max_completion_tokens" in fields:
        most = fields.pop("max_completion_tokens")
        fields.setdefault(
            "max_tokens", most
        )  # read where max_tokens is absent (docs/protocol.md, "OpenAI-compatible")
    _refuse_unknown(fields)
    CompletionRequest._prepare(fields)
    return fields


def _refuse_unknown(fields: Mapping[str, Any]) -> None:
    if unknown := fields.keys() - set(ChatRequest.__struct_fields__):
        raise InvalidArgumentTypeError(
            f"{', '.join(map(repr, sorted(map(str, unknown))))} cannot be sent to /v1/chat; "
            f"it takes {', '.join(ChatRequest.__struct_fields__)}"
        )
