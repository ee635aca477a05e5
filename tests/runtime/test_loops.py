"""A value for each event loop, from several threads, from signal handlers, and after a loop has ended."""

import asyncio
import gc
import signal
import threading
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from omnigate._runtime.loops import PerLoop, current_loop

pytestmark = pytest.mark.anyio

EACH_BACKEND = pytest.mark.parametrize("other", ["asyncio", "trio"])


class Thing:
    """A value that can be referred to weakly and told from others."""

    def __init__(self, loop: Any) -> None:
        self.loop = loop


def in_new_loop(per_loop: PerLoop[Thing], backend: str) -> Thing:
    async def current() -> Thing:
        return per_loop.current()

    return anyio.run(current, backend=backend)


async def test_a_loop_has_one_value_which_is_made_for_it() -> None:
    per_loop = PerLoop(Thing)
    assert per_loop.values() == []
    value = per_loop.current()
    assert value.loop is current_loop()
    assert per_loop.current() is value
    assert per_loop.values() == [value]


def test_outside_of_a_loop_there_is_no_value() -> None:
    per_loop = PerLoop(Thing)
    for use in (per_loop.current, per_loop.pop, lambda: per_loop.end(print)):
        with pytest.raises(RuntimeError, match="no running event loop"):
            use()


@EACH_BACKEND
async def test_the_value_of_a_loop_that_has_ended_is_dropped_when_a_new_loop_comes(other: str) -> None:
    dropped: list[Thing] = []
    per_loop = PerLoop(Thing, drop=dropped.append)
    first = await anyio.to_thread.run_sync(in_new_loop, per_loop, other)
    assert per_loop.values() == [first]  # until the next loop comes
    value = per_loop.current()
    assert per_loop.values() == [value]
    assert dropped == [first]


@EACH_BACKEND
async def test_ending_drops_the_values_of_loops_that_have_ended(other: str) -> None:
    dropped: list[Thing] = []
    ended: list[Thing] = []
    per_loop = PerLoop(Thing, drop=dropped.append)
    value = per_loop.current()
    last = await anyio.to_thread.run_sync(in_new_loop, per_loop, other)
    per_loop.end(ended.append)
    assert (dropped, ended, per_loop.values()) == ([last], [value], [])


@EACH_BACKEND
async def test_ending_reaches_each_value_in_its_own_loop(other: str) -> None:
    per_loop = PerLoop(Thing)
    value = per_loop.current()
    ended: dict[Thing, tuple[Any, int]] = {}
    began, release = threading.Event(), threading.Event()
    others: list[Thing] = []

    async def hold() -> None:
        others.append(per_loop.current())
        began.set()
        await anyio.to_thread.run_sync(release.wait, 10)
        while others[0] not in ended:
            await anyio.lowlevel.checkpoint()

    def end(thing: Thing) -> None:
        ended[thing] = (current_loop(), threading.get_ident())

    thread = threading.Thread(target=lambda: anyio.run(hold, backend=other))
    thread.start()
    try:
        await anyio.to_thread.run_sync(began.wait, 10)
        assert set(per_loop.values()) == {value, others[0]}
        per_loop.end(end)
        assert ended[value] == (current_loop(), threading.get_ident())
        assert per_loop.values() == []
    finally:
        release.set()
        await anyio.to_thread.run_sync(thread.join, 10)
    assert ended[others[0]] == (others[0].loop, thread.ident)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="the system has no such signal")
async def test_a_signal_handler_may_ask_while_the_value_is_being_made() -> None:
    in_handler: list[Thing] = []

    made: list[Thing] = []

    def make(loop: Any) -> Thing:
        thing = Thing(loop)
        made.append(thing)
        if len(made) == 1:
            signal.raise_signal(signal.SIGUSR1)
        return thing

    per_loop = PerLoop(make)
    before = signal.signal(signal.SIGUSR1, lambda *_: in_handler.append(per_loop.current()))
    try:
        value = per_loop.current()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(made) == 2
    assert in_handler == [value]
    assert per_loop.values() == [value]


async def test_a_finalizer_may_end_the_values_while_one_is_dropped() -> None:
    class Ending(Thing):
        def __del__(self) -> None:
            per_loop.end(ended.append)

    ended: list[Thing] = []
    makers: list[type[Thing]] = [Ending, Thing]
    per_loop = PerLoop(lambda loop: makers.pop(0)(loop))

    async def use() -> None:
        per_loop.current()

    await anyio.to_thread.run_sync(lambda: asyncio.run(use()))
    value = per_loop.current()  # drops the first one, whose finalizer finds no value to end yet
    gc.collect()
    assert ended == []
    assert per_loop.values() == [value]


async def test_threads_that_use_it_simultaneously_have_a_value_each() -> None:
    per_loop = PerLoop(Thing)
    barrier = threading.Barrier(8)
    found: list[Thing] = []

    async def use() -> None:
        barrier.wait(10)
        value = per_loop.current()
        await anyio.lowlevel.checkpoint()
        assert per_loop.current() is value
        found.append(value)
        barrier.wait(10)  # no loop ends before all have their values

    threads = [threading.Thread(target=lambda: asyncio.run(use())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await anyio.to_thread.run_sync(thread.join, 10)
    assert len(set(found)) == 8
    assert {value.loop for value in found} == {value.loop for value in set(found)}
    assert set(per_loop.values()) == set(found)


async def test_a_removed_value_is_made_anew() -> None:
    per_loop = PerLoop(Thing)
    assert per_loop.pop() is None
    value = per_loop.current()
    assert per_loop.pop() is value
    assert per_loop.current() is not value
