"""What `omnigate batch` and `omnigate journal` say of many outcomes: totals, and errors grouped by kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from omnigate._batch.outcomes import AnyOutcome, BatchStats, billed_answers, words_of
from omnigate._batch.spending import Spending
from omnigate._wire.redaction import one_line, redact
from omnigate.cli._frame.terminal import safe
from omnigate.cli._frame.values import counted, usd
from omnigate.exceptions import APIError, GatewayError

_KINDS_MOST: Final = 100

_KINDS_SHOWN: Final = 10

_TEXT_LENGTH: Final = 200

_ID_LENGTH: Final = 60


class Summary:
    """Counts outcomes, and keeps one example of each kind of error.

    Attributes:
        count: how many outcomes there were.
        stats: the batch's, once it has ended.
        written: the file that has the outcomes, or None.
    """

    def __init__(self) -> None:
        self.count = 0
        self.stats = BatchStats()
        self.written: str | None = None
        self._kinds: dict[str, list[Any]] = {}  # of each: how many, the id and the text of the first

    def add(self, outcome: AnyOutcome) -> None:
        """Count an outcome."""
        self.count += 1
        error = outcome.error
        if error is None:
            return
        kind = kind_of(error)
        if kind not in self._kinds and len(self._kinds) >= _KINDS_MOST:
            kind = "other errors"
        found = self._kinds.get(kind)
        if found is None:
            self._kinds[kind] = [1, outcome.id, str(redact(str(error)))]
        else:
            found[0] += 1

    def counted(self, outcomes: Iterable[AnyOutcome]) -> Iterator[AnyOutcome]:
        """Count the outcomes of a journal, and yield each; the stats are then those of the journal."""
        spending, succeeded = Spending(), 0
        for outcome in outcomes:
            self.add(outcome)
            succeeded += outcome.error is None
            for answer in billed_answers(outcome):
                spending.add(answer.usage, answer.cost_usd)
            yield outcome
        self.stats = BatchStats(
            succeeded=succeeded,
            failed=self.failed,
            prompt_tokens=spending.prompt_tokens,
            completion_tokens=spending.completion_tokens,
            total_tokens=spending.total_tokens,
            cost_usd=spending.cost_usd,
        )

    @property
    def failed(self) -> int:
        """How many of them are errors."""
        return sum(count for count, _, _ in self._kinds.values())

    def lines(self) -> list[str]:
        """Return the summary for people."""
        stats = self.stats
        lines = [
            ", ".join(
                [
                    *words_of(stats),
                    f"{stats.total_tokens:,} tokens",
                    usd(stats.cost_usd),
                    *([counted(stats.rejections, "rejection")] if stats.rejections else []),
                    *([counted(stats.retries, "resend")] if stats.retries else []),
                ]
            )
        ]
        return lines + self.error_lines()

    def error_lines(self) -> list[str]:
        """Return the errors by kind, the most frequent first, each with an example."""
        kinds = self._kinds_by_count()
        lines: list[str] = []
        for kind, (count, id, text) in kinds[:_KINDS_SHOWN]:
            example = f"{one_line(safe(id), _ID_LENGTH)}: {one_line(safe(text), _TEXT_LENGTH)}"
            lines.append(f"  {count:,} x {kind}, such as {example}")
        if len(kinds) > _KINDS_SHOWN:
            rest = sum(count for _, (count, _, _) in kinds[_KINDS_SHOWN:])
            lines.append(f"  {rest:,} of {len(kinds) - _KINDS_SHOWN} other kinds")
        return lines

    def _kinds_by_count(self) -> list[tuple[str, list[Any]]]:
        return sorted(self._kinds.items(), key=lambda item: -item[1][0])

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as plain values."""
        stats = self.stats
        return {
            "succeeded": stats.succeeded,
            "failed": stats.failed,
            "replayed": stats.replayed,
            "prompt_tokens": stats.prompt_tokens,
            "completion_tokens": stats.completion_tokens,
            "total_tokens": stats.total_tokens,
            "cost_usd": stats.cost_usd,
            "rejections": stats.rejections,
            "retries": stats.retries,
            "errors": [
                {"kind": kind, "count": count, "example": {"id": id, "message": text}}
                for kind, (count, id, text) in self._kinds_by_count()
            ],
        }


def kind_of(error: GatewayError) -> str:
    """Return the kind of an error: its type, and its status if it has one."""
    name = type(error).__name__
    status = error.status_code if isinstance(error, APIError) else None
    return name if status is None else f"{name} {status}"
