"""Base of the sync clients: an async client, and the portal its methods run in."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from omnigate._calls.base_client import BaseAsyncClient
from omnigate._sync.loop_thread import Backend
from omnigate._sync.portal import Portal
from omnigate._wire.pickling import UnpicklableClient


class BaseClient(UnpicklableClient):
    """A sync client: an async client and a portal to it."""

    def __init__(self, client: BaseAsyncClient, backend: Backend, *, name: str) -> None:
        """Wrap an async client; its errors name methods as those of `name`."""
        client._session.owner = name
        self._core = client
        self._portal = Portal(backend, client.aclose)

    @property
    def base_url(self) -> str:
        """The gateway's address, without a trailing slash."""
        return self._core.base_url

    @base_url.setter
    def base_url(self, value: str) -> None:
        self._core.base_url = value

    def close(self) -> None:
        """Close the client, its transport and its thread; idempotent.

        Calls in flight in other threads fail with `ClientClosedError`. Raises no error and waits at most a
        few seconds, so a signal handler, a finalizer or a callback may call it; in a callback of the client
        itself it does not wait.
        """
        self._portal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        inside = repr(self._core).removeprefix(type(self._core).__name__)
        if self._portal.is_closed and not inside.endswith(", closed)"):  # no call was ever made
            inside = f"{inside[:-1]}, closed)"
        return f"{type(self).__name__}{inside}"
