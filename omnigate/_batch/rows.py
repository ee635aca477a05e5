"""An outcome as a row of a table: the input's columns, and then those of the result."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, Final

import msgspec

from omnigate._batch.outcomes import Outcome, request_id_of
from omnigate._data.cells import plain_cell, plain_row
from omnigate._data.columns import Kind

RESULT_COLUMNS: Final[Mapping[str, Kind]] = {
    "content": "text",
    "error": "text",
    "prompt_tokens": "int",
    "completion_tokens": "int",
    "total_tokens": "int",
    "cost_usd": "float",
    "latency_ms": "int",
    "attempts": "int",
    "request_id": "text",
}
"""What is told of every outcome."""

PARSED: Final = "parsed"
"""The column of the answers' values, before those of the result; there with `response_type` only."""

_TAKEN: Final = frozenset({*RESULT_COLUMNS, PARSED})

_PREFIX: Final = "input_"


def row_of(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as a row of plain values; a column that is not known is None."""
    response, error = outcome.response, outcome.error
    row = _input_of(outcome)
    if response is not None and response.parsed is not None:
        row[PARSED] = plain_cell(msgspec.to_builtins(response.parsed, str_keys=True, enc_hook=_foreign))
    row["content"] = None if response is None else response.content
    row["error"] = None if error is None else f"{type(error).__name__}: {error}"
    usage = None if response is None else response.usage
    row["prompt_tokens"] = None if usage is None else usage.prompt_tokens
    row["completion_tokens"] = None if usage is None else usage.completion_tokens
    row["total_tokens"] = None if usage is None else usage.total_tokens
    row["cost_usd"] = None if response is None else response.cost_usd
    row["latency_ms"] = None if response is None else response.latency_ms
    row["attempts"] = outcome.attempts
    row["request_id"] = request_id_of(outcome)
    return row


def _foreign(value: Any) -> Any:
    """Return a value that msgspec does not know as one that it does: a model of pydantic, or else text."""
    dump = getattr(value, "model_dump", None)
    return str(value) if dump is None else dump(mode="json")


def free_name(name: str, others: Container[str]) -> str:
    """Return the name that an input's column gets, if it has the name of a result's.

    Args:
        name: of the column.
        others: the names of all of the input's columns.
    """
    if name not in _TAKEN:
        return name
    while name in _TAKEN or name in others:
        name = _PREFIX + name
    return name


def _input_of(outcome: Outcome) -> dict[str, Any]:
    """Return the input's columns; of an item that was no row its id, and its prompt or messages."""
    item, request = outcome.item, outcome.request
    if item is not None:
        given = plain_row(item)
        if _TAKEN.isdisjoint(given):
            return given
        made: dict[str, Any] = {}
        for name, value in given.items():
            made[free_name(name, given)] = value
        return made
    row: dict[str, Any] = {"id": outcome.id}
    if request is not None:
        messages = request.messages
        if len(messages) == 1 and messages[0].role == "user":
            row["prompt"] = messages[0].content
        else:
            row["messages"] = [message.model_dump() for message in messages]
    return row
