"""Streams for sync code: the async ones, driven through the portal."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from omnigate._streams.chat import ChatStream, CompletionStream
from omnigate._streams.core import Face
from omnigate._streams.states import REFUSALS, State
from omnigate._streams.stream import BaseStream
from omnigate._sync.portal import Portal
from omnigate._transport.direct import DirectReader
from omnigate._wire.head import Meta
from omnigate._wire.pickling import UnpicklableReader
from omnigate.exceptions import StreamClosedError
from omnigate.models import StreamChunk, Usage

T = TypeVar("T")

R = TypeVar("R")

S = TypeVar("S", bound=BaseStream[Any])

ChatPiece = TypeVar("ChatPiece", str, StreamChunk)


class BaseSyncStream(UnpicklableReader, Generic[T, S]):
    """An iterator of pieces and a context manager.

    Use it as `with client.chat_stream(…) as stream: for piece in stream: …`. Entering returns when the head
    of the response has arrived, before the first text. Without `with` the stream opens when its first piece
    is requested; call `close()` after leaving the loop early. A stream opens only once: entered again, it
    continues where it was, yields nothing if it has ended, and raises `StreamClosedError` if it was closed
    before its end. Only one thread at a time may read it.

    Reading raises `ProviderError` if the provider fails midway, `ConnectionError` if the body ends early, and
    while the stream opens the same errors as a call. A failure before the first piece is retried like a
    call's; a later one is not.
    """

    def __init__(self, portal: Portal, stream: S) -> None:
        self._portal = portal
        self._stream = stream
        stream._core.face = Face(type(self).__name__, "`with`", "`close()`")
        self._pieces: deque[T] = deque()
        self._was_closed = False
        self._direct: DirectReader | None = None
        self._turns: list[None] = [None]  # empty while a thread reads directly, or has been interrupted in it

    @property
    def meta(self) -> Meta:
        """Metadata from the head of the response; an AttributeError before the stream is open.

        If the call was retried, it is from the last attempt.
        """
        return self._stream.meta

    @property
    def is_closed(self) -> bool:
        """Whether the stream has ended or is closed, with no pieces left to read."""
        return self._was_closed or (not self._pieces and self._stream.is_closed)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if not self._pieces:
            if self._direct is not None and self._portal.is_usable_here():
                self._read(self._direct)
            if not self._pieces:
                self._call(self._fetch)
                if not self._pieces:
                    raise StopIteration
        piece = self._pieces[0]
        del self._pieces[0]  # not `popleft()`: Ctrl-C as that call returns would lose the piece
        return piece

    def __enter__(self) -> Self:
        try:
            self._portal.call(self._stream.__aenter__)
        except Exception:
            raise
        except BaseException:  # Ctrl-C just as the head arrived: `__exit__` will not run
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the stream; its connection returns to the pool if the body has ended, else it is closed.

        If the answer is complete (its finish reason, its usage or the end mark has arrived), the rest of the
        body is read first, for at most 1 s: the gateway writes its usage record only then. Raises no error
        and never waits without a limit: it may be called from a signal handler or a finalizer, and after the
        client was closed.
        """
        self._pieces.clear()
        self._direct = None
        if not self._stream.is_closed and not self._portal.settle(self._stream.aclose):
            self._stream._core.forget()
        self._was_closed = True

    def _call(self, func: Callable[[], Awaitable[R]]) -> R:
        """Read in the portal's loop."""
        if not self._turns:
            raise StreamClosedError(REFUSALS[State.READING])
        self._direct = None
        return self._portal.call(func)

    async def _fetch(self) -> None:
        """Fetch pieces in the portal's loop, where no interrupt can lose them."""
        core = self._stream._core
        self._pieces.extend(await core.fetch())
        self._direct = core.lend()

    def _read(self, direct: DirectReader) -> None:
        """Read in this thread, until there are pieces or the loop must go on; if interrupted, close."""
        core = self._stream._core
        try:
            self._turns.pop()  # one step, so that no handler or thread reads meanwhile
        except IndexError:
            raise StreamClosedError(REFUSALS[State.READING]) from None
        try:
            while not self._pieces:
                data = None if core.needs_loop else direct.read()
                if data is None:
                    break
                self._pieces.extend(core.accept(data))
            self._turns.append(None)
        except BaseException:
            self.close()
            raise
        if not self._pieces and not self._portal.is_usable_here():  # the client was closed meanwhile
            self.close()

    def __repr__(self) -> str:
        return repr(self._stream)


class SyncChatStream(BaseSyncStream[ChatPiece, ChatStream[ChatPiece]]):
    """The stream of a chat: `str` pieces, or `StreamChunk`s with `as_chunks=True`.

    Use it as `with client.chat_stream(…) as stream: for piece in stream: …`. Entering returns when the head
    of the response has arrived. Only one thread at a time may read it.
    """

    @property
    def usage(self) -> Usage | None:
        """Token usage, once the stream has ended; only with `include_usage=True`."""
        return self._stream.usage

    @property
    def finish_reason(self) -> str | None:
        """Why the model stopped, once the stream has ended; only with `include_usage=True`."""
        return self._stream.finish_reason

    def text(self) -> str:
        """Read to the end of the stream and return the remaining text.

        Raises:
            GatewayError: reading failed; the text before the failure is lost.

        """
        taken = "".join(piece if isinstance(piece, str) else piece.text for piece in self._pieces)
        self._pieces.clear()
        return taken + self._call(self._stream.text)


class SyncCompletionStream(BaseSyncStream[dict[str, Any], CompletionStream]):
    """The stream of a completion: OpenAI's chunks, as dicts, up to `[DONE]`.

    Use it as `with client.completions_stream(…) as stream: for chunk in stream: …`. Entering returns when the
    head of the response has arrived. Only one thread at a time may read it.
    """
