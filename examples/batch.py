"""Three batches: from a list, from a file with a journal, and resumed after a stop.

python examples/batch.py      (with OMNIGATE_BASE_URL and OMNIGATE_API_KEY set: see `omnigate gateway`)
"""

import asyncio
import json
import tempfile
from pathlib import Path

from omnigate import AsyncClient, Client

CITIES = ["Oslo", "Lima", "Accra", "Hanoi", "Quito", "Turin"]


def from_a_list() -> None:
    """Send prompts concurrently and get the answers in their order; the first error is raised."""
    with Client() as client:
        for answer in client.chat_many([f"One fact about {city}" for city in CITIES], model="gpt-4o-mini"):
            print(answer.content)


def from_a_file(folder: Path) -> None:
    """Get outcomes as they complete, each written to a journal, and stop midway."""
    lines = [{"id": city, "messages": f"The river of {city}?", "max_tokens": 50} for city in CITIES]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    with (
        Client() as client,
        client.batch(
            folder / "questions.jsonl",
            model="gpt-4o-mini",
            max_concurrency=2,
            journal=folder / "answers.jsonl",
        ) as batch,
    ):
        for outcome in batch:
            if outcome.error is None:
                print(outcome.id, "→", outcome.unwrap().content)
            else:
                print(outcome.id, "failed:", outcome.error)
            if batch.stats.succeeded >= 3:
                break  # as after a crash, power cut or Ctrl-C, the next run continues from here


async def resumed(folder: Path) -> None:
    """Continue with the same file and journal: finished items are neither sent nor paid for again."""
    async with (
        AsyncClient() as client,
        client.batch(
            folder / "questions.jsonl", model="gpt-4o-mini", journal=folder / "answers.jsonl", ordered=True
        ) as batch,
    ):
        async for outcome in batch:
            source = "from the journal" if outcome.replayed else "sent now"
            print(f"{outcome.id}, {source}: {outcome.unwrap().content}")
        stats = batch.stats
    print(f"{stats.replayed} replayed, {stats.succeeded} sent, {stats.cost_usd:.6f} USD")


from_a_list()
with tempfile.TemporaryDirectory() as name:
    from_a_file(Path(name))
    asyncio.run(resumed(Path(name)))
