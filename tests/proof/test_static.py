"""Static checks of the public names: documented, typed for sync and async, and importable without warnings."""

import inspect
import pkgutil
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import omnigate
import omnigate.testing

TYPING = (Path(__file__).parents[1] / "typing" / "public_api.py").read_text("utf-8")
NAMES = [(omnigate, name) for name in omnigate.__all__ if name != "__version__"]
NAMES += [(omnigate.testing, name) for name in omnigate.testing.__all__]


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties of a class that the package defines."""
    for name in dir(kind):
        if name.startswith("_"):
            continue
        owner = next(base for base in kind.__mro__ if name in vars(base))
        found = inspect.getattr_static(kind, name)
        if owner.__module__.startswith("omnigate") and (
            inspect.isroutine(found) or isinstance(found, (property, classmethod, staticmethod))
        ):
            yield name, found


def documented() -> Iterator[tuple[str, Any]]:
    """Yield each public name, method and property."""
    for module, name in NAMES:
        thing = getattr(module, name)
        yield f"{module.__name__}.{name}", thing
        if inspect.isclass(thing):
            for member, found in members(thing):
                yield f"{module.__name__}.{name}.{member}", found


def is_described(thing: Any) -> bool:
    """Return whether the docstring begins with a one-line sentence."""
    if typing.get_origin(thing) is not None:  # an alias of a union, described by its members
        return True
    doc = inspect.getdoc(thing.fget if isinstance(thing, property) else thing)
    first = doc.splitlines()[0] if doc else ""
    return first.endswith((".", ":")) and len(first) <= 110


def test_every_public_name_has_a_docstring_with_a_one_line_summary() -> None:
    found = dict(documented())
    assert len(found) > 200
    assert [name for name, thing in found.items() if not is_described(thing)] == []


CONSTRUCTED = [
    omnigate.Client,
    omnigate.AsyncClient,
    omnigate.AdminClient,
    omnigate.AsyncAdminClient,
    omnigate.AnyIOTransport,
    omnigate.RetryConfig,
    omnigate.testing.LocalGateway,
]  # the classes that users construct; structs and faults describe their arguments in prose


def callables() -> Iterator[tuple[str, Callable[..., Any]]]:
    for module, name in NAMES:
        thing = getattr(module, name)
        if inspect.isfunction(thing):
            yield name, thing
        elif inspect.isclass(thing):
            if thing in CONSTRUCTED:
                yield name, thing
            for member, found in members(thing):
                function = getattr(found, "__func__", found)
                if inspect.isfunction(function):
                    yield f"{name}.{member}", function


def undescribed(function: Callable[..., Any]) -> set[str]:
    """Return the arguments missing from the docstring, and those it describes that do not exist."""
    doc = inspect.getdoc(function) or ""
    if re.search(r"arguments (and errors )?are those of `", doc):
        return set()
    parameters = inspect.signature(function).parameters
    wanted = {name for name in parameters if name not in ("self", "cls")} - {"options"}
    section = re.search(r"^(Args|Attributes):\n((?:    .*\n?|\n)+)", doc, re.MULTILINE)
    described = set(re.findall(r"^    (\w+):", section[2], re.MULTILINE)) if section else set()
    wrong = {name for name in wanted - described if f"`{name}`" not in doc}
    if section and section[1] == "Args":
        wrong |= described - set(parameters)
        wrong |= {"options"} & set(parameters) - described
    return wrong


def test_every_public_function_documents_its_arguments() -> None:
    found = dict(callables())
    assert len(found) > 100
    assert {name: wrong for name, function in found.items() if (wrong := undescribed(function))} == {}


def test_every_overload_has_a_typing_test_for_sync_and_async() -> None:
    found = 0
    untested: list[str] = []
    for module, name in NAMES:
        kind = getattr(module, name)
        if inspect.isclass(kind):
            face = {"Client": "sync", "AnyIOTransport": "transport"}.get(name, "client")
            for member, function in members(kind):
                overloads = typing.get_overloads(function) if inspect.isfunction(function) else []
                calls = re.findall(rf"assert_type\(\s*(?:await )?{face}\.{member}\(", TYPING)
                if len(calls) < len(overloads):
                    untested.append(f"{name}.{member}")
                found += len(overloads)
    assert untested == []
    assert found >= 8


def modules() -> list[str]:
    found = pkgutil.walk_packages(omnigate.__path__, "omnigate.")
    return ["omnigate", *(module.name for module in found if not module.name.endswith("__main__"))]


def strictly(code: str, *arguments: str) -> None:
    command = [sys.executable, "-X", "dev", "-bb", "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


IMPORTS = """
import importlib, os, sys, traceback
import anyio, asyncio, click, httptools, httpx, msgspec, rich.progress, starlette.applications, trio, uvicorn
broken = []
for module in sys.argv[1:]:
    child = os.fork()
    if not child:
        try:
            importlib.import_module(module)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        broken.append(module)
if broken:
    sys.exit(f"cannot be imported first: {', '.join(broken)}")
"""


ENGINES = {"omnigate.distributed.dask", "omnigate.distributed.ray"}
"""Modules of extras that may be missing, and whose packages have warnings of their own and import for seconds."""


@pytest.mark.proof
def test_every_module_can_be_imported_first_without_warnings() -> None:
    assert len(modules()) > 50
    strictly(IMPORTS, *(name for name in modules() if name not in ENGINES))


PROGRAM = """
import anyio
from omnigate import AsyncClient, Client
from omnigate.testing import LocalGateway

async def main(url, key):
    async with AsyncClient(key, base_url=url) as client:
        await client.chat(model="gpt-4o-mini", messages="x")
        async with client.chat_stream(model="gpt-4o-mini", messages="x", include_usage=True) as stream:
            async for piece in stream:
                pass
        async with client.chat_stream(model="gpt-4o-mini", messages="x y z") as stream:
            async for piece in stream:
                break
        await client.chat_many(["a", "b"], model="gpt-4o-mini")
        await client.race(models=["gpt-4o-mini", "claude-3"], messages="x")
    dropped = AsyncClient(key, base_url=url)
    await dropped.models()
    await dropped.aclose()

with LocalGateway() as gateway:
    for backend in ("asyncio", "trio"):
        anyio.run(main, gateway.url, gateway.api_key, backend=backend)
        with Client(gateway.api_key, base_url=gateway.url, backend=backend) as client:
            client.chat(model="gpt-4o-mini", messages="x")
            for piece in client.chat_stream(model="gpt-4o-mini", messages="x"):
                pass
            client.chat_many(["a", "b"], model="gpt-4o-mini")
"""


def test_program_using_every_kind_of_call_runs_with_warnings_as_errors() -> None:
    strictly(PROGRAM)
