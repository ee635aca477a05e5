"""`omnigate metrics`: what was used, and what it cost."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from omnigate._runtime.extras import extra
from omnigate._runtime.terminals import can_encode, is_terminal
from omnigate.cli._frame.charts import STEPS, chart_lines
from omnigate.cli._frame.command import Command, pass_invocation
from omnigate.cli._frame.invocation import Invocation
from omnigate.cli._frame.tables import Column, emit_fields, emit_table
from omnigate.cli._frame.terminal import emit, emit_json, note, width
from omnigate.cli._frame.values import moment, share, usd

if TYPE_CHECKING:
    from omnigate.models import MetricsResponse, MetricsTimePoint

F = TypeVar("F", bound=Callable[..., Any])

_CHARTS: Final[Mapping[str, tuple[str, Callable[[MetricsTimePoint], float], Callable[[float], str]]]] = {
    "requests": ("requests", lambda point: point.requests, lambda value: f"{value:,.0f}"),
    "tokens": ("tokens", lambda point: point.total_tokens, lambda value: f"{value:,.0f}"),
    "cost": ("cost in USD", lambda point: point.cost_usd, lambda value: usd(value).removesuffix(" USD")),
    "errors": ("errors", lambda point: point.error_rate * point.requests, lambda value: f"{value:,.0f}"),
}

_FORMATS: Final = (".png", ".svg")


def _check_plot(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and Path(value).suffix.lower() not in _FORMATS:
        raise click.BadParameter(f"the name must end with {' or '.join(_FORMATS)}, got {value!r}")
    return value


def metrics_options(function: F) -> F:
    """Add the options of a command that shows metrics."""
    for option in reversed(
        (
            click.option(
                "--range",
                type=click.Choice(["1h", "24h", "7d", "30d"]),
                help="The time up to now; 24h by default.",
            ),
            click.option(
                "--from", "start", metavar="TIME", help="Instead: the start, as 2026-01-31T08:00:00Z."
            ),
            click.option("--to", "end", metavar="TIME", help="With --from: the end, now by default."),
            click.option(
                "--group-by",
                type=click.Choice(["provider", "model", "user", "status"]),
                help="Also show a row for each.",
            ),
            click.option(
                "--granularity",
                type=click.Choice(list(STEPS)),
                help="The steps of the series; by default they follow from the range.",
            ),
            click.option(
                "--chart",
                type=click.Choice(list(_CHARTS)),
                default="requests",
                show_default=True,
                help="What the chart in the terminal shows.",
            ),
            click.option(
                "--plot",
                metavar="FILE",
                callback=_check_plot,
                help="Also write a picture, FILE.png or FILE.svg (needs the extra plot).",
            ),
        )
    ):
        function = option(function)
    return function


@click.command(
    cls=Command,
    examples=[
        "omnigate metrics --range 7d --group-by model",
        "omnigate metrics --from 2026-01-01T00:00:00Z --granularity day --chart cost --plot cost.svg",
        "omnigate metrics --json | jq .totals.cost_usd",
    ],
)
@metrics_options
@pass_invocation
def command(
    invocation: Invocation,
    range: str | None,
    start: str | None,
    end: str | None,
    group_by: str | None,
    granularity: str | None,
    chart: str,
    plot: str | None,
) -> None:
    """Show what was used, and what it cost.

    Totals, with --group-by a breakdown, and the series: as a chart in a terminal, else as a table.
    """

    def fetch() -> MetricsResponse:
        with invocation.client() as client:
            return client.metrics(
                range=range, start=start, end=end, group_by=group_by, granularity=granularity
            )

    show_metrics(invocation, fetch, chart, plot)


def show_metrics(
    invocation: Invocation, fetch: Callable[[], MetricsResponse], chart: str, plot: str | None
) -> None:
    """Fetch metrics and show them.

    Args:
        invocation: the common options.
        fetch: calls the gateway.
        chart: what the chart shows.
        plot: the picture to write, if any.
    """
    figure = _figure() if plot else None  # before the call: the library may be missing
    metrics = fetch()
    if plot:
        _plot(figure, metrics, plot)
        note(f"Wrote {plot}.")
    if invocation.is_json:
        emit_json(metrics)
        return
    _emit_totals(metrics)
    if metrics.breakdown:
        emit("")
        _emit_breakdown(metrics)
    if metrics.timeseries:
        emit("")
        _emit_series(metrics, chart)


def _emit_totals(metrics: MetricsResponse) -> None:
    totals = metrics.totals
    percentiles = [
        f"{name} {value:,.0f} ms"
        for name, value in (
            ("p50", totals.p50_latency_ms),
            ("p95", totals.p95_latency_ms),
            ("p99", totals.p99_latency_ms),
        )
        if value is not None
    ]
    emit_fields(
        [
            ("from", f"{moment(metrics.range_from)} UTC"),
            ("to", f"{moment(metrics.range_to)} UTC"),
            ("requests", f"{totals.requests:,}"),
            (
                "tokens",
                f"{totals.total_tokens:,} ({totals.prompt_tokens:,} in, {totals.completion_tokens:,} out)",
            ),
            ("cost", usd(totals.cost_usd)),
            ("errors", share(totals.error_rate)),
            ("cache hits", share(totals.cache_hit_rate)),
            ("latency", ", ".join([f"mean {totals.avg_latency_ms:,.0f} ms", *percentiles])),
        ]
    )


def _emit_breakdown(metrics: MetricsResponse) -> None:
    emit_table(
        [
            Column(metrics.group_by or "group", can_shrink=True),
            Column("requests", is_number=True),
            Column("tokens", is_number=True),
            Column("cost", is_number=True),
            Column("latency", is_number=True),
            Column("errors", is_number=True),
        ],
        [
            (
                row.key,
                f"{row.requests:,}",
                f"{row.total_tokens:,}",
                usd(row.cost_usd),
                f"{row.avg_latency_ms:,.0f} ms",
                share(row.error_rate),
            )
            for row in metrics.breakdown
        ],
    )


def _emit_series(metrics: MetricsResponse, chart: str) -> None:
    if is_terminal(sys.stdout):
        title, value_of, label = _CHARTS[chart]
        lines = chart_lines(
            title,
            [(point.bucket, value_of(point)) for point in metrics.timeseries],
            metrics.range_from,
            metrics.range_to,
            STEPS.get(metrics.granularity, STEPS["hour"]),
            columns=width(),
            label=label,
            is_ascii=not can_encode(sys.stdout, "▁█│"),
        )
        for line in lines:
            emit(line)
        return
    emit_table(
        [
            Column(f"{metrics.granularity} (UTC)"),
            Column("requests", is_number=True),
            Column("tokens", is_number=True),
            Column("cost", is_number=True),
            Column("errors", is_number=True),
        ],
        [
            (
                moment(point.bucket),
                f"{point.requests:,}",
                f"{point.total_tokens:,}",
                usd(point.cost_usd),
                share(point.error_rate),
            )
            for point in metrics.timeseries
        ],
    )


def _figure() -> Any:
    """Return an empty figure of matplotlib.

    Raises:
        MissingExtraError: it is not installed.
    """
    with extra("plot", "--plot"):
        figure = import_module("matplotlib.figure")
    return figure.Figure(figsize=(9, 6), layout="constrained")


def _plot(figure: Any, metrics: MetricsResponse, path: str) -> None:
    """Write the series as a picture: requests with errors, and cost.

    Raises:
        OSError: the file cannot be written.
    """
    days = STEPS.get(metrics.granularity, STEPS["hour"]).total_seconds() / STEPS["day"].total_seconds()
    times = [point.bucket for point in metrics.timeseries]
    upper, lower = figure.subplots(2, 1, sharex=True)
    bars = {"width": days * 0.9, "align": "edge"}
    upper.bar(times, [point.requests for point in metrics.timeseries], label="requests", **bars)
    errors = [point.requests * point.error_rate for point in metrics.timeseries]
    if any(errors):
        upper.bar(times, errors, label="errors", color="tab:red", **bars)
        upper.legend()
    upper.set_ylabel(f"requests per {metrics.granularity}")
    lower.bar(times, [point.cost_usd for point in metrics.timeseries], color="tab:green", **bars)
    lower.set_ylabel(f"USD per {metrics.granularity}")
    lower.set_xlim(metrics.range_from, metrics.range_to)
    lower.tick_params(axis="x", rotation=30)
    totals = metrics.totals
    upper.set_title(
        f"{totals.requests:,} requests, {usd(totals.cost_usd)}, "
        f"{moment(metrics.range_from)} to {moment(metrics.range_to)} UTC"
    )
    for axes in (upper, lower):
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    picture = BytesIO()
    figure.savefig(picture, format=Path(path).suffix[1:].lower(), dpi=150)
    Path(path).write_bytes(picture.getvalue())
