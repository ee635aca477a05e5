"""Parse the bytes of a stream into the pieces a user iterates, and the error it ends with. Sans-I/O.

A reader is fed bytes as they arrive. If it sets `error`, the stream ends with that error after the pieces
returned so far. If it sets `done`, the gateway has marked the end of the stream, successful or not, but the
body
continues: read it to its end, because the gateway writes its usage record meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar, cast

import msgspec

from omnigate._calls.failures import excerpt, stream_error, transient_status
from omnigate._streams.decoders import EventDecoder, EventTooLongError, TextDecoder, is_end_mark
from omnigate._wire.structs import decode, decoder_for
from omnigate.exceptions import InvalidResponseError, ProviderError
from omnigate.models import StreamChunk, Usage

T = TypeVar("T")

_any_decoder: Final = msgspec.json.Decoder()


class StreamReader(Protocol[T]):
    """The interface of a reader."""

    @property
    def done(self) -> bool:
        """Whether the gateway has marked the end of the stream, or with `error` its failure."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the answer is complete: its finish reason or its usage has arrived."""
        ...

    @property
    def error(self) -> ProviderError | InvalidResponseError | None:
        """The error the stream ends with, or None."""
        ...

    @property
    def transient(self) -> int | None:
        """The HTTP status to judge a transient failure by; None if it is permanent."""
        ...

    @property
    def ends_with_body(self) -> bool:
        """Whether a stream may end with its body, without an end mark."""
        ...

    def feed(self, data: bytes) -> list[T]:
        """Return the pieces completed by `data`."""
        ...

    def finish(self) -> list[T]:
        """Return the pieces completed by the end of the body."""
        ...

    def flush(self) -> list[T]:
        """Return the pieces held back when the body broke off; may set `error`."""
        ...


class TextReader(Generic[T]):
    """Reads the text protocol: text, or one failure after a sentinel."""

    ends_with_body = True
    finished = False  # only the end of the body tells

    def __init__(
        self, piece: Callable[[str], T], *, request_id: str | None, secrets: tuple[str, ...]
    ) -> None:
        self.done = False
        self.error: ProviderError | None = None
        self.transient: int | None = None
        self._piece = piece
        self._request_id = request_id
        self._secrets = secrets
        self._decoder = TextDecoder()

    def feed(self, data: bytes) -> list[T]:
        """See `StreamReader`."""
        text = self._decoder.feed(data)
        if self._decoder.overflowed:
            self._fail()
        return [self._piece(text)] if text else []

    def finish(self) -> list[T]:
        """See `StreamReader`."""
        text = self._decoder.finish()
        self._fail()
        return [self._piece(text)] if text else []

    def flush(self) -> list[T]:
        """See `StreamReader`. Part of a provider's message says more than that the connection broke."""
        return self.finish()

    def _fail(self) -> None:
        message = self._decoder.message
        if message is not None:
            self.error = stream_error(message, request_id=self._request_id, secrets=self._secrets)
            self.transient = transient_status(message)


class _EventReader(Generic[T]):
    """Reads the event protocol up to `[DONE]`, or up to a failure, after which only `[DONE]` follows.

    An event with a non-null `error` is a failure, whatever else it contains.
    """

    ends_with_body = False

    def __init__(self, *, request_id: str | None, secrets: tuple[str, ...]) -> None:
        self.done: bool = False
        self.finished: bool = False
        self.error: ProviderError | InvalidResponseError | None = None
        self.transient: int | None = None
        self._request_id = request_id
        self._secrets = secrets
        self._decoder = EventDecoder()

    def feed(self, data: bytes) -> list[T]:
        try:
            return self._take(self._decoder.feed(data))
        except EventTooLongError as error:
            pieces = self._take(error.events)
            if not self.done and self.error is None:
                self._refuse(str(error))
            return pieces

    def finish(self) -> list[T]:
        return self._take(self._decoder.finish())

    def flush(self) -> list[T]:
        return []

    def _take(self, events: list[bytes]) -> list[T]:
        pieces: list[T] = []
        for event in events:
            if self.done or self.error is not None:
                break
            if is_end_mark(event):
                self.done = True
                self._end(pieces)
            elif event:
                self._event(event, pieces)
        return pieces

    def _event(self, event: bytes, pieces: list[T]) -> None:
        raise NotImplementedError

    def _end(self, pieces: list[T]) -> None:
        pass

    def _fail(self, failure: Any) -> None:
        message = cast("dict[str, Any]", failure).get("message") if isinstance(failure, dict) else failure
        text = message if isinstance(message, str) else ""
        self.done = True
        self.error = stream_error(text, request_id=self._request_id, secrets=self._secrets)
        self.transient = transient_status(text)

    def _refuse(self, problem: str) -> None:
        self.error = InvalidResponseError(problem, status_code=200, request_id=self._request_id)

    def _refuse_event(self, event: bytes) -> None:
        start = excerpt(event, self._secrets)
        self._refuse(f"an event of the stream is not a chunk of a completion; it starts with {start}")


class CompletionReader(_EventReader[dict[str, Any]]):
    """Reads completion chunks and returns them unchanged."""

    def _event(self, event: bytes, pieces: list[dict[str, Any]]) -> None:
        try:
            chunk = decode(_any_decoder, event)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            chunk = None
        if not isinstance(chunk, dict):
            self._refuse_event(event)
            return
        fields = cast("dict[str, Any]", chunk)
        if fields.get("error") is not None:
            self._fail(fields["error"])
        else:
            self.finished = self.finished or _is_finished(fields)
            pieces.append(fields)


def _is_finished(chunk: dict[str, Any]) -> bool:
    """Return whether a chunk says that the answer is complete."""
    choices = chunk.get("choices")
    return chunk.get("usage") is not None or (
        isinstance(choices, list)
        and any(
            isinstance(choice, dict) and cast("dict[str, Any]", choice).get("finish_reason") is not None
            for choice in cast("list[Any]", choices)
        )
    )


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None  # null if a provider does not report it
    completion_tokens: int | None = None
    total_tokens: int | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_chunk_decoder: Final = decoder_for(_Chunk)


class UsageReader(_EventReader[T]):
    """Reads the text, usage and finish reason of a chat from completion chunks."""

    def __init__(
        self,
        piece: Callable[[str], T],
        last: Callable[[UsageReader[T]], list[T]],
        *,
        request_id: str | None,
        secrets: tuple[str, ...],
    ) -> None:
        super().__init__(request_id=request_id, secrets=secrets)
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self._piece = piece
        self._last = last

    def _event(self, event: bytes, pieces: list[T]) -> None:
        try:
            chunk = decode(_chunk_decoder, event)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            self._refuse_event(event)
            return
        if chunk.error is not None:
            self._fail(chunk.error)
            return
        if chunk.usage is not None:
            self.finished = True
            self.usage = Usage(
                prompt_tokens=chunk.usage.prompt_tokens or 0,
                completion_tokens=chunk.usage.completion_tokens or 0,
                total_tokens=chunk.usage.total_tokens or 0,
            )
        for choice in chunk.choices or ():
            if choice.finish_reason:
                self.finished = True
                self.finish_reason = choice.finish_reason
            if choice.delta is not None and choice.delta.content:
                pieces.append(self._piece(choice.delta.content))

    def _end(self, pieces: list[T]) -> None:
        pieces.extend(self._last(self))


def chunk_maker(request_id: str | None) -> Callable[[str], StreamChunk]:
    """Return a function that wraps text in a `StreamChunk`."""
    template = StreamChunk(request_id=request_id)

    def make(text: str) -> StreamChunk:
        return msgspec.structs.replace(template, text=text)

    return make


def last_chunk(reader: UsageReader[StreamChunk], request_id: str | None) -> StreamChunk:
    """Return the final chunk of a stream, with usage and finish reason."""
    return StreamChunk(request_id=request_id, usage=reader.usage, finish_reason=reader.finish_reason)
