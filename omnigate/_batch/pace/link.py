"""The way from a worker to a shared pacer, and the task that keeps up the talk.

All batches in an event loop with the same key are one worker. Each of them runs the task, in its own task
group; only one of these tasks reports at a time, over the link of its batch, and the next one takes over when
that batch ends. With the last one the worker takes its leave: it gives back what it has not used, in one
second at most.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Protocol, runtime_checkable

import anyio

from omnigate._batch.pace.lease import LeasePacer
from omnigate._batch.pace.messages import decode_grant, encode
from omnigate._batch.pace.shared_concurrency import SharedConcurrency

__all__ = ["Correspondence", "PacerLink"]

logger: Final = logging.getLogger("omnigate")

_ANSWER_SECONDS: Final = 2.0
"""An answer that takes longer is not waited for."""

_LEAVE_SECONDS: Final = 1.0


@runtime_checkable
class PacerLink(Protocol):
    """Carries reports to a shared pacer, and its grants back.

    Passed to `client.batch(…, pacer=link)`. One object may serve several batches of one event loop at the
    same time.
    """

    async def exchange(self, report: bytes) -> bytes:
        """Send a report and return the grant that answers it; connect first if necessary.

        May be cancelled at any time; a later exchange must then not return the answer of this one.

        Raises:
            OSError: there is no answer (`TimeoutError` is one).

        """
        ...

    async def aclose(self) -> None:
        """Close what is open; the next exchange opens it again. Called when a batch ends."""
        ...


class Correspondence:
    """Reports and grants of one worker.

    Args:
        pacer: of the worker.
        clock: the event loop's.
        wake: called when sends may go that could not before.
        models: returns the shared limits of models, and for each how many calls are in flight and whether
            there would be more if it were higher.
    """

    def __init__(
        self,
        pacer: LeasePacer,
        clock: Callable[[], float],
        wake: Callable[[], object],
        models: Callable[[], list[tuple[SharedConcurrency, int, bool]]],
    ) -> None:
        self._pacer = pacer
        self._clock = clock
        self._wake = wake
        self._models = models
        self._members = 0
        self._turn = anyio.Lock()
        self._is_due = anyio.Event()
        self._was_answered = True

    @property
    def is_idle(self) -> bool:
        """Whether no batch takes part."""
        return not self._members

    def join(self) -> None:
        """Take part; `run` must follow."""
        self._members += 1
        if self._members == 1:
            self._pacer.link(self._clock())

    async def run(self, link: PacerLink) -> None:
        """Report whenever it is due, in turn with other batches, until cancelled.

        Args:
            link: the batch's.
        """
        try:
            async with self._turn:
                await self._correspond(link)
        finally:
            self._members -= 1
            if not self._members:
                await self._leave(link)
            else:
                await _close(link)

    async def _correspond(self, link: PacerLink) -> None:
        pacer = self._pacer
        pacer.wake = self._hurry
        while True:
            self._is_due = anyio.Event()
            due = pacer.due_at
            if due > self._clock():
                with anyio.CancelScope(deadline=due):
                    await self._is_due.wait()
            else:
                await self._exchange(link)

    def _hurry(self) -> None:
        self._is_due.set()

    async def _exchange(self, link: PacerLink) -> None:
        pacer = self._pacer
        now = self._clock()
        models = {
            concurrency.model: (concurrency, concurrency.report(now, in_flight, is_full=is_full))
            for concurrency, in_flight, is_full in self._models()
        }
        report = encode(pacer.report(now, models=[told for _, told in models.values()]))
        is_over = False
        try:
            with anyio.fail_after(_ANSWER_SECONDS):
                grant = decode_grant(await link.exchange(report))
            is_over = True
        except Exception as error:  # noqa: BLE001 - whatever a link raises, the batch can do without it
            self._log(error)
            return
        finally:
            if not is_over:  # so that what it told is told again
                pacer.failed(self._clock())
                if pacer.is_silent(self._clock()):
                    self._forget_parts()
        pacer.granted(grant, self._clock())
        for model in grant.models:
            if model.model in models:
                models[model.model][0].granted(model.limit)
        if not self._was_answered:
            self._was_answered = True
            logger.info("batch: the shared pacer answers again")
        self._wake()

    def _forget_parts(self) -> None:
        """Let each model have the limit that this worker has found on its own."""
        for concurrency, _, _ in self._models():
            concurrency.granted(0)

    def _log(self, error: Exception) -> None:
        if self._was_answered:
            self._was_answered = False
            logger.warning(
                "batch: no answer from the shared pacer (%s: %s); until it comes, the worker paces itself",
                type(error).__name__,
                error,
            )

    async def _leave(self, link: PacerLink) -> None:
        """Give back what is unused, if that takes no time, and close the link."""
        pacer = self._pacer
        report = encode(pacer.report(self._clock(), is_leaving=True)) if pacer.is_answered else None
        pacer.unlink()
        self._forget_parts()
        self._wake()
        if report is not None:
            with anyio.move_on_after(_LEAVE_SECONDS, shield=True):
                try:
                    decode_grant(await link.exchange(report))
                except Exception as error:  # noqa: BLE001 - as above
                    self._log(error)
        await _close(link)


async def _close(link: PacerLink) -> None:
    with anyio.move_on_after(_LEAVE_SECONDS, shield=True):
        try:
            await link.aclose()
        except Exception as error:  # noqa: BLE001 - as above
            logger.warning("batch: closing the link to the shared pacer failed: %r", error)
