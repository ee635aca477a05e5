"""Draws the tables as PNG files, with matplotlib from the extra `bench`."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from benchmarks.suite import LABELS, Section

WHAT = {
    "first_chunk": "time from the call to the first chunk",
    "memory": "memory of a call in flight",
    "batch": "client CPU time of an item",
}
"""What the bars of a table are."""

_WIDE = 30
"""From which ratio of the longest bar to the shortest the scale is logarithmic."""

STYLES = {"asyncio": "-", "uvloop": "--", "trio": ":"}


def draw(sections: list[Section], folder: Path) -> list[Path]:
    """Draw the plots of the measured tables and return their files.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as library

    library.use("Agg")
    from matplotlib import pyplot

    files: list[Path] = []
    for section in sections:
        if section.name not in ("calls", "first_chunk", "memory", "batch"):
            continue
        file = folder / f"{section.name}.png"
        figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
        (_lines if section.name == "calls" else _bars)(axes, section)
        title = textwrap.fill(f"{section.title}: {section.note}".replace("`", ""), 110)
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        figure.savefig(file, dpi=110, metadata={"Software": None})
        pyplot.close(figure)
        files.append(file)
    return files


def _lines(axes: Any, section: Section) -> None:
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for result in section.results:
        value = result.best(section.figure)
        if value is not None:
            point = (result.case[section.column], value)
            lines.setdefault((result.contender, result.case["backend"]), []).append(point)
    others = [name for name in LABELS if name != "ours"]
    colours = {name: f"C{index % 10}" for index, name in enumerate(others)}
    markers = {name: "os"[index // 10] for index, name in enumerate(others)}  # there are ten colours
    for (contender, backend), points in sorted(lines.items(), key=lambda line: -line[1][-1][1]):
        axes.plot(
            *zip(*points, strict=True),
            STYLES[backend],
            color="black" if contender == "ours" else colours[contender],
            linewidth=2.5 if contender == "ours" else 1.2,
            marker=markers.get(contender, "D"),
            markersize=4,
            label=f"{LABELS[contender]}, {backend}",
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({result.case[section.column] for result in section.results})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xlabel("calls in flight")
    axes.set_ylabel(f"{section.unit} of client CPU time for a call, logarithmic")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _bars(axes: Any, section: Section) -> None:
    bars: list[tuple[str, float, bool]] = []
    for result in section.results:
        value = result.best(section.figure)
        if value is not None:
            variant = result.case.get("variant", "plain")
            detail = "" if variant == "plain" else f", {variant}"
            label = f"{LABELS[result.contender]}, {result.case['backend']}{detail}"
            bars.append((label, value, result.contender == "ours"))
    bars.sort(key=lambda bar: -bar[1])
    drawn = axes.barh(
        [label for label, _, _ in bars],
        [value for _, value, _ in bars],
        color=["black" if is_ours else "C0" for _, _, is_ours in bars],
    )
    axes.bar_label(
        drawn, fmt=lambda value: f"{value:,.0f}" if value >= 10 else f"{value:.1f}", padding=3, fontsize=7
    )
    values = [value for _, value, _ in bars]
    is_wide = bool(values) and max(values) > _WIDE * min(values)
    if is_wide:
        axes.set_xscale("log")
    axes.set_xlabel(f"{section.unit} ({WHAT[section.name]}){', logarithmic' * is_wide}")
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(axis="y", labelsize=8)
