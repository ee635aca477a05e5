"""Checks that pass without any extra: imports, the pytest plugin, a call, and the command's hint.

`.ci/core` runs this file in an environment with the core and pytest alone; `test_core_only.py` runs it with the
extras hidden. It must import nothing but the core, pytest and the standard library.
"""

import importlib
import json
import pkgutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anyio
import pytest

import omnigate
import omnigate.testing
from omnigate.cli import main

EXTRAS = [
    "click",
    "dask",
    "jsonschema",
    "matplotlib",
    "platformdirs",
    "prompt_toolkit",
    "pydantic",
    "ray",
    "redis",
    "rich",
    "starlette",
    "trio",
    "uvicorn",
]
ANSWER = {
    "id": "1",
    "model": "gpt-4o-mini",
    "provider": "openai",
    "content": "Salut",
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    "cost_usd": "0.000001",
    "latency_ms": 1,
    "cached": False,
}


ENGINES = {"omnigate.distributed.dask", "omnigate.distributed.ray"}


def public_modules() -> list[str]:
    found = (module.name for module in pkgutil.walk_packages(omnigate.__path__, "omnigate."))
    return ["omnigate", *(name for name in found if "._" not in name)]


class Gateway(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_no_package_of_an_extra_can_be_imported_here() -> None:
    imported = []
    for package in EXTRAS:
        with suppress(ImportError):
            importlib.import_module(package)
            imported.append(package)
    assert imported == []


def test_every_public_module_can_be_imported() -> None:
    failed = {}
    for module in public_modules():
        if module in ENGINES:
            continue
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - each is named below
            failed[module] = repr(error)
    assert failed == {}


@pytest.mark.parametrize("module", sorted(ENGINES))
def test_the_module_of_an_engine_says_which_extra_it_needs(module: str) -> None:
    name = module.rpartition(".")[2]
    try:
        importlib.import_module(module)
    except ImportError as error:
        assert f"pip install 'omnigate[{name}]'" in str(error)


def test_the_import_check_finds_the_public_modules() -> None:
    assert set(public_modules()) >= {
        "omnigate",
        "omnigate.admin",
        "omnigate.async_client",
        "omnigate.cli",
        "omnigate.client",
        "omnigate.exceptions",
        "omnigate.models",
        "omnigate.testing",
        "omnigate.testing.faults",
        "omnigate.testing.gateway",
        "omnigate.testing.plugin",
    }


def test_every_public_name_exists() -> None:
    for module in (omnigate, omnigate.testing):
        assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_the_pytest_plugin_is_loaded(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.pluginmanager.hasplugin("omnigate") or pytestconfig.pluginmanager.hasplugin(
        "omnigate.testing.plugin"
    )


@pytest.mark.parametrize(
    "fixture", ["omnigate_gateway", "omnigate_gateway_factory", "omnigate_gateway_in_process"]
)
def test_a_fixture_names_the_extra_that_is_missing(fixture: str, request: pytest.FixtureRequest) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"needs \w+: pip install 'omnigate\[gateway\]'"):
        request.getfixturevalue(fixture)


def test_creating_a_local_gateway_names_the_extra_that_is_missing() -> None:
    with pytest.raises(ImportError, match=r"the local gateway needs \w+: pip install 'omnigate\[gateway\]'"):
        omnigate.testing.LocalGateway()


def test_a_progress_display_names_the_extra_that_is_missing(url: str) -> None:
    with (
        omnigate.Client("llmg_x", base_url=url) as client,
        pytest.raises(omnigate.GatewayError, match=r"needs rich: pip install 'omnigate\[cli\]'"),
    ):
        client.batch(["hi"], model="gpt-4o-mini", progress=True)


def test_the_command_names_the_extra_that_is_missing() -> None:
    with pytest.raises(SystemExit, match=r"the omnigate command needs click: pip install 'omnigate\[cli\]'"):
        main()


def test_a_sync_chat_without_any_extra_returns_its_answer(url: str) -> None:
    with omnigate.Client("llmg_x", base_url=url) as client:
        assert client.chat(model="gpt-4o-mini", messages="Say hi in French").content == "Salut"


def test_an_async_chat_without_any_extra_returns_its_answer(url: str) -> None:
    async def call() -> str:
        async with omnigate.AsyncClient("llmg_x", base_url=url) as client:
            return (await client.chat(model="gpt-4o-mini", messages="Say hi in French")).content

    assert anyio.run(call) == "Salut"
