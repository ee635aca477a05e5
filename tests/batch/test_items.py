"""What a batch item may look like, in Python and as a line of a file, and the request it becomes."""

import csv
import io
import json
import numbers
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from omnigate import ChatRequest, InvalidArgumentError, InvalidArgumentTypeError, Message
from omnigate._batch.items import check_ids, check_source, is_async_source, open_source, read_item

MODEL = "gpt-4o-mini"
HELLO = [{"role": "user", "content": "hello"}]
OPENAI = {"custom_id": "q1", "method": "POST", "url": "/v1/chat/completions"}


def request(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": HELLO, **fields}


class Int64:
    """An integer of another library, which is no `int`, as numpy's."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __int__(self) -> int:
        return self._value


numbers.Integral.register(Int64)


class Name(str):
    """Text of another library."""


@pytest.mark.parametrize(
    ("raw", "id", "fields"),
    [
        ("hello", "7", request()),
        (HELLO, "7", request()),
        (tuple(HELLO), "7", request()),
        (HELLO[0], "7", request()),
        (Message(role="user", content="hello"), "7", request()),
        ([Message(role="user", content="hello")], "7", request()),
        (ChatRequest(model="gpt-4o", messages="hello"), "7", request(model="gpt-4o")),
        ({"id": "q", **HELLO[0]}, "q", request()),
        ({"custom_id": 42, **HELLO[0]}, "42", request()),
        ({"messages": "hello"}, "7", request()),
        ({"messages": HELLO, "model": "gpt-4o"}, "7", request(model="gpt-4o")),
        ({"messages": HELLO, "model": None}, "7", request()),
        ({"id": "a", "messages": HELLO, "max_tokens": 5}, "a", request(max_tokens=5)),
        ({"id": 42, "messages": HELLO}, "42", request()),
        ({"custom_id": "c", "messages": HELLO}, "c", request()),
        ({"id": Int64(42), "messages": HELLO}, "42", request()),
        ({"id": uuid.UUID(int=1), "messages": HELLO}, "00000000-0000-0000-0000-000000000001", request()),
        ({"id": Name("q"), "messages": HELLO}, "q", request()),
        ({"prompt": "hello", "temperature": 0}, "7", request(temperature=0)),
        ({**OPENAI, "body": {"model": "gpt-4o", "messages": HELLO}}, "q1", request(model="gpt-4o")),
        ({**OPENAI, "url": "/v1/chat", "body": {"messages": HELLO}}, "q1", request()),
        (
            {**OPENAI, "body": {"messages": HELLO, "max_completion_tokens": 9, "n": 1, "stream": False}},
            "q1",
            request(max_tokens=9),
        ),
        (
            {
                **OPENAI,
                "body": {"messages": HELLO, "max_tokens": 3, "max_completion_tokens": 9, "tools": None},
            },
            "q1",
            request(max_tokens=3),
        ),
        (
            {**OPENAI, "body": {"messages": [{"role": "developer", "content": "be brief"}, *HELLO]}},
            "q1",
            request(messages=[{"role": "system", "content": "be brief"}, *HELLO]),
        ),
    ],
)
def test_a_valid_batch_item_becomes_a_request(raw: object, id: str, fields: dict[str, Any]) -> None:
    item = read_item(raw, 7, MODEL)
    assert item.error is None
    assert (item.index, item.id) == (7, id)
    assert item.request is not None
    assert item.request.model_dump(exclude_defaults=True) == fields


@pytest.mark.parametrize(
    ("raw", "id", "message"),
    [
        (
            None,
            "7",
            r"item 7 must be a ChatRequest, a dict of its fields \(and id\), or, where model= is given, messages: text, a message, or a list of messages, got None",
        ),
        (
            3.5,
            "7",
            r"item 7 must be a ChatRequest, a dict of its fields \(and id\), or, where model= is given, messages: text, a message, or a list of messages, got 3\.5",
        ),
        ([], "7", r"item 7 \(id '7'\): messages must have at least 1 item, got \[\]"),
        ({}, "7", "messages is required"),
        ({"id": "x"}, "x", r"item 7 \(id 'x'\): messages is required"),
        (
            {"id": "", "messages": HELLO},
            "7",
            "item 7: id must be text that is not empty, an integer or a UUID, got ''",
        ),
        ({"id": True, "messages": HELLO}, "7", "item 7: id must be text, an integer or a UUID, got True"),
        (
            {"id": "", **HELLO[0]},
            "7",
            "item 7: id must be text that is not empty, an integer or a UUID, got ''",
        ),
        (
            {"id": "q", "role": "robot", "content": "x"},
            "q",
            r"item 7 \(id 'q'\): role must be 'system', 'user' or 'assistant', got 'robot'",
        ),
        (
            {"id": "\ud800", "messages": HELLO},
            "7",
            r"item 7: id must not contain lone surrogates, which UTF-8 cannot encode, got '\\ud800'",
        ),
        ({"id": "x", "messages": HELLO, "colour": 1}, "x", "item 7: 'colour' cannot be sent"),
        (
            {"messages": HELLO, "prompt": "x"},
            "7",
            "item 7: prompt must not be given together with messages, got 'x'",
        ),
        (
            {"messages": HELLO, "temperature": 3},
            "7",
            r"item 7 \(id '7'\): temperature must be between 0 and 2, got 3",
        ),
        (
            {"messages": HELLO, "stream": True},
            "7",
            r"item 7 \(id '7'\): stream must be False in a batch, got True",
        ),
        (
            ChatRequest(model=MODEL, messages="x", stream=True),
            "7",
            r"item 7 \(id '7'\): stream must be False in a batch, got True",
        ),
        (
            {"messages": [{"role": "robot", "content": "x"}]},
            "7",
            r"item 7 \(id '7'\): messages\[0\]\.role must be 'system', 'user' or 'assistant', got 'robot'",
        ),
        ({**OPENAI, "body": {"messages": HELLO, "tools": []}}, "q1", "'tools' cannot be sent to /v1/chat"),
        ({**OPENAI, "body": {"messages": HELLO, "n": 2}}, "q1", "'n' cannot be sent"),
        (
            {**OPENAI, "body": {"messages": HELLO, "stream": True}},
            "q1",
            r"item 7 \(id 'q1'\): stream must be False in a batch, got True",
        ),
        (
            {**OPENAI, "url": "/v1/embeddings", "body": {}},
            "q1",
            "item 7: url must be '/v1/chat' or '/v1/chat/completions', got '/v1/embeddings'",
        ),
        ({**OPENAI, "method": "GET", "body": {}}, "q1", "item 7: method must be 'POST', got 'GET'"),
        ({**OPENAI, "body": "x"}, "q1", "item 7: body must be a JSON object, got 'x'"),
    ],
)
def test_an_invalid_batch_item_carries_its_error(raw: object, id: str, message: str) -> None:
    item = read_item(raw, 7, MODEL)
    assert item.request is None
    assert item.id == id
    with pytest.raises(InvalidArgumentError, match=message):
        raise item.error  # type: ignore[misc]


def nested(depth: int) -> object:
    value: object = "x"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", [nested(100_000), 10**5_000, {"a": nested(100_000)}], ids=["deep", "large", "deep dict"]
)
@pytest.mark.parametrize(
    "field", ["id", "custom_id", "messages", "role", "body", "temperature", "seed", "stop", "url"]
)
def test_a_batch_item_that_cannot_be_shown_carries_an_error(field: str, value: object) -> None:
    raw = {"messages": "x", field: value}
    item = read_item(raw if field != "url" else {"url": value, "body": {}}, 3, "m")
    assert isinstance(item.error, InvalidArgumentError)
    assert item.id == "3"


@pytest.mark.parametrize("raw", ["hello", HELLO, {"messages": HELLO}, {"prompt": "hello"}])
def test_a_batch_item_without_a_model_carries_an_error_that_says_where_to_set_one(raw: object) -> None:
    error = read_item(raw, 0, None).error
    assert "model is required: name it in the item, or pass model= to the batch" in str(error)


def test_a_batch_file_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "batch.jsonl"
    lines = [
        json.dumps({**OPENAI, "body": {"messages": HELLO}}),
        "",
        json.dumps({"prompt": "grüße"}, ensure_ascii=False),
        "{not json",
        '"a string"',
        json.dumps({"id": "last", "messages": "x"}),
    ]
    path.write_bytes("\r\n".join(lines).encode())
    source = open_source(path)
    assert not isinstance(source, AsyncIterator)
    items = [read_item(raw, index, MODEL) for index, raw in enumerate(source)]
    assert [item.id for item in items] == ["q1", "1", "2", "3", "last"]
    assert [item.error is None for item in items] == [True, True, False, False, True]
    assert items[1].request is not None
    assert items[1].request.messages[0].content == "grüße"
    assert items[1].row == {"prompt": "grüße"}
    assert str(items[2].error).startswith("batch.jsonl, line 4, is not a JSON object")


@pytest.mark.parametrize("lines", [1, 2])
def test_a_byte_order_mark_is_skipped_only_at_the_start_of_a_batch_file(tmp_path: Path, lines: int) -> None:
    mark = b"\xef\xbb\xbf"
    path = tmp_path / "batch.jsonl"
    path.write_bytes(mark + b"\n" * (lines - 1) + b'{"prompt": "a"}\n' + mark + b'{"prompt": "b"}\n' + mark)
    source = open_source(path)
    assert not isinstance(source, AsyncIterator)
    items = [read_item(raw, index, MODEL) for index, raw in enumerate(source)]
    assert [item.error is None for item in items] == [True, False, False]
    assert str(items[1].error).startswith(f"batch.jsonl, line {lines + 1}, is not a JSON object")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_batch_file_has_no_items(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "batch.jsonl"
    path.write_bytes(content)
    source = open_source(path)
    assert not isinstance(source, AsyncIterator)
    assert list(source) == []


class Located:
    """A path of another library."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


@pytest.mark.parametrize("kind", [Path, Located, anyio.Path])
def test_any_path_object_is_the_file_of_a_batch(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "batch.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n')
    check_source(kind(path), is_sync=True)
    assert not is_async_source(kind(path))
    source = open_source(kind(path))
    assert not isinstance(source, AsyncIterator)
    assert [row.fields for row in source] == [{"prompt": "a"}]


class Frame:
    """Iterates over the names of its columns, as a frame of a library that is not known."""

    columns = ("id", "prompt")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


class Grid:
    """Iterates over rows that are no items, as arrays of numpy."""

    ndim = 2

    def __iter__(self) -> Iterator[list[str]]:
        return iter([["a"], ["b"]])


TABLE = (
    r"got a table \(tests\.\w+\), which does not iterate over rows \(pass its rows as dicts, or a frame of"
)


@pytest.mark.parametrize("is_sync", [True, False])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            anyio.wrap_file(io.StringIO("a")),
            r"got an open file \(.*\) that is not read so \(pass its path, or the file opened with open\(\)\)",
        ),
        (Frame(), TABLE),
        (Grid(), r"got an array of 2 dimensions \(pass a list of items\)"),
        ({"a": "b"}.items(), r"got the items of a dict \(pass \[\{'id': id, 'prompt': prompt\} for"),
        (
            "questions.jsonl",
            r"got 'questions\.jsonl' \(for a file, write Path\(…\); for one item, write \[item\]\)",
        ),
    ],
)
def test_a_source_that_iterates_over_something_else_than_items_is_refused(
    source: object, message: str, is_sync: bool
) -> None:
    with pytest.raises(InvalidArgumentTypeError, match=message):
        check_source(source, is_sync=is_sync)


@pytest.mark.parametrize(
    "source", [["a"], ("a",), {"a": "b"}.values(), (text for text in ["a"]), csv.DictReader(["prompt", "a"])]
)
def test_batch_source_may_be_any_iterable_of_items(source: object) -> None:
    check_source(source, is_sync=True)


def test_a_list_with_an_id_twice_is_refused_and_says_which_items_have_it() -> None:
    check_ids(["a", "a", {"id": 7, "prompt": "x"}])
    check_ids(iter([{"id": "a"}, {"id": "a"}]))  # is checked while it is read
    with pytest.raises(InvalidArgumentError, match="got 'a' for items 1 and 3"):
        check_ids(["x", {"id": "a", "prompt": "x"}, "x", {"custom_id": "a", "prompt": "x"}])
    with pytest.raises(InvalidArgumentError, match="got '1' for items 0 and 1"):
        check_ids([{"id": 1, "prompt": "x"}, "its id is its index"])


def test_a_missing_batch_file_is_a_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        next(open_source(tmp_path / "none.jsonl"))  # type: ignore[call-overload]


def test_the_sync_client_refuses_an_async_iterable() -> None:
    async def source() -> AsyncIterator[str]:
        yield "x"

    check_source(source(), is_sync=False)
    with pytest.raises(InvalidArgumentTypeError, match="AsyncClient reads async iterables"):
        check_source(source(), is_sync=True)
