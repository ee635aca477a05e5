"""The streams that a client returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from omnigate._calls.attempts import Call
from omnigate._calls.session import Session
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
    """The stream of a chat: `str` pieces, or `StreamChunk`s where `as_chunks=True` was asked for.

    Use it as `async with client.chat_stream(…) as stream: async for piece in stream: …`. Entering returns
    when the head of the response has come. Only one task at a time may read it.
    """

    def __init__(
        self, session: Session, call: Call, piece_type: type[ChatPiece], *, include_usage: bool
    ) -> None:
        super().__init__(session, call)
        self._piece_type: type[Any] = piece_type
        self._include_usage = include_usage

    @property
    def usage(self) -> Usage | None:
        """The tokens, once the stream has ended, if it was asked for with `include_usage=True`."""
        return getattr(self._reader, "usage", None)

    @property
    def finish_reason(self) -> str | None:
        """Why the model stopped, once the stream has ended, with `include_usage=True`."""
        return getattr(self._reader, "finish_reason", None)

    async def text(self) -> str:
        """Return the rest of the text, once the stream has ended.

        Raises:
            GatewayError: as reading does; the text before the failure is lost then.

        """
        parts: list[str] = []
        while await self.fill():
            parts += [piece if isinstance(piece, str) else piece.text for piece in self.take()]
        return "".join(parts)

    def _new_reader(self, request_id: str | None) -> StreamReader[ChatPiece]:
        make: Callable[[str], Any] = str if self._piece_type is str else chunk_maker(request_id)
        secrets = self._call.secrets
        if not self._include_usage:
            return TextReader(make, request_id=request_id, secrets=secrets)

        def last(reader: UsageReader[Any]) -> list[Any]:
            return [] if self._piece_type is str else [last_chunk(reader, request_id)]

        return UsageReader(make, last, request_id=request_id, secrets=secrets)


class CompletionStream(BaseStream[dict[str, Any]]):
    """The stream of a completion: OpenAI's chunks, as dicts, up to `[DONE]`.

    Use it as `async with client.completions_stream(…) as stream: async for chunk in stream: …`. Entering
    returns when the head of the response has come. Only one task at a time may read it.
    """

    def _new_reader(self, request_id: str | None) -> StreamReader[dict[str, Any]]:
        return CompletionReader(request_id=request_id, secrets=self._call.secrets)
