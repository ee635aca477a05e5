"""The cases: which contenders are measured at what, and how often."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness import Result, certificates, server
from benchmarks.server import CHUNKS

LABELS = {
    "protocol": "raw Protocol",
    "trio_socket": "raw trio socket",
    "bare": "bare anyio",
    "ours": "omnigate",
    "aiohttp": "aiohttp",
    "pyqwest": "pyqwest (Rust)",
    "httpx": "httpx",
    "httpx2": "httpx2",
    "openai": "OpenAI SDK",
    "openai_over_ours": "OpenAI SDK over AnyIOTransport",
    "litellm": "litellm",
    "published": "omnigate 0.1.0",
}
"""What the contenders are called in tables and plots."""

CONCURRENCIES = (1, 64, 512, 2_048)
SLOW = ("httpx", "httpx2", "openai", "openai_over_ours", "litellm", "published")
PAIRS = (
    ("protocol", "asyncio"),
    ("protocol", "uvloop"),
    ("bare", "asyncio"),
    ("bare", "uvloop"),
    ("ours", "asyncio"),
    ("ours", "uvloop"),
    ("aiohttp", "asyncio"),
    ("aiohttp", "uvloop"),
    ("pyqwest", "asyncio"),
    ("trio_socket", "trio"),
    ("bare", "trio"),
    ("ours", "trio"),
    *((contender, "asyncio") for contender in SLOW),
    ("httpx2", "trio"),
)
"""Contenders and event loops of the main chart."""

STREAMING = (
    ("ours", "asyncio"),
    ("ours", "uvloop"),
    ("ours", "trio"),
    ("aiohttp", "asyncio"),
    ("pyqwest", "asyncio"),
    *((contender, "asyncio") for contender in SLOW if contender != "litellm"),
)


@dataclass
class Section:
    """A table: figures of one run, measured in turn against one server.

    Attributes:
        name: its name on the command line and in the JSON file.
        title: its heading.
        note: what was measured, and how.
        column: the key of a case that tells the columns apart.
        figure: the figure that is shown.
        unit: its unit.
        server: the server's options.
        results: all cells.
    """

    name: str
    title: str
    note: str
    column: str
    figure: str
    unit: str
    server: tuple[str, ...] = ()
    is_secure: bool = False
    results: list[Result] = field(default_factory=list)

    def add(self, contender: str, backend: str, rounds: int, **case: Any) -> None:
        """Add a cell."""
        self.results.append(Result(contender, {"backend": backend, **case}, rounds))

    def run(self, measure: Callable[[list[Result]], None]) -> None:
        """Measure all cells."""
        with ExitStack() as stack:
            options = self.server
            authority = None
            if self.is_secure:
                authority, identity = stack.enter_context(certificates())
                options = (*options, "--tls", identity)
            port = stack.enter_context(server(*options))
            for result in self.results:
                result.case["url"] = f"http{'s' * self.is_secure}://127.0.0.1:{port}"
                if authority is not None:
                    result.case["authority"] = authority
            measure(self.results)


def sections(quick: bool) -> Iterator[Section]:
    """Yield all tables, with few calls and one round for a quick run."""
    yield _calls(quick)
    yield _late_calls(quick)
    yield _secure_calls(quick)
    yield _first_chunk(quick)
    yield from _streams(quick)
    yield _sync_calls(quick)
    yield _batch(quick)
    yield _memory(quick)
    yield _imports(quick)


def _calls(quick: bool) -> Section:
    note = "Client CPU time of a whole call, by calls in flight."
    section = Section("calls", "A call", note, "concurrency", "microseconds", "µs")
    for concurrency in (1, 64) if quick else CONCURRENCIES:
        for contender, backend in PAIRS:
            is_slow = contender in SLOW
            if is_slow and concurrency > 512 and contender != "openai_over_ours":
                continue
            if contender == "litellm" and concurrency != 64:  # its process takes over 20 s to start and end
                continue
            calls = max(concurrency, 256) if quick or is_slow else max(6_144, 3 * concurrency)
            rounds = 1 if quick else 2 if is_slow else 5
            section.add(contender, backend, rounds, what="calls", concurrency=concurrency, calls=calls)
    return section


def _late_calls(quick: bool) -> Section:
    note = "Client CPU time of a call, one in flight, answered after 1 ms: each client sleeps until then."
    section = Section(
        "late", "A call that waits", note, "concurrency", "microseconds", "µs", ("--delay", "0.001")
    )
    calls, rounds = (256, 1) if quick else (2_048, 5)
    for contender, backend in PAIRS:
        if contender not in SLOW:
            section.add(contender, backend, rounds, what="calls", concurrency=1, calls=calls)
    return section


def _secure_calls(quick: bool) -> Section:
    note = "Client CPU time of a whole call over TLS, by calls in flight."
    section = Section("tls", "A call over TLS", note, "concurrency", "microseconds", "µs", is_secure=True)
    pairs = (("ours", "asyncio"), ("ours", "uvloop"), ("ours", "trio"), ("aiohttp", "asyncio"))
    for concurrency in (64,) if quick else CONCURRENCIES[1:]:
        for contender, backend in pairs:
            calls = max(concurrency, 256) if quick else max(6_144, 3 * concurrency)
            section.add(
                contender, backend, 1 if quick else 4, what="calls", concurrency=concurrency, calls=calls
            )
    return section


def _first_chunk(quick: bool) -> Section:
    note = "Median time from the call to the first chunk of a stream of 4, one stream at a time."
    options = ("--chunks", "4")
    section = Section(
        "first_chunk", "Time to the first chunk", note, "streams", "first_microseconds", "µs", options
    )
    for contender, backend in STREAMING:
        rounds, streams = (1, 30) if quick else (3, 200)
        section.add(contender, backend, rounds, what="first_chunk", stream=True, streams=streams)
    return section


def _streams(quick: bool) -> Iterator[Section]:
    contenders = (("ours", "asyncio"), ("ours", "trio"), ("published", "asyncio"))
    for name, title, spacing in (
        ("chunks", "A chunk among many", "0"),
        ("lone_chunks", "A chunk that arrives alone", "0.0003"),
    ):
        note = f"Client CPU time of a chunk of a text stream of {CHUNKS:,}, async and with the sync client."
        section = Section(name, title, note, "what", "microseconds", "µs", ("--spacing", spacing))
        for what in ("stream", "sync_stream"):
            for contender, backend in contenders:
                rounds, streams = (1, 1) if quick else (3, 3)
                more = {"streams": streams, "chunks": CHUNKS, "stream": True}
                section.add(contender, backend, rounds, what=what, **more)
        yield section


def _sync_calls(quick: bool) -> Section:
    note = "Calls per second of the sync client, by threads."
    section = Section("sync", "Sync calls", note, "threads", "calls_per_second", "calls/s")
    for threads in (1, 32):
        for contender, backend in (("ours", "asyncio"), ("ours", "trio"), ("published", "asyncio")):
            calls = 128 if quick else 2_048 if contender == "published" else 8_192
            section.add(
                contender, backend, 1 if quick else 4, what="sync_calls", threads=threads, calls=calls
            )
    return section


def _batch(quick: bool) -> Section:
    note = "Client CPU time of an item, at 256 in flight. Peers use `asyncio.gather` and a semaphore."
    section = Section("batch", "An item of a batch", note, "variant", "microseconds", "µs")
    items = 2_048 if quick else 100_000

    def add(contender: str, backend: str, variant: str, items: int, **more: Any) -> None:
        case = {"what": "batch", "items": items, "concurrency": 256, "journal": False, "variant": variant}
        rounds = 1 if quick or items < 10_000 else 4 if contender in ("bare", "ours") else 2
        section.add(contender, backend, rounds, **case | more)

    for backend in ("asyncio", "uvloop", "trio"):
        add("bare", backend, "plain", items)
        add("ours", backend, "plain", items)
    for backend in ("asyncio", "trio"):
        add("ours", backend, "with a journal", items, journal=True)
        add("ours", backend, "sync", items, what="sync_batch")
    add("aiohttp", "asyncio", "plain", items)
    add("pyqwest", "asyncio", "plain", items)
    for contender in SLOW:
        if contender == "litellm":  # one process would take minutes
            continue
        add(contender, "asyncio", "plain", 512 if quick else 2_048)
    return section


def _memory(quick: bool) -> Section:
    calls = 200 if quick else 1_000
    note = f"Resident memory that a call in flight adds, at {calls:,} in flight; answers come after a second."
    section = Section("memory", "Memory", note, "calls", "kilobytes", "kB", ("--delay", "1"))
    for contender, backend in PAIRS:
        if contender != "litellm" or not quick:
            section.add(contender, backend, 1 if quick else 2, what="memory", calls=calls)
    return section


def _imports(quick: bool) -> Section:
    note = "CPU time of the import in a new process."
    section = Section("import", "Import", note, "what", "milliseconds", "ms")
    for contender in ("ours", "aiohttp", "pyqwest", "httpx", "httpx2", "openai", "published"):
        module = "omnigate" if contender in ("ours", "published") else contender
        section.add(contender, "asyncio", 1 if quick else 5, what="import", module=module)
    return section
