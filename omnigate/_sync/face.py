"""How a sync client is made of an async one: its methods are those of the async client, run by the portal."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial, wraps
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from omnigate._calls.base_client import BaseAsyncClient
from omnigate._streams.chat import CompletionStream
from omnigate._sync.portal import Portal
from omnigate._sync.streams import SyncCompletionStream, T
from omnigate.async_client import AsyncClient

P = ParamSpec("P")

C = TypeVar("C", bound=BaseAsyncClient, covariant=True)


def method(
    method: Callable[Concatenate[C, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[BaseClient[C], P], T]:
    """Return the sync face of an async client's method: the same signature, the same words."""

    @wraps(method)
    def call(self: BaseClient[C], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._portal.call(partial(method, self._async, *args, **kwargs))

    return call


def stream_method(
    method: Callable[Concatenate[AsyncClient, P], CompletionStream],
) -> Callable[Concatenate[BaseClient[AsyncClient], P], SyncCompletionStream]:
    """Return the sync face of an async client's method that returns a stream."""

    @wraps(method)
    def call(self: BaseClient[AsyncClient], /, *args: P.args, **kwargs: P.kwargs) -> SyncCompletionStream:
        return SyncCompletionStream(self._portal, method(self._async, *args, **kwargs))

    return call


class BaseClient(Generic[C]):
    """What both sync clients are: an async client and a portal to it."""

    _async: C
    _portal: Portal

    @property
    def base_url(self) -> str:
        """The gateway's address, without a trailing slash."""
        return self._async.base_url

    @base_url.setter
    def base_url(self, value: str) -> None:
        self._async.base_url = value

    def close(self) -> None:
        """Close the client, its transport and its thread; a second time does nothing.

        What is in flight in other threads fails with `ClientClosedError`.
        """
        self._portal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        inside = repr(self._async).removeprefix(type(self._async).__name__)
        if self._portal.is_closed and not inside.endswith(", closed)"):  # nothing had ever been called
            inside = f"{inside[:-1]}, closed)"
        return f"{type(self).__name__}{inside}"
