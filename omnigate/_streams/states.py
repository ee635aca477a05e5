"""The states of a stream, and what changes them. Data only: `core` moves through it, and tests walk it.

    NEW ─ SEND ─► OPENING ─ HEAD ─► READING ─ PAUSE ─► OPEN ─ READ ─► READING …
                                      │
                                      ├─ MARK ──► DRAINING      the end was told, and the body goes on
                                      ├─ END ───► ENDED         all is well
                                      ├─ FAIL ──► FAILED ─ TELL ─► CLOSED
                                      └─ RETRY ─► RETRYING ─ SEND ─► OPENING

`aclose` is CLOSE. A stream at rest it closes itself (CLOSING, then RELEASE to CLOSED). A task that is opening
or reading the stream is made to leave (STOPPING), and releases the response on its way out. A task that is
draining it is left alone, since that takes a second at most: from then on that task does the closing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, NoReturn


class State(Enum):
    """Where a stream is; the value is what its repr says."""

    __hash__ = object.__hash__  # members are singletons, and a lookup comes with each piece

    NEW = "new"
    """Nothing was sent."""

    OPENING = "opening"
    """A task sends the request, again if need be, until a head of success has come."""

    OPEN = "open"
    """There is a response, and no task reads it."""

    READING = "reading"
    """A task reads the response."""

    DRAINING = "ending"
    """A task reads what follows the end mark."""

    RETRYING = "to be opened again"
    """The response failed before its first piece and is released; the next step opens another."""

    ENDED = "ended"
    """The response has ended well; its last pieces may still have to be handed on."""

    FAILED = "failed"
    """The response has failed; its last pieces may still have to be handed on, and then the error."""

    STOPPING = "being closed"
    """The task that opens or reads the stream is made to leave."""

    CLOSING = "closing"
    """A task releases the response; it may read its tail first."""

    CLOSED = "closed before its end"
    """Nothing is held, and reading is an error."""


class Event(Enum):
    """What happens to a stream; the value completes "a stream cannot …"."""

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
        # A step: every way out of it leads to a state of rest.
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
        # Whatever comes just as a stream is closed is given up, its end too: its last pieces were.
        (State.STOPPING, Event.HEAD): State.STOPPING,
        (State.STOPPING, Event.PAUSE): State.STOPPING,
        (State.STOPPING, Event.END): State.STOPPING,
        (State.STOPPING, Event.FAIL): State.STOPPING,
        (State.STOPPING, Event.RETRY): State.STOPPING,
        (State.STOPPING, Event.BREAK): State.STOPPING,
        (State.STOPPING, Event.RELEASE): State.CLOSED,
        # All pieces come before the tail, so a task that drains a stream being closed still ends well.
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
"""The state that follows an event. One that cannot happen is a bug: looking it up is an AssertionError."""

HOLDING: Final = frozenset({State.OPEN, State.READING, State.DRAINING})
"""There is a response to be read, with a head of success."""

BUSY: Final = frozenset({State.OPENING, State.READING, State.DRAINING, State.STOPPING, State.CLOSING})
"""A task is inside the stream, and alone uses the response."""

ABANDONED: Final = frozenset({State.STOPPING, State.CLOSING})
"""The stream is being closed: what still arrives is given up, and errors are of no interest."""

SETTLED: Final = frozenset({State.ENDED, State.FAILED})
"""Nothing more will arrive, and how it ended is known."""

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
"""Why a step of reading cannot begin in a state, for the `StreamClosedError` that says so."""
