"""The base of the public async streams.

A stream is a class, not an async generator: a generator dropped midway cleans up whenever the garbage
collector runs, in an arbitrary task.
"""

from __future__ import annotations

from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from omnigate._streams.core import StreamCore
from omnigate._wire.head import Meta
from omnigate._wire.pickling import UnpicklableReader

T = TypeVar("T")


class BaseStream(UnpicklableReader, Generic[T]):
    """An async iterator of pieces and an async context manager.

    Use it as `async with client.chat_stream(…) as stream: async for piece in stream: …`. Entering returns
    when the head of the response has arrived, before the first text. Without `async with` the stream opens
    when its first piece is requested; call `aclose()` after leaving the loop early. A stream opens only once:
    entered again, it continues where it was, yields nothing if it has ended, and raises `StreamClosedError`
    if it was closed before its end.

    Reading raises `ProviderError` if the provider fails midway, `ConnectionError` if the body ends early, and
    while the stream opens the same errors as a call. A failure before the first piece is retried like a
    call's; a later one is not.
    """

    def __init__(self, core: StreamCore[T]) -> None:
        self._core = core

    @property
    def meta(self) -> Meta:
        """Metadata from the head of the response; an AttributeError before the stream is open.

        If the call was retried, it is from the last attempt.
        """
        meta = self._core.meta
        if meta is None:
            raise AttributeError(
                f"the stream is not open yet and has no meta; enter it with {self._core.face.block}"
            )
        return meta

    @property
    def is_closed(self) -> bool:
        """Whether the stream has ended or is closed, with no pieces left to read."""
        return self._core.is_closed

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, T]:
        return self._core.next()

    async def __aenter__(self) -> Self:
        await self._core.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the stream; its connection returns to the pool if the body has ended, else it is closed.

        If the answer is complete (its finish reason, its usage or the end mark has arrived), the rest of the
        body is read first, for at most 1 s: the gateway writes its usage record only then. A task that is
        reading the stream gets a `StreamClosedError`; a request whose head has not arrived is abandoned.
        """
        await self._core.aclose()

    def __repr__(self) -> str:
        return repr(self._core)
