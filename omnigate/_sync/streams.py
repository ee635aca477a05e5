"""Streams for sync code: the async ones, driven through the portal."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from omnigate._streams.chat import ChatStream, CompletionStream
from omnigate._streams.core import Face
from omnigate._streams.stream import BaseStream
from omnigate._sync.portal import Portal
from omnigate._wire.head import Meta
from omnigate.models import StreamChunk, Usage

T = TypeVar("T")

S = TypeVar("S", bound=BaseStream[Any])

ChatPiece = TypeVar("ChatPiece", str, StreamChunk)


class BaseSyncStream(Generic[T, S]):
    """What all sync streams are: an iterator of pieces and a context manager.

    Use it as `with client.chat_stream(…) as stream: for piece in stream: …`. Entering returns when the head
    of the response has come, before the first text. Without `with` the first piece waits for the head, too,
    and a loop that is left early should be followed by `close()`. A stream opens once: entered again, it goes
    on where it was, yields nothing if it has ended, and raises `StreamClosedError` if it was closed before
    its end. Only one thread at a time may read it.

    Reading raises `ProviderError` when the provider fails on the way, `ConnectionError` when the body ends
    too early, and what a call raises while the stream opens. A failure before the first piece is retried
    like that of a call; after it nothing is.
    """

    def __init__(self, portal: Portal, stream: S) -> None:
        self._portal = portal
        self._stream = stream
        stream._core.face = Face(type(self).__name__, "`with`", "`close()`")
        self._pieces: deque[T] = deque()

    @property
    def meta(self) -> Meta:
        """What the head of the response said; there is none before the stream is open.

        If the first attempt failed inside the stream and was retried, it is the last attempt's.
        """
        return self._stream.meta

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if not self._pieces:
            self._portal.call(self._fetch)
            if not self._pieces:
                raise StopIteration
        piece = self._pieces[0]
        del self._pieces[0]  # not `popleft()`: an interrupt may come as a call returns, and would lose it
        return piece

    def __enter__(self) -> Self:
        try:
            self._portal.call(self._stream.__aenter__)
        except Exception:
            raise
        except BaseException:  # Ctrl-C just when the head had come: there will be no `__exit__`
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the stream; its connection is given back if its body has ended, else closed.

        If the gateway has said that it is done, the little that it still sends is read first (at most 1 s).
        """
        self._pieces.clear()
        if not self._stream.is_closed:
            self._portal.call(self._stream.aclose)

    async def _fetch(self) -> None:
        """Fetch the pieces that have arrived, in the portal's loop, where no interrupt can lose them."""
        self._pieces.extend(await self._stream._core.fetch())

    def __repr__(self) -> str:
        return repr(self._stream)


class SyncChatStream(BaseSyncStream[ChatPiece, ChatStream[ChatPiece]]):
    """The stream of a chat: `str` pieces, or `StreamChunk`s where `as_chunks=True` was asked for.

    Use it as `with client.chat_stream(…) as stream: for piece in stream: …`. Entering returns when the head
    of the response has come. Only one thread at a time may read it.
    """

    @property
    def usage(self) -> Usage | None:
        """The tokens, once the stream has ended, if it was asked for with `include_usage=True`."""
        return self._stream.usage

    @property
    def finish_reason(self) -> str | None:
        """Why the model stopped, once the stream has ended, with `include_usage=True`."""
        return self._stream.finish_reason

    def text(self) -> str:
        """Return the rest of the text, once the stream has ended.

        Raises:
            GatewayError: as reading does; the text before the failure is lost then.

        """
        taken = "".join(piece if isinstance(piece, str) else piece.text for piece in self._pieces)
        self._pieces.clear()
        return taken + self._portal.call(self._stream.text)


class SyncCompletionStream(BaseSyncStream[dict[str, Any], CompletionStream]):
    """The stream of a completion: OpenAI's chunks, as dicts, up to `[DONE]`.

    Use it as `with client.completions_stream(…) as stream: for chunk in stream: …`. Entering returns when the
    head of the response has come. Only one thread at a time may read it.
    """
