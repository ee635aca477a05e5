"""The guard of these tests: code of ours that blocks the event loop is found, code of others is not."""

import time

import pytest
from blockbuster import BlockingError

import omnigate

from ..support.event_loops import refusing_to_block

pytestmark = [pytest.mark.anyio, pytest.mark.blocks]


def sleep_in(file: str) -> None:
    exec(compile("sleep(0)", file, "exec"), {"sleep": lambda seconds: time.sleep(seconds)})


@pytest.mark.parametrize("anyio_backend", ["asyncio", "asyncio+uvloop"], indirect=True)
async def test_a_function_of_the_package_that_sleeps_in_the_event_loop_is_refused() -> None:
    with refusing_to_block() as found, pytest.raises(BlockingError, match="time.sleep"):
        sleep_in(f"{omnigate.__path__[0]}/session.py")
    assert len(found) == 1
    assert "session.py" in found[0]


async def test_code_of_others_may_sleep_in_the_event_loop() -> None:
    with refusing_to_block() as found:
        sleep_in("/somewhere/else.py")
    assert found == []


def test_the_package_may_sleep_outside_of_an_event_loop() -> None:
    with refusing_to_block() as found:
        sleep_in(f"{omnigate.__path__[0]}/session.py")
    assert found == []
