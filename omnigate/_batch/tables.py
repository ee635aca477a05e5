"""All outcomes of an async batch as a frame or in a file. What blocks runs in a thread."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

import anyio.to_thread

from omnigate._batch.outcomes import Outcome
from omnigate._batch.writing import ADD_TOGETHER, OutcomeFile, frame_of
from omnigate._data.frames import FrameKind, load_library
from omnigate._runtime.isolation import bounded
from omnigate._runtime.threads import in_thread

Drain: TypeAlias = Callable[[Callable[[Outcome], Awaitable[None] | None]], Awaitable[None]]
"""Runs a batch to its end and passes each outcome to a function."""


class Drained:
    """The outcomes that are to become a frame; kept if the batch raises an error, as they were paid for.

    Attributes:
        outcomes: those so far.
        has_raised: whether the batch has raised an error.
    """

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.has_raised = False

    @property
    def is_wanting(self) -> bool:
        """Whether the batch has to be run, since there is nothing left of a run that raised an error."""
        return not (self.has_raised and self.outcomes)

    def note(self, error: Exception) -> None:
        """Record the error that ended the batch, and say in it how to get at the outcomes before."""
        self.has_raised = True
        if self.outcomes:
            count = f"{len(self.outcomes):,}"
            error.add_note(f"to_frame() returns the {count} outcomes before when it is called again")


async def frame_of_all(drain: Drain, drained: Drained, kind: FrameKind) -> Any:
    """Run a batch and return its outcomes as a frame; after an error, those that were kept.

    Raises:
        GatewayError: the error that ended the batch; the outcomes before are kept.
        InvalidArgumentError: there is no such kind; nothing was sent.
        MissingExtraError: the library is not installed; nothing was sent.
    """
    await in_thread(load_library, kind)
    if drained.is_wanting:
        try:
            await drain(drained.outcomes.append)
        except Exception as error:
            drained.note(error)
            raise
    frame = await in_thread(frame_of, drained.outcomes, kind)
    drained.outcomes = []
    return frame


async def write_all(drain: Drain, path: str | os.PathLike[str], *, spreadsheet_safe: bool) -> None:
    """Run a batch and write its outcomes to a file; after an error, those before to another.

    Raises:
        GatewayError: the error that ended the batch.
        InvalidArgumentError: the path is not allowed; nothing was sent.
        MissingExtraError: a library for the format is not installed; nothing was sent.
        OSError: the file cannot be written.
    """
    make = partial(OutcomeFile, path, spreadsheet_safe=spreadsheet_safe)
    output = await in_thread(make, dispose=OutcomeFile.discard, lingers=True)
    some: list[Outcome] = []

    async def add(outcome: Outcome) -> None:
        some.append(outcome)
        if len(some) >= ADD_TOGETHER:
            full = some.copy()
            some.clear()
            await in_thread(output.add, full)

    try:
        try:
            await drain(add)
        except Exception as error:
            await in_thread(output.finish_after, error, some)
            raise
        await in_thread(output.finish, some)
    finally:
        # Not abandoned: it is soon over, as `finish` in another thread ends at the next row.
        await bounded(partial(anyio.to_thread.run_sync, output.discard))
