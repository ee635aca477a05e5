"""`RedisPacer` against a real redis-server: exchanges at the same time, losses, restarts, rights."""

import pickle
import sys
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio
import pytest

from omnigate import InvalidArgumentError
from omnigate._batch.pace.messages import Head, Report, decode_grant, encode
from omnigate._runtime.extras import MissingExtraError
from omnigate.distributed import PacerMessageError, RedisPacer, _redis_pacer

from ..support.redis_server import RedisServer, redis_server

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def client(shared_server: RedisServer) -> Iterator[Any]:
    import redis

    with redis.Redis.from_url(shared_server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def url(shared_server: RedisServer, client: Any) -> str:
    return shared_server.url


def report(worker: str = "worker", **fields: Any) -> bytes:
    return encode(Report(1, b"digest of a key", worker, is_hungry=True, want=5, **fields))


async def test_reports_are_answered_with_grants_from_one_state(url: str, client: Any) -> None:
    first, second = RedisPacer(url), RedisPacer(url)
    grants = [decode_grant(await link.exchange(report(name))) for link, name in ((first, "a"), (second, "b"))]
    assert grants[0].epoch == grants[1].epoch
    assert grants[1].now >= grants[0].now > 1e9, "the clock of Redis"
    (name,) = client.keys()
    assert name == b"omnigate:pacer:v1:" + b"digest of a key".hex().encode()
    assert 0 < client.pttl(name) <= 600_000
    for link in (first, second):
        await link.aclose()


async def test_the_connections_are_closed_with_the_batch(url: str, client: Any) -> None:
    before = len(client.client_list())
    link = RedisPacer(url)
    await link.exchange(report())
    assert len(client.client_list()) == before + 1
    await link.aclose()
    with anyio.fail_after(10):
        while len(client.client_list()) > before:
            await anyio.sleep(0.005)
    await link.exchange(report())
    await link.aclose()


async def test_keys_and_prefixes_have_states_of_their_own(url: str, client: Any) -> None:
    for prefix in ("one", "other"):
        link = RedisPacer(url, prefix=prefix)
        for key in (b"12345678", b"87654321"):
            await link.exchange(encode(Report(1, key, "worker")))
        await link.aclose()
    assert len(client.keys()) == 4


async def test_workers_at_the_same_time_never_get_more_than_the_limit(url: str) -> None:
    """Every one of them may change the state; what was read too early is done again."""
    pacer = RedisPacer(url, timeout_seconds=20)
    grant = decode_grant(await pacer.exchange(report("first")))
    assert grant.sends == 1, "a call that learns the limit"
    now = grant.now
    head = Head(now - 0.05, now + 0.05, limit=100, counted=1, reset_seconds=30)
    grant = decode_grant(
        await pacer.exchange(report("first", epoch=grant.epoch, lease=grant.lease, heads=[head]))
    )
    granted = [grant.sends]
    assert granted[0] > 0

    async def ask(number: int) -> None:
        link = RedisPacer(url, timeout_seconds=20)
        told = report(f"worker {number}", epoch=grant.epoch)
        for _ in range(2):
            answer = decode_grant(await link.exchange(told))
            told = report(f"worker {number}", epoch=answer.epoch, lease=answer.lease)
            granted.append(answer.sends)
        await link.aclose()

    async with anyio.create_task_group() as group:
        for number in range(16):
            group.start_soon(ask, number)
    assert len(granted) == 33
    assert 16 <= sum(granted) <= 99
    await pacer.aclose()


async def test_an_exchange_that_others_always_precede_fails_in_the_end(
    url: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_redis_pacer, "_TRIES_MAX", 3)
    link = RedisPacer(url)
    evaluate = link._eval
    tries = []

    async def raced(name: str, token: bytes, value: bytes) -> Any:
        if value:
            tries.append(token)
            await anyio.to_thread.run_sync(client.set, name, len(tries).to_bytes(8, "big") + bytes(8))
        return await evaluate(name, token, value)

    monkeypatch.setattr(link, "_eval", raced)
    with pytest.raises(ConnectionError, match="too many workers use it at the same time"):
        await link.exchange(report())
    assert len(tries) == 3
    await link.aclose()


@pytest.mark.parametrize("damage", [b"", b"x", bytes(16), bytes(16) + b"\x93garbage", b"\xff" * 1000])
async def test_a_damaged_state_is_replaced_by_a_new_pacer(url: str, client: Any, damage: bytes) -> None:
    link = RedisPacer(url)
    epoch = decode_grant(await link.exchange(report())).epoch
    (name,) = client.keys()
    client.set(name, damage)
    epochs = [decode_grant(await link.exchange(report())).epoch for _ in range(2)]
    assert epochs[0] == epochs[1] != epoch
    await link.aclose()


async def test_a_clock_that_is_set_back_makes_a_new_pacer(url: str, client: Any) -> None:
    link = RedisPacer(url)
    epoch = decode_grant(await link.exchange(report())).epoch
    (name,) = client.keys()
    value = client.get(name)
    token, told = _redis_pacer._HEAD.unpack_from(value)
    client.set(name, _redis_pacer._HEAD.pack(token, told + 60) + value[16:])
    assert decode_grant(await link.exchange(report())).epoch != epoch
    await link.aclose()


async def test_what_is_no_report_is_refused_and_changes_nothing(url: str, client: Any) -> None:
    link = RedisPacer(url)
    with pytest.raises(PacerMessageError):
        await link.exchange(b"garbage")
    assert client.keys() == []


async def test_another_value_under_the_name_is_an_error(url: str, client: Any) -> None:
    link = RedisPacer(url)
    await link.exchange(report())
    (name,) = client.keys()
    client.delete(name)
    client.lpush(name, "a list")
    with pytest.raises(ConnectionError, match="WRONGTYPE"):
        await link.exchange(report())
    await link.aclose()


async def test_a_cancelled_exchange_leaves_no_answer_behind(url: str) -> None:
    link = RedisPacer(url)
    await link.exchange(report())
    for _ in range(5):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await link.exchange(report())
        assert scope.cancelled_caught
    for _ in range(3):
        decode_grant(await link.exchange(report()))
    await link.aclose()


@pytest.mark.proof
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_redis_that_dies_fails_exchanges_until_it_is_back(backend: str) -> None:
    async def run(server: RedisServer) -> None:
        link = RedisPacer(server.url)
        epochs = [decode_grant(await link.exchange(report())).epoch]
        await anyio.to_thread.run_sync(server.kill)
        for _ in range(2):
            with pytest.raises(ConnectionError, match="cannot be used"):
                await link.exchange(report())
        await anyio.to_thread.run_sync(server.start)
        epochs.append(decode_grant(await link.exchange(report())).epoch)
        assert epochs[0] != epochs[1]
        await link.aclose()

    with redis_server() as server:
        anyio.run(run, server, backend=backend)


@pytest.mark.proof
async def test_a_redis_that_is_silent_fails_in_time(url: str, client: Any) -> None:
    link = RedisPacer(url, timeout_seconds=0.1)
    client.execute_command("CLIENT", "PAUSE", "400", "ALL")
    with pytest.raises(TimeoutError, match=r"has not answered in 0\.1 s"):
        await link.exchange(report())
    client.execute_command("CLIENT", "UNPAUSE")
    await link.aclose()


async def test_a_wrong_password_is_a_permission_error_that_does_not_show_it(url: str, client: Any) -> None:
    client.execute_command("ACL", "SETUSER", "worker", "on", ">the right password", "~other:*", "+@all")
    for password in ("the%20wrong%20password", "the%20right%20password"):  # the latter may not use our names
        link = RedisPacer(url.replace("unix://", f"unix://worker:{password}@"))
        with pytest.raises(PermissionError, match="cannot be used") as raised:
            await link.exchange(report())
        shown = f"{raised.value!r} {link!r}"
        assert "password%" not in shown
        assert "right password" not in shown
        assert "worker" not in repr(link)
        await link.aclose()


async def test_a_client_is_used_and_not_closed(url: str, client: Any) -> None:
    link = RedisPacer(client)
    await link.exchange(report())
    await link.aclose()
    assert client.ping()
    with pytest.raises(TypeError, match="make it of a URL"):
        pickle.dumps(link)
    assert repr(link) == "<RedisPacer a client, 'omnigate:pacer'>"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_client_of_asyncio_is_used_there_and_refused_on_trio(url: str, backend: str) -> None:
    import redis.asyncio

    async def run() -> None:
        given = redis.asyncio.Redis.from_url(url)
        link = RedisPacer(given)
        if backend == "asyncio":
            await link.exchange(report())
            await link.aclose()
            assert await given.ping()
            await given.aclose()
        else:
            with pytest.raises(ConnectionError, match="needs asyncio: pass its URL"):
                await link.exchange(report())

    anyio.run(run, backend=backend)


async def test_a_link_is_pickled_with_its_url(url: str) -> None:
    link = pickle.loads(pickle.dumps(RedisPacer(url, prefix="mine", timeout_seconds=3)))
    assert (link._url, link._prefix, link._timeout) == (url, "mine", 3)
    await link.exchange(report())
    await link.aclose()


def test_one_link_serves_event_loops_in_several_threads(url: str) -> None:
    link = RedisPacer(url)
    found = []

    async def use() -> None:
        for _ in range(5):
            found.append(decode_grant(await link.exchange(report(threading.current_thread().name))).epoch)
        await link.aclose()

    threads = [
        threading.Thread(target=partial(anyio.run, use, backend=backend))
        for backend in ("asyncio", "trio", "asyncio")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 15
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"redis": 5}, "redis must be a URL, or a client of the package redis, got an object of type int"),
        ({"redis": "http://u:secret@h"}, r"redis must be a URL that begins with redis://.*, got \*\*\*"),
        ({"redis": "redis://u:secret@h:port"}, r"got \*\*\*"),
        ({"redis": "redis://h", "prefix": ""}, "prefix must be "),
        ({"redis": "redis://h", "timeout_seconds": 0}, "timeout_seconds must be between"),
    ],
)
def test_a_bad_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    pytest.importorskip("redis")
    with pytest.raises(InvalidArgumentError, match=message) as raised:
        RedisPacer(**arguments)
    assert "secret" not in str(raised.value)


def test_a_client_that_decodes_responses_is_refused() -> None:
    redis = pytest.importorskip("redis")
    with pytest.raises(InvalidArgumentError, match="redis must be without decode_responses=True"):
        RedisPacer(redis.Redis(decode_responses=True))


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingExtraError, match=r"RedisPacer needs redis: pip install 'omnigate\[redis\]'"):
        RedisPacer("redis://h")
