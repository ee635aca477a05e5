"""Receiving on trio: one task that reads for many.

Each time a task waits for a socket, trio registers it with the system anew, through four coroutines. Here
sockets stay registered, with an epoll of their own, and a system task waits for that. It reads from all that
have become readable, and wakes their tasks with what it read. That spares a fifth of the cost of a call.

The system task takes a turn of its own, which does not pay for a few, so a task waits for its socket itself
while fewer than `FEW` others wait. So do all where there is no epoll, without descriptors, and once the event
loop ends. The system task ends when no task waits for it any more.

The system reports just once that bytes have arrived ("edge-triggered"). A stream for which that came while no
task waited, or of which there may be more to read, looks before it waits the next time.

Cancellation: a wait that is cancelled has read nothing. What the system task has read reaches the task that
waited even if it is cancelled before it runs: trio delivers the cancellation at its next wait.
"""

from __future__ import annotations

import logging
import select
import sys
from typing import Any, Final, Protocol

import trio
from trio.lowlevel import cancel_shielded_checkpoint, spawn_system_task, wait_readable

from omnigate._runtime.loops import PerLoop

logger: Final = logging.getLogger("omnigate")

FEW: Final = 4
"""How many tasks must be waiting before the system task is worth it; measured."""

HAS_EPOLL: Final = sys.platform == "linux" and hasattr(select, "epoll")  # gevent removes it

READABLE: Final = 1  # EPOLLIN, which other systems lack
"""The event that bytes have arrived, and nothing else."""


class Receiving(Protocol):
    """A stream that is registered."""

    def arrived(self, events: int) -> None:
        """Read for the task that waits, if one does; must not raise."""
        ...

    def wake(self) -> None:
        """Let the task that waits, if one does, wait for the socket itself."""
        ...


class Receiver:
    """Receives for the streams of one event loop.

    Attributes:
        alone: how many tasks wait for their sockets themselves.
        served: how many wait for the system task. Whoever lowers it calls `stop_if_idle`, if not the system
            task itself.
    """

    def __init__(self) -> None:
        """Start without streams and without the system task."""
        self.alone: int = 0
        self.served: int = 0
        self._streams: dict[int, Receiving] = {}
        self._epoll: Any = None
        self._scope: trio.CancelScope | None = None  # of the system task
        self._has_ended = not HAS_EPOLL

    def serves(self, descriptor: int, stream: Receiving) -> bool:
        """Return whether a task that is about to wait shall be served, and if so, get ready for it.

        Args:
            descriptor: of the stream's socket.
            stream: is registered, if it is not yet, until `remove`.
        """
        if self.alone + self.served < FEW or self._has_ended:
            return False
        try:
            if descriptor not in self._streams:
                self._register(descriptor, stream)
            if self._scope is None:
                scope = trio.CancelScope()
                spawn_system_task(self._run, scope, self._epoll, name="omnigate: receive")
                self._scope = scope
        except OSError:  # no descriptor is left for the epoll, or no room in the system's tables
            return False
        except RuntimeError:  # the event loop is ending, and takes no more tasks
            self._has_ended = True
            return False
        return True

    def _register(self, descriptor: int, stream: Receiving) -> None:
        if sys.platform == "linux":  # for type checkers; elsewhere `_has_ended` from the start
            if self._epoll is None:
                self._epoll = select.epoll()
            self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        self._streams[descriptor] = stream

    def stop_if_idle(self) -> None:
        """End the system task if no task waits for it any more."""
        if not self.served and self._scope is not None:
            scope, self._scope = self._scope, None
            scope.cancel()

    def remove(self, descriptor: int) -> None:
        """Forget a stream for which no task waits, and whose socket is still open; idempotent."""
        if self._streams.pop(descriptor, None) is None:
            return
        self._epoll.unregister(descriptor)
        if not self._streams:
            self.stop_if_idle()
            self._close()

    async def _run(self, scope: trio.CancelScope, epoll: Any) -> None:
        try:
            with scope:
                while await self._is_needed(scope):
                    await wait_readable(epoll.fileno())
                    if self._scope is scope:
                        for descriptor, events in epoll.poll(0):
                            stream = self._streams.get(descriptor)
                            if stream is not None:
                                stream.arrived(events)
        except trio.Cancelled:  # the event loop ends, and with it this task
            self._give_up()
            raise
        except Exception:
            self._give_up()
            logger.exception("the task that receives failed")  # raised, it would end the whole program
        finally:
            if self._scope is scope:
                self._scope = None

    async def _is_needed(self, scope: trio.CancelScope) -> bool:
        """Return whether a task waits, or does so once those that were woken have run."""
        for _ in range(2):  # in the first turn they may run after this task
            if self._scope is not scope:  # stopped, and another may have been started
                return False
            if self.served:
                return True
            await cancel_shielded_checkpoint()
        return self._scope is scope and self.served > 0

    def _give_up(self) -> None:
        """Let all tasks wait for their sockets themselves, from now on."""
        self._has_ended = True
        for stream in list(self._streams.values()):
            stream.wake()
        self._streams.clear()
        self._close()

    def _close(self) -> None:
        epoll, self._epoll = self._epoll, None
        if epoll is not None:
            epoll.close()


_RECEIVERS: Final = PerLoop(lambda _: Receiver())


def current_receiver() -> Receiver:
    """Return the receiver of the running event loop."""
    return _RECEIVERS.current()
