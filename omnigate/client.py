"""The sync clients: the async ones behind a portal. No request logic is here.

Each method is the async client's own, run in the portal's event loop, so that the two can not differ.
"""

from __future__ import annotations

import os
import ssl
from collections import deque
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping
from functools import partial, wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Final, Generic, Literal, ParamSpec, Self, TypeVar, Unpack, cast, overload

from omnigate.arguments import CallOptions, Timeout
from omnigate.async_admin import AsyncAdminClient
from omnigate.async_client import AsyncClient, Transport
from omnigate.base_client import BaseAsyncClient
from omnigate.batch import Batch
from omnigate.batch_items import BatchItem, check_source
from omnigate.batch_options import MAX_WAIT_SECONDS, STOP_ON, ProgressArgument, StopOn
from omnigate.exceptions import GatewayError
from omnigate.fan_out import Answers
from omnigate.meta import Meta
from omnigate.models import ChatResponse, MessagesInput, StreamChunk, Usage
from omnigate.portal import Backend, Portal
from omnigate.retry import RetryConfig
from omnigate.session import MAX_RESPONSE_BYTES
from omnigate.streaming import BaseStream, ChatStream, CompletionStream
from omnigate.sync_batch import SyncBatch

T = TypeVar("T")
P = ParamSpec("P")
C = TypeVar("C", bound=BaseAsyncClient, covariant=True)
S = TypeVar("S", bound=BaseStream[Any])
ChatPiece = TypeVar("ChatPiece", str, StreamChunk)


def _method(
    method: Callable[Concatenate[C, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[BaseClient[C], P], T]:
    """Return the sync face of an async client's method: the same signature, the same words."""

    @wraps(method)
    def call(self: BaseClient[C], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._portal.call(partial(method, self._async, *args, **kwargs))

    return call


class BaseSyncStream(Generic[T, S]):
    """What all sync streams are: an iterator of pieces and a context manager.

    Use it as `with client.chat_stream(…) as stream: for piece in stream: …`. It mirrors the async stream:
    entering returns when the head of the response has come, and reading raises the same errors. The
    pieces that have arrived are fetched together. Not to be read by two threads at once.
    """

    def __init__(self, portal: Portal, stream: S) -> None:
        self._portal = portal
        self._stream = stream
        self._pieces: deque[T] = deque()

    @property
    def meta(self) -> Meta:
        """What the head of the response said; there is none before the stream is open."""
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
        """Close the stream; its connection is given back if its body has ended, else closed."""
        self._pieces.clear()
        if not self._stream.is_closed:
            self._portal.call(self._stream.aclose)

    async def _fetch(self) -> None:
        """Fetch the pieces that have arrived, in the portal's loop, where no interrupt can lose them."""
        self._pieces.extend(await self._stream.fetch())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._stream!r}>"


class SyncChatStream(BaseSyncStream[ChatPiece, ChatStream[ChatPiece]]):
    """The stream of a chat: `str` pieces, or `StreamChunk`s where `as_chunks=True` was asked for."""

    @property
    def usage(self) -> Usage | None:
        """The tokens, once the stream has ended, if it was asked for with `include_usage=True`."""
        return self._stream.usage

    @property
    def finish_reason(self) -> str | None:
        """Why the model stopped, likewise."""
        return self._stream.finish_reason

    def text(self) -> str:
        """Return the rest of the text at once.

        Raises:
            GatewayError: as reading does; the text before the failure is lost then.

        """
        taken = "".join(piece if isinstance(piece, str) else piece.text for piece in self._pieces)
        self._pieces.clear()
        return taken + self._portal.call(self._stream.text)


class SyncCompletionStream(BaseSyncStream[dict[str, Any], CompletionStream]):
    """The stream of a completion: OpenAI's chunks, as dicts, up to `[DONE]`."""


def _stream_method(
    method: Callable[Concatenate[AsyncClient, P], CompletionStream],
) -> Callable[Concatenate[BaseClient[AsyncClient], P], SyncCompletionStream]:
    """Return the sync face of an async client's method that returns a stream."""

    @wraps(method)
    def call(self: BaseClient[AsyncClient], /, *args: P.args, **kwargs: P.kwargs) -> SyncCompletionStream:
        return SyncCompletionStream(self._portal, method(self._async, *args, **kwargs))

    return call


class BaseClient(Generic[C]):
    """What both sync clients are: an async client and a portal to it."""

    _async: C
    _portal: Portal

    @property
    def base_url(self) -> str:
        """The gateway's address, without a trailing slash."""
        return self._async.base_url

    @base_url.setter
    def base_url(self, value: str) -> None:
        self._async.base_url = value

    def close(self) -> None:
        """Close the client, its transport and its thread; a second time does nothing.

        What is in flight in other threads fails with `ClientClosedError`.
        """
        self._portal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}{repr(self._async).removeprefix(type(self._async).__name__)}"


class Client(BaseClient[AsyncClient]):
    """A client of an OmniGate gateway for plain, synchronous programs.

    It has the methods of `AsyncClient`, without `await`, and may be used by any number of threads at once.
    A thread of its own, started at the first call, runs the async core; `with`, or `close()`, ends it.
    Ctrl-C cancels the call in flight. After `os.fork()` a client that was used before says so in the child.

    Args:
        api_key: as `AsyncClient`'s, like the others not named here.
        base_url: see `AsyncClient`.
        user_id: see `AsyncClient`.
        timeout: see `AsyncClient`.
        retries: see `AsyncClient`.
        retry_config: see `AsyncClient`.
        headers: see `AsyncClient`.
        transport: see `AsyncClient`.
        verify: see `AsyncClient`.
        max_response_bytes: see `AsyncClient`.
        backend: the event loop of its thread, "asyncio" or "trio".

    Raises:
        InvalidArgumentError: an argument is not allowed (a `ValueError`).

    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        user_id: str | None = None,
        timeout: Timeout = 60.0,
        retries: int = 2,
        retry_config: RetryConfig | None = None,
        headers: Mapping[str, str] | None = None,
        transport: Transport | None = None,
        verify: bool | ssl.SSLContext = True,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        backend: Backend = "asyncio",
    ) -> None:
        self._async = AsyncClient(
            api_key,
            base_url=base_url,
            user_id=user_id,
            timeout=timeout,
            retries=retries,
            retry_config=retry_config,
            headers=headers,
            transport=transport,
            verify=verify,
            max_response_bytes=max_response_bytes,
        )
        self._portal = Portal(backend, self._async.aclose)

    @property
    def api_key(self) -> str | None:
        """The gateway key."""
        return self._async.api_key

    @api_key.setter
    def api_key(self, value: str | None) -> None:
        self._async.api_key = value

    @property
    def user_id(self) -> str | None:
        """The end user whom calls are attributed to, unless they say otherwise."""
        return self._async.user_id

    @user_id.setter
    def user_id(self, value: str | None) -> None:
        self._async.user_id = value

    chat: Final = _method(AsyncClient.chat)
    race: Final = _method(AsyncClient.race)
    completions: Final = _method(AsyncClient.completions)
    models: Final = _method(AsyncClient.models)
    model: Final = _method(AsyncClient.model)
    metrics: Final = _method(AsyncClient.metrics)
    signup: Final = _method(AsyncClient.signup)
    set_provider_key: Final = _method(AsyncClient.set_provider_key)
    create_api_key: Final = _method(AsyncClient.create_api_key)
    list_api_keys: Final = _method(AsyncClient.list_api_keys)
    revoke_api_key: Final = _method(AsyncClient.revoke_api_key)
    me: Final = _method(AsyncClient.me)
    health: Final = _method(AsyncClient.health)
    ready: Final = _method(AsyncClient.ready)
    version: Final = _method(AsyncClient.version)

    @overload
    def chat_stream(
        self,
        *,
        model: str,
        messages: MessagesInput,
        max_tokens: int | None = None,
        temperature: float | None = None,
        user_id: str | None = None,
        as_chunks: Literal[False] = False,
        include_usage: bool = False,
        top_p: float | None = None,
        stop: str | list[str] | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        seed: int | None = None,
        fallback_models: None = None,
        cache: None = None,
        **options: Unpack[CallOptions],
    ) -> SyncChatStream[str]: ...

    @overload
    def chat_stream(
        self,
        *,
        model: str,
        messages: MessagesInput,
        max_tokens: int | None = None,
        temperature: float | None = None,
        user_id: str | None = None,
        as_chunks: Literal[True],
        include_usage: bool = False,
        top_p: float | None = None,
        stop: str | list[str] | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        seed: int | None = None,
        fallback_models: None = None,
        cache: None = None,
        **options: Unpack[CallOptions],
    ) -> SyncChatStream[StreamChunk]: ...

    @wraps(AsyncClient.chat_stream)
    def chat_stream(  # noqa: D102 - the words are the async client's
        self, **arguments: Any
    ) -> SyncChatStream[str] | SyncChatStream[StreamChunk]:
        return SyncChatStream(self._portal, cast("Any", self._async.chat_stream(**arguments)))

    completions_stream: Final = _stream_method(AsyncClient.completions_stream)

    def batch(
        self,
        requests: Iterable[BatchItem] | Path,
        *,
        model: str | None = None,
        max_concurrency: int | Literal["auto"] = "auto",
        ordered: bool = False,
        stop_on: StopOn = STOP_ON,
        journal: str | os.PathLike[str] | None = None,
        replay: bool = True,
        progress: ProgressArgument = False,
        max_wait_seconds: float = MAX_WAIT_SECONDS,
        user_id: str | None = None,
        **options: Unpack[CallOptions],
    ) -> SyncBatch:
        """Return a batch, to be used with `with` and iterated. The source is iterated in the caller's thread.

        It is read ahead of the outcomes, and all stands still while it waits, so it must not wait for what
        comes of an outcome; `AsyncClient.batch` takes sources that do.

        The arguments and errors are those of `AsyncClient.batch`, without async iterables.
        """
        check_source(requests, is_sync=True)

        def make(feed: AsyncIterable[Any]) -> Batch:
            return self._async.batch(
                feed,
                model=model,
                max_concurrency=max_concurrency,
                ordered=ordered,
                stop_on=stop_on,
                journal=journal,
                replay=replay,
                progress=progress,
                max_wait_seconds=max_wait_seconds,
                user_id=user_id,
                **options,
            )

        return SyncBatch(self._portal, requests, make)

    @overload
    def chat_many(
        self,
        requests: Iterable[BatchItem] | Path,
        *,
        model: str | None = None,
        max_concurrency: int | Literal["auto"] = "auto",
        return_exceptions: Literal[False] = False,
        journal: str | os.PathLike[str] | None = None,
        progress: ProgressArgument = False,
        max_wait_seconds: float = MAX_WAIT_SECONDS,
        user_id: str | None = None,
        **options: Unpack[CallOptions],
    ) -> list[ChatResponse]: ...

    @overload
    def chat_many(
        self,
        requests: Iterable[BatchItem] | Path,
        *,
        model: str | None = None,
        max_concurrency: int | Literal["auto"] = "auto",
        return_exceptions: Literal[True],
        journal: str | os.PathLike[str] | None = None,
        progress: ProgressArgument = False,
        max_wait_seconds: float = MAX_WAIT_SECONDS,
        user_id: str | None = None,
        **options: Unpack[CallOptions],
    ) -> list[ChatResponse | GatewayError]: ...

    @wraps(AsyncClient.chat_many)
    def chat_many(  # noqa: D102 - the words are the async client's
        self, requests: Iterable[BatchItem] | Path, *, return_exceptions: bool = False, **arguments: Any
    ) -> list[ChatResponse] | list[ChatResponse | GatewayError]:
        answers = Answers(return_exceptions)
        with self.batch(requests, stop_on=(), **arguments) as batch:
            for outcome in batch:
                answers.add(outcome)
        return answers.in_order()


class AdminClient(BaseClient[AsyncAdminClient]):
    """A sync client of a gateway's administration: `AsyncAdminClient` without `await`.

    Args:
        admin_key: as `AsyncAdminClient`'s, like the others not named here.
        base_url: see `AsyncAdminClient`.
        timeout: see `AsyncAdminClient`.
        retries: see `AsyncAdminClient`.
        retry_config: see `AsyncAdminClient`.
        headers: see `AsyncAdminClient`.
        transport: see `AsyncAdminClient`.
        verify: see `AsyncAdminClient`.
        backend: the event loop of its thread, "asyncio" or "trio".

    Raises:
        InvalidArgumentError: an argument is not allowed (a `ValueError`).

    """

    def __init__(
        self,
        admin_key: str | None = None,
        *,
        base_url: str | None = None,
        timeout: Timeout = 60.0,
        retries: int = 2,
        retry_config: RetryConfig | None = None,
        headers: Mapping[str, str] | None = None,
        transport: Transport | None = None,
        verify: bool | ssl.SSLContext = True,
        backend: Backend = "asyncio",
    ) -> None:
        self._async = AsyncAdminClient(
            admin_key,
            base_url=base_url,
            timeout=timeout,
            retries=retries,
            retry_config=retry_config,
            headers=headers,
            transport=transport,
            verify=verify,
        )
        self._portal = Portal(backend, self._async.aclose)

    @property
    def admin_key(self) -> str | None:
        """The admin key."""
        return self._async.admin_key

    @admin_key.setter
    def admin_key(self, value: str | None) -> None:
        self._async.admin_key = value

    create_org: Final = _method(AsyncAdminClient.create_org)
    list_orgs: Final = _method(AsyncAdminClient.list_orgs)
    create_project: Final = _method(AsyncAdminClient.create_project)
    list_projects: Final = _method(AsyncAdminClient.list_projects)
    org_metrics: Final = _method(AsyncAdminClient.org_metrics)
