"""Encoding an outcome as a journal line and decoding it again."""

import json
import math
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnigate import (
    APIError,
    AuthError,
    ConnectionError,
    GatewayError,
    InvalidArgumentError,
    ProviderRateLimitError,
    RateLimitError,
)
from omnigate._batch.journal.lines import (
    Settings,
    decode_id,
    decode_line,
    digest_of,
    encode_line,
    is_torn,
    settings_of,
    split_lines,
)
from omnigate._batch.outcomes import Outcome
from omnigate._wire.head import Meta
from omnigate.exceptions import classify
from omnigate.models import ChatRequest, ChatResponse, Message, Usage

from . import DIGEST, answer, ask, failure, success

CREATED = 1_795_000_000


def line_of(outcome: Outcome, digest: str = DIGEST) -> bytes:
    return encode_line(outcome, digest, created=CREATED)


def test_a_journalled_success_has_the_layout_of_openai_batch_output() -> None:
    outcome = success("row-7", 7, "hi", cost_usd=0.25, finish_reason="stop", latency_ms=12, cached=True)
    line = line_of(outcome)
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "id": f"omnigate-7-{DIGEST}",
        "custom_id": "row-7",
        "response": {
            "status_code": 200,
            "request_id": "req-1",
            "body": {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": CREATED,
                "model": "m-2026",
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
                ],
                "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
            },
        },
        "error": None,
        "omnigate": {
            "digest": DIGEST,
            "index": 7,
            "attempts": 2,
            "elapsed": 1.5,
            "provider": "openai",
            "request": {"model": "m"},
            "cost_usd": 0.25,
            "cached": True,
            "fallback_used": False,
            "latency_ms": 12,
        },
    }


def test_the_openai_sdk_reads_the_body_of_a_journal_line() -> None:
    from openai.types.chat import ChatCompletion

    body = json.loads(line_of(success(text="hi", finish_reason="stop")))["response"]["body"]
    completion = ChatCompletion.model_validate(body)
    assert completion.choices[0].message.content == "hi"
    assert completion.usage is not None
    assert completion.usage.total_tokens == 3


ERRORS: list[tuple[GatewayError, str, str, dict[str, Any]]] = [
    (GatewayError("broken"), "GatewayError", "broken", {"request_id": None}),
    (InvalidArgumentError("no"), "InvalidArgumentError", "no", {"request_id": None}),
    (ConnectionError("refused"), "ConnectionError", "refused", {"request_id": None}),
    (
        APIError("odd", status_code=418, request_id="r"),
        "APIError",
        "[418] odd",
        {"request_id": "r", "status_code": 418, "retry_after": None},
    ),
    (
        RateLimitError("slow", retry_after=2.0, status_code=429),
        "RateLimitError",
        "[429] slow",
        {"request_id": None, "status_code": 429, "retry_after": 2.0},
    ),
    (
        RateLimitError("slow", retry_after=math.inf, status_code=429),
        "RateLimitError",
        "[429] slow",
        {"request_id": None, "status_code": 429, "retry_after": None},
    ),
    (
        classify(429, "OpenAI error 429: slow", request_id="r"),
        "ProviderRateLimitError",
        "[429] OpenAI error 429: slow",
        {
            "request_id": "r",
            "status_code": 429,
            "retry_after": None,
            "provider": "OpenAI",
            "provider_status": 429,
        },
    ),
    (
        ProviderRateLimitError("x"),
        "ProviderRateLimitError",
        "x",
        {
            "request_id": None,
            "status_code": None,
            "retry_after": None,
            "provider": None,
            "provider_status": None,
        },
    ),
    (GatewayError("half \ud800"), "GatewayError", "half \\ud800", {"request_id": None}),
]


@pytest.mark.parametrize(("error", "code", "message", "extra"), ERRORS)
def test_a_journalled_failure_keeps_its_type_message_and_details(
    error: GatewayError, code: str, message: str, extra: dict[str, Any]
) -> None:
    line = json.loads(line_of(failure("x", 4, error)))
    assert line["response"] is None
    assert line["error"] == {"code": code, "message": message}
    book_keeping = {"digest": DIGEST, "index": 4, "attempts": 3, "elapsed": 2.5}
    expected = (
        {**book_keeping, "provider": None, **extra} if "provider" in extra else {**book_keeping, **extra}
    )
    prompt = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    assert line["omnigate"] == {**expected, "request": prompt}


def test_a_journal_line_of_an_invalid_item_has_no_digest() -> None:
    outcome = Outcome(index=3, id="x", request=None, error=InvalidArgumentError("no"))
    line = line_of(outcome, "")
    assert json.loads(line)["omnigate"]["digest"] is None
    parsed = decode_line(line)
    assert parsed is not None
    assert parsed.digest == ""
    assert not parsed.succeeded


@pytest.mark.parametrize("secret", ["llmg_0123456789abcdef", "sk-proj-0123456789abcdef"])
def test_a_journal_line_contains_no_api_key(secret: str) -> None:
    line = line_of(failure(error=AuthError(f"the key {secret} is wrong", status_code=401, detail=secret)))
    assert secret.encode() not in line


def test_a_journal_line_keeps_the_models_text_verbatim() -> None:
    text = "use sk-example1234 as a placeholder\n\0\x7f\u2028 \U0001f600"
    parsed = decode_line(line_of(success(text=text)))
    assert parsed is not None
    assert parsed.chat_response().content == text


numbers = st.integers(0, 2**70)
responses = st.builds(
    ChatResponse,
    id=st.text(),
    provider=st.text(),
    model=st.text(),
    content=st.text(),
    usage=st.builds(Usage, prompt_tokens=numbers, completion_tokens=numbers, total_tokens=numbers),
    cost_usd=st.floats(allow_nan=False, allow_infinity=False),
    finish_reason=st.none() | st.text(),
    cached=st.booleans(),
    fallback_used=st.booleans(),
    latency_ms=st.integers(),
)


@given(
    response=responses, id=st.text(), attempts=st.integers(1, 9), elapsed=st.floats(0, 1e9, allow_nan=False)
)
def test_a_journalled_success_decodes_to_an_equal_response(
    response: ChatResponse, id: str, attempts: int, elapsed: float
) -> None:
    outcome = Outcome(index=1, id=id, request=ask(), response=response, attempts=attempts, elapsed=elapsed)
    line = line_of(outcome)
    assert line.index(b"\n") == len(line) - 1
    parsed = decode_line(line)
    assert parsed is not None
    assert parsed.succeeded
    assert parsed.custom_id == decode_id(line) == id
    assert parsed.digest == DIGEST
    assert parsed.chat_response() == response
    assert (parsed.omnigate.attempts, parsed.omnigate.elapsed) == (attempts, elapsed)


def test_the_journal_round_trip_property_covers_every_response_field() -> None:
    assert set(ChatResponse.__struct_fields__) == {
        "id", "provider", "model", "content", "usage", "cost_usd", "finish_reason", "cached",
        "fallback_used", "latency_ms",
    }  # fmt: skip


HEAD = b"HTTP/1.1 200 OK\r\nserver: x"


@pytest.mark.parametrize(
    ("headers", "request_id"),
    [
        (HEAD, None),
        (HEAD + b"\r\nx-request-id: abc", "abc"),
        (HEAD + b"\r\nX-REQUEST-ID:\t abc \r\nz: 1", "abc"),
        (HEAD + b"\r\nx-request-id:", ""),
        (HEAD + b"\r\nx-request-id: a\r\nx-request-id: b", "a, b"),
        (HEAD + "\r\nx-request-id: é".encode(), "é"),
        (HEAD + "\r\nx-request-id: é".encode("latin-1"), "é"),
        (HEAD + b"\r\nnot-x-request-id: a", None),
        (httpx.Headers({"X-Request-ID": "abc"}), "abc"),
        (httpx.Headers(), None),
    ],
)
def test_a_decoded_journal_line_has_the_request_id_in_its_meta(
    headers: httpx.Headers | bytes, request_id: str | None
) -> None:
    response = answer()
    response._meta = Meta(200, headers, attempts=1, elapsed=0.5)
    outcome = Outcome(index=0, id="a", request=ask(), response=response, attempts=2, elapsed=1.5)
    parsed = decode_line(line_of(outcome))
    assert parsed is not None
    meta = parsed.chat_response().meta
    assert meta.request_id == request_id == response.meta.request_id
    assert (meta.status_code, meta.attempts, meta.elapsed) == (200, 2, 1.5)
    assert len(meta.headers) == (request_id is not None)


def test_a_response_without_meta_can_be_journalled() -> None:
    response = ChatResponse(id="i", provider="p", model="m", content="c")
    parsed = decode_line(line_of(Outcome(index=0, id="a", request=ask(), response=response)))
    assert parsed is not None
    assert parsed.chat_response() == response
    assert parsed.chat_response().meta.request_id is None


GOOD = json.loads(line_of(success()))
FAILED = json.loads(line_of(failure()))


def without(fields: dict[str, Any], *path: str) -> dict[str, Any]:
    copy = json.loads(json.dumps(fields))
    place = copy
    for name in path[:-1]:
        place = place[name]
    del place[path[-1]]
    return dict(copy)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\0\0\0",
        b"null",
        b"[]",
        b"{}",
        b'"text"',
        b'{"messages": "a prompt"}',
        b'{"custom_id":"a","method":"POST","url":"/v1/chat","body":{}}',
        line_of(success())[:-2],
        line_of(success())[:-1] + b"x",
        line_of(success())[:-1] * 2,
        b"\xff" + line_of(success()),
        b"[" * 100_000,
        json.dumps({**GOOD, "error": FAILED["error"]}).encode(),
        json.dumps({**FAILED, "error": None}).encode(),
        *(json.dumps(without(GOOD, name)).encode() for name in GOOD),
        *(
            json.dumps(without(GOOD, "omnigate", name)).encode()
            for name in GOOD["omnigate"]
            if name != "request"  # which lines of 0.3 do not have
        ),
        *(json.dumps(without(GOOD, "response", name)).encode() for name in GOOD["response"]),
        json.dumps({**GOOD, "omnigate": {**GOOD["omnigate"], "cost_usd": "much"}}).encode(),
        json.dumps({**GOOD, "omnigate": {**GOOD["omnigate"], "provider": None}}).encode(),
        json.dumps({**GOOD, "custom_id": 7}).encode(),
    ],
)
def test_decode_line_returns_none_for_anything_but_a_journal_line(line: bytes) -> None:
    assert decode_line(line) is None


@pytest.mark.parametrize(
    "line",
    [
        line_of(success()),
        line_of(success()).rstrip(),
        line_of(success()).rstrip() + b"\r\n",
        json.dumps(GOOD, indent=None, separators=(" , ", " : ")).encode(),
        json.dumps({"more": [1], **GOOD}).encode(),
        json.dumps({**GOOD, "omnigate": {**GOOD["omnigate"], "more": {"of": "it"}}}).encode(),
    ],
)
def test_decode_line_accepts_other_formatting_and_unknown_fields(line: bytes) -> None:
    parsed = decode_line(line)
    assert parsed is not None
    assert parsed.chat_response() == success().response


def test_every_proper_prefix_of_a_journal_line_is_torn_and_not_a_line() -> None:
    for outcome in (success(text="}" * 9), failure()):
        line = line_of(outcome)[:-1]
        for length in range(1, len(line)):
            assert decode_line(line[:length]) is None
            assert is_torn(line[:length], has_newline=False)
            assert is_torn(line[:length] + b"\0" * 9, has_newline=False)
            assert is_torn(line[:length] + b"\0" * 9, has_newline=True)
            assert not is_torn(line[:length], has_newline=True)


@pytest.mark.parametrize("has_newline", [True, False])
@pytest.mark.parametrize(
    "line",
    [
        b"hello",
        b'{"custom_id":"a"}',
        b"{}",
        b'{"id":"batch_req_1"}',
        b"\0x",
        b"# a comment",
        b'{"id":"omnigate-1-x","of":"a later version"}',
    ],
)
def test_foreign_text_is_not_a_torn_journal_line(line: bytes, has_newline: bool) -> None:
    assert not is_torn(line, has_newline=has_newline)


@pytest.mark.parametrize("data", [b"\xff", b"{", b"7", b'{"id":"a"}', b'{"custom_id":7}', b"[" * 100_000])
def test_decode_id_returns_none_where_there_is_no_id(data: bytes) -> None:
    assert decode_id(data) is None


# Digests.


def test_equal_requests_have_the_same_digest_however_they_were_built() -> None:
    requests = [
        ChatRequest(model="m", messages="x", temperature=0),
        ChatRequest(temperature=0.0, messages=[Message(role="user", content="x")], model="m"),
        ChatRequest(messages=[{"content": "x", "role": "user"}], model="m", temperature=0, stream=False),
    ]
    assert len({digest_of(request) for request in requests}) == 1
    # A fixed value: if it changed, a later version would repeat a million finished requests.
    assert digest_of(requests[0]) == "d34f84eaacd40e39ee524ff54c5c27e0"


def test_a_request_that_differs_in_any_field_has_another_digest() -> None:
    fields: dict[str, Any] = {
        "max_tokens": 1, "temperature": 0.5, "stream": True, "top_p": 0.5, "stop": "x",
        "presence_penalty": 1, "frequency_penalty": 1, "seed": 1, "fallback_models": ["n"], "cache": True,
    }  # fmt: skip
    assert {*fields, "model", "messages"} == set(ChatRequest.__struct_fields__)
    requests = [ask(), ask("other"), ChatRequest(model="n", messages="hello")]
    requests += [ChatRequest(model="m", messages="hello", **{name: fields[name]}) for name in fields]
    requests += [ChatRequest(model="m", messages="hello", stop=["x"])]
    assert len({digest_of(request) for request in requests}) == len(requests)


def test_requests_with_lone_surrogates_have_digests() -> None:
    assert len(digest_of(ask("\ud800"))) == 32
    assert digest_of(ask("\ud800")) != digest_of(ask("\ud801"))


# Splitting.


@given(
    data=st.lists(st.sampled_from([b"a", b"bc" * 40, b"\n"]), max_size=30).map(b"".join),
    size=st.integers(1, 9),
)
def test_journal_lines_have_the_same_offsets_for_any_block_size(data: bytes, size: int) -> None:
    def read_at(offset: int, _: int) -> bytes:
        return data[offset : offset + size]

    found = list(split_lines(read_at))
    expected = data.split(b"\n")
    assert [line for _, line in found] == (expected[:-1] if expected[-1] == b"" else expected)
    for offset, line in found:
        assert data[offset : offset + len(line)] == line
        assert offset == 0 or data[offset - 1 : offset] == b"\n"


def test_a_long_journal_line_is_read_in_growing_blocks() -> None:
    sizes: list[int] = []
    data = b"x" * 3_000_000 + b"\nend\n" + b"y" * 300_000

    def read_at(offset: int, size: int) -> bytes:
        sizes.append(size)
        return data[offset : offset + size]

    assert [len(line) for _, line in split_lines(read_at)] == [3_000_000, 3, 300_000]
    assert sizes[:4] == [sizes[0], 2 * sizes[0], 4 * sizes[0], 8 * sizes[0]]


def test_remembered_settings_change_no_line() -> None:
    settings = Settings()
    requests = [
        ChatRequest(model="m", messages="a", temperature=0.5),
        ChatRequest(model="m", messages="b", temperature=0.5),
        ChatRequest(model="m", messages="b"),
        ChatRequest(model="m", messages="c", stop=["x"], max_tokens=3),
        ChatRequest(model="m", messages="d", stop=["y"], max_tokens=3),
        ChatRequest(model="m", messages="d", temperature=0.5),
    ]
    for index, request in enumerate(requests * 2):
        outcome = Outcome(index=index, id=str(index), request=request, response=answer("x"))
        line = encode_line(outcome, DIGEST, created=CREATED, settings=settings)
        assert line == line_of(outcome)
        decoded = decode_line(line)
        assert decoded is not None
        assert decoded.omnigate.request == settings_of(request)
