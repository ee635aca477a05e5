"""How well workers of Ray and Dask keep one rate limit, side by side in one run.

python -m benchmarks.distributed_engines [--limit 60] [--window 3] [--windows 6] [--workers 4]

Needs the extras `ray` and `dask`. Each contender sends the same number of calls to a local gateway with short
windows: our batches with a shared pacer, the same with header pacing alone, and Ray Data's own HTTP stage, at
the limit's rate for each actor and with its retries. `use` is the part of the limit that was used in the
windows between a contender's first one and its last.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from omnigate.testing import LocalGateway

MODEL = "gpt-4o-mini"


class Figures(NamedTuple):
    """What a contender did."""

    succeeded: int
    rejections_per_window: float
    use: float
    seconds: float


class Course:
    """A gateway with short windows, and the calls to make.

    Args:
        limit: calls in a window.
        window_seconds: its length.
        windows: how many windows' calls to make.
        workers: of each contender.
    """

    def __init__(self, limit: int, window_seconds: int, windows: int, workers: int) -> None:
        self.limit, self.window_seconds, self.workers = limit, window_seconds, workers
        self.count = limit * windows

    def run(self, contender: Callable[[Course, LocalGateway, str], int]) -> Figures:
        """Run a contender, which returns how many calls succeeded, and measure it."""
        times: list[tuple[float, bool]] = []
        with LocalGateway(rate_window_seconds=self.window_seconds, latency_seconds=0.05) as gateway:
            limiter: Any = gateway._state.limiter
            admit = limiter.admit

            def metered(project_id: str, limit: int, now: float) -> Any:
                admission = admit(project_id, limit, now)
                times.append((time.time(), admission.allowed))
                return admission

            limiter.admit = metered
            key = gateway.create_project(rate_limit_per_min=self.limit).api_key
            succeeded = contender(self, gateway, key)
        windows = Counter(int(at // self.window_seconds) for at, allowed in times if allowed)
        whole = range(min(windows) + 1, max(windows))
        return Figures(
            succeeded,
            (len(times) - windows.total()) / len(windows),
            sum(windows[window] for window in whole) / (len(whole) * self.limit),
            times[-1][0] - times[0][0],
        )


def on_dask(course: Course, gateway: LocalGateway, key: str, *, share_limit: bool) -> int:
    """Run a bag."""
    import dask.bag
    from distributed import Client, LocalCluster

    from omnigate.distributed.dask import chat_bag

    rows = [{"id": n, "messages": "hi"} for n in range(course.count)]
    with (
        LocalCluster(n_workers=course.workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        bag = dask.bag.from_sequence(rows, npartitions=course.workers)
        client: Any = {"api_key": key, "base_url": gateway.url}
        made = chat_bag(bag, client=client, model=MODEL, share_limit=share_limit).compute()
    return sum(row["error"] is None for row in made)


def dataset(course: Course) -> Any:
    """Return as many blocks of rows as there are workers."""
    import pyarrow
    import ray.data

    blocks = [list(range(start, course.count, course.workers)) for start in range(course.workers)]
    return ray.data.from_arrow([pyarrow.table({"id": ids}) for ids in blocks])


def on_ray(course: Course, gateway: LocalGateway, key: str, *, share_limit: bool) -> int:
    """Run a dataset."""
    from omnigate.distributed.ray import chat_dataset

    made: Any = chat_dataset(
        dataset(course),
        client={"api_key": key, "base_url": gateway.url},
        model=MODEL,
        prompt="Say {id}",
        workers=course.workers,
        num_cpus=0.1,
        batch_size=course.count,
        share_limit=share_limit,
    )
    return sum(row["error"] is None for row in made.take_all())


def rays_http_stage(course: Course, gateway: LocalGateway, key: str) -> int:
    """Run the HTTP stage of Ray Data, each actor with its part of the limit."""
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    qps = max(1, course.limit // course.window_seconds // course.workers)
    config: Any = HttpRequestProcessorConfig(
        url=f"{gateway.url}/v1/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        qps=qps,
        max_retries=5,
        concurrency=course.workers,
        batch_size=course.count // course.workers,
    )
    processor: Any = build_processor(config, preprocess=_payload, postprocess=_content)
    return sum(row["content"] is not None for row in processor(dataset(course)).take_all())


def _payload(row: dict[str, Any]) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Say {row['id']}"}]
    return {"payload": {"model": MODEL, "messages": messages}}


def _content(row: dict[str, Any]) -> dict[str, Any]:
    choices = row["http_response"].get("choices")
    return {"content": choices[0]["message"]["content"] if choices else None}


def main() -> None:
    """Run all contenders and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("limit", 60), ("window", 3), ("windows", 6), ("workers", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    course = Course(given.limit, given.window, given.windows, given.workers)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    import ray.data

    print(f"{'':34}{'succeeded':>10}{'rejections a window':>21}{'use':>8}{'seconds':>9}")

    def show(name: str, contender: Callable[[Course, LocalGateway, str], int]) -> None:
        try:
            figures = course.run(contender)
        except Exception as error:  # noqa: BLE001 - the others are still to come
            print(f"{name:34}  {type(error).__name__}: {str(error).splitlines()[0][:90]}")
            return
        print(
            f"{name:34}{figures.succeeded:>10}{figures.rejections_per_window:>21.1f}"
            f"{figures.use:>8.0%}{figures.seconds:>9.1f}",
            flush=True,
        )

    show("Dask, shared pacer", lambda *args: on_dask(*args, share_limit=True))
    show("Dask, header pacing", lambda *args: on_dask(*args, share_limit=False))
    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    show("Ray, shared pacer", lambda *args: on_ray(*args, share_limit=True))
    show("Ray, header pacing", lambda *args: on_ray(*args, share_limit=False))
    show("Ray Data's HTTP stage", rays_http_stage)
    ray.shutdown()


if __name__ == "__main__":
    main()
