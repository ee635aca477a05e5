"""Event loops whose clock jumps to the next timer when there is nothing else to do.

trio has one (`MockClock`); for asyncio, a selector moves the loop's clock instead of waiting.

While a task waits for a worker thread there is something to do, of which the event loop knows nothing: the clock
must not jump then, or a slow disk would let time limits run out (`waiting_for_threads`).
"""

import asyncio
import selectors
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import anyio.to_thread
import pytest
import trio.testing

THREAD_SECONDS = 5.0
"""How long a clock waits for a worker thread, which may itself wait for something that only the clock brings."""


class _JumpingSelector(selectors.DefaultSelector):
    now = 0.0
    threads = 0  # that tasks wait for

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        wait = THREAD_SECONDS if timeout and self.threads else 0.0
        ready = super().select(None if timeout is None else wait)
        if not ready and timeout:
            self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop with a clock that starts at 0 and jumps."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def count_thread(self, change: int) -> None:
        """Count a worker thread that a task waits for: 1 as it begins to wait, -1 as it ends."""
        self._jumping.threads += change


class _TrioThreads:
    """Stops trio's clock from jumping as long as tasks wait for worker threads."""

    def __init__(self, clock: trio.testing.MockClock) -> None:
        self._clock = clock
        self._threads = 0

    def count_thread(self, change: int) -> None:
        self._threads += change
        self._clock.autojump_threshold = THREAD_SECONDS if self._threads else 0


_trio_threads: Final = trio.lowlevel.RunVar[_TrioThreads]("_trio_threads")


def _running_counter() -> VirtualTimeLoop | _TrioThreads | None:
    """Return what counts threads in the running event loop, or None if its time is real."""
    if not trio.lowlevel.in_trio_run():
        loop = asyncio.get_running_loop()
        return loop if isinstance(loop, VirtualTimeLoop) else None
    clock = trio.lowlevel.current_clock()
    if not isinstance(clock, trio.testing.MockClock):
        return None
    if (counter := _trio_threads.get(None)) is None and not clock.autojump_threshold:
        _trio_threads.set(counter := _TrioThreads(clock))
    return counter


@contextmanager
def waiting_for_threads() -> Iterator[None]:
    """Inside the block, virtual time stands still while a task waits for one of anyio's worker threads."""
    run_sync = anyio.to_thread.run_sync

    async def counted_run_sync(*args: Any, **options: Any) -> Any:
        counter = _running_counter()
        if counter is None:
            return await run_sync(*args, **options)
        counter.count_thread(1)
        try:
            return await run_sync(*args, **options)
        finally:
            counter.count_thread(-1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anyio.to_thread, "run_sync", counted_run_sync)
        yield


def virtual_backend(name: str) -> tuple[str, dict[str, Any]]:
    """Return anyio's backend and options for virtual time."""
    if name == "trio":
        return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}
    return "asyncio", {"loop_factory": VirtualTimeLoop}
