"""`model_dump` holds to pydantic's rules: each selection is held against a pydantic model of the same data."""

from typing import Any

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigate import ChatRequest, ChatResponse, InvalidArgumentError, Message, Usage

ANSWER: dict[str, Any] = {
    "id": "1",
    "provider": "openai",
    "model": "m",
    "content": "c",
    "usage": {"prompt_tokens": 1, "total_tokens": 3},
    "finish_reason": None,
}
REQUEST: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": text} for text in "abc"]}


class PydanticMessage(pydantic.BaseModel):
    role: str
    content: str


class PydanticUsage(pydantic.BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class PydanticRequest(pydantic.BaseModel):
    model: str
    messages: list[PydanticMessage]
    max_tokens: int | None = None
    temperature: float | None = None
    stream: bool = False
    top_p: float | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    fallback_models: list[str] | None = None
    cache: bool | None = None


class PydanticResponse(pydantic.BaseModel):
    id: str
    provider: str
    model: str
    content: str
    usage: PydanticUsage = pydantic.Field(default_factory=PydanticUsage)
    cost_usd: float = 0.0
    finish_reason: str | None = None
    cached: bool = False
    fallback_used: bool = False
    latency_ms: int = 0


SELECTIONS: list[Any] = [
    None,
    set(),
    {},
    {"model"},
    {"model", "unknown"},
    {"usage": {"total_tokens"}},
    {"usage": True, "id": ...},
    {"usage": set()},
    {"usage": {}},
    {"usage": {"total_tokens": True}},
    {"messages": {0}},
    {"messages": {-1}},
    {"messages": {0: {"content"}, -1: True}},
    {"messages": {"__all__"}},
    {"messages": {"__all__": {"role"}}},
    {"messages": {"__all__": {"role"}, 0: {"content"}}},
    {"messages": {"__all__": {"role"}, -1: True}},
    {"messages": {"__all__": True, 1: {"role"}}},
    {"messages": {"x"}},
    {"model": {"x"}},
    {"model": {}},
]


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
def test_a_selection_dumps_what_pydantic_dumps(argument: str, selection: Any) -> None:
    chosen = {argument: selection}
    ours, pydantics = ChatRequest(**REQUEST), PydanticRequest(**REQUEST)
    assert ours.model_dump(**chosen) == pydantics.model_dump(**chosen)
    answer, pydantic_answer = ChatResponse(**ANSWER), PydanticResponse(**ANSWER)
    assert answer.model_dump(**chosen) == pydantic_answer.model_dump(**chosen)
    assert answer.model_dump_json(**chosen) == pydantic_answer.model_dump_json(**chosen)


NAMES = st.sampled_from(["role", "content", "other"])
OF_MESSAGE = st.sets(NAMES) | st.dictionaries(NAMES, st.just(True))
INDICES = st.sampled_from([0, 1, -1])  # of three items: none is named twice
OF_MESSAGES = st.sets(INDICES) | st.dictionaries(INDICES | st.just("__all__"), st.just(True) | OF_MESSAGE)
OF_REQUEST = st.sets(st.sampled_from(["model", "messages", "seed"])) | st.dictionaries(
    st.sampled_from(["model", "messages"]), st.just(True) | OF_MESSAGES
)


@pytest.mark.proof
@given(include=st.none() | OF_REQUEST, exclude=st.none() | OF_REQUEST, flags=st.tuples(*[st.booleans()] * 3))
@settings(deadline=None, max_examples=500)
def test_any_two_selections_dump_what_pydantic_dumps(
    include: Any, exclude: Any, flags: tuple[bool, ...]
) -> None:
    options: dict[str, Any] = dict(
        zip(("exclude_unset", "exclude_defaults", "exclude_none"), flags, strict=True),
        include=include,
        exclude=exclude,
    )
    assert ChatRequest(**REQUEST).model_dump(**options) == PydanticRequest(**REQUEST).model_dump(**options)


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize(
    ("selection", "place"),
    [
        ("usage", ""),
        (5, ""),
        ({"usage": "total_tokens"}, "['usage']"),
        ({"usage": 5}, "['usage']"),
        ({"usage": False}, "['usage']"),
    ],
)
def test_model_dump_refuses_an_include_or_exclude_of_another_form(
    argument: str, selection: Any, place: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        ChatResponse(**ANSWER).model_dump(**{argument: selection})
    assert str(caught.value).startswith(f"{argument}{place} must be a set of names, or a dict of names to")


def test_lists_and_tuples_of_names_select_as_sets_do() -> None:
    usage = Usage(total_tokens=3)
    assert usage.model_dump(include=["total_tokens"]) == {"total_tokens": 3}
    assert usage.model_dump(exclude=("prompt_tokens", "completion_tokens")) == {"total_tokens": 3}


def test_exclude_unset_leaves_out_what_was_not_given() -> None:
    answer = ChatResponse(**ANSWER)
    assert answer.model_fields_set == PydanticResponse(**ANSWER).model_fields_set
    assert answer.model_dump(exclude_unset=True) == ANSWER
    assert ChatResponse.model_validate(ANSWER).model_dump(exclude_unset=True) == ANSWER
    text = answer.model_dump_json(exclude_unset=True)
    assert ChatResponse.model_validate_json(text).model_dump_json(exclude_unset=True) == text
    assert Usage().model_dump(exclude_unset=True) == {}
    assert ChatRequest(**REQUEST).model_dump(exclude_unset=True) == REQUEST


def test_text_set_later_is_dumped_as_plain_text() -> None:
    class Rendered(str):
        pass

    message = Message(role="user", content="x")
    message.content = Rendered("y")
    assert message.model_dump_json() == '{"role":"user","content":"y"}'
