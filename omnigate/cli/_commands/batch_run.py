"""Runs the batch of `omnigate batch`: asks first if told to, writes outcomes, and ends with a summary."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click

from omnigate._batch.display import duration
from omnigate._batch.journal.reading import failed
from omnigate._batch.outcomes import BatchStats, Outcome
from omnigate._batch.rows import row_of
from omnigate._batch.writing import OutcomeFile
from omnigate._data.source import Files, data_source
from omnigate._wire.redaction import one_line, redact
from omnigate.cli._commands.batch_summary import Summary
from omnigate.cli._frame.errors import INTERRUPTED, exit_code_of, line_of, notes_of
from omnigate.cli._frame.invocation import Invocation
from omnigate.cli._frame.terminal import can_prompt, confirm, emit_json, emit_json_line, note
from omnigate.cli._frame.values import usd
from omnigate.exceptions import GatewayError, JournalError

if TYPE_CHECKING:
    from omnigate import Client, Estimate, SyncBatch

SOME_FAILED: Final = 3
"""The exit code if items failed."""

_STDIN: Final = "-"

_PROBLEMS_SHOWN: Final = 3

_PROBLEM_LENGTH: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to run.

    Attributes:
        inputs: paths and patterns of files, "-" for standard input, or none for what failed in the journal.
        output: the file for the table of outcomes; None for JSON lines on standard output.
        journal: the journal; None for none.
        limit: how many rows to read; None for all.
        spreadsheet_safe: as in `write_outcomes`.
        shows_progress: whether to show the progress.
        options: further arguments of `Client.batch`.
    """

    inputs: tuple[str, ...]
    output: str | None
    journal: str | None
    limit: int | None
    spreadsheet_safe: bool
    shows_progress: bool
    options: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """When to ask before running.

    Attributes:
        sample: how many items to send for the estimate.
        confirm_above_usd: ask only if it may cost more; None to ask in any case.
        is_agreed: whether the answer is yes.
    """

    sample: int
    confirm_above_usd: float | None
    is_agreed: bool


def run_job(invocation: Invocation, job: Job, terms: Terms | None) -> None:
    """Run a job, after asking if there are terms; exits with the code of `omnigate batch`."""
    with invocation.client() as client:
        if terms is not None:
            estimate = client.estimate(_requests(job), sample=terms.sample, **_estimated(job.options))
            _show_estimate(estimate)
            _ask(estimate, terms)
        summary = Summary()
        error = _run(client, job, summary)
    code = 0
    if error is not None:
        code = INTERRUPTED if isinstance(error, KeyboardInterrupt) else exit_code_of(error)
    elif summary.stats.failed:
        code = SOME_FAILED
    _tell(invocation, job, summary, error, code)
    if code:
        raise click.exceptions.Exit(code)


def _requests(job: Job) -> Any:
    """Return the source of a job's items."""
    if not job.inputs:
        assert job.journal is not None
        items: Iterable[Any] = failed(job.journal)
        return islice(items, job.limit)
    if job.inputs == (_STDIN,):
        files = data_source(sys.stdin.buffer)
    else:
        files = data_source([Path(name) for name in job.inputs])
    assert isinstance(files, Files)
    return files if job.limit is None else files.limited(job.limit)


def _estimated(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "ordered"}


def _show_estimate(estimate: Estimate) -> None:
    low, high = estimate.total_tokens
    tokens = f"{low:,} to {high:,} tokens" if high is not None else f"at least {low:,} tokens"
    if estimate.cost_usd is None:
        cost = f"cost unknown: {estimate.cost_unknown}"
    else:
        least, most = estimate.cost_usd
        cost = f"{usd(least)} to {usd(most)}" if most is not None else f"at least {usd(least)}"
    lines = [f"Estimate: {estimate.items:,} items, {tokens}, {cost}"]
    if estimate.seconds is not None:
        lines.append(f"The rate limit holds it back for at least {duration(estimate.seconds)}.")
    if estimate.sampled:
        lines.append(f"A sample of {estimate.sampled:,} items was sent, for {usd(estimate.sample_cost_usd)}.")
    if estimate.invalid:
        lines.append(f"{estimate.invalid:,} items are invalid and will fail:")
    lines += [f"  {one_line(problem, _PROBLEM_LENGTH)}" for problem in estimate.problems[:_PROBLEMS_SHOWN]]
    note("\n".join(lines))


def _ask(estimate: Estimate, terms: Terms) -> None:
    """Ask whether to go on.

    Raises:
        click.UsageError: it has to be asked, and there is no terminal.
        click.exceptions.Exit: the answer is no.
    """
    if terms.is_agreed:
        return
    limit = terms.confirm_above_usd
    most = None if estimate.cost_usd is None else estimate.cost_usd[1]
    if limit is not None:
        if most is not None and most <= limit:
            return
        what = "Its cost has no known limit." if most is None else f"It may cost up to {usd(most)}."
        confirm(f"{what} Run it?", otherwise="--yes")
    elif can_prompt():
        confirm("Run it?", otherwise="--yes")


class Interrupts:
    """Turns the first Ctrl-C into a call of `first`; the next one is a KeyboardInterrupt.

    Attributes:
        count: how often Ctrl-C was pressed.
    """

    def __init__(self, first: Callable[[], object]) -> None:
        self.count = 0
        self._first = first

    @contextmanager
    def caught(self) -> Generator[None]:
        """Catch Ctrl-C within the block, in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt
        self._first()


def _run(client: Client, job: Job, summary: Summary) -> BaseException | None:
    """Run the batch and write its outcomes; return the error that ended it, or None."""
    sink = _Sink(job)
    batch: SyncBatch[Any] | None = None
    interrupts: Interrupts | None = None
    error: BaseException | None = None
    try:
        try:
            batch = client.batch(
                _requests(job), journal=job.journal, progress=job.shows_progress, **job.options
            )
            with batch:
                interrupts = Interrupts(partial(_stop, client, batch))
                with interrupts.caught():
                    for outcome in batch:
                        summary.add(outcome)
                        sink.add(outcome)
        finally:
            if batch is not None:
                summary.stats = batch.stats
        stats = summary.stats
        if interrupts.count and stats.total != stats.succeeded + stats.failed + stats.replayed:
            error = KeyboardInterrupt()
    except (GatewayError, KeyboardInterrupt) as failure:
        if batch is None or (
            isinstance(failure, GatewayError) and not summary.count and not _has_begun(failure)
        ):
            sink.discard()
            raise
        error = failure
    except BaseException:
        sink.discard()
        raise
    sink.finish(error)
    summary.written = sink.written
    return error


def _has_begun(error: GatewayError) -> bool:
    """Return whether an error ended a batch that had begun, rather than kept it from beginning."""
    return not isinstance(error, ValueError | JournalError)


def _stop(client: Client, batch: SyncBatch[Any]) -> None:
    """Stop a batch. Called by a signal handler: what is said is printed by the thread of the display."""
    batch.stop()
    client._portal.post(_tell_of_stop)


def _tell_of_stop() -> None:
    # Through `sys.stderr`, which the display has replaced, so that it appears above it.
    print("Ctrl-C: finishing the calls in flight. Press it again to end immediately.", file=sys.stderr)


class _Sink:
    """Where outcomes go: a file, or standard output as JSON lines.

    Attributes:
        written: the file that was written, or None.
    """

    def __init__(self, job: Job) -> None:
        self.written: str | None = None
        self._path = job.output
        self._file = (
            None if self._path is None else OutcomeFile(self._path, spreadsheet_safe=job.spreadsheet_safe)
        )

    def add(self, outcome: Outcome) -> None:
        """Add an outcome."""
        if self._file is None:
            emit_json_line(row_of_outcome(outcome))
        else:
            self._file.take(outcome)

    def finish(self, error: BaseException | None) -> None:
        """Write the file; after an error, what there is, to another one."""
        file = self._file
        if file is None:
            return
        try:
            if error is None:
                file.finish()
                self.written = self._path
            else:
                failure = error if isinstance(error, Exception) else GatewayError("interrupted")
                file.finish_after(failure)
                if failure is not error:
                    for text in getattr(failure, "__notes__", []):
                        error.add_note(text)
        finally:
            file.discard()

    def discard(self) -> None:
        """Delete what is not finished."""
        if self._file is not None:
            self._file.discard()


def row_of_outcome(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as a row: its id, the columns of the input, and those of the result."""
    return {"id": outcome.id, **row_of(outcome)}


def _tell(invocation: Invocation, job: Job, summary: Summary, error: BaseException | None, code: int) -> None:
    """Print the summary, and how to go on."""
    is_interrupted = isinstance(error, KeyboardInterrupt)
    stats: BatchStats = summary.stats
    lines = summary.lines()
    if error is not None:
        lines.append("Interrupted." if is_interrupted else f"Ended: {line_of(error)}")
        told = (str(redact(text)).rstrip(".") for text in notes_of(error))
        lines += [f"{text[0].upper()}{text[1:]}." for text in told if text and text not in lines[-1]]
    if summary.written is not None:
        lines.append(f"Written to {summary.written}.")
    if job.journal is not None and (error is not None or stats.failed):
        purpose = "continue" if error is not None else "try what failed once more"
        again = f"Run the same command again to {purpose}"
        lines.append(f"{again}; what succeeded is in {job.journal} and is not called again.")
    elif is_interrupted:
        lines.append("There is no journal (-o or --journal), so it starts from the beginning next time.")
    note("\n".join(lines))
    if invocation.is_json:
        document = {
            **summary.as_dict(),
            "output": job.output,
            "journal": job.journal,
            "ended_by": None if error is None else "interrupt" if is_interrupted else line_of(error),
            "exit_code": code,
        }
        if job.output is None:
            emit_json_line(document, err=True)  # standard output has the answers
        else:
            emit_json(document)
