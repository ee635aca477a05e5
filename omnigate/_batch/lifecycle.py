"""The state of a batch, and the error that ends it.

States only advance:

    state     what happens                                   next state
    --------  ---------------------------------------------  -----------------------------------------------
    NEW       nothing                                        OPEN: the block is entered
    OPEN      items are read and sent                        DRAINING: the source has ended, or raised
                                                             STOPPING: an error ends the batch
    DRAINING  nothing is read; items already read are sent   STOPPING: an error ends the batch
                                                             ENDED: no call is in flight
    STOPPING  nothing is read or sent; calls in flight end   ENDED: no call is in flight
    ENDED     the last outcomes are handed out               LEFT: the block is left
    LEFT      nothing

LEFT can follow any state but NEW, since a block can be left early. An error can occur in any state, even in
ENDED (from `progress`); the first one is kept, and raised after the last outcome.
"""

from __future__ import annotations

from enum import IntEnum


class State(IntEnum):
    """States of a batch, in order: a later state compares greater."""

    NEW = 0
    OPEN = 1
    DRAINING = 2
    STOPPING = 3
    ENDED = 4
    LEFT = 5


class Lifecycle:
    """The state of a batch and the error that ends it; only `advance` changes the state.

    Attributes:
        state: the current state.
        is_reading: whether items are read, that is, whether the state is OPEN; quicker to ask than the state.
        error: the error that ended it early, or None.
        is_told: whether iteration has raised the error.
    """

    __slots__ = ("error", "is_reading", "is_told", "state")

    def __init__(self) -> None:
        self.state = State.NEW
        self.is_reading = False
        self.error: BaseException | None = None
        self.is_told = False

    @property
    def is_open(self) -> bool:
        """Whether the block has been entered and not left."""
        return State.NEW < self.state < State.LEFT

    def advance(self, state: State, error: BaseException | None = None) -> None:
        """Advance to a state, never back; keep the first error."""
        if self.error is None:
            self.error = error
        if state > self.state:
            self.state = state
            self.is_reading = state is State.OPEN

    def forget_error(self) -> None:
        """Drop the error, whose traceback may lead back here."""
        self.error = None

    def __str__(self) -> str:
        """Return the state for reprs: "failed" if there is an error, else its name."""
        if self.error is not None:
            return "failed"
        if State.OPEN < self.state < State.ENDED:
            return "open"
        return self.state.name.lower()
