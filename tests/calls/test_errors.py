"""The error for each failure: its type, its message, and the secrets it must not contain."""

import builtins
import gzip
import pickle
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import httpx
import msgspec
import pytest

import omnigate
from omnigate import (
    APIError,
    AsyncClient,
    AuthError,
    BudgetExceededError,
    Client,
    GatewayError,
    ProviderError,
    ProviderRateLimitError,
    RateLimitError,
    RetryConfig,
    classify,
)
from omnigate._calls.failures import (
    connection_error,
    invalid_response,
    response_error,
    stream_error,
    transient_status,
)
from omnigate._streams.readers import TextReader
from omnigate._transport.carrier import Answer
from omnigate._wire.arguments import DEFAULT_BASE_URL
from omnigate.testing import LocalGateway

from ..support.scripted import ChunkStream, ScriptedTransport
from ..support.servers import Peer, serving

OPENAI_401 = 'OpenAI error 401: {"error":{"message":"Incorrect API key provided: sk-****."}}'
OPENAI_429 = 'OpenAI error 429: {"error":{"message":"Rate limit reached for requests"}}'


@pytest.mark.parametrize(
    ("status", "detail", "kind", "provider", "provider_status"),
    [
        (401, "Invalid API key", AuthError, None, None),
        (401, "Missing x-api-key header (or Authorization: Bearer token)", AuthError, None, None),
        (401, "Invalid or missing x-admin-key", AuthError, None, None),
        (401, OPENAI_401, ProviderError, "OpenAI", 401),
        (402, "Project daily budget exceeded", BudgetExceededError, None, None),
        (402, "Organisation monthly budget exceeded", BudgetExceededError, None, None),
        (402, "Anthropic error 402: no credit", ProviderError, "Anthropic", 402),
        (429, "Rate limit exceeded", RateLimitError, None, None),
        (429, None, RateLimitError, None, None),
        (429, OPENAI_429, ProviderRateLimitError, "OpenAI", 429),
        (429, "Azure OpenAI error 429: slow down", ProviderRateLimitError, "Azure OpenAI", 429),
        (400, "No openai key configured for this project. Add one via POST /v1/keys.", ProviderError, "openai", None),
        (400, "No provider registered for model 'x'", ProviderError, None, None),
        (400, "There was an error parsing the body", APIError, None, None),
        (500, "Gemini error 500: oops", ProviderError, "Gemini", 500),
        (502, "OpenAI request failed: ", ProviderError, "OpenAI", None),
        (502, "openai call failed: bad json", ProviderError, "openai", None),
        (502, "No provider candidate could handle the request", ProviderError, None, None),
        (502, None, ProviderError, None, None),
        (503, "openai circuit is open", ProviderError, "openai", None),
        (404, "Not Found", APIError, None, None),
        (404, "API key not found", APIError, None, None),
        (405, "Method Not Allowed", APIError, None, None),
        (422, "invalid range '2h'; expected one of 1h, 24h, 7d, 30d", APIError, None, None),
        (422, [{"loc": ["body", "email"], "msg": "too short", "input": "x"}], APIError, None, None),
        (500, "Internal Server Error", APIError, None, None),
        (500, {"error": {"message": OPENAI_401, "type": "provider_error"}}, ProviderError, "OpenAI", 401),
        (503, {"error": {"message": "", "type": "provider_error"}}, ProviderError, None, None),
        (400, {"error": {"message": "role 'tool' not supported", "type": "invalid_request_error"}}, APIError, None, None),
        (404, {"error": {"message": "model 'nope' not found", "type": "invalid_request_error"}}, APIError, None, None),
        (418, {"unknown": "shape"}, APIError, None, None),
    ],
)  # fmt: skip
def test_an_error_is_classified_by_its_status_and_detail(
    status: int, detail: object, kind: type[APIError], provider: str | None, provider_status: int | None
) -> None:
    error = classify(status, detail, retry_after=3.0, request_id="r")
    assert type(error) is kind
    assert (error.status_code, error.detail, error.request_id) == (status, detail, "r")
    assert str(error).startswith(f"[{status}] ")
    if isinstance(error, ProviderError):
        assert (error.provider, error.provider_status) == (provider, provider_status)
    if isinstance(error, RateLimitError):
        assert error.retry_after == 3.0


def test_validation_errors_become_a_message_of_one_line() -> None:
    detail = [
        {"loc": ["body", "messages", 0, "role"], "msg": "Field required"},
        {"msg": "no place"},
        "a bare text",
    ]
    assert classify(422, detail).message == "body.messages.0.role: Field required; no place; a bare text"


def answer(status: int, body: bytes, **headers: str) -> Answer:
    return Answer(status, httpx.Headers({name.replace("_", "-"): v for name, v in headers.items()}), body)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (500, b"Internal Server Error", "Internal Server Error"),
        (503, b"", "HTTP 503 Service Unavailable"),
        (599, b"", "HTTP 599"),
        (307, b"", "HTTP 307 Temporary Redirect (redirects are not followed: set base_url to the final address)"),
        (502, b"<html><head><title>502 Bad Gateway</title></head><body>x</body></html>",
         "HTTP 502 Bad Gateway: an HTML page, '502 Bad Gateway'"),
        (503, b"<!doctype html><body><style>p{}</style><p>error 503,\n come back</p>",
         "HTTP 503 Service Unavailable: an HTML page, 'error 503, come back'"),
        (500, b'{"message": "Internal server error"}', "Internal server error"),
        (500, b'{"error": "oops"}', "oops"),
        (400, b'{"detail": ""}', "HTTP 400 Bad Request"),
        (400, b'["a", 1]', "a; 1"),
        (400, b"\xff\xfe", "��"),
        (400, b"[" * 100_000, "[" * 2_000),
        (503, b"<html><p>down<![x[<p>", "HTTP 503 Service Unavailable: an HTML page, 'down'"),
    ],
)  # fmt: skip
def test_any_error_body_becomes_a_readable_message(status: int, body: bytes, message: str) -> None:
    assert response_error(answer(status, body)).message == message


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://gateway.example/v1/chat", "'https://gateway.example/v1/chat'"),
        ("/login?next=secret-key", "'/login?next=***'"),
        ("https://x.test/\x1b[31m", r"'https://x.test/\x1b[31m'"),
        ("https://x.test/" + "a" * 5_000, "aaa'"),
    ],
)
def test_a_redirect_shows_where_to_without_keys_and_escapes(location: str, shown: str) -> None:
    found = response_error(answer(307, b"", location=location), secrets=("secret-key",))
    assert found.message.startswith("HTTP 307 Temporary Redirect to '")
    assert f"{shown} (redirects are not followed: set base_url to the final address)" in found.message
    assert len(found.message) < 500


@pytest.mark.parametrize(
    "detail", ["OpenAI error 500: {}", {"message": "{}"}, [{"loc": ["{}"], "msg": "{}"}], {"x": "{}"}]
)
@pytest.mark.parametrize("sign", ["\x1b]0;owned\x07", "\r\nERROR root: forged", "\x9b2J", "\u202e", "\x00"])
def test_no_control_character_or_escape_is_in_the_text_of_an_error(detail: Any, sign: str) -> None:
    filled = msgspec.json.decode(msgspec.json.encode(detail).replace(b"{}", msgspec.json.encode(sign)[1:-1]))
    errors = [
        response_error(answer(500, msgspec.json.encode({"detail": filled}))),
        response_error(answer(500, sign.encode() + b"not JSON")),
        response_error(answer(502, f"<html><title>{sign}</title>".encode())),
        invalid_response(answer(200, sign.encode()), f"the problem {sign}", (), show_body=True),
        stream_error(f"OpenAI error 500: {sign}", request_id=None),
        connection_error(httpx.RemoteProtocolError(f"illegal {sign}"), "http://a.test", 1),
    ]
    for error in errors:
        assert str(error).isprintable(), repr(str(error))
        assert repr(error).isprintable()


@pytest.mark.parametrize(
    ("address", "ending", "right"),
    [
        ("http://a.test/v1", "/v1", "http://a.test"),
        ("https://a.test/llm/v1", "/v1", "https://a.test/llm"),
        ("http://a.test:8000/v1/chat/completions", "/v1/chat/completions", "http://a.test:8000"),
        ("http://a.test/v1/chat", "/v1/chat", "http://a.test"),
    ],
)
@pytest.mark.parametrize("status", [404, 405])
@pytest.mark.parametrize("body", [b'{"detail":"Not Found"}', b"<html><title>404</title>", b""])
def test_a_404_under_a_base_url_that_ends_in_v1_says_which_address_to_set(
    address: str, ending: str, right: str, status: int, body: bytes
) -> None:
    message = str(response_error(answer(status, body), address=address))
    assert message.endswith(
        f" (base_url ends in {ending}, but the client adds /v1/… itself: set it to {right})"
    )


@pytest.mark.parametrize(
    "address", ["http://a.test", "http://a.test/v1beta", "http://v1.test", "http://a.test/v2"]
)
def test_a_404_under_an_ordinary_base_url_has_no_hint(address: str) -> None:
    assert str(response_error(answer(404, b'{"detail":"Not Found"}'), address=address)) == "[404] Not Found"
    wrong = "http://a.test/v1"
    assert str(response_error(answer(500, b'{"detail":"x"}'), address=wrong)) == "[500] x"


@pytest.mark.parametrize(
    ("error", "beginning"),
    [
        (httpx.ConnectError("refused"), "Could not reach the gateway at http://a.test (1 attempt): refused"),
        (httpx.ConnectTimeout(""), "Could not reach the gateway at "),
        (httpx.ProxyError("407"), "Could not reach, through the proxy, the gateway at "),
        (httpx.PoolTimeout(""), "No free connection to the gateway at "),
        (httpx.ReadTimeout(""), "No answer in time from the gateway at "),
        (httpx.WriteTimeout(""), "No answer in time from the gateway at "),
        (httpx.ReadError("reset"), "Lost the connection to the gateway at http://a.test (1 attempt): reset"),
        (httpx.WriteError("pipe"), "Lost the connection to the gateway at "),
        (httpx.RemoteProtocolError("no HTTP"), "No valid answer from the gateway at "),
        (httpx.LocalProtocolError("x"), "Could not send the request to the gateway at "),
        (httpx.UnsupportedProtocol("x"), "Could not send the request to the gateway at "),
    ],
)
def test_a_connection_error_says_what_failed(error: httpx.TransportError, beginning: str) -> None:
    failure = connection_error(error, "http://a.test", 1)
    assert str(failure).startswith(beginning)
    assert "omnigate gateway" not in str(failure)


def test_an_unreachable_default_address_says_how_to_start_a_local_gateway() -> None:
    refused = httpx.ConnectError("refused")
    assert "`omnigate gateway`" in str(connection_error(refused, DEFAULT_BASE_URL, 1))
    assert "omnigate gateway" not in str(connection_error(httpx.ReadError("reset"), DEFAULT_BASE_URL, 1))


@pytest.mark.parametrize("depth", [100, 300, 400, 500, 700, 900, 5_000])
@pytest.mark.parametrize("start", [b"[", b'{"detail":'])
def test_a_deeply_nested_error_body_becomes_a_message(start: bytes, depth: int) -> None:
    end = b"]" if start == b"[" else b"}"
    body = start * depth + b"1" + end * depth
    error = response_error(answer(400, body))
    assert type(error) is APIError
    assert error.message.startswith(("{'detail'", '{"detail"', "["))


def test_an_html_page_that_mentions_a_provider_error_is_a_plain_api_error() -> None:
    body = b"<html><title>error 503: openai is down</title></html>"
    assert type(response_error(answer(503, body))) is APIError


def test_a_retry_after_date_is_measured_by_the_servers_clock() -> None:
    found = answer(
        503, b"", retry_after="Tue, 24 Nov 2026 12:00:30 GMT", date="Tue, 24 Nov 2026 12:00:00 GMT"
    )
    assert response_error(found).retry_after == 30.0


KEY = "llmg_" + "k" * 43


@pytest.mark.parametrize(
    "detail",
    [
        f"Incorrect API key provided: {KEY}",
        "wrong key sk-proj-abcdef123456",
        [{"loc": ["body", "api_key"], "msg": "bad", "input": {"api_key": KEY, "x": ["sk-abcdef123456"]}}],
        {"error": {"message": f"bad {KEY}"}},
        "the plain-secret-of-azure is wrong",
    ],
)
def test_keys_in_an_error_body_are_not_in_the_error(detail: object) -> None:
    body = msgspec.json.encode({"detail": detail})
    error = response_error(answer(401, body), secrets=("plain-secret-of-azure",))
    for text in (str(error), repr(error), repr(error.detail), repr(error.__dict__)):
        for secret in (KEY, "abcdef123456", "plain-secret-of-azure"):
            assert secret not in text


@pytest.mark.parametrize("secret", ["key", "No", "openai", "project", "detail", "error", "message"])
def test_masking_a_short_key_does_not_change_the_error_type(secret: str) -> None:
    detail = "No openai key configured for this project. Add one via POST /v1/keys."
    for body in (
        msgspec.json.encode({"detail": detail}),
        msgspec.json.encode({"error": {"message": detail, "type": "invalid_request_error"}}),
        detail.encode(),
    ):
        error = response_error(answer(400, body), secrets=(secret,))
        assert type(error) is ProviderError
        for text in (str(error), repr(error), repr(error.args), repr(error.detail), error.provider or ""):
            assert secret not in text


@pytest.mark.parametrize("secret", ["OpenAI", "error", "429", "slow", "request", "failed"])
def test_masking_a_short_key_does_not_change_the_error_type_of_a_stream(secret: str) -> None:
    error = stream_error("OpenAI error 429: slow down", request_id=None, secrets=(secret,))
    assert type(error) is ProviderRateLimitError
    assert error.provider_status == 429
    for text in (str(error), repr(error), repr(error.detail), str(error.provider)):
        assert secret not in text
    reader = TextReader(str, request_id=None, secrets=(secret,))
    reader.feed(b"\n[error] OpenAI request failed: reset")
    reader.finish()
    assert reader.transient == 502


def test_a_key_in_place_of_the_provider_name_is_masked() -> None:
    text = f"{KEY} error 401: x"
    body = msgspec.json.encode({"detail": text})
    for error in (
        response_error(answer(401, body), secrets=("other",)),
        stream_error(text, request_id=None, secrets=("other",)),
    ):
        assert isinstance(error, ProviderError)
        assert (error.provider_status, "kkkk" in str(error.__dict__)) == (401, False)


def test_errors_of_calls_that_create_keys_contain_nothing_of_the_body() -> None:
    error = response_error(answer(500, b'{"detail": "hush"}'), show_body=False)
    assert error.detail is None
    assert "hush" not in repr(error)


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ("OpenAI error 429: slow down", 429),
        ("OpenAI error 500: oops", 500),
        ("OpenAI error 503: oops", 503),
        ("OpenAI request failed: connection reset", 502),
        ("OpenAI request failed: ", 502),
        ("openai circuit is open", 503),
        ("", 502),
        ("OpenAI error 401: bad key", None),
        ("OpenAI error 400: bad request", None),
        ("peer closed connection without sending complete message body", None),
    ],
)
def test_only_temporary_failures_inside_a_stream_are_transient(message: str, status: int | None) -> None:
    error = stream_error(message, request_id="r")
    assert (error.status_code, error.request_id) == (502, "r")
    assert transient_status(message) == status


def test_a_provider_rate_limit_inside_a_stream_is_a_provider_rate_limit_error() -> None:
    error = stream_error("OpenAI error 429: slow down", request_id=None)
    assert type(error) is ProviderRateLimitError
    assert error.provider_status == 429


def test_the_exception_hierarchy_is_the_documented_one() -> None:
    assert issubclass(omnigate.ConnectionError, GatewayError)
    assert issubclass(omnigate.ConnectionError, builtins.ConnectionError)
    assert omnigate.GatewayConnectionError is omnigate.ConnectionError
    assert issubclass(omnigate.TimeoutError, omnigate.ConnectionError)
    assert issubclass(omnigate.TimeoutError, builtins.TimeoutError)
    assert issubclass(ProviderRateLimitError, RateLimitError)
    assert issubclass(ProviderRateLimitError, ProviderError)
    assert issubclass(omnigate.InvalidArgumentError, ValueError)
    assert issubclass(omnigate.InvalidArgumentTypeError, TypeError)
    assert issubclass(omnigate.InvalidResponseError, ValueError)
    assert not issubclass(AuthError, ProviderError)


def test_an_auth_error_names_the_environment_variable_to_set() -> None:
    assert "OMNIGATE_API_KEY" in "".join(classify(401, "Invalid API key").__notes__)


def test_errors_survive_pickling() -> None:
    error = classify(429, OPENAI_429, retry_after=2.0, request_id="r")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is ProviderRateLimitError
    assert (str(copy), copy.retry_after, copy.provider_status) == (str(error), 2.0, 429)


# Error responses whose body cannot be read

SECRET = "plain-secret-of-a-gateway"
HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}
BREAKS = [
    httpx.ReadError("reset"),
    httpx.ReadTimeout(""),
    httpx.RemoteProtocolError("peer closed connection"),
]


async def chat(client: AsyncClient) -> object:
    return await client.chat(**HELLO)


async def stream(client: AsyncClient) -> object:
    return await client.chat_stream(**HELLO).text()


Use = Callable[[AsyncClient], Awaitable[object]]
either_way = pytest.mark.parametrize("use", [chat, stream])


async def refused(use: Use, status: int, body: list[Any], **headers: str) -> tuple[APIError, list[float]]:
    """Return the error for such a response, and the times of the requests."""
    bodies: list[ChunkStream] = []

    def answer(_: httpx.Request) -> httpx.Response:
        bodies.append(ChunkStream(body))
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.Response(status, headers={"x-request-id": "r", **named}, stream=bodies[-1])

    transport = ScriptedTransport(answer)
    config = RetryConfig(max_retries=1, jitter=0)
    with anyio.fail_after(100):
        async with AsyncClient(SECRET, transport=transport, retry_config=config) as client:
            with pytest.raises(APIError) as caught:
                await use(client)
    assert all(body.closed for body in bodies)
    assert caught.value.request_id == "r"
    assert caught.value.attempts == len(transport.requests)
    return caught.value, transport.times


@pytest.mark.anyio
@pytest.mark.virtual_time
@pytest.mark.parametrize("failure", BREAKS)
@either_way
async def test_an_error_response_whose_body_breaks_keeps_its_status(use: Use, failure: Exception) -> None:
    error, times = await refused(use, 401, [b'{"detail": "Inv', failure])
    assert type(error) is AuthError
    assert (error.status_code, error.detail, len(times)) == (401, '{"detail": "Inv', 1)


@pytest.mark.anyio
@pytest.mark.virtual_time
@pytest.mark.parametrize("body", [[b"\x0b\x02\x80hello\x03"], [httpx.ReadError("reset")], []])
@either_way
async def test_an_error_response_with_an_unknown_encoding_keeps_its_status(use: Use, body: list[Any]) -> None:
    error, times = await refused(use, 429, body, content_encoding="br", retry_after="7")
    assert type(error) is RateLimitError
    assert (error.status_code, error.retry_after, error.detail) == (429, 7.0, None)
    assert times[1] - times[0] == pytest.approx(7, abs=0.01)


@pytest.mark.anyio
@pytest.mark.virtual_time
@either_way
async def test_the_received_part_of_a_compressed_error_body_is_used(use: Use) -> None:
    whole = gzip.compress(b'{"detail": "OpenAI error 400: bad"}')
    error, _ = await refused(use, 400, [whole[:-2], httpx.ReadError("reset")], content_encoding="gzip")
    assert type(error) is ProviderError
    assert error.detail == "OpenAI error 400: bad"


@pytest.mark.anyio
@pytest.mark.virtual_time
@either_way
async def test_a_secret_cut_off_by_the_end_of_an_error_body_is_masked(use: Use) -> None:
    for length in (4, 10, len(SECRET) - 1, len(SECRET)):
        text = b'{"detail": "bad key ' + SECRET[:length].encode()
        error, _ = await refused(use, 401, [text, httpx.ReadError("reset")])
        assert error.detail == '{"detail": "bad key ***'
        assert "plain" not in repr(error) + str(error.args)


@pytest.mark.anyio
@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ([b"<html><title>Service Unavailable</title></html>"], {"content_type": "text/html"}),
        ([b""], {}),
        ([b'{"message": "no route"}'], {}),
        ([b'{"status": 503}'], {}),
        ([b"[]"], {}),
        ([b"\xff"], {}),
        ([b"[" * 100_000], {}),
        ([b'{"status": "not_re', httpx.ReadError("reset")], {}),
        ([b"x"], {"content_encoding": "br"}),
    ],
)
async def test_ready_raises_if_the_gateway_cannot_be_reached(
    body: list[Any], headers: dict[str, str]
) -> None:
    error, times = await refused(lambda client: client.ready(), 503, body, **headers)
    assert type(error) is APIError
    assert (error.status_code, len(times)) == (503, 2)


def test_a_first_use_without_a_gateway_prints_one_short_traceback() -> None:
    with LocalGateway() as gateway:
        address = gateway.url  # where nothing listens any more
    with Client(base_url=address, retries=0) as client, pytest.raises(omnigate.ConnectionError) as caught:
        client.chat(model="m", messages="x")
    shown = "".join(traceback.format_exception(caught.value))
    assert shown.count("Traceback") == 1
    assert "direct cause" not in shown
    assert shown.count("\n") < 40
    assert (
        shown.rstrip()
        .splitlines()[-1]
        .startswith("omnigate.ConnectionError: Could not reach the gateway at ")
    )


@pytest.mark.anyio
async def test_a_server_that_hangs_up_is_not_called_unreachable() -> None:
    async def hang_up(peer: Peer) -> None:
        await peer.request()

    async with serving(hang_up) as server, AsyncClient("k", base_url=server.url, retries=0) as client:
        with pytest.raises(omnigate.ConnectionError) as caught:
            await client.chat(model="m", messages="x")
    assert "reach" not in str(caught.value)
    assert "the server closed the connection without sending a response" in str(caught.value)
    assert caught.value.was_sent


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_a_log_line_of_a_failed_attempt_is_one_printable_line(caplog: pytest.LogCaptureFixture) -> None:
    detail = "OpenAI error 500: \x1b[2J\r\nERROR root: forged"
    transport = ScriptedTransport(lambda _: httpx.Response(500, json={"detail": detail}))
    async with AsyncClient("k", base_url="http://a.test", transport=transport, retries=1) as client:
        with caplog.at_level("DEBUG", "omnigate"), pytest.raises(APIError):
            await client.chat(model="m", messages="x")
    lines = [record.getMessage() for record in caplog.records if record.name == "omnigate"]
    assert len(lines) == 1
    assert lines[0].isprintable()
    assert "forged" in lines[0]


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_an_answer_cut_within_a_character_is_not_lost() -> None:
    whole = (
        b'{"id":"1","provider":"openai","model":"m","content":"cut here \\ud83d",'
        b'"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
    )
    raw = b'{"choices":[{"message":{"content":"cut \\ud83d"}}]}'
    transport = ScriptedTransport(
        lambda request: httpx.Response(200, content=raw if "completions" in request.url.path else whole)
    )
    async with AsyncClient("k", base_url="http://a.test", transport=transport, retries=0) as client:
        assert (await client.chat(model="m", messages="x")).content == "cut here \ufffd"
        answered = await client.completions(model="m", messages="x")
        assert answered["choices"][0]["message"]["content"] == "cut \ufffd"
        async with client.batch(["x"], model="m") as batch:
            assert [outcome.unwrap().content async for outcome in batch] == ["cut here \ufffd"]
    assert len(transport.requests) == 3
