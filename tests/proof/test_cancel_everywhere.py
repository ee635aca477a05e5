"""Every public operation leaves nothing behind when cancelled at any checkpoint, in any way, over any transport.

After each cancellation no task is left, no descriptor except those of idle connections and no held slot, and the next
call on the same client works; at the end there is no warning. The normal run cancels calls,
streams and batches in the two hardest ways over our own transport; the marker `proof` adds the other operations and
transports, and every way for some operations; the marker `heavy` runs the whole product.
"""

import asyncio
import gc
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import anyio
import anyio.lowlevel
import httpx
import pytest

from omnigate import AnyIOTransport, APIError, AsyncAdminClient, AsyncClient, RetryConfig, StreamClosedError
from omnigate.distributed import LocalLink
from omnigate.testing import LocalGateway

from ..support.cancellation import LOOPS_AND_WAYS, cancelled_at_every_checkpoint, count_tasks
from ..support.gateway_process import OVERLOADED, GatewayProcess, gateway_process, refuse_overloaded
from ..support.servers import until

MODEL = "gpt-4o-mini"
HELLO: dict[str, Any] = {"model": MODEL, "messages": "hello there, you"}
TLS = ssl.create_default_context()  # slow to make, and not used
ONCE_MORE = RetryConfig(max_retries=1, backoff_base=0.001)
LINK = LocalLink()  # one for all runs: a new pacer would listen for seconds before it grants anything
OPTIONS: dict[str, Any] = {"timeout": 10, "retry_config": RetryConfig(max_retries=0)}


# Transports, and what they still hold after a cancellation


class Place(Protocol):
    """A transport, its gateway, and checks of what it still holds."""

    transport: Any
    gateway: GatewayProcess

    def descriptors(self) -> int: ...

    def assert_nothing_is_held(self) -> None: ...

    async def forget_idle(self) -> None: ...


class Own:
    """Our own transport, over real sockets."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.gateway = gateway
        self.transport = AnyIOTransport(max_connections=2)

    def descriptors(self) -> int:
        return self.transport.stats()["idle"]  # type: ignore[no-any-return]

    def assert_nothing_is_held(self) -> None:
        stats = self.transport.stats()
        assert stats["in_use"] == stats["opening"] == stats["waiting"] == 0, stats

    async def forget_idle(self) -> None:
        for pool in self.transport._pools.values():
            for origin in list(pool._idle):
                pool.drop_idle(origin)


class OfHttpx:
    """httpx's transport, over real sockets."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.gateway = gateway
        self.transport = httpx.AsyncHTTPTransport(verify=TLS, limits=httpx.Limits(max_connections=2))

    def descriptors(self) -> int:
        return len(self.transport._pool.connections)

    def assert_nothing_is_held(self) -> None:
        pool: Any = self.transport._pool
        assert not pool._requests, pool
        assert all(connection.is_idle() for connection in pool.connections), pool

    async def forget_idle(self) -> None:
        await self.transport._pool.aclose()


class Mocked:
    """httpx's mock transport over the gateway's application; it answers in pieces and tracks open bodies."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.app = LocalGateway()
        refuse_overloaded(self.app)
        self.gateway = GatewayProcess("http://gateway.test", self.app.api_key, self.app.admin_key)
        self.asgi = httpx.ASGITransport(self.app.app)  # type: ignore[arg-type]
        self.transport = httpx.MockTransport(self.answer)
        self.bodies: set[Body] = set()

    async def answer(self, request: httpx.Request) -> httpx.Response:
        await anyio.lowlevel.checkpoint()
        response = await self.asgi.handle_async_request(request)
        body = await response.aread()
        await anyio.lowlevel.checkpoint()
        return httpx.Response(response.status_code, headers=response.headers, stream=Body(body, self.bodies))

    def descriptors(self) -> int:
        return 0

    def assert_nothing_is_held(self) -> None:
        assert not self.bodies

    async def forget_idle(self) -> None:
        pass


class Body(httpx.AsyncByteStream):
    """A body in four pieces, with a checkpoint before each, tracked until it is closed."""

    def __init__(self, content: bytes, bodies: "set[Body]") -> None:
        quarter = len(content) // 4 + 1
        self.pieces = [content[n * quarter : (n + 1) * quarter] for n in range(4)]
        self.bodies = bodies
        bodies.add(self)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await anyio.lowlevel.checkpoint()
        if not self.pieces:
            raise StopAsyncIteration
        return self.pieces.pop(0)

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.bodies.discard(self)


PLACES: dict[str, Callable[[GatewayProcess], Place]] = {"own": Own, "httpx": OfHttpx, "mock": Mocked}


# The public operations


class Run(NamedTuple):
    """The clients and the directory that an operation uses."""

    client: AsyncClient
    persistent: AsyncClient  # retries, almost without delay
    admin: AsyncAdminClient
    directory: Path


Operation = Callable[[Run], Awaitable[object]]
OPERATIONS: dict[str, Operation] = {}
SOURCE = ["one", "two", "three"]


def operation(func: Operation) -> Operation:
    OPERATIONS[func.__name__] = func  # type: ignore[attr-defined]
    return func


@operation
async def chat(run: Run) -> None:
    await run.client.chat(**HELLO)


@operation
async def chat_with_a_deadline(run: Run) -> None:
    await run.client.chat(**HELLO, deadline_seconds=10)


@operation
async def chat_hedged(run: Run) -> None:
    await run.client.chat(**HELLO, hedge_after=1e-6)


@operation
async def chat_refused(run: Run) -> None:
    with pytest.raises(APIError):
        await run.client.chat(model="no-such-model", messages="hello")


@operation
async def chat_sent_again(run: Run) -> None:
    with pytest.raises(APIError) as caught:
        await run.persistent.chat(model=MODEL, messages=OVERLOADED)
    assert caught.value.attempts == 2


@operation
async def stream_sent_again(run: Run) -> None:
    with pytest.raises(APIError) as caught:
        await run.persistent.chat_stream(model=MODEL, messages=OVERLOADED).text()
    assert caught.value.attempts == 2


@operation
async def race(run: Run) -> None:
    await run.client.race(models=[MODEL, "claude-3-5-haiku"], messages="hello")


@operation
async def text_stream(run: Run) -> None:
    async with run.client.chat_stream(**HELLO) as stream:
        assert [piece async for piece in stream]


@operation
async def chunk_stream(run: Run) -> None:
    async with run.client.chat_stream(**HELLO, as_chunks=True) as stream:
        assert [piece async for piece in stream]


@operation
async def usage_stream(run: Run) -> None:
    async with run.client.chat_stream(
        **HELLO, as_chunks=True, include_usage=True, deadline_seconds=10
    ) as stream:
        assert [piece async for piece in stream][-1].usage is not None


@operation
async def stream_left_early(run: Run) -> None:
    async with run.client.chat_stream(**HELLO) as stream:
        async for _ in stream:
            break


@operation
async def usage_stream_left_early(run: Run) -> None:
    async with run.client.chat_stream(**HELLO, include_usage=True) as stream:
        async for _ in stream:
            break


@operation
async def stream_unread(run: Run) -> None:
    async with run.client.chat_stream(**HELLO):
        pass


@operation
async def stream_without_a_block(run: Run) -> None:
    stream = run.client.chat_stream(**HELLO)
    try:
        await anext(stream)
    finally:
        await stream.aclose()


@operation
async def stream_closed_by_another_task(run: Run) -> None:
    stream = run.client.chat_stream(**HELLO)

    async def read() -> None:
        with suppress(StreamClosedError):
            async for _ in stream:
                closing.set()

    closing = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await closing.wait()
        await stream.aclose()


@operation
async def stream_closed_by_another_task_before_its_head(run: Run) -> None:
    stream = run.client.chat_stream(**HELLO)

    async def read() -> None:
        with suppress(StreamClosedError):
            await stream.text()

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await anyio.lowlevel.checkpoint()
        await stream.aclose()


@operation
async def text_of_a_stream(run: Run) -> None:
    assert await run.client.chat_stream(**HELLO).text()


@operation
async def completions(run: Run) -> None:
    await run.client.completions(**HELLO)


@operation
async def completions_stream(run: Run) -> None:
    async with run.client.completions_stream(**HELLO) as stream:
        assert [chunk async for chunk in stream]


@operation
async def completions_stream_left_early(run: Run) -> None:
    async with run.client.completions_stream(**HELLO) as stream:
        await anext(stream)


@operation
async def batch(run: Run) -> None:
    async with run.client.batch(SOURCE, model=MODEL, max_concurrency=2) as outcomes:
        assert len([outcome.unwrap() async for outcome in outcomes]) == len(SOURCE)


@operation
async def batch_left_early(run: Run) -> None:
    async with run.client.batch(SOURCE, model=MODEL, max_concurrency=2) as outcomes:
        await anext(outcomes)


@operation
async def batch_with_a_journal(run: Run) -> None:
    """Run a batch with a new journal, then resume it."""
    journal = run.directory / "journal.jsonl"
    journal.unlink(missing_ok=True)
    for _ in range(2):
        async with run.client.batch(SOURCE, model=MODEL, max_concurrency=2, journal=journal) as outcomes:
            assert len([outcome.unwrap() async for outcome in outcomes]) == len(SOURCE)


@operation
async def batch_of_an_async_source(run: Run) -> None:
    async def source() -> AsyncIterator[str]:
        for prompt in SOURCE:
            await anyio.lowlevel.checkpoint()
            yield prompt

    async with run.client.batch(source(), model=MODEL, ordered=True) as outcomes:
        assert len([outcome.unwrap() async for outcome in outcomes]) == len(SOURCE)


@operation
async def batch_with_a_shared_pacer(run: Run) -> None:
    async with run.client.batch(SOURCE, model=MODEL, max_concurrency=2, pacer=LINK) as outcomes:
        assert len([outcome.unwrap() async for outcome in outcomes]) == len(SOURCE)
    assert "0 workers" in repr(LINK)


@operation
async def batch_sent_again(run: Run) -> None:
    async with run.persistent.batch([OVERLOADED] * 2, model=MODEL) as outcomes:
        assert [outcome.attempts async for outcome in outcomes] == [2, 2]


@operation
async def chat_many(run: Run) -> None:
    assert len(await run.client.chat_many(SOURCE, model=MODEL, max_concurrency=2)) == len(SOURCE)


@operation
async def models(run: Run) -> None:
    assert await run.client.models()


@operation
async def model(run: Run) -> None:
    await run.client.model(MODEL)


@operation
async def metrics(run: Run) -> None:
    await run.client.metrics(range="1h", group_by="model")


@operation
async def signup(run: Run) -> None:
    await run.client.signup(email="dev@acme.test")


@operation
async def set_provider_key(run: Run) -> None:
    await run.client.set_provider_key(provider="openai", api_key="sk-any-key-will-do")


@operation
async def api_keys(run: Run) -> None:
    created = await run.client.create_api_key(name="one of many")
    await run.client.revoke_api_key(created.id)


@operation
async def list_api_keys(run: Run) -> None:
    await run.client.list_api_keys()


@operation
async def me(run: Run) -> None:
    await run.client.me()


@operation
async def health(run: Run) -> None:
    await run.client.health()


@operation
async def ready(run: Run) -> None:
    await run.client.ready()


@operation
async def version(run: Run) -> None:
    await run.client.version()


@operation
async def administration(run: Run) -> None:
    org = await run.admin.create_org(name="Acme")
    await run.admin.create_project(org_id=org.id, name="One")


@operation
async def administration_lists(run: Run) -> None:
    orgs = await run.admin.list_orgs()
    await run.admin.list_projects(org_id=orgs[0].id)
    await run.admin.org_metrics(orgs[0].id)


# The proof


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with gateway_process() as gateway:
        yield gateway


def descriptors() -> list[str]:
    """Return the targets of the process's open descriptors."""
    found = list[str]()
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []:
        with suppress(OSError):  # the descriptor of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return found


class Loop:
    """A baseline of the tasks and descriptors that exist besides the client's, which must not grow."""

    def __init__(self) -> None:
        self.errors: list[dict[str, Any]] = []
        try:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: self.errors.append(context))
        except RuntimeError:
            pass
        self.tasks = count_tasks()
        self.descriptors = len(descriptors())

    @classmethod
    async def as_it_is(cls) -> "Loop":
        for _ in range(5):  # closing sockets takes a few loop iterations
            await anyio.lowlevel.checkpoint()
        return cls()

    async def assert_nothing_is_left(self, place: Place) -> None:
        await anyio.lowlevel.checkpoint()  # an ended task is removed only now
        assert count_tasks() == self.tasks
        place.assert_nothing_is_held()
        # asyncio closes sockets one loop iteration later
        try:
            await until(lambda: len(descriptors()) == self.descriptors + place.descriptors())
        except TimeoutError:
            raise AssertionError(f"{descriptors()}, {place.descriptors()} idle") from None
        assert not self.errors, self.errors


async def prove(
    name: str, transport: str, way: str, gateway: GatewayProcess, directory: Path, *, is_kept: bool = False
) -> int:
    """Cancel an operation at every checkpoint; return the number of checkpoints."""
    place = PLACES[transport](gateway)
    gateway = place.gateway
    count = 0
    async with (
        AsyncClient(gateway.api_key, base_url=gateway.url, transport=place.transport, **OPTIONS) as client,
        AsyncClient(
            gateway.api_key,
            base_url=gateway.url,
            transport=place.transport,
            **{**OPTIONS, "retry_config": ONCE_MORE},
        ) as persistent,
        AsyncAdminClient(
            gateway.admin_key, base_url=gateway.url, transport=place.transport, **OPTIONS
        ) as admin,
    ):
        run = Run(client, persistent, admin, directory)
        await administration(
            run
        )  # creates an organisation to list, and everything that is made once per loop
        await place.forget_idle()
        loop = await Loop.as_it_is()
        func = partial(OPERATIONS[name], run)
        async with aclosing(cancelled_at_every_checkpoint(func, way)) as points:
            async for count in points:
                await loop.assert_nothing_is_left(place)
                await client.health()
                if not is_kept:
                    await place.forget_idle()
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(client.health)
        await loop.assert_nothing_is_left(place)
    await loop.assert_nothing_is_left(place)
    del client, persistent, admin, run, place, func
    gc.collect()
    await anyio.lowlevel.checkpoint()
    assert not loop.errors, loop.errors
    return count


HARDEST = [("asyncio", "task"), ("trio", "scope")]
everywhere = pytest.mark.parametrize(("anyio_backend", "way"), LOOPS_AND_WAYS, indirect=["anyio_backend"])


foreign_as_proof = pytest.mark.parametrize(
    "transport",
    ["own", *(pytest.param(place, marks=pytest.mark.proof) for place in PLACES if place != "own")],
)


@pytest.mark.anyio
@pytest.mark.heavy
@pytest.mark.parametrize("is_kept", [False, True], ids=["new", "kept"])
@pytest.mark.parametrize("transport", PLACES)
@pytest.mark.parametrize("name", OPERATIONS)
@everywhere
async def test_every_operation_cancelled_at_any_checkpoint_in_any_way_leaves_nothing_behind(
    name: str, transport: str, way: str, is_kept: bool, gateway: GatewayProcess, tmp_path: Path
) -> None:
    least = 2 if is_kept else 3  # on a kept connection, an answer that arrives whole takes one wait
    assert await prove(name, transport, way, gateway, tmp_path, is_kept=is_kept) >= least


ONE_CALL = [
    *(
        "models",
        "model",
        "metrics",
        "signup",
        "set_provider_key",
        "api_keys",
        "list_api_keys",
        "me",
        "health",
    ),
    *("ready", "version", "administration", "administration_lists"),
]
"""Single calls that differ only in what they send: tested over our own transport alone."""


@pytest.mark.anyio
@foreign_as_proof
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ONE_CALL])
@pytest.mark.parametrize(("anyio_backend", "way"), HARDEST, indirect=["anyio_backend"])
async def test_call_stream_or_batch_cancelled_at_any_checkpoint_leaves_nothing_behind(
    name: str, transport: str, way: str, gateway: GatewayProcess, tmp_path: Path
) -> None:
    assert await prove(name, transport, way, gateway, tmp_path) >= 3


@pytest.mark.anyio
@pytest.mark.parametrize("name", ONE_CALL)
@pytest.mark.parametrize(("anyio_backend", "way"), HARDEST, indirect=["anyio_backend"])
@pytest.mark.proof
async def test_account_key_or_metrics_call_cancelled_at_any_checkpoint_leaves_nothing_behind(
    name: str, way: str, gateway: GatewayProcess, tmp_path: Path
) -> None:
    assert await prove(name, "own", way, gateway, tmp_path) >= 3


@pytest.mark.anyio
@pytest.mark.proof
@pytest.mark.parametrize(
    ("name", "transport"), [("chat_hedged", "own"), ("usage_stream", "own"), ("chat", "httpx")]
)
@everywhere
async def test_operation_cancelled_in_any_way_leaves_nothing_behind(
    name: str, transport: str, way: str, gateway: GatewayProcess, tmp_path: Path
) -> None:
    assert await prove(name, transport, way, gateway, tmp_path) >= 3


@pytest.mark.anyio
@pytest.mark.proof
@pytest.mark.parametrize("transport", PLACES)
@everywhere
async def test_client_cancelled_while_opened_used_or_closed_leaves_nothing_behind(
    transport: str, way: str, gateway: GatewayProcess
) -> None:
    """Cancel the making, use and closing of a client anywhere: leaving its block still closes it."""
    places: list[Place] = []

    async def use_and_close() -> None:
        place = PLACES[transport](gateway)
        places.append(place)
        async with AsyncClient(
            place.gateway.api_key, base_url=place.gateway.url, transport=place.transport, **OPTIONS
        ) as client:
            await client.health()

    await use_and_close()  # creates everything that is made once per loop
    loop = await Loop.as_it_is()
    async with aclosing(cancelled_at_every_checkpoint(use_and_close, way)) as points:
        async for _ in points:
            await loop.assert_nothing_is_left(places.pop())
    gc.collect()
    assert not loop.errors, loop.errors
