"""What structs say of themselves: fields, JSON schemas, copies, iteration; as 0.1.0's pydantic models did."""

import copy
import dataclasses
import json
import pickle
import pprint
from typing import Any

import httpx
import msgspec
import pydantic
import pytest

import omnigate
from omnigate import ApiKeyInfo, ChatRequest, ChatResponse, InvalidArgumentError, Message, Meta, Usage
from omnigate._wire.structs import WireStruct

STRUCTS = [
    kind for kind in vars(omnigate).values() if isinstance(kind, type) and issubclass(kind, WireStruct)
]

# `model_json_schema()` of the published 0.1.0, without descriptions.
PUBLISHED_RESPONSE: dict[str, Any] = {
    "$defs": {
        "Usage": {
            "properties": {
                "prompt_tokens": {"default": 0, "title": "Prompt Tokens", "type": "integer"},
                "completion_tokens": {"default": 0, "title": "Completion Tokens", "type": "integer"},
                "total_tokens": {"default": 0, "title": "Total Tokens", "type": "integer"},
            },
            "title": "Usage",
            "type": "object",
        }
    },
    "properties": {
        "id": {"title": "Id", "type": "string"},
        "provider": {"title": "Provider", "type": "string"},
        "model": {"title": "Model", "type": "string"},
        "content": {"title": "Content", "type": "string"},
        "usage": {"$ref": "#/$defs/Usage"},
        "cost_usd": {"default": 0.0, "title": "Cost Usd", "type": "number"},
        "finish_reason": {
            "anyOf": [{"type": "string"}, {"type": "null"}],
            "default": None,
            "title": "Finish Reason",
        },
        "cached": {"default": False, "title": "Cached", "type": "boolean"},
        "fallback_used": {"default": False, "title": "Fallback Used", "type": "boolean"},
        "latency_ms": {"default": 0, "title": "Latency Ms", "type": "integer"},
    },
    "required": ["id", "provider", "model", "content"],
    "title": "ChatResponse",
    "type": "object",
}


def an_answer() -> ChatResponse:
    answer = ChatResponse(id="1", provider="p", model="m", content="c", usage=Usage(total_tokens=3))
    answer._meta = Meta(200, httpx.Headers(), attempts=1, elapsed=0.5)
    return answer


def without_descriptions(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {name: without_descriptions(value) for name, value in schema.items() if name != "description"}
    return schema


def test_the_schema_tests_find_all_public_structs() -> None:
    assert len(STRUCTS) >= 17


def test_the_json_schema_is_that_of_0_1_0() -> None:
    assert without_descriptions(ChatResponse.model_json_schema()) == PUBLISHED_RESPONSE


@pytest.mark.parametrize("mode", ["validation", "serialization"])
@pytest.mark.parametrize("kind", STRUCTS)
def test_model_json_schema_is_the_one_that_pydantic_derives(kind: type[WireStruct], mode: Any) -> None:
    schema = kind.model_json_schema(mode=mode)
    json.dumps(schema)
    assert schema == pydantic.TypeAdapter(kind).json_schema(mode=mode)
    template = "#/components/{model}"
    assert kind.model_json_schema(ref_template=template, mode=mode) == pydantic.TypeAdapter(kind).json_schema(
        ref_template=template, mode=mode
    )


def test_a_json_schema_of_an_unknown_mode_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="mode must be 'validation' or 'serialization'"):
        Usage.model_json_schema(mode="input")


@pytest.mark.parametrize("kind", STRUCTS)
def test_model_fields_describe_each_field_of_a_type_and_of_its_instances(kind: type[WireStruct]) -> None:
    assert list(kind.model_fields) == list(kind.__struct_fields__)
    for field, described in zip(msgspec.structs.fields(kind), kind.model_fields.values(), strict=True):
        assert described.is_required() == field.required


def test_model_fields_name_types_and_defaults() -> None:
    fields = ChatResponse.model_fields
    assert fields["id"].annotation is str
    assert fields["id"].is_required()
    assert fields["id"].default is msgspec.NODEFAULT
    assert fields["cost_usd"].annotation is float
    assert fields["cost_usd"].get_default() == 0.0
    assert fields["usage"].annotation is Usage
    assert fields["usage"].default_factory is Usage
    assert fields["usage"].get_default() is None
    assert fields["usage"].get_default(call_default_factory=True) == Usage()
    assert ChatRequest.model_fields["max_tokens"].annotation == int | None
    assert an_answer().model_fields == fields


def test_a_struct_iterates_over_its_names_and_values() -> None:
    answer = an_answer()
    assert list(answer)[:2] == [("id", "1"), ("provider", "p")]
    assert dict(answer)["usage"] is answer.usage
    assert [name for name, _ in answer] == list(ChatResponse.__struct_fields__)
    assert dict(Usage(total_tokens=3)) == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 3}


def test_model_copy_changes_fields_and_keeps_meta() -> None:
    answer = an_answer()
    changed = answer.model_copy(update={"content": "z", "cached": True})
    assert (changed.content, changed.cached, changed.meta) == ("z", True, answer.meta)
    assert (answer.content, answer.cached) == ("c", False)
    assert changed.model_fields_set == answer.model_fields_set | {"cached"}
    assert answer.model_copy().usage is answer.usage
    assert answer.model_copy() == answer
    deep = answer.model_copy(deep=True)
    assert deep.usage is not answer.usage
    assert deep == answer
    assert deep.meta.elapsed == answer.meta.elapsed


def test_model_copy_refuses_names_that_are_no_fields() -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"update must name fields of Usage alone, got \['tokens'\]"
    ):
        Usage().model_copy(update={"tokens": 5})


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_and_pickles_keep_which_fields_were_given(copied: Any) -> None:
    request = ChatRequest(model="m", messages="x", temperature=None)
    assert copied(request) == request
    assert copied(request).model_fields_set == {"model", "messages", "temperature"}
    assert copied(Usage()).model_dump(exclude_unset=True) == {}


def test_model_construct_checks_nothing() -> None:
    usage = Usage.model_construct(total_tokens="3")
    assert usage.total_tokens == "3"  # type: ignore[comparison-overlap]
    assert usage.model_fields_set == {"total_tokens"}
    assert Usage.model_construct({"prompt_tokens"}, total_tokens=3).model_fields_set == {"prompt_tokens"}


def test_structs_work_with_the_functions_of_dataclasses() -> None:
    answer = an_answer()
    assert dataclasses.is_dataclass(ChatResponse)
    assert dataclasses.asdict(answer) == answer.model_dump()  # type: ignore[call-overload]
    assert [field.name for field in dataclasses.fields(Message)] == ["role", "content"]  # type: ignore[arg-type]
    assert dataclasses.replace(answer, content="z").content == "z"  # type: ignore[type-var]
    assert pprint.pformat(Usage()) == repr(Usage())


def test_a_key_stays_masked_where_dataclasses_are_printed() -> None:
    key = omnigate.ApiKeyCreated(
        id="1", name="n", key_prefix="llmg_", created_at="2026-01-01T00:00:00Z", api_key="llmg_" + "s" * 40
    )
    assert "s" * 40 not in pprint.pformat(key)
    assert issubclass(omnigate.ApiKeyCreated, ApiKeyInfo)
