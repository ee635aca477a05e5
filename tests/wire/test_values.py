"""Text, numbers and ids of other libraries are taken where Python's own are, and kept as Python's own."""

import collections
import datetime
import decimal
import enum
import fractions
import numbers
import uuid
from typing import Any

import numpy
import pytest

from omnigate import ChatRequest, InvalidArgumentError, Message, RetryConfig
from omnigate._transport.anyio_transport import AnyIOTransport
from omnigate._wire import arguments, checks
from omnigate._wire.structs import encode
from omnigate.models import CompletionRequest, coerce_messages


class Rendered(str):
    """Text of a template, as markupsafe.Markup or Django's SafeString; it changes what its methods return."""

    def __str__(self) -> str:
        return "not the text"

    def strip(self, characters: str | None = None) -> "Rendered":
        return Rendered(super().strip(characters))


class Name(str, enum.Enum):  # noqa: UP042 - whose `str()` is not its text
    GPT = "gpt-4o"
    USER = "user"
    HOUR = "1h"
    URL = "http://gateway.test/prefix/"


class Int64(numbers.Integral):
    """An integer that is no `int`, as numpy.int64."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __int__(self) -> int:
        return self.value

    def __hash__(self) -> int:
        return hash(self.value)


Int64.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]

TEXTS = [Rendered("gpt-4o"), Name.GPT, numpy.str_("gpt-4o")]
INTEGERS = [Int64(5), numpy.int64(5), numpy.uint8(5), numpy.int32(5)]
NUMBERS = [*INTEGERS[1:], fractions.Fraction(5), decimal.Decimal(5), numpy.float32(5), numpy.float64(5)]


def kinds(value: Any) -> set[type]:
    """Return the types of all values in a struct, a list or a dict."""
    if isinstance(value, dict):
        return set().union(*(kinds(item) for pair in value.items() for item in pair))
    if isinstance(value, list):
        return set().union(*map(kinds, value))
    return {type(value)}


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_subclasses_of_str_become_plain_text_in_a_request(text: str) -> None:
    for messages in (
        text,
        {"role": Name.USER, "content": text},
        [{"role": numpy.str_("user"), "content": text}],
        [Message(role=Name.USER, content=text)],  # type: ignore[arg-type]
    ):
        request = ChatRequest(model=text, messages=messages, stop=text, fallback_models=[text])
        assert request == ChatRequest(
            model="gpt-4o", messages="gpt-4o", stop="gpt-4o", fallback_models=["gpt-4o"]
        )
        assert kinds(request.model_dump()) == {str, bool, type(None)}
        assert request.model_dump_json() == ChatRequest(**request.model_dump()).model_dump_json()
    assert kinds(ChatRequest(model="m", messages="x", stop=["a", text]).model_dump()) == {
        str,
        bool,
        type(None),
    }


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_subclasses_of_str_become_plain_text_in_arguments(text: str) -> None:
    checked: list[Any] = [
        checks.check_text(text, "name"),
        checks.check_choice(text, "choice", ["gpt-4o"]),
        arguments.check_id(text, "id"),
        arguments.check_segment(text, "id"),
        arguments.check_user_id(text),
        arguments.check_key(text, "api_key"),
        arguments.check_moment(Rendered("2026-11-26T00:00:00Z"), "start"),
        arguments.check_budget(numpy.str_("5"), "budget"),
        *arguments.metrics_query(Name.HOUR, None, None, None, None).values(),
    ]
    assert kinds(checked) == {str}
    assert checked[:6] == ["gpt-4o"] * 6
    assert checked[-1] == "1h"
    assert arguments.check_headers({text: text}, "headers") == {b"gpt-4o": b"gpt-4o"}
    assert str(arguments.check_base_url(Name.URL)) == "http://gateway.test/prefix"


def test_text_that_is_set_later_is_sent_as_plain_text() -> None:
    request = ChatRequest(model="m", messages="x")
    request.model = Rendered("gpt-4o")
    assert encode(request) == encode(ChatRequest(model="gpt-4o", messages="x"))
    assert (
        encode({"a": Name.GPT, "b": [Rendered("x")], "c": numpy.int64(5)})
        == b'{"a":"gpt-4o","b":["x"],"c":5}'
    )


def test_a_request_with_an_object_that_json_cannot_express_is_refused() -> None:
    with pytest.raises(
        InvalidArgumentError, match="the request cannot be written as JSON: objects of type object"
    ):
        encode({"a": object()})


@pytest.mark.parametrize("number", INTEGERS, ids=repr)
def test_integers_of_other_libraries_are_accepted_as_arguments(number: Any) -> None:
    request = ChatRequest(model="m", messages="x", max_tokens=number, seed=number, temperature=1)
    assert (request.max_tokens, request.seed) == (5, 5)
    assert type(checks.check_integer(number, "n", minimum=1)) is int
    assert type(arguments.check_budget(number, "budget")) is int
    assert type(RetryConfig(max_retries=number).max_retries) is int
    assert type(AnyIOTransport(max_connections=number).max_connections) is int


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
def test_numbers_of_other_libraries_are_accepted_as_arguments(number: Any) -> None:
    assert type(checks.check_seconds(number, "seconds")) in (int, float)
    assert set(arguments.check_timeout(number).values()) == {5}
    assert type(RetryConfig(backoff_base=number).backoff_base) in (int, float)
    request = ChatRequest(model="m", messages="x", presence_penalty=number - 4, frequency_penalty=number - 4)
    assert request.presence_penalty == request.frequency_penalty == 1
    assert type(request.presence_penalty) is float


def test_numbers_of_other_libraries_have_the_same_limits() -> None:
    for value in (numpy.float64("nan"), numpy.float32("inf"), decimal.Decimal("NaN"), numpy.int8(-1)):
        with pytest.raises(InvalidArgumentError, match="seconds must be a finite number of seconds above 0"):
            checks.check_seconds(value, "seconds")
    with pytest.raises(InvalidArgumentError, match="max_tokens must be an integer of at least 1"):
        ChatRequest(model="m", messages="x", max_tokens=numpy.int64(0))
    with pytest.raises(InvalidArgumentError, match="n must be an integer of at least 1"):
        checks.check_integer(numpy.float64(5), "n", minimum=1)


def test_a_numpy_bool_is_accepted_as_a_bool_and_not_as_a_number() -> None:
    assert ChatRequest(model="m", messages="x", cache=numpy.True_).cache is True  # type: ignore[arg-type]
    assert checks.check_bool(numpy.False_, "flag") is False
    with pytest.raises(InvalidArgumentError):
        checks.check_integer(numpy.True_, "n", minimum=0)
    with pytest.raises(InvalidArgumentError, match="flag must be True or False, got 1"):
        checks.check_bool(1, "flag")


def test_a_uuid_is_accepted_as_an_id() -> None:
    id = uuid.UUID(int=5)
    assert arguments.check_id(id, "id") == arguments.check_user_id(id) == str(id)


@pytest.mark.parametrize(
    "sequence", [tuple, collections.deque, collections.UserList], ids=lambda kind: kind.__name__
)
def test_any_sequence_is_accepted_for_messages_stop_and_models(sequence: Any) -> None:
    messages = sequence([Message(role="user", content="x"), {"role": "user", "content": Rendered("y")}])
    request = ChatRequest(model="m", messages=messages, stop=sequence(["a"]), fallback_models=sequence(["b"]))
    assert [message.content for message in request.messages] == ["x", "y"]
    assert kinds(request.messages[1].content) == {str}
    assert (request.stop, request.fallback_models) == (["a"], ["b"])
    assert coerce_messages(messages) == request.messages
    developer = CompletionRequest(model="m", messages=sequence([{"role": "developer", "content": "x"}]))  # type: ignore[call-arg]
    assert developer.messages[0].role == "system"


@pytest.mark.parametrize(
    "value", [b"x", bytearray(b"x"), memoryview(b"x"), 5, iter("x"), datetime.date.today()]
)
def test_bytes_and_iterators_are_refused_as_messages(value: Any) -> None:
    for arguments_ in (
        {"messages": value},
        {"messages": "x", "stop": value},
        {"messages": "x", "fallback_models": value},
    ):
        with pytest.raises(InvalidArgumentError):
            ChatRequest(model="m", **arguments_)
    with pytest.raises(InvalidArgumentError):
        coerce_messages(value)
