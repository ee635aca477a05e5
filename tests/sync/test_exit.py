"""The end of the interpreter: sync clients that are still open, and calls that come after the main thread."""

import subprocess
import sys
import textwrap
from typing import Any

import pytest

pytestmark = pytest.mark.proof

SET_UP = """
    import atexit, concurrent.futures, threading, time
    import httpx, omnigate

    # "localhost" is a name, so that it is looked up; nothing listens at its port 9.
    def call(client):
        try:
            print(client.chat(model="m", messages="x", deadline_seconds=5).content, flush=True)
        except omnigate.GatewayError as error:
            print(type(error).__name__, flush=True)

    def transport():
        body = {"id": "1", "provider": "p", "model": "m", "content": "hello"}
        return httpx.MockTransport(lambda request: httpx.Response(200, json=body))

    mocked = omnigate.Client("k", transport=transport(), backend=BACKEND)
    named = omnigate.Client("k", base_url="http://localhost:9", retries=0, backend=BACKEND)
"""


def run(backend: Any, *lines: str) -> list[str]:
    """Run a script that must exit without any words on stderr, and return the lines that it prints."""
    source = textwrap.dedent(SET_UP.replace("BACKEND", repr(backend))) + "\n".join(lines)
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_an_atexit_handler_calls_a_client_that_was_used_before(backend: Any) -> None:
    lines = run(
        backend,
        "atexit.register(lambda: (call(mocked), call(named)))",
        "call(mocked)",
        "call(named)",
    )
    assert lines == ["hello", "ConnectionError", "hello", "ConnectionError"]


def test_an_atexit_handlers_first_call_works_or_is_a_typed_error(backend: Any) -> None:
    first, second = run(backend, "atexit.register(lambda: (call(mocked), call(named)))")
    assert first in {"hello", "NotStartedError"}  # Python 3.12 starts no thread then
    assert second in {"ConnectionError", "NotStartedError"}


def test_an_atexit_handler_that_runs_after_the_packages_own_gets_a_typed_error(backend: Any) -> None:
    before = "import atexit\natexit.register(lambda: (call(mocked), call(mocked)))\n"
    source = before + textwrap.dedent(SET_UP.replace("BACKEND", repr(backend))) + "call(mocked)\n"
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["hello", "ClientClosedError", "ClientClosedError"]


@pytest.mark.parametrize("is_first", [True, False])
def test_a_call_in_an_executor_after_the_main_thread_works_or_is_a_typed_error(
    backend: Any, is_first: bool
) -> None:
    first, second = run(
        backend,
        "" if is_first else "call(mocked), call(named)",
        "main = threading.main_thread()",
        "def late():",
        "    while not getattr(threading, '_SHUTTING_DOWN', not main.is_alive()):",
        "        time.sleep(0.001)",
        "    call(mocked)",
        "    call(named)",
        "concurrent.futures.ThreadPoolExecutor(1).submit(late)",
    )[0 if is_first else 2 :]
    assert first in ({"hello", "NotStartedError"} if is_first else {"hello"})
    assert second in ({"ConnectionError", "NotStartedError"} if is_first else {"ConnectionError"})


def test_a_thread_that_calls_on_while_the_interpreter_exits_prints_nothing(backend: Any) -> None:
    lines = run(
        backend,
        "def loop():",
        "    while True:",
        "        try:",
        "            mocked.health()",
        "        except omnigate.GatewayError:",
        "            return",
        "call(mocked)",
        "threading.Thread(target=loop, daemon=True).start()",
    )
    assert lines == ["hello"]


def test_open_clients_streams_and_batches_print_nothing_when_the_interpreter_exits(backend: Any) -> None:
    lines = run(
        backend,
        "call(mocked)",
        "batch = mocked.batch([dict(model='m', messages='x')] * 3).__enter__()",
        "print(next(batch).response.content)",
    )
    assert lines == ["hello", "hello"]
