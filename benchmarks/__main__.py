"""Run the benchmarks: python -m benchmarks [--quick] [--only NAME …] [--output FOLDER].

Writes results.md, results.json and plots. All contenders, side by side and in turn, take about
half an hour; a quick run is a smoke test.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path

from benchmarks.harness import python_of, run
from benchmarks.plots import draw
from benchmarks.report import data, machine, page
from benchmarks.suite import LABELS, Section, sections


def leave_out_missing(section: Section, missing: dict[str, str]) -> None:
    """Mark the cells whose contender or event loop is not installed."""
    for result in section.results:
        for name in (result.contender, result.case["backend"]):
            if name in missing:
                result.problem = f"{LABELS.get(name, name)}: {missing[name]}"


def find_missing() -> dict[str, str]:
    """Return the contenders and event loops that are not installed, and why; print a line for each."""
    missing: dict[str, str] = {}
    for name in (*LABELS, "uvloop"):
        try:
            python_of(name)
        except RuntimeError as error:
            missing[name] = str(error)
            print(f"skipped: {LABELS.get(name, name)}: {error}", file=sys.stderr)
    return missing


def main() -> None:
    names = [section.name for section in sections(quick=True)]
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="few calls, one round: a smoke test")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="only these tables")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent, help="the folder of the results"
    )
    arguments = parser.parse_args()
    command = " ".join(["python -m benchmarks", *sys.argv[1:]])
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    missing = find_missing()
    facts = machine()
    chosen = [section for section in sections(arguments.quick) if section.name in arguments.only]
    for section in chosen:
        leave_out_missing(section, missing)
        print(section.title, end=" ", flush=True, file=sys.stderr)
        section.run(run)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "results.json").write_text(data(chosen, command, date, facts), "utf-8")
    text = page(chosen, command, date, facts)
    (arguments.output / "results.md").write_text(text, "utf-8")
    print(text)
    try:
        draw(chosen, arguments.output)
    except ImportError:
        print("skipped: the plots need matplotlib", file=sys.stderr)


if __name__ == "__main__":
    main()
