"""The public async streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from omnigate import _homes
from omnigate._calls.attempts import Call
from omnigate._calls.session import Session
from omnigate._streams.core import StreamCore
from omnigate._streams.readers import (
    CompletionReader,
    StreamReader,
    TextReader,
    UsageReader,
    chunk_maker,
    last_chunk,
)
from omnigate._streams.stream import BaseStream
from omnigate.models import StreamChunk, Usage

ChatPiece = TypeVar("ChatPiece", str, StreamChunk)


class ChatStream(BaseStream[ChatPiece]):
    """The stream of a chat: `str` pieces, or `StreamChunk`s with `as_chunks=True`.

    Use it as `async with client.chat_stream(…) as stream: async for piece in stream: …`. Entering returns
    when the head of the response has arrived. Only one task at a time may read it.
    """

    def __init__(
        self, session: Session, call: Call, piece_type: type[ChatPiece], *, include_usage: bool
    ) -> None:
        def new_reader(request_id: str | None) -> StreamReader[Any]:
            return _chat_reader(piece_type, request_id, call.secrets, include_usage=include_usage)

        super().__init__(StreamCore(type(self).__name__, session, call, new_reader))

    @property
    def usage(self) -> Usage | None:
        """Token usage, once the stream has ended; only with `include_usage=True`."""
        return getattr(self._core.reader, "usage", None)

    @property
    def finish_reason(self) -> str | None:
        """Why the model stopped, once the stream has ended; only with `include_usage=True`."""
        return getattr(self._core.reader, "finish_reason", None)

    async def text(self) -> str:
        """Read to the end of the stream and return the remaining text.

        Raises:
            GatewayError: reading failed; the text before the failure is lost.

        """
        core = self._core
        parts: list[str] = []
        while await core.fill():
            parts += [piece if isinstance(piece, str) else piece.text for piece in core.take()]
        return "".join(parts)


class CompletionStream(BaseStream[dict[str, Any]]):
    """The stream of a completion: OpenAI's chunks, as dicts, up to `[DONE]`.

    Use it as `async with client.completions_stream(…) as stream: async for chunk in stream: …`. Entering
    returns when the head of the response has arrived. Only one task at a time may read it.
    """

    def __init__(self, session: Session, call: Call) -> None:
        def new_reader(request_id: str | None) -> StreamReader[dict[str, Any]]:
            return CompletionReader(request_id=request_id, secrets=call.secrets)

        super().__init__(StreamCore(type(self).__name__, session, call, new_reader))


def _chat_reader(
    piece_type: type[Any], request_id: str | None, secrets: tuple[str, ...], *, include_usage: bool
) -> StreamReader[Any]:
    make: Callable[[str], Any] = str if piece_type is str else chunk_maker(request_id)
    if not include_usage:
        return TextReader(make, request_id=request_id, secrets=secrets)

    def last(reader: UsageReader[Any]) -> list[Any]:
        return [] if piece_type is str else [last_chunk(reader, request_id)]

    return UsageReader(make, last, request_id=request_id, secrets=secrets)


_homes.settle(__name__)
