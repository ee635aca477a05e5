"""Properties that hold for every input of the wire's decoders, the journal and the backoff.

The default profile in `tests/conftest.py` makes every run use the same examples; `HYPOTHESIS_PROFILE=long` searches
longer, at random. `tests/fuzz` searches with the same oracles, guided by coverage.
"""

import codecs
import json
import math
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from omnigate import (
    APIError,
    GatewayError,
    InvalidArgumentError,
    InvalidResponseError,
    JournalError,
    ProviderError,
    RateLimitError,
    RetryConfig,
    classify,
)
from omnigate._batch.items import open_source, read_item
from omnigate._batch.journal.journal import Journal
from omnigate._batch.journal.lines import decode_id, decode_line, digest_of, encode_line
from omnigate._batch.outcomes import Outcome
from omnigate._calls.attempts import decode_answer
from omnigate._calls.failures import response_error, stream_error
from omnigate._calls.retry import compute_delay
from omnigate._calls.session import Session
from omnigate._streams.decoders import SENTINEL, EventDecoder
from omnigate._streams.readers import CompletionReader, TextReader, UsageReader
from omnigate._transport.carrier import Answer
from omnigate._transport.http11 import ResponseReader
from omnigate._transport.messages import RawResponse
from omnigate._wire.endpoints import CHAT, SIGNUP
from omnigate._wire.head import Meta, parse_retry_after
from omnigate._wire.structs import WireStruct
from omnigate.exceptions import normalise_detail
from omnigate.models import (
    ApiKeyCreated,
    ApiKeyInfo,
    ChatRequest,
    ChatResponse,
    MeResponse,
    MetricsResponse,
    ModelInfo,
    ModelPage,
    OrgInfo,
    ProjectCreated,
    ProjectInfo,
    SignupResponse,
    Usage,
)
from tests.batch.journal import replayable
from tests.fuzz.targets import check_events, check_inflater, check_response, check_text
from tests.support.steps import at_most

pytestmark = pytest.mark.proof

MOST = 1 << 20


@st.composite
def split(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Return `data` in pieces: many, a few, or one per byte; some may be empty."""
    if draw(st.booleans()):
        size = draw(st.integers(1, 9))
        return [data[i : i + size] for i in range(0, len(data), size)]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


# Any split of a stream decodes the same.

fragments = st.one_of(
    st.sampled_from(
        [
            SENTINEL,
            "\n",
            "[error] ",
            "\n[err",
            "\n[error]",
            "\n\n[error] ",
            "\r\n[error] ",
            "é",
            "日本",
            "👩‍👩‍👧",
            "�",
            "﻿",
        ]
    ).map(str.encode),
    st.text(max_size=8).map(str.encode),
    st.binary(max_size=4),
    st.sampled_from([b"\xff", b"\xe6\x97", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\x80"]),
)
bodies = st.lists(fragments, max_size=12).map(b"".join)


@given(bodies, st.data(), st.sampled_from([3, MOST]))
def test_text_decoder_decodes_any_split_of_any_text_the_same(
    body: bytes, data: st.DataObject, most: int
) -> None:
    with low_limits(most):
        check_text(body, data.draw(split(body)), most)


@given(st.text().filter(lambda text: SENTINEL not in text), st.none() | st.text(), st.data())
def test_text_reader_yields_all_text_and_then_the_failure(
    text: str, message: str | None, data: st.DataObject
) -> None:
    assume(message is None or (text + SENTINEL).index(SENTINEL) == len(text))
    reader = TextReader(str, request_id="r", secrets=())
    body = text if message is None else text + SENTINEL + message
    pieces = [
        piece for part in data.draw(split(body.encode())) for piece in reader.feed(part)
    ] + reader.finish()
    assert "".join(pieces) == text
    assert "" not in pieces
    assert (reader.error is None) == (message is None)
    if message is not None:
        assert isinstance(reader.error, ProviderError)
        assert (reader.error.status_code, reader.error.request_id) == (502, "r")


lines = st.one_of(
    st.sampled_from(
        [b"", b"", b"data", b"data:", b"data: [DONE]", b"data:[DONE]", b"data: [DONE] ", b":", b": comment", b"event: error", b"id: 1", b"retry: 5",
         b'data: {"choices": [{"delta": {"content": "hi"}, "finish_reason": null}]}',
         b'data: {"choices": [], "usage": {"prompt_tokens": 1}}', b'data: {"error": {"message": "openai error 500"}}',
         b'data: {"error": "x"}', b"data: {", b"data: \xff", codecs.BOM_UTF8, codecs.BOM_UTF8 + b"data: bom", b" data: x", b"Data: x"]
    ),
    st.binary(max_size=9).map(lambda value: b"data: " + value),
    st.text(max_size=9).map(str.encode),
)  # fmt: skip
ends = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(st.tuples(lines, ends), max_size=12), lines, st.data(), st.sampled_from([24, MOST]))
def test_event_decoder_decodes_any_split_of_any_event_stream_the_same(
    parts: list[tuple[bytes, bytes]], last: bytes, data: st.DataObject, most: int
) -> None:
    body = b"".join(line + end for line, end in parts) + last
    with low_limits(most):
        check_events(body, data.draw(split(body)), most, as_chunks=data.draw(st.booleans()))


values = st.binary(max_size=12).filter(lambda value: not {*value} & {*b"\r\n"})
noise = st.sampled_from(
    [b":", b": keep-alive", b"event: message", b"id: 7", b"retry: 100", b"unknown: field", b"data-: x"]
)


@given(
    events=st.lists(st.lists(values, min_size=1, max_size=3), max_size=5),
    end=ends,
    bom=st.booleans(),
    data=st.data(),
)
def test_event_decoder_returns_the_events_that_were_sent(
    events: list[list[bytes]], end: bytes, bom: bool, data: st.DataObject
) -> None:
    body = codecs.BOM_UTF8 if bom else b""
    for event in events:
        for value in event:
            body += b"".join(line + end for line in data.draw(st.lists(noise, max_size=2)))
            body += (
                b"data:" + (b" " if value.startswith(b" ") or data.draw(st.booleans()) else b"") + value + end
            )
        body += end * data.draw(st.integers(1, 2))
    decoder = EventDecoder()
    read = [event for part in data.draw(split(body)) for event in decoder.feed(part)]
    assert read + decoder.finish() == [b"\n".join(event) for event in events]


# A response parsed whole equals the same response parsed in pieces.

names = st.from_regex(rb"[A-Za-z!#$%&'*+.^_`|~-]{1,8}", fullmatch=True).filter(
    lambda name: name.lower() not in (b"connection", b"upgrade", b"trailer", b"te")
)
field_values = st.from_regex(rb"([!-~\x80-\xff]([ -~\x80-\xff]{0,8}[!-~\x80-\xff])?)?", fullmatch=True)
fields = st.lists(st.tuples(names, field_values), max_size=4)
extensions = st.sampled_from([b"", b";a", b";a=b", b';a="q"', b";name=value;last"])


def head_of(status_line: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join([status_line, *(b"\r\n%b: %b" % pair for pair in headers)])


@st.composite
def responses(draw: st.DrawFn) -> tuple[str, bytes, int, bytes, bytes, bool, bool]:
    """Return a method, a response, its status, head and body, whether it ends with the connection and may be reused."""
    method = draw(st.sampled_from(["GET", "POST", "HEAD"]))
    status = draw(st.sampled_from([200, 200, 201, 204, 304, 307, 404, 429, 500, 599]))
    body = draw(st.lists(st.binary(max_size=20), max_size=4))
    has_body = method != "HEAD" and status not in (204, 304)
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    headers = draw(fields)
    closes = draw(st.booleans())
    if framing == "length":
        headers.append((b"Content-Length", b"%d" % len(b"".join(body))))
        wire = b"".join(body)
    elif framing == "chunked":
        headers.append((b"Transfer-Encoding", b"chunked"))
        chunks = [b"%x%b\r\n%b\r\n" % (len(chunk), draw(extensions), chunk) for chunk in body if chunk]
        trailers = head_of(b"", draw(fields)).removeprefix(b"\r\n")
        wire = b"".join(chunks) + b"0%b\r\n%b" % (draw(extensions), trailers and trailers + b"\r\n") + b"\r\n"
    else:
        wire = b"".join(body)
    if closes:
        headers.append((b"Connection", b"close"))
    headers = draw(st.permutations(headers))
    head = head_of(
        b"HTTP/1.1 %d %b" % (status, draw(st.sampled_from([b"OK", b"", b"Too Many Words"]))), headers
    )
    interim = b"".join(
        head_of(b"HTTP/1.1 %d Wait" % draw(st.sampled_from([100, 102, 103])), draw(fields)) + b"\r\n\r\n"
        for _ in range(draw(st.integers(0, 2)))
    )
    until_close = has_body and framing == "close"
    # llhttp does not reuse the connection of an unframed response to HEAD: it might end with the connection.
    reusable = not closes and (framing != "close" or status in (204, 304))
    data = interim + head + b"\r\n\r\n" + (wire if has_body else b"")
    return (
        method,
        data,
        status,
        head,
        b"".join(body) if has_body else b"",
        until_close,
        reusable,
    )


@given(responses(), st.data())
def test_response_reader_reads_a_valid_response_whole_and_in_pieces(
    sent: tuple[str, bytes, int, bytes, bytes, bool, bool], data: st.DataObject
) -> None:
    method, wire, status, head, body, until_close, reusable = sent
    for pieces in ([wire], data.draw(split(wire))):
        reader = ResponseReader(method)
        read = b""
        for piece in pieces:
            if piece:  # an empty piece would mean the end of the connection
                reader.feed(piece)
                read += reader.take_body()
        assert reader.complete != until_close
        if until_close:
            reader.end()
        assert (reader.complete, reader.status_code, reader.head, read) == (True, status, head, body)
        assert reader.reusable == reusable
        response = RawResponse(reader.status_code, head, httpx.ByteStream(b""))
        assert response.headers.raw == httpx.Headers(response.headers.raw).raw
        assert len(response.headers.raw) == head.count(b"\r\n")


@given(responses(), st.data(), st.integers(0, 7))
def test_response_reader_treats_a_damaged_response_the_same_whole_and_in_pieces(
    sent: tuple[str, bytes, int, bytes, bytes, bool, bool], data: st.DataObject, options: int
) -> None:
    wire = bytearray(sent[1])
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(wire)))
        wire[place : place + data.draw(st.integers(0, 3))] = data.draw(
            st.sampled_from(
                [b"", b"\r\n", b"\n", b"\r", b" ", b":", b"0", b"\0", b"Content-Length: 1\r\n", b"HTTP/1.1 "]
            )
            | st.binary(max_size=3)
        )
    body = bytes(wire)
    check_response(body, [piece for piece in data.draw(split(body)) if piece], options & 5)


@given(
    st.lists(st.binary(max_size=300), max_size=3),
    st.sampled_from(["gzip", "deflate", "raw"]),
    st.binary(max_size=3),
    st.data(),
)
def test_inflater_decodes_a_compressed_body_the_same_whole_and_in_pieces(
    members: list[bytes], encoding: str, tail: bytes, data: st.DataObject
) -> None:
    bits = {"gzip": 31, "deflate": 15, "raw": -15}[encoding]
    body = b""
    for member in members:
        deflate = zlib.compressobj(wbits=bits)
        body += deflate.compress(member) + deflate.flush()
    if data.draw(st.booleans()):
        body = body[: data.draw(st.integers(0, len(body)))]
    body += tail
    check_inflater(body, data.draw(split(body)), "gzip" if encoding == "gzip" else "deflate")


# Any journal cut at any byte resumes.

ids = st.text(max_size=6)
errors = st.one_of(
    st.text(max_size=20).map(GatewayError),
    st.builds(
        classify, st.integers(400, 599), st.text(max_size=20), retry_after=st.none() | st.floats(0, 60)
    ),
    st.text(max_size=20).map(lambda text: stream_error(text, request_id=None)),
    st.text(max_size=20).map(InvalidArgumentError),
)
answers = st.builds(
    ChatResponse,
    id=st.text(max_size=5),
    provider=st.text(max_size=5),
    model=st.text(max_size=5),
    content=st.text(),
    usage=st.builds(Usage, prompt_tokens=st.integers(0, 2**63)),
    cost_usd=st.floats(allow_nan=False, allow_infinity=False),
    finish_reason=st.none() | st.text(max_size=5),
)


@st.composite
def histories(draw: st.DrawFn) -> list[Outcome]:
    """Return the lines of a journal, with repeated ids."""
    names = draw(st.lists(ids, min_size=1, max_size=4, unique=True))
    ended: list[Outcome] = []
    for index in range(draw(st.integers(0, 8))):
        result: dict[str, Any] = draw(
            st.one_of(
                answers.map(lambda answer: {"response": answer}), errors.map(lambda error: {"error": error})
            )
        )
        request = ChatRequest(model="m", messages="x")
        ended.append(Outcome(index=index, id=draw(st.sampled_from(names)), request=request, **result))
    return ended


DIGEST = digest_of(ChatRequest(model="m", messages="x"))


@given(histories(), st.data())
@pytest.mark.proof
def test_journal_cut_at_any_byte_resumes(history: list[Outcome], data: st.DataObject) -> None:
    texts = [encode_line(outcome, DIGEST, created=0) for outcome in history]
    whole = b"".join(texts)
    cut = data.draw(st.integers(0, len(whole)))
    left: dict[str, Outcome] = {}
    size = 0
    for outcome, text in zip(history, texts, strict=True):
        size += len(text)
        if cut >= size - 1:  # a line that lacks only its newline is whole
            left[outcome.id] = outcome
    with scratch_journal() as path:
        path.write_bytes(whole[:cut] + data.draw(st.sampled_from([b"", b"\0" * 9])) * (cut > 0))
        journal = Journal(path)
        journal.open()
        assert len(journal) == len(left)
        assert replayable(journal) == sum(outcome.response is not None for outcome in left.values())
        expected: dict[str, ChatResponse] = {}
        for index, id in enumerate(dict.fromkeys(outcome.id for outcome in history)):
            replay = journal.claim(id, DIGEST, index)
            before = left[id].response if id in left else None
            if before is None:
                assert replay is None
                before = data.draw(answers)
                request = ChatRequest(model="m", messages="x")
                journal.write(Outcome(index=index, id=id, request=request, response=before), DIGEST)
            else:
                assert replay is not None
                assert replay.response == before
            expected[id] = before
        journal.close(finished=data.draw(st.booleans()))
        journal = Journal(path)
        journal.open()
        for index, (id, response) in enumerate(expected.items()):
            replay = journal.claim(id, DIGEST, index)
            assert replay is not None
            assert replay.response == response
        journal.close(finished=True)
        assert {decode_id(line) for line in path.read_bytes().splitlines()} >= set(expected)


# Backoff stays in its bounds.

seconds = st.floats(0, 1e300)


@given(
    st.integers(1, 10**6), seconds, seconds, st.floats(0, 1), st.none() | st.floats(0, 1e6), st.floats(0, 1)
)
def test_backoff_delay_stays_within_its_bounds(
    attempts: int, base: float, most: float, jitter: float, retry_after: float | None, dice: float
) -> None:
    config = RetryConfig(backoff_base=base, backoff_max=most, jitter=jitter)
    delay = compute_delay(attempts, config, retry_after, uniform=lambda low, high: low + (high - low) * dice)
    backoff = compute_delay(attempts, config, uniform=lambda low, high: low + (high - low) * dice)
    if retry_after is not None:
        assert delay == max(retry_after, backoff)
        return
    plain = min(base * 2.0 ** min(attempts - 1, 1023), most)
    assert 0 <= delay < math.inf
    assert plain * (1 - jitter) <= delay * (1 + 1e-9)
    assert delay <= plain * (1 + jitter) * (1 + 1e-9)
    assert compute_delay(attempts, RetryConfig(backoff_base=base, backoff_max=most, jitter=0)) == plain


moments = st.datetimes(timezones=st.just(UTC))
date_parts = st.sampled_from(
    ["Mon,", "Tue", ",", "24", "Nov", "November", "2026", "99", "0", "-1", "12:00:30", "25:61:61", "12:00", "12.00", ":", "GMT", "-0000",
     "+9999", "+2400", "EST", "Z", "99999999999999999999", "٣", "", " ", "\t", "(", ")", "24-Nov-26", "/", "-", "+"]
)  # fmt: skip
waits = st.one_of(
    st.text(),
    st.floats().map(str),
    st.integers().map(str),
    moments.map(lambda moment: format_datetime(moment, usegmt=True)),
    st.lists(date_parts, max_size=8).map(" ".join),
    st.lists(date_parts, max_size=8).map("".join),
)


@given(waits, st.none() | moments)
def test_parsed_retry_after_is_finite_and_not_negative(value: str, now: datetime | None) -> None:
    with at_most(min(len(value), 128), each=60, fixed=300):
        wait = parse_retry_after(value, now=now)
    assert wait is None or 0 <= wait <= 366 * 86_400


@given(st.integers(0, 10**7), moments)
def test_retry_after_in_seconds_does_not_depend_on_the_clock(value: int, now: datetime) -> None:
    assert parse_retry_after(str(value), now=now) == value


# Every decoder turns any input into a value or a typed error.

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, 2**64, -(2**63) - 1, 10**30, 0, -1]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=6),
    st.sampled_from(["nan", "inf", "-Infinity", "1e999999999", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59",
                     "2026-11-24T12:00:00Z", "2026-11-24", "12", "true", "null", "\0", "sk-abcdefgh", "system", "POST", "/v1/chat"]),
)  # fmt: skip
keys = st.text(max_size=4) | st.sampled_from(
    ["error", "message", "detail", "choices", "delta", "content", "usage", "id", "custom_id", "body", "messages", "prompt", "role",
     "model", "stream", "loc", "msg", "type", "data", "response", "omnigate"]
)  # fmt: skip
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)

NOW = "2026-11-24T12:00:00Z"
INFO = {
    "id": "i",
    "name": "n",
    "key_prefix": "llmg_12345",
    "created_at": NOW,
    "last_used_at": None,
    "revoked_at": NOW,
}
MODEL = {
    "id": "m",
    "object": "model",
    "created": 1,
    "owned_by": "o",
    "provider": "p",
    "pricing": {"input_per_1k_usd": 0.1},
}
ORG = {"id": "i", "name": "n", "daily_budget": "1.5", "monthly_budget": "0", "created_at": NOW}
PROJECT = {**ORG, "org_id": "o", "key_prefix": "k", "rate_limit_per_min": 60}
METRICS = {
    "scope": "org", "scope_id": "s", "range_from": NOW, "range_to": NOW, "granularity": "hour", "group_by": "model",
    "totals": {"requests": 1, "p50_latency_ms": 1.5}, "breakdown": [{"key": "k"}], "timeseries": [{"bucket": NOW}],
}  # fmt: skip
CHAT_BODY = {
    "id": "i", "provider": "p", "model": "m", "content": "c", "usage": {"prompt_tokens": 1}, "cost_usd": 0.1,
    "finish_reason": "stop", "cached": False, "fallback_used": False, "latency_ms": 5,
}  # fmt: skip
RESULTS: list[tuple[Any, Any]] = [
    (ChatResponse, CHAT_BODY),
    (SignupResponse, {"org_id": "o", "project_id": "p", "email": "e", "api_key": "k", "message": "m"}),
    (MeResponse, {"project_id": "p", "org_id": "o", "project_name": "n", "key_prefix": "k", "rate_limit_per_min": 6,
                  "daily_budget": "1.5", "configured_providers": ["openai"]}),
    (ApiKeyCreated, {**INFO, "api_key": "k"}),
    (list[ApiKeyInfo], [INFO]),
    (ModelPage | list[ModelInfo], {"data": [MODEL]}),
    (ModelInfo, MODEL),
    (MetricsResponse, METRICS),
    (OrgInfo, ORG),
    (list[OrgInfo], [ORG]),
    (ProjectCreated, {**PROJECT, "api_key": "k"}),
    (list[ProjectInfo], [PROJECT]),
    (dict[str, Any], {"status": "ok"}),
]  # fmt: skip


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """Return JSON like `value`, with parts changed, removed or added."""
    if draw(st.integers(0, 9)) == 0:
        return draw(json_values)
    if isinstance(value, dict):
        fields = {name: draw(changed(item)) for name, item in value.items() if draw(st.integers(0, 19))}
        return fields | draw(st.just({}) | st.dictionaries(keys, json_values, max_size=1))
    if isinstance(value, list):
        return [draw(changed(item)) for item in value * draw(st.integers(0, 2))]
    return value


@st.composite
def damaged(draw: st.DrawFn, value: Any) -> bytes:
    """Return JSON text like `value`, possibly broken."""
    data = bytearray(json.dumps(draw(changed(value)), ensure_ascii=draw(st.booleans())).encode())
    if draw(st.integers(0, 3)) == 0:
        place = draw(st.integers(0, len(data)))
        data[place : place + draw(st.integers(0, 2))] = draw(
            st.sampled_from([b"", b"\\ud800", b"\xff", b"\xed\xa0\x80", b"\0", b"[" * 3_000, b'{"a":' * 3_000, b"9" * 5_000, b"1e999", b"-"])
            | st.binary(max_size=3)
        )  # fmt: skip
    return bytes(data)


def anything(value: Any) -> st.SearchStrategy[bytes]:
    return damaged(value) | st.binary(max_size=20) | json_values.map(lambda value: json.dumps(value).encode())


session = Session(
    base_url="http://test", key_header="x-api-key", key="llmg_" + "k" * 43, transport=httpx.MockTransport(lambda _: httpx.Response(500))
)  # fmt: skip


@pytest.mark.proof
@pytest.mark.parametrize(("kind", "body"), RESULTS, ids=[str(kind) for kind, _ in RESULTS])
@given(data=st.data())
def test_any_response_body_is_a_result_or_an_invalid_response_error(
    kind: Any, body: Any, data: st.DataObject
) -> None:
    answer = Answer(200, httpx.Headers({"x-request-id": "r"}), data.draw(anything(body)))
    for endpoint in (CHAT, SIGNUP):
        call = session.prepare(endpoint)
        try:
            value = decode_answer(kind, answer, call)
        except InvalidResponseError as error:
            assert error.request_id == "r"
            assert endpoint is CHAT or error.detail is None
            str(error).encode()
        else:
            for item in value if isinstance(value, list) else [value]:
                repr(item).encode()
                if isinstance(item, WireStruct):
                    assert type(item).model_validate_json(item.model_dump_json()) is not None
                    item.model_dump()


@pytest.mark.parametrize(("kind", "body"), RESULTS, ids=[str(kind) for kind, _ in RESULTS])
def test_sample_response_bodies_for_the_property_tests_are_valid(kind: Any, body: Any) -> None:
    value = decode_answer(kind, Answer(200, b"", json.dumps(body).encode()), session.prepare(CHAT))
    if isinstance(value, WireStruct):
        assert type(value).model_validate_json(value.model_dump_json()) == value


raw_headers = st.lists(
    st.tuples(
        st.sampled_from(
            [b"x-request-id", b"retry-after", b"date", b"x-ratelimit-limit", b"X-RateLimit-Remaining", b"x-ratelimit-reset", b"x-llmgw-cached",
             b"x-llmgw-fallback", b"x-llmgw-provider", b"x-llmgw-model", b"x-budget-project-daily-spend", b"x-budget-org-monthly-limit"]
        ),
        st.one_of(
            waits.map(lambda text: text.encode("utf-8", "replace")),
            st.binary(max_size=12),
            st.sampled_from([b"12", b"0.0001", b"1e999999999999999999999", b"sNaN", b"-Infinity", b"1_0", b"true", b"TRUE", b"9" * 5_000]),
        ).map(lambda value: value.translate(None, b"\0\r\n")),
    ),
    max_size=8,
)  # fmt: skip


@given(raw_headers)
def test_meta_can_be_made_from_any_headers(headers: list[tuple[bytes, bytes]]) -> None:
    seen = []
    for source in (httpx.Headers(headers), head_of(b"HTTP/1.1 200 OK", headers)):
        meta = Meta(200, source, attempts=1, elapsed=0.5)
        limit, budget = meta.rate_limit, meta.budget
        assert limit is None or all(number is None or 0 <= number < 10**18 for number in limit)
        assert budget is None or all(number is None or number.is_finite() for number in budget)
        repr(meta).encode()
        seen.append((limit, budget, meta.request_id, meta.provider, meta.model, meta.cached, meta.fallback))
    assert seen[0][0] == seen[1][0]


ERRORS = {
    "detail": [{"loc": ["body", "messages", 0], "msg": "wrong", "type": "x"}],
    "error": {"message": "m", "type": "provider_error"},
}
PAGES = st.lists(
    st.sampled_from(["<html>", "<!doctype html>", "<title>", "</title>", "<![x[", "<!", "<!--", "-->", "<?", "<a b='", "&#99999999999;", "&#xd800;",
                     "]]>", "<script>", "<![CDATA[", "<!DOCTYPE [", "<!ELEMENT", "\0", "503", " "]),
    max_size=8,
).map(lambda parts: ("<html>" + "".join(parts)).encode())  # fmt: skip


@given(st.integers(300, 999), raw_headers, anything(ERRORS) | PAGES, st.booleans())
@example(400, [], b"[" * 450 + b"]" * 450, True)
@example(400, [], b'{"detail":' * 450 + b"1" + b"}" * 450, True)
def test_any_error_response_becomes_a_typed_error(
    status: int, headers: list[tuple[bytes, bytes]], body: bytes, show_body: bool
) -> None:
    answer = Answer(status, httpx.Headers(headers), body)
    size = len(body) + sum(len(name) + len(value) for name, value in headers)
    with at_most(size, each=60, fixed=1_000):
        error = response_error(answer, secrets=("secret",), show_body=show_body)
    assert isinstance(error, APIError)
    assert error.status_code == status
    assert error.retry_after is None or 0 <= error.retry_after < math.inf
    assert error.message
    assert isinstance(error, RateLimitError) == (status == 429)
    assert error.message in str(error)
    str(error).encode()
    repr(error).encode()
    if not show_body:
        assert error.detail is None


@given(st.integers(300, 599), json_values)
def test_classify_accepts_any_error_detail(status: int, detail: Any) -> None:
    error = classify(status, detail)
    assert error.message
    assert isinstance(normalise_detail(detail), str)


CHUNK = {
    "choices": [{"delta": {"content": "x"}, "finish_reason": None, "index": 0}],
    "usage": {"prompt_tokens": 1},
}


@given(st.lists(anything(CHUNK) | anything({"error": {"message": "m"}}), max_size=4))
def test_stream_readers_turn_any_events_into_pieces_or_a_typed_error(events: list[bytes]) -> None:
    body = (
        b"".join(b"data: " + event.translate(None, b"\r\n") + b"\n\n" for event in events)
        + b"data: [DONE]\n\n"
    )

    def last(reader: UsageReader[str]) -> list[str]:
        assert reader.usage is None or isinstance(reader.usage, Usage)
        return []

    usage_reader = UsageReader(str, last, request_id="r", secrets=("secret",))
    completion_reader = CompletionReader(request_id="r", secrets=("secret",))
    with at_most(2 * len(body), each=60, fixed=2_000):
        pieces = usage_reader.feed(body)
        chunks = completion_reader.feed(body)
    assert all(isinstance(piece, str) and piece for piece in pieces)
    assert all(isinstance(chunk, dict) for chunk in chunks)
    for reader in (usage_reader, completion_reader):
        assert reader.done != isinstance(reader.error, InvalidResponseError)
        if reader.error is not None:
            assert isinstance(reader.error, ProviderError | InvalidResponseError)
            str(reader.error).encode()


ITEM = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 5, "n": 1}}  # fmt: skip
SHORT = {
    "id": 7,
    "messages": [{"role": "user", "content": "x"}],
    "temperature": 0.5,
    "stop": ["x"],
    "seed": 1,
}


@given(st.binary(max_size=100) | st.text(max_size=100).map(lambda text: text.encode("utf-16")))
def test_any_file_is_read_line_by_line_or_refused_as_a_whole(content: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        source = open_source(Path(file.name))
        assert isinstance(source, Iterator)
        try:
            items = list(source)
        except InvalidArgumentError as error:
            assert str(error).startswith("requests: ")
        else:
            assert len(items) <= max(content.count(b"\n") + 1, content.count(b","))
            assert not items or content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in b"{["


@given(
    st.lists(anything(ITEM) | anything(SHORT) | anything({"prompt": "x"}), max_size=4),
    st.none() | st.just("m"),
)
def test_any_line_of_a_batch_file_is_a_request_or_carries_its_error(
    texts: list[bytes], model: str | None
) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"\n".join([b'{"prompt": "x"}'.ljust(1 << 16), *texts]))  # no other kind of file
        file.flush()
        source = open_source(Path(file.name))
        assert isinstance(source, Iterator)
        index = 0
        while True:
            try:
                raw = next(source)
            except StopIteration:
                break
            except InvalidArgumentError as error:
                assert "is not UTF-8" in str(error)
                break
            index += 1
            item = read_item(raw, index, model)
            assert item.id.encode()
            assert (item.request is None) == isinstance(item.error, InvalidArgumentError)
            if item.error is not None:
                str(item.error).encode()
            else:
                assert item.request is not None
                assert len(digest_of(item.request)) == 32
                assert msgspec.json.encode(item.request)


@given(
    json_values | st.builds(ChatRequest, model=st.just("m"), messages=st.just("x")), st.none() | st.just("m")
)
def test_any_batch_item_is_a_request_or_carries_its_error(raw: object, model: str | None) -> None:
    item = read_item(raw, 0, model)
    assert (item.request is None) == isinstance(item.error, InvalidArgumentError)


REPLAYED = json.loads(
    encode_line(Outcome(index=0, id="a", request=None, response=ChatResponse(**CHAT_BODY)), DIGEST, created=0)
)
FAILED = json.loads(
    encode_line(Outcome(index=0, id="a", request=None, error=GatewayError("x")), DIGEST, created=0)
)


@given(anything(REPLAYED) | anything(FAILED))
@example(b'{"id": "\xff"}')
@example(b"[" * 100_000)
def test_decode_line_accepts_any_bytes_and_its_records_round_trip(text: bytes) -> None:
    line = decode_line(text)
    id = decode_id(text)
    if line is None:
        return
    assert id == line.custom_id
    if line.succeeded:
        response = line.chat_response()
        repr(response).encode()
        assert response.meta.request_id == (line.response and line.response.request_id)
        outcome = Outcome(index=0, id=line.custom_id, request=None, response=response)
        again = decode_line(encode_line(outcome, line.digest, created=0))
        assert again is not None
        assert again.chat_response() == response or math.isnan(response.cost_usd)


@given(st.lists(anything(REPLAYED) | anything(FAILED), max_size=4), st.sampled_from([b"\n", b""]))
@pytest.mark.proof
def test_any_file_opens_as_a_journal_or_is_rejected_unchanged(texts: list[bytes], end: bytes) -> None:
    content = b"\n".join(texts) + end
    with scratch_journal() as path:
        path.write_bytes(content)
        journal = Journal(path)
        try:
            journal.open()
        except JournalError:
            assert path.read_bytes() == content
            return
        known = {id for text in texts for line in text.split(b"\n") if (id := decode_id(line)) is not None}
        for id in known:
            try:
                journal.claim(id, DIGEST, 0)
            except JournalError:
                pass
        journal.close(finished=False)


@contextmanager
def scratch_journal() -> Iterator[Path]:
    """Yield the path of a journal that is written without fsync."""
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        yield Path(directory, "journal")


@contextmanager
def low_limits(most: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("omnigate._streams.decoders.MAX_MESSAGE_CHARACTERS", most)
        patch.setattr("omnigate._streams.decoders.MAX_EVENT_BYTES", most)
        yield
