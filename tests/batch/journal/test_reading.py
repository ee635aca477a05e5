"""Reading a journal back without running anything: `read_journal`, and `failed` for the items to run again."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

import omnigate
from omnigate import (
    AsyncClient,
    AuthError,
    BatchStats,
    GatewayError,
    InvalidArgumentTypeError,
    JournalError,
    JournalWarning,
    ProviderRateLimitError,
    RateLimitError,
    failed,
    read_journal,
)
from omnigate._batch import progress
from omnigate._batch.journal.lines import encode_line
from omnigate._batch.outcomes import Outcome
from omnigate.exceptions import classify
from omnigate.models import ChatRequest

from ...support.provider import Provider
from . import failure, success, text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


def test_a_journal_is_read_back_as_its_outcomes(path: Path) -> None:
    path.write_bytes(text(success("a", 3, "hello", cost_usd=8e-05)) + text(failure("b", 1)))
    first, second = read_journal(path)
    assert (first.index, first.id, first.attempts, first.elapsed, first.replayed) == (3, "a", 2, 1.5, True)
    assert first.unwrap().content == "hello"
    assert first.unwrap().meta.request_id == "req-1"
    assert (second.index, second.id, second.response, second.attempts) == (1, "b", None, 3)
    assert str(second.error) == "broken"


@pytest.mark.parametrize(
    "error",
    [
        GatewayError("plain"),
        classify(401, "Invalid API key", request_id="req-9"),
        classify(429, "Rate limit exceeded", retry_after=7.5),
        classify(429, "OpenAI error 429: slow down", retry_after=2),
        omnigate.TimeoutError("no answer"),
        omnigate.InvalidArgumentError("not allowed"),
        omnigate.MaxWaitError("waited"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_read_from_a_journal_has_its_type_text_and_attributes(error: Any, path: Path) -> None:
    path.write_bytes(text(failure(error=error)))
    (outcome,) = read_journal(path)
    read = outcome.error
    assert (type(read), str(read), read.attempts) == (type(error), str(error), 3)  # type: ignore[union-attr]
    for name in ("status_code", "retry_after", "provider", "provider_status", "request_id"):
        assert getattr(read, name, None) == getattr(error, name, None)


def test_an_error_of_an_unknown_type_is_read_as_the_base_class(path: Path) -> None:
    line = json.loads(text(failure()))
    for code in ("ErrorOfALaterVersion", "RaceError", "Any", "__name__"):
        line["error"]["code"] = code
        path.write_text(json.dumps(line) + "\n")
        (outcome,) = read_journal(path)
        assert type(outcome.error) is GatewayError


def test_the_last_line_of_an_id_counts_and_the_order_is_that_of_the_file(path: Path) -> None:
    path.write_bytes(text(failure("a", 0)) + text(success("b", 1)) + text(success("a", 0, "at last")))
    assert [(outcome.id, outcome.response is not None) for outcome in read_journal(path)] == [
        ("b", True),
        ("a", True),
    ]


@pytest.mark.parametrize("tail", [b'{"id":"omnigate-1', b"\0\0\0", b"", b'{"id":"omnigate-1\0\0\n', b"\n"])
def test_a_torn_last_line_is_left_out_and_the_file_is_not_changed(tail: bytes, path: Path) -> None:
    data = text(success("a")) + tail
    if tail == b"\n":
        data = text(success("a"))[:-1]  # lacks only its newline
    path.write_bytes(data)
    assert [outcome.id for outcome in read_journal(path)] == ["a"]
    assert path.read_bytes() == data


def test_a_whole_last_line_before_zeros_is_read(path: Path) -> None:
    path.write_bytes(text(success("a")) + text(success("b"))[:-1] + b"\0" * 100)
    assert [outcome.id for outcome in read_journal(path)] == ["a", "b"]


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\n" + text(success("a")),
        text(success("a")) + b'{"id":"omnigate-1\n' + text(success("b")),
        text(success("a")) + b'{"other": "program"}\n',
    ],
)
def test_a_damaged_line_is_an_error_before_the_first_outcome(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    with pytest.raises(JournalError, match=r"line [12], is not a line of a journal.*recover_journal"):
        next(read_journal(path))


def test_a_missing_journal_is_an_error_of_the_call(path: Path) -> None:
    for function in (read_journal, failed):
        with pytest.raises(JournalError, match="there is no such file"):
            function(path)
        with pytest.raises(InvalidArgumentTypeError, match="path must be a path, got 3"):
            function(3)  # type: ignore[arg-type]
    assert not path.exists()


def test_a_journal_is_read_while_a_run_has_it_locked_and_writes_to_it(path: Path) -> None:
    from omnigate._batch.journal.journal import Journal

    path.write_bytes(text(success("a")))
    journal = Journal(path)
    journal.open()
    outcomes = read_journal(path)
    first = next(outcomes)
    journal.claim("b", "", 1)
    journal.write(success("b", 1), "")
    assert [first.id, *(outcome.id for outcome in outcomes)] == ["a"]
    assert [outcome.id for outcome in read_journal(path)] == ["a", "b"]
    journal.close(finished=True)


def test_an_empty_journal_has_no_outcomes(path: Path) -> None:
    path.touch()
    assert list(read_journal(path)) == []


def test_the_progress_of_reading_a_journal_is_shown(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    path.write_bytes(b"".join(text(success(str(n), n)) for n in range(10)) + text(failure("f", 10)))
    seen: list[BatchStats] = []
    assert len(list(read_journal(path, progress=seen.append))) == 11
    percents = [stats.reading_percent for stats in seen[:-1]]
    assert percents == sorted(percents, key=lambda percent: percent or 0.0)
    assert len(percents) == 22
    last = seen[-1]
    assert (last.succeeded, last.failed, last.total, last.reading_percent) == (10, 1, 11, None)
    assert last.total_tokens == 30


def test_a_failed_item_is_returned_with_its_whole_request(path: Path) -> None:
    request = ChatRequest(
        model="m",
        messages=[{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        temperature=0.5,
    )
    lost = Outcome(index=4, id="row-4", request=request, error=GatewayError("x"))
    path.write_bytes(text(success("a")) + text(lost))
    (item,) = failed(path)
    assert item == {
        "id": "row-4",
        "model": "m",
        "temperature": 0.5,
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
    }
    (other,) = failed(path, model="m-2")
    assert other == {**item, "model": "m-2"}


def test_a_failed_row_is_returned_with_its_columns(path: Path) -> None:
    row = {"text": "hello", "n": 3}
    lost = Outcome(
        index=4, id="4", request=ChatRequest(model="m", messages="x"), error=GatewayError("x"), item=row
    )
    path.write_bytes(text(lost))
    assert list(failed(path)) == [row]
    assert b'"content"' not in path.read_bytes()  # the prompt is made of the row again


def test_failed_items_that_the_journal_does_not_have_are_a_warning(path: Path) -> None:
    invalid = Outcome(index=0, id="x", request=None, error=omnigate.InvalidArgumentError("no"))
    old = json.loads(text(failure("y", 1)))
    del old["omnigate"]["request"]
    path.write_bytes(
        encode_line(invalid, "", created=0) + json.dumps(old).encode() + b"\n" + text(failure("z", 2))
    )
    with pytest.warns(JournalWarning, match="2 failed items are not in the journal"):
        items = list(failed(path))
    assert [item["id"] for item in items] == ["z"]


def test_a_failed_item_with_a_lone_surrogate_is_written_without_its_request(path: Path) -> None:
    request = ChatRequest.model_construct(
        model="m", messages=[omnigate.Message(role="user", content="\ud800")]
    )
    path.write_bytes(text(Outcome(index=0, id="x", request=request, error=GatewayError("no"))))
    (outcome,) = read_journal(path)
    assert str(outcome.error) == "no"
    with pytest.warns(JournalWarning):
        assert list(failed(path)) == []


@pytest.mark.anyio
@pytest.mark.virtual_time
@pytest.mark.blocks  # journals are read in the thread that iterates over them
async def test_failed_items_are_run_again_with_another_model_and_the_same_journal(path: Path) -> None:
    provider = Provider()
    client = AsyncClient("llmg_x", base_url="http://gateway.test", transport=provider)
    stats = await client.batch(["a", "once=400 b", "once=400 c"], model="gpt-4o", journal=path).run()
    assert (stats.succeeded, stats.failed) == (1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = await client.batch(failed(path, model="other"), journal=path).run()
    assert (again.succeeded, again.failed) == (2, 0)
    assert provider.prompts[-2:] == ["once=400 b", "once=400 c"]
    outcomes = {outcome.id: outcome for outcome in read_journal(path)}
    assert sorted(outcomes) == ["0", "1", "2"]
    assert all(outcome.response is not None for outcome in outcomes.values())


@pytest.mark.anyio
@pytest.mark.virtual_time
@pytest.mark.blocks  # journals are read in the thread that iterates over them
@pytest.mark.parametrize("id", [None, "key"])
@pytest.mark.parametrize("model", [None, "other"])
async def test_failed_rows_of_a_file_are_run_again_with_another_prompt_under_their_ids(
    id: str | None, model: str | None, tmp_path: Path, path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("id,key,word\nx,k0,a\ny,k1,once=400\nz,k2,c\n")
    provider = Provider()
    client = AsyncClient("llmg_x", base_url="http://gateway.test", transport=provider)
    first = await client.batch(rows, model="gpt-4o", prompt="{word} one", id=id, journal=path).run()
    assert (first.succeeded, first.failed) == (2, 1)
    items = list(failed(path, model=model))
    async with client.batch(items, model="gpt-4o", prompt="again {key}", id=id, journal=path) as batch:
        (outcome,) = [outcome async for outcome in batch]
    assert provider.prompts[-1] == "again k1"
    assert outcome.id == ("1" if id is None else "k1")
    assert list(failed(path)) == []
    assert sorted(outcome.id for outcome in read_journal(path)) == (
        ["0", "1", "2"] if id is None else ["k0", "k1", "k2"]
    )


@pytest.mark.anyio
@pytest.mark.virtual_time
@pytest.mark.blocks
async def test_failed_rows_that_are_items_by_themselves_are_run_again_as_they_are(
    tmp_path: Path, path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("custom_id,prompt,note\nx,once=400 a,n\ny,b,n\n")
    body = {"model": "m", "messages": [{"role": "user", "content": "once=400 c"}]}
    client = AsyncClient("llmg_x", base_url="http://gateway.test", transport=(provider := Provider()))
    assert (await client.batch(rows, model="gpt-4o", journal=path).run()).failed == 1
    assert (await client.batch([{"custom_id": "z", "body": body}], journal=path).run()).failed == 1
    async with client.batch(failed(path, model="other"), journal=path) as batch:
        outcomes = [outcome async for outcome in batch]
    assert sorted((outcome.id, outcome.request.model) for outcome in outcomes if outcome.request) == [
        ("x", "other"),
        ("z", "other"),
    ]
    assert sorted(provider.prompts[-2:]) == ["once=400 a", "once=400 c"]
    assert list(failed(path)) == []


def test_reading_a_journal_does_not_keep_the_file_open_after_it_is_left(path: Path) -> None:
    path.write_bytes(text(success("a")) + text(success("b")))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    outcomes = read_journal(path)
    next(outcomes)
    del outcomes
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("error", [AuthError("no"), RateLimitError("no"), ProviderRateLimitError("no")])
def test_an_outcome_as_a_dict_has_only_values_of_json(error: GatewayError) -> None:
    good = success("a", 3, cost_usd=0.5).to_dict()
    assert json.loads(json.dumps(good)) == good
    assert (good["id"], good["error"], good["response"]["content"]) == ("a", None, "hi")
    assert (good["response"]["request_id"], good["request"]["model"]) == ("req-1", "m")
    row = {"n": 1, "at": __import__("datetime").date(2026, 1, 2)}
    bad = Outcome(index=0, id="x", request=None, error=error, item=row).to_dict()
    assert json.loads(json.dumps(bad)) == bad
    assert bad["error"] == {"type": type(error).__name__, "message": "no", "request_id": None}
    assert bad["item"] == {"n": 1, "at": "2026-01-02"}
