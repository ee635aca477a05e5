"""A thread with an event loop in it, through which sync code drives async code.

Rules. The thread starts at the first call and ends with `close`, with the garbage collection of its owner,
or with the interpreter: a script that closes nothing still ends. It holds no reference to its owner. A call
that is interrupted (Ctrl-C) is cancelled, and its end waited for, bounded. What a call raises, whatever it
is, goes to its caller and never takes the thread down. After `fork()` the thread exists in the parent only,
so in the child every call says so instead of waiting for ever.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

import anyio
import anyio.from_thread

from omnigate.exceptions import ClientClosedError, ForkedClientError, InvalidArgumentError
from omnigate.transport.event_loop import call_soon, current_loop, in_trio

_library: contextvars.ContextVar[str | None] | None
try:
    from sniffio import current_async_library_cvar as _library
except ModuleNotFoundError:  # newer versions of anyio do not need it
    _library = None

T = TypeVar("T")

logger: Final = logging.getLogger("omnigate")

Backend: TypeAlias = Literal["asyncio", "trio"]

_INTERRUPT_SECONDS: Final = 5.0
_JOIN_SECONDS: Final = 5.0


class _Call(Generic[T]):
    """One call that crosses into the loop's thread, and its outcome on the way back."""

    __slots__ = ("_func", "context", "done", "end", "error", "result")

    def __init__(self, func: Callable[[], Awaitable[T]]) -> None:
        self._func = func
        self.context = contextvars.copy_context()
        self.end: Callable[[], object] | None = None  # what cancels it, once it has started
        self.done = threading.Lock()
        self.done.acquire()
        self.result: T
        self.error: BaseException | None = ClientClosedError("the client was closed during the call")

    async def run(self) -> None:
        """Make the call. Its cancellation is the only thing that this raises."""
        try:
            self.result = await self._func()
            self.error = None
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            self.error = error

    def finish(self) -> None:
        """Let the caller go on."""
        self.done.release()


class _Inbox:
    """Takes calls in from other threads and starts each as a task, in its caller's context.

    anyio's own way in costs about 100 µs a call, this 30: however many calls are put in before the loop
    looks, it is woken once, and the caller waits at a lock.
    """

    def __init__(self, group: anyio.abc.TaskGroup) -> None:
        """Begin, in the loop; what is started in trio is started in `group`."""
        self._group = group
        self._loop = current_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: deque[_Call[Any]] = deque()
        self._is_woken = False
        self._is_closed = False

    def put(self, call: _Call[Any]) -> None:
        """Have a call started, from any other thread.

        Raises:
            ClientClosedError: the loop has ended.
        """
        self._waiting.append(call)
        if self._is_closed:  # asked after the call was put in, so that `close` or this sees the other
            raise ClientClosedError("the client is closed; create a new one")
        if not self._is_woken:
            self._is_woken = True
            with suppress(RuntimeError):  # the loop has ended just now, and `close` has seen the call
                call_soon(self._loop, self._start_all)

    def cancel(self, call: _Call[Any]) -> None:
        """Cancel a call, however far it has come; to be called in the loop."""
        self._start_all()  # the caller may have been interrupted between putting it in and waking the loop
        if call.end is None:
            call.finish()  # or before
        else:
            call.end()

    async def close(self) -> None:
        """Cancel what runs, wait for its end, and let the callers of what was never started go on."""
        self._is_closed = True
        self._group.cancel_scope.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        while self._waiting:
            self._waiting.popleft().finish()

    def _start_all(self) -> None:
        self._is_woken = False
        while self._waiting and not self._is_closed:
            call = self._waiting.popleft()
            if _library is not None:  # the caller may be in a loop of another kind
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

    def _finish(self, call: _Call[Any], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        call.finish()

    async def _run_in_scope(self, call: _Call[Any], scope: anyio.CancelScope) -> None:
        try:
            with scope:
                await call.run()
        finally:
            call.finish()


class _Loop:
    """A running event loop in a thread. Holds nothing of the portal's owner."""

    def __init__(self, backend: Backend, clean_up: Callable[[], Awaitable[object]]) -> None:
        self.pid = os.getpid()
        self._clean_up = clean_up
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._portal: anyio.from_thread.BlockingPortal
        self.inbox: _Inbox
        self.thread = threading.Thread(target=self._run, args=(backend,), name="omnigate-portal", daemon=True)
        self.thread.start()
        try:
            self._ready.wait()
        except BaseException:  # Ctrl-C: the thread that is just starting must not stay
            self._ready.wait(_INTERRUPT_SECONDS)
            self.stop()
            raise
        if self._error is not None:
            raise self._error

    def interrupt(self, call: _Call[Any]) -> None:
        """Cancel a call and wait for its end, bounded."""
        with suppress(RuntimeError):  # the loop has ended, and the call with it
            self._portal.start_task_soon(self.inbox.cancel, call)
            call.done.acquire(timeout=_INTERRUPT_SECONDS)

    def stop(self) -> None:
        """Have the loop clean up and end, from any thread, without waiting for it."""
        if self.pid != os.getpid():
            return
        if self.thread is threading.current_thread():  # a finalizer that happened to run here
            with suppress(StopIteration):
                self._portal.stop(cancel_remaining=True).send(None)
            return
        with suppress(RuntimeError):  # it has ended already
            self._portal.start_task_soon(self._finish)

    def join(self) -> None:
        """Wait for the end of the thread, bounded."""
        if self.pid == os.getpid() and self.thread is not threading.current_thread():
            self.thread.join(_JOIN_SECONDS)

    def stop_and_join(self) -> None:
        """Stop the loop; at the interpreter's exit also wait for its end."""
        self.stop()
        if sys.is_finalizing() or not threading.main_thread().is_alive():
            self.join()

    def _run(self, backend: Backend) -> None:
        try:
            anyio.run(self._main, backend=backend)
        except BaseException as error:
            if self._ready.is_set():
                raise
            self._error = error  # the backend is not installed, or cannot start: the caller is told
            self._ready.set()

    async def _main(self) -> None:
        async with anyio.from_thread.BlockingPortal() as self._portal, anyio.create_task_group() as group:
            self.inbox = _Inbox(group)
            try:
                self._ready.set()
                await self._portal.sleep_until_stopped()
            finally:
                with anyio.CancelScope(shield=True):
                    await self.inbox.close()

    async def _finish(self) -> None:
        try:
            await self._clean_up()
        except Exception:
            logger.exception("closing a client that was dropped failed")
        finally:
            await self._portal.stop(cancel_remaining=True)


class Portal:
    """Runs async functions for sync callers, from any number of threads at once."""

    def __init__(self, backend: Backend, clean_up: Callable[[], Awaitable[object]]) -> None:
        """Prepare; nothing is started.

        Args:
            backend: which event loop to run.
            clean_up: awaited in the loop before it ends. Must hold no reference to the portal's owner.

        """
        if backend not in ("asyncio", "trio"):
            raise InvalidArgumentError(f"backend={backend!r} is not allowed: 'asyncio' or 'trio'")
        self._backend: Backend = backend
        self._clean_up = clean_up
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._loop: _Loop | None = None
        self._closed = False
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def call(self, func: Callable[[], Awaitable[T]]) -> T:
        """Await `func()` in the loop and return its result, or raise what it raises.

        Raises:
            ClientClosedError: the portal is closed, or was during the call.
            ForkedClientError: this is a child process of the one that started the loop.
            KeyboardInterrupt: Ctrl-C; the call was cancelled and has ended.

        """
        call = _Call(func)
        loop: _Loop | None = None
        try:
            loop = self._running_loop()
            loop.inbox.put(call)
            call.done.acquire()
        except ClientClosedError:
            raise
        except BaseException:
            if loop is not None:
                loop.interrupt(call)
            raise
        if call.error is None:
            return call.result
        try:
            raise call.error
        finally:
            del call  # breaks the cycle of the error, its traceback and this frame

    def start(self, func: Callable[[], Awaitable[None]]) -> None:
        """Have `func()` awaited in the loop, without waiting for it. The portal's end cancels it.

        To be called in the loop or in another thread, while a call runs or has been made.
        """
        self._running_loop().inbox.put(_Call(func))

    def post(self, func: Callable[[], None]) -> None:
        """Have `func()` called in the loop, without waiting for it."""

        async def run() -> None:
            func()

        self.start(run)

    def close(self) -> None:
        """Clean up and end the thread; a second time, or in a child process, does nothing."""
        with self._usable_lock():
            closed, self._closed = self._closed, True
            loop = self._loop
        if closed or loop is None or loop.pid != os.getpid():
            return
        if self._finalizer is not None:
            self._finalizer.detach()
        loop.stop()
        loop.join()

    def _running_loop(self) -> _Loop:
        with self._usable_lock():
            if self._closed:
                raise ClientClosedError("the client is closed; create a new one")
            if self._loop is None:
                self._loop = _Loop(self._backend, self._clean_up)
                self._finalizer = weakref.finalize(self, self._loop.stop_and_join)
            elif self._loop.pid != os.getpid():
                raise ForkedClientError(
                    "this client was used before os.fork(), and its thread is in the parent process: "
                    "create a new client in the child"
                )
            return self._loop

    def _usable_lock(self) -> threading.Lock:
        if self._pid != os.getpid():  # in a child process the lock may be held by a thread that is not there
            self._pid = os.getpid()
            self._lock = threading.Lock()
        return self._lock
