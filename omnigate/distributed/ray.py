"""Batches on Ray: the rows of a Ray Dataset through the gateway, all actors within its one rate limit.

`chat_dataset` sets it up; `ChatBatches` is the class for a `map_batches` of your own. Needs the extra `ray`.

Each actor has one client, whose batches run in the actor's event loop. The actors share a pacer: a named
actor of Ray, which the first one that needs it starts and which ends itself when nobody has asked it for ten
minutes. If it dies, the actors pace themselves by the gateway's headers until the next one is there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Unpack, cast

import anyio

from omnigate._batch.outcomes import BatchStats
from omnigate._batch.pace.messages import key_digest
from omnigate._data.ids import id_text
from omnigate._runtime.extras import extra
from omnigate._runtime.loops import in_trio
from omnigate._runtime.threads import in_thread
from omnigate._wire.arguments import key_in
from omnigate._wire.checks import check_integer, check_number, check_text, refusal
from omnigate._wire.values import Integer, Number
from omnigate.async_client import AsyncClient
from omnigate.distributed._partition import ClientArguments, PartitionSettings, chat_partition
from omnigate.distributed._shared import SharedPacer, key_of
from omnigate.distributed._tables import TableT, is_pandas, names_of_columns
from omnigate.distributed._task import PartitionTask
from omnigate.exceptions import InvalidArgumentError

with extra("ray", "omnigate.distributed.ray"):
    _api: Any = import_module("ray")
    _data: Any = import_module("ray.data")
    _errors: Any = import_module("ray.exceptions")
    _metrics: Any = import_module("ray.util.metrics")

if TYPE_CHECKING:
    from ray.data import Dataset  # pyright: ignore[reportMissingImports] - the extra may not be installed

__all__ = ["ChatBatches", "RayLink", "chat_dataset"]

logger: Final = logging.getLogger("omnigate")

NAMESPACE: Final = "omnigate"
"""The default namespace of the pacers: a job's own is often one without a name, that no other job shares."""

_IDLE_SECONDS: Final = 600.0

_ANSWER_SECONDS: Final = 10.0

_STARTED_SECONDS: Final = 30.0

_CLOSE_SECONDS: Final = 2.0

_ROWS: Final = 1_000


def chat_dataset(
    ds: Dataset,
    *,
    client: ClientArguments | None = None,
    workers: Integer = 2,
    num_cpus: Number = 1,
    batch_size: Integer = _ROWS,
    journal_dir: str | os.PathLike[str] | None = None,
    done: Dataset | None = None,
    share_limit: bool = True,
    namespace: str = NAMESPACE,
    **settings: Unpack[PartitionSettings],
) -> Dataset:
    """Return a dataset with a model's response to each row, in the columns `content`, `error` and so on.

    Lazy, as all of Ray Data. No row raises; see `chat_partition` for the columns.

    Args:
        ds: the rows.
        client: the arguments of the actors' clients; without an `api_key`, each takes the `$OMNIGATE_API_KEY`
            of its own environment.
        workers: the number of actors, at least 1. One can do thousands of calls a second.
        num_cpus: what an actor reserves of Ray's CPUs; 0 or a part of one is enough while the limit is low.
        batch_size: rows of a batch, at least 1. An actor works at several batches at a time.
        journal_dir: a directory that all nodes share, for a journal of each batch. A job that is run again
            does not repeat the calls in it, as long as the rows come in the same batches: from the same
            files, with the same `batch_size` and number of blocks.
        done: the output of an earlier run: rows whose id (`id=`) is in it without an error are left out. Each
            actor keeps its ids in memory.
        share_limit: whether all actors share the rate limit by a pacer, that of `pacer` or, by default, an
            actor; False to pace each by the headers.
        namespace: of the pacer. All jobs of the cluster that name the same one, with the same gateway and
            key, share the limit.
        settings: `model`, `prompt`, `id`, and the rest of `PartitionSettings`.

    Raises:
        InvalidArgumentError: an argument is not allowed.

    """
    task = PartitionTask("chat_dataset", client, journal_dir, share_limit, settings)
    workers = check_integer(workers, "workers", minimum=1)
    batch_size = check_integer(batch_size, "batch_size", minimum=1)
    cpus = check_number(num_cpus, "num_cpus", minimum=0)
    check_text(namespace, "namespace")
    arguments: dict[str, Any] = {
        **task.settings,
        "client": task.client,
        "journal_dir": task.journal_dir,
        "share_limit": task.share_limit,
        "namespace": namespace,
        "done": None if done is None else _ids_of(done, settings.get("id")),
    }
    dataset: Any = ds
    made: Any = dataset.map_batches(
        ChatBatches,
        fn_constructor_kwargs=arguments,
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=_data.ActorPoolStrategy(size=workers),
        num_cpus=cpus,
    )
    return made


def _ids_of(done: Any, id: str | None) -> Any:
    """Return a reference to the ids in an output whose rows have no error."""
    if id is None:
        raise refusal(
            "done", done, "be given with id= only", got="a dataset", hint="rows are known by their id"
        )
    ids: set[str] = set()
    for batch in done.select_columns([id, "error"]).iter_batches(batch_format="pyarrow", batch_size=None):
        for own, error in zip(batch.column(id).to_pylist(), batch.column("error").to_pylist(), strict=True):
            if error is None and own is not None:
                ids.add(id_text(own, id))
    return _api.put(frozenset(ids))


class ChatBatches:
    """A class for `ds.map_batches(ChatBatches, fn_constructor_kwargs={…}, batch_format="pyarrow", …)`.

    Pass `compute=ray.data.ActorPoolStrategy(…)`; `batch_format="pandas"` works as well. Counts are custom
    metrics of Ray: `omnigate_rows` (by `outcome`), `omnigate_tokens`, `omnigate_cost_usd`,
    `omnigate_rejections`, and the gauge `omnigate_in_flight`.

    Args:
        client: as in `chat_dataset`.
        journal_dir: as in `chat_dataset`.
        share_limit: as in `chat_dataset`.
        namespace: as in `chat_dataset`.
        done: a reference to a set of ids as text; their rows are left out. Needs `id`.
        settings: as in `chat_dataset`.

    Raises:
        InvalidArgumentError: an argument is not allowed.
    """

    def __init__(
        self,
        *,
        client: ClientArguments | None = None,
        journal_dir: str | os.PathLike[str] | None = None,
        share_limit: bool = True,
        namespace: str = NAMESPACE,
        done: object = None,
        **settings: Unpack[PartitionSettings],
    ) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._task = PartitionTask("ChatBatches", client, journal_dir, share_limit, settings)
        check_text(namespace, "namespace")
        self._id = settings.get("id")
        self._done: frozenset[str] = frozenset() if done is None else _api.get(done)
        if self._done and self._id is None:
            raise refusal("done", None, "be given with id= only", got="ids")
        self._client = AsyncClient(**self._task.client)
        self._link = RayLink(namespace=namespace) if share_limit and settings.get("pacer") is None else None
        if self._link is not None:
            self._link.start(_digest_of(self._client))
        self._counters = _Counters()

    async def __call__(self, batch: TableT) -> AsyncIterator[TableT]:
        """Yield a batch of rows with their results."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        rows: Any = await in_thread(self._without_done, batch) if self._done else batch
        settings: Any = await in_thread(self._task.settings_for, rows)
        settings = {**settings, "progress": _Counts(self._counters, settings.get("progress"))}
        if self._link is not None:
            settings["pacer"] = self._link
        yield await chat_partition(rows, client=self._client, **settings)

    def _without_done(self, batch: Any) -> Any:
        """Return the rows of a table whose ids are not done."""
        id = self._id
        assert id is not None
        if id not in (names_of_columns(batch) or ()):
            return batch  # refused later
        is_frame = is_pandas(batch)
        values = list(batch[id]) if is_frame else batch[id].to_pylist()
        mask = [not self._is_done(value) for value in values]
        return batch[mask] if is_frame else batch.filter(mask)

    def _is_done(self, value: object) -> bool:
        try:
            return value is not None and id_text(value, "id") in self._done
        except InvalidArgumentError:  # later, as the error of the row
            return False

    def __del__(self) -> None:
        """Close the client with the actor, unless its process is killed."""
        loop = self._loop
        if loop is None or not loop.is_running() or threading.get_ident() == self._thread:
            return
        closing = asyncio.run_coroutine_threadsafe(self._client.aclose(), loop)
        try:
            closing.result(_CLOSE_SECONDS)
        except TimeoutError:
            closing.cancel()

    def __repr__(self) -> str:
        return repr(self._task)


class RayLink:
    """The way to a shared pacer in a named actor of Ray, which is started if there is none.

    Args:
        namespace: of the actor.

    Raises:
        InvalidArgumentError: the namespace is not text.
    """

    def __init__(self, *, namespace: str = NAMESPACE) -> None:
        self._namespace = check_text(namespace, "namespace")
        self._actors: dict[str, Any] = {}

    async def exchange(self, report: bytes) -> bytes:
        """Send a report to the pacer and return its grant; start the pacer first if there is none.

        Raises:
            OSError: there is no answer.

        """
        name = pacer_name(key_of(report))
        try:
            actor = self._actors.get(name)
            if actor is None:
                actor = self._actors[name] = await in_thread(self._actor, name)
            with anyio.fail_after(_ANSWER_SECONDS):
                grant: bytes = await _result(actor.exchange.remote(report).future())
        except (_errors.RayError, TimeoutError, ValueError) as error:
            self._actors.pop(name, None)  # the next exchange finds another, or starts one
            raise OSError(f"the pacer {name} does not answer: {type(error).__name__}") from error
        return grant

    def start(self, digest: bytes) -> None:
        """Start the pacer for a gateway and key, if there is none, and wait until it answers. Blocks.

        Args:
            digest: what stands for them.
        """
        name = pacer_name(digest)
        try:
            actor = self._actors[name] = self._actor(name)
            _api.get(actor.is_ready.remote(), timeout=_STARTED_SECONDS)
        except (_errors.RayError, ValueError) as error:
            self._actors.pop(name, None)
            logger.warning("ray: the pacer %s has not started yet: %s", name, type(error).__name__)

    def _actor(self, name: str) -> Any:
        return (
            _api.remote(Pacer)
            .options(
                name=name,
                namespace=self._namespace,
                get_if_exists=True,
                lifetime="detached",  # it is not the first worker's alone
                num_cpus=0,
                max_restarts=0,
            )
            .remote()
        )

    async def aclose(self) -> None:
        """Forget the actor, which others may be using."""
        self._actors.clear()

    def __repr__(self) -> str:
        return f"<RayLink: {', '.join(self._actors) or 'not connected'}>"


async def _result(future: Future[bytes]) -> bytes:
    """Await a future of a thread."""
    if in_trio():
        return await in_thread(future.result, _ANSWER_SECONDS)
    return await asyncio.wrap_future(future)


def pacer_name(digest: bytes) -> str:
    """Return the name of the actor for the gateway and key that a digest stands for."""
    return f"omnigate-pacer-{digest.hex()}"


def _digest_of(client: AsyncClient) -> bytes:
    """Return what stands for a client's gateway and key, in the reports of its batches."""
    settings = client._session.configuration.settings
    return key_digest(settings.origin, key_in(settings.headers))


class Pacer:
    """The actor: a shared pacer, which ends when it has not been asked for ten minutes."""

    def __init__(self) -> None:
        self._pacer = SharedPacer()
        self._end: asyncio.TimerHandle | None = None

    async def is_ready(self) -> bool:
        """Return True, once it has started."""
        return True

    async def exchange(self, report: bytes) -> bytes:
        """Return the grant for a report."""
        if self._end is not None:
            self._end.cancel()
        self._end = asyncio.get_running_loop().call_later(_IDLE_SECONDS, _end_actor)
        return self._pacer.exchange(report, time.monotonic())


def _end_actor() -> None:
    _api.kill(_api.get_runtime_context().current_actor)


class _Counters:
    """The custom metrics of an actor."""

    def __init__(self) -> None:
        counter: Any = _metrics.Counter
        self.rows: Any = counter("omnigate_rows", "rows that ended", tag_keys=("outcome",))
        self.tokens: Any = counter("omnigate_tokens", "tokens of prompts and responses")
        self.cost: Any = counter("omnigate_cost_usd", "cost of the responses, in USD")
        self.rejections: Any = counter("omnigate_rejections", "responses with status 429")
        gauge: Any = _metrics.Gauge
        self._gauge: Any = gauge("omnigate_in_flight", "calls in flight")
        self._in_flight = 0

    def add_in_flight(self, change: int) -> None:
        """Change the number of calls in flight, over all batches."""
        if change:
            self._in_flight += change
            self._gauge.set(self._in_flight)


class _Counts:
    """Adds the stats of a batch to the metrics as they change: what is called with its progress.

    Args:
        counters: the metrics.
        also: the user's own callable, or True or False.
    """

    def __init__(self, counters: _Counters, also: object) -> None:
        self._counters = counters
        self._also = also
        self._last = BatchStats()

    def __call__(self, stats: BatchStats) -> None:
        """Record how far the batch is."""
        last, self._last, counters = self._last, stats, self._counters
        tagged: Mapping[str, int] = {
            name: getattr(stats, name) - getattr(last, name) for name in ("succeeded", "failed", "replayed")
        }
        for outcome, change in tagged.items():
            if change > 0:
                counters.rows.inc(change, tags={"outcome": outcome})
        for metric, before, now in (
            (counters.tokens, last.total_tokens, stats.total_tokens),
            (counters.cost, last.cost_usd, stats.cost_usd),
            (counters.rejections, last.rejections, stats.rejections),
        ):
            if now > before:
                metric.inc(float(now - before))
        counters.add_in_flight(stats.in_flight - last.in_flight)
        if callable(self._also):
            cast("Any", self._also)(stats)
