"""The local gateway's two kinds of streamed response, which stop when the client disconnects."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import anyio
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from omnigate.testing._gateway.model import ModelAnswer, ProviderError, cut_pieces
from omnigate.testing._gateway.state import State

Record = Callable[[bool], None]


class GatewayStream:
    """A streamed response, as an ASGI application.

    A client that disconnects before the end stops the provider, and nothing is recorded.
    """

    def __init__(
        self,
        state: State,
        request: Request,
        result: ModelAnswer | ProviderError,
        record: Record,
        headers: dict[str, str],
    ) -> None:
        self._headers = headers
        self._state = state
        self._request = request
        self._result = result
        self._record = record
        self._send: Send

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        self._send = send
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self._headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send_all()

    async def _send_all(self) -> None:
        raise NotImplementedError

    def _pieces(self) -> tuple[list[bytes], str | None]:
        """Return the pieces of text, and the message of the failure after them, if any."""
        if isinstance(self._result, ProviderError):
            return [], self._result.reason
        if self._result.failure is None:
            return list(self._result.pieces), None
        failure = self._result.failure
        return cut_pieces(self._result.pieces, failure.after_bytes), failure.message

    async def _chunk(self, data: bytes) -> bool:
        """Send a chunk, and return whether the client is still connected."""
        if await self._request.is_disconnected():
            return False
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        if self._state.chunk_delay_seconds:
            await anyio.sleep(self._state.chunk_delay_seconds)
        return True

    async def _write_usage(self, failed: bool) -> None:
        """Write the usage record, unless the client has disconnected by then."""
        if self._state.usage_delay_seconds:
            await anyio.sleep(self._state.usage_delay_seconds)
        if not await self._request.is_disconnected():
            self._record(failed)

    async def _end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


class TextStream(GatewayStream):
    """The stream of `/v1/chat`: bare text, a failure as its last chunk."""

    async def _send_all(self) -> None:
        pieces, failure = self._pieces()
        for piece in pieces:
            if not await self._chunk(piece):
                return
        if failure is not None and not await self._chunk(f"\n[error] {failure}".encode()):
            return
        await self._write_usage(failed=failure is not None)
        await self._end()


class EventStream(GatewayStream):
    """The stream of `/v1/chat/completions`: OpenAI's chunks as server-sent events."""

    def __init__(
        self,
        state: State,
        request: Request,
        result: ModelAnswer | ProviderError,
        record: Record,
        headers: dict[str, str],
        *,
        model: str,
        include_usage: bool,
    ) -> None:
        super().__init__(state, request, result, record, headers)
        self._model = model
        self._include_usage = include_usage
        self._created = int(time.time())

    async def _send_all(self) -> None:
        pieces, failure = self._pieces()
        events = [self._event([_choice({"role": "assistant"})])]
        events += [self._event([_choice({"content": piece.decode("utf-8", "replace")})]) for piece in pieces]
        if failure is not None:
            events.append(_data({"error": {"message": failure, "type": "provider_error"}}))
        elif isinstance(self._result, ModelAnswer):
            events.append(self._event([_choice({}, self._result.finish_reason)]))
            if self._include_usage:
                events.append(self._event([], usage=self._result.usage()))
        events.append(b"data: [DONE]\n\n")
        for event in events:
            if not await self._chunk(event):
                return
        await self._write_usage(failed=failure is not None)
        await self._end()

    def _event(self, choices: list[Any], **fields: Any) -> bytes:
        return _data(
            {
                "id": self._headers["x-request-id"],
                "object": "chat.completion.chunk",
                "created": self._created,
                "model": self._model,
                "choices": choices,
                **fields,
            }
        )


def _choice(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


def _data(value: Any) -> bytes:
    return f"data: {json.dumps(value, separators=(',', ':'), ensure_ascii=False)}\n\n".encode()
