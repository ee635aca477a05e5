"""The benchmarks run: a few calls for each contender that needs only the tests' dependencies."""

import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks import data
from benchmarks.harness import Check, Result, measure, report, run, server
from benchmarks.server import CHUNKS

pytestmark = pytest.mark.proof


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("contender", ["bare", "ours", "openai"])
def test_a_benchmark_contender_makes_its_calls(contender: str, backend: str) -> None:
    with server() as port:
        case = {"what": "calls", "url": f"http://127.0.0.1:{port}", "concurrency": 4, "calls": 16}
        assert measure(contender, case | {"backend": backend})["microseconds"] > 0


@pytest.mark.parametrize("what", ["stream", "sync_stream"])
def test_a_benchmark_reads_a_stream_whole(what: str) -> None:
    with server("--delay", "0.001") as port:
        case = {"what": what, "url": f"http://127.0.0.1:{port}", "backend": "asyncio"}
        assert measure("ours", case | {"streams": 1, "chunks": CHUNKS})["microseconds"] > 0


@pytest.mark.parametrize(
    ("contender", "what"), [("bare", "batch"), ("ours", "batch"), ("ours", "sync_batch")]
)
def test_a_benchmark_completes_a_batch(contender: str, what: str) -> None:
    with server() as port:
        case = {"what": what, "url": f"http://127.0.0.1:{port}", "backend": "trio", "journal": True}
        figures = measure(contender, case | {"items": 64, "concurrency": 8})
    assert min(figures.values()) > 0


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_benchmark_reads_rows_of_data(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    data.write(path, 100)
    case = {"kind": kind, "id": "key", "items": 100, "path": str(path), "concurrency": 8}
    assert math.isfinite(measure("ours", case | {"what": "data"})["microseconds"])
    with server() as port:
        url = f"http://127.0.0.1:{port}"
        assert measure("ours", case | {"what": "data_batch", "url": url})["megabytes"] > 0


def test_a_benchmark_reports_the_best_of_its_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    with server() as port:
        case: dict[str, Any] = {
            "what": "sync_calls",
            "url": f"http://127.0.0.1:{port}",
            "backend": "trio",
            "threads": 2,
            "calls": 8,
        }
        result = Result("ours", case, rounds=2)
        run([result])
    assert math.isfinite(result.figures["calls_per_second"])
    result.add({"calls_per_second": 1e9, "microseconds": 1e9})
    assert result.figures["calls_per_second"] == 1e9
    assert result.figures["microseconds"] < 1e9
    report(
        "A title",
        [Check("met", 1.0, 2.0, 0.5), Check("missed", 1.0, 2.0, 0.4), Check("more", 4.0, 2.0, 2.0, True)],
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-2] for line in lines[-3:]] == ["yes", "NO", "yes"]
