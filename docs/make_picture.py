"""Draws `batch.svg`, the display of a real batch against the local gateway: python docs/make_picture.py."""

import re
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from omnigate import BatchStats, Client
from omnigate._batch.display import Display
from omnigate.testing import LocalGateway, Status

COMMAND = 'omnigate batch reviews.csv -o answers.csv --prompt "Sum up: {text}"'

COLUMNS = 78


def stats_of_a_batch() -> BatchStats:
    """Run a batch until it waits for the next rate window, and return its stats then."""
    seen: list[BatchStats] = []
    with LocalGateway(rate_window_seconds=20, latency_seconds=0.3) as gateway:
        gateway.script(Status(400, b'{"detail":"too rude"}'), times=3)
        key = gateway.create_project(rate_limit_per_min=150).api_key
        with Client(key, base_url=gateway.url) as client:
            rows = [f"Sum up: review {number}, about a soup that was cold" for number in range(600)]
            with client.batch(rows, model="gpt-4o-mini", progress=seen.append) as batch:
                for _ in batch:
                    if seen and seen[-1].waiting_until is not None and seen[-1].in_flight == 0:
                        break
                    if batch.stats.succeeded == 149:
                        batch.stop()
    return next(stats for stats in reversed(seen) if stats.waiting_until is not None)


def main() -> None:
    """Draw the picture."""
    console = Console(record=True, width=COLUMNS, force_terminal=True, color_system="truecolor")
    display = Display(console)
    display._stats, display._started_at = stats_of_a_batch(), console.get_time() - 9
    console.print(f"$ {COMMAND}", highlight=False)
    console.print(display)
    # Without the fonts, which rich's pictures load from another server.
    style = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    picture = console.export_svg(title="omnigate batch", code_format=style, unique_id="batch")
    path = Path(__file__).with_name("batch.svg")
    path.write_text("".join(f"{line.rstrip()}\n" for line in picture.splitlines()), encoding="utf-8")


if __name__ == "__main__":
    main()
