"""The journal as a batch uses it: what it recovers from earlier runs, whatever they left."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omnigate import ChatRequest, ChatResponse, InvalidArgumentError, JournalError
from omnigate._batch.journal.journal import RepeatedIdError
from omnigate._batch.journal.lines import digest_of
from omnigate._batch.outcomes import Outcome

from . import DIGEST, ask, failure, fill, ids_in, opened, replayable, success, text

OTHER = digest_of(ask("another"))


# What a run finds of earlier runs.


def test_an_id_that_is_not_in_the_journal_has_nothing_to_replay(path: Path) -> None:
    journal = opened(path)
    assert journal.claim("a", DIGEST, 0) is None
    assert len(journal) == replayable(journal) == 0
    journal.close(finished=True)
    assert path.read_bytes() == b""


def test_a_journalled_success_is_replayed_with_its_response_and_meta(path: Path) -> None:
    before = success("a", 0, "the answer", cost_usd=0.5, latency_ms=7)
    fill(path, before)
    journal = opened(path)
    assert (len(journal), replayable(journal)) == (1, 1)
    replay = journal.claim("a", DIGEST, 0)
    assert replay is not None
    assert replay.response == before.response
    assert replay.response is not None
    assert replay.response.meta.request_id == "req-1"
    assert (replay.attempts, replay.elapsed) == (2, 1.5)
    journal.close(finished=False)


def test_a_replay_without_its_response_does_not_decode_the_line(path: Path) -> None:
    fill(path, success("a"))
    journal = opened(path)
    replay = journal.claim("a", DIGEST, 0, want_response=False)
    assert replay is not None
    assert replay.response is None
    journal.close(finished=False)


def test_a_journalled_failure_is_retried_and_its_new_outcome_replaces_it(path: Path) -> None:
    fill(path, failure("a"), success("b", 1))
    journal = opened(path)
    assert (len(journal), replayable(journal)) == (2, 1)
    assert journal.claim("a", DIGEST, 0) is None
    journal.write(success("a"), DIGEST)
    journal.close(finished=False)
    assert ids_in(path) == ["a", "b", "a"]
    journal = opened(path)
    assert (len(journal), replayable(journal)) == (2, 2)
    assert journal.claim("a", DIGEST, 0) is not None
    journal.close(finished=False)


def test_the_last_line_of_an_id_wins(path: Path) -> None:
    path.write_bytes(text(success("a")) + text(success("b")) + text(failure("a")))
    journal = opened(path)
    assert (len(journal), replayable(journal)) == (2, 1)
    assert journal.claim("a", DIGEST, 0) is None
    assert journal.claim("b", DIGEST, 1) is not None
    journal.close(finished=False)


def test_journal_lines_of_several_megabytes_are_replayed(path: Path) -> None:
    long = success("long", 1, "é" * 1_500_000)
    fill(path, success("a"), long, success("b", 2))
    journal = opened(path)
    replay = journal.claim("long", DIGEST, 1)
    assert replay is not None
    assert replay.response == long.response
    assert journal.claim("b", DIGEST, 2) is not None
    journal.close(finished=False)


def test_an_invalid_item_can_be_corrected_under_the_same_id(path: Path) -> None:
    journal = opened(path)
    journal.claim("a", "", 0)
    journal.write(Outcome(index=0, id="a", request=None, error=InvalidArgumentError("no")), "")
    journal.close(finished=False)
    journal = opened(path)
    assert journal.claim("a", DIGEST, 0) is None
    journal.write(success("a"), DIGEST)
    journal.close(finished=True)
    assert ids_in(path) == ["a"]


@pytest.mark.parametrize("id", ["", "\0", "\n", '"', "é", "\U0001f600", "x" * 10_000])
def test_a_journal_accepts_any_text_as_an_id(path: Path, id: str) -> None:
    fill(path, success(id))
    journal = opened(path)
    assert journal.claim(id, DIGEST, 0) is not None
    journal.close(finished=False)


# What contradicts the journal.


@pytest.mark.parametrize("written", [False, True])
def test_an_id_claimed_twice_in_one_run_is_refused(path: Path, written: bool) -> None:
    journal = opened(path)
    journal.claim("twin", DIGEST, 3)
    if written:
        journal.write(success("twin", 3), DIGEST)
    with pytest.raises(RepeatedIdError, match=r"item 8 \(id 'twin'\): an earlier item has the same id"):
        journal.claim("twin", DIGEST, 8)
    journal.close(finished=False)


@pytest.mark.parametrize("earlier", [success("twin"), failure("twin")], ids=["success", "failure"])
def test_a_journalled_id_claimed_twice_in_one_run_is_refused(path: Path, earlier: Outcome) -> None:
    fill(path, earlier)
    journal = opened(path)
    journal.claim("twin", DIGEST, 3)
    with pytest.raises(RepeatedIdError, match=r"item 8 \(id 'twin'\): an earlier item has the same id"):
        journal.claim("twin", DIGEST, 8)
    journal.close(finished=False)


@pytest.mark.parametrize("digest", [OTHER, ""], ids=["another request", "no valid request"])
@pytest.mark.parametrize("want_response", [True, False])
def test_the_id_of_a_journalled_success_with_a_different_request_is_an_error(
    path: Path, digest: str, want_response: bool
) -> None:
    fill(path, success("a"))
    journal = opened(path)
    with pytest.raises(
        JournalError, match=r"Item 5: the id 'a' belongs to another request, which succeeded.*another journal"
    ):
        journal.claim("a", digest, 5, want_response=want_response)
    journal.close(finished=False)
    assert ids_in(path) == ["a"]


@pytest.mark.parametrize("digest", [OTHER, ""], ids=["another request", "no valid request"])
def test_a_journalled_failure_can_be_followed_by_any_request_under_its_id(path: Path, digest: str) -> None:
    fill(path, failure("a"))
    journal = opened(path)
    assert journal.claim("a", digest, 5) is None
    journal.write(success("a") if digest else failure("a"), digest)
    journal.close(finished=True)
    assert ids_in(path) == ["a"]


@pytest.mark.parametrize(
    ("fields", "difference"),
    [
        ({"model": "other"}, "model was 'm', is 'other'"),
        ({"temperature": 0.5}, "temperature was None, is 0.5"),
        ({"model": "other", "max_tokens": 9}, "model was 'm', is 'other', max_tokens was None, is 9"),
        ({"messages": "something else"}, "messages differs"),
        (
            {"messages": "something else", "temperature": 0.5},
            "temperature was None, is 0.5, messages differs",
        ),
    ],
)
def test_the_error_of_a_contradicted_success_says_which_fields_differ(
    path: Path, fields: dict[str, Any], difference: str
) -> None:
    fill(path, success("a"))
    journal = opened(path)
    request = ChatRequest(**{"model": "m", "messages": "hello", **fields})
    with pytest.raises(JournalError) as caught:
        journal.claim("a", digest_of(request), 0, request=request)
    assert f"in the journal {str(path)!r}: {difference}. Give the item another id" in str(caught.value)
    journal.close(finished=False)


def test_a_success_of_an_earlier_version_is_replayed_and_contradicted_without_its_fields(path: Path) -> None:
    line = json.loads(text(success("a")))
    del line["omnigate"]["request"]
    path.write_bytes(json.dumps(line).encode() + b"\n")
    journal = opened(path)
    request = ChatRequest(model="other", messages="hello")
    with pytest.raises(JournalError, match=r"journal\.jsonl'\. Give the item another id"):
        journal.claim("a", digest_of(request), 0, request=request)
    assert journal.claim("a", DIGEST, 0) is not None
    journal.close(finished=False)


def test_an_id_that_is_not_valid_unicode_is_a_journal_error(path: Path) -> None:
    journal = opened(path)
    with pytest.raises(JournalError, match="Item 4: the id .* is not valid Unicode"):
        journal.claim("\ud800", DIGEST, 4)
    journal.close(finished=False)


# Journals of killed runs.

THREE = [success("a", 0, "first"), failure("b", 1), success("c", 2, "öäü 😀")]


@pytest.mark.proof
def test_a_journal_cut_at_any_byte_can_be_resumed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # a thousand times
    lines = [text(outcome) for outcome in THREE]
    whole = b"".join(lines)
    ends = [sum(map(len, lines[:number])) for number in range(4)]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        journal = opened(path)
        # A line without its newline is complete.
        left = sum(cut >= end - 1 for end in ends[1:])
        assert len(journal) == left
        for outcome in THREE:
            replay = journal.claim(outcome.id, DIGEST, outcome.index)
            if outcome.index < left and outcome.response is not None:
                assert replay is not None
                assert replay.response == outcome.response
            else:
                assert replay is None
                journal.write(success(outcome.id, outcome.index), DIGEST)
        journal.close(finished=True)
        assert sorted(ids_in(path)) == ["a", "b", "c"]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    runs=st.lists(
        st.tuples(
            st.lists(st.tuples(st.text(max_size=3), st.booleans(), st.text(max_size=20)), max_size=8),
            st.floats(0, 1),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_resumed_journals_never_lose_a_line_before_the_cut(path: Path, runs: list[Any]) -> None:
    path.unlink(missing_ok=True)
    for items, cut, finished in runs:
        journal = opened(path)
        successes: dict[str, ChatResponse] = {}
        for index, (id, succeeds, content) in enumerate({item[0]: item for item in items}.values()):
            replay = journal.claim(id, DIGEST, index)
            if replay is not None:
                assert replay.response is not None
                successes[id] = replay.response
                continue
            outcome = success(id, index, content) if succeeds else failure(id, index)
            journal.write(outcome, DIGEST)
            if outcome.response is not None:
                successes[id] = outcome.response
        journal.close(finished=finished)
        if finished:
            assert len(ids_in(path)) == len(set(ids_in(path)))
        journal = opened(path)
        for id, response in successes.items():
            replay = journal.claim(id, DIGEST, 0)
            assert replay is not None
            assert replay.response == response
        journal.close(finished=False)
        data = path.read_bytes()
        kept = data[: round(len(data) * cut)]
        path.write_bytes(kept)
        journal = opened(path)
        journal.close(finished=False)
        before = path.read_bytes()
        assert before.startswith(kept[: kept.rfind(b"\n") + 1])


@pytest.mark.parametrize(
    "tail",
    [
        b"\0" * 5000,
        b"\0" * 5000 + b"\n",
        text(failure("c"))[:-40],
        text(failure("c"))[:-40] + b"\0" * 5000,
        text(failure("c"))[:-40] + b"\0" * 5000 + b"\n",
        b"{",
        b"\n",
    ],
)
def test_a_torn_line_at_the_end_of_a_journal_is_cut_off(path: Path, tail: bytes) -> None:
    good = text(success("a")) + text(success("b", 1))
    path.write_bytes(good + tail)
    journal = opened(path)
    assert path.read_bytes() == good
    assert len(journal) == 2
    journal.close(finished=False)


@pytest.mark.parametrize("newline", [b"\n", b""])
@pytest.mark.parametrize(
    "last",
    [
        b"# checked by hand, 2 answers ok",
        b"\xff",
        b"{}",
        json.dumps(
            {"id": "batch_req_1", "custom_id": "b0", "response": {"body": {}}, "error": None}
        ).encode(),
        text(success("c")).replace(b'"content":"hi"', b'"content":null').strip(),
        text(success("c")).replace(b'"completion_tokens":2', b'"completion_tokens":null').strip(),
    ],
)
def test_a_whole_last_line_that_is_not_understood_is_an_error_that_changes_nothing(
    path: Path, last: bytes, newline: bytes
) -> None:
    content = text(success("a")) + text(success("b", 1)) + last + newline
    path.write_bytes(content)
    with pytest.raises(
        JournalError, match=r"line 3, is not a line of a journal that this version understands"
    ):
        opened(path)
    assert path.read_bytes() == content


def test_a_last_line_without_its_newline_is_complete_even_if_zero_bytes_follow(path: Path) -> None:
    good = text(success("a")) + text(success("b", 1))
    path.write_bytes(good[:-1] + b"\0" * 5000)
    journal = opened(path)
    assert path.read_bytes() == good
    assert len(journal) == 2
    journal.close(finished=False)


@pytest.mark.parametrize("left", [b"\0" * 5000, text(success("a"))[:40], b'{"id'])
def test_a_journal_with_nothing_but_half_a_line_starts_over(path: Path, left: bytes) -> None:
    path.write_bytes(left)
    fill(path, success("a"))
    assert ids_in(path) == ["a"]


@pytest.mark.parametrize(
    "damage", [b"rubbish\n", b"\0\0\n", b"\n", text(success("c"))[:-40] + b"\n", b"{}\n"]
)
def test_garbage_before_other_journal_lines_is_an_error_that_names_its_line(
    path: Path, damage: bytes
) -> None:
    before, after = text(success("a")) + text(success("b", 1)), text(success("d", 3))
    path.write_bytes(before + damage + after)
    with pytest.raises(JournalError, match=r"journal\.jsonl', line 3, is not a line of a journal"):
        opened(path)
    assert path.read_bytes() == before + damage + after
    path.write_bytes(before + after)  # as the message says; the lock was released
    opened(path).close(finished=False)


@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        b"hello\nworld\n",
        b"\x89PNG\r\n\x1a\n",
        b"{}",
        b'{"messages": "a prompt"}\n',
        b'{"custom_id":"a","method":"POST","url":"/v1/chat","body":{}}\n' * 3,
        b'{"id":"batch_req_1","custom_id":"a","response":null,"error":{"code":"x","message":"y"}}\n',
        b"\xef\xbb\xbf" + text(success("a")),
        os.urandom(3_000_000).replace(b"\n", b"x"),
    ],
)
def test_a_file_that_is_not_a_journal_is_refused_and_left_unchanged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(JournalError, match=r"line 1, is not a line of a journal"):
        opened(path)
    assert path.read_bytes() == content
