"""Reads the body of a response in another thread than its event loop's, straight from the socket.

For a sync caller a chunk that arrives alone costs two thread switches, several times the rest. So while nothing
arrives but the middle of a body, the caller waits for it and parses it itself. All else is the event loop's: the
end of the body or of the connection, errors, and what follows a timeout. The reader then returns None, and the
next read in the loop continues from there.

An interrupt in between may lose what was read, so whoever is interrupted must close the stream.
"""

from __future__ import annotations

import os
import select
from typing import Final

import httpx

from omnigate._transport.http11 import ResponseReader

_MAX_READ_BYTES: Final = 65_536

_MAX_POLL_MILLISECONDS: Final = 2**31 - 1


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
        self._descriptor = descriptor
        self._reader = reader
        self._loan = loan
        milliseconds = None if seconds is None else seconds * 1e3
        if milliseconds is not None and milliseconds > _MAX_POLL_MILLISECONDS:
            milliseconds = None  # longer than three weeks
        self._milliseconds = milliseconds
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        self._poll = poll.poll

    def read(self) -> bytes | None:
        """Wait for data of the body and return it; None if the event loop must go on."""
        reader = self._reader
        while True:
            events = self._poll(self._milliseconds)
            if not events:
                self._loan.is_overdue = True
                return None
            if events[0][1] & select.POLLERR:
                return None  # the event loop finds out what it is
            try:
                data = os.read(self._descriptor, _MAX_READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:  # broken just now; the event loop sees its end
                return None
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

    def __del__(self) -> None:
        descriptor = getattr(self, "_descriptor", None)
        if descriptor is not None:
            os.close(descriptor)
