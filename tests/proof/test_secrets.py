"""Keys leave the process only in the header or body they are meant for.

Keys of every kind, most in shapes that no pattern matches, are searched for in everything a run produces: reprs, log
records of all loggers, exceptions with their causes and notes, the locals of the package's own frames, journals, and
the output of subprocesses.
"""

import json
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from omnigate import (
    AdminClient,
    AnyIOTransport,
    APIError,
    ApiKeyCreated,
    AsyncAdminClient,
    AsyncClient,
    Client,
    ConnectionError,
    GatewayError,
    InvalidArgumentError,
    RetryConfig,
    SignupResponse,
)
from omnigate.testing import Cut, LocalGateway, ProviderFailure, Status

from ..support.keys import (
    ADMIN_KEY,
    GATEWAY_KEY,
    HEADER_KEY,
    OTHER_KEY,
    PLAIN_KEY,
    PROVIDER_KEY,
    assert_no_key,
)
from ..support.scripted import ScriptedTransport, Step, error_answer, stream_answer
from ..support.servers import serving

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}
FAST = RetryConfig(max_retries=1, backoff_base=0.001, backoff_max=0.001)


def everything_of(error: BaseException) -> Iterator[str]:
    """Yield all the text of an exception and of its causes and contexts, including suppressed ones."""
    seen: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        found = pending.pop()
        if found is None or found in seen:
            continue
        seen.append(found)
        yield from (str(found), repr(found), repr(found.args), repr(vars(found)))
        yield "\n".join(getattr(found, "__notes__", ()))
        pending += [found.__cause__, found.__context__]
        if isinstance(found, BaseExceptionGroup):
            pending += found.exceptions
    yield "".join(traceback.format_exception(error))


def locals_of(error: BaseException) -> str:
    """Return the locals of the package's frames, as a debugger or a pretty traceback shows them."""
    shown: list[str] = []
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if (frame.f_globals.get("__name__") or "").startswith("omnigate."):
            named = frame.f_locals.items()
            shown += [f"{frame.f_code.co_name}: {name} = {value!r}" for name, value in named]
    return "\n".join(shown)


@pytest.fixture
def _records(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check the records of all loggers, at every level, after the test."""
    with caplog.at_level(1):
        yield
    for record in caplog.get_records("call"):
        assert_no_key(f"{record.getMessage()} {vars(record)!r}")


def echo_of(request: httpx.Request) -> str:
    """Return a message with all the keys of a request."""
    names = ("x-api-key", "x-admin-key", "authorization")
    found = [request.headers[name] for name in names if name in request.headers]
    if request.content and "api_key" in (body := json.loads(request.content)):
        found.append(body["api_key"])
    assert found
    return f"you sent {' and '.join(found)}."


ECHOES: dict[str, Callable[[str], Step]] = {
    "a detail": lambda echo: error_answer(400, echo),
    "a bad key": lambda echo: error_answer(401, echo),
    "validation": lambda echo: error_answer(422, [{"loc": ["body", echo], "msg": echo, "input": {echo: [echo]}}]),
    "deep": lambda echo: error_answer(400, {"a": {"b": [[echo]]}}),
    "an envelope": lambda echo: lambda _: httpx.Response(
        502, json={"error": {"message": echo, "type": "provider_error"}}
    ),
    "text": lambda echo: lambda _: httpx.Response(500, text=echo),
    "truncated text": lambda echo: lambda _: httpx.Response(500, text="." * 1_970 + echo),
    "truncated JSON": lambda echo: lambda _: httpx.Response(500, text='{"detail": ' + json.dumps(echo)),
    "a page": lambda echo: lambda _: httpx.Response(503, text=f"<html><title>{echo}</title></html>"),
    "a truncated page": lambda echo: lambda _: httpx.Response(503, text=f"<html><title>{'.' * 170}{echo}</title>"),
    "the reason phrase": lambda echo: lambda _: httpx.Response(
        400, extensions={"reason_phrase": echo.encode("latin-1")}
    ),
    "a retry": lambda echo: error_answer(503, echo),
    "another type": lambda echo: lambda _: httpx.Response(200, json=[echo]),
    "another type, truncated": lambda echo: lambda _: httpx.Response(200, json=["." * 160 + echo]),
    "not JSON": lambda echo: lambda _: httpx.Response(200, text=echo),
    "not JSON, truncated": lambda echo: lambda _: httpx.Response(200, text="." * 160 + echo),
    "an encoding": lambda echo: lambda _: httpx.Response(200, headers={"content-encoding": echo}, stream=httpx.ByteStream(b"x")),
    "a redirect": lambda echo: lambda _: httpx.Response(307, headers={"location": "/" + echo}, text=echo),
    "a sentinel": lambda echo: stream_answer(b"\n[error] OpenAI error 401: " + echo.encode("latin-1")),
    "a late sentinel": lambda echo: stream_answer(b"text\n[error] " + echo.encode("latin-1")),
    "an error event": lambda echo: stream_answer(
        b"data: " + json.dumps({"error": {"message": echo}}).encode() + b"\n\n"
    ),
    "not an event": lambda echo: stream_answer(b"data: " + echo.encode("latin-1") + b"\n\n"),
    "not an event, truncated": lambda echo: stream_answer(b"data: " + b"." * 160 + echo.encode("latin-1") + b"\n\n"),
}  # fmt: skip


def repeating(name: str) -> ScriptedTransport:
    """Return a transport that answers with the keys it was sent."""

    def step(request: httpx.Request) -> Any:
        answer = ECHOES[name](echo_of(request))
        assert callable(answer)
        return answer(request)

    return ScriptedTransport(step)


@pytest.mark.usefixtures("_records")
@pytest.mark.parametrize("key", [GATEWAY_KEY, PLAIN_KEY], ids=["known", "unknown"])
@pytest.mark.parametrize("name", ECHOES)
@pytest.mark.proof
async def test_keys_echoed_by_a_gateway_do_not_reach_errors_logs_or_journals(
    name: str, key: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "base_url": "https://gateway.test",
        "headers": {"authorization": HEADER_KEY},
        "transport": repeating(name),
        "retry_config": FAST,
    }
    client = AsyncClient(f"  {key} ", **options)
    admin = AsyncAdminClient(ADMIN_KEY, **options)
    other = {"X-API-Key": OTHER_KEY}
    journal = tmp_path / "journal"

    async def batch() -> None:
        async with client.batch(
            ["hello"],
            model="m",
            stop_on=(),
            journal=journal,
            max_wait_seconds=0.01,  # 502 and 503 are outages
        ) as outcomes:
            async for outcome in outcomes:
                assert_no_key(repr(outcome))
                outcome.unwrap()

    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: client.chat(**HELLO),
        lambda: client.chat(**HELLO, extra_headers=other),
        lambda: client.chat_stream(**HELLO).text(),
        lambda: client.chat_stream(**HELLO, extra_headers=other).text(),
        lambda: client.chat_stream(**HELLO, include_usage=True).text(),
        lambda: client.completions(**HELLO),
        lambda: client.models(),
        lambda: client.set_provider_key(provider="azure", api_key=PROVIDER_KEY),
        lambda: client.signup(email="a@b.test"),
        lambda: client.create_api_key(name="x"),
        lambda: client.race(models=["a", "b"], messages="x"),
        batch,
        lambda: admin.list_orgs(),
        lambda: admin.create_project(org_id="x", name="y"),
    ]
    failures = 0
    for call in calls:
        try:
            await call()
        except GatewayError as error:
            failures += 1
            for text in everything_of(error):
                assert_no_key(text)
    assert failures
    assert_no_key(journal.read_text("utf-8"))
    for thing in (client, admin, client.chat_stream(**HELLO), client.batch([])):
        assert_no_key(repr(thing))


BAD_KEY = "bad-key-of-no-known-shape\r\n\ud800"


@pytest.mark.parametrize(
    "use",
    [
        lambda: AsyncClient(BAD_KEY),
        lambda: AsyncClient(BAD_KEY.encode("utf-8", "replace")),
        lambda: AsyncAdminClient(BAD_KEY),
        lambda: AsyncClient(headers={"X-API-Key": BAD_KEY}),
        lambda: AsyncClient(headers={"authorization": f"Bearer {BAD_KEY}"}),
        lambda: AsyncClient(headers={"authorization": BAD_KEY.encode("utf-8", "replace")}),
        lambda: AsyncClient().chat(**HELLO, extra_headers={"x-api-key": BAD_KEY}),
        lambda: AsyncClient().set_provider_key(provider="openai", api_key=BAD_KEY),
        lambda: AsyncClient().set_provider_key(provider="openai", api_key=BAD_KEY.encode("utf-8", "replace")),
        lambda: AsyncClient(base_url=f"https://user:{BAD_KEY[:20]}@gateway.test"),
    ],
)
async def test_error_for_an_invalid_key_does_not_show_the_key(use: Callable[[], Any]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        result = use()
        if isinstance(result, Awaitable):
            await result
    for text in everything_of(caught.value):
        assert_no_key(text, "bad-key-of-no-known-shape")


@pytest.mark.usefixtures("_records")
@pytest.mark.parametrize("make", [AnyIOTransport, httpx.AsyncHTTPTransport, httpx.HTTPTransport])
@pytest.mark.parametrize("key", [GATEWAY_KEY, PLAIN_KEY, f" {PLAIN_KEY}\t"])
@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"",
        b"not HTTP",
        b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 200\r\n\r\n{}",
    ],
)
@pytest.mark.proof
async def test_traceback_locals_of_a_failed_call_hold_no_key(
    make: Any, key: str, answer: bytes | None
) -> None:
    async def handle(peer: Any) -> None:
        await peer.request()
        if answer:
            await peer.send(answer)

    async with serving(handle) as server:
        url = server.url if answer is not None else "http://127.0.0.1:1"
        transport = make()
        async with AsyncClient(
            key, base_url=url, transport=transport, retry_config=FAST, headers={"authorization": HEADER_KEY}
        ) as client:
            for call in (
                lambda: client.chat(**HELLO),
                lambda: client.chat_stream(**HELLO, include_usage=True).text(),
                lambda: client.me(),
            ):
                with pytest.raises((APIError, ConnectionError)) as caught:
                    await call()
                error: BaseException | None = caught.value
                for text in everything_of(caught.value):
                    assert_no_key(text)
                while error is not None:
                    assert_no_key(locals_of(error))
                    error = error.__cause__
            assert_no_key(repr(transport))


def test_reprs_of_objects_that_hold_a_key_do_not_show_it() -> None:
    created = {"id": "1", "name": "x", "key_prefix": GATEWAY_KEY[:12], "api_key": GATEWAY_KEY}
    signup = {"org_id": "1", "project_id": "2", "email": "a@b.test", "api_key": GATEWAY_KEY, "message": "m"}
    key = ApiKeyCreated.model_validate(created | {"created_at": "2026-01-01T00:00:00Z"})
    account = SignupResponse.model_validate(signup)
    assert key.api_key == account.api_key == GATEWAY_KEY
    for thing in (key, account, [key], {"key": account}):
        assert_no_key(repr(thing))
        assert_no_key(str(thing))
    with LocalGateway(admin_key=ADMIN_KEY) as gateway:
        secret = gateway.api_key
        with (
            Client(secret, base_url=gateway.url) as client,
            AdminClient(ADMIN_KEY, base_url=gateway.url) as admin,
        ):
            client.set_provider_key(provider="openai", api_key=PROVIDER_KEY)
            made = client.create_api_key(name="x")
            admin.list_orgs()
            things = [client, admin, gateway, gateway.app, gateway.requests, gateway.pending_scripts, made]
            for thing in [*things, gateway.create_project()]:
                assert_no_key(repr(thing), secret, made.api_key)


# Whole programs

REPORTING = """
import logging, sys
logging.basicConfig(level=1, stream=sys.stderr)
import omnigate.testing._gateway.accounts as accounts, omnigate.testing.gateway as gateway
def new_key(make=accounts.new_key):
    key = make()
    open({path!r}, "a").write(key + "\\n")
    return key
accounts.new_key = gateway.new_key = new_key
for module in list(sys.modules.values()):
    if module.__name__.startswith("omnigate.testing") and hasattr(module, "new_key"):
        module.new_key = new_key
from omnigate.cli import main
main()
"""


def command(path: Path, *arguments: str) -> list[str]:
    """Return the command line of `omnigate` that logs everything and writes the keys it makes to a file."""
    return [sys.executable, "-X", "dev", "-W", "error", "-c", REPORTING.format(path=str(path)), *arguments]


@pytest.mark.proof
def test_demo_command_prints_and_logs_no_key(tmp_path: Path) -> None:
    made = tmp_path / "keys"
    done = subprocess.run(command(made, "demo"), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    keys = made.read_text().split()
    assert len(keys) >= 3
    assert "DEBUG" in done.stderr
    assert_no_key(done.stdout + done.stderr, "sk-any-key-will-do-here", *keys)


def test_gateway_command_prints_its_keys_once_to_be_copied_and_logs_none(
    tmp_path: Path,
) -> None:
    made = tmp_path / "keys"
    with subprocess.Popen(
        command(made, "gateway", "--port", "0"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while len(lines) < 5:
            lines.append(process.stdout.readline())
        printed = "".join(lines)
        exported = dict(re.findall(r"export (\w+)=(\S+)", printed))
        url, key = exported["OMNIGATE_BASE_URL"], exported["OMNIGATE_API_KEY"]
        with Client(key, base_url=url) as client:
            client.chat(**HELLO)
            client.set_provider_key(provider="openai", api_key=PROVIDER_KEY)
            client.create_api_key(name="another")
            with pytest.raises(GatewayError):
                client.chat(model="azure-none", messages="x")
        with AdminClient(exported["OMNIGATE_ADMIN_KEY"], base_url=url) as admin:
            admin.list_orgs()
        with Client(PLAIN_KEY, base_url=url) as stranger, pytest.raises(GatewayError):
            stranger.me()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    for made_key in {key, exported["OMNIGATE_ADMIN_KEY"]}:
        assert printed.count(made_key) == 1
    assert_no_key(out + err, *made.read_text().split())


FAILING = """
import logging, os, sys
import rich.traceback
from pathlib import Path
if os.environ["PRETTY"]:
    rich.traceback.install(show_locals=True)
logging.basicConfig(level=1, stream=sys.stderr)
from omnigate import AdminClient, Client
with Client(retries=1) as client:
    {call}
"""


@pytest.mark.proof
@pytest.mark.parametrize("pretty", ["", "1"])
@pytest.mark.parametrize(
    ("fault", "call"),
    [
        (Status(401, {"detail": GATEWAY_KEY}), 'client.chat(model="gpt-4o-mini", messages="x")'),
        (Status(503, GATEWAY_KEY), 'client.chat(model="gpt-4o-mini", messages="x")'),
        (Status(200, b"[]"), "client.me()"),
        (Cut(), "client.models()"),
        (Cut(10), 'client.chat_stream(model="gpt-4o-mini", messages="x").text()'),
        (ProviderFailure(401, GATEWAY_KEY), 'client.chat_stream(model="gpt-4o-mini", messages="x").text()'),
        (Status(400, GATEWAY_KEY), 'client.chat_many(["x"], model="gpt-4o-mini")'),
        (Status(400, GATEWAY_KEY), 'client.race(models=["a", "b"], messages="x")'),
        (Status(403, GATEWAY_KEY), "AdminClient().list_orgs()"),
    ],
)
def test_failing_script_shows_no_key_in_its_traceback_or_log(pretty: str, fault: Any, call: str) -> None:
    with LocalGateway() as gateway:
        gateway.script(fault, times=20)
        environment = os.environ | {
            "OMNIGATE_BASE_URL": gateway.url,
            "OMNIGATE_API_KEY": GATEWAY_KEY,
            "OMNIGATE_ADMIN_KEY": ADMIN_KEY,
            "PRETTY": pretty,
            "COLUMNS": "250",
        }
        done = subprocess.run(
            [sys.executable, "-c", FAILING.format(call=call)],
            env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "Error" in done.stderr
    assert_no_key(done.stdout + done.stderr)


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
REPEATED = Status(400, {"detail": f"bad {GATEWAY_KEY}"})


@pytest.mark.proof
@pytest.mark.timeout(150)  # starting the processes of a cluster takes its time on a busy machine
@pytest.mark.parametrize(
    "example",
    # older releases of openai print the gateway's message
    [
        pytest.param(example, id=example.name)
        for example in EXAMPLES
        if not example.name.startswith("openai_sdk")
    ],
)
def test_failing_example_prints_and_logs_no_key(example: Path) -> None:
    """tests/test_examples.py tests the examples when nothing fails."""
    with LocalGateway() as gateway:
        gateway.script(REPEATED, times=100)
        environment = os.environ | {"OMNIGATE_BASE_URL": gateway.url, "OMNIGATE_API_KEY": gateway.api_key}
        done = subprocess.run(
            [sys.executable, "-c", LOGGED, example],
            env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert_no_key(done.stdout + done.stderr, gateway.api_key)


LOGGED = "import logging, runpy, sys; logging.basicConfig(level=1, stream=sys.stderr); runpy.run_path(sys.argv[1], run_name='__main__')"
