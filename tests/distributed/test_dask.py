"""Real Dask: a cluster of four processes against the local gateway. Skipped where Dask is not installed."""

import os
import pickle
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omnigate import ClientClosedError, InvalidArgumentError, read_journal

from ..support.metered_gateway import Meter
from .conftest import LIMIT

pandas = pytest.importorskip("pandas", reason="needs pandas")
pytest.importorskip("distributed", reason="needs the extra `dask`: pip install 'omnigate[dask]'")

import dask.bag  # noqa: E402 - skipped where it is missing
import dask.dataframe  # noqa: E402
from distributed import Client, LocalCluster  # noqa: E402

from omnigate.distributed.dask import ChatRows, _ClientsPlugin, chat_bag, chat_frame  # noqa: E402

pytestmark = [pytest.mark.proof]

MODEL = "gpt-4o-mini"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Client]:
    with LocalCluster(
        n_workers=4, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        with Client(cluster) as client:
            yield client


def test_four_workers_keep_one_limit_and_use_it(cluster: Client, meter: Meter) -> None:
    count = 5 * LIMIT
    bag = dask.bag.from_sequence([{"id": n, "messages": "hi"} for n in range(count)], npartitions=4)
    made = chat_bag(bag, client=meter.client, model=MODEL).compute()
    assert [(row["id"], row["error"]) for row in made] == [(n, None) for n in range(count)]
    assert meter.rejections_per_window < 1
    assert meter.use >= 0.97


def test_a_frame_has_the_types_that_it_says_and_keeps_its_index(cluster: Client, free: Meter) -> None:
    frame = pandas.DataFrame({"text": [f"row {n}" for n in range(40)], "content": 1}, index=range(100, 140))
    made = chat_frame(
        dask.dataframe.from_pandas(frame, npartitions=4), client=free.client, model=MODEL, prompt="{text}"
    )
    result = made.compute()
    assert dict(result.dtypes) == dict(made.dtypes)
    assert result.index.tolist() == list(range(100, 140))
    assert result["content"].tolist() == [f"echo[{MODEL}]: row {n}" for n in range(40)]
    assert result["error"].isna().all()
    assert result["input_content"].tolist() == [1] * 40


def test_rows_can_be_submitted_and_each_worker_keeps_one_client(cluster: Client, free: Meter) -> None:
    chat = ChatRows(client=free.client, model=MODEL, prompt="{text}")
    rows: Any = [[{"text": f"row {part} {n}"} for n in range(5)] for part in range(8)]
    made = cluster.gather(cluster.map(chat, rows))
    assert [row["content"] for part in made for row in part] == [
        f"echo[{MODEL}]: row {part} {n}" for part in range(8) for n in range(5)
    ]
    clients = cluster.run(clients_of, free.client)
    assert set(clients.values()) <= {0, 1}
    assert sum(clients.values()) >= 1


def clients_of(arguments: dict[str, Any], dask_worker: Any) -> int:
    plugin = dask_worker.plugins.get(_ClientsPlugin.name)
    return 0 if plugin is None else sum(key == pickle.dumps(arguments) for key in plugin._clients._clients)


def test_a_killed_worker_that_had_the_pacer_leaves_one_outcome_for_each_id(
    cluster: Client, free: Meter, tmp_path: Path
) -> None:
    rows = [{"id": f"row-{n}", "messages": f"row {n}"} for n in range(400)]
    settings: Any = {"client": free.client, "journal_dir": tmp_path / "journals", "max_concurrency": 4}
    bag = chat_bag(dask.bag.from_sequence(rows, npartitions=8), model=MODEL, **settings)
    [pid] = [pid for pid, actors in cluster.run(pid_and_actors).values() if actors]
    future = cluster.compute(bag)
    wait_for_requests(free, 60)
    os.kill(pid, signal.SIGKILL)
    made = future.result(timeout=40)
    assert [(row["id"], row["error"]) for row in made] == [(row["id"], None) for row in rows]
    sent = free.prompts()
    assert len(sent) == 400
    assert sum(sent.values()) <= 400 + 4  # those that were in flight in the worker that died
    written = [
        outcome.id
        for path in (tmp_path / "journals").iterdir()
        for outcome in read_journal(path)
        if outcome.response is not None
    ]
    assert sorted(written) == sorted(row["id"] for row in rows)
    again = bag.compute()
    assert [row["content"] for row in again] == [row["content"] for row in made]
    assert free.prompts() == sent


def pid_and_actors(dask_worker: Any) -> tuple[int, list[str]]:
    return os.getpid(), [str(key) for key in dask_worker.state.actors]


def wait_for_requests(meter: Meter, count: int) -> None:
    seen = threading.Event()
    for _ in range(4_000):
        if len(meter.gateway.requests) >= count:
            return
        seen.wait(0.005)
    raise AssertionError(f"only {len(meter.gateway.requests)} requests")


def test_without_a_cluster_the_partitions_of_a_process_share_a_client(free: Meter) -> None:
    frame = dask.dataframe.from_pandas(
        pandas.DataFrame({"text": ["a", "b", "c", "d"]}, index=[0, 1, 2, 3]), 4
    )
    made = chat_frame(frame, client=free.client, model=MODEL, prompt="{text}")
    assert made.compute(scheduler="threads")["error"].isna().all()


async def closes_its_clients() -> None:
    plugin = _ClientsPlugin()
    plugin.setup(None)
    client = plugin.client({"api_key": "llmg_x", "base_url": "https://gateway.test"})
    assert plugin.client({"api_key": "llmg_x", "base_url": "https://gateway.test"}) is client
    await plugin.teardown(None)
    with pytest.raises(ClientClosedError):
        client.health()


def test_the_plugin_closes_its_clients_with_the_worker() -> None:
    import anyio

    anyio.run(closes_its_clients)


def test_what_is_sent_to_workers_shows_no_key(meter: Meter) -> None:
    chat = ChatRows(client=meter.client, model=MODEL, share_limit=False)
    assert meter.key not in repr(chat) + repr(vars(chat._task)) + repr(chat.__dask_tokenize__())
    assert pickle.loads(pickle.dumps(chat))._task.client["api_key"] == meter.key


def test_a_scheduler_that_is_slow_does_not_fail_the_job(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def acquire(self: object, timeout: float) -> bool:
        return False

    class Scheduler:
        asynchronous = False
        scheduler = loop = None

        def get_dataset(self, name: str) -> object:
            raise KeyError(name)

    lock = type("Lock", (), {"__init__": lambda self, *_, **__: None, "acquire": acquire})
    monkeypatch.setattr("distributed.Lock", lock)
    monkeypatch.setattr("distributed.get_client", Scheduler)
    ChatRows(model=MODEL, client={"api_key": "llmg_x", "base_url": "https://gateway.test"})
    assert "dask: the pacer has not started yet: TimeoutError: another worker is" in caplog.text


def test_a_wrong_argument_is_refused_before_a_graph_is_made() -> None:
    bag = dask.bag.from_sequence(["a"])
    with pytest.raises(InvalidArgumentError, match="temperature must be between 0 and 2, got 3"):
        chat_bag(bag, model=MODEL, temperature=3)
    with pytest.raises(InvalidArgumentError, match="journal must not be given"):
        chat_bag(bag, model=MODEL, journal="x")
