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

At the same places a signal handler or a finalizer may call or close the same portal, in the thread that is
already inside it. So nothing here holds a lock while it runs: each change of shared state is one step, such
as `dict.setdefault`, and each flag is set only once what it promises has happened.
"""

from __future__ import annotations

import _thread
import asyncio
import atexit
import contextvars
import importlib.util
import logging
import os
import socket
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar, get_args

import anyio

from omnigate._runtime.loops import call_soon, current_loop, in_trio
from omnigate._runtime.threads import is_exiting
from omnigate._wire.checks import check_choice, refusal
from omnigate.exceptions import ClientClosedError, ForkedClientError, GatewayError, NotStartedError

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

_CLEAN_UP_SECONDS: Final = 5.0

_SLICE_SECONDS: float | None = 0.1 if sys.platform == "win32" and sys.version_info < (3, 14) else None
"""How long a wait for a lock may block Ctrl-C, where Ctrl-C does not interrupt it."""


class _Latch:
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
    if _SLICE_SECONDS is None:
        lock.acquire(timeout=seconds)
        return
    end = None if seconds < 0 else time.monotonic() + seconds
    left = _SLICE_SECONDS
    while left >= 0 and not lock.acquire(timeout=min(left, _SLICE_SECONDS)):
        left = _SLICE_SECONDS if end is None else end - time.monotonic()


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


class _Bell:
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
            raise RuntimeError(_CLOSED) from error

    async def listen(self) -> None:
        """Answer until cancelled, then close the bell."""
        with self._inside, self._outside:
            while True:
                await anyio.wait_readable(self._inside)
                self._inside.recv(4_096)
                self._answer()


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
        self._soon: deque[Callable[[], object]] = deque()  # what the bell rings for
        self._bell: _Bell | None = None
        if not isinstance(self._loop, asyncio.AbstractEventLoop):
            self._bell = _Bell(self._run_soon)
            group.start_soon(self._bell.listen)
        self._wakes: Final = count(1)
        self._asked = 0  # the latest wake-up that the loop has been asked for
        self._ran = 0  # the latest one that it has run
        self._is_closed = False

    def put(self, call: _Call[Any]) -> None:
        """Start a call, from any other thread.

        Raises:
            ClientClosedError: the loop has ended.
        """
        self._waiting.append(call)
        if self._is_closed:  # checked after appending: either `close` sees the call, or this the flag
            raise ClientClosedError(_EXITING if _exit.has_come else _CLOSED)
        if self._asked <= self._ran:  # no wake-up is on its way, which would start this call
            wake = next(self._wakes)
            try:
                self.call_soon(partial(self._run_wake, wake))
            except RuntimeError:
                return  # the loop has just ended, and `close` has seen the call
            self._asked = wake  # only now: interrupted before, the next call must ask again

    def cancel_soon(self, call: _Call[Any]) -> None:
        """Cancel a call at whatever stage it is, from any other thread.

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
        self.thread = threading.Thread(target=self._run, name="omnigate-portal", daemon=True)
        self.inbox: _Inbox
        self.error: BaseException | None = None  # why it is not running
        self._backend = backend
        self._clean_up = clean_up
        self._stop: anyio.Event
        # At 0, what came first: a token of the start of the thread, or the error that prevents it.
        self._decision: dict[int, object] = {}
        self._up = _Latch()  # set once the loop runs, or never will
        self._over = _Latch()  # set once the loop has ended
        self._gone = _Latch()  # set once the thread has ended, too, if that is waited for
        self._is_unwanted = False
        self._ident: int | None = None  # of the thread, while it runs

    @property
    def is_foreign(self) -> bool:
        """Whether the thread exists only in a parent process."""
        return self.pid != os.getpid()

    def is_own_thread(self) -> bool:
        """Return whether this is the loop's thread."""
        return self._ident == threading.get_ident() and not self.is_foreign

    def start(self) -> None:
        """Start the thread and wait until the loop runs or `error` is set; call it again if interrupted.

        An interrupt inside `Thread.start` leaves a thread that is unknown or cannot start. So it is called
        from another thread: only the main thread is interrupted.
        """
        if not self._up.is_open:
            error = _start_thread(self._begin)
            if error is not None:
                self._give_up(error)
            self._up.wait()

    def interrupt(self, call: _Call[Any]) -> None:
        """Cancel a call and wait for its end, for a bounded time."""
        if not call.done.is_open:
            with suppress(RuntimeError):  # the loop has ended, and the call with it
                self.inbox.cancel_soon(call)
                call.done.wait(_INTERRUPT_SECONDS)

    def stop(self) -> None:
        """Make the loop clean up and end, without waiting; from any thread or a finalizer."""
        if self.is_foreign:
            return
        self._is_unwanted = True  # a loop that is just starting sees this once it runs
        self._give_up(ClientClosedError(_CLOSED))
        if not self._up.is_open or self.error is not None:
            return
        with suppress(RuntimeError):  # it has already ended
            self.inbox.call_soon(self._stop.set)

    def join(self) -> None:
        """Wait for the end of the thread, for a bounded time; not in the thread itself."""
        if self.is_foreign or self.is_own_thread():
            return
        if not self._over.wait(_JOIN_SECONDS) or self.thread.ident is None or self._gone.is_open:
            return
        if _start_thread(self._watch_end) is None:  # else Python is exiting, and the thread has all but ended
            self._gone.wait(_JOIN_SECONDS)

    def _watch_end(self) -> None:
        """Join the thread, in another one: `Thread.join` holds a lock, and cannot be entered again inside."""
        self.thread.join()
        self._gone.open()

    def _give_up(self, error: BaseException) -> None:
        """Prevent the start of the thread, unless it has begun."""
        decision = self._decision.setdefault(0, error)
        if isinstance(decision, BaseException):
            self._fail(decision)  # even if it has failed: an interrupt may have kept that from its waiters

    def _begin(self) -> None:
        token = object()
        if self._decision.setdefault(0, token) is token:
            try:
                if _gevent_patches("_thread"):
                    self._run()  # this is a real thread; `Thread.start` would start a greenlet
                else:
                    self.thread.start()
            except BaseException as error:  # noqa: BLE001 - no more threads can be started
                self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Tell the callers why the loop is not running."""
        self.error = error
        self._up.open()
        self._over.open()

    def _run(self) -> None:
        self._ident = threading.get_ident()
        _running.add(self)
        try:
            anyio.run(self._main, backend=self._backend)
        except BaseException as error:
            if not self._up.is_open:
                self._fail(error)  # the backend cannot start
            elif _exit.has_come:  # Python 3.12.0 to 3.12.2 let asyncio's own clean-up fail then
                logger.debug("the event loop of a client ended with an error", exc_info=True)
            else:
                logger.exception("the event loop of a client ended with an error")
        finally:
            self._ident = None
            _running.discard(self)
            self._over.open()

    async def _main(self) -> None:
        async with anyio.create_task_group() as group:
            self._stop, self.inbox = anyio.Event(), _Inbox(group)
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


class _Exit:
    """The end of the interpreter: ends the loops that are still running."""

    def __init__(self) -> None:
        self.has_come = False

    def __call__(self) -> None:
        self.has_come = True
        loops = list(_running)
        for loop in loops:
            loop.stop()
        for loop in loops:
            loop.join()


_GEVENT_MODULES: Final = ("_thread", "select", "socket")

_CLOSED: Final = "the client is closed; create a new one"

_EXITING: Final = "the interpreter is exiting, and the client's event loop has ended with it"

_running: Final[set[_Loop]] = set()

_exit: Final = _Exit()

# Registered on import, so that it runs after the handlers that programs register later: those may still call.
atexit.register(_exit)


class Portal:
    """Runs async functions for sync callers, from any number of threads."""

    def __init__(self, backend: Backend, clean_up: Callable[[], Awaitable[object]]) -> None:
        """Prepare; nothing starts yet.

        Args:
            backend: the event loop to run.
            clean_up: awaited in the loop before it ends. Must hold no reference to the portal's owner.

        Raises:
            InvalidArgumentError: the backend is unknown, or not installed.

        """
        check_choice(backend, "backend", get_args(Backend))
        if not _is_installed(backend):
            raise refusal(
                "backend", backend, 'be "asyncio", as trio is not installed', hint="pip install trio"
            )
        self._backend: Backend = backend
        self._clean_up = clean_up
        # By the number of the attempt to start one. All but the latest have failed, or end by themselves.
        self._loops: dict[int, _Loop] = {}
        self._attempt = 0
        self._closed = False
        weakref.finalize(self, _stop_all, self._loops).atexit = False

    def call(self, func: Callable[[], Awaitable[T]]) -> T:
        """Await `func()` in the loop; return its result or raise its exception.

        Raises:
            ClientClosedError: the portal is closed, or was closed during the call.
            ForkedClientError: this is a forked child of the process that started the loop.
            NotStartedError: called from the loop's own thread, or the loop cannot start.
            KeyboardInterrupt: Ctrl-C; the call was cancelled, unless it had just returned.

        """
        call = _Call(func)
        self._make(call)
        if call.error is None:
            return call.result
        try:
            error = call.error
            if isinstance(error, RuntimeError) and not isinstance(error, GatewayError) and is_exiting():
                raise NotStartedError(f"the interpreter is exiting: {error}") from error
            raise error
        finally:
            del call, error  # breaks the cycle of the error, its traceback and this frame

    def settle(self, func: Callable[[], Awaitable[None]]) -> bool:
        """Await the clean-up `func()` in the loop, for a bounded time; raises no error of ours.

        May be called from anywhere, even a finalizer: in the loop's own thread it does not wait, and after
        the end of the loop it does nothing and returns False, since what the loop held has ended with it.
        """

        async def clean_up() -> None:
            try:
                await func()
            except Exception:
                logger.exception("failed to close a stream or a batch")

        try:
            if self.is_own_thread():
                self.start(clean_up)
            elif not self._make(_Call(clean_up), _CLEAN_UP_SECONDS):
                logger.warning("closing a stream or a batch takes longer than %g s", _CLEAN_UP_SECONDS)
        except (ClientClosedError, ForkedClientError, NotStartedError):
            return False
        return True

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

    def scheduler(self) -> Callable[[Callable[[], object]], None]:
        """Return a function that schedules calls in the loop, from anywhere; it does not refer to the portal.

        The function raises a RuntimeError once the loop has ended.
        """
        return self._running_loop().inbox.call_soon

    @property
    def is_closed(self) -> bool:
        """Whether the portal has been closed."""
        return self._closed

    def is_own_thread(self) -> bool:
        """Return whether this is the loop's own thread."""
        return any(loop.is_own_thread() for loop in list(self._loops.values()))

    def close(self) -> None:
        """Clean up and end the thread; idempotent, and a no-op in a forked child.

        Waits for a bounded time; not at all in a portal's thread, where the loop ends after the callback.
        """
        self._closed = True
        loops = list(self._loops.values())
        for loop in loops:
            loop.stop()  # repeated if an earlier `close` was interrupted
        for loop in loops:
            loop.join()

    def __repr__(self) -> str:
        loop = self._loops.get(self._attempt)
        if self._closed:
            state = "closed"
        elif loop is None:
            state = "not started"
        elif loop.is_foreign:
            state = "in the parent process"
        else:
            state = "running"
        return f"<Portal {self._backend}: {state}>"

    def _make(self, call: _Call[Any], seconds: float = -1) -> bool:
        """Make a call and wait for its end; after `seconds`, return False and let it go on."""
        if self.is_own_thread():
            raise NotStartedError(
                "a sync client was used within its own callback (progress=, stop_on=, a transport). The "
                "callback runs in the client's own thread, so the call would deadlock: use the callback's "
                "arguments, or another client"
            )
        loop: _Loop | None = None
        try:
            loop = self._running_loop()
            loop.inbox.put(call)
            return call.done.wait(seconds)
        except BaseException:
            if loop is not None:
                loop.interrupt(call)
            raise

    def _running_loop(self) -> _Loop:
        """Return the loop, started if it was not."""
        if self._closed:
            raise ClientClosedError(_CLOSED)
        attempt = self._attempt
        loop = self._loops.get(attempt)
        if loop is None:
            _refuse_half_patched()
            # Recorded before it starts, so that `close` finds it even if the start is interrupted. If a
            # signal handler or another thread has just made one, that one is used.
            loop = self._loops.setdefault(attempt, _Loop(self._backend, self._clean_up))
        if loop.is_foreign:
            raise ForkedClientError(
                "this client was used before os.fork(), and its thread is in the parent process: "
                "create a new client in the child"
            )
        if self._closed:  # checked after recording: either `close` sees the loop, or this the flag
            loop.stop()
            raise ClientClosedError(_CLOSED)
        loop.start()
        error = loop.error
        if error is None:
            return loop
        self._attempt = attempt + 1  # the next call tries again
        self._loops.pop(attempt, None)
        if isinstance(error, ClientClosedError):
            raise ClientClosedError(_EXITING if _exit.has_come and not self._closed else _CLOSED)
        raise NotStartedError(_why_not(self._backend, error)) from error


def _is_installed(backend: Backend) -> bool:
    return backend in sys.modules or importlib.util.find_spec(backend) is not None


def _stop_all(loops: dict[int, _Loop]) -> None:
    for loop in list(loops.values()):
        loop.stop()


def _why_not(backend: Backend, error: BaseException) -> str:
    reason = f"the client's thread could not start its {backend} event loop: {error or type(error).__name__}"
    if is_exiting():
        return f"{reason}. The interpreter is exiting: make the first call before that"
    if backend == "trio" and _gevent_patches("select"):
        return (
            f'{reason}. trio cannot run where gevent has patched the standard library: use backend="asyncio"'
        )
    return reason


def _gevent_patches(module: str) -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched(module))


def _refuse_half_patched() -> None:
    """Refuse what would hang: an event loop on a standard library of which gevent has patched a part."""
    patched = [name for name in _GEVENT_MODULES if _gevent_patches(name)]
    if patched and len(patched) < len(_GEVENT_MODULES):
        left = ", ".join(name.strip("_") for name in _GEVENT_MODULES if name not in patched)
        raise NotStartedError(
            f"a sync client cannot run where gevent has patched a part of the standard library, and not {left}: "
            "call gevent.monkey.patch_all() without arguments, or use the client without gevent"
        )


def _start_thread(func: Callable[[], None]) -> RuntimeError | None:
    """Start a thread of the system, even if gevent has patched threads; return why it cannot start."""
    start: Any = _thread.start_new_thread
    if _gevent_patches("_thread"):
        start = sys.modules["gevent.monkey"].get_original("_thread", "start_new_thread")
    try:
        start(func, ())
    except RuntimeError as error:  # there are too many, or the interpreter is exiting
        if isinstance(error, GatewayError):  # of a signal handler
            raise
        return error
    return None
