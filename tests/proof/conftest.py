"""Says at the end how much was tried."""

from typing import Any

from ..support.cancellation import TRIED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if TRIED:
        ways = ", ".join(f"{way} {count:,}" for way, count in sorted(TRIED.items()))
        terminalreporter.write_line(f"cancellations tried: {TRIED.total():,} ({ways})")
