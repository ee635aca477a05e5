"""Sends and reads in another thread than a connection's event loop, straight on the socket.

A sync call, or a chunk that arrives alone, costs two thread switches, as much as all the rest. So the usual
case is handled in the caller's thread, on a connection that the event loop has lent: a small request with a
small successful response, and the middle of a streamed body. The event loop continues with anything else:
errors, the end of a body, timeouts.

An interrupt can come between any two steps. What it loses, bytes or the place in a response, belongs to one
connection, so that connection is closed: by the reader of a stream, and by `Parked` when it is dropped.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import httpx

from omnigate._runtime.loops import call_soon
from omnigate._transport.connection import Connection
from omnigate._transport.http11 import ResponseReader
from omnigate._transport.timers import timed_out

_MAX_READ_BYTES: Final = 65_536

_MAX_POLL_MILLISECONDS: Final = 2**31 - 1

_MAX_BODY_BYTES: Final = 1 << 20
"""How much of a response is collected here; the event loop reads the rest of a longer one."""

_CLOSED: Final = "the connection was closed"

_read: Final = os.read  # bound here: one that is replaced by a Python function adds to an error's traceback

_write: Final = os.write

_select: Final[Any] = select  # without `poll` on Windows, where no connection is lent


class Descriptor:
    """A file descriptor that is closed when it is dropped, which no interrupt can prevent."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number: int = number

    def __del__(self) -> None:
        os.close(self.number)


class Loan:
    """What the event loop must know about a body that was read elsewhere.

    Attributes:
        broken: the protocol error in it.
        is_overdue: whether no data was received in time.
    """

    __slots__ = ("broken", "is_overdue")

    def __init__(self) -> None:
        self.broken: str | None = None
        self.is_overdue: bool = False


class DirectReader:
    """Reads a body from a descriptor, which it owns."""

    __slots__ = ("_descriptor", "_loan", "_milliseconds", "_poll", "_reader")

    def __init__(self, descriptor: int, reader: ResponseReader, seconds: float | None, loan: Loan) -> None:
        """Prepare to read.

        Args:
            descriptor: a non-blocking socket's, to own.
            reader: the parser of the response.
            seconds: how long to wait for data; None for no limit.
            loan: told why the event loop must go on.
        """
        self._descriptor = Descriptor(descriptor)
        self._reader = reader
        self._loan = loan
        self._milliseconds = _milliseconds(seconds)
        poll = _select.poll()
        poll.register(descriptor, _select.POLLIN)
        self._poll = poll.poll

    def read(self) -> bytes | None:
        """Wait for data of the body and return it; None if the event loop must go on."""
        reader = self._reader
        while True:
            events = self._poll(self._milliseconds)
            if not events:
                self._loan.is_overdue = True
                return None
            if events[0][1] & _select.POLLERR:
                return None  # the event loop finds out what it is
            try:
                data = _read(self._descriptor.number, _MAX_READ_BYTES)
            except OSError as error:
                if is_of_a_handler(error):
                    raise
                if isinstance(error, BlockingIOError):
                    continue
                return None  # broken just now; the event loop sees its end
            if not data:
                return None
            try:
                reader.feed(data)
            except httpx.RemoteProtocolError as error:
                self._loan.broken = str(error)
                return None
            if reader.complete:
                return None
            body = reader.take_body()
            if body:
                return body


class Parked:
    """A connection that threads other than the event loop's may take from its pool, one at a time.

    Attributes:
        connection: the connection, in use as far as the pool knows.
        since: when it became idle, by `time.monotonic`.
        is_back: whether the event loop has taken it back.
    """

    __slots__ = (
        "__weakref__", "_descriptor", "_discard", "_expires", "_poll", "connection", "is_back", "since",
    )  # fmt: skip

    def __init__(
        self,
        descriptor: int,
        connection: Connection,
        discard: Callable[[], Callable[[Connection], None] | None],
        *,
        since: float,
        expires: float,
    ) -> None:
        """Take ownership of a duplicate of the socket's descriptor.

        Args:
            descriptor: the duplicate.
            connection: the connection.
            discard: returns the pool's method to close it in the event loop, if there still is a pool.
            since: when it became idle, by `time.monotonic`.
            expires: when it is too old to carry another request, by `time.monotonic`.
        """
        self._descriptor = Descriptor(descriptor)
        self.connection: Connection = connection
        self._discard = discard
        self.since: float = since
        self._expires = expires
        self.is_back: bool = False
        self._poll = _select.poll()
        self._poll.register(descriptor, _select.POLLIN)

    def is_fresh(self, idle_timeout_seconds: float) -> bool:
        """Return whether it may carry another request, and nothing has arrived on it."""
        now = time.monotonic()
        if (
            self.connection.state != "in use"
            or now >= self._expires
            or now - self.since > idle_timeout_seconds
        ):
            return False
        return not self._poll.poll(0)

    def exchange(
        self,
        message: bytes,
        reader: ResponseReader,
        write_seconds: float | None,
        read_seconds: float | None,
    ) -> tuple[bool, httpx.TransportError | None]:
        """Send a request and feed `reader` with its response, until only the event loop can go on.

        Returns whether any byte of the request may have been sent, and the error, if there was one.
        """
        try:
            left = _write(self._descriptor.number, message)
        except OSError as error:
            if is_of_a_handler(error):
                raise
            if not isinstance(error, BlockingIOError):
                return False, httpx.WriteError(str(error) or _CLOSED)
            left = 0
        try:
            if left < len(message):
                self._write_rest(message[left:], write_seconds)
            self._read(reader, read_seconds)
        except httpx.TransportError as error:
            return True, error
        self.since = time.monotonic()
        return True, None

    def _write_rest(self, data: bytes, seconds: float | None) -> None:
        poll = _select.poll()
        poll.register(self._descriptor.number, _select.POLLOUT)
        while data:
            if not poll.poll(_milliseconds(seconds)):
                raise timed_out(httpx.WriteTimeout, seconds)
            try:
                data = data[_write(self._descriptor.number, data) :]
            except OSError as error:
                if is_of_a_handler(error):
                    raise
                if not isinstance(error, BlockingIOError):
                    raise httpx.WriteError(str(error) or _CLOSED) from None

    def _read(self, reader: ResponseReader, seconds: float | None) -> None:
        milliseconds, received = _milliseconds(seconds), 0
        while not reader.complete and received < _MAX_BODY_BYTES:
            if not self._poll.poll(milliseconds):
                raise timed_out(httpx.ReadTimeout, seconds)
            try:
                data = _read(self._descriptor.number, _MAX_READ_BYTES)
            except OSError as error:
                if is_of_a_handler(error):
                    raise
                if isinstance(error, BlockingIOError):
                    continue
                raise httpx.ReadError(str(error) or _CLOSED) from None
            if data:
                received += len(data)
                reader.feed(data)
            else:
                reader.end(is_clean=True)
            if reader.head is not None and not 200 <= reader.status_code < 300:
                return

    def take_back(self) -> Connection:
        """Return the connection to its event loop, in that loop."""
        self.is_back = True
        del self._descriptor  # a traceback may keep this object for long
        self.connection.stream.take_back()
        return self.connection

    def close(self) -> None:
        """Have the event loop close the connection, unless it has taken it back."""
        discard = self._discard()
        if self.is_back or discard is None:
            return
        self.is_back = True
        del self._descriptor
        with suppress(RuntimeError):  # the event loop has ended, and its connections with it
            call_soon(self.connection._loop, partial(discard, self.connection))

    def __del__(self) -> None:
        self.close()


def is_of_a_handler(error: Exception) -> bool:
    """Return whether a signal handler has raised an error (a TimeoutError, say), not the function called."""
    return error.__traceback__ is not None and error.__traceback__.tb_next is not None


def _milliseconds(seconds: float | None) -> float | None:
    """Return a time limit for polling; None if there is none, or it is longer than three weeks."""
    if seconds is None or seconds * 1e3 > _MAX_POLL_MILLISECONDS:
        return None
    return seconds * 1e3
