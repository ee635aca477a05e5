"""Usage records of the local gateway: an in-memory SQLite database, the metrics over it, and spending."""

from __future__ import annotations

import sqlite3
import threading
import weakref
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, Literal

from omnigate.testing._gateway.accounts import iso

Scope = Literal["project_id", "org_id"]

_COLUMNS: Final = {"provider": "provider", "model": "model", "user": "user_id", "status": "status"}

_BUCKET_SECONDS: Final = {"minute": 60, "hour": 3_600, "day": 86_400}

_BREAKDOWN_ROWS: Final = 100

_SUMS: Final = (
    "COUNT(*), COALESCE(SUM(prompt_tokens + completion_tokens), 0), COALESCE(SUM(micro_usd), 0), "
    "COALESCE(AVG(failed), 0)"
)


@dataclass(frozen=True)
class UsageRecord:
    """One billed call."""

    time: float
    project_id: str
    org_id: str
    provider: str | None
    model: str
    user_id: str | None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    micro_usd: int = 0
    latency_ms: int = 0
    cached: bool = False
    failed: bool = False


class Usage:
    """All usage of a gateway. May be used from several threads."""

    def __init__(self) -> None:
        self._adding = threading.Lock()  # not needed to read, as SQLite itself serialises its statements
        self._database = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._database.execute(
            "CREATE TABLE usage (time REAL, project_id TEXT, org_id TEXT, provider TEXT, model TEXT,"
            " user_id TEXT, prompt_tokens INTEGER, completion_tokens INTEGER, micro_usd INTEGER,"
            " latency_ms INTEGER, cached INTEGER, failed INTEGER, status TEXT)"
        )
        self._spend: dict[tuple[str, str], int] = {}
        weakref.finalize(self, self._database.close)  # Python 3.13 warns about unclosed ones

    def add(self, record: UsageRecord) -> None:
        """Store a record and add its cost to the spending."""
        row = (
            record.time, record.project_id, record.org_id, record.provider, record.model, record.user_id,
            record.prompt_tokens, record.completion_tokens, record.micro_usd, record.latency_ms,
            record.cached, record.failed, _status(record),
        )  # fmt: skip
        day, month = _periods(record.time)
        with self._adding:
            self._database.execute(f"INSERT INTO usage VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608
            for owner in (record.project_id, record.org_id):
                for period in (day, month):
                    key = (owner, period)
                    self._spend[key] = self._spend.get(key, 0) + record.micro_usd

    def spent(self, owner_id: str, now: float, period: Literal["daily", "monthly"]) -> Decimal:
        """Return the spending of a project or organisation in the current UTC day or month, in USD."""
        day, month = _periods(now)
        micro_usd = self._spend.get((owner_id, day if period == "daily" else month), 0)
        return Decimal(micro_usd) / 1_000_000

    def count(self) -> int:
        """Return the number of records."""
        return int(self._database.execute("SELECT COUNT(*) FROM usage").fetchone()[0])

    def metrics(
        self,
        scope: Scope,
        scope_id: str,
        start: datetime,
        end: datetime,
        group_by: str | None,
        granularity: str | None,
    ) -> dict[str, Any]:
        """Return the response body of the metrics endpoints."""
        if granularity is None:
            hours = (end - start).total_seconds() / 3_600
            granularity = "minute" if hours <= 1 else "hour" if hours <= 24 else "day"
        where = f"FROM usage WHERE {scope} = ? AND time >= ? AND time <= ?"
        values = (scope_id, start.timestamp(), end.timestamp())
        totals = self._totals(where, values)
        breakdown = [] if group_by is None else self._breakdown(where, values, _COLUMNS[group_by])
        timeseries = self._timeseries(where, values, _BUCKET_SECONDS[granularity])
        return {
            "scope": scope.removesuffix("_id"),
            "scope_id": scope_id,
            "range_from": iso(start),
            "range_to": iso(end),
            "group_by": group_by,
            "granularity": granularity,
            "totals": totals,
            "breakdown": breakdown,
            "timeseries": timeseries,
        }

    def _totals(self, where: str, values: tuple[Any, ...]) -> dict[str, Any]:
        row = self._database.execute(
            f"SELECT {_SUMS}, COALESCE(SUM(prompt_tokens), 0), COALESCE(SUM(completion_tokens), 0),"
            f" COALESCE(AVG(cached), 0) {where}",
            values,
        ).fetchone()
        latencies = [
            latency
            for (latency,) in self._database.execute(
                f"SELECT latency_ms {where} AND NOT failed ORDER BY latency_ms",
                values,
            )
        ]
        return {
            "requests": row[0],
            "prompt_tokens": row[4],
            "completion_tokens": row[5],
            "total_tokens": row[1],
            "cost_usd": row[2] / 1_000_000,
            "error_rate": float(row[3]),
            "cache_hit_rate": float(row[6]),
            "avg_latency_ms": sum(latencies) / len(latencies) if latencies else 0.0,
            "p50_latency_ms": _percentile(latencies, 0.50),
            "p95_latency_ms": _percentile(latencies, 0.95),
            "p99_latency_ms": _percentile(latencies, 0.99),
        }

    def _breakdown(self, where: str, values: tuple[Any, ...], column: str) -> list[dict[str, Any]]:
        rows = self._database.execute(
            f"SELECT COALESCE({column}, 'unknown'), {_SUMS},"
            f" COALESCE(AVG(CASE WHEN failed THEN NULL ELSE latency_ms END), 0) {where}"
            f" GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {_BREAKDOWN_ROWS}",
            values,
        )
        return [
            {
                "key": key,
                "requests": requests,
                "total_tokens": tokens,
                "cost_usd": micro_usd / 1_000_000,
                "avg_latency_ms": float(latency),
                "error_rate": float(error_rate),
            }
            for key, requests, tokens, micro_usd, error_rate, latency in rows
        ]

    def _timeseries(self, where: str, values: tuple[Any, ...], seconds: int) -> list[dict[str, Any]]:
        rows = self._database.execute(
            f"SELECT CAST(time AS INTEGER) / {seconds} * {seconds}, {_SUMS} {where} GROUP BY 1 ORDER BY 1",
            values,
        )
        return [
            {
                "bucket": iso(datetime.fromtimestamp(bucket, UTC)),
                "requests": requests,
                "total_tokens": tokens,
                "cost_usd": micro_usd / 1_000_000,
                "error_rate": float(error_rate),
            }
            for bucket, requests, tokens, micro_usd, error_rate in rows
        ]


def _status(record: UsageRecord) -> str:
    if record.failed:
        return "error"
    return "cache_hit" if record.cached else "ok"


def _periods(now: float) -> tuple[str, str]:
    day = datetime.fromtimestamp(now, UTC).date().isoformat()
    return day, day[:7]


def _percentile(ordered: list[int], fraction: float) -> float | None:
    """Return a percentile, interpolated between the values around it (PostgreSQL's `percentile_cont`)."""
    if not ordered:
        return None
    place = fraction * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
