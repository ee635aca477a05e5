"""Passes calls from any thread into an event loop's thread, and their results back.

Nothing here holds a lock while it runs, since a signal handler or a finalizer may enter it again in the same
thread: each change of shared state is one step, and each flag is set only once what it promises has happened.
"""

from __future__ import annotations

import asyncio
import contextvars
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any, Final, Generic, TypeVar

import anyio

from omnigate._runtime.gevent import gevent_patches
from omnigate._runtime.loops import call_soon, current_loop, in_trio
from omnigate.exceptions import ClientClosedError

_library: contextvars.ContextVar[str | None] | None

try:
    from sniffio import current_async_library_cvar as _library
except ModuleNotFoundError:  # newer versions of anyio do not need it
    _library = None


T = TypeVar("T")

CLOSED: Final = "the client is closed; create a new one"

CLOSED_MEANWHILE: Final = "the client was closed during the call"

_SLICE_SECONDS: float | None = 0.1 if sys.platform == "win32" and sys.version_info < (3, 14) else None
"""How long a wait for a lock may block Ctrl-C, where Ctrl-C does not interrupt it."""

_GEVENT_SLICE_SECONDS: Final = 60.0
"""The same under gevent, whose hub gives up if all its greenlets wait without a timer."""


class Latch:
    """A one-shot event that survives a KeyboardInterrupt in a waiter.

    Each waiter has its own lock: one that is interrupted just after acquiring it blocks no other waiter.
    """

    __slots__ = ("_locks", "is_open")

    def __init__(self) -> None:
        self.is_open = False
        self._locks: list[threading.Lock] = []

    def open(self) -> None:
        """Set the event; idempotent, and may be repeated after an interrupt."""
        self.is_open = True
        for lock in tuple(self._locks):
            with suppress(RuntimeError):  # already released
                lock.release()

    def wait(self, seconds: float = -1) -> bool:
        """Wait until the event is set, by default without a limit; return whether it is."""
        if self.is_open:
            return True
        lock = threading.Lock()
        lock.acquire()
        self._locks.append(lock)
        if not self.is_open:  # checked after appending: either `open` sees the lock, or this the flag
            _acquire(lock, seconds)
        return self.is_open


def _acquire(lock: threading.Lock, seconds: float) -> None:
    """Acquire a lock within `seconds`, or with no limit if negative; Ctrl-C interrupts it on any platform."""
    slice_seconds = _SLICE_SECONDS
    if slice_seconds is None:
        if not gevent_patches("_thread"):
            lock.acquire(timeout=seconds)
            return
        slice_seconds = _GEVENT_SLICE_SECONDS
    end = None if seconds < 0 else time.monotonic() + seconds
    left = slice_seconds
    while left >= 0 and not lock.acquire(timeout=min(left, slice_seconds)):
        left = slice_seconds if end is None else end - time.monotonic()


class Call(Generic[T]):
    """A call that crosses into the loop's thread, and its result."""

    __slots__ = ("_func", "context", "done", "end", "error", "result")

    def __init__(self, func: Callable[[], Awaitable[T]]) -> None:
        self._func = func
        self.context = contextvars.copy_context()
        self.end: Callable[[], object] | None = None  # cancels it, once it has started
        self.done = Latch()
        self.result: T
        self.error: BaseException | None = ClientClosedError(CLOSED_MEANWHILE)

    async def run(self) -> None:
        """Make the call; raises only its cancellation."""
        try:
            self.result = await self._func()
            self.error = None
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            self.error = error


class Bell:
    """Wakes a trio loop from other threads.

    `TrioToken.run_sync_soon` holds a lock, which the loop needs in order to end: a signal handler inside it
    could not wait for that.
    """

    def __init__(self, answer: Callable[[], object]) -> None:
        """Set up; `listen` calls `answer` after each `ring`."""
        self._answer = answer
        self._inside, self._outside = socket.socketpair()
        self._inside.setblocking(False)
        self._outside.setblocking(False)

    def ring(self) -> None:
        """Wake the loop.

        Raises:
            RuntimeError: the bell is closed.
        """
        try:
            self._outside.send(b"!")
        except BlockingIOError:
            pass  # it has not been answered for so long that the buffer is full
        except OSError as error:
            raise RuntimeError(CLOSED) from error

    async def listen(self) -> None:
        """Answer until cancelled, then close the bell."""
        with self._inside, self._outside:
            while True:
                await anyio.wait_readable(self._inside)
                self._inside.recv(4_096)
                self._answer()


class Inbox:
    """Accepts calls from other threads and starts each as a task, in its caller's context.

    anyio's portal costs about 100 µs a call, this 30: calls added before the loop runs share one wake-up, and
    callers wait on a lock.
    """

    def __init__(self, group: anyio.abc.TaskGroup) -> None:
        """Set up, in the loop; under trio, tasks start in `group`."""
        self._group = group
        self._loop = current_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: deque[Call[Any]] = deque()
        self._soon: deque[Callable[[], object]] = deque()  # to run when the bell rings
        self._bell: Bell | None = None
        if not isinstance(self._loop, asyncio.AbstractEventLoop):
            self._bell = Bell(self._run_soon)
            group.start_soon(self._bell.listen)
        self._wakes: Final = count(1)
        self._asked = 0  # the latest wake-up that the loop has been asked for
        self._ran = 0  # the latest one that it has run
        self._is_closed = False

    def put(self, call: Call[Any]) -> None:
        """Start a call, from any other thread.

        Raises:
            ClientClosedError: the loop has ended.
        """
        self._waiting.append(call)
        if self._is_closed:  # checked after appending: either `close` sees the call, or this the flag
            raise ClientClosedError(CLOSED)
        if self._asked <= self._ran:  # no wake-up is on its way, which would start this call
            wake = next(self._wakes)
            try:
                self.call_soon(partial(self._run_wake, wake))
            except RuntimeError:
                return  # the loop has just ended, and `close` has seen the call
            self._asked = wake  # only now: interrupted before, the next call must ask again

    def cancel_soon(self, call: Call[Any]) -> None:
        """Cancel a call at any stage, from any other thread.

        Raises:
            RuntimeError: the loop has ended, and the call with it.
        """
        self.call_soon(partial(self._cancel, call))

    def call_soon(self, func: Callable[[], object]) -> None:
        """Schedule a call of `func` in the loop, from any thread, a signal handler or a finalizer.

        Raises:
            RuntimeError: the loop has ended.
        """
        if self._bell is None:
            call_soon(self._loop, func)
        else:
            self._soon.append(func)
            self._bell.ring()

    def _cancel(self, call: Call[Any]) -> None:
        self._start_all()  # the caller may have been interrupted between adding the call and waking the loop
        if call.end is None:
            call.done.open()  # interrupted before it was added
        else:
            call.end()

    async def close(self) -> None:
        """Cancel running calls and wait for them; release the callers of calls that never started."""
        self._is_closed = True
        self._group.cancel_scope.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        while self._waiting:
            self._waiting.popleft().done.open()

    def _run_soon(self) -> None:
        while self._soon:
            self._soon.popleft()()

    def _run_wake(self, wake: int) -> None:
        self._ran = max(self._ran, wake)  # before the calls are taken: later ones need another wake-up
        self._start_all()

    def _start_all(self) -> None:
        while self._waiting and not self._is_closed:
            call = self._waiting.popleft()
            if _library is not None:  # the caller may be inside the other backend's loop
                call.context.run(_library.set, "trio" if in_trio() else "asyncio")
            if isinstance(self._loop, asyncio.AbstractEventLoop):
                task = self._loop.create_task(call.run(), context=call.context)
                call.end = task.cancel
                self._tasks.add(task)
                task.add_done_callback(partial(self._finish, call))
            else:
                scope = anyio.CancelScope()
                call.end = scope.cancel
                call.context.run(self._group.start_soon, self._run_in_scope, call, scope)

    def _finish(self, call: Call[Any], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        call.done.open()

    async def _run_in_scope(self, call: Call[Any], scope: anyio.CancelScope) -> None:
        try:
            with scope:
                await call.run()
        finally:
            call.done.open()
