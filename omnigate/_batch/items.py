"""Parse a batch's input into requests: Python items or the lines of a file.

An item that is not a valid request raises nothing here: it becomes an `Item` with an error, and later a
failed outcome, while the batch continues. Problems with the source as a whole are raised.
"""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, cast

import msgspec

from omnigate._wire.checks import BE_ENCODABLE, one_of, refusal
from omnigate._wire.redaction import shown
from omnigate._wire.structs import WireStruct, construct, decoder_for
from omnigate._wire.values import is_sequence
from omnigate.exceptions import InvalidArgumentError, InvalidArgumentTypeError
from omnigate.models import ChatRequest, CompletionRequest, Message, MessagesInput

BatchItem: TypeAlias = ChatRequest | Message | str | Mapping[str, Any] | Sequence[Any]
"""A `ChatRequest`, a dict of its fields (and `id`), or, where `model=` is given, messages."""

BatchSource: TypeAlias = Iterable[BatchItem] | AsyncIterable[BatchItem] | Path

_BE_ITEM: Final = (
    "be a ChatRequest, a dict of its fields (and id), or, where model= is given, messages: "
    "text, a message, or a list of messages"
)

_ID_FIELDS: Final = ("id", "custom_id")

_URLS: Final = ("/v1/chat", "/v1/chat/completions")

_ID_BITS: Final = 8192  # Python refuses to format integers of more than a few thousand digits

_IGNORABLE: Final[Mapping[str, Any]] = {"n": 1, "stream": False}
"""Fields of OpenAI's requests that are dropped if they have this value: the only supported one."""


class InvalidLine(NamedTuple):
    """A line of a file that is not JSON."""

    error: InvalidArgumentError


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
        InvalidArgumentTypeError: it is not, or looks like a single item.
    """
    if isinstance(requests, str | bytes | bytearray | Mapping | WireStruct):
        must = "be an iterable of items, or a pathlib.Path of a file"
        raise refusal(
            "requests", cast("object", requests), must, is_type=True, hint="for one item, write [item]"
        )
    if isinstance(requests, (Path, Iterable)):
        return
    if isinstance(requests, AsyncIterable):
        if is_sync:
            must = "be an iterable or a pathlib.Path for the sync client"
            raise refusal(
                "requests",
                cast("object", requests),
                must,
                is_type=True,
                hint="AsyncClient reads async iterables",
            )
        return
    must = f"be an iterable{'' if is_sync else ' or async iterable'} of items, or a pathlib.Path of a file"
    raise refusal("requests", requests, must, is_type=True)


def is_async_source(requests: BatchSource) -> bool:
    """Return whether `open_source` returns an async iterator, which itself need not have `__aiter__`."""
    return not isinstance(requests, (Path, Iterable))


def open_source(requests: BatchSource) -> Iterator[Any] | AsyncIterator[Any]:
    """Return an iterator over the raw items of a source."""
    if isinstance(requests, Path):
        return _lines(requests)
    if isinstance(requests, Iterable):
        return iter(requests)
    return aiter(requests)


def _lines(path: Path) -> Iterator[Any]:
    """Yield the items of a batch file: JSON objects, one per line.

    Skips empty lines, and a byte order mark at the start, which editors on Windows add to UTF-8.
    """
    decode = decoder_for(dict[str, Any]).decode
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                yield decode(line)
            except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
                yield InvalidLine(
                    InvalidArgumentError(f"{path.name}, line {number}, is not a JSON object: {error}")
                )


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
    if isinstance(value, int) and not isinstance(value, bool):
        if value.bit_length() > _ID_BITS:
            raise refusal(argument, value, f"be text, or an integer of at most {_ID_BITS} bits")
        return str(value)
    if not isinstance(value, str):
        raise refusal(argument, value, "be text or an integer", is_type=True)
    if not value:
        raise refusal(argument, value, "be text that is not empty, or an integer")
    if not _is_text(value):
        raise refusal(argument, value, BE_ENCODABLE)
    return "".join(value)  # plain text, also of a subclass


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
