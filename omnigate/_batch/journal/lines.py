"""Codec of a journal's lines: outcome to line, line to outcome. Sans-I/O; no clock.

The rules:

1. One line is one outcome: one JSON object and a newline. No header line, so that a journal can be read
   from any line on, and two of them can be concatenated.
2. The layout is that of OpenAI's batch output, so tools for that can read it. `response.body` is a chat
   completion; the gateway's other fields, and the bookkeeping, are in an object `omnigate`.
3. A success round-trips: decoding gives an equal `ChatResponse`, whose `meta` has the request id. Of an
   error the type, the text and the plain attributes are kept. A failed item's line also has what is needed
   to run it again, prompts included: its row, or its request.
4. A partial line is recognisable: part of a JSON object is never a JSON object.
5. API keys stay out. Error texts are redacted once more; a model's output is kept verbatim.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, cast

import httpx
import msgspec

from omnigate import exceptions
from omnigate._batch.outcomes import Outcome
from omnigate._calls.structured import spent
from omnigate._data.cells import plain_row
from omnigate._wire.head import Meta
from omnigate._wire.redaction import redact
from omnigate._wire.values import encode_foreign
from omnigate.exceptions import APIError, GatewayError, ProviderError, RaceError
from omnigate.models import ChatRequest, ChatResponse, Usage

_BEGINNING = b'{"id":"omnigate-'

_BLOCK_BYTES = 64 * 1024

_REQUEST_ID = re.compile(rb"\r\nx-request-id:([^\r\n]*)", re.IGNORECASE)


class _Message(msgspec.Struct, gc=False):
    role: str
    content: str


class _Choice(msgspec.Struct, gc=False):
    index: int
    message: _Message
    finish_reason: str | None


class _Body(msgspec.Struct, gc=False):
    """OpenAI's chat completion."""

    id: str
    object: str
    created: int
    model: str
    choices: list[_Choice]
    usage: Usage


class _Response(msgspec.Struct, gc=False):
    status_code: int
    request_id: str | None
    body: _Body


class _Error(msgspec.Struct, gc=False):
    code: str
    message: str


class _Extra(msgspec.Struct, gc=False, kw_only=True):
    """The object `omnigate`; UNSET fields are not written."""

    digest: str | None
    index: int
    attempts: int
    elapsed: float
    provider: str | msgspec.UnsetType | None = msgspec.UNSET
    source: str | msgspec.UnsetType = msgspec.UNSET  # digest of the files, if the id is the number of a row
    # Without the messages, for a success; else with them, unless there is a row.
    request: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    # Successes only, but for the cost.
    cost_usd: float | msgspec.UnsetType = msgspec.UNSET
    cached: bool | msgspec.UnsetType = msgspec.UNSET
    fallback_used: bool | msgspec.UnsetType = msgspec.UNSET
    latency_ms: int | msgspec.UnsetType = msgspec.UNSET
    # Errors only; with `cost_usd`, if answers were billed.
    usage: Usage | msgspec.UnsetType = msgspec.UNSET
    item: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    request_id: str | msgspec.UnsetType | None = msgspec.UNSET
    status_code: int | msgspec.UnsetType | None = msgspec.UNSET
    provider_status: int | msgspec.UnsetType | None = msgspec.UNSET
    retry_after: float | msgspec.UnsetType | None = msgspec.UNSET


class Line(msgspec.Struct, gc=False):
    """A decoded line: exactly one of `response` and `error` is not None."""

    id: str
    custom_id: str
    response: _Response | None
    error: _Error | None
    omnigate: _Extra

    @property
    def succeeded(self) -> bool:
        """Whether the line is a success."""
        return self.response is not None

    @property
    def digest(self) -> str:
        """Digest of the request; "" if the item was not a valid one."""
        return self.omnigate.digest or ""

    @property
    def cost_usd(self) -> float:
        """Cost in USD: of a success, or of a failure's answers that did not fit."""
        return self.omnigate.cost_usd or 0.0

    @property
    def usage(self) -> Usage:
        """The tokens that the cost is of."""
        return self.response.body.usage if self.response is not None else self.omnigate.usage or Usage()

    def gateway_error(self) -> GatewayError:
        """Rebuild the error of a failure: its type, text and plain attributes."""
        assert self.error is not None
        kind, text, extra = _error_type(self.error.code), self.error.message, self.omnigate
        status_code = extra.status_code or None
        error: GatewayError
        if issubclass(kind, APIError):
            error = kind(text.removeprefix(f"[{status_code}] "), status_code=status_code)
            error.retry_after = extra.retry_after or None
        else:
            error = kind(text)
        if isinstance(error, ProviderError):
            error.provider, error.provider_status = extra.provider or None, extra.provider_status or None
        error.request_id, error.attempts = extra.request_id or None, extra.attempts
        return error

    def chat_response(self) -> ChatResponse:
        """Rebuild the response of a success; its `meta` has what the line recorded of it."""
        assert self.response is not None
        body, extra = self.response.body, self.omnigate
        result = ChatResponse(
            id=body.id,
            provider=cast("str", extra.provider),
            model=body.model,
            content=body.choices[0].message.content,
            usage=body.usage,
            cost_usd=self.cost_usd,
            finish_reason=body.choices[0].finish_reason,
            cached=cast("bool", extra.cached),
            fallback_used=cast("bool", extra.fallback_used),
            latency_ms=cast("int", extra.latency_ms),
        )
        request_id = self.response.request_id
        headers = [] if request_id is None else [(b"x-request-id", request_id.encode())]
        result._meta = Meta(
            self.response.status_code,
            httpx.Headers(headers),
            attempts=extra.attempts,
            elapsed=extra.elapsed,
        )
        return result


def _error_type(name: str) -> type[GatewayError]:
    """Return the type of errors with a name; the base class for one of another version."""
    kind: object = getattr(exceptions, name, None)
    if isinstance(kind, type) and issubclass(kind, GatewayError) and not issubclass(kind, RaceError):
        return kind
    return GatewayError


class _LineId(msgspec.Struct, gc=False):
    custom_id: str


_DEFAULTS = {
    field.name: None if field.default is msgspec.NODEFAULT else field.default
    for field in msgspec.structs.fields(ChatRequest)
    if field.name != "messages"
}

_SETTINGS = tuple(_DEFAULTS)

_encode = msgspec.json.Encoder(enc_hook=encode_foreign).encode

_encode_sorted = msgspec.json.Encoder(order="sorted", enc_hook=encode_foreign).encode

_decode = msgspec.json.Decoder(Line).decode

_decode_id = msgspec.json.Decoder(_LineId).decode

_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeError, RecursionError)


def digest_of(request: ChatRequest) -> str:
    """Return a digest that identifies a request: the BLAKE2b of its canonical JSON, as 32 hex digits.

    Canonical: fields sorted by name, defaults omitted. So neither the order of a dict's fields nor a new
    optional field in a later version changes the digest of a request.
    """
    try:
        text = _encode_sorted(request)
    except UnicodeEncodeError:  # a lone surrogate: cannot be sent, but needs a digest for its failed outcome
        text = repr(request).encode()
    return blake2b(text, digest_size=16).hexdigest()


def settings_of(request: ChatRequest) -> dict[str, Any]:
    """Return the fields of a request that are not its default, without the messages."""
    defaults = _DEFAULTS
    return {name: value for name in _SETTINGS if (value := getattr(request, name)) != defaults[name]}


class Settings:
    """Remembers the settings of the last request, which most requests of a batch share."""

    __slots__ = ("_request", "_settings")

    def __init__(self) -> None:
        self._request: ChatRequest | None = None  # without its messages
        self._settings: dict[str, Any] = {}

    def of(self, request: ChatRequest) -> dict[str, Any]:
        """Return what `settings_of` returns, not to be changed."""
        bare = msgspec.structs.replace(request, messages=[])
        if bare != self._request:
            self._request, self._settings = bare, settings_of(bare)
        return self._settings


def digest_with(request: ChatRequest, settings: Mapping[str, Any]) -> str:
    """Return the digest of the request that has these settings and the given one's messages."""
    return digest_of(
        request.model_copy(update={name: settings.get(name, _DEFAULTS[name]) for name in _SETTINGS})
    )


def encode_line(
    outcome: Outcome,
    digest: str,
    *,
    created: int,
    source: str | None = None,
    settings: Settings | None = None,
) -> bytes:
    """Encode an outcome as a line, newline included.

    Args:
        outcome: the outcome of an item.
        digest: digest of its request; "" if it was not a valid one.
        created: Unix time in seconds, for OpenAI's field of that name.
        source: digest of the files whose rows are identified by their numbers, or None.
        settings: what remembers those of the line before, or None.

    """
    response, request = outcome.response, outcome.request
    named = msgspec.UNSET if source is None else source
    if response is None:
        return _encode_failure(outcome, digest, named)
    meta: Meta | None = getattr(response, "_meta", None)
    choice = _Choice(0, _Message("assistant", response.content), response.finish_reason)
    line = Line(
        f"omnigate-{outcome.index}-{digest}",
        outcome.id,
        _Response(
            200 if meta is None else meta.status_code,
            None if meta is None else _request_id(meta),
            _Body(response.id, "chat.completion", created, response.model, [choice], response.usage),
        ),
        None,
        _Extra(
            digest=digest or None,
            index=outcome.index,
            attempts=outcome.attempts,
            elapsed=outcome.elapsed,
            provider=response.provider,
            source=named,
            request=msgspec.UNSET if request is None else (settings or Settings()).of(request),
            cost_usd=response.cost_usd,
            cached=response.cached,
            fallback_used=response.fallback_used,
            latency_ms=response.latency_ms,
        ),
    )
    return _encode(line) + b"\n"


def _encode_failure(outcome: Outcome, digest: str, source: str | msgspec.UnsetType) -> bytes:
    error, request = outcome.error, outcome.request
    assert error is not None
    extra = _Extra(
        digest=digest or None,
        index=outcome.index,
        attempts=outcome.attempts,
        elapsed=outcome.elapsed,
        source=source,
        request_id=error.request_id,
    )
    if error.billed:
        extra.usage, extra.cost_usd = spent(error.billed)
    if isinstance(error, APIError):
        extra.status_code = error.status_code
        extra.retry_after = error.retry_after  # msgspec writes non-finite numbers as null
    if isinstance(error, ProviderError):
        extra.provider = None if error.provider is None else _utf8(error.provider)
        extra.provider_status = error.provider_status
    if outcome.item is not None:
        extra.item = plain_row(outcome.item)
    if request is not None:
        extra.request = settings_of(request)
        if outcome.item is None:
            extra.request["messages"] = request.messages
    told = _Error(type(error).__name__, _utf8(redact(str(error))))
    line = Line(f"omnigate-{outcome.index}-{digest}", outcome.id, None, told, extra)
    try:
        return _encode(line) + b"\n"
    except UnicodeEncodeError:  # a lone surrogate in the prompt: it could not be sent again either
        extra.item = extra.request = msgspec.UNSET
    return _encode(line) + b"\n"


def decode_line(line: bytes) -> Line | None:
    """Decode a line, with or without its newline; None if it is not a line of a journal."""
    try:
        parsed = _decode(line)
    except _DECODE_ERRORS:
        return None
    response = parsed.response
    if (response is None) == (parsed.error is None):
        return None
    if response is not None:
        extra = parsed.omnigate
        known = (extra.cost_usd, extra.cached, extra.fallback_used, extra.latency_ms)
        if not response.body.choices or not isinstance(extra.provider, str) or msgspec.UNSET in known:
            return None
    return parsed


def decode_id(line: bytes) -> str | None:
    """Return the id of a line, or None. Cheaper than `decode_line`, with fewer checks."""
    try:
        return _decode_id(line).custom_id
    except _DECODE_ERRORS:
        return None


def is_torn(line: bytes, *, has_newline: bool) -> bool:
    """Return whether a last line that cannot be decoded was torn by a crash, rather than written by others.

    A torn line is empty; or the beginning of one of ours, either without its newline or with zeros in it,
    which some file systems leave where data never arrived and which JSON cannot contain.

    Args:
        line: the line, without its newline.
        has_newline: whether it ends with one.
    """
    arrived = line.rstrip(b"\0")
    if arrived[: len(_BEGINNING)] != _BEGINNING[: len(arrived)]:
        return False
    return not arrived or b"\0" in line or not (has_newline or is_json(line))


def whole_lines(raw: bytes) -> Iterator[bytes]:
    """Yield the whole lines in a damaged part of a journal, between zeros where data never arrived."""
    for piece in raw.split(b"\0"):
        if piece and decode_line(piece) is not None:
            yield piece


def is_json(line: bytes) -> bool:
    """Return whether a line is a JSON value."""
    try:
        msgspec.json.decode(line)
    except _DECODE_ERRORS:
        return False
    return True


def split_lines(read_at: Callable[[int, int], bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file with their offsets, without their newlines, in bounded memory.

    Bytes after the last newline count as a line, unless there are none. Memory is bounded by a block of
    64 KiB and a few times the longest line.

    Args:
        read_at: called with an offset and a number of bytes; returns at most that many, b"" at the end.

    """
    offset, rest, block_bytes = 0, b"", _BLOCK_BYTES
    while block := read_at(offset + len(rest), block_bytes):
        *complete, rest = (rest + block).split(b"\n")
        for line in complete:
            yield offset, line
            offset += len(line) + 1
        # Doubling keeps the copying of a line that spans many blocks linear.
        block_bytes = _BLOCK_BYTES if complete else 2 * block_bytes
    if rest:
        yield offset, rest


def _request_id(meta: Meta) -> str | None:
    """Return `meta.request_id`, nine times as fast if the head has not been parsed yet."""
    if isinstance(meta._headers, bytes):
        found: list[bytes] = _REQUEST_ID.findall(meta._headers)
        if not found:
            return None
        if len(found) == 1 and found[0].isascii():
            return found[0].strip(b" \t").decode()
    return meta.request_id


def _utf8(text: str) -> str:
    """Return `text` with lone surrogates, which UTF-8 cannot encode, escaped."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()
