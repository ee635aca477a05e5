"""The way from a worker to a shared pacer."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

__all__ = ["PacerLink"]


@runtime_checkable
class PacerLink(Protocol):
    """Carries reports to a shared pacer, and its grants back; one at a time for each key.

    May be used from several event loops in turn, but not at the same time.
    """

    async def exchange(self, report: bytes) -> bytes:
        """Send a report and return the grant that answers it; connect first if necessary.

        May be cancelled at any time; the next exchange must then not see this one's answer.

        Raises:
            OSError: there is no answer (`TimeoutError` is one).

        """
        ...

    async def aclose(self) -> None:
        """Close the connection; the next exchange opens another."""
        ...
