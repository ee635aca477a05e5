"""What is known of the use of one rate window. Sans-I/O."""

from __future__ import annotations

import math

__all__ = ["WindowUse"]


class WindowUse:
    """What is known of the use of one window."""

    __slots__ = (
        "calls",
        "confirmed",
        "counted",
        "counted_at",
        "full_at",
        "is_called",
        "is_census",
        "is_heard",
        "is_missed",
        "others",
        "own",
        "own_late",
        "phase",
        "rate",
        "seen",
        "taken_back",
    )

    def __init__(self) -> None:
        self.others = 0  # counted by the gateway but not sent by us; negative: sent but lost
        self.own = 0  # what we had sent when it was over
        self.confirmed = 0  # our sends that answers say counted in it
        self.counted = 0  # the highest count that an answer told
        self.counted_at = -math.inf  # when the request was sent that got it
        self.seen = 0.0  # the part of the window that was over then
        self.full_at = 2.0  # the part of the window that was over at the first rejection
        self.own_late: list[float] = []  # confirmed sends from near or before its beginning
        self.taken_back: list[float] = []  # sends from near its beginning that counted in the one before
        self.calls: list[list[float]] = []  # of the roll call: [sent at, counted]
        self.phase = 0.0  # of its roll call
        self.rate = 0.0  # what we planned as a part of a crowd
        self.is_missed = False  # its roll call: the limit was used up before
        self.is_called = False  # whether we took part in its roll call
        self.is_heard = False  # whether a call of ours was admitted
        self.is_census = False  # whether all peers hold a roll call in it, also those that race
