"""Clients with an event loop each, against the local gateway over real sockets: one limit, one pacer."""

import threading
from typing import Any

import anyio
import pytest

from omnigate import AnyIOTransport, AsyncAdminClient, AsyncClient, BatchStats, Client
from omnigate.distributed import LocalLink
from omnigate.testing import LocalGateway

from ..support.event_loops import BOTH, backend_of

pytestmark = [pytest.mark.anyio, pytest.mark.proof]

WINDOW_SECONDS = 3

LIMIT = 120


@pytest.fixture(params=BOTH)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return backend_of(request)


async def key_of(gateway: LocalGateway) -> str:
    """Return the key of a project that may make so many calls per window."""
    async with AsyncAdminClient(gateway.admin_key, base_url=gateway.url) as admin:
        org = await admin.create_org(name="o")
        project = await admin.create_project(org_id=org.id, name="p", rate_limit_per_min=LIMIT)
    async with AsyncClient(project.api_key, base_url=gateway.url) as client:
        await client.set_provider_key(provider="openai", api_key="sk-12345678")
    return project.api_key


async def test_clients_that_share_a_pacer_have_no_rejections() -> None:
    stats: list[BatchStats] = []
    async with LocalGateway(rate_window_seconds=WINDOW_SECONDS, latency_seconds=0.05) as gateway:
        key, link = await key_of(gateway), LocalLink()

        async def work(name: str) -> None:
            # A transport of its own makes it a worker of its own, as in a process of its own.
            async with AsyncClient(key, base_url=gateway.url, transport=AnyIOTransport()) as client:
                items = (f"{name}{number}" for number in range(60))
                stats.append(await client.batch(items, model="gpt-4o-mini", pacer=link).run())

        with anyio.fail_after(50):
            async with anyio.create_task_group() as group:
                for name in "abcd":
                    group.start_soon(work, name)
    assert [stat.succeeded for stat in stats] == [60] * 4
    assert sum(stat.rejections for stat in stats) == 0
    assert repr(link) == "<LocalLink: <SharedPacer: 1 keys, 0 workers>>"


def test_threads_with_an_event_loop_each_share_a_pacer() -> None:
    stats: list[BatchStats] = []
    link = LocalLink()
    with LocalGateway(rate_window_seconds=WINDOW_SECONDS, latency_seconds=0.05) as gateway:
        key = anyio.run(key_of, gateway)

        def work(name: str) -> None:
            with Client(key, base_url=gateway.url) as client:
                items = (f"{name}{number}" for number in range(120))
                stats.append(client.batch(items, model="gpt-4o-mini", pacer=link).run())

        threads = [threading.Thread(target=work, args=(name,), daemon=True) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(50)
    assert [stat.succeeded for stat in stats] == [120] * 2
    assert sum(stat.rejections for stat in stats) == 0
