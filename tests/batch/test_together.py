"""A batch of data that uses everything: rows, a template, values, equal requests, a limit, a journal, a table."""

import csv
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import msgspec
import pytest

from omnigate import AsyncClient, BatchLimitError, BatchStats, Client, Outcome, failed, read_journal

from ..support.scripted import chat_answer

pytestmark = [pytest.mark.anyio]

CITIES = ["Oslo", "Lima", "Oslo", "Accra", "Lima", "Quito", "Turin", "Oslo"]


class City(msgspec.Struct, frozen=True):
    name: str


class Gateway(httpx.AsyncBaseTransport):
    """Answers with the city of the prompt, for 0.25 USD; the first time it is asked about Quito, with prose."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        messages = json.loads(await request.aread())["messages"]
        prompt = next(message["content"] for message in messages if message["role"] == "user")
        city = prompt.removeprefix("Which city is ").removesuffix("?")
        self.asked[city] += 1
        is_prose = city == "Quito" and self.asked[city] == 1
        return chat_answer(content="It is Quito." if is_prose else json.dumps({"name": city}), cost_usd=0.25)


def arguments_of(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": "gpt-4o-mini",
        "prompt": "Which city is {city}?",
        "id": "key",
        "response_type": City,
        "dedupe": True,
        "journal": folder / "journal.jsonl",
        "max_concurrency": 1,
        **more,
    }


async def write(gateway: Gateway, folder: Path, **more: Any) -> BatchStats:
    client = AsyncClient("llmg_x", base_url="http://gateway.test", transport=gateway)
    return await client.batch(folder / "cities.csv", **arguments_of(folder, **more)).write(folder / "out.csv")


def write_sync(gateway: Gateway, folder: Path, **more: Any) -> BatchStats:
    with Client("llmg_x", base_url="http://gateway.test", transport=gateway) as client:
        return client.batch(folder / "cities.csv", **arguments_of(folder, **more)).write(folder / "out.csv")


async def write_in_thread(gateway: Gateway, folder: Path, **more: Any) -> BatchStats:
    return await anyio.to_thread.run_sync(partial(write_sync, gateway, folder, **more))


async def outcomes_of(gateway: Gateway, folder: Path) -> list[Outcome]:
    client = AsyncClient("llmg_x", base_url="http://gateway.test", transport=gateway)
    batch: Any = client.batch(folder / "cities.csv", **arguments_of(folder, ordered=True))
    async with batch:
        return [outcome async for outcome in batch]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.blocks  # the test reads the files that were written
@pytest.mark.parametrize("write", [write, write_in_thread], ids=["async", "sync"])
async def test_a_limited_batch_of_rows_is_resumed_and_written_with_each_request_called_once(
    tmp_path: Path, write: Any
) -> None:
    gateway = Gateway()
    rows = "".join(f"k{number},{city}\n" for number, city in enumerate(CITIES))
    (tmp_path / "cities.csv").write_text("key,city\n" + rows)
    with anyio.fail_after(30):
        with pytest.raises(BatchLimitError) as raised:
            await write(gateway, tmp_path, max_cost_usd=0.75)
        assert (raised.value.limit, raised.value.cost_usd) == ("max_cost_usd", 0.75)
        assert gateway.asked == Counter(["Oslo", "Lima", "Accra"])
        assert "out.partial.csv" in "".join(raised.value.__notes__)
        assert not (tmp_path / "out.csv").exists()
        partial_keys = [row["key"] for row in table(tmp_path / "out.partial.csv")]
        assert partial_keys == ["k0", "k1", "k2", "k3", "k4"]

        stats = await write(gateway, tmp_path, max_cost_usd=5)
        assert gateway.asked == Counter(["Oslo", "Lima", "Accra", "Quito", "Quito", "Turin"])
        assert (stats.succeeded, stats.replayed, stats.failed, stats.total) == (3, 5, 0, 8)
        assert (stats.cost_usd, stats.journal_cost_usd) == (0.75, 1.5)

        written = table(tmp_path / "out.csv")
        assert [(row["key"], row["city"]) for row in written] == [(f"k{n}", c) for n, c in enumerate(CITIES)]
        assert [json.loads(row["content"]) for row in written] == [{"name": city} for city in CITIES]
        assert [json.loads(row["parsed"]) for row in written] == [{"name": city} for city in CITIES]
        assert all(row["error"] == "" for row in written)

        assert [outcome.id for outcome in read_journal(tmp_path / "journal.jsonl")] == [
            f"k{number}" for number in range(len(CITIES))
        ]
        assert list(failed(tmp_path / "journal.jsonl")) == []
        replayed = await outcomes_of(gateway, tmp_path)
        assert [outcome.unwrap().parsed for outcome in replayed] == [City(city) for city in CITIES]
        assert sum(gateway.asked.values()) == 6
