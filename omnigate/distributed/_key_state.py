"""All that a shared pacer knows of one key: plain numbers, so that it can be kept anywhere."""

from __future__ import annotations

import math
import random

import msgspec

from omnigate.distributed._models import ModelState

__all__ = ["KeyState", "Worker"]


class Worker(msgspec.Struct, array_like=True, gc=False):
    """What is known of a worker.

    Attributes:
        seen_at: when it last reported.
        due_at: when it will have reported again, if it lives.
        lease: the number of its last lease.
        sends: how many sends that one was for.
        window: the window in which `granted` counts.
        granted: how many sends of the window it has used or may use.
        want: how many more it could use.
        is_hungry: whether a call of it waits.
    """

    seen_at: float
    due_at: float
    lease: int = 0
    sends: int = 0
    window: int = 0
    granted: int = 0
    want: int = 0
    is_hungry: bool = False


class KeyState(msgspec.Struct, array_like=True):
    """All that is known of one key.

    Attributes:
        epoch: the number of this pacer.
        begun_at: when it began.
        now: when it was last told something.
        recovering_until: until then it listens only, as it follows on another pacer.
        limit: calls allowed in a window; 0 if unknown.
        limit_at: when the call was sent that told it.
        is_free: whether there is no limit.
        probe: the worker whose call is to tell the limit.
        closed_until: until then the gateway admits nothing.
        windows: what is known of the windows' ends; empty at first.
        number: of the present window.
        used: how many sends of the present window are used or leased.
        used_until: while the windows are unknown: when the one that `used` counts in ends, if known.
        counted: the highest count that was told of it.
        others: how many of those counted must be others'.
        past: the same three of the windows before, the latest first.
        workers: by name.
        level: no hungry worker gets more of the window than this, as last planned ...
        reserved: ... with so many sends kept for others than the one that asks ...
        hungry: ... when there were so many hungry workers ...
        planned_at: ... at that time ...
        planned: ... in that window.
        models: what is known of each model, those called lately at the end.
    """

    epoch: int
    begun_at: float
    now: float
    recovering_until: float = -math.inf
    limit: int = 0
    limit_at: float = -math.inf
    is_free: bool = False
    probe: str = ""
    closed_until: float = -math.inf
    windows: list[float] = msgspec.field(default_factory=list[float])
    number: int = 0
    used: int = 0
    used_until: float = -math.inf
    counted: int = 0
    others: int = 0
    past: list[tuple[int, int, int]] = msgspec.field(default_factory=list[tuple[int, int, int]])
    workers: dict[str, Worker] = msgspec.field(default_factory=dict[str, Worker])
    level: float = 0.0
    reserved: int = 0
    hungry: int = 0
    planned_at: float = -math.inf
    planned: int = -1
    models: dict[str, ModelState] = msgspec.field(default_factory=dict[str, ModelState])

    @classmethod
    def new(cls, now: float) -> KeyState:
        """Return the state of a pacer that begins now."""
        return cls(random.getrandbits(52) + 1, now, now)
