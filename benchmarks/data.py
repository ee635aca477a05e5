"""The cost of data as a batch's input: python -m benchmarks.data [--quick] [--json FILE].

A row's cost over a call is the CPU time for checking the file before the batch starts, reading it, and making
requests of its rows, less that for making the same requests of text in memory. Peak memory is that of whole
batches of it, against a server of canned responses.
"""

from __future__ import annotations

import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.harness import Check, Result, main, run, server

ROWS = 200_000
SHORT = 10_000
LONG = 1_000_000
KINDS = ("csv", "jsonl", "parquet")
MEMORY_KINDS = ("csv", "parquet")
CONCURRENCY = 256
PROMPT = "Summarise in one line: {text}"


def benchmark(quick: bool) -> tuple[str, list[Result], list[Check]]:
    """Measure the time per row of each kind of file, and the memory of short and long batches."""
    scale = 100 if quick else 1
    times = {
        (kind, id): Result("ours", {"kind": kind, "id": id, "items": ROWS // scale}, 1 if quick else 3)
        for kind in KINDS
        for id in (None, "key")
    }
    sizes = {
        (kind, count): Result("ours", {"kind": kind, "id": "key", "items": count // scale}, 1)
        for kind in MEMORY_KINDS
        for count in (SHORT, LONG)
    }
    with tempfile.TemporaryDirectory() as folder, server() as port:
        for result in (*times.values(), *sizes.values()):
            kind, items = result.case["kind"], result.case["items"]
            path = Path(folder, f"{items}.{kind}")
            result.case |= {"what": "data", "path": str(path)}
            if not path.exists():
                command = [sys.executable, "-m", "benchmarks.data", "write", str(path), str(items)]
                subprocess.run(command, check=True, timeout=300)
        for result in sizes.values():
            url = f"http://127.0.0.1:{port}"
            result.case |= {"what": "data_batch", "url": url, "concurrency": CONCURRENCY}
            result.case |= {"timeout_seconds": 1_200}
        run([*times.values(), *sizes.values()])
    checks = [
        Check(
            f"a row of {kind}, over the call{f', with {id=}' if id else ''}",
            result.figures["microseconds"],
            1.0,
            5.0 if kind == "parquet" else 15.0,
        )
        for (kind, id), result in times.items()
    ]
    checks += [
        Check(
            f"{kind}, peak memory of {LONG // scale:,} rows, less 60 MB, against {SHORT // scale:,}",
            sizes[kind, LONG].figures["megabytes"] - 60,
            sizes[kind, SHORT].figures["megabytes"],
            1.0,
            unit="MB",
        )
        for kind in MEMORY_KINDS
    ]
    return f"Rows of data, {ROWS // scale:,} of them", [*times.values(), *sizes.values()], checks


def measure_data(contender: str, case: dict[str, Any]) -> dict[str, float]:
    """Return the CPU time per row over that of text in memory, in microseconds."""
    from omnigate._batch.items import open_source
    from omnigate._batch.recipe import Recipe
    from omnigate._data.source import data_source

    def spent(recipe: Recipe, raw_items: Iterator[Any]) -> float:
        start = time.process_time()
        count = 0
        for index, raw in enumerate(raw_items):
            assert recipe.read(raw, index).request is not None
            count += 1
        assert count == case["items"], count
        return time.process_time() - start

    if case["kind"] == "parquet":
        import_module("pyarrow.parquet")  # once per program, not per row
    prompts = [prompt_of(number) for number in range(case["items"])]
    text = spent(Recipe("gpt-4o-mini"), iter(prompts))
    recipe = Recipe("gpt-4o-mini", PROMPT, id=case["id"])
    start = time.process_time()
    source = data_source(Path(case["path"]))
    recipe.inspect(source, has_journal=False)
    checked = time.process_time() - start
    total = checked + spent(recipe, open_source(source))  # type: ignore[arg-type]
    return {"microseconds": (total - text) / case["items"] * 1e6}


def measure_data_batch(contender: str, case: dict[str, Any]) -> dict[str, float]:
    """Return the peak memory of a batch of a file, in MB."""
    import anyio

    from omnigate import AnyIOTransport, AsyncClient

    async def batch() -> int:
        transport = AnyIOTransport(max_connections=None)
        async with AsyncClient("llmg_benchmark", base_url=case["url"], transport=transport) as client:
            options: Any = {"prompt": PROMPT, "id": case["id"], "max_concurrency": case["concurrency"]}
            return (await client.batch(Path(case["path"]), model="gpt-4o-mini", **options).run()).succeeded

    assert anyio.run(batch) == case["items"]
    return {"megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def text_of(number: int) -> str:
    """Return the text of a row, about two hundred characters long."""
    return f"A question, number {number:,}, of the length that questions and reviews have. " * 3


def prompt_of(number: int) -> str:
    """Return the prompt that a row becomes."""
    return PROMPT.format(text=text_of(number))


def write(path: Path, count: int) -> None:
    """Write a file of rows."""
    rows = ({"key": f"key-{number}", "text": text_of(number), "label": "x"} for number in range(count))
    if path.suffix == ".parquet":
        pyarrow: Any = import_module("pyarrow")
        parquet: Any = import_module("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
        return
    with path.open("w", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, ["key", "text", "label"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main(benchmark)
