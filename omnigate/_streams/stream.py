"""The face of a stream: what a program iterates while a response arrives.

A stream is a class, not an async generator, because a generator that is dropped in the middle cleans up
when the garbage collector pleases, in whatever task that is.
"""

from __future__ import annotations

from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from omnigate._streams.core import StreamCore
from omnigate._wire.head import Meta

T = TypeVar("T")


class BaseStream(Generic[T]):
    """What all streams are: an async iterator of pieces and an async context manager.

    Use it as `async with client.chat_stream(…) as stream: async for piece in stream: …`. Entering returns
    when the head of the response has come, before the first text. Without `async with` the stream opens with
    its first piece, and a loop that is left early should be followed by `aclose()`. A stream opens
    once: entered again, it goes on where it was, yields nothing if it has ended, and raises
    `StreamClosedError` if it was closed before its end.

    Reading raises `ProviderError` when the provider fails on the way, `ConnectionError` when the body ends
    too early, and what a call raises while the stream opens. A failure before the first piece is retried
    like that of a call; after it nothing is.
    """

    def __init__(self, core: StreamCore[T]) -> None:
        self._core = core

    @property
    def meta(self) -> Meta:
        """What the head of the response said; there is none before the stream is open.

        If the first attempt failed inside the stream and was retried, it is the last attempt's.
        """
        meta = self._core.meta
        if meta is None:
            raise AttributeError(
                f"the stream is not open yet and has no meta; enter it with {self._core.face.block}"
            )
        return meta

    @property
    def is_closed(self) -> bool:
        """Whether the stream holds nothing and cannot be read any further."""
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
        """Close the stream; its connection is given back if its body has ended, else closed.

        If the gateway has said that it is done, the little that it still sends is read first (at most 1 s).
        A task that is reading the stream gets a `StreamClosedError`; if it is waiting for the head of the
        response, the request is given up.
        """
        await self._core.aclose()

    def __repr__(self) -> str:
        return repr(self._core)
