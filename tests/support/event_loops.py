"""The event loops that tests run on, and a guard against our code blocking one."""

import asyncio
import linecache
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import blockbuster
import pytest
from blockbuster import BlockBuster, BlockingError

from .virtual_time import virtual_backend

BOTH = ("asyncio", "trio")
"""For tests that merely use a loop."""

EVERY = (
    *BOTH,
    *(
        pytest.param(f"asyncio+{kind}", marks=pytest.mark.proof)
        for kind in ("debug", "uvloop", *(["eager"] if sys.version_info >= (3, 12) else []))
    ),
    pytest.param("trio+served", marks=pytest.mark.proof),
)
"""The loops anyio itself is tested on, for packages that schedule, cancel and wait themselves.

asyncio's other kinds are proofs: debug mode alone, which formats a stack for each task, takes twice as long as asyncio.
So is trio with one task that reads for all others, even if only one waits.
"""

without_debug = pytest.mark.parametrize("anyio_backend", BOTH, indirect=True)
"""For tests with thousands of tasks: debug mode formats a stack for each."""


def _eager(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> Callable[[], asyncio.AbstractEventLoop]:
    def new_eager_loop() -> asyncio.AbstractEventLoop:
        loop = new_loop()
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        return loop

    return new_eager_loop


def backend_of(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Return anyio's backend and options for a test's parameter, in virtual time if the test has that mark."""
    name, _, kind = request.param.partition("+")
    is_virtual = request.node.get_closest_marker("virtual_time") is not None
    backend, options = virtual_backend(name) if is_virtual else (name, {})
    if kind == "debug":
        options["debug"] = True
    elif kind == "uvloop":
        options["use_uvloop"] = True
    elif kind == "eager":
        options["loop_factory"] = _eager(options.get("loop_factory", asyncio.new_event_loop))
    elif kind == "served":
        request.getfixturevalue("monkeypatch").setattr("omnigate._transport.trio_receiver.FEW", 0)
    return backend, options


@pytest.fixture(params=EVERY)
def every_event_loop(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run a test on every loop anyio is tested on; a package's conftest imports this as `anyio_backend`."""
    return backend_of(request)


MAY_BLOCK = [
    # One line to or from the page cache, so that an outcome is in the journal before it is handed out;
    # opening, syncing and compacting run in a thread.
    ("file.py", ("append", "read_at")),
    # Reading the authorities takes longer than looking for their directory; once for each client.
    ("_transport/certificates.py", ("_from_environment",)),
    # anyio looks at the path of a unix domain socket, once, before any worker is connected.
    ("distributed/_server.py", ("_listen",)),
    # The package redis looks for its own version, to tell it to the server, once for each connection.
    ("redis/utils.py", ("get_lib_version",)),
    # A program's own log handlers, which may write to a file.
    ("logging/__init__.py", ("emit",)),
]
"""Places that may block the event loop on purpose: the end of a file's name and its functions."""


def _is_called_by_linecache(*_: object, **__: object) -> bool:
    return sys._getframe(2).f_code is linecache.checkcache.__code__


@contextmanager
def refusing_to_block() -> Iterator[list[str]]:
    """Raise if our code blocks an asyncio loop, and list where, since an `except` may hide the error."""
    found: list[str] = []

    class Blocked(BlockingError):
        def __init__(self, function: str) -> None:
            super().__init__(function)
            found.append(f"{function}, called from\n{''.join(traceback.format_stack(limit=12))}")

    guard = BlockBuster("omnigate", excluded_modules=["omnigate.testing"])
    for file, functions in MAY_BLOCK:
        for function in guard.functions.values():
            function.can_block_in(file, functions)
    # asyncio's debug mode asks for every line of every task's stack: too often to search for our code each time.
    guard.functions["os.stat"].can_block_predicate = _is_called_by_linecache
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockbuster.blockbuster, "BlockingError", Blocked)
        guard.activate()
        try:
            yield found
        finally:
            guard.deactivate()


@pytest.fixture(autouse=True)
def nothing_blocks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in which our code blocks the event loop; asyncio only, as blockbuster does not support trio."""
    if request.node.get_closest_marker("blocks"):
        yield
        return
    with refusing_to_block() as found:
        yield
    assert not found, "\n".join(found)
