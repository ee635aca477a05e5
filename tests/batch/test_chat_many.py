"""Answers that were paid for come back from `chat_many`, whatever ends the batch."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from omnigate import (
    AsyncClient,
    AuthError,
    BudgetExceededError,
    ChatResponse,
    GatewayError,
    InvalidArgumentError,
    JournalError,
    JournalWarning,
    RateLimitError,
)
from omnigate._batch.journal.file import JournalFile

from ..support.provider import Provider

MODEL = "gpt-4o-mini"

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


def client_of(provider: Provider) -> AsyncClient:
    return AsyncClient("llmg_x", base_url="http://gateway.test", transport=provider, retries=0)


def as_list(prompts: list[str], path: Path) -> Any:
    return prompts


def as_iterator(prompts: list[str], path: Path) -> Iterator[str]:
    return iter(prompts)


async def as_async_iterator(prompts: list[str], path: Path) -> AsyncIterator[str]:
    for prompt in prompts:
        yield prompt


def as_file(prompts: list[str], path: Path) -> Path:
    path.write_text("".join(f'{{"prompt": "{prompt}"}}\n' for prompt in prompts))
    return path


@pytest.mark.parametrize("source", [as_list, as_iterator, as_async_iterator, as_file])
@pytest.mark.parametrize(
    ("bad", "options", "kind"),
    [
        ("status=429", {"max_wait_seconds": 10}, RateLimitError),
        ("status=401", {}, AuthError),
        ("status=402", {}, BudgetExceededError),
    ],
)
async def test_paid_answers_are_returned_and_the_error_that_ended_the_batch_stands_in_the_other_places(
    bad: str,
    options: dict[str, Any],
    kind: type[GatewayError],
    source: Callable[[list[str], Path], Any],
    tmp_path: Path,
) -> None:
    provider = Provider()
    prompts = [f"question {number}" for number in range(500)]
    prompts[40] = bad
    answers = await client_of(provider).chat_many(
        source(prompts, tmp_path / "prompts.jsonl"),
        model=MODEL,
        return_exceptions=True,
        max_concurrency=5,
        **options,
    )
    assert len(answers) == 500
    assert len(provider.prompts) < 60
    assert isinstance(answers[40], kind)
    paid = [index for index, answer in enumerate(answers) if isinstance(answer, ChatResponse)]
    assert len(paid) == len(provider.answered) >= 40
    for index, answer in enumerate(answers):
        if isinstance(answer, ChatResponse):
            assert answer.content == prompts[index]
        else:
            assert answer is answers[40]


async def test_chat_many_returns_an_items_failure_in_that_items_place_only() -> None:
    answers = await client_of(Provider()).chat_many(
        ["a", "status=400", "c"], model=MODEL, return_exceptions=True
    )
    assert [isinstance(answer, GatewayError) for answer in answers] == [False, True, False]


async def test_a_journal_that_cannot_be_written_costs_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, lines = JournalFile.append, 0

    def full(file: JournalFile, line: bytes) -> int:
        nonlocal lines
        lines += 1
        if lines > 10:
            raise JournalError("No space left on device")
        return append(file, line)

    monkeypatch.setattr(JournalFile, "append", full)
    provider = Provider()
    prompts = [f"{number}" for number in range(100)]
    arguments: dict[str, Any] = {"model": MODEL, "max_concurrency": 2}
    answers = await client_of(provider).chat_many(
        prompts, journal=tmp_path / "a", return_exceptions=True, **arguments
    )
    assert len(answers) == 100
    assert sum(isinstance(answer, ChatResponse) for answer in answers) == len(provider.prompts) >= 11
    assert isinstance(answers[-1], JournalError)
    with pytest.raises(JournalError, match="No space left"):
        await client_of(provider).chat_many(prompts, journal=tmp_path / "b", **arguments)


async def test_a_journal_that_cannot_be_written_at_the_last_item_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: JournalFile, line: bytes) -> int:
        raise JournalError("No space left on device")

    monkeypatch.setattr(JournalFile, "append", full)
    with pytest.warns(JournalWarning, match="No space left on device"):
        answers = await client_of(Provider()).chat_many(
            ["a"], model=MODEL, journal=tmp_path / "j", return_exceptions=True
        )
    assert [isinstance(answer, ChatResponse) for answer in answers] == [True]


async def test_an_exception_of_the_source_is_raised_even_if_errors_are_returned() -> None:
    def source(error: Exception) -> Iterator[str]:
        yield "a"
        raise error

    for error in (LookupError("mine"), InvalidArgumentError("also mine")):
        with pytest.raises(type(error), match="mine"):
            await client_of(Provider()).chat_many(source(error), model=MODEL, return_exceptions=True)


async def test_an_exception_of_the_source_after_the_batch_was_stopped_ends_only_the_counting() -> None:
    def source() -> Iterator[str]:
        yield "a"
        yield "status=401"
        yield from ("x" for _ in range(200))
        raise LookupError("mine")

    answers = await client_of(Provider()).chat_many(
        source(), model=MODEL, return_exceptions=True, max_concurrency=1
    )
    assert len(answers) == 202
    assert isinstance(answers[0], ChatResponse)


async def test_chat_many_with_a_repeated_id_returns_all_other_answers(tmp_path: Path) -> None:
    items = [{"id": "a", "messages": "x"}, {"id": "b", "messages": "y"}, {"id": "a", "messages": "z"}]
    arguments: dict[str, Any] = {"model": MODEL, "journal": tmp_path / "j", "return_exceptions": True}
    answers = await client_of(Provider()).chat_many(iter(items), **arguments)
    assert [isinstance(answer, ChatResponse) for answer in answers] == [True, True, False]
    provider = Provider()
    with pytest.raises(InvalidArgumentError, match="for items 0 and 2"):
        await client_of(provider).chat_many(items, **arguments)
    assert provider.prompts == []
