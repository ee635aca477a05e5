"""`omnigate journal`: what the journals of batches hold."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final

import click

from omnigate.cli._frame.command import Command, Group, pass_invocation
from omnigate.cli._frame.invocation import Invocation
from omnigate.cli._frame.tables import Column, emit_table
from omnigate.cli._frame.terminal import emit, emit_json, emit_json_line, note, safe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from omnigate._batch.outcomes import AnyOutcome

_OFFLINE: Final = ("json", "debug")
"""The common options of commands that call no gateway."""

_TEXT_LENGTH: Final = 200

_ROWS_SHOWN: Final = 20


@click.group(cls=Group, examples=["omnigate journal show answers.journal.jsonl"])
def command() -> None:
    """Show, filter and merge the journals of batches."""


@command.command(
    cls=Command,
    common=_OFFLINE,
    examples=[
        "omnigate journal show answers.journal.jsonl",
        "omnigate journal show answers.journal.jsonl --limit 0 --json",
    ],
)
@click.argument("path", metavar="JOURNAL")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=_ROWS_SHOWN,
    show_default=True,
    metavar="ROWS",
    help="How many outcomes to list.",
)
@pass_invocation
def show(invocation: Invocation, path: str, limit: int) -> None:
    """Show a journal's totals, its errors by kind, and its first outcomes.

    It is only read, also while a batch writes to it.
    """
    from omnigate import read_journal
    from omnigate.cli._commands.batch_summary import Summary

    summary = Summary()
    first: list[AnyOutcome] = []
    for outcome in summary.counted(read_journal(path)):
        if len(first) < limit:
            first.append(outcome)
    if invocation.is_json:
        emit_json({**summary.as_dict(), "outcomes": [_fields(outcome) for outcome in first]})
        return
    if first:
        emit_table(
            [
                Column("id", can_shrink=True),
                Column("tokens", is_number=True),
                Column("answer or error", can_shrink=True),
            ],
            [_cells(outcome) for outcome in first],
        )
    left = summary.count - len(first)
    more = [f"{left:,} more outcomes (--limit)"] if left and limit else []
    note("\n".join([*more, *summary.lines()]))


@command.command(
    cls=Command,
    common=_OFFLINE,
    examples=[
        "omnigate journal failed answers.journal.jsonl",
        "omnigate journal failed answers.journal.jsonl --items > again.jsonl",
    ],
)
@click.argument("path", metavar="JOURNAL")
@click.option("--items", is_flag=True, help="Print what to run again, as JSON lines, instead of the errors.")
@pass_invocation
def failed(invocation: Invocation, path: str, items: bool) -> None:
    """List the items of a journal that failed, with their errors.

    Exits with 1 if there are any.
    """
    import omnigate
    from omnigate.cli._commands.batch_summary import Summary

    if items:
        count = 0
        for count, item in enumerate(omnigate.failed(path), 1):  # noqa: B007 - used below
            emit_json_line(_item(item))
    else:
        count = _list_failed(invocation, Summary(), omnigate.read_journal(path))
    if count:
        raise click.exceptions.Exit(1)


def _list_failed(invocation: Invocation, summary: Any, outcomes: Iterable[AnyOutcome]) -> int:
    """Print the failed outcomes one by one, since there may be many; return how many there are."""
    for outcome in summary.counted(outcomes):
        if outcome.error is None:
            continue
        if invocation.is_json:
            emit_json_line(_fields(outcome))
        else:
            from omnigate._wire.redaction import one_line

            emit(f"{safe(outcome.id)}\t{safe(one_line(_told(outcome), _TEXT_LENGTH))}")
    if not invocation.is_json:
        note("\n".join([f"{summary.failed:,} of {summary.count:,} items failed.", *summary.error_lines()]))
    return int(summary.failed)


@command.command(
    cls=Command,
    common=_OFFLINE,
    examples=["omnigate journal merge part-1.jsonl part-2.jsonl -o all.jsonl"],
)
@click.argument("paths", nargs=-1, required=True, metavar="JOURNAL...")
@click.option("-o", "--output", required=True, metavar="FILE", help="The journal to write.")
@pass_invocation
def merge(invocation: Invocation, paths: tuple[str, ...], output: str) -> None:
    """Merge journals into one: one line for each id, and a success wins over a failure.

    Exits with 1 if journals contradict each other; of two answers for an id the first is kept.
    """
    from omnigate import JournalWarning, merge_journals
    from omnigate.cli._frame.values import counted

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", JournalWarning)  # of conflicts, which are told below
        merged = merge_journals(paths, output)
    if invocation.is_json:
        emit_json(merged)
    else:
        note(
            f"{output}: {merged.succeeded + merged.failed:,} ids from {counted(merged.journals, 'journal')}, "
            f"{merged.failed:,} of them failed; {counted(merged.dropped, 'line')} left out."
        )
        for conflict in merged.conflicts[:_ROWS_SHOWN]:
            what = "answers to the same request" if conflict.reason == "answer" else "requests"
            note(f"  {safe(conflict.id)}: different {what}; kept {conflict.kept}, not {conflict.dropped}")
    if merged.conflict_count:
        raise click.exceptions.Exit(1)


def _cells(outcome: AnyOutcome) -> tuple[str, str, str]:
    from omnigate._wire.redaction import one_line

    response = outcome.response
    tokens = "-" if response is None else f"{response.usage.total_tokens:,}"
    return outcome.id, tokens, one_line(_told(outcome), _TEXT_LENGTH)


def _told(outcome: AnyOutcome) -> str:
    """Return the answer of an outcome, or its error."""
    from omnigate._wire.redaction import redact

    if outcome.response is not None:
        return outcome.response.content
    return f"{type(outcome.error).__name__}: {redact(str(outcome.error))}"


def _fields(outcome: AnyOutcome) -> dict[str, Any]:
    """Return an outcome as plain values."""
    fields = outcome.to_dict()
    return {name: fields[name] for name in ("id", "response", "error", "attempts", "elapsed")}


def _item(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item to run again, with the id that it has in the journal."""
    own: str = getattr(item, "id", "")
    return item if not own or item.keys() & {"id", "custom_id"} else {"id": own, **item}
