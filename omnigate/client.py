"""The sync clients: the async ones behind a portal. No request logic is here.

Each method is the async client's own, run in the portal's event loop, so that the two can not differ.
"""

import os
import ssl
from collections.abc import AsyncIterable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Final, Literal, Unpack, cast, overload

from omnigate._batch.answers import Answers
from omnigate._batch.batch import Batch
from omnigate._batch.items import BatchItem, check_source
from omnigate._batch.options import MAX_WAIT_SECONDS, STOP_ON, ProgressArgument, StopOn
from omnigate._calls.retry import RetryConfig
from omnigate._sync.batch import SyncBatch
from omnigate._sync.face import BaseClient, method, stream_method
from omnigate._sync.portal import Backend, Portal
from omnigate._sync.streams import SyncChatStream
from omnigate._transport.carrier import MAX_RESPONSE_BYTES
from omnigate._wire.arguments import CallOptions, Timeout
from omnigate.async_client import AsyncClient, Transport
from omnigate.exceptions import GatewayError
from omnigate.models import ChatResponse, MessagesInput, StreamChunk


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

    chat: Final = method(AsyncClient.chat)
    race: Final = method(AsyncClient.race)
    completions: Final = method(AsyncClient.completions)
    models: Final = method(AsyncClient.models)
    model: Final = method(AsyncClient.model)
    metrics: Final = method(AsyncClient.metrics)
    signup: Final = method(AsyncClient.signup)
    set_provider_key: Final = method(AsyncClient.set_provider_key)
    create_api_key: Final = method(AsyncClient.create_api_key)
    list_api_keys: Final = method(AsyncClient.list_api_keys)
    revoke_api_key: Final = method(AsyncClient.revoke_api_key)
    me: Final = method(AsyncClient.me)
    health: Final = method(AsyncClient.health)
    ready: Final = method(AsyncClient.ready)
    version: Final = method(AsyncClient.version)

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

    completions_stream: Final = stream_method(AsyncClient.completions_stream)

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
