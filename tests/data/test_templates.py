"""Prompt templates: the names of fields in braces, and nothing else."""

import datetime
import uuid
from decimal import Decimal
from typing import Any

import pytest

from omnigate import InvalidArgumentError, InvalidArgumentTypeError
from omnigate._data.templates import Template


@pytest.mark.parametrize(
    ("template", "row", "prompt"),
    [
        ("Summarise: {text}", {"text": "a"}, "Summarise: a"),
        ("{a}{b}{a}", {"a": 1, "b": "x", "c": 0}, "1x1"),
        ("{{{a}}} {{b}}", {"a": "{c}"}, "{{c}} {b}"),
        ("{first name}", {"first name": "Ada"}, "Ada"),
        ("{a}", {"a": ""}, ""),
        ("{a} {b}", {"a": 0.5, "b": True}, "0.5 True"),
        ("{a} {b}", {"a": Decimal("1.50"), "b": datetime.date(2026, 1, 2)}, "1.50 2026-01-02"),
        ("{a}", {"a": uuid.UUID(int=1)}, "00000000-0000-0000-0000-000000000001"),
    ],
)
def test_a_template_is_filled_from_the_fields_of_a_row(
    template: str, row: dict[str, Any], prompt: str
) -> None:
    assert Template(template).fill(row) == prompt


def test_numbers_of_numpy_are_written_as_pythons() -> None:
    numpy = pytest.importorskip("numpy")
    row = {"a": numpy.int64(7), "b": numpy.float64(0.5), "c": numpy.bool_(True), "d": numpy.str_("x")}
    assert Template("{a} {b} {c} {d}").fill(row) == "7 0.5 True x"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{a.b}", r"without access to attributes or indices: 'a\.b'"),
        ("{a[0]}", r"without access to attributes or indices: 'a\[0\]'"),
        ("{a!r}", "without conversion or format: 'a'"),
        ("{a:>10}", "without conversion or format: 'a'"),
        ("{a:{b}}", "without conversion or format: 'a'"),
        ("{}", r"prompt must name the field in each pair of braces, got '\{\}' \('\{text\}', not '\{\}'\)"),
        ("{a", r"expected '\}' before end of string, .* \(write \{\{ and \}\} for literal braces\)"),
        ("a}", r"Single '\}' .* \(write \{\{ and \}\} for literal braces\)"),
        (
            "Hello",
            r"prompt must name at least one field, .* \(without one, each row would be the same request",
        ),
        ("{{text}}", "prompt must name at least one field"),
    ],
)
def test_a_template_with_anything_but_names_is_refused(template: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Template(template)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"body": "a", "id": 1}, "there is no field 'text' for the prompt, only 'body', 'id'"),
        ({"text": None}, "the field 'text' of the prompt is null"),
        ({"text": float("nan")}, r"the field 'text' of the prompt is null \(NaN\)"),
        ({f"c{n}": n for n in range(20)}, "'c9' and 10 more"),
    ],
)
def test_a_field_without_a_value_is_an_error(row: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Template("{text}").fill(row)


def test_an_integer_of_too_many_digits_is_an_error() -> None:
    with pytest.raises(InvalidArgumentError, match="must be text, or a number of fewer digits, got <int>"):
        Template("{text}").fill({"text": 10**5_000})


@pytest.mark.parametrize("value", [["a"], {"a": 1}, b"a", object()])
def test_a_field_of_the_wrong_type_is_an_error(value: object) -> None:
    must = "the field 'text' of the prompt must be text, a number, a date, a time or a UUID, got"
    with pytest.raises(InvalidArgumentTypeError, match=must):
        Template("{text}").fill({"text": value})
