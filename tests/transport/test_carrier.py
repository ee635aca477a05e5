"""A request is carried to its reply alike, whosever the transport is."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from omnigate import AsyncClient, InvalidResponseError
from omnigate._calls.attempts import Call
from omnigate._calls.session import Session
from omnigate._transport import AnyIOTransport
from omnigate._transport.carrier import Carrier, ForeignCarrier, ForeignReply, Reply, carrier_over
from omnigate._wire import endpoints

from ..support.fake_streams import FakeNetwork, whole_requests
from ..support.scripted import ChunkStream, ScriptedTransport
from ..support.servers import until

pytestmark = pytest.mark.anyio

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n"
REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 10\r\n\r\n"
ENCODED = b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 10\r\n\r\n"


class Wrapper(httpx.AsyncBaseTransport):
    """A transport of the user's own around ours, which hands on its responses."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self.transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self.transport.handle_async_request(request)


class Counting(httpx.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self.stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self.stream:
            yield chunk

    async def aclose(self) -> None:
        await self.stream.aclose()


class CountingWrapper(Wrapper):
    """One that puts a stream of its own around the response's."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        response.stream = Counting(response.stream)
        return response


class CountingSubclass(AnyIOTransport):
    """Ours, whose responses are not."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        return httpx.Response(
            response.status_code, headers=response.headers, stream=Counting(response.stream)
        )


KINDS: dict[str, tuple[Any, type[Carrier], type[Reply]]] = {
    "ours": (lambda ours: ours, Carrier, Reply),
    "ours, wrapped": (Wrapper, ForeignCarrier, Reply),
    "ours, wrapped with its stream": (CountingWrapper, ForeignCarrier, ForeignReply),
    "ours, changed": (None, Carrier, ForeignReply),
}


def call_of(method: endpoints.Endpoint = endpoints.ME) -> Call:
    return Session(
        base_url="http://a.test", key_header="x-api-key", key="k", transport=ScriptedTransport()
    ).prepare(method)


def carried(
    kind: str, *pieces: bytes, limit: int = 1_000
) -> tuple[Carrier, type[Reply], FakeNetwork, AnyIOTransport]:
    """Return a carrier over a transport of this kind whose server sends these pieces, and what is under it."""
    wrap, carrier_type, reply_type = KINDS[kind]
    network = FakeNetwork(answer=whole_requests(*pieces))
    ours = AnyIOTransport() if wrap is not None else CountingSubclass()
    ours._connect = network  # type: ignore[assignment]
    transport = ours if wrap is None else wrap(ours)
    carrier = carrier_over(transport, httpx.URL("http://a.test"), True, limit)
    assert type(carrier) is carrier_type
    return carrier, reply_type, network, ours


every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@pytest.mark.parametrize("pieces", [[HEAD + b"0123456789"], [HEAD, b"01234", b"56789"]])
async def test_fetch_returns_the_whole_answer_and_gives_the_connection_back(
    kind: str, pieces: list[bytes]
) -> None:
    carrier, _, network, ours = carried(kind, *pieces)
    for _ in range(2):
        answer = await carrier.fetch(call_of())
        assert (answer.status, answer.body) == (200, b"0123456789")
        assert "0123456789" not in repr(answer)
    assert len(network.streams) == 1
    assert ours.stats()["in_use"] == 0


@every_kind
async def test_fetch_returns_an_error_with_what_arrived_of_its_body(kind: str) -> None:
    carrier, _, network, ours = carried(kind, REFUSAL + b"012", b"")
    answer = await carrier.fetch(call_of())
    assert (answer.status, answer.body) == (503, b"012")
    assert (network.open, ours.stats()["in_use"]) == (0, 0)


@every_kind
@pytest.mark.parametrize("pieces", [[HEAD + b"0123456789"], [HEAD, b"0123456789"], [ENCODED + b"0123456789"]])
async def test_fetch_refuses_what_is_too_long_or_encoded_unasked_and_closes_it(
    kind: str, pieces: list[bytes]
) -> None:
    carrier, _, _, ours = carried(kind, *pieces, limit=9)
    with pytest.raises(
        InvalidResponseError, match=r"max_response_bytes=9|unsupported content encoding: 'br'"
    ):
        await carrier.fetch(call_of())
    assert ours.stats()["in_use"] == 0


@every_kind
async def test_send_returns_a_reply_that_is_read_piece_by_piece_and_discarded_in_the_middle(
    kind: str,
) -> None:
    carrier, reply_type, network, ours = carried(kind, HEAD, b"01234")
    reply = await carrier.send(call_of())
    assert type(reply) is reply_type
    assert (reply.status, reply.is_success, reply.received) == (200, True, 0)
    assert await reply.next() == b"01234"
    assert (reply.received, ours.stats()["in_use"]) == (5, 1)
    await reply.discard()
    assert (network.open, ours.stats()["in_use"]) == (0, 0)


@every_kind
async def test_a_drained_reply_has_returned_its_connection(kind: str) -> None:
    carrier, _, network, ours = carried(kind, HEAD, b"01234", b"56789")
    reply = await carrier.send(call_of())
    await reply.drain(1_000, 1.0)
    await reply.discard()
    assert (reply.received, network.open, ours.stats()["idle"]) == (10, 1, 1)


@every_kind
@pytest.mark.virtual_time
async def test_draining_a_reply_ends_after_its_seconds_and_its_bytes(kind: str) -> None:
    carrier, _, _, _ = carried(kind, HEAD, b"01234")
    reply = await carrier.send(call_of())
    before = anyio.current_time()
    await reply.drain(5, 1.0)
    assert (reply.received, anyio.current_time() - before) == (5, 0)
    await reply.drain(5, 1.0)
    assert (reply.received, anyio.current_time() - before) == (5, pytest.approx(1))
    await reply.discard()


@every_kind
async def test_send_refuses_a_success_that_is_encoded_unasked_and_closes_it(kind: str) -> None:
    carrier, _, network, ours = carried(kind, ENCODED + b"01234")
    with pytest.raises(InvalidResponseError, match="unsupported content encoding: 'br'"):
        await carrier.send(call_of())
    assert (network.open, ours.stats()["in_use"]) == (0, 0)


@every_kind
@pytest.mark.parametrize("checkpoints", range(12))
async def test_cancelling_send_at_any_checkpoint_leaves_no_response_open(kind: str, checkpoints: int) -> None:
    carrier, _, network, ours = carried(kind, HEAD, b"01234")
    replies: list[Reply] = []

    async def send() -> None:
        with scope:
            replies.append(await carrier.send(call_of()))

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as group:
        group.start_soon(send)
        for _ in range(checkpoints):
            await anyio.lowlevel.checkpoint()
        scope.cancel()
    for reply in replies:
        await reply.discard()
    await until(lambda: (network.open, ours.stats()["in_use"], ours.stats()["opening"]) == (0, 0, 0))


async def test_a_foreign_response_is_closed_if_its_send_is_cancelled_as_it_returns() -> None:
    body = ChunkStream([b"x"])
    scope = anyio.CancelScope()

    def answer(_: httpx.Request) -> httpx.Response:
        scope.cancel()
        return httpx.Response(200, stream=body)

    carrier = carrier_over(httpx.MockTransport(answer), httpx.URL("http://a.test"), True, 1_000)
    with scope:
        reply = await carrier.send(call_of())
        await reply.discard()
    assert body.closed


@every_kind
async def test_a_client_works_over_each_kind_of_carrier(kind: str) -> None:
    body = b'{"status": "ok", "version": "1"}'
    head = b"HTTP/1.1 200 OK\r\nx-request-id: r\r\ncontent-length: %d\r\n\r\n" % len(body)
    carrier, _, _, _ = carried(kind, head + body)
    async with AsyncClient("k", base_url="http://a.test", transport=carrier.transport) as client:
        health = await client.health()
    assert (dict(health), health.meta.request_id) == ({"status": "ok", "version": "1"}, "r")
