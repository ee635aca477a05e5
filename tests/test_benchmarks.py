"""The benchmarks run: a few calls for each contender that needs only the tests' dependencies."""

import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks import data as data_benchmark
from benchmarks import distributed
from benchmarks.harness import Result, measure, run, server
from benchmarks.report import Mark, data, marks, page
from benchmarks.server import CHUNKS
from benchmarks.suite import Section, sections

pytestmark = pytest.mark.proof

FACTS: dict[str, Any] = {
    "processor": "p",
    "cores": 2,
    "system": "s",
    "python": "3",
    "versions": {"omnigate": "1"},
}


@pytest.mark.parametrize(
    ("contender", "backend"),
    [
        ("protocol", "asyncio"),
        ("protocol", "uvloop"),
        ("trio_socket", "trio"),
        ("bare", "trio"),
        ("ours", "asyncio"),
        ("ours", "uvloop"),
        ("ours", "trio"),
        ("openai", "asyncio"),
        ("openai_over_ours", "asyncio"),
        ("httpx", "asyncio"),
        ("httpx2", "trio"),
    ],
)
def test_a_benchmark_contender_makes_its_calls(contender: str, backend: str) -> None:
    with server() as port:
        case = {"what": "calls", "url": f"http://127.0.0.1:{port}", "concurrency": 4, "calls": 16}
        assert measure(contender, case | {"backend": backend})["microseconds"] > 0


@pytest.mark.parametrize("what", ["stream", "sync_stream"])
def test_a_benchmark_reads_a_stream_whole(what: str) -> None:
    with server() as port:
        case = {"what": what, "url": f"http://127.0.0.1:{port}", "backend": "asyncio", "stream": True}
        assert measure("ours", case | {"streams": 1, "chunks": CHUNKS})["microseconds"] > 0


@pytest.mark.parametrize("contender", ["ours", "openai", "openai_over_ours", "httpx2"])
def test_a_benchmark_times_the_first_chunk(contender: str) -> None:
    with server("--chunks", "4") as port:
        case = {
            "what": "first_chunk",
            "url": f"http://127.0.0.1:{port}",
            "backend": "asyncio",
            "stream": True,
        }
        assert measure(contender, case | {"streams": 3})["first_microseconds"] > 0


@pytest.mark.parametrize(
    ("contender", "what"), [("bare", "batch"), ("ours", "batch"), ("ours", "sync_batch")]
)
def test_a_benchmark_completes_a_batch(contender: str, what: str) -> None:
    with server() as port:
        case = {"what": what, "url": f"http://127.0.0.1:{port}", "backend": "trio", "journal": True}
        figures = measure(contender, case | {"items": 64, "concurrency": 8})
    assert min(figures.values()) > 0


def test_a_benchmark_reports_the_best_of_its_rounds_and_a_line_for_what_failed() -> None:
    section = Section("sync", "Sync calls", "A note.", "threads", "calls_per_second", "calls/s")
    section.add("ours", "trio", 2, what="sync_calls", threads=2, calls=8)
    section.add("protocol", "trio", 1, what="nothing that is measured", threads=2, calls=8)
    section.run(run)
    section.results[0].figures.append({"calls_per_second": 1e9})
    assert section.results[0].best("calls_per_second") == 1e9
    text = page([section], "command", "today", FACTS)
    assert "| omnigate, trio | 1,000,000,000 |" in text
    assert "Skipped: protocol failed: KeyError" in text
    assert '"calls_per_second": 1000000000.0' in data([section], "command", "today", FACTS)


def test_a_mark_says_whether_it_is_met() -> None:
    given = [Mark("a", 0.5, 0.5), Mark("b", 0.5, 0.4), Mark("c", 2.0, 2.0, True), Mark("d", None, 1.0)]
    assert [mark.verdict for mark in given] == ["yes", "**no**", "yes", "not measured"]


def test_marks_compare_the_best_figures_of_one_table() -> None:
    late = next(section for section in sections(quick=True) if section.name == "late")
    for result in late.results:
        if result.case["backend"] == "asyncio":
            result.figures += [{"microseconds": {"ours": 50.0, "bare": 100.0}.get(result.contender, 1.0)}]
            result.figures += [{"microseconds": 200.0}]
    assert [(mark.ratio, mark.verdict) for mark in marks([late])] == [(0.5, "yes"), (None, "not measured")]


def test_plots_are_drawn_from_a_table(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.plots import draw

    section = Section("calls", "A call", "A note.", "concurrency", "microseconds", "µs")
    section.results.append(Result("ours", {"backend": "trio", "concurrency": 1}, 1, [{"microseconds": 50.0}]))
    assert [file.name for file in draw([section], tmp_path)] == ["calls.png"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_benchmark_reads_rows_of_data(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    data_benchmark.write(path, 100)
    case = {"kind": kind, "id": "key", "items": 100, "path": str(path), "concurrency": 8}
    assert math.isfinite(measure("ours", case | {"what": "data"})["microseconds"])
    with server() as port:
        url = f"http://127.0.0.1:{port}"
        assert measure("ours", case | {"what": "data_batch", "url": url})["megabytes"] > 0


def test_a_benchmark_runs_processes_with_and_without_a_shared_pacer() -> None:
    with server("--unlimited") as port, distributed.pacer_server() as address:
        for used in ("", address):
            rate, cost, messages = distributed.measure(f"http://127.0.0.1:{port}", used, 2, 50)
            assert rate > 0
            assert cost > 0
            assert (messages > 0) == bool(used)
    assert all(cost > 0 for cost in distributed.cost_of_a_call(100))
