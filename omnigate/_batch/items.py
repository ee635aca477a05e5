"""Parse a batch's input into requests: Python items or the lines of a file.

An item that is not a valid request raises nothing here: it becomes an `Item` with an error, and later a
failed outcome, while the batch continues. Problems with the source as a whole are raised.
"""

from __future__ import annotations

import numbers
import os
import uuid
from collections.abc import AsyncIterable, AsyncIterator, ItemsView, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias, cast

import msgspec

from omnigate._batch.files import InvalidLine, path_of, read_lines
from omnigate._wire.checks import BE_ENCODABLE, one_of, refusal
from omnigate._wire.redaction import shown
from omnigate._wire.structs import WireStruct, construct
from omnigate._wire.values import is_sequence
from omnigate.exceptions import InvalidArgumentError, InvalidArgumentTypeError
from omnigate.models import ChatRequest, CompletionRequest, Message, MessagesInput

BatchItem: TypeAlias = ChatRequest | Message | str | Mapping[str, Any] | Sequence[Any]
"""A `ChatRequest`, a dict of its fields (and `id`), or, where `model=` is given, messages."""

BatchSource: TypeAlias = Iterable[BatchItem] | AsyncIterable[BatchItem] | os.PathLike[str]

_BE_ITEM: Final = (
    "be a ChatRequest, a dict of its fields (and id), or, where model= is given, messages: "
    "text, a message, or a list of messages"
)

_ID_FIELDS: Final = ("id", "custom_id")

_URLS: Final = ("/v1/chat", "/v1/chat/completions")

_ID_BITS: Final = 8192  # Python refuses to format integers of more than a few thousand digits

_TABLE_MARKS: Final = ("__dataframe__", "itertuples", "iter_rows", "to_pylist", "read_pandas")
"""What only the classes of tables have: pandas and its kin, polars, Arrow's tables and readers."""

_IGNORABLE: Final[Mapping[str, Any]] = {"n": 1, "stream": False}
"""Fields of OpenAI's requests that are dropped if they have this value: the only supported one."""


class Item(msgspec.Struct, frozen=True, gc=False):
    """One parsed item of a batch.

    Attributes:
        index: position in the input, from 0.
        id: its id, else its index as text.
        request: the request, or None if invalid.
        error: why it is invalid, or None.
    """

    index: int
    id: str
    request: ChatRequest | None
    error: InvalidArgumentError | None


def check_source(requests: Any, *, is_sync: bool) -> None:
    """Check that `requests` is a source of items.

    Raises:
        InvalidArgumentTypeError: it is not, looks like a single item, or iterates over something else than
            items: a table over the names of its columns, an open file over its lines.
    """
    given: object = requests
    must = "be an iterable of items, or a pathlib.Path of a file"
    if isinstance(given, str | bytes | bytearray):
        hint = "for a file, write Path(…); for one item, write [item]"
        raise refusal("requests", given, must, is_type=True, hint=hint)
    if isinstance(given, Mapping | WireStruct):
        hint = "for one item, write [item]"
        raise refusal("requests", cast("object", given), must, is_type=True, hint=hint)
    if is_file(requests):
        return
    if instead := _not_of_items(given):
        what, hint = instead
        raise refusal("requests", given, must, is_type=True, got=what, hint=hint)
    if isinstance(requests, Iterable):
        return
    if not isinstance(requests, AsyncIterable):
        must = (
            f"be an iterable{'' if is_sync else ' or async iterable'} of items, or a pathlib.Path of a file"
        )
        raise refusal("requests", given, must, is_type=True)
    if is_sync:
        must = "be an iterable or a pathlib.Path for the sync client"
        raise refusal("requests", given, must, is_type=True, hint="AsyncClient reads async iterables")


def check_ids(requests: object) -> None:
    """Check that no two items of a list have the same id; other sources are checked while they are read.

    Raises:
        InvalidArgumentError: two have.
    """
    if not isinstance(requests, list | tuple):
        return
    items = cast("list[object]", requests)
    seen: set[str] = set()
    for index, raw in enumerate(items):
        id = _id_or_index(raw, index)
        if id in seen:
            first = next(other for other, raw in enumerate(items) if _id_or_index(raw, other) == id)
            must = "give each item an id of its own, since there is a journal"
            got = f"{shown(id)} for items {first} and {index}"
            raise refusal("requests", None, must, got=got, hint="items without an id get their index")
        seen.add(id)


def _not_of_items(requests: object) -> tuple[str, str] | None:
    """Return a description of a source without items, and what to pass instead; None if it has items."""
    kind = type(requests)
    name = f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
    if hasattr(kind, "readline") or hasattr(kind, "readlines"):
        hint = "pass its path, or [json.loads(line) for line in file]"
        return f"an open file ({name}), which iterates over raw lines", hint
    is_table = any(hasattr(kind, mark) for mark in _TABLE_MARKS)
    columns = getattr(kind, "columns", None)  # of the class: an instance might compute it
    if is_table or (columns is not None and not callable(columns)):
        hint = "pass its rows: df.to_dict('records') of pandas, .to_dicts() of polars, .to_pylist() of Arrow"
        return f"a table ({name}), which does not iterate over rows", hint
    if getattr(kind, "ndim", None) is not None and getattr(requests, "ndim", 1) != 1:
        return f"an array of {getattr(requests, 'ndim', 0)} dimensions", "pass a list of items"
    if isinstance(requests, ItemsView):
        return "the items of a dict", "pass [{'id': id, 'prompt': prompt} for id, prompt in prompts.items()]"
    return None


def is_file(requests: object) -> bool:
    """Return whether a source is the path of a file."""
    return isinstance(requests, os.PathLike)


def is_async_source(requests: BatchSource) -> bool:
    """Return whether `open_source` returns an async iterator, which itself need not have `__aiter__`."""
    return not isinstance(requests, (os.PathLike, Iterable))


def open_source(requests: BatchSource) -> Iterator[Any] | AsyncIterator[Any]:
    """Return an iterator over the raw items of a source."""
    if isinstance(requests, os.PathLike):
        return read_lines(path_of(requests))
    if isinstance(requests, Iterable):
        return iter(requests)
    return aiter(requests)


def read_item(raw: object, index: int, model: str | None) -> Item:
    """Parse a raw item; an invalid one is returned with its error.

    Args:
        raw: the item, as the source yielded it.
        index: its position.
        model: model to use if it names none.
    """
    if type(raw) is str and model is not None:  # the most common
        fields: dict[str, Any] = {"model": model, "messages": raw}
        id = str(index)
    elif isinstance(raw, ChatRequest):
        return _checked(raw, index, str(index))
    elif isinstance(raw, InvalidLine):
        return Item(index, str(index), None, raw.error)
    else:
        try:
            id, fields = _fields(raw, index)
        except InvalidArgumentError as error:
            return Item(index, _id_or_index(raw, index), None, error)
        if model is not None and fields.get("model") is None:
            fields["model"] = model
    try:
        return _checked(construct(ChatRequest, fields), index, id)
    except InvalidArgumentError as error:
        problem = str(error)
        if fields.get("model") is None:
            problem = "model is required: name it in the item, or pass model= to the batch"
        return Item(index, id, None, type(error)(f"item {index} (id {shown(id)}): {problem}"))


def _checked(request: ChatRequest, index: int, id: str) -> Item:
    if request.stream:
        error = refusal(f"item {index} (id {shown(id)}): stream", request.stream, "be False in a batch")
        return Item(index, id, None, error)
    return Item(index, id, request, None)


def _fields(raw: object, index: int) -> tuple[str, dict[str, Any]]:
    """Return an item's id and the fields of its request."""
    if isinstance(raw, str | Message) or is_sequence(raw):
        return str(index), {"messages": cast("MessagesInput", raw)}
    if not isinstance(raw, Mapping):
        raise refusal(f"item {index}", raw, _BE_ITEM, is_type=True)
    mapping = cast("Mapping[str, Any]", raw)
    id = _id(mapping, index)
    if "role" in mapping:
        return id, {"messages": {name: value for name, value in mapping.items() if name not in _ID_FIELDS}}
    if "body" in mapping:
        return id, _body(mapping, index)
    fields = {name: value for name, value in mapping.items() if name not in _ID_FIELDS}
    if "prompt" in fields:
        if "messages" in fields:
            must = "not be given together with messages"
            raise refusal(f"item {index}: prompt", fields["prompt"], must)
        fields["messages"] = fields.pop("prompt")
    _refuse_unknown(fields, index)
    return id, fields


def _id(mapping: Mapping[str, Any], index: int) -> str:
    value: Any = mapping.get("id") if mapping.get("custom_id") is None else mapping["custom_id"]
    if value is None:
        return str(index)
    argument = f"item {index}: id"
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):  # numpy's, too
        number = int(value)
        if number.bit_length() > _ID_BITS:
            raise refusal(argument, value, f"be text, or an integer of at most {_ID_BITS} bits")
        return str(number)
    if isinstance(value, uuid.UUID):
        return str(value)
    if not isinstance(value, str):
        raise refusal(argument, value, "be text, an integer or a UUID", is_type=True)
    if not value:
        raise refusal(argument, value, "be text that is not empty, an integer or a UUID")
    if not _is_text(value):
        raise refusal(argument, value, BE_ENCODABLE)
    return "".join(value)  # plain text, even from a subclass of str


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _id_or_index(raw: object, index: int) -> str:
    try:
        return _id(cast("Mapping[str, Any]", raw), index) if isinstance(raw, Mapping) else str(index)
    except InvalidArgumentError:
        return str(index)


def _body(line: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Convert a request of OpenAI's batch input to the fields of `/v1/chat`."""
    method, url, body = line.get("method", "POST"), line.get("url", _URLS[1]), line["body"]
    if method != "POST":
        raise refusal(f"item {index}: method", method, "be 'POST'")
    if url not in _URLS:
        raise refusal(f"item {index}: url", url, f"be {one_of(_URLS)}")
    if not isinstance(body, Mapping):
        raise refusal(f"item {index}: body", body, "be a JSON object", is_type=True)
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
    _refuse_unknown(fields, index)
    CompletionRequest._prepare(fields)
    return fields


def _refuse_unknown(fields: Mapping[str, Any], index: int) -> None:
    if unknown := fields.keys() - set(ChatRequest.__struct_fields__):
        raise InvalidArgumentTypeError(
            f"item {index}: {', '.join(map(repr, sorted(map(str, unknown))))} cannot be sent to /v1/chat; "
            f"it takes {', '.join(ChatRequest.__struct_fields__)}"
        )
