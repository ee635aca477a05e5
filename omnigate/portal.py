"""A thread with an event loop in it, through which sync code drives async code.

Rules. The thread starts at the first call and ends with `close`, with the garbage collection of its owner,
or with the interpreter: a script that closes nothing still ends. It holds no reference to its owner. A call
that is interrupted (Ctrl-C) is cancelled, and its end waited for, bounded. What a call raises, whatever it
is, goes to its caller and never takes the thread down. After `fork()` the thread exists in the parent only,
so in the child every call says so instead of waiting for ever.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

import anyio
import anyio.from_thread

from omnigate.exceptions import ClientClosedError, ForkedClientError, InvalidArgumentError

T = TypeVar("T")

logger = logging.getLogger("omnigate")

Backend: TypeAlias = Literal["asyncio", "trio"]

_INTERRUPT_SECONDS: Final = 5.0
_JOIN_SECONDS: Final = 5.0


class _Loop:
    """A running event loop in a thread. Holds nothing of the portal's owner."""

    def __init__(self, backend: Backend, clean_up: Callable[[], Awaitable[object]]) -> None:
        self.pid = os.getpid()
        self._clean_up = clean_up
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._portal: anyio.from_thread.BlockingPortal
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

    def start(self, func: Callable[[], Awaitable[object]]) -> None:
        """Start a task in the loop, from any other thread."""
        self._portal.start_task_soon(func)

    def stop(self) -> None:
        """Have the loop clean up and end, from any thread, without waiting for it."""
        if self.pid != os.getpid():
            return
        if self.thread is threading.current_thread():  # a finalizer that happened to run here
            with contextlib.suppress(StopIteration):
                self._portal.stop(cancel_remaining=True).send(None)
            return
        with suppress(RuntimeError):  # it has ended already
            self.start(self._finish)

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
        async with anyio.from_thread.BlockingPortal() as self._portal:
            self._ready.set()
            await self._portal.sleep_until_stopped()

    async def _finish(self) -> None:
        try:
            await self._clean_up()
        except Exception:
            logger.exception("closing a client that was dropped failed")
        finally:
            await self._portal.stop(cancel_remaining=True)


class _Call(Generic[T]):
    """One call that crosses into the loop's thread, and its outcome on the way back."""

    __slots__ = ("_func", "_scope", "cancelled", "done", "error", "result", "started")

    def __init__(self, func: Callable[[], Awaitable[T]]) -> None:
        self._func = func
        self._scope: anyio.CancelScope | None = None
        self.started = False
        self.cancelled = False
        self.done = threading.Lock()
        self.done.acquire()
        self.result: T
        self.error: BaseException | None = ClientClosedError("the client was closed during the call")

    async def run(self) -> None:
        try:
            with anyio.CancelScope() as self._scope:
                if self.cancelled:
                    self._scope.cancel()
                try:
                    self.result = await self._func()
                    self.error = None
                except anyio.get_cancelled_exc_class():
                    raise
                except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
                    self.error = error
        finally:
            self.done.release()

    async def cancel(self) -> None:
        if self._scope is not None:
            self._scope.cancel()


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
        try:
            self._start(call)
            call.done.acquire()
        except BaseException:
            if call.started:
                self._interrupt(call)
            raise
        if call.error is None:
            return call.result
        try:
            raise call.error
        finally:
            del call  # breaks the cycle of the error, its traceback and this frame

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

    def _start(self, call: _Call[Any]) -> None:
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
            call.started = True
            self._loop.start(call.run)

    def _interrupt(self, call: _Call[Any]) -> None:
        call.cancelled = True
        try:
            if self._loop is not None:
                self._loop.start(call.cancel)
        except RuntimeError:
            return  # the loop has ended, and the call with it
        call.done.acquire(timeout=_INTERRUPT_SECONDS)

    def _usable_lock(self) -> threading.Lock:
        if self._pid != os.getpid():  # in a child process the lock may be held by a thread that is not there
            self._pid = os.getpid()
            self._lock = threading.Lock()
        return self._lock
