"""The names of models: the usual ones are accepted without the pattern that decides about all others."""

import re

import pytest

from omnigate import ChatRequest, InvalidArgumentError

PATTERN = ChatRequest.model_json_schema()["properties"]["model"]["pattern"]

VALID = ["m", "gpt-4o-mini", "a b", "modèle", "\xa0", "\xff", "m" * 128, "é" * 128]

INVALID = ["", "m" * 129, "é" * 129, "m\n", "\t", "\x7f", "\x80", "\x9f", "Ā", "模", "m\udc80"]


class Name(str):
    __slots__ = ()


def as_json(model: str) -> bytes:
    return b'{"model":"%b","messages":[{"role":"user","content":"x"}]}' % model.encode()


@pytest.mark.parametrize("model", VALID)
@pytest.mark.parametrize("kind", [str, Name])
def test_a_valid_name_is_kept(model: str, kind: type[str]) -> None:
    request = ChatRequest(model=kind(model), messages="x", fallback_models=[kind(model)])
    names = [request.model, *(request.fallback_models or [])]
    assert [type(name) for name in names] == [str, str]
    assert names == [model, model]
    assert ChatRequest.model_validate_json(as_json(model)).model == model
    assert re.match(PATTERN, model)


@pytest.mark.parametrize("model", INVALID)
def test_an_invalid_name_is_refused_wherever_it_is(model: str) -> None:
    must = "must be text of 1 to 128 printable Latin-1 characters"
    with pytest.raises(InvalidArgumentError, match=f"^model {must}"):
        ChatRequest(model=model, messages="x")
    with pytest.raises(InvalidArgumentError, match=rf"^fallback_models\[1\] {must}"):
        ChatRequest(model="m", messages="x", fallback_models=["m", model])
    assert not re.match(PATTERN.removesuffix("$") + r"\Z", model)


@pytest.mark.parametrize("model", ["\x7f", "Ā", "模"])
def test_an_invalid_name_in_json_is_refused(model: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"printable Latin-1 characters - at `\$\.model`"):
        ChatRequest.model_validate_json(as_json(model))


def test_numbers_and_truth_values_may_be_text() -> None:
    arguments = {"model": "m", "messages": "x", "max_tokens": "3", "temperature": "0.5", "cache": "true"}
    request = ChatRequest.model_validate(arguments)
    assert (request.max_tokens, request.temperature, request.cache) == (3, 0.5, True)
