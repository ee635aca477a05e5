"""A byte stream on trio: a non-blocking socket, written to directly; one task reads for all if many wait."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable
from typing import Final

import trio
from outcome import Error, Value
from trio.lowlevel import (
    Abort,
    Task,
    checkpoint,
    current_task,
    enable_ki_protection,
    notify_closing,
    reschedule,
    wait_readable,
    wait_task_rescheduled,
    wait_writable,
)

from omnigate._transport.byte_stream import CLOSED, ByteStream, Poll, duplicate, poll_of, shut_down
from omnigate._transport.tls import TLSStream
from omnigate._transport.trio_receiver import READABLE, current_receiver

_MAX_RECEIVE_BYTES: Final = 65_536


async def open_stream(sock: socket.socket, context: ssl.SSLContext | None, hostname: str) -> ByteStream:
    """Return a stream over a connected socket, which it owns, also after an error.

    Args:
        sock: the socket, non-blocking.
        context: for TLS; None for none.
        hostname: the name that the server's certificate must have.

    Raises:
        OSError: the TLS handshake failed.
    """
    stream = TrioStream(sock)
    if context is None:
        return stream
    try:
        secure = TLSStream(stream, context, hostname)
        await secure.handshake()
    except BaseException:
        stream.abort()
        raise
    return secure


class TrioStream:
    """A connected byte stream."""

    __slots__ = (
        "_descriptor", "_is_aborted", "_may_have_more", "_poll", "_receiver", "_socket", "_task", "_was_lent"
    )  # fmt: skip

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._descriptor = sock.fileno()
        self._receiver = current_receiver()
        self._task: Task | None = None  # that the receiver serves
        self._may_have_more = False  # so that no event will tell
        self._poll: Poll | None = None  # not made for a connection that carries one request
        self._is_aborted = False
        self._was_lent = False

    def send(self, data: bytes) -> Awaitable[None] | None:
        """Send `data`; return None if nothing is left to wait for."""
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise self._translated(error) from None
        return None if sent == len(data) else self._send_rest(data, sent)

    async def _send_rest(self, data: bytes, sent: int) -> None:
        with memoryview(data) as view:
            while sent < len(data):
                try:
                    await wait_writable(self._socket)
                    sent += self._socket.send(view[sent:])
                except BlockingIOError:
                    pass
                except (OSError, trio.ClosedResourceError) as error:
                    raise self._translated(error) from None

    @enable_ki_protection
    async def receive(self) -> bytes:
        """Return the next bytes; b"" at the end."""
        receiver = self._receiver
        while True:
            if self._is_aborted:
                raise OSError(CLOSED)
            try:
                if self._may_have_more:
                    await (
                        checkpoint()
                    )  # others run, and a cancellation arrives, however fast the server sends
                    return self._socket.recv(_MAX_RECEIVE_BYTES)
                if receiver.serves(self._descriptor, self):
                    self._task = current_task()
                    receiver.served += 1
                    data: bytes | None = await wait_task_rescheduled(self._abandon)
                    if data is not None:
                        return data
                    continue
                receiver.alone += 1
                try:
                    await wait_readable(self._descriptor)
                finally:
                    receiver.alone -= 1
                return self._socket.recv(_MAX_RECEIVE_BYTES)
            except BlockingIOError:
                self._may_have_more = False
            except (OSError, trio.ClosedResourceError) as error:
                raise self._translated(error) from None

    def arrived(self, events: int) -> None:
        """Read for the task that waits; without one, note that its next receive must look."""
        if self._task is None:
            self._may_have_more = True
            return
        try:
            data = self._socket.recv(_MAX_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except Exception as error:  # noqa: BLE001 - raised by the task that waits
            reschedule(self._take_task(), Error(error))
        else:
            self._may_have_more = events != READABLE or len(data) == _MAX_RECEIVE_BYTES
            reschedule(self._take_task(), Value(data))

    def wake(self) -> None:
        """Let the task that waits, if one does, wait for the socket itself."""
        if self._task is not None:
            reschedule(self._take_task())

    def _take_task(self) -> Task:
        """Return the task that waits, which then waits no more."""
        task, self._task = self._task, None
        assert task is not None
        self._receiver.served -= 1
        return task

    def _abandon(self, _: object) -> Abort:
        self._take_task()
        self._receiver.stop_if_idle()
        return Abort.SUCCEEDED

    def _translated(self, error: Exception) -> OSError:
        return error if isinstance(error, OSError) and not self._is_aborted else OSError(CLOSED)

    def is_quiet(self) -> bool:
        """Return whether nothing has arrived that was not received, neither data nor the end."""
        if self._is_aborted:
            return False
        poll = self._poll
        if poll is None:
            poll = self._poll = poll_of(self._socket)
        return not poll(0)

    def has_clean_end(self) -> bool:
        """Return True: without TLS nobody can tell."""
        return True

    def lend(self) -> int | None:
        """Return a descriptor for another thread to read from, or None."""
        descriptor = None if self._is_aborted else duplicate(self._socket)
        if descriptor is not None:
            self._was_lent = True
            self._receiver.remove(self._descriptor)  # it would hear of all that arrives there
        return descriptor

    def take_back(self) -> None:
        """Do nothing: trio reads only when it is asked to."""

    @enable_ki_protection
    def abort(self) -> None:
        """Close the stream immediately, even if its event loop has ended."""
        if self._is_aborted:
            return
        self._is_aborted = True
        if self._was_lent:  # a traceback may keep that descriptor, and so the connection
            shut_down(self._socket)
        try:
            if self._task is not None:
                reschedule(self._take_task(), Error(OSError(CLOSED)))
                self._receiver.stop_if_idle()
            self._receiver.remove(self._descriptor)
            notify_closing(self._socket)  # wakes the task that waits for it
        except RuntimeError:
            pass  # the event loop has ended
        finally:
            self._socket.close()
