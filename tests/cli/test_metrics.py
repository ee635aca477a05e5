"""`omnigate metrics`: totals, breakdown, the series as a table, a chart or a picture."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from omnigate import Client
from omnigate.cli._frame.charts import chart_lines, series
from omnigate.cli._frame.tables import Column, cells_of, table_lines
from omnigate.testing import LocalGateway

from .conftest import Cli

START = datetime(2026, 1, 31, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def used(gateway: LocalGateway) -> LocalGateway:
    with Client(gateway.api_key, base_url=gateway.url) as client:
        for model in ("gpt-4o-mini", "gpt-4o-mini", "gpt-4o"):
            client.chat(model=model, messages="hi there")
    return gateway


def test_metrics_show_totals_breakdown_and_series(used: LocalGateway, cli: Cli) -> None:
    done = cli("metrics", "--range", "7d", "--group-by", "model")
    assert (done.code, done.err) == (0, "")
    totals, breakdown, rows = done.out.split("\n\n")
    assert dict(line.split("  ", 1) for line in totals.splitlines()).keys() >= {
        "requests",
        "tokens",
        "cost",
        "latency",
    }
    assert breakdown.split()[:6] == ["model", "requests", "tokens", "cost", "latency", "errors"]
    assert {line.split()[0] for line in breakdown.splitlines()[1:]} == {"gpt-4o-mini", "gpt-4o"}
    assert rows.startswith("day (UTC)")


def test_metrics_as_json_are_those_of_the_gateway(used: LocalGateway, cli: Cli) -> None:
    shown = cli("metrics", "--from", "2020-01-01T00:00:00Z", "--granularity", "hour", "--json").json
    assert shown["totals"]["requests"] >= 3
    assert shown["granularity"] == "hour"


@pytest.mark.parametrize("ending", ["png", "svg"])
@pytest.mark.proof
def test_a_picture_of_the_series_is_written(
    ending: str, used: LocalGateway, cli: Cli, tmp_path: Path
) -> None:
    path = tmp_path / f"plot.{ending}"
    done = cli("metrics", "--plot", str(path))
    assert (done.code, done.err) == (0, f"Wrote {path}.\n")
    assert path.read_bytes().startswith(b"\x89PNG" if ending == "png" else b"<?xml")


def test_a_picture_without_matplotlib_names_the_extra_before_anything_is_asked(
    gateway: LocalGateway, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    before = len(gateway.requests)
    done = cli("metrics", "--plot", "x.png")
    assert (done.code, done.out) == (1, "")
    assert done.err == "Error: --plot needs matplotlib: pip install 'omnigate[plot]'\n"
    assert len(gateway.requests) == before


@pytest.mark.proof
def test_a_picture_that_cannot_be_written_is_one_line(used: LocalGateway, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "missing" / "plot.png"
    done = cli("metrics", "--plot", str(path))
    assert (done.code, done.err) == (1, f"Error: {path}: No such file or directory\n")


def test_a_series_has_a_sum_for_every_step_also_without_points() -> None:
    points = [(START + 2 * HOUR, 5.0), (START + 2 * HOUR + timedelta(minutes=59), 1.0)]
    found = series(points, START, START + 4 * HOUR, HOUR, 80)
    assert (found.start, found.step, found.values) == (START, HOUR, [0, 0, 6, 0])


def test_a_series_of_more_steps_than_columns_takes_some_together() -> None:
    points = [(START + n * HOUR, 1.0) for n in range(100)]
    found = series(points, START, START + 100 * HOUR, HOUR, 30)
    assert (found.step, len(found.values), sum(found.values)) == (4 * HOUR, 25, 100)


def test_a_series_of_years_in_minutes_stays_small() -> None:
    found = series([(START, 1.0)], START - timedelta(days=36_500), START, timedelta(minutes=1), 60)
    assert (len(found.values) <= 60, sum(found.values)) == (True, 1)


@pytest.mark.parametrize("columns", [20, 40, 60, 120])
@pytest.mark.parametrize("count", [1, 2, 24, 168, 500])
def test_a_chart_fits_its_columns_and_shows_every_step_above_zero(columns: int, count: int) -> None:
    points = [(START + n * HOUR, 1.0 if n else 1_000_000.0) for n in range(count)]
    lines = chart_lines(
        "requests",
        points,
        START,
        START + count * HOUR,
        HOUR,
        columns=columns,
        label=lambda value: f"{value:,.0f}",
    )
    assert max(cells_of(line) for line in lines[1:-1]) <= columns
    assert cells_of(lines[-1]) <= max(columns, 26)
    _, _, lowest = lines[-2].partition("│")
    assert set(lowest) <= set("▁█")


def test_a_chart_has_whole_bars_in_ascii() -> None:
    lines = chart_lines(
        "errors", [(START, 8.0), (START + HOUR, 4.0)], START, START + 2 * HOUR, HOUR,
        columns=40, label=lambda value: f"{value:.0f}", is_ascii=True,
    )  # fmt: skip
    assert lines == [
        "errors per hour",
        "8 |######",
        *(["  |######"] * 3),
        *(["  |############"] * 3),
        "0 |############",
        "   01-31 00:00 to 01-31 02:00 UTC",
    ]


COLUMNS = [Column("name", can_shrink=True), Column("cost", is_number=True)]


def test_a_table_aligns_text_to_the_left_and_numbers_to_the_right() -> None:
    assert table_lines(COLUMNS, [("a", "1"), ("bcdef", "1,000")]) == [
        "name    cost",
        "a          1",
        "bcdef  1,000",
    ]


def test_a_table_that_is_too_wide_is_cut_where_it_may_be() -> None:
    lines = table_lines(COLUMNS, [("a" * 30, "1,000.50")], 20)
    assert lines[1] == "aaaaaaaaa…  1,000.50"


def test_a_table_that_cannot_be_cut_becomes_blocks() -> None:
    assert table_lines(COLUMNS, [("a" * 30, "1"), ("b", "2")], 9) == [
        f"name  {'a' * 30}",
        "cost  1",
        "",
        "name  b",
        "cost  2",
    ]


@pytest.mark.parametrize(
    ("text", "cells"), [("abc", 3), ("日本", 4), ("e\u0301", 1), ("a\u200db", 2), ("ﾊ", 1)]
)
def test_the_width_of_a_text_is_that_in_a_terminal(text: str, cells: int) -> None:
    assert cells_of(text) == cells
    assert cells_of(table_lines([Column("x" * 8)], [(text,)])[1]) == cells
