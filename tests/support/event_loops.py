"""The event loops that tests run on, and a guard against code of ours that blocks one."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from blockbuster import blockbuster_ctx

from .virtual_time import virtual_backend

BOTH = ("asyncio", "trio")
"""Where the loop is only used."""

EVERY = (
    "asyncio+debug",
    "asyncio+uvloop",
    *(["asyncio+eager"] if sys.version_info >= (3, 12) else []),
    "trio",
)
"""What anyio itself is tested on, for the wings that schedule, cancel and wait themselves."""


def _eager(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> Callable[[], asyncio.AbstractEventLoop]:
    def new_eager_loop() -> asyncio.AbstractEventLoop:
        loop = new_loop()
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        return loop

    return new_eager_loop


def backend_of(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Return anyio's backend and options for a test's parameter, in virtual time if the test is marked so."""
    name, _, kind = request.param.partition("+")
    is_virtual = request.node.get_closest_marker("virtual_time") is not None
    backend, options = virtual_backend(name) if is_virtual else (name, {})
    if kind == "debug":
        options["debug"] = True
    elif kind == "uvloop":
        options["use_uvloop"] = True
    elif kind == "eager":
        options["loop_factory"] = _eager(options.get("loop_factory", asyncio.new_event_loop))
    return backend, options


@pytest.fixture(params=EVERY)
def every_event_loop(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run a test on all that anyio is tested on; a wing's conftest calls this fixture `anyio_backend`."""
    return backend_of(request)


ALLOWED: list[tuple[str, tuple[str, ...]]] = []
"""Where our code may block the loop (a file's end, its functions), and why."""


@pytest.fixture(autouse=True)
def nothing_blocks() -> Iterator[None]:
    """Fail where code of ours blocks the event loop; known for asyncio alone."""
    with blockbuster_ctx("omnigate", excluded_modules=["omnigate.testing"]) as guard:
        for file, functions in ALLOWED:
            for function in guard.functions.values():
                function.can_block_in(file, functions)
        yield
