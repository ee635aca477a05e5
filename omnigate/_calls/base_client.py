"""The base of the async clients: a session, its address, and closing."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

import anyio
import anyio.lowlevel

from omnigate._calls.session import Session
from omnigate._wire.pickling import UnpicklableClient

_CLOSE_SECONDS: Final = 5.0


class BaseAsyncClient(UnpicklableClient):
    """Base class of the async clients: a session, its address, and a way to close it."""

    _session: Session

    @property
    def base_url(self) -> str:
        """The gateway's address, without a trailing slash."""
        return self._session.configuration.base_url

    @base_url.setter
    def base_url(self, value: str) -> None:
        self._session.configuration.base_url = value

    def _for_threads(self) -> Self:
        """Return the same client, for calls that begin in other threads than the event loop's."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._session = self._session.for_threads()
        return twin

    async def aclose(self) -> None:
        """Close the client and its transport; idempotent.

        Calls in flight, or waiting to be sent again, fail with `ClientClosedError`.
        """
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await self._session.aclose()
        await anyio.lowlevel.checkpoint()

    async def __aenter__(self) -> Self:
        await anyio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._session!r})"
