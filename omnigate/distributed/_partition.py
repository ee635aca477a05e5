"""One partition of a larger job: its rows in, the same rows with their results out, in order.

An engine that gets an exception from a partition runs it again, or ends the job. So no exception here is
about a row: one that is not valid, whose call failed, or that a stopped batch has not called says so in
`error`. Only an invalid argument raises, before anything is sent.

A journal may be in use when the partition starts: an engine runs a partition elsewhere once it believes that
its worker has died, and sometimes that worker is still at it. Then it waits until the journal is free, and
finds in it what has been done.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias, TypedDict, Unpack, cast, overload

import anyio
import msgspec

from omnigate._batch.items import item_id
from omnigate._batch.items import row_of as fields_of
from omnigate._batch.journal.journal import JournalWarning, RepeatedIdError
from omnigate._batch.options import MAX_WAIT_SECONDS, BatchSettings
from omnigate._batch.outcomes import Outcome
from omnigate._batch.recipe import Recipe
from omnigate._batch.rows import row_of
from omnigate._calls.retry import RetryConfig
from omnigate._data.inspection import ITEM_FIELDS
from omnigate._data.rows import names_of
from omnigate._data.templates import Template
from omnigate._runtime.frames import warn
from omnigate._runtime.threads import in_thread
from omnigate._wire.checks import refusal
from omnigate._wire.options import check_known
from omnigate._wire.redaction import redact, shown
from omnigate._wire.values import Id, Integer
from omnigate.async_client import AsyncClient
from omnigate.client import Client
from omnigate.distributed._tables import TableT, items_of, names_of_columns, with_results
from omnigate.exceptions import GatewayError, InvalidArgumentError, JournalError

_A: Final = {"AsyncClient": "an AsyncClient", "Client": "a Client"}

_LOOK_AGAIN_SECONDS: Final = 0.5
"""Between two looks at a journal that is in use."""


class ClientArguments(TypedDict, total=False):
    """The arguments of a client that can be sent to another machine; see `AsyncClient`.

    Without an `api_key`, each worker takes its own `$OMNIGATE_API_KEY`; then no key is part of the job.
    """

    api_key: str | None
    base_url: str | None
    user_id: Id | None
    timeout: float | None
    retries: Integer
    retry_config: RetryConfig | None
    headers: Mapping[str, str | None] | None
    verify: bool
    max_response_bytes: Integer


class PartitionSettings(BatchSettings, total=False):
    """The arguments of `chat_partition` on top of those of `chat_many`.

    Attributes:
        stop_on: as in `batch`; rows that were not called then have that error.
        response_type: as in `batch`; the values are in the column `parsed`.
    """

    stop_on: Any
    response_type: Any


Rows: TypeAlias = list[dict[str, Any]]


@overload
async def chat_partition(
    rows: TableT,
    *,
    client: AsyncClient | ClientArguments,
    **settings: Unpack[PartitionSettings],
) -> TableT: ...


@overload
async def chat_partition(
    rows: Iterable[object],
    *,
    client: AsyncClient | ClientArguments,
    **settings: Unpack[PartitionSettings],
) -> Rows: ...


async def chat_partition(
    rows: Any,
    *,
    client: AsyncClient | ClientArguments,
    **settings: Unpack[PartitionSettings],
) -> Any:
    """Call a model for each row of a partition, and return the rows with the results as columns, in order.

    The columns are those of `write_outcomes`: `content`, `error`, `prompt_tokens`, `completion_tokens`,
    `total_tokens`, `cost_usd`, `latency_ms`, `attempts` and `request_id`; with `response_type` also `parsed`
    (in tables as JSON text). A column of the input with one of these names is called `input_content`, say.
    No row raises: one that is not valid, whose call failed, or that was not called because the batch ended
    early, says why in `error`.

    Args:
        rows: a `pyarrow.Table`, a `pandas.DataFrame` (its index is kept), or an iterable of items as `batch`
            takes them, such as dicts. All of them are kept in memory.
        client: a client, or the arguments to make one with, which is closed at the end.
        settings: as in `chat_many`, see `PartitionSettings`; `pacer` leads to one that all workers share.
            With a `journal`, a partition that is run again goes on where it was. If another process is still
            using it, that one's end is waited for, up to `max_wait_seconds`.

    Returns:
        A table of the same kind, or a list of dicts.

    Raises:
        InvalidArgumentError: an argument is not allowed, or names a column that the rows do not have; nothing
            was sent.

    """
    check_known(settings, PartitionSettings, "chat_partition")
    partition = await in_thread(lambda: Partition(rows, settings))
    if isinstance(client, AsyncClient):
        await _run(partition, client)
    else:
        async with AsyncClient(**_arguments(client, "AsyncClient")) as own:
            await _run(partition, own)
    return await in_thread(partition.table)


async def _run(partition: Partition, client: AsyncClient) -> None:
    while True:
        batch = client.batch(partition.items, **partition.settings)
        try:
            async with batch:
                partition.begin()
                async for outcome in batch:
                    partition.add(outcome)
        except Exception as error:  # noqa: BLE001 - it is in the rows then
            if partition.has_ended_by(error):
                return
        else:
            return
        await anyio.sleep(_LOOK_AGAIN_SECONDS)


@overload
def chat_partition_sync(
    rows: TableT,
    *,
    client: Client | ClientArguments,
    **settings: Unpack[PartitionSettings],
) -> TableT: ...


@overload
def chat_partition_sync(
    rows: Iterable[object],
    *,
    client: Client | ClientArguments,
    **settings: Unpack[PartitionSettings],
) -> Rows: ...


def chat_partition_sync(
    rows: Any,
    *,
    client: Client | ClientArguments,
    **settings: Unpack[PartitionSettings],
) -> Any:
    """Do the same as `chat_partition`, in the calling thread.

    Args:
        rows: as in `chat_partition`.
        client: a `Client`, which any number of threads may share; or the arguments to make one with.
        settings: as in `chat_partition`.

    Returns:
        As `chat_partition`.

    Raises:
        InvalidArgumentError: as `chat_partition`.

    """
    check_known(settings, PartitionSettings, "chat_partition_sync")
    partition = Partition(rows, settings)
    if isinstance(client, Client):
        _run_sync(partition, client)
    else:
        with Client(**_arguments(client, "Client")) as own:
            _run_sync(partition, own)
    return partition.table()


def _run_sync(partition: Partition, client: Client) -> None:
    while True:
        batch = client.batch(partition.items, **partition.settings)
        try:
            with batch:
                partition.begin()
                for outcome in batch:
                    partition.add(outcome)
        except Exception as error:  # noqa: BLE001 - it is in the rows then
            if partition.has_ended_by(error):
                return
        else:
            return
        time.sleep(_LOOK_AGAIN_SECONDS)


def _arguments(client: object, kind: str) -> Any:
    if not isinstance(client, Mapping):
        raise refusal("client", client, f"be {_A[kind]}, or a dict of its arguments", is_type=True)
    arguments = cast("Mapping[str, object]", client)
    check_known(arguments, ClientArguments, "client")
    return arguments


def check_prompt(settings: PartitionSettings) -> None:
    """Check that there is a model where each row has to have the same one.

    Raises:
        InvalidArgumentError: there is none.
    """
    if settings.get("prompt") is not None and settings.get("model") is None:
        raise refusal("model", None, "be the name of a model, since prompt= is given")


class Items:
    """Items of a batch, which knows how many there are; their ids have been checked."""

    def __init__(self, items: list[Any]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class Partition:
    """The rows of a partition, and how each of them ended.

    Args:
        rows: as in `chat_partition`.
        settings: as in `chat_partition`.

    Attributes:
        items: those to call.
        settings: the arguments of the batch.

    Raises:
        InvalidArgumentError: an argument is not allowed, or names a column that the rows do not have.
    """

    def __init__(self, rows: Any, settings: PartitionSettings) -> None:
        self._rows = rows
        self.settings: Any = settings
        self._raw = items_of(rows)
        self._is_table = names_of_columns(rows) is not None
        self._results: list[dict[str, Any] | None] = [None] * len(self._raw)
        self._places: list[int] = []  # of the items to call, among the rows
        self._has_begun = False
        self._give_up_at: float | None = None
        check_prompt(settings)
        self._recipe = Recipe(
            settings.get("model"), settings.get("prompt"), settings.get("system"), settings.get("id")
        )
        self._check_columns()
        self._recipe.check(self._raw)
        self._hold_back(has_journal=settings.get("journal") is not None)
        self.items: Items = Items([self._raw[place] for place in self._places])

    def _check_columns(self) -> None:
        """Check that a table has the columns that the arguments name."""
        names = names_of_columns(self._rows)
        if names is None:
            return
        prompt, id = self.settings.get("prompt"), self._recipe.id
        if prompt is None and ITEM_FIELDS.isdisjoint(names):
            name = next((name for name in names if name != id), "text")
            raise InvalidArgumentError(
                f"the rows have the columns {names_of(names)}, and neither 'prompt' nor 'messages'; say with "
                f"prompt= how a row becomes one, for example prompt='Summarise: {{{name}}}'"
            )
        wanted = [("prompt", name) for name in Template(prompt).fields] if isinstance(prompt, str) else []
        if id is not None:
            wanted.append(("id", id))
        for argument, name in wanted:
            if name not in names:
                raise InvalidArgumentError(
                    f"{argument} names the column {name!r}, which the rows do not have; they have"
                    f" {names_of(names)}"
                )

    def _hold_back(self, *, has_journal: bool) -> None:
        """Give rows whose id is missing or taken their error: with a journal, they would end the batch."""
        if not has_journal:
            self._places = list(range(len(self._raw)))
            return
        id = self._recipe.id
        is_by_index = self.settings.get("prompt") is not None and id is None
        places: dict[str, int] = {}
        for place, raw in enumerate(self._raw):
            fields = None if is_by_index else fields_of(raw)
            try:
                text = str(len(self._places)) if fields is None else item_id(fields, len(self._places), id)
            except InvalidArgumentError as error:
                self._end(place, type(error)(f"row {place + 1}: {error}"))
                continue
            if text in places:
                first = places[text] + 1
                problem = (
                    f"row {place + 1} has the id {shown(text)} of row {first}; each needs one of its own"
                )
                self._end(place, RepeatedIdError(problem))
                continue
            places[text] = place
            self._places.append(place)

    def begin(self) -> None:
        """Record that the batch has started: no error is one of an argument any more."""
        self._has_begun = True

    def add(self, outcome: Outcome) -> None:
        """Record the outcome of an item."""
        self._record(self._places[outcome.index], outcome)

    def has_ended_by(self, error: Exception) -> bool:
        """Handle the error that a batch raised; return False if it is to be tried again a little later.

        Raises:
            InvalidArgumentError, ImportError: the error itself, if it is about an argument.
        """
        if not self._has_begun:
            if not isinstance(error, GatewayError | OSError) or isinstance(error, InvalidArgumentError):
                raise error
            if isinstance(error, JournalError) and isinstance(error.__cause__, BlockingIOError):  # in use
                now = time.monotonic()
                if self._give_up_at is None:
                    self._give_up_at = now + float(self.settings.get("max_wait_seconds", MAX_WAIT_SECONDS))
                if now < self._give_up_at:
                    return False
        if isinstance(error, JournalError) and None not in self._results:
            warn(str(error), JournalWarning)
        for place in self._places:
            if self._results[place] is None:
                self._end(place, error)
        return True

    def _end(self, place: int, error: Exception) -> None:
        """Record that a row was not called, and why."""
        item = self._recipe.read(self._raw[place], place)
        row = fields_of(self._raw[place])
        outcome = Outcome(index=place, id=item.id, request=item.request, error=GatewayError(), item=row)
        made = self._record(place, outcome)
        made["error"] = redact(f"{type(error).__name__}: {error}")

    def _record(self, place: int, outcome: Outcome) -> dict[str, Any]:
        if self._is_table:  # which has the columns of the input
            outcome = msgspec.structs.replace(outcome, item={})
        made = self._results[place] = row_of(outcome)
        return made

    def table(self) -> Any:
        """Return the rows with their results."""
        results = cast("list[dict[str, Any]]", self._results)
        assert None not in self._results
        if not self._is_table:
            return results
        return with_results(self._rows, results, has_parsed=self.settings.get("response_type") is not None)
