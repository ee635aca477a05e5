"""`omnigate batch`: many prompts from files, one outcome for each."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final, Literal, cast

import click

from omnigate.cli._frame.command import Command, pass_invocation
from omnigate.cli._frame.invocation import Invocation
from omnigate.cli._frame.sampling import model_option, sampling_of, sampling_options

_STDIN: Final = "-"

_ALL_PERCENT: Final = 100

_POSITIVE: Final = click.FloatRange(min=0, min_open=True)


def _concurrency(ctx: click.Context, param: click.Parameter, value: str) -> int | Literal["auto"]:
    """Return a number of calls, or "auto"."""
    if value == "auto":
        return "auto"
    number = int(value) if value.isdecimal() else 0
    if number < 1:
        raise click.BadParameter(f"{value!r} must be a number of calls, at least 1, or auto")
    return number


def _failures(ctx: click.Context, param: click.Parameter, value: str) -> int | float | Literal["auto"] | None:
    """Return a number of failures, a share of the items, "auto", or None for "never"."""
    if value == "auto":
        return "auto"
    if value == "never":
        return None
    number = value.removesuffix("%")
    if number.isdecimal() and (whole := int(number)) >= 1:
        if number == value:
            return whole
        if whole <= _ALL_PERCENT:
            return whole / _ALL_PERCENT
    raise click.BadParameter(
        f"{value!r} must be a number of items (100), a share of them in whole percent (5%), auto or never"
    )


@click.command(
    cls=Command,
    examples=[
        'omnigate batch reviews.csv -o answers.csv -m gpt-4o-mini --prompt "Sum up: {text}"',
        "omnigate batch questions.jsonl -o answers.parquet --estimate --max-cost 5",
        "omnigate batch --retry-failed --journal answers.journal.jsonl -o again.csv -m gpt-4o",
        "cat questions.jsonl | omnigate batch - > answers.jsonl",
    ],
)
@click.argument("inputs", nargs=-1, metavar="[INPUT]...")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Write a table: .csv, .tsv, .jsonl (each also .gz, .bz2, .xz, .zst) or .parquet. Without it, "
    "answers go to standard output as JSON lines, as they arrive.",
)
@model_option
@click.option("--prompt", metavar="TEMPLATE", help='How a row becomes a prompt: "Sum up: {text}".')
@click.option("--prompt-file", metavar="FILE", help="Read the template from a file.")
@click.option("--system", metavar="TEXT", help="The system message of items that have none.")
@click.option("--id", "id_column", metavar="COLUMN", help="The column that identifies a row.")
@sampling_options
@click.option("--type", "type_path", metavar="FILE", help="A JSON schema that every answer has to fit.")
@click.option(
    "-c",
    "--concurrency",
    metavar="CALLS",
    callback=_concurrency,
    default="auto",
    show_default=True,
    help="The most calls in flight; auto adapts it to the provider.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="ROWS", help="Read only the first rows.")
@click.option("--dedupe", is_flag=True, help="Call equal requests only once.")
@click.option(
    "--ordered", is_flag=True, help="Print JSON lines in the order of the input; a table always is."
)
@click.option("--estimate", "is_estimate", is_flag=True, help="Estimate the cost first, and ask.")
@click.option(
    "--confirm-above",
    type=click.FloatRange(min=0),
    metavar="USD",
    help="Estimate the cost first, and ask only if it may be higher.",
)
@click.option("--sample", type=click.IntRange(min=1), metavar="ITEMS", help="Send so many items to estimate.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--max-cost", type=_POSITIVE, metavar="USD", help="End before it costs more.")
@click.option("--max-tokens-total", type=click.IntRange(min=1), help="End before it uses more tokens.")
@click.option("--max-seconds", type=_POSITIVE, help="End after so many seconds.")
@click.option("--tokens-per-minute", type=click.IntRange(min=1), help="The provider's limit for a model.")
@click.option("--max-wait", type=_POSITIVE, metavar="SECONDS", help="How long an item may wait; else 3600.")
@click.option(
    "--stop-after-failures",
    metavar="ITEMS",
    callback=_failures,
    default="auto",
    show_default=True,
    help="End after so many failures (100), at such a share (5%), or never; auto: if the first "
    "twenty fail alike.",
)
@click.option("--journal", metavar="FILE", help="Where to record outcomes; else beside the output.")
@click.option("--no-journal", is_flag=True, help="Record nothing; the run cannot be resumed.")
@click.option(
    "--retry-failed",
    is_flag=True,
    help="Call again what has failed in the journal. Without INPUT only that, perhaps with another model.",
)
@click.option("--spreadsheet-safe", is_flag=True, help="Disarm text that a spreadsheet program would run.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@pass_invocation
def command(
    invocation: Invocation,
    /,
    inputs: tuple[str, ...],
    output: str | None,
    model: str | None,
    prompt: str | None,
    prompt_file: str | None,
    system: str | None,
    id_column: str | None,
    type_path: str | None,
    concurrency: int | Literal["auto"],
    limit: int | None,
    is_estimate: bool,
    confirm_above: float | None,
    sample: int | None,
    yes: bool,
    max_cost: float | None,
    max_wait: float | None,
    journal: str | None,
    no_journal: bool,
    retry_failed: bool,
    spreadsheet_safe: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Run many prompts from files, within the gateway's rate limit.

    INPUT is JSON lines (also OpenAI's batch input), a JSON array, CSV, TSV or Parquet, compressed or not; or
    - for standard input. Rows have the columns of a request (prompt or messages), or --prompt makes one.

    Outcomes are recorded in a journal beside the output. Started again, the same command continues: what
    succeeded is neither called nor billed again. Ctrl-C finishes the calls in flight; twice ends it
    immediately.

    Exit codes: 0 if every item succeeded, 3 if some failed, 1 if the batch was ended by an error or a limit,
    130 after Ctrl-C.
    """
    from omnigate.cli._commands.batch_run import Job, Terms, run_job

    if prompt is not None and prompt_file is not None:
        raise click.UsageError("--prompt cannot be combined with --prompt-file")
    if no_journal and journal is not None:
        raise click.UsageError("--no-journal cannot be combined with --journal")
    if output == _STDIN:
        output = None
    if output is not None and journal is None and not no_journal:
        journal = journal_beside(output)
    _check_inputs(inputs, output, journal, retry_failed=retry_failed)
    batch_options: dict[str, Any] = {
        "model": invocation.settings().model if model is None else model,
        "prompt": _text_of(prompt_file) if prompt_file is not None else prompt,
        "system": system,
        "id": id_column,
        "max_concurrency": concurrency,
        "max_cost_usd": max_cost,
        "max_wait_seconds": max_wait,
        **sampling_of(options),
        **options,
    }
    if type_path is not None:
        from omnigate.cli._frame.schema_type import schema_type

        batch_options["response_type"] = schema_type(type_path)
    is_asking = is_estimate or confirm_above is not None or sample is not None
    if is_asking and _STDIN in inputs:
        raise click.UsageError("standard input can be read only once: to estimate, name a file")
    run_job(
        invocation,
        Job(
            inputs=inputs,
            output=output,
            journal=journal,
            limit=limit,
            spreadsheet_safe=spreadsheet_safe,
            shows_progress=not quiet,
            options={
                # None leaves the default, but for the one that has None as a value
                name: value
                for name, value in batch_options.items()
                if value is not None or name == "stop_after_failures"
            },
        ),
        Terms(sample=sample or 0, confirm_above_usd=confirm_above, is_agreed=yes) if is_asking else None,
    )


def journal_beside(output: str) -> str:
    """Return the path of the journal for an output: `answers.csv.gz` has `answers.journal.jsonl`."""
    path = Path(output)
    stem = path.name.partition(".")[0] or path.name
    return os.fspath(path.with_name(f"{stem}.journal.jsonl"))


def _check_inputs(
    inputs: tuple[str, ...], output: str | None, journal: str | None, *, retry_failed: bool
) -> None:
    if retry_failed:
        if journal is None:
            raise click.UsageError("--retry-failed needs a journal: name it with --journal, or give -o")
        if not os.path.isfile(journal):
            raise click.UsageError(
                f"--retry-failed: there is no journal {journal!r}; --journal names another"
            )
        if not inputs and output is not None and os.path.exists(output):
            raise click.UsageError(
                f"-o {output!r} exists: without INPUT, --retry-failed writes only what it calls again, so "
                "name another file"
            )
    if not (inputs or retry_failed):
        raise click.UsageError("no INPUT: name a file, or - for standard input")
    if _STDIN in inputs:
        if len(inputs) > 1:
            raise click.UsageError("- (standard input) cannot be combined with other inputs")
        if cast("Any", sys.stdin).isatty():
            raise click.UsageError("- reads standard input, which is a terminal: redirect a file to it")
    for path in inputs:
        for name, other in (("-o", output), ("--journal", journal)):
            if other is not None and _is_same(path, other):
                raise click.UsageError(f"{name} is the input {path!r}: name another file")
    if output is not None and journal is not None and _is_same(output, journal):
        raise click.UsageError("-o and --journal are the same file")


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them does not exist
        return os.path.abspath(one) == os.path.abspath(other)


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.UsageError(
            f"--prompt-file: {path} must be UTF-8, but byte {error.start} is not"
        ) from None
