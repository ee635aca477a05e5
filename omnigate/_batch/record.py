"""A batch's access to its journal, which is optional."""

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
    """A batch's journal; without a path, claims and writes do nothing.

    Args:
        path: of the journal, or None.
        want_response: whether to load the responses of items that succeeded in an earlier run.

    Attributes:
        unwritten: why an outcome could not be written to the journal, or None.
    """

    def __init__(self, path: str | os.PathLike[str] | None, *, want_response: bool) -> None:
        self.unwritten: JournalError | None = None
        self._path = path
        self._want_response = want_response
        self._journal: Journal | None = None

    async def open(self) -> None:
        """Open the journal, in a thread because it may be long.

        If cancelled, the journal is closed before this returns, which frees its lock; only a very long
        journal may still be being read by then.

        Raises:
            JournalError: it cannot be opened, is in use, or is not a journal.
        """
        if self._path is None:
            return
        journal = Journal(self._path)
        await in_thread(journal.open, dispose=lambda _: journal.close(finished=False), lingers=True)
        self._journal = journal

    def claim(self, item: Item) -> tuple[str, Replay | None]:
        """Return the digest of an item's request, and its success in an earlier run, if any.

        Raises:
            JournalError: the id is taken by another item or request.
        """
        if self._journal is None:
            return "", None
        digest = "" if item.request is None else digest_of(item.request)
        wants = self._want_response and item.request is not None
        return digest, self._journal.claim(item.id, digest, item.index, want_response=wants)

    def write(self, outcome: Outcome, digest: str) -> None:
        """Write an item's outcome.

        Raises:
            JournalError: it cannot be written. The journal is closed, and takes no more outcomes.
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
        """Close the journal of a finished run, once it is flushed to disk.

        Raises:
            NotCompactedError: it is on disk, but could not be compacted.
            JournalError: it may not be on disk.
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
