"""The states of a stream and their transitions. Data only: `core` follows the table, and tests walk it.

    NEW ─ SEND ─► OPENING ─ HEAD ─► READING ─ PAUSE ─► OPEN ─ READ ─► READING …
                                      │ ├─ MARK ──► DRAINING      the end mark has arrived, not the end of the
                                      body ├─ END ───► ENDED         successfully ├─ FAIL ──► FAILED ─ TELL ─►
                                      CLOSED └─ RETRY ─► RETRYING ─ SEND ─► OPENING

`aclose` is CLOSE. It closes a resting stream itself (CLOSING, then RELEASE to CLOSED). It makes a task that
is opening or reading the stream leave (STOPPING), which releases the response on its way out. It leaves a
task that is draining alone, since that takes at most a second, and that task then does the closing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Final, NoReturn


class State(Enum):
    """The states of a stream; the value is for its repr."""

    if not TYPE_CHECKING:
        __hash__ = object.__hash__  # members are singletons, and each piece takes a lookup

    NEW = "new"
    """Nothing has been sent."""

    OPENING = "opening"
    """A task sends the request, with retries, until the head of a successful response arrives."""

    OPEN = "open"
    """There is a response, and no task is reading it."""

    READING = "reading"
    """A task is reading the response."""

    DRAINING = "ending"
    """A task is reading what follows the end mark."""

    RETRYING = "to be opened again"
    """The response failed before its first piece and is released; the next step opens another."""

    ENDED = "ended"
    """The response has ended successfully; its last pieces may still be waiting to be taken."""

    FAILED = "failed"
    """The response has failed; its last pieces may still be waiting to be taken, then the error."""

    STOPPING = "being closed"
    """The task that opens or reads the stream is being made to leave."""

    CLOSING = "closing"
    """A task is releasing the response; it may read the tail first."""

    CLOSED = "closed before its end"
    """The response is released, and reading is an error."""


class Event(Enum):
    """Events of a stream; the value completes "a stream cannot …"."""

    if not TYPE_CHECKING:
        __hash__ = object.__hash__

    SEND = "send its request"
    READ = "be read"
    HEAD = "receive a head"
    PAUSE = "be left with what has arrived"
    MARK = "receive its end mark"
    END = "end"
    FAIL = "fail"
    RETRY = "be opened again"
    TELL = "raise its error"
    CLOSE = "be closed"
    BREAK = "be broken off"
    RELEASE = "release its response"


class _Table(dict[tuple[State, Event], State]):
    def __missing__(self, pair: tuple[State, Event]) -> NoReturn:
        state, event = pair
        raise AssertionError(f"a stream that is {state.name} cannot {event.value}")


TRANSITIONS: Final[Mapping[tuple[State, Event], State]] = _Table(
    {
        (State.NEW, Event.SEND): State.OPENING,
        (State.NEW, Event.CLOSE): State.CLOSING,
        # Within a step: every exit leads to a resting state.
        (State.OPENING, Event.HEAD): State.READING,
        (State.OPENING, Event.CLOSE): State.STOPPING,
        (State.OPENING, Event.BREAK): State.CLOSING,
        (State.READING, Event.PAUSE): State.OPEN,
        (State.READING, Event.MARK): State.DRAINING,
        (State.READING, Event.END): State.ENDED,
        (State.READING, Event.FAIL): State.FAILED,
        (State.READING, Event.RETRY): State.RETRYING,
        (State.READING, Event.CLOSE): State.STOPPING,
        (State.READING, Event.BREAK): State.CLOSING,
        (State.DRAINING, Event.END): State.ENDED,
        (State.DRAINING, Event.FAIL): State.FAILED,
        (State.DRAINING, Event.RETRY): State.RETRYING,
        (State.DRAINING, Event.CLOSE): State.CLOSING,
        (State.DRAINING, Event.BREAK): State.CLOSING,
        # Between steps.
        (State.OPEN, Event.READ): State.READING,
        (State.OPEN, Event.CLOSE): State.CLOSING,
        (State.RETRYING, Event.SEND): State.OPENING,
        (State.RETRYING, Event.CLOSE): State.CLOSING,
        (State.FAILED, Event.TELL): State.CLOSED,
        (State.FAILED, Event.CLOSE): State.CLOSING,
        # Anything that arrives as the stream is being closed is dropped, even its end: its last pieces were
        # too.
        (State.STOPPING, Event.HEAD): State.STOPPING,
        (State.STOPPING, Event.PAUSE): State.STOPPING,
        (State.STOPPING, Event.END): State.STOPPING,
        (State.STOPPING, Event.FAIL): State.STOPPING,
        (State.STOPPING, Event.RETRY): State.STOPPING,
        (State.STOPPING, Event.BREAK): State.STOPPING,
        (State.STOPPING, Event.RELEASE): State.CLOSED,
        # All pieces precede the tail, so a task that drains the stream as it is closed still ends it
        # normally.
        (State.CLOSING, Event.END): State.ENDED,
        (State.CLOSING, Event.FAIL): State.CLOSING,
        (State.CLOSING, Event.RETRY): State.CLOSING,
        (State.CLOSING, Event.BREAK): State.CLOSING,
        (State.CLOSING, Event.RELEASE): State.CLOSED,
        # Closing twice, or after the end, changes nothing.
        (State.STOPPING, Event.CLOSE): State.STOPPING,
        (State.CLOSING, Event.CLOSE): State.CLOSING,
        (State.ENDED, Event.CLOSE): State.ENDED,
        (State.CLOSED, Event.CLOSE): State.CLOSED,
    }
)
"""The state after an event. An impossible event is a bug: looking it up is an AssertionError."""

HOLDING: Final = frozenset({State.OPEN, State.READING, State.DRAINING})
"""A successful response is held."""

BUSY: Final = frozenset({State.OPENING, State.READING, State.DRAINING, State.STOPPING, State.CLOSING})
"""A task is inside the stream, with exclusive use of the response."""

ABANDONED: Final = frozenset({State.STOPPING, State.CLOSING})
"""The stream is being closed: data that still arrives is dropped, and errors are ignored."""

SETTLED: Final = frozenset({State.ENDED, State.FAILED})
"""Nothing more will arrive, and the result is known."""

_READ_ALREADY: Final = "the stream is already being read by another task"

_CLOSED: Final = "the stream was closed before its end"

REFUSALS: Final[Mapping[State, str]] = {
    State.OPENING: _READ_ALREADY,
    State.READING: _READ_ALREADY,
    State.DRAINING: _READ_ALREADY,
    State.STOPPING: _CLOSED,
    State.CLOSING: _CLOSED,
    State.CLOSED: _CLOSED,
}
"""Messages of `StreamClosedError` for the states in which no step of reading can begin."""
