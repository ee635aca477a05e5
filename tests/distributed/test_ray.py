"""Real Ray: actors of Ray Data against the local gateway, and their pacer. Skipped where Ray is not installed."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from omnigate import BatchStats, InvalidArgumentError, read_journal
from omnigate._batch.pace.messages import Report, decode_grant, encode

from ..support.metered_gateway import Meter
from .conftest import LIMIT

pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
pytest.importorskip("ray", reason="needs the extra `ray`: pip install 'omnigate[ray]'")

import ray  # noqa: E402 - skipped where it is missing
import ray.data  # noqa: E402

from omnigate.distributed.ray import (  # noqa: E402
    NAMESPACE,
    RayLink,
    _Counters,
    _Counts,
    chat_dataset,
    pacer_name,
)

pytestmark = [
    pytest.mark.proof,
    pytest.mark.timeout(120),  # starting the processes of a cluster takes its time on a busy machine
    # Of Ray's own, on import and at its end:
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

MODEL = "gpt-4o-mini"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            configure_logging=False,
            log_to_driver=False,
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
        ray.shutdown()


def dataset(count: int, blocks: int) -> Any:
    ids = [list(range(start, count, blocks)) for start in range(blocks)]
    return ray.data.from_arrow([pyarrow.table({"id": part}) for part in ids])


def test_four_actors_keep_one_limit_and_use_it(cluster: None, meter: Meter) -> None:
    count = 5 * LIMIT
    made = chat_dataset(
        dataset(count, 4),
        client=meter.client,
        model=MODEL,
        prompt="Say {id}",
        id="id",
        workers=4,
        num_cpus=0.1,
        batch_size=count,
    )
    rows = made.take_all()
    assert sorted((row["id"], row["error"]) for row in rows) == [(n, None) for n in range(count)]
    assert meter.rejections_per_window < 1
    assert meter.use >= 0.97


def test_a_killed_actor_leaves_one_outcome_for_each_id(cluster: None, free: Meter, tmp_path: Path) -> None:
    pids, journals = tmp_path / "pids", tmp_path / "journals"
    pids.mkdir()

    def prompt(row: Any) -> str:
        (pids / str(os.getpid())).touch()
        return f"row {row['id']}"

    settings: Any = {"client": free.client, "model": MODEL, "id": "id", "batch_size": 25, "num_cpus": 0.1}
    settings |= {"journal_dir": journals, "max_concurrency": 2}
    killed: list[int] = []
    killer = threading.Thread(target=kill_one, args=(free, pids, killed))
    killer.start()
    rows = chat_dataset(dataset(200, 8), prompt=prompt, workers=2, **settings).materialize()
    killer.join()
    assert len(killed) == 1
    found = rows.take_all()
    assert sorted((row["id"], row["error"]) for row in found) == [(n, None) for n in range(200)]
    assert len(free.prompts()) == 200
    written = [
        outcome.id for path in journals.iterdir() for outcome in read_journal(path) if outcome.response
    ]
    assert sorted(written) == sorted(str(n) for n in range(200))

    sent = free.prompts()
    more = chat_dataset(dataset(210, 1), prompt="row {id}", workers=1, done=rows, **settings).take_all()
    assert sorted(row["id"] for row in more) == list(range(200, 210))
    assert sum(free.prompts().values()) == sum(sent.values()) + 10


def kill_one(meter: Meter, pids: Path, killed: list[int]) -> None:
    """Kill one of the actors once some calls have been made."""
    for _ in range(6_000):
        if len(meter.gateway.requests) >= 20:
            killed.append(int(next(pids.iterdir()).name))
            os.kill(killed[0], signal.SIGKILL)
            return
        threading.Event().wait(0.01)


@pytest.mark.anyio
async def test_a_dead_pacer_is_an_os_error_and_then_started_again(cluster: None) -> None:
    link = RayLink()
    report = encode(Report(1, b"digest of a key!", "worker", is_hungry=True, want=5))
    first = decode_grant(await link.exchange(report))
    assert decode_grant(await link.exchange(report)).epoch == first.epoch
    other = RayLink()
    assert decode_grant(await other.exchange(report)).epoch == first.epoch, "found by all"
    ray.kill(ray.get_actor(pacer_name(b"digest of a key!"), namespace=NAMESPACE))
    with pytest.raises(OSError, match=r"the pacer omnigate-pacer-\w+ does not answer: Actor\w+Error"):
        for _ in range(10_000):  # Ray kills it some time after it has said so
            await link.exchange(report)
    assert decode_grant(await exchanged_again(link, report)).epoch != first.epoch
    assert "omnigate-pacer" in repr(link)
    await link.aclose()


async def exchanged_again(link: RayLink, report: bytes) -> bytes:
    for _ in range(100):
        with suppress(OSError):  # the name may still lead to the dying one
            return await link.exchange(report)
    raise AssertionError("no pacer was started again")


def test_a_wrong_argument_is_refused_before_anything_starts() -> None:
    given: Any = None
    for wrong, message in [
        ({"workers": 0}, "workers must be an integer of at least 1, got 0|workers must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"num_cpus": -1}, "num_cpus must be"),
        ({"namespace": ""}, "namespace must be"),
        ({"temperature": 3}, "temperature must be between 0 and 2, got 3"),
        ({"journal": "x"}, "journal must not be given"),
        ({"prompt": "{x}", "model": None}, "model must be the name of a model"),
    ]:
        with pytest.raises(InvalidArgumentError, match=message):
            chat_dataset(given, **{"model": MODEL, **wrong})


class Metric:
    def __init__(self) -> None:
        self.values: list[Any] = []

    def inc(self, value: float, tags: Any = None) -> None:
        self.values.append((value, tags) if tags else value)

    set = inc


def test_the_counts_of_batches_are_metrics() -> None:
    counters = _Counters.__new__(_Counters)
    counters.rows, counters.tokens, counters.cost = Metric(), Metric(), Metric()
    counters.rejections, counters._gauge, counters._in_flight = Metric(), Metric(), 0
    seen: list[BatchStats] = []
    counts, other = _Counts(counters, seen.append), _Counts(counters, False)
    counts(BatchStats(succeeded=2, in_flight=3, total_tokens=7, cost_usd=0.5))
    other(BatchStats(failed=1, in_flight=2, rejections=1))
    counts(BatchStats(succeeded=5, in_flight=0, total_tokens=7, cost_usd=0.75))
    assert counters.rows.values == [
        (2, {"outcome": "succeeded"}),
        (1, {"outcome": "failed"}),
        (3, {"outcome": "succeeded"}),
    ]
    assert counters.tokens.values == [7.0]
    assert counters.cost.values == [0.5, 0.25]
    assert counters.rejections.values == [1.0]
    assert counters._gauge.values == [3, 5, 2]
    assert len(seen) == 2
