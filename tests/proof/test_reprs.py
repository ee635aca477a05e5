"""Every repr shows the state of its object, in one line and without a secret."""

from typing import Any

import anyio
import httpx
import pytest

from omnigate import AnyIOTransport, AsyncClient, Client
from omnigate._batch.pace.concurrency import AdaptiveConcurrency
from omnigate._batch.pace.gate import Gates
from omnigate._batch.pace.pacer import Pacer
from omnigate._batch.pace.patience import Patience
from omnigate._batch.pace.queue import Flow
from omnigate._limits import RateLimit
from omnigate._runtime.loops import PerLoop
from omnigate._runtime.pauses import Pauses
from omnigate._sync.portal import Portal
from omnigate._transport.httpx_pool import HttpxTransport, PerLoopTransport
from omnigate.testing import LocalGateway
from tests.support.raw_server import RawServer
from tests.support.scripted import ScriptedTransport, chat_answer

pytestmark = pytest.mark.anyio

KEY = "llmg_abcdefghijklmnopqrstuvwxyz"


async def nothing() -> None:
    pass


async def test_repr_of_a_pool_shows_its_counts_and_of_a_connection_its_state() -> None:
    async with RawServer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") as server:
        transport = AnyIOTransport()
        request = httpx.Request("GET", server.url)
        response = await transport.handle_async_request(request)
        await response.aread()
        (pool,) = transport._pools.values()
        assert repr(pool) == "<Pool: 1 idle, 0 in use, 0 opening, 0 waiting>"
        connection = pool._idle["http", "127.0.0.1", int(httpx.URL(server.url).port or 0)][0]
        assert repr(connection) == f"<Connection to {server.url}: idle>"
        await transport.aclose()
        assert repr(connection) == f"<Connection to {server.url}: closed>"
        assert repr(pool) == "<Pool: 0 idle, 0 in use, 0 opening, 0 waiting>"


async def test_repr_of_a_wrapping_transport_shows_the_wrapped_one() -> None:
    inner = httpx.AsyncHTTPTransport(verify=False)
    per_loop = PerLoopTransport(lambda: HttpxTransport(inner))
    assert repr(per_loop) == "<PerLoopTransport of []>"
    per_loop._transports.current()
    assert repr(per_loop).startswith("<PerLoopTransport of [<HttpxTransport of <")
    assert "0 active, 0 queued" in repr(per_loop)
    await per_loop.aclose()
    assert repr(per_loop) == "<PerLoopTransport of []>"


async def test_repr_of_a_transport_hides_the_proxy_password() -> None:
    inner = httpx.AsyncHTTPTransport(proxy="http://user:hunter2@proxy.test:1", verify=False)
    assert "hunter2" not in repr(HttpxTransport(inner))


async def test_repr_of_a_per_loop_shows_its_values() -> None:
    per_loop = PerLoop(lambda loop: "a value")
    assert repr(per_loop) == "<PerLoop: []>"
    per_loop.current()
    assert repr(per_loop) == "<PerLoop: ['a value']>"


async def test_repr_of_pauses_shows_the_number_of_waiters() -> None:
    pauses = Pauses()
    assert repr(pauses) == "<Pauses: 0 waiting>"
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(pauses.wait, 100)
            group.start_soon(pauses.wait, 100)
            await anyio.wait_all_tasks_blocked()
            assert repr(pauses) == "<Pauses: 2 waiting>"
            pauses.close()
    assert repr(pauses) == "<Pauses: closed>"


def test_repr_of_a_pacer_shows_the_rate_limit_window() -> None:
    pacer = Pacer(utc=lambda: 0.0, uniform=lambda low, high: low)
    assert repr(pacer) == "<Pacer: no answer yet>"
    send = pacer.sent(100.0)
    pacer.answered(send, 100.1, None)
    assert repr(pacer) == "<Pacer: no limit known>"
    pacer.answered(pacer.sent(100.0), 100.1, RateLimit(60, 50, 30))
    assert repr(pacer) == "<Pacer: 2 of 60 sent in this window of 60 s, 8 by others>"
    pacer.rejected(pacer.sent(101.0), 101.1, 29.0, None)
    assert repr(pacer) == (
        "<Pacer: 3 of 60 sent in this window of 60 s, 8 by others, closed until 130.10 by a rejection>"
    )


async def test_repr_of_a_gate_shows_calls_in_flight_and_waiting() -> None:
    gate = Gates().of(("http", "gateway.test", 80), b"llmg_secret")
    assert repr(gate) == "<Gate: 0 in flight, 0 resends and 0 new sends waiting, <Pacer: no answer yet>>"
    assert "<AdaptiveConcurrency limit=8 good=8 bad=None hold>" in repr(gate.upstream("gpt"))
    assert "llmg_secret" not in repr(gate.address)
    flow = Flow(8, is_auto=True, wake=lambda: True, goes_on=lambda: True)
    assert gate.try_pass(gate.clock()) is not None
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:

            async def wait(is_again: bool) -> None:
                await gate.wait(flow, Patience(60.0, 60.0), is_again=is_again)

            group.start_soon(wait, True)
            group.start_soon(wait, False)
            group.start_soon(wait, False)
            await anyio.wait_all_tasks_blocked()
            assert "1 resends and 2 new sends waiting" in repr(gate)
            group.cancel_scope.cancel()


def test_repr_of_adaptive_concurrency_shows_its_limit_and_phase() -> None:
    concurrency = AdaptiveConcurrency(initial=16)
    assert repr(concurrency) == "<AdaptiveConcurrency limit=16 good=16 bad=None hold>"
    concurrency.overloaded(10.0, 9.0)
    assert repr(concurrency) == (
        f"<AdaptiveConcurrency limit={concurrency.limit} good=16 bad=None {concurrency._try}>"
    )
    assert concurrency.limit < 16


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_repr_of_a_portal_shows_whether_its_loop_runs(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    portal = Portal(backend, nothing)
    assert repr(portal) == f"<Portal {backend}: not started>"
    portal.call(nothing)
    assert repr(portal) == f"<Portal {backend}: running>"
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: -1)
        assert repr(portal) == f"<Portal {backend}: in the parent process>"
    portal.close()
    assert repr(portal) == f"<Portal {backend}: closed>"


async def test_repr_of_an_async_client_masks_its_key_and_shows_that_it_is_closed() -> None:
    client = AsyncClient(KEY, transport=ScriptedTransport(chat_answer))
    assert "llmg_abcdefg…" in repr(client)
    assert KEY not in repr(client) + repr(client._session)
    assert "closed" not in repr(client)
    await client.aclose()
    assert repr(client).endswith(", closed)")


def test_repr_of_a_client_masks_its_key_and_shows_that_it_is_closed() -> None:
    client = Client(KEY, transport=ScriptedTransport(chat_answer))
    assert "llmg_abcdefg…" in repr(client)
    assert KEY not in repr(client)
    assert "closed" not in repr(client)
    client.close()
    assert repr(client).endswith(", closed)")


async def test_repr_of_meta_shows_only_known_fields() -> None:
    client = AsyncClient(KEY, transport=ScriptedTransport(chat_answer))
    answer = await client.chat(model="m", messages="hello")
    assert repr(answer.meta).startswith("Meta(")
    assert "attempts=1" in repr(answer.meta)
    assert "None" not in repr(answer.meta)
    await client.aclose()


async def test_repr_of_a_local_gateway_shows_its_url() -> None:
    gateway = LocalGateway()
    assert repr(gateway) == "<LocalGateway not serving>"
    async with gateway:
        assert repr(gateway) == f"<LocalGateway {gateway.url}>"
        assert gateway.api_key not in repr(gateway)
        assert repr(gateway).startswith(f"<LocalGateway {gateway.url}, api_key='llmg_")
    assert repr(gateway).startswith("<LocalGateway not serving")
