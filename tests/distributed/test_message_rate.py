"""How many messages a worker sends to the shared pacer, in virtual time."""

from typing import Any

import anyio
import pytest

from omnigate import AsyncClient
from omnigate.distributed import LocalLink

from ..support.event_loops import without_debug
from ..support.model_gateway import ModelGateway, Reply

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


class Counting:
    """A link that notes when it was used."""

    def __init__(self, link: LocalLink) -> None:
        self.link = link
        self.times: list[float] = []

    async def exchange(self, report: bytes) -> bytes:
        self.times.append(anyio.current_time())
        return await self.link.exchange(report)

    async def aclose(self) -> None:
        await self.link.aclose()


@pytest.mark.parametrize(("limit", "items"), [(60, 60), (600, 400), (None, 200)])
@without_debug
async def test_a_worker_sends_at_most_ten_messages_a_second(limit: int | None, items: int) -> None:
    """The bound is 50; in the mean it is about four."""
    gateway = ModelGateway(lambda model, prompt, gateway: Reply(0.3), limit=limit)
    shared = LocalLink(clock=anyio.current_time)
    links = [Counting(shared) for _ in range(3)]

    async def work(link: Counting) -> None:
        client = AsyncClient("llmg_secret", base_url="http://gateway.test", transport=gateway)
        options: dict[str, Any] = {"model": "m", "pacer": link, "max_concurrency": 20}
        async with client.batch((f"q{number}" for number in range(items)), **options) as batch:
            async for outcome in batch:
                outcome.unwrap()

    started_at = anyio.current_time()
    async with anyio.create_task_group() as group:
        for link in links:
            group.start_soon(work, link)
    seconds = anyio.current_time() - started_at
    assert gateway.rejected == 0
    for link in links:
        busiest = max(sum(at <= other < at + 1 for other in link.times) for at in link.times)
        assert 2 <= busiest <= 10
        assert len(link.times) <= 6 + 6 * seconds
