"""Who else sends: paced processes that a roll call counts, a crowd of them, or other clients. Sans-I/O.

What a roll call (`roll_call`) heard is read three ways:

* Peers that hold the same roll call are heard equally often in the short and the long interval.
* Members of a crowd say hello within the short interval, and nothing in the long one.
* Other clients are heard more often the longer the interval.

With more peers than a third of the limit's number, the roll call itself exceeds the limit: they are a crowd.
They are one, too, if most of the others behave as one. A process whose roll call came to nothing enters the
crowd if so many calls came within a second as only a crowd sends.

Heedless clients are told from peers by the *census*: in every third window, peers hold the roll call even
while they race. Only clients that take no part in it can then use up the limit before its end, or be heard
much more often in the long interval than in the short one. Two censuses have to agree before we race, unless
no peers were heard at all. An *even* one, in which both intervals agree, voids them; if it may be even by
chance, the second in a row does. Without common windows for it, peers that race each other by mistake would
never stop: each would be a heedless client to the others. Processes that are sure hold fewer censuses, so the
others may hear them race: many calls in the short interval, few in the long one. Such a roll call says
nothing about either number.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from omnigate._batch.pace.crowd import Crowd
from omnigate._batch.pace.roll_call import ROLL_LONG, RollCalls, heard

__all__ = ["Peers"]

_PEERS: Final = 1.5  # from so many on there are peers

_CROWDED: Final = 0.3  # of the limit's number; more peers than that are a crowd ...

_UNCROWDED: Final = 0.22  # ... until they are fewer than that

_CROWD_LIMIT: Final = 450  # with a higher one, a hundred processes have room for roll calls

_MEMBERS_LEAST: Final = 0.05  # of the limit's number: fewer hellos are no crowd

_SIGNS: Final = 1  # of a crowd that may have been a single client, which has not heard us yet

_STRAYS: Final = 2  # calls in the short interval that need no explanation

_BURST: Final = 1.5  # of the long interval's calls, and strays, in the short one: more are of a race

_EXACT: Final = 0.1  # part by which the intervals may differ if no other client sends

_UNEVEN: Final = 1.5  # of the short intervals' calls in the long ones: more are of heedless clients

_EVEN: Final = 1.2  # up to so many are of peers, whose clocks differ: a census that voids the others ...

_EVEN_CALLS: Final = 12  # ... before they agree if it heard so many calls ...

_CHANCE: Final = 2.5  # ... and later if so many standard deviations of heedless clients' calls are lacking

_ROLLS_RACE: Final = 2  # roll calls, without such a census, that must have shown the number of peers

_CENSUSES: Final = 3  # that are kept ...

_CENSUSES_LEAST: Final = 2  # ... and needed


class Peers:
    """What roll calls tell of the others.

    Args:
        uniform: draws a number between two, evenly.

    Attributes:
        crowd: how to behave in a crowd.
        are_among_heedless: whether the last censuses have heard clients that do not take part.
    """

    __slots__ = (
        "_censuses",
        "_flow",
        "_hellos",
        "_is_crowded",
        "_is_half_void",
        "_rolls",
        "_room",
        "_signs",
        "are_among_heedless",
        "crowd",
    )

    def __init__(self, uniform: Callable[[float, float], float]) -> None:
        self.crowd = Crowd(uniform)
        self._rolls = RollCalls()
        self.are_among_heedless = False
        self._flow = 0.0  # of their calls in a short interval
        self._censuses: deque[tuple[float, float]] = deque(maxlen=_CENSUSES)
        self._hellos = 0.0  # heard in the last roll call
        self._is_half_void = False  # one more even census voids the others
        self._is_crowded = False
        self._room = 0.0  # the number of peers that leave room for roll calls
        self._signs = 0  # of a crowd, in a row, by roll calls that came to nothing

    @property
    def number(self) -> float:
        """How many paced processes there are, this one included; 0 if unknown, or in a crowd."""
        return self._rolls.peers

    @property
    def are_known(self) -> bool:
        """Whether there are peers."""
        return self.number >= _PEERS

    @property
    def may_race(self) -> bool:
        """Whether enough is known of the others to send faster than them."""
        return self.are_among_heedless or len(self._rolls) > _ROLLS_RACE

    @property
    def are_surely_among_heedless(self) -> bool:
        """Whether as many censuses as are kept have heard heedless clients."""
        return self.are_among_heedless and len(self._censuses) == _CENSUSES and not self._is_half_void

    @property
    def is_crowd_near(self) -> bool:
        """Whether the last roll call heard hellos, and the next one has to confirm them."""
        return self._hellos > _STRAYS

    def window_began(self) -> None:
        self.crowd.window_began()
        if self._is_crowded and not self.crowd.rate:
            self._begin_again(min(self.crowd.size, self._room))

    def called(self, counts: Sequence[float], phase: float, limit: int, *, is_census: bool) -> None:
        """Register a roll call.

        Args:
            counts: what our three calls got.
            phase: the part of the phase of first calls that was over at ours.
            limit: calls allowed in a window.
            is_census: whether all peers held one in that window.
        """
        self._signs = 0
        peers = heard(*counts)
        short, long = counts[1] - counts[0], counts[2] - counts[1]
        members = max(0.0, short - long - _STRAYS) / max(0.4, 1.2 - phase)
        before, self._hellos = self._hellos, members
        crowd = self.crowd
        if crowd.rate:
            size = max(peers, 0.0) + members
            is_crowd = size > _UNCROWDED * limit and not members < peers < _CROWDED * limit - members
            if is_crowd:
                crowd.confirm(size)
            elif crowd.is_doubted:
                crowd.leave()
                self._begin_again(size)
            else:
                crowd.doubt()
            return
        is_burst = short > _BURST * long + _STRAYS
        if is_census and not is_burst:
            self._count_heedless(short, long)
        peers -= math.sqrt(3 * self._flow)  # a standard deviation, with calls that come at random
        # A burst of another client looks the same, but not twice.
        members = (members + before) / 2 if min(members, before) >= _STRAYS else 0.0
        size = max(peers, 0.0) + members
        is_crowd = limit < _CROWD_LIMIT and (
            size > _CROWDED * limit or members > max(peers, _MEMBERS_LEAST * limit)
        )
        if is_crowd and self._enter(limit, size):
            return
        if is_burst:
            return
        if (
            not self.are_among_heedless
            and peers > max(_PEERS, 1.5 * self.number)
            and abs(short - long) <= 1 + _EXACT * short
        ):
            self._rolls.clear()  # no other client has blurred it, so it is worth more than the others
        self._rolls.add(min(max(1.0, size), 0.99 * limit / 3))  # so that there is room for the next one

    def missed(self, counts: Sequence[float], limit: int, *, was_heard: bool, is_census: bool) -> None:
        """Register a roll call that came to nothing, as the limit was used up before its end.

        Args:
            counts: what those of our calls got that were admitted.
            limit: calls allowed in a window.
            was_heard: whether a call of ours was admitted in a window before.
            is_census: as in `called`.
        """
        within = ((counts[1] if len(counts) > 1 else limit + 1) - counts[0]) if counts else limit
        if limit < _CROWD_LIMIT and within > _CROWDED * limit:
            self._signs += 1
            # A client that takes all in the window's first second needs a window to hear us.
            needed = min(1, len(self._rolls)) + (0 if counts and was_heard else _SIGNS)
            if self._signs > needed:
                self._enter(limit, within if len(counts) > 1 else limit)
        elif is_census and (was_heard or not counts):
            self._count_heedless(0.0, limit * ROLL_LONG)
            if self.are_among_heedless:
                self._rolls.clear()  # no roll call confirms that number

    def _count_heedless(self, short: float, long: float) -> None:
        """Judge by what the last censuses heard in both intervals whether there are heedless clients."""
        censuses = self._censuses
        is_even = long <= _EVEN * short
        if is_even and self.are_among_heedless and not self._is_half_void:
            lacking = 2 * self._flow - (long - short)
            if lacking < _CHANCE * math.sqrt(4 * self._flow):
                self._is_half_void = True
                return
        self._is_half_void = False
        if is_even and (self.are_among_heedless or short + long >= _EVEN_CALLS):
            censuses.clear()
        else:
            censuses.append((short, long))
        short, long = (sum(part) for part in zip((0, 0), *censuses, strict=True))
        self.are_among_heedless = len(censuses) >= _CENSUSES_LEAST and long > _UNEVEN * short
        self._flow = (long - short) / 2 / len(censuses) if self.are_among_heedless else 0.0

    def _enter(self, limit: int, size: float) -> bool:
        if not self.crowd.enter(limit, size):
            return False
        self._rolls.clear()
        self._censuses.clear()
        self.are_among_heedless, self._is_half_void, self._flow = False, False, 0.0
        self._is_crowded = True
        self._room = _UNCROWDED * limit
        return True

    def _begin_again(self, number: float) -> None:
        self._is_crowded = False
        self._rolls.clear()
        self._rolls.add(max(1.0, number))
