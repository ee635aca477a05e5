"""Batches that send under the leases of one shared pacer, in virtual time."""

import logging
from typing import Any

import anyio
import pytest

from omnigate import AsyncClient, Client, Outcome
from omnigate._batch.pace.messages import decode_report
from omnigate.distributed import LocalLink, PacerLink
from omnigate.exceptions import InvalidArgumentError
from omnigate.testing import LocalGateway

from ..support.event_loops import without_debug
from ..support.model_gateway import ModelGateway, Reply

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

MODEL = "gpt-4o-mini"


class Watched:
    """A link that notes what it carries, and can be broken."""

    def __init__(self, link: LocalLink) -> None:
        self.link = link
        self.reports: list[Any] = []
        self.closed = 0
        self.error: Exception | None = None
        self.is_silent = False

    async def exchange(self, report: bytes) -> bytes:
        self.reports.append(decode_report(report))
        if self.error is not None:
            raise self.error
        if self.is_silent:
            await anyio.sleep_forever()
        return await self.link.exchange(report)

    async def aclose(self) -> None:
        self.closed += 1
        await anyio.lowlevel.checkpoint()


def new_link() -> LocalLink:
    return LocalLink(clock=anyio.current_time)


def gateway_of(limit: int | None, seconds: float = 0.3) -> ModelGateway:
    return ModelGateway(lambda model, prompt, gateway: Reply(seconds), limit=limit)


def client_of(gateway: ModelGateway) -> AsyncClient:
    """Return a client that is a worker of its own, as in a process of its own."""
    return AsyncClient("llmg_secret", base_url="http://gateway.test", transport=gateway)


async def run(client: AsyncClient, count: int, **options: Any) -> list[Outcome]:
    items = (f"q{number}" for number in range(count))
    async with client.batch(items, model=MODEL, **options) as batch:
        return [outcome async for outcome in batch]


async def run_all(gateway: ModelGateway, links: list[Any], count: int, **options: Any) -> float:
    """Run a batch of so many items over each link; return how many windows that took."""
    started_at = anyio.current_time()

    async def one(link: PacerLink | None) -> None:
        outcomes = await run(client_of(gateway), count, pacer=link, **options)
        assert [outcome.error for outcome in outcomes] == [None] * count

    async with anyio.create_task_group() as group:
        for link in links:
            group.start_soon(one, link)
    return (anyio.current_time() - started_at) / 60


async def test_two_workers_use_the_whole_limit_without_a_rejection() -> None:
    gateway = gateway_of(60)
    windows = await run_all(gateway, [new_link()] * 2, 120)
    assert gateway.rejected == 0
    assert windows <= 4  # of 240 calls


async def test_the_pacer_forgets_workers_whose_batch_has_ended_and_their_link_is_closed() -> None:
    link = Watched(new_link())
    await run_all(gateway_of(60), [link], 10)
    assert link.reports[-1].is_leaving
    assert "0 workers" in repr(link.link)
    assert link.closed == 1


async def test_no_key_and_no_prompt_is_in_a_report() -> None:
    link = Watched(new_link())
    await run_all(gateway_of(60), [link], 10)
    assert "secret" not in repr(link.reports)
    assert "q1" not in repr(link.reports)


async def test_batches_of_one_client_are_one_worker() -> None:
    gateway, link = gateway_of(60), Watched(new_link())
    async with client_of(gateway) as client, anyio.create_task_group() as group:
        group.start_soon(lambda: run(client, 30, pacer=link))
        group.start_soon(lambda: run(client, 80, pacer=link))
        group.start_soon(lambda: run(client, 30))  # which shares the key with them
    assert len({report.worker for report in link.reports}) == 1
    assert gateway.rejected == 0
    assert link.reports[-1].is_leaving
    assert [report.is_leaving for report in link.reports].count(True) == 1


async def test_without_a_limit_nothing_is_held_back() -> None:
    windows = await run_all(gateway_of(None), [new_link()] * 2, 200, max_concurrency=50)
    assert windows < 0.1


@pytest.mark.parametrize("error", [ConnectionRefusedError("nobody"), ValueError("a bug of the link")])
async def test_without_an_answer_a_batch_paces_itself(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    link = Watched(new_link())
    link.error = error
    gateway = gateway_of(60)
    with caplog.at_level(logging.WARNING, "omnigate"):
        windows = await run_all(gateway, [link], 100)
    assert gateway.rejected == 0
    assert windows <= 2
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings == [
        f"batch: no answer from the shared pacer ({type(error).__name__}: {error});"
        " until it comes, the worker paces itself"
    ]


async def test_a_link_that_never_answers_is_not_waited_for() -> None:
    link = Watched(new_link())
    link.is_silent = True
    windows = await run_all(gateway_of(60), [link], 50)
    assert windows <= 0.5
    assert len(link.reports) > 1


async def test_an_answer_that_is_no_grant_counts_as_none() -> None:
    class Garbled(Watched):
        async def exchange(self, report: bytes) -> bytes:
            await super().exchange(report)
            return b"HTTP/1.1 400 Bad Request\r\n\r\n"

    assert await run_all(gateway_of(60), [Garbled(new_link())], 50) <= 0.5


async def test_a_pacer_that_comes_back_is_used_again() -> None:
    gateway, link = gateway_of(60), Watched(new_link())
    counts: list[int] = []

    async def trouble() -> None:
        await anyio.sleep(20)
        link.error = ConnectionResetError("gone")
        await anyio.sleep(60)
        link.error = None
        link.link = new_link()
        counts.append(len(link.reports))

    async with anyio.create_task_group() as group:
        group.start_soon(trouble)
        await run_all(gateway, [link], 300)
    assert gateway.rejected == 0
    assert any(report.epoch != link.reports[0].epoch for report in link.reports[counts[0] :])
    assert link.reports[-1].is_leaving


async def test_leaving_early_returns_the_lease_and_a_silent_pacer_holds_nobody_up() -> None:
    link = Watched(new_link())
    async with client_of(gateway_of(6_000)) as client:
        items = (f"q{number}" for number in range(10_000))
        async with client.batch(items, model=MODEL, pacer=link) as batch:
            async for _ in batch:
                if batch.stats.succeeded >= 100:
                    break
            link.is_silent = True
            started_at = anyio.current_time()
        assert anyio.current_time() - started_at <= 3
    assert link.reports[-1].is_leaving
    assert link.closed == 1


async def test_cancelling_a_batch_that_waits_for_a_lease_leaves_nothing_behind() -> None:
    link = Watched(new_link())
    gateway = gateway_of(10)
    async with client_of(gateway) as client:
        with anyio.move_on_after(30) as scope:
            await run(client, 1_000, pacer=link)
        assert scope.cancelled_caught
        assert "0 workers" in repr(link.link)
        outcomes = await run(client, 5, pacer=link)  # the client goes on to work
    assert [outcome.error for outcome in outcomes] == [None] * 5
    assert gateway.rejected == 0


async def test_stats_tell_that_the_rate_window_is_waited_for() -> None:
    seen: list[Any] = []
    await run_all(gateway_of(20), [new_link()], 50, progress=seen.append)
    assert "rate window" in {stats.waiting_for for stats in seen}


@pytest.mark.proof
@without_debug
async def test_workers_tell_how_the_calls_of_their_models_went_and_get_parts_of_one_limit() -> None:
    link = Watched(new_link())
    gateway = gateway_of(None, seconds=1.0)
    seen: list[Any] = []
    items = [
        {"model": model, "messages": f"q{number}"} for model in ("gpt-4o", MODEL) for number in range(300)
    ]
    async with client_of(gateway) as client:
        stats = await client.batch(items, pacer=link, progress=seen.append).run()
    assert stats.succeeded == 600
    told = [model for report in link.reports for model in report.models]
    assert {model.model for model in told} == {"gpt-4o", MODEL}
    assert all(1.0 <= latency < 1.1 for model in told for latency in model.latencies)
    assert sum(len(model.latencies) for model in told) >= 500
    assert any(model.limit > 8 for model in told)


@pytest.mark.proof
@without_debug
async def test_an_overload_of_one_worker_cuts_the_calls_of_the_others() -> None:
    link = new_link()
    most = 0

    def handle(model: str, prompt: str, gateway: ModelGateway) -> Reply:
        nonlocal most
        in_flight = sum(gateway.in_flight.values())
        if gateway.now > 60:
            most = max(most, in_flight)
        is_over = in_flight > 24
        return Reply(0.1, 429, "OpenAI error 429: slow down") if is_over else Reply(1.0)

    gateway = ModelGateway(handle, seed=1)
    windows = await run_all(gateway, [link] * 4, 500)
    assert most <= 40  # of all four together; each of them alone would try up to 24
    assert windows <= 2_000 / 24 / 60 * 1.5


class NoLink:
    async def exchange(self, report: bytes) -> bytes:
        return report


@pytest.mark.parametrize("value", ["unix:/tmp/pacer", 5, object(), NoLink(), LocalLink])
async def test_a_pacer_that_is_no_link_is_refused(value: Any) -> None:
    async with client_of(gateway_of(60)) as client:
        with pytest.raises(InvalidArgumentError) as raised:
            client.batch(["q"], model=MODEL, pacer=value)
    what = f"an object of type {type(value).__name__}"
    assert (
        str(raised.value)
        == f"pacer must be a PacerLink, as those of omnigate.distributed, or None, got {what}"
    )


def test_the_sync_client_takes_a_pacer(omnigate_gateway: LocalGateway) -> None:
    link = LocalLink()
    with Client(omnigate_gateway.api_key, base_url=omnigate_gateway.url) as client:
        answers = client.chat_many(["a", "b", "c"], model=MODEL, pacer=link)
        assert len(answers) == 3
        with client.batch(["d"], model=MODEL, pacer=link) as batch:
            assert [outcome.error for outcome in batch] == [None]
    assert repr(link) == "<LocalLink: <SharedPacer: 1 keys, 0 workers>>"
