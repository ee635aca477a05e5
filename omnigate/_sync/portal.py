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

import importlib.util
import logging
import sys
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar, cast, get_args

from omnigate._runtime.gevent import gevent_patches
from omnigate._runtime.loops import is_in_loop
from omnigate._runtime.threads import is_exiting
from omnigate._sync.crossing import CLOSED, CLOSED_MEANWHILE, Call
from omnigate._sync.loop_thread import Backend, LoopThread, refuse_half_patched
from omnigate._transport.direct_carrier import Interrupted, continued
from omnigate._wire.checks import check_choice, refusal
from omnigate.exceptions import ClientClosedError, ForkedClientError, GatewayError, NotStartedError

T = TypeVar("T")

logger: Final = logging.getLogger("omnigate")

_CLEAN_UP_SECONDS: Final = 5.0

_EXITING: Final = "the interpreter is exiting, and the client's event loop has ended with it"


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
        backend = cast("Backend", check_choice(backend, "backend", get_args(Backend)))
        if not _is_installed(backend):
            raise refusal(
                "backend", backend, 'be "asyncio", as trio is not installed', hint="pip install trio"
            )
        self._backend: Backend = backend
        self._clean_up = clean_up
        # By the number of the attempt to start one. All but the latest have failed, or end by themselves.
        self._loops: dict[int, LoopThread] = {}
        self._attempt = 0
        self._closed = False
        weakref.finalize(self, _stop_all, self._loops).atexit = False

    def call(self, func: Callable[[], Awaitable[T]], *, begins_here: bool = False) -> T:
        """Await `func()` in the loop; return its result or raise its exception.

        Args:
            func: makes the awaitable.
            begins_here: whether it is a coroutine to begin in this thread if possible, where it may await
                nothing but `to_loop`.

        Raises:
            ClientClosedError: the portal is closed, or was closed during the call.
            ForkedClientError: this is a forked child of the process that started the loop.
            NotStartedError: called from the loop's own thread, or the loop cannot start.
            KeyboardInterrupt: Ctrl-C; the call was cancelled, unless it had just returned.

        """
        if begins_here and self.is_usable_here() and not is_in_loop():
            return self._begin(cast("Callable[[], Coroutine[Any, Any, T]]", func))
        call = Call(func)
        self._make(call)
        error = call.error
        if error is None:
            return call.result
        try:
            if isinstance(error, RuntimeError) and not isinstance(error, GatewayError) and is_exiting():
                raise NotStartedError(f"the interpreter is exiting: {error}") from error
            raise error
        finally:
            del call, error  # breaks the cycle of the error, its traceback and this frame

    def _begin(self, func: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Make a call in this thread, and go on in the loop as soon as it awaits `to_loop`."""
        coroutine = func()
        error: BaseException | None = None
        try:
            coroutine.send(None)  # until it awaits `to_loop`
        except StopIteration as end:
            result: T = end.value
            return result
        except Interrupted as interrupt:
            error = interrupt.error
        if error is not None:
            try:
                raise error
            finally:
                del error  # breaks the cycle of the error, its traceback and this frame
        if self._closed:
            raise ClientClosedError(CLOSED_MEANWHILE)
        return self.call(lambda: continued(coroutine))

    def settle(self, func: Callable[[], Awaitable[None]]) -> bool:
        """Await the clean-up `func()` in the loop, for a bounded time; raises none of our errors.

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
            elif not self._make(Call(clean_up), _CLEAN_UP_SECONDS):
                logger.warning("closing a stream or a batch takes longer than %g s", _CLEAN_UP_SECONDS)
        except (ClientClosedError, ForkedClientError, NotStartedError):
            return False
        return True

    def start(self, func: Callable[[], Awaitable[None]]) -> None:
        """Start `func()` in the loop without waiting; closing the portal cancels it.

        Call it from the loop or any other thread, during or after a `call`.
        """
        self._running_loop().inbox.put(Call(func))

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

    def is_usable_here(self) -> bool:
        """Return whether a call from this thread would reach the running loop."""
        loop = self._loops.get(self._attempt)
        return not self._closed and loop is not None and not loop.is_foreign and not loop.is_own_thread()

    def close(self) -> None:
        """Clean up and end the thread; idempotent, and a no-op in a forked child.

        Raises nothing, and waits for a bounded time; not at all in the loop's own thread, where the loop ends
        after the callback.
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

    def _make(self, call: Call[Any], seconds: float = -1) -> bool:
        """Make a call and wait for its end; after `seconds`, return False and let it go on."""
        if self.is_own_thread():
            raise NotStartedError(
                "a sync client was used within its own callback (progress=, stop_on=, a transport). The "
                "callback runs in the client's own thread, so the call would deadlock: use the callback's "
                "arguments, or another client"
            )
        loop: LoopThread | None = None
        try:
            loop = self._running_loop()
            loop.inbox.put(call)
            return call.done.wait(seconds)
        except BaseException:
            if loop is not None:
                loop.interrupt(call)
            raise

    def _running_loop(self) -> LoopThread:
        """Return the loop, started if it was not."""
        if self._closed:
            raise ClientClosedError(CLOSED)
        attempt = self._attempt
        loop = self._loops.get(attempt)
        if loop is None:
            refuse_half_patched()
            # Recorded before it starts, so that `close` finds it even if the start is interrupted. If a
            # signal handler or another thread has just made one, that one is used.
            loop = self._loops.setdefault(attempt, LoopThread(self._backend, self._clean_up))
        if loop.is_foreign:
            raise ForkedClientError(
                "this client was used before os.fork(), and its thread is in the parent process: "
                "create a new client in the child"
            )
        if self._closed:  # checked after recording: either `close` sees the loop, or this the flag
            loop.stop()
            raise ClientClosedError(CLOSED)
        if loop.is_unwanted:
            raise self._closed_error()
        loop.start()
        error = loop.error
        if error is None:
            return loop
        self._attempt = attempt + 1  # the next call tries again
        self._loops.pop(attempt, None)
        if isinstance(error, ClientClosedError):
            raise self._closed_error()
        raise NotStartedError(_why_not(self._backend, error)) from error

    def _closed_error(self) -> ClientClosedError:
        return ClientClosedError(CLOSED if self._closed else _EXITING)


def _is_installed(backend: Backend) -> bool:
    return backend in sys.modules or importlib.util.find_spec(backend) is not None


def _stop_all(loops: dict[int, LoopThread]) -> None:
    for loop in list(loops.values()):
        loop.stop()


def _why_not(backend: Backend, error: BaseException) -> str:
    reason = f"the client's thread could not start its {backend} event loop: {error or type(error).__name__}"
    if is_exiting():
        return f"{reason}. The interpreter is exiting: make the first call before that"
    if backend == "trio" and gevent_patches("select"):
        return (
            f'{reason}. trio cannot run where gevent has patched the standard library: use backend="asyncio"'
        )
    return reason
