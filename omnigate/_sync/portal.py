"""A portal: a thread running an event loop, through which sync code drives async code.

Rules. The thread starts at the first call and ends with `close`, with the garbage collection of its owner, or
with the interpreter: a script that closes nothing still exits. It holds no reference to its owner. Any
exception of a call goes to its caller and never ends the thread. A call from the portal's own thread, in a
user's callback, would deadlock and is refused. After `fork()` the thread exists only in the parent, so in the
child every call raises an error instead of hanging.

An interrupted call (Ctrl-C) is cancelled, and its end awaited for a bounded time. Python raises
KeyboardInterrupt in the main thread wherever a function starts or a call returns, even right after acquiring
a lock. So a latch is a flag plus a lock, and waiting never changes the flag; and anything that must be ended
is recorded before it starts. A result already returned to an interrupted caller is lost, so a call whose
result must not be lost stores it where its caller can find it.
"""

from __future__ import annotations

import _thread
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
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar, cast, get_args

import anyio

from omnigate._runtime.loops import call_soon, current_loop, in_trio
from omnigate._wire.checks import check_choice
from omnigate.exceptions import ClientClosedError, ForkedClientError, NotStartedError

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


class _Latch:
    """A one-shot event that survives a KeyboardInterrupt in its waiter."""

    __slots__ = ("_lock", "is_open")

    def __init__(self) -> None:
        self.is_open = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def open(self) -> None:
        """Set the event; idempotent. Only one thread may call it."""
        if not self.is_open:
            self.is_open = True  # before the lock, which an interrupted waiter may have acquired and kept
            self._lock.release()

    def wait(self, seconds: float = -1) -> bool:
        """Wait until the event is set, by default without a limit; return whether it is."""
        if not self.is_open and self._lock.acquire(timeout=seconds):
            self._lock.release()
        return self.is_open


class _Call(Generic[T]):
    """A call that crosses into the loop's thread, and its result."""

    __slots__ = ("_func", "context", "done", "end", "error", "result")

    def __init__(self, func: Callable[[], Awaitable[T]]) -> None:
        self._func = func
        self.context = contextvars.copy_context()
        self.end: Callable[[], object] | None = None  # cancels it, once it has started
        self.done = _Latch()
        self.result: T
        self.error: BaseException | None = ClientClosedError("the client was closed during the call")

    async def run(self) -> None:
        """Make the call; raises only its cancellation."""
        try:
            self.result = await self._func()
            self.error = None
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            self.error = error


class _Inbox:
    """Accepts calls from other threads and starts each as a task, in its caller's context.

    anyio's portal costs about 100 µs a call, this 30: calls added before the loop runs share one wake-up, and
    callers wait on a lock.
    """

    def __init__(self, group: anyio.abc.TaskGroup) -> None:
        """Set up, in the loop; under trio, tasks start in `group`."""
        self._group = group
        self._loop = current_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: deque[_Call[Any]] = deque()
        self._is_woken = False
        self._is_closed = False

    def put(self, call: _Call[Any]) -> None:
        """Start a call, from any other thread.

        Raises:
            ClientClosedError: the loop has ended.
        """
        self._waiting.append(call)
        if self._is_closed:  # checked after appending: either `close` sees the call, or this the flag
            raise ClientClosedError("the client is closed; create a new one")
        if not self._is_woken:
            try:
                self._is_woken = True
                call_soon(self._loop, self._start_all)
            except RuntimeError:
                pass  # the loop has just ended, and `close` has seen the call
            except BaseException:
                self._is_woken = False  # Ctrl-C: the loop may not have been woken; the next call must do it
                raise

    def cancel_soon(self, call: _Call[Any]) -> None:
        """Cancel a call at whatever stage it is, from any other thread.

        Raises:
            RuntimeError: the loop has ended, and the call with it.
        """
        call_soon(self._loop, partial(self._cancel, call))

    def _cancel(self, call: _Call[Any]) -> None:
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

    def _start_all(self) -> None:
        self._is_woken = False
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

    def _finish(self, call: _Call[Any], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        call.done.open()

    async def _run_in_scope(self, call: _Call[Any], scope: anyio.CancelScope) -> None:
        try:
            with scope:
                await call.run()
        finally:
            call.done.open()


class _Loop:
    """An event loop in a thread, which may not have started. Holds no reference to the portal's owner."""

    def __init__(self, backend: Backend, clean_up: Callable[[], Awaitable[object]]) -> None:
        self.pid = os.getpid()
        self.thread = threading.Thread(target=self._run, args=(backend,), name="omnigate-portal", daemon=True)
        self.inbox: _Inbox
        self.error: BaseException | None = None  # why it is not running
        self._clean_up = clean_up
        self._loop: Any
        self._stop: anyio.Event
        self._begun = threading.Lock()  # acquired, once, to start the thread or to prevent its start
        self._up = _Latch()  # set once the loop runs, or never will
        self._over = _Latch()
        self._is_unwanted = False

    def start(self) -> None:
        """Start the thread and wait until the loop runs or `error` is set; call it again if interrupted.

        An interrupt inside `Thread.start` leaves a thread that is unknown or cannot start. So it is called
        from another thread: only the main thread is interrupted.
        """
        if not self._up.is_open:
            _thread.start_new_thread(self._begin, ())
            self._up.wait()

    def interrupt(self, call: _Call[Any]) -> None:
        """Cancel a call and wait for its end, for a bounded time."""
        if not call.done.is_open:
            with suppress(RuntimeError):  # the loop has ended, and the call with it
                self.inbox.cancel_soon(call)
                call.done.wait(_INTERRUPT_SECONDS)

    def stop(self) -> None:
        """Make the loop clean up and end, without waiting; from any thread or a finalizer."""
        if self.pid != os.getpid():
            return
        self._is_unwanted = True  # a loop that is just starting sees this once it runs
        if self._begun.acquire(blocking=False):  # it never started, and now never will
            self._fail(ClientClosedError("the client is closed; create a new one"))
        if not self._up.is_open or self.error is not None:
            return
        with suppress(RuntimeError):  # it has already ended
            call_soon(self._loop, self._stop.set)

    def join(self) -> None:
        """Wait for the end of the thread, for a bounded time."""
        if self.pid != os.getpid() or self.thread is threading.current_thread():
            return
        if self._over.wait(_JOIN_SECONDS) and self.thread.ident is not None:
            # An interrupt in `join` makes Python 3.11 and 3.12 consider the thread ended, which it almost is.
            self.thread.join(_JOIN_SECONDS)

    def stop_and_join(self) -> None:
        """Stop the loop; at interpreter exit, wait for its end too."""
        self.stop()
        if sys.is_finalizing() or not threading.main_thread().is_alive():
            self.join()

    def _begin(self) -> None:
        if self._begun.acquire(blocking=False):
            try:
                self.thread.start()
            except BaseException as error:  # noqa: BLE001 - no more threads can be started
                self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Tell the caller why the loop is not running."""
        self.error = error
        self._up.open()
        self._over.open()

    def _run(self, backend: Backend) -> None:
        try:
            anyio.run(self._main, backend=backend)
        except BaseException as error:
            if self._up.is_open:
                raise
            self._fail(error)  # the backend is not installed, or cannot start
        finally:
            self._over.open()

    async def _main(self) -> None:
        async with anyio.create_task_group() as group:
            self._loop, self._stop, self.inbox = current_loop(), anyio.Event(), _Inbox(group)
            try:
                self._up.open()
                if not self._is_unwanted:
                    await self._stop.wait()
                await self._clean_up()
            except Exception:
                logger.exception("failed to close a client that was dropped")
            finally:
                with anyio.CancelScope(shield=True):
                    await self.inbox.close()


class Portal:
    """Runs async functions for sync callers, from any number of threads."""

    def __init__(self, backend: Backend, clean_up: Callable[[], Awaitable[object]]) -> None:
        """Prepare; nothing starts yet.

        Args:
            backend: the event loop to run.
            clean_up: awaited in the loop before it ends. Must hold no reference to the portal's owner.

        """
        backend = cast("Backend", check_choice(backend, "backend", get_args(Backend)))
        self._backend: Backend = backend
        self._clean_up = clean_up
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._loop: _Loop | None = None
        self._closed = False
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def call(self, func: Callable[[], Awaitable[T]]) -> T:
        """Await `func()` in the loop; return its result or raise its exception.

        Raises:
            ClientClosedError: the portal is closed, or was closed during the call.
            ForkedClientError: this is a forked child of the process that started the loop.
            NotStartedError: called from the loop's own thread.
            KeyboardInterrupt: Ctrl-C; the call was cancelled, unless it had just returned.

        """
        self._refuse_own_thread()
        call = _Call(func)
        loop: _Loop | None = None
        try:
            loop = self._running_loop()
            loop.inbox.put(call)
            call.done.wait()
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
        """Start `func()` in the loop without waiting; closing the portal cancels it.

        Call it from the loop or any other thread, during or after a `call`.
        """
        self._running_loop().inbox.put(_Call(func))

    def post(self, func: Callable[[], None]) -> None:
        """Call `func()` in the loop, without waiting."""

        async def run() -> None:
            func()

        self.start(run)

    @property
    def is_closed(self) -> bool:
        """Whether the portal has been closed."""
        return self._closed

    def is_own_thread(self) -> bool:
        """Return whether this is the loop's own thread."""
        return self._loop is not None and self._loop.thread is threading.current_thread()

    def close(self) -> None:
        """Clean up and end the thread; idempotent, and a no-op in a forked child.

        Raises:
            NotStartedError: called from the loop's own thread.
        """
        self._refuse_own_thread()
        with self._usable_lock():
            self._closed = True
            loop = self._loop
        if loop is None or loop.pid != os.getpid():
            return
        loop.stop()  # repeated if an earlier `close` was interrupted
        loop.join()
        if self._finalizer is not None:
            self._finalizer.detach()

    def __repr__(self) -> str:
        loop = self._loop
        if self._closed:
            state = "closed"
        elif loop is None:
            state = "not started"
        elif loop.pid != os.getpid():
            state = "in the parent process"
        else:
            state = "running"
        return f"<Portal {self._backend}: {state}>"

    def _refuse_own_thread(self) -> None:
        if self.is_own_thread():
            raise NotStartedError(
                "a sync client was used within its own callback (progress=, stop_on=, a transport). The "
                "callback runs in the client's own thread, so the call would deadlock: use the callback's "
                "arguments, or another client"
            )

    def _running_loop(self) -> _Loop:
        with self._usable_lock():
            if self._closed:
                raise ClientClosedError("the client is closed; create a new one")
            loop = self._loop
            if loop is None:
                loop = _Loop(self._backend, self._clean_up)
                self._finalizer = weakref.finalize(self, loop.stop_and_join)
                self._loop = (
                    loop  # before it starts, so that `close` finds it even if the start is interrupted
                )
            elif loop.pid != os.getpid():
                raise ForkedClientError(
                    "this client was used before os.fork(), and its thread is in the parent process: "
                    "create a new client in the child"
                )
            loop.start()
            if loop.error is not None:
                self._loop = None
                raise loop.error
            return loop

    def _usable_lock(self) -> threading.Lock:
        if self._pid != os.getpid():  # in a forked child, a thread that no longer exists may hold the lock
            self._pid = os.getpid()
            self._lock = threading.Lock()
        return self._lock
