"""Batches on Dask: frames, bags and futures through the gateway, all workers within its one rate limit.

`chat_frame` and `chat_bag` return lazy collections, `ChatRows` is what to pass to `client.submit` and
`client.map`. Needs the extra `dask`.

Each worker of a cluster has one client, made and closed by a worker plugin, which the first partition that
gets there adds. Without a cluster, on Dask's own threads or processes, the partitions in a process share one.
The workers of a cluster share a pacer: a Dask actor under a key that all of them know. If its worker dies,
they pace themselves by the gateway's headers until another has started it, which takes a free thread.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
import time
import uuid
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Unpack, cast, overload

import anyio.to_thread

from omnigate._runtime.extras import extra
from omnigate._runtime.threads import in_thread
from omnigate.client import Client
from omnigate.distributed._partition import (
    ClientArguments,
    PartitionSettings,
    Rows,
    chat_partition_sync,
)
from omnigate.distributed._shared import SharedPacer
from omnigate.distributed._tables import TableT, with_results
from omnigate.distributed._task import PartitionTask

with extra("dask", "omnigate.distributed.dask"):
    import_module("dask.dataframe")
    _api: Any = import_module("distributed")

if TYPE_CHECKING:
    # The extra may not be installed.
    from dask.bag import Bag  # pyright: ignore[reportMissingImports]
    from dask.dataframe import DataFrame  # pyright: ignore[reportMissingImports]

__all__ = ["ChatRows", "DaskLink", "chat_bag", "chat_frame"]

logger: Final = logging.getLogger("omnigate")

_ANSWER_SECONDS: Final = 10.0

_CREATED_SECONDS: Final = 2.0

_PRIORITY: Final = 1_000

_lock: Final = threading.Lock()


def chat_frame(
    frame: DataFrame,
    *,
    client: ClientArguments | None = None,
    journal_dir: str | os.PathLike[str] | None = None,
    share_limit: bool = True,
    **settings: Unpack[PartitionSettings],
) -> DataFrame:
    """Return a frame with a model's response to each row, in the columns `content`, `error` and so on.

    Lazy, with the same index and divisions. No row raises; see `chat_partition` for the columns. Text columns
    are of pandas' type "string", integers "Int64", money "float64".

    Args:
        frame: the rows. Each partition is one batch.
        client: the arguments of the workers' clients. Without an `api_key`, each worker takes the
            `$OMNIGATE_API_KEY` of its own environment, and no key is part of the graph.
        journal_dir: a directory that all workers share, for a journal of each partition. A partition that is
            computed again does not repeat its calls.
        share_limit: whether all workers of a cluster share the rate limit by a pacer, that of `pacer` or, by
            default, an actor; False to pace each by the headers.
        settings: `model`, `prompt`, `id`, and the rest of `PartitionSettings`.

    Raises:
        InvalidArgumentError: an argument is not allowed.

    """
    chat = ChatRows(client=client, journal_dir=journal_dir, share_limit=share_limit, **settings)
    given: Any = frame
    meta = with_results(given._meta, (), has_parsed=settings.get("response_type") is not None)
    made: DataFrame = given.map_partitions(chat, meta=meta)
    return made


def chat_bag(
    bag: Bag,
    *,
    client: ClientArguments | None = None,
    journal_dir: str | os.PathLike[str] | None = None,
    share_limit: bool = True,
    **settings: Unpack[PartitionSettings],
) -> Bag:
    """Return a bag of dicts, one for each item of a bag, with `content`, `error` and so on.

    Args:
        bag: dicts, or other items as `batch` takes them.
        client: as in `chat_frame`.
        journal_dir: as in `chat_frame`.
        share_limit: as in `chat_frame`.
        settings: as in `chat_frame`.

    Raises:
        InvalidArgumentError: an argument is not allowed.

    """
    given: Any = bag
    made: Bag = given.map_partitions(
        ChatRows(client=client, journal_dir=journal_dir, share_limit=share_limit, **settings)
    )
    return made


class ChatRows:
    """A function of rows for `client.submit(chat, rows)` and `client.map(chat, list_of_rows)`.

    It can be pickled, with the key if that is one of the arguments of `client`.

    Args:
        client: as in `chat_frame`.
        journal_dir: as in `chat_frame`.
        share_limit: as in `chat_frame`.
        settings: as in `chat_frame`.

    Raises:
        InvalidArgumentError: an argument is not allowed.
    """

    def __init__(
        self,
        *,
        client: ClientArguments | None = None,
        journal_dir: str | os.PathLike[str] | None = None,
        share_limit: bool = True,
        **settings: Unpack[PartitionSettings],
    ) -> None:
        self._task = PartitionTask("ChatRows", client, journal_dir, share_limit, settings)
        if share_limit and self._task.settings.get("pacer") is None:
            _start_pacer()

    @overload
    def __call__(self, rows: TableT) -> TableT: ...

    @overload
    def __call__(self, rows: Iterable[object]) -> Rows: ...

    def __call__(self, rows: Any) -> Any:
        """Return rows with their results; see `chat_partition`."""
        if isinstance(rows, Iterator):  # a bag's partition, which is read twice
            rows = list(cast("Iterator[Any]", rows))
        settings: Any = self._task.settings_for(rows)
        with self._client() as (client, link):
            if link is not None:
                settings = {"pacer": link, **settings}
            return chat_partition_sync(rows, client=client, **settings)

    @contextmanager
    def _client(self) -> Generator[tuple[Client, DaskLink | None]]:
        try:
            worker: Any = _api.get_worker()
        except ValueError:
            with _local.use(self._task.client) as client:
                yield client, None
        else:
            plugin = _plugin_of(worker)
            yield plugin.client(self._task.client), plugin.link if self._task.share_limit else None

    def __dask_tokenize__(self) -> object:
        settings: Any = self._task.settings
        address = self._task.client.get("base_url")
        return ("ChatRows", sorted(settings.items()), address, self._task.journal_dir)

    def __repr__(self) -> str:
        return repr(self._task)


class _Clients:
    """Clients by their arguments."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clients: dict[bytes, Client] = {}
        self._users: dict[bytes, int] = {}

    def get(self, arguments: ClientArguments) -> Client:
        """Return the client with these arguments, which stays open until `close`."""
        key = pickle.dumps(dict(arguments))
        with self._lock:
            return self._get(key, arguments)

    def _get(self, key: bytes, arguments: ClientArguments) -> Client:
        client = self._clients.get(key)
        if client is None:
            client = self._clients[key] = Client(**arguments)
        return client

    @contextmanager
    def use(self, arguments: ClientArguments) -> Generator[Client]:
        """Return the client with these arguments; close it when its last user leaves the block."""
        key = pickle.dumps(dict(arguments))
        with self._lock:
            client = self._get(key, arguments)
            self._users[key] = self._users.get(key, 0) + 1
        try:
            yield client
        finally:
            with self._lock:
                self._users[key] -= 1
                is_last = not self._users[key]
                if is_last:
                    del self._users[key], self._clients[key]
            if is_last:
                client.close()

    def close(self) -> None:
        """Close all clients."""
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.close()


_local: Final = _Clients()
"""The clients of this process, where there is no worker of a cluster."""


class _ClientsPlugin(_api.WorkerPlugin):  # type: ignore[misc]  # pyright: ignore[reportUntypedBaseClass]
    """Keeps a worker's clients, and closes them with the worker."""

    name: str = "omnigate-clients"

    def __init__(self) -> None:
        self._clients = _Clients()
        self.link: DaskLink | None = None

    def setup(self, worker: Any) -> None:
        """Start with a worker, in its event loop."""
        self.link = DaskLink(worker)

    def client(self, arguments: ClientArguments) -> Client:
        """Return the worker's client with these arguments."""
        return self._clients.get(arguments)

    async def teardown(self, worker: Any) -> None:
        """Close the clients, in a thread: each waits for its own."""
        del worker
        await anyio.to_thread.run_sync(self._clients.close)


def _plugin_of(worker: Any) -> _ClientsPlugin:
    """Return the plugin of a worker, added if it is the first use."""
    with _lock:
        plugin = worker.plugins.get(_ClientsPlugin.name)
        if plugin is None:
            plugin = _ClientsPlugin()
            _api.utils.sync(worker.loop, worker.plugin_add, plugin, _ClientsPlugin.name, catch_errors=False)
        found: _ClientsPlugin = plugin
        return found


class Pacer:
    """The actor: a shared pacer."""

    def __init__(self) -> None:
        self._pacer = SharedPacer()

    async def exchange(self, report: bytes) -> bytes:
        """Return the grant for a report."""
        return self._pacer.exchange(report, time.monotonic())


def _pacer_of(client: Any, generation: int) -> Any:
    """Return the future of the cluster's pacer, which is created if it is not there.

    Its future is published on the scheduler, which keeps it for all.
    """
    name = f"omnigate-pacer-{generation}"
    with suppress(KeyError):
        return client.get_dataset(name)
    lock = _api.Lock("omnigate-pacer", scheduler_rpc=client.scheduler, loop=client.loop)
    if not lock.acquire(timeout=_CREATED_SECONDS):
        raise TimeoutError("another worker is starting the pacer")
    try:
        with suppress(KeyError):
            return client.get_dataset(name)
        key = f"{name}-{uuid.uuid4().hex}"
        future = client.submit(Pacer, actor=True, key=key, priority=_PRIORITY, pure=False)
        client.publish_dataset(future, name=name)
        return future
    finally:
        lock.release()


def _start_pacer() -> None:
    """Start the pacer before workers are busy, if there is a cluster that this program uses.

    The workers start it later if that fails, so a failure is only logged.
    """
    try:
        client = _api.get_client()
    except ValueError:
        return
    if client.asynchronous:
        return
    try:
        _pacer_of(client, 0)
    except OSError as error:  # a scheduler that is slow or gone
        logger.warning("dask: the pacer has not started yet: %s: %s", type(error).__name__, error)


class DaskLink:
    """The way from a worker to the cluster's shared pacer, which is started if there is none.

    Args:
        worker: of Dask.
    """

    def __init__(self, worker: object) -> None:
        self._worker: Any = worker
        self._lock = threading.Lock()
        self._generation = 0  # of the pacer: a lost actor's key cannot be used again
        self._future: Any = None
        self._actor: Any = None

    async def exchange(self, report: bytes) -> bytes:
        """Send a report to the pacer and return its grant; start the pacer first if there is none.

        Raises:
            OSError: there is no answer.

        """
        return await in_thread(self._exchange, report)

    def _exchange(self, report: bytes) -> bytes:
        try:
            with self._lock:
                actor = self._actor or self._find()
            grant: bytes = actor.exchange(report).result(timeout=_ANSWER_SECONDS)
        except Exception as error:
            with self._lock:
                self._actor = None  # the next exchange looks for it again
            raise OSError(f"the pacer does not answer: {type(error).__name__}") from error
        return grant

    def _find(self) -> Any:
        if self._future is not None and self._future.status in ("error", "cancelled", "lost"):
            self._future = None
            self._generation += 1
        if self._future is None:
            self._future = _pacer_of(self._worker._get_client(), self._generation)
        self._actor = self._future.result(timeout=_CREATED_SECONDS)
        return self._actor

    async def aclose(self) -> None:
        """Do nothing: the connection is the worker's."""

    def __repr__(self) -> str:
        return f"<DaskLink: generation {self._generation}>"
