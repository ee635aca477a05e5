"""Serves requests of httpx2, the maintained successor of httpx, by a transport for those of httpx.

httpx2 has classes of the same names as httpx, with the same attributes. Its request is sent as one of httpx,
and the response and errors are converted to its classes. httpx2 is not a dependency: a program with such a
request has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from typing import Any

import httpx

from omnigate._wire.checks import a_type, refusal


async def answer_httpx2(
    request: object, send: Callable[[httpx.Request], Awaitable[httpx.Response]]
) -> httpx.Response:
    """Send a request of httpx2 and return a response of its kind.

    Args:
        request: the request.
        send: sends a request of httpx, and leaves nothing behind if it fails.

    Raises:
        httpx2.TransportError: in place of httpx's of the same name.
        InvalidArgumentTypeError: it is not a request of httpx2.
    """
    httpx2: Any = sys.modules.get("httpx2")
    if httpx2 is None or not isinstance(request, httpx2.Request):
        raise refusal(
            "request", request, "be an httpx.Request (or httpx2's)", is_type=True, got=a_type(request)
        )
    with TranslatedErrors(httpx, httpx2):
        response = await send(_Request(request, httpx2))
    stream = _stream_class(httpx2)(response.stream, httpx2)
    answer: httpx.Response = httpx2.Response(
        response.status_code, headers=response.headers.raw, stream=stream, extensions=response.extensions
    )
    return answer


class TranslatedErrors:
    """Converts one library's transport errors to the other's of the same name.

    Args:
        source: httpx or httpx2.
        target: the other one.
    """

    def __init__(self, source: Any, target: Any) -> None:
        self._source = source
        self._target = target

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, self._source.TransportError):
            for base in type(error).__mro__:
                translated = getattr(self._target, base.__name__, None)
                if isinstance(translated, type) and issubclass(translated, self._target.TransportError):
                    raise translated(str(error)) from error


class _Request(httpx.Request):
    """A request of httpx2 as one of httpx; its URL and headers have the same attributes."""

    # Sets the attributes of httpx.Request directly: its constructor would parse the URL again.
    def __init__(self, request: Any, httpx2: Any) -> None:
        self.method = request.method
        self.url = request.url
        self.headers = request.headers
        self.extensions = request.extensions
        stream = request.stream
        self.stream = httpx.ByteStream(b"".join(stream)) if isinstance(stream, httpx2.ByteStream) else stream


class _Stream:
    """A response body, raising httpx2's errors."""

    def __init__(self, stream: Any, httpx2: Any) -> None:
        self._stream = stream
        self._httpx2 = httpx2

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            with TranslatedErrors(httpx, self._httpx2):
                chunk: bytes = await self._stream.__anext__()
        except httpx.StreamClosed as error:
            raise self._httpx2.StreamClosed from error
        return chunk

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()


@cache
def _stream_class(httpx2: Any) -> Any:
    """Return `_Stream` as a subclass of httpx2's, which its client insists on."""
    return type("_Httpx2Stream", (_Stream, httpx2.AsyncByteStream), {})
