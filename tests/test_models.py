"""The models: validating constructors, the methods of 0.1.0, and masked keys."""

import enum
import math
import pickle
import re
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

import pytest

from omnigate import (
    ApiKeyCreated,
    ChatRequest,
    ChatResponse,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    MeResponse,
    Message,
    SignupResponse,
    Usage,
)
from omnigate.models import coerce_messages

HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("argument", "value", "allowed"),
    [
        ("model", "", "1 to 128"),
        ("model", "x" * 129, "1 to 128"),
        ("model", "gpt\n", "printable Latin-1"),
        ("model", "gpt\x00", "printable Latin-1"),
        ("model", "gpt-😀", "printable Latin-1"),
        ("model", "gpt\x85", "printable Latin-1"),
        ("model", None, "text"),
        ("messages", [], "at least 1 item"),
        ("messages", 5, "text, a message, or a list"),
        ("max_tokens", 0, "at least 1"),
        ("max_tokens", 1.5, "at least 1"),
        ("max_tokens", True, "at least 1"),
        ("temperature", -0.1, "must be between 0 and 2, got"),
        ("temperature", 2.1, "must be between 0 and 2, got"),
        ("temperature", math.nan, "must be between 0 and 2, got"),
        ("temperature", math.inf, "must be between 0 and 2, got"),
        ("temperature", "hot", "must be between 0 and 2, got"),
        ("top_p", 1.1, "must be between 0 and 1, got"),
        ("top_p", math.nan, "must be between 0 and 1, got"),
        ("presence_penalty", -2.1, "must be between -2 and 2, got"),
        ("frequency_penalty", math.inf, "must be between -2 and 2, got"),
        ("seed", 2**63, "64 bits"),
        ("seed", "x", "64 bits"),
        ("stop", 5, "text or a list of texts"),
        ("fallback_models", ["gpt-4"] * 6, "at most 5"),
        ("fallback_models", ["gpt\r\n"], "printable Latin-1"),
        ("fallback_models", ["x" * 129], "1 to 128"),
        ("fallback_models", "gpt-4", "a list"),
        ("cache", "perhaps", "True or False"),
    ],
)
def test_chat_request_names_a_bad_argument_its_value_and_its_limits(
    argument: str, value: object, allowed: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        ChatRequest(**{"model": "gpt-4o", "messages": HELLO, argument: value})
    message = str(caught.value)
    assert re.match(rf"{argument}(\[0\])? must .*, got ", message)
    assert allowed in message
    assert repr(value)[:20] in message or repr(value[0])[:20] in message  # type: ignore[index]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (
            [{"role": "robot", "content": "x"}],
            "messages[0].role must be 'system', 'user' or 'assistant', got 'robot'",
        ),
        ([*HELLO, {"role": "user", "content": 5}], "messages[1].content must be text, got 5"),
        ([{"role": "user"}], "messages[0].content is required"),
        ([*HELLO, "bare"], "messages[1] must be a Message or a dict with role and content, got 'bare'"),
        ([None], "messages[0] must be a Message or a dict with role and content, got None"),
    ],
)
def test_chat_request_names_a_bad_message_by_its_position(messages: object, words: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        ChatRequest(model="gpt-4o", messages=messages)
    assert str(caught.value).startswith(words)


def test_chat_request_refuses_a_misspelt_argument() -> None:
    with pytest.raises(
        InvalidArgumentTypeError,
        match="ChatRequest has no argument 'max_token'; it takes model, messages, max_tokens",
    ):
        ChatRequest(model="gpt-4o", messages=HELLO, max_token=5)
    with pytest.raises(TypeError, match="keyword arguments only"):
        ChatRequest("gpt-4o", HELLO)  # type: ignore[misc]


def test_messages_may_be_text_a_message_or_a_mixed_list() -> None:
    message = Message(role="user", content="hello")
    for messages in ("hello", message, HELLO[0], HELLO, [message], (message,), [*HELLO, message]):
        request = ChatRequest(model="gpt-4o", messages=messages)
        assert request.messages[0] == message
        assert coerce_messages(messages)[0] == message


def test_chat_request_accepts_equivalent_values_of_other_types() -> None:
    class Model(enum.StrEnum):
        MINI = "gpt-4o-mini"

    class Text(str):
        __slots__ = ()

    request = ChatRequest(
        model=Model.MINI,
        messages=[{"role": Text("user"), "content": Text("x"), "timestamp": 7}],
        temperature=Fraction(1, 2),
        max_tokens="5",
    )
    assert (request.model, type(request.model)) == ("gpt-4o-mini", str)
    assert (request.temperature, request.max_tokens) == (0.5, 5)


def test_chat_request_accepts_values_at_their_limits() -> None:
    ChatRequest(
        model="é" * 128,
        messages="x",
        max_tokens=1,
        temperature=2,
        top_p=0,
        presence_penalty=-2,
        frequency_penalty=2.0,
        seed=-(2**63),
        fallback_models=["gpt-4"] * 5,
        stop=["a", "b"],
    )


ANSWER = {"id": "1", "provider": "openai", "model": "m", "content": "c", "new_field": [1]}


def test_unknown_response_fields_are_ignored_and_missing_ones_have_defaults() -> None:
    response = ChatResponse.model_validate(ANSWER)
    assert response == ChatResponse(id="1", provider="openai", model="m", content="c")
    assert (response.usage, response.cost_usd, response.finish_reason) == (Usage(), 0.0, None)


def test_models_keep_the_dump_and_validate_methods_of_0_1_0() -> None:
    key = ApiKeyCreated(
        id="1", name="ci", key_prefix="llmg_abcdefg", created_at="2026-11-23T09:14:48.25Z", api_key="llmg_x"
    )
    moment = datetime(2026, 11, 23, 9, 14, 48, 250_000, tzinfo=UTC)
    assert key.created_at == moment
    assert key.model_dump()["created_at"] == moment
    assert key.model_dump(mode="json")["created_at"] == "2026-11-23T09:14:48.250000Z"
    assert key.model_dump(include={"name"}) == {"name": "ci"}
    assert "revoked_at" not in key.model_dump(exclude_none=True)
    assert "revoked_at" not in key.model_dump(exclude_defaults=True)
    assert "name" not in key.model_dump(exclude={"name"})
    assert "meta" not in key.model_dump()
    assert ApiKeyCreated.model_validate_json(key.model_dump_json()) == key
    assert ApiKeyCreated.model_validate(key.model_dump()) == key
    assert ApiKeyCreated.model_validate(key) is key
    assert Usage().model_dump_json() == '{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}'
    assert Usage().model_dump_json(indent=2).startswith('{\n  "prompt_tokens": 0')
    assert ChatResponse.model_validate(ANSWER).model_dump()["usage"]["total_tokens"] == 0
    me = MeResponse.model_validate(
        {"project_id": "p", "org_id": "o", "project_name": "n", "key_prefix": "k", "rate_limit_per_min": 60,
         "daily_budget": "5.0000"}
    )  # fmt: skip
    assert me.daily_budget == Decimal("5.0000")
    assert me.monthly_budget is None
    assert me.model_dump(mode="json")["daily_budget"] == "5.0000"


def test_model_dump_of_a_request_includes_unset_fields_unless_none_is_excluded() -> None:
    request = ChatRequest(model="gpt-4o", messages="x")
    assert request.model_dump()["temperature"] is None
    assert request.model_dump(exclude_none=True) == {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "x"}],
        "stream": False,
    }


@pytest.mark.parametrize("obj", [None, [], "x", {"id": 1}])
def test_model_validate_raises_a_value_error_for_invalid_objects(obj: object) -> None:
    with pytest.raises(ValueError, match="^(obj|id) must be .*, got |^[a-z]+ is required$"):
        ChatResponse.model_validate(obj)


@pytest.mark.parametrize("text", ["", "{", '{"id": 1}', "[]", b"\xff", "[" * 100_000])
def test_model_validate_json_raises_a_value_error_for_invalid_json(text: str | bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="ChatResponse"):
        ChatResponse.model_validate_json(text)


@pytest.mark.parametrize("number", ["nan", "NAN", "inf", "-Infinity"])
def test_model_validate_refuses_infinite_and_nan_numbers(number: str) -> None:
    body = {"id": "i", "provider": "p", "model": "m", "content": "c"}
    with pytest.raises(InvalidArgumentError, match="cost_usd"):
        ChatResponse.model_validate(body | {"cost_usd": number})
    with pytest.raises(InvalidArgumentError, match="cost_usd"):
        ChatResponse.model_validate(body | {"cost_usd": float(number)})


def test_keys_are_masked_in_the_reprs_of_models() -> None:
    key = "llmg_Abcdefg" + "x" * 36
    response = SignupResponse(org_id="o", project_id="p", email="e@x.test", api_key=key)
    assert key not in repr(response)
    assert "llmg_Abcdefg…" in repr(response)
    assert key not in repr(list(response.__rich_repr__()))
    assert response.api_key == key


def test_the_meta_of_a_model_that_no_call_returned_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="was not returned by a call"):
        _ = ChatResponse.model_validate(ANSWER).meta


def test_models_are_mutable_comparable_and_picklable() -> None:
    response = ChatResponse.model_validate(ANSWER)
    copy = pickle.loads(pickle.dumps(response))
    assert copy == response
    copy.content = "other"
    assert copy != response
