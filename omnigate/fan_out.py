"""The methods of the async client that make many calls: `batch`, `chat_many`, `race`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Literal, Unpack, cast, overload

from omnigate import endpoints
from omnigate.arguments import CallOptions
from omnigate.base_client import BaseAsyncClient
from omnigate.batch import Batch
from omnigate.batch_items import BatchSource
from omnigate.batch_options import MAX_WAIT_SECONDS, STOP_ON, BatchOptions, ProgressArgument, StopOn
from omnigate.exceptions import GatewayError, InvalidArgumentError, InvalidArgumentTypeError
from omnigate.models import ChatRequest, ChatResponse, MessagesInput
from omnigate.outcome import Outcome
from omnigate.racing import race
from omnigate.structs import construct, shown


class AsyncFanOut(BaseAsyncClient):
    """What the async client has beside one method for each endpoint."""

    def batch(
        self,
        requests: BatchSource,
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
    ) -> Batch:
        """Return a batch: many chats, as many at once as the gateway's limit and the provider bear.

        Use it as `async with client.batch(…) as batch: async for outcome in batch: …`. Every item ends in
        exactly one `Outcome`. The gateway's rate limit is kept by its headers; a 429 of the gateway that
        comes all the same is waited for and sent again, and counts as no retry. All batches of a client
        share its knowledge of the limit.

        Args:
            requests: an iterable or async iterable of items, read no faster than they can be sent; or a
                `pathlib.Path` of a file of JSON lines: OpenAI's batch input, or `{"messages": …}`, or
                `{"prompt": …}`. An item is a `ChatRequest`, a dict of its fields (and `id`), or, where
                `model` is given, messages: text, a message, or a list of messages. One that is not valid
                becomes a failed outcome. An async generator is closed in the end.
            model: for items that name none.
            max_concurrency: calls at a time, at least 1; "auto" finds out what the provider bears, for all
                such batches of the client together. Never more than the transport has connections.
            ordered: hand outcomes out in the order of the items. Then an item that takes long holds up those
                behind it, and after a bounded number of them the reading of more.
            stop_on: types of errors that end the batch, or a callable that takes an error and says whether
                to, at once and without an await. A callable is asked once about each failure that ends an
                item, and so not about a 429 of the gateway that is waited for; of types that one ends the
                batch, too. What is in flight is still waited for and handed out, then iterating raises the
                error, or what the callable raised.
            journal: path of a file that outcomes are appended to, one line each, and that a later run resumes
                from: what succeeded is not called again. Its layout is that of OpenAI's batch output. An
                item's id (else its index) must be unique and stand for the same request in every run. When
                all items have ended, older lines of ids that have a later one are removed; where the system
                refuses that, it is a `JournalWarning`, and nothing is lost.
            replay: hand out what the journal has (`outcome.replayed`). If False, what succeeded in an earlier
                run is left out, whether or not that run came to hand it out: outcomes that were written when
                its block was left, or when it was killed, are then in the journal only.
            progress: True for a live display (needs the extra `cli`); or a callable, not an async one, that
                is given `BatchStats` several times a second, in the event loop's thread.
            max_wait_seconds: the longest `Retry-After` of the gateway that is waited for (a minute where its
                429 names none that makes sense, unless it says when the window ends); a longer one ends the
                batch with that `RateLimitError`, and holds back no other batch.
            user_id: in place of the client's.
            options: as in `chat`, for each call; `deadline_seconds` counts from when it is first sent.

        Raises:
            InvalidArgumentError: an argument is not allowed; nothing was sent.

        """
        return Batch(
            self._session,
            BatchOptions(
                requests=requests,
                model=model,
                max_concurrency=max_concurrency,
                ordered=ordered,
                stop_on=stop_on,
                journal=journal,
                replay=replay,
                progress=progress,
                max_wait_seconds=max_wait_seconds,
                user_id=user_id,
                call_options=options,
            ),
        )

    @overload
    async def chat_many(
        self,
        requests: BatchSource,
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
    async def chat_many(
        self,
        requests: BatchSource,
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

    async def chat_many(
        self,
        requests: BatchSource,
        *,
        model: str | None = None,
        max_concurrency: int | Literal["auto"] = "auto",
        return_exceptions: bool = False,
        journal: str | os.PathLike[str] | None = None,
        progress: ProgressArgument = False,
        max_wait_seconds: float = MAX_WAIT_SECONDS,
        user_id: str | None = None,
        **options: Unpack[CallOptions],
    ) -> list[ChatResponse] | list[ChatResponse | GatewayError]:
        """Return the answers to many chats, as a list in the order of the items.

        Args:
            requests: as in `batch`, like the others not named here.
            model: see `batch`.
            max_concurrency: see `batch`.
            return_exceptions: put the error in the place of an answer that there is none of; else the first
                one is raised, after the rest has been cancelled.
            journal: see `batch`.
            progress: see `batch`.
            max_wait_seconds: see `batch`.
            user_id: see `batch`.
            options: see `batch`.

        Raises:
            GatewayError: the first error of an item, if not `return_exceptions`.
            InvalidArgumentError: an argument is not allowed; nothing was sent.

        """
        answers = Answers(return_exceptions)
        async with self.batch(
            requests,
            model=model,
            max_concurrency=max_concurrency,
            stop_on=(),
            journal=journal,
            progress=progress,
            max_wait_seconds=max_wait_seconds,
            user_id=user_id,
            **options,
        ) as batch:
            async for outcome in batch:
                answers.add(outcome)
        return answers.in_order()

    async def race(
        self,
        *,
        models: Sequence[str],
        messages: MessagesInput,
        max_tokens: int | None = None,
        temperature: float | None = None,
        user_id: str | None = None,
        top_p: float | None = None,
        stop: str | list[str] | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        seed: int | None = None,
        cache: bool | None = None,
        **options: Unpack[CallOptions],
    ) -> ChatResponse:
        """Return the first answer of several models to the same request, and cancel the other calls.

        The gateway bills the calls of all models, also those whose answer nobody waits for.

        Args:
            models: at least one name.
            messages: as in `chat`, like the others.
            max_tokens: see `chat`.
            temperature: see `chat`.
            user_id: see `chat`.
            top_p: see `chat`.
            stop: see `chat`.
            presence_penalty: see `chat`.
            frequency_penalty: see `chat`.
            seed: see `chat`.
            cache: see `chat`.
            options: see `chat`.

        Raises:
            RaceError: all failed; its `exceptions` are their errors, in the order of `models`.
            InvalidArgumentError: an argument is not allowed; nothing was sent.

        """
        if isinstance(models, str) or not isinstance(models, Sequence):
            raise InvalidArgumentTypeError(f"models={shown(models)} is not allowed: a list of models")
        if not models:
            raise InvalidArgumentError("models=[] is not allowed: at least one model")
        fields = {
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "stop": stop,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "seed": seed,
            "cache": cache,
        }
        calls = [
            self._session.prepare(
                endpoints.CHAT,
                body=construct(ChatRequest, {"model": model, **fields}),
                user_id=user_id,
                options=options,
            )
            for model in models
        ]
        return await race([partial(self._fetch, ChatResponse, call) for call in calls])


class Answers:
    """The answers to a batch, put in order."""

    def __init__(self, return_exceptions: bool) -> None:
        if not isinstance(return_exceptions, bool):
            raise InvalidArgumentTypeError(
                f"return_exceptions={shown(return_exceptions)} is not allowed: True or False"
            )
        self._return_exceptions = return_exceptions
        self._by_index: dict[int, ChatResponse | GatewayError] = {}

    def add(self, outcome: Outcome) -> None:
        """Take an outcome in.

        Raises:
            GatewayError: its error, if errors are not to be returned.

        """
        error = outcome.error if self._return_exceptions else None
        self._by_index[outcome.index] = outcome.unwrap() if error is None else error

    def in_order(self) -> list[ChatResponse] | list[ChatResponse | GatewayError]:
        """Return the answers in the order of their items."""
        answers = [self._by_index[index] for index in range(len(self._by_index))]
        return cast("list[ChatResponse]", answers)
