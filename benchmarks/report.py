"""Writes the results: a page of tables, all figures as JSON, and plots."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Result, versions
from benchmarks.suite import LABELS, Section

PACKAGES = (
    "omnigate",
    "anyio",
    "trio",
    "uvloop",
    "httptools",
    "msgspec",
    "aiohttp",
    "pyqwest",
    "httpx",
    "httpx2",
    "openai",
)

PEERS = ("pyqwest", "httpx", "httpx2", "openai", "litellm", "published")
"""The clients that must cost more wherever they are measured; the mark for aiohttp is stricter."""

COLUMNS = {"stream": "async", "sync_stream": "sync", "import": "import"}


@dataclass
class Mark:
    """A promise about two figures of one table.

    Attributes:
        text: what is compared.
        ratio: the first figure divided by the second; None if one is missing.
        limit: what the ratio may be.
        at_least: whether the limit is a minimum.
    """

    text: str
    ratio: float | None
    limit: float
    at_least: bool = False

    @property
    def verdict(self) -> str:
        if self.ratio is None:
            return "not measured"
        return (
            "yes" if (self.ratio >= self.limit if self.at_least else self.ratio <= self.limit) else "**no**"
        )


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    found: dict[str, Any] = {
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions("ours", *PACKAGES),
    }
    if hasattr(os, "getloadavg"):
        found["load"] = round(os.getloadavg()[0], 2)
    for contender in ("litellm", "published"):
        try:
            found["versions"] |= {
                LABELS[contender]: ", ".join(
                    f"{name} {version}"
                    for name, version in versions(contender, "omnigate", "litellm", "openai", "httpx").items()
                )
            }
        except RuntimeError:
            continue
    return found


def marks(sections: list[Section]) -> Iterator[Mark]:
    """Yield the promises that the measured tables can show kept or not."""
    tables = {section.name: section for section in sections}

    def ratio(
        name: str, value: tuple[str, str], other: tuple[str, str], column: Any, other_column: Any = None
    ) -> float | None:
        figures = [
            _cell(tables[name], contender, backend, at)
            for (contender, backend), at in (
                (value, column),
                (other, column if other_column is None else other_column),
            )
        ]
        return figures[0] / figures[1] if figures[0] and figures[1] else None

    ours = {backend: ("ours", backend) for backend in ("asyncio", "trio")}

    def against_bare(name: str, when: str = "") -> Iterator[Mark]:
        for backend, limit in (("asyncio", 1.0), ("trio", 1.4)):
            for column in _columns(tables[name]):
                text = f"{backend}, {column:,} in flight{when}, against bare anyio"
                yield Mark(text, ratio(name, ours[backend], ("bare", backend), column), limit)

    if "calls" in tables:
        columns = _columns(tables["calls"])
        yield from against_bare("calls")
        yield Mark(
            "asyncio, 64 in flight, against a raw Protocol",
            ratio("calls", ours["asyncio"], ("protocol", "asyncio"), 64),
            2.5,
        )
        yield Mark(
            "trio, 64 in flight, against a raw socket",
            ratio("calls", ours["trio"], ("trio_socket", "trio"), 64),
            2.2,
        )
        for column in columns[1:]:
            text = f"asyncio, {column:,} in flight, against aiohttp"
            yield Mark(text, ratio("calls", ours["asyncio"], ("aiohttp", "asyncio"), column), 0.5)
        for column in columns:
            for peer in PEERS:
                found = ratio("calls", ours["asyncio"], (peer, "asyncio"), column)
                if found is not None or peer == "pyqwest":
                    yield Mark(f"asyncio, {column:,} in flight, against {LABELS[peer]}", found, 1.0)
    if "late" in tables:
        yield from against_bare("late", ", answered after 1 ms")
    if "tls" in tables:
        for column in _columns(tables["tls"]):
            text = f"asyncio, {column:,} in flight, TLS, against aiohttp"
            yield Mark(text, ratio("tls", ours["asyncio"], ("aiohttp", "asyncio"), column), 0.6)
    if "batch" in tables:
        for backend, plain, journal in (("asyncio", 1.6, 2.2), ("trio", 2.2, 3.0)):
            bare = ("bare", backend)
            yield Mark(
                f"{backend}, an item of a batch, against bare anyio",
                ratio("batch", ours[backend], bare, "plain"),
                plain,
            )
            yield Mark(
                f"{backend}, with a journal, against bare anyio",
                ratio("batch", ours[backend], bare, "with a journal", "plain"),
                journal,
            )
    published = ("published", "asyncio")
    if "sync" in tables:
        for threads, limit in ((1, 4.0), (32, 10.0)):
            text = f"sync calls per second, {threads} thread{'s' * (threads > 1)}, against 0.1.0"
            yield Mark(text, ratio("sync", ours["asyncio"], published, threads), limit, True)
    if "lone_chunks" in tables:
        yield Mark(
            "a lone chunk, sync, against 0.1.0",
            ratio("lone_chunks", ours["asyncio"], published, "sync_stream"),
            1.0,
        )
    if "import" in tables:
        yield Mark("import, against 0.1.0", ratio("import", ours["asyncio"], published, "import"), 0.5)
        yield Mark(
            "import, against the OpenAI SDK",
            ratio("import", ours["asyncio"], ("openai", "asyncio"), "import"),
            0.1,
        )
    if "memory" in tables:
        column = _columns(tables["memory"])[0]
        yield Mark(
            "memory of a call in flight, against httpx2",
            ratio("memory", ours["asyncio"], ("httpx2", "asyncio"), column),
            1 / 3,
        )


def page(sections: list[Section], command: str, date: str, facts: dict[str, Any]) -> str:
    """Return the page of tables."""
    known = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        "# Results",
        "",
        f"Written by `{command}` on {date}. {facts['processor']}, {facts['cores']} cores, load "
        f"{facts.get('load', 'unknown')} at the start; {facts['system']}; "
        f"CPython {facts['python']}; {known}.",
        "",
        "Figures of one table are from one run, measured in turn; each is the best of its rounds. "
        "All rounds are in `results.json`.",
    ]
    for section in sections:
        columns = _columns(section)
        rounds = sorted({result.rounds for result in section.results})
        spread = f"{rounds[0]}" if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
        heads = [_head(column) for column in columns] if len(columns) > 1 else [section.unit]
        lines += ["", f"## {section.title}", "", f"{section.note} {section.unit}; rounds: {spread}.", ""]
        lines += [f"| | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(columns)}"]
        for contender, backend in _pairs(section):
            cells = [_shown(_cell(section, contender, backend, column)) for column in columns]
            name = LABELS[contender] if section.name == "import" else f"{LABELS[contender]}, {backend}"
            lines.append(f"| {name} | {' | '.join(cells)} |")
        problems = {result.problem: None for result in section.results if result.problem}
        lines += ["", *(f"Skipped: {problem}.  " for problem in problems)] if problems else []
    lines += ["", "## Marks", "", "| | ratio | mark | met |", "| --- | ---: | ---: | --- |"]
    for mark in marks(sections):
        shown = "" if mark.ratio is None else f"{mark.ratio:.2f}"
        sign = "≥" if mark.at_least else "≤"
        lines.append(f"| {mark.text} | {shown} | {sign} {mark.limit:.2f} | {mark.verdict} |")
    return "\n".join(lines) + "\n"


def data(sections: list[Section], command: str, date: str, facts: dict[str, Any]) -> str:
    """Return everything as JSON."""
    tables = {
        section.name: [
            {
                "contender": result.contender,
                **{key: value for key, value in result.case.items() if key not in ("url", "authority")},
                "rounds": result.figures,
                **({"problem": result.problem} if result.problem else {}),
            }
            for result in section.results
        ]
        for section in sections
    }
    return json.dumps({"command": command, "date": date, "machine": facts, "tables": tables}, indent=1) + "\n"


def _cell(section: Section, contender: str, backend: str, column: Any) -> float | None:
    for result in section.results:
        if (result.contender, result.case["backend"], result.case[section.column]) == (
            contender,
            backend,
            column,
        ):
            return result.best(section.figure)
    return None


def _columns(section: Section) -> list[Any]:
    return list(dict.fromkeys(result.case[section.column] for result in section.results))


def _pairs(section: Section) -> list[tuple[str, str]]:
    def key(result: Result) -> tuple[str, str]:
        return result.contender, result.case["backend"]

    return list(dict.fromkeys(key(result) for result in section.results if result.figures))


def _head(column: Any) -> str:
    return f"{column:,}" if isinstance(column, int) else COLUMNS.get(column, column)


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
