"""The sync client where gevent has patched the standard library: it works, or refuses with what to do."""

import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("gevent")

pytestmark = pytest.mark.proof

SCRIPT = """
    from gevent import monkey
    monkey.patch_all(PATCHES)
    import gevent, httpx, omnigate, threading

    def answer(request):
        return httpx.Response(200, json={"id": "1", "provider": "p", "model": "m", "content": "hello"})

    class Waits(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request):
            import anyio
            while not ticks:
                await anyio.sleep(0.001)
            return answer(request)

    ticks = []
    def call(client):
        try:
            return client.chat(model="m", messages="x").content
        except omnigate.GatewayError as error:
            return f"{type(error).__name__}: {error}"

    def greenlets(clients):
        spawned = [gevent.spawn(call, client) for client in clients for _ in range(2)]
        gevent.joinall(spawned)
        return [each.value for each in spawned]

    clients = [omnigate.Client("k", transport=httpx.MockTransport(answer), backend=BACKEND) for _ in range(2)]
    answers = greenlets(clients) + greenlets(clients)
    assert len(set(answers)) == 1, answers
    print(answers[0])
    if answers[0] == "hello":  # a call blocks only its own greenlet
        waiting = omnigate.Client("k", transport=Waits(), backend=BACKEND)
        gevent.spawn(ticks.append, 1)
        print(call(waiting))
        waiting.close()
    for client in clients:
        client.close()
        print(call(client))
"""

IMPORTS = """
    from gevent import monkey
    monkey.patch_all()
    import importlib, sys, httpx, omnigate
    omnigate.Client  # loads the package, and with it anyio, before imports are watched
    thread = monkey.get_original("_thread", "get_ident")
    import_module = importlib.import_module

    def watch(name, package=None):  # gevent imports so, and takes the lock even of what is loaded
        print("here" if thread() == main else f"{name} in another thread")
        return import_module(name, package)

    class Watch:
        def find_spec(self, name, path, target=None):
            print("here" if thread() == main else f"{name} in another thread")

    main = thread()
    sys.meta_path.insert(0, Watch())
    importlib.import_module = watch
    client = omnigate.Client("k", transport=httpx.MockTransport(lambda _: httpx.Response(200, json={})), backend=BACKEND)
    try:
        client.health()
    except omnigate.NotStartedError:
        pass
    client.close()
"""


def run(patches: str, backend: str, script: str = SCRIPT) -> list[str]:
    script = textwrap.dedent(script).replace("PATCHES", patches).replace("BACKEND", repr(backend))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_two_clients_of_asyncio_work_in_greenlets_where_everything_is_patched() -> None:
    closed = "ClientClosedError: the client is closed; create a new one"
    assert run("", "asyncio") == ["hello", "hello", closed, closed]


@pytest.mark.parametrize("patches", ["select=False", "thread=False", "socket=False"])
def test_a_client_refuses_each_call_where_a_part_of_the_library_is_patched(patches: str) -> None:
    first = run(patches, "asyncio")[0]
    assert first.startswith("NotStartedError: gevent has patched part of the standard library")
    assert "monkey.patch_all() without arguments" in first


def test_a_client_of_trio_refuses_each_call_and_names_the_backend_that_works() -> None:
    first = run("", "trio")[0]
    assert first.startswith("NotStartedError: the client's thread could not start its trio event loop")
    assert 'use backend="asyncio"' in first


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_no_thread_of_a_client_imports_a_module_while_another_might(backend: str) -> None:
    # Two threads that wait for one lock of an import, which is gevent's, may hang.
    assert set(run("", backend, IMPORTS)) == {"here"}
