"""How far a batch is: a state with a name, and the error that the batch ends with.

A batch only goes forward:

    state     what happens                                   goes on to, when
    --------  ---------------------------------------------  -----------------------------------------------
    NEW       nothing                                        OPEN: its block is entered
    OPEN      items are read and sent                        DRAINING: the source has ended, or raised
                                                             STOPPING: an error ends the batch
    DRAINING  nothing is read; what was read is sent         STOPPING: an error ends the batch
                                                             ENDED: no call is in flight
    STOPPING  nothing is read or sent; calls in flight end   ENDED: no call is in flight
    ENDED     the last outcomes are handed out               LEFT: its block is left
    LEFT      nothing

LEFT follows any state but NEW, as a block can be left early. An error may come in any state, even in ENDED
(a `progress` that fails); the first one counts, and is raised once the outcomes are handed out.
"""

from __future__ import annotations

from enum import IntEnum


class State(IntEnum):
    """How far a batch is; a later state is greater."""

    NEW = 0
    OPEN = 1
    DRAINING = 2
    STOPPING = 3
    ENDED = 4
    LEFT = 5


class Lifecycle:
    """The state of a batch and the error it ends with; `advance` alone changes them.

    Attributes:
        state: how far it is.
        error: what ended it early, or None.
        is_told: whether the error was raised where the batch is iterated.
    """

    __slots__ = ("error", "is_told", "state")

    def __init__(self) -> None:
        self.state = State.NEW
        self.error: BaseException | None = None
        self.is_told = False

    @property
    def is_open(self) -> bool:
        """Whether the block has been entered and not left."""
        return State.NEW < self.state < State.LEFT

    def advance(self, state: State, error: BaseException | None = None) -> None:
        """Go on to a state, unless it is behind; keep the error unless there is one."""
        if self.error is None:
            self.error = error
        if state > self.state:
            self.state = state

    def forget_error(self) -> None:
        """Drop the error, whose traceback may lead back here."""
        self.error = None

    def __str__(self) -> str:
        """Return the state in a word, for reprs; an error counts for more than the state it came in."""
        if self.error is not None:
            return "failed"
        if State.OPEN < self.state < State.ENDED:
            return "open"
        return self.state.name.lower()
