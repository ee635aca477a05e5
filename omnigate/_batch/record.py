"""A batch's access to its journal, which is optional."""

from __future__ import annotations

import os
from typing import Final

import anyio
import anyio.to_thread

from omnigate._batch.items import Item
from omnigate._batch.journal.journal import Journal, Replay
from omnigate._batch.journal.lines import digest_of
from omnigate._batch.outcomes import Outcome
from omnigate._batch.spending import Spending
from omnigate._runtime.isolation import bounded, isolated
from omnigate._runtime.threads import in_thread
from omnigate.exceptions import JournalError
from omnigate.models import ChatResponse

SYNC_SECONDS: Final = 5.0
"""How often outcomes are flushed to disk, in a thread; a power cut may lose those since the last flush."""


class Record:
    """A batch's journal; without a path, claims and writes do nothing.

    Args:
        path: of the journal, or None.
        lock: whether to lock its file.
        want_response: whether to load the responses of items that succeeded in an earlier run.

    Attributes:
        unwritten: why an outcome may not be in the journal or on the disk, or None.
    """

    def __init__(self, path: str | os.PathLike[str] | None, *, lock: bool, want_response: bool) -> None:
        self.unwritten: JournalError | None = None
        self._path = path
        self._lock = lock
        self._want_response = want_response
        self._journal: Journal | None = None
        self._numbers: Journal | None = None  # the same, also while it is being opened and once it is closed

    @property
    def spending(self) -> Spending | None:
        """Tokens and cost of all responses in the journal; None without one."""
        return None if self._numbers is None else self._numbers.spending

    @property
    def waiting(self) -> int:
        """How many successes of the journal have not been claimed in this run."""
        return 0 if self._numbers is None else self._numbers.waiting

    @property
    def read_percent(self) -> float | None:
        """How much of the journal has been read, while it is read; else None."""
        return None if self._numbers is None else self._numbers.read_percent

    async def open(self) -> None:
        """Open the journal, in a thread because it may be long.

        If cancelled, the journal is closed, and so unlocked, before this returns; only reading a very long
        journal may still be in progress then.

        Raises:
            JournalError: it cannot be opened, is in use, or is not a journal.
        """
        if self._path is None:
            return
        journal = self._numbers = Journal(self._path, lock=self._lock)
        journal.read_percent = 0.0
        await in_thread(journal.open, dispose=lambda _: journal.close(finished=False), lingers=True)
        self._journal = journal

    def identify(self, digest: str | None) -> None:
        """Say which files the items come from, if these are identified by the numbers of their rows.

        Args:
            digest: of the files, or None.

        Raises:
            JournalError: the journal has items of other files, or of these before they were changed.
        """
        if self._journal is not None and digest is not None:
            self._journal.identify(digest)

    async def run(self) -> None:
        """Flush new lines to disk every few seconds, until cancelled.

        Raises:
            JournalError: the flush failed, or the file was removed, replaced or changed meanwhile.
        """
        while True:
            await anyio.sleep(SYNC_SECONDS)
            if self._journal is None:
                return
            try:
                await in_thread(self._journal.sync)
            except JournalError as failure:
                self.unwritten = self.unwritten or failure
                raise

    def claim(self, item: Item) -> tuple[str, Replay | None]:
        """Return the digest of an item's request, and its success in an earlier run, if any.

        Raises:
            RepeatedIdError: an earlier item of this run has the id.
            JournalError: the id is that of a success with another request.
        """
        if self._journal is None:
            return "", None
        digest = "" if item.request is None else digest_of(item.request)
        wants = self._want_response and item.request is not None
        return digest, self._journal.claim(
            item.id, digest, item.index, request=item.request, want_response=wants
        )

    def write(self, outcome: Outcome, digest: str) -> None:
        """Write an item's outcome.

        Raises:
            JournalError: it cannot be written. Smaller outcomes of other calls may still fit on the disk.
        """
        if self._journal is None:
            return
        try:
            self._journal.write(outcome, digest)
        except JournalError as failure:
            self.unwritten = self.unwritten or failure
            raise

    @property
    def is_open(self) -> bool:
        """Whether there is a journal."""
        return self._journal is not None

    def response_of(self, id: str) -> ChatResponse | None:
        """Return the response of an item's success in the journal; None if there is none.

        Raises:
            JournalError: another program has changed the journal.
        """
        return None if self._journal is None else self._journal.response_of(id)

    async def end(self, *, is_finished: bool) -> None:
        """Close the journal once it is flushed to the disk, and compacted if the run has finished.

        Raises:
            NotCompactedError: it is on disk, but could not be compacted.
            JournalError: it may not be on disk.
        """
        if self._journal is not None:
            try:
                await isolated(anyio.to_thread.run_sync, self._close, is_finished)
            except JournalError:
                if self.unwritten is None:  # otherwise it has failed before, and that is reported
                    raise

    async def close_after(self, error: BaseException) -> None:
        """Flush and close the journal after an error or cancellation; wait for at most a second.

        A failure is added to the error as a note.
        """
        if self._journal is not None:
            try:
                await bounded(self._close_in_thread)
            except JournalError as failure:
                error.add_note(f"also failed at the end of the batch: {type(failure).__name__}: {failure}")

    def close(self) -> None:
        """Close the journal, if it is open."""
        self._close(False)

    async def _close_in_thread(self) -> None:
        await anyio.to_thread.run_sync(self._close, False, abandon_on_cancel=True)

    def _close(self, finished: bool) -> None:
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close(finished=finished)
