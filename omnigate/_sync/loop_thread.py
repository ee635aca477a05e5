"""A thread that runs an event loop: its start, its end, and the end of the interpreter."""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, Literal, TypeAlias

import anyio

from omnigate._runtime.gevent import gevent_patches, import_parts_of_gevent, original_start_new_thread
from omnigate._sync.crossing import CLOSED, Call, Inbox, Latch
from omnigate.exceptions import ClientClosedError, GatewayError, NotStartedError

logger: Final = logging.getLogger("omnigate")

Backend: TypeAlias = Literal["asyncio", "trio"]

_INTERRUPT_SECONDS: Final = 5.0

_JOIN_SECONDS: Final = 5.0

_GEVENT_MODULES: Final = ("_thread", "select", "socket")


class LoopThread:
    """An event loop in a thread, which may not have started. Holds no reference to the portal's owner."""

    def __init__(self, backend: Backend, clean_up: Callable[[], Awaitable[object]]) -> None:
        self.pid = os.getpid()
        self.thread = threading.Thread(target=self._run, name="omnigate-portal", daemon=True)
        self.inbox: Inbox
        self.error: BaseException | None = None  # why it is not running
        self._backend: Backend = backend
        self._clean_up = clean_up
        self._stop: anyio.Event
        # Key 0 has whichever came first: a token set by the thread's start, or the error that prevents it.
        self._decision: dict[int, object] = {}
        self._up = Latch()  # set once the loop runs, or never will
        self._over = Latch()  # set once the loop has ended
        self._gone = Latch()  # set once the thread has ended, too, if that is waited for
        self.is_unwanted = False  # whether it is to end
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
            error = _import_under_gevent(self._backend) or start_thread(self._begin)
            if error is not None:
                self._give_up(error)
            self._up.wait()

    def interrupt(self, call: Call[Any]) -> None:
        """Cancel a call and wait for its end, for a bounded time."""
        if not call.done.is_open:
            with suppress(RuntimeError):  # the loop has ended, and the call with it
                self.inbox.cancel_soon(call)
                call.done.wait(_INTERRUPT_SECONDS)

    def stop(self) -> None:
        """Make the loop clean up and end, without waiting; from any thread or a finalizer."""
        if self.is_foreign:
            return
        self.is_unwanted = True  # a loop that is just starting sees this once it runs
        self._give_up(ClientClosedError(CLOSED))
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
        if start_thread(self._watch_end) is None:  # else Python is exiting, and the thread has all but ended
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
                if gevent_patches("_thread"):
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
            elif at_exit.has_come:  # Python 3.12.0 to 3.12.2 let asyncio's own clean-up fail then
                logger.debug("the event loop of a client ended with an error", exc_info=True)
            else:
                logger.exception("the event loop of a client ended with an error")
        finally:
            self._ident = None
            _running.discard(self)
            self._over.open()

    async def _main(self) -> None:
        async with anyio.create_task_group() as group:
            self._stop, self.inbox = anyio.Event(), Inbox(group)
            try:
                self._up.open()
                if not self.is_unwanted:
                    await self._stop.wait()
                await self._clean_up()
            except Exception:
                logger.exception("failed to close a client that was dropped")
            finally:
                with anyio.CancelScope(shield=True):
                    await self.inbox.close()


class _Exit:
    """Ends the loops that are still running when the interpreter exits."""

    def __init__(self) -> None:
        self.has_come = False

    def __call__(self) -> None:
        self.has_come = True
        loops = list(_running)
        for loop in loops:
            loop.stop()
        for loop in loops:
            loop.join()


_running: Final[set[LoopThread]] = set()

at_exit: Final = _Exit()

# Registered on import, so that it runs after the handlers that programs register later: those may still call.
atexit.register(at_exit)


def refuse_half_patched() -> None:
    """Refuse to run an event loop on a standard library that gevent has patched in part: it would hang."""
    patched = [name for name in _GEVENT_MODULES if gevent_patches(name)]
    if patched and len(patched) < len(_GEVENT_MODULES):
        left = ", ".join(name.strip("_") for name in _GEVENT_MODULES if name not in patched)
        raise NotStartedError(
            f"gevent has patched part of the standard library, but not {left}: a sync client would hang; "
            "call gevent.monkey.patch_all() without arguments, or use the client without gevent"
        )


def _import_under_gevent(backend: Backend) -> Exception | None:
    """Import an event loop, and the parts of gevent, in the caller's thread if gevent has patched threads.

    Returns why it cannot be done.

    The locks of imports are gevent's, too: two threads of the system that wait for one may hang.
    """
    if gevent_patches("_thread"):
        try:
            importlib.import_module(f"anyio._backends._{backend}")
            import_parts_of_gevent()
        except Exception as error:  # noqa: BLE001 - raised to the callers
            return error
    return None


def start_thread(func: Callable[[], None]) -> RuntimeError | None:
    """Start a thread of the system, even if gevent has patched threads; return why it cannot start."""
    try:
        original_start_new_thread()(func, ())
    except RuntimeError as error:  # there are too many, or the interpreter is exiting
        if isinstance(error, GatewayError):  # of a signal handler
            raise
        return error
    return None
