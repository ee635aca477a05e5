"""What a batch does with its journal, if it has one."""

from __future__ import annotations

import os

import anyio.to_thread

from omnigate._batch.items import Item
from omnigate._batch.journal.journal import Journal, Replay
from omnigate._batch.journal.lines import digest_of
from omnigate._batch.outcomes import Outcome
from omnigate._runtime.isolation import isolated
from omnigate._runtime.threads import in_thread
from omnigate.exceptions import JournalError


class Record:
    """The journal of a batch, or none: then nothing is claimed and nothing is written.

    Args:
        path: of the journal, or None.
        want_response: whether a success of an earlier run is to bring its response.

    Attributes:
        unwritten: why an outcome is not in the journal, or None.
    """

    def __init__(self, path: str | os.PathLike[str] | None, *, want_response: bool) -> None:
        self.unwritten: JournalError | None = None
        self._path = path
        self._want_response = want_response
        self._journal: Journal | None = None

    async def open(self) -> None:
        """Open the journal in a thread: there may be much to read.

        When that is cancelled, it is closed again before this returns, so that its lock is free; only to read
        a very long one takes longer.

        Raises:
            JournalError: it cannot be opened, is in use, or is not a journal.
        """
        if self._path is None:
            return
        journal = Journal(self._path)
        await in_thread(journal.open, dispose=lambda _: journal.close(finished=False), lingers=True)
        self._journal = journal

    def claim(self, item: Item) -> tuple[str, Replay | None]:
        """Return the digest of an item's request, and its success in an earlier run, if there is one.

        Raises:
            JournalError: another item has its id.
        """
        if self._journal is None:
            return "", None
        digest = "" if item.request is None else digest_of(item.request)
        wants = self._want_response and item.request is not None
        return digest, self._journal.claim(item.id, digest, item.index, want_response=wants)

    def write(self, outcome: Outcome, digest: str) -> None:
        """Write how an item ended.

        Raises:
            JournalError: it cannot be written; nothing is written from then on.
        """
        if self._journal is None:
            return
        try:
            self._journal.write(outcome, digest)
        except JournalError as failure:
            self.unwritten = failure
            self.close()
            raise

    async def finish(self) -> None:
        """Close the journal of a run that has finished, once it is on the disk.

        Raises:
            NotCompactedError: it could not be compacted, but is on the disk.
            JournalError: it may not be on the disk.
        """
        if self._journal is not None:
            await isolated(anyio.to_thread.run_sync, self._close, True)

    def close(self) -> None:
        """Close the journal, if it is open."""
        self._close(False)

    def _close(self, finished: bool) -> None:
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close(finished=finished)
