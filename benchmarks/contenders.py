"""The clients being compared, each run in a fresh process.

    python benchmarks/contenders.py CONTENDER '{"url": …}'

Prints a JSON object of the measurements. Each contender is a function that opens what it needs and yields a
`call` to measure; all send the same request with the same key and decode the response into their own type.
This package is imported only if it is the contender: 0.1.0 has the same import name and runs in its own
interpreter.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

Call = Callable[[], Awaitable[object]]
Case = dict[str, Any]

KEY = "llmg_benchmark"
MODEL = "gpt-4o-mini"
MESSAGES = [{"role": "user", "content": "Say hi in French"}]


# One chat


@asynccontextmanager
async def bare(case: Case) -> AsyncIterator[Call]:
    """The floor: send and receive on an anyio stream, httptools, msgspec; one connection per worker."""
    import anyio
    import httptools
    import msgspec

    from omnigate import ChatResponse

    encode = msgspec.json.Encoder().encode
    decode = msgspec.json.Decoder(ChatResponse).decode
    host, _, port = case["url"].removeprefix("http://").partition(":")
    head = (
        f"POST /v1/chat HTTP/1.1\r\nhost: {host}:{port}\r\nuser-agent: bare\r\naccept: */*\r\n"
        f"x-api-key: {KEY}\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    ).encode()
    free: list[Any] = []

    class Response:
        def __init__(self) -> None:
            self.headers: list[tuple[bytes, bytes]] = []
            self.body: list[bytes] = []
            self.done = False

        def on_header(self, name: bytes, value: bytes) -> None:
            self.headers.append((name, value))

        def on_body(self, body: bytes) -> None:
            self.body.append(body)

        def on_message_complete(self) -> None:
            self.done = True

    async def call() -> object:
        stream = free.pop() if free else await anyio.connect_tcp(host, int(port))
        body = encode({"model": MODEL, "messages": MESSAGES})
        await stream.send(head % len(body) + body)
        response = Response()
        parser = httptools.HttpResponseParser(response)
        while not response.done:
            parser.feed_data(await stream.receive(65_536))
        free.append(stream)
        return decode(b"".join(response.body))

    yield call
    for stream in free:
        await stream.aclose()


@asynccontextmanager
async def ours(case: Case) -> AsyncIterator[Call]:
    """The whole of `AsyncClient.chat`."""
    from omnigate import AnyIOTransport, AsyncClient

    verify: Any = _trusting(case) or True
    transport = AnyIOTransport(max_connections=None, verify=verify)
    async with AsyncClient(KEY, base_url=case["url"], transport=transport) as client:
        yield lambda: client.chat(model=MODEL, messages=MESSAGES)


@asynccontextmanager
async def published(case: Case) -> AsyncIterator[Call]:
    """The same program with 0.1.0."""
    from omnigate import AsyncClient

    async with AsyncClient(KEY, base_url=case["url"]) as client:
        yield lambda: client.chat(model=MODEL, messages=MESSAGES)


@asynccontextmanager
async def openai(case: Case) -> AsyncIterator[Call]:
    """The OpenAI SDK against the gateway's OpenAI-compatible endpoint."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(api_key=KEY, base_url=f"{case['url']}/v1") as client:
        yield lambda: client.chat.completions.create(model=MODEL, messages=MESSAGES)  # type: ignore[arg-type]


@asynccontextmanager
async def aiohttp(case: Case) -> AsyncIterator[Call]:
    """`ClientSession.post` and msgspec, with as many connections as are needed."""
    import aiohttp as library
    import msgspec

    from omnigate import ChatResponse

    encode = msgspec.json.Encoder().encode
    decode = msgspec.json.Decoder(ChatResponse).decode
    url = f"{case['url']}/v1/chat"
    headers = {"x-api-key": KEY, "content-type": "application/json"}
    connector = library.TCPConnector(limit=0, ssl=_trusting(case) or True)
    async with library.ClientSession(connector=connector, headers=headers) as session:

        async def call() -> object:
            body = encode({"model": MODEL, "messages": MESSAGES})
            async with session.post(url, data=body) as response:
                return decode(await response.read())

        yield call


def _trusting(case: Case) -> ssl.SSLContext | None:
    return ssl.create_default_context(cafile=case["authority"]) if case.get("authority") else None


ASYNC = {"bare": bare, "ours": ours, "published": published, "openai": openai, "aiohttp": aiohttp}


async def _workers(call: Call, calls: int, concurrency: int) -> int:
    """Make `calls` calls, `concurrency` at a time."""

    async def worker() -> None:
        for _ in range(calls // concurrency):
            await call()

    if "anyio" not in sys.modules and "trio" not in sys.modules:
        await asyncio.gather(*(worker() for _ in range(concurrency)))
    else:
        import anyio

        async with anyio.create_task_group() as group:
            for _ in range(concurrency):
                group.start_soon(worker)
    return calls // concurrency * concurrency


async def measure_calls(contender: str, case: Case) -> dict[str, float]:
    """Return the client's CPU time per chat, in microseconds."""
    async with ASYNC[contender](case) as call:
        await _workers(call, case["concurrency"], case["concurrency"])  # opens the connections
        await _workers(call, min(case["calls"], 512), min(case["concurrency"], 512))
        gc.collect()
        start = time.process_time()
        made = await _workers(call, case["calls"], case["concurrency"])
        return {"microseconds": (time.process_time() - start) / made * 1e6}


# Streams


async def measure_stream(contender: str, case: Case) -> dict[str, float]:
    """Return the client's CPU time per chunk of a text stream, in microseconds."""
    from omnigate import AsyncClient

    async with AsyncClient(KEY, base_url=case["url"]) as client:

        async def streams(count: int) -> int:
            length = 0
            for _ in range(count):
                async for piece in client.chat_stream(model=MODEL, messages=MESSAGES):
                    length += len(piece)
            return length

        await streams(1)
        start = time.process_time()
        length = await streams(case["streams"])
        spent = time.process_time() - start
    return _per_chunk(length, spent, case)


def measure_sync_stream(contender: str, case: Case) -> dict[str, float]:
    """The same with the sync client."""
    with _sync_client(contender, case) as client:

        def streams(count: int) -> int:
            length = 0
            for _ in range(count):
                for piece in client.chat_stream(model=MODEL, messages=MESSAGES):
                    length += len(piece)
            return length

        streams(1)
        start = time.process_time()
        length = streams(case["streams"])
        spent = time.process_time() - start
    return _per_chunk(length, spent, case)


def _per_chunk(length: int, spent: float, case: Case) -> dict[str, float]:
    chunks = length / len(" words ")
    assert chunks == case["streams"] * case["chunks"], (chunks, case)
    return {"microseconds": spent / chunks * 1e6}


# Sync calls


@contextmanager
def _sync_client(contender: str, case: Case) -> Iterator[Any]:
    from omnigate import Client

    options = {"backend": case["backend"]} if contender == "ours" else {}
    with Client(KEY, base_url=case["url"], **options) as client:
        yield client


def measure_sync_calls(contender: str, case: Case) -> dict[str, float]:
    """Return the sync client's chats per second, from a number of threads."""
    with _sync_client(contender, case) as client:

        def run(calls: int) -> None:
            def work() -> None:
                for _ in range(calls // case["threads"]):
                    client.chat(model=MODEL, messages=MESSAGES)

            threads = [threading.Thread(target=work) for _ in range(case["threads"])]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        run(4 * case["threads"])
        start, cpu = time.perf_counter(), time.process_time()
        run(case["calls"])
        made = case["calls"] // case["threads"] * case["threads"]
        return {
            "calls_per_second": made / (time.perf_counter() - start),
            "microseconds": (time.process_time() - cpu) / made * 1e6,
        }


# Fan-out


async def batch_of_ours(case: Case) -> int:
    """`client.batch`, iterated to its end; return how many items succeeded."""
    from omnigate import AnyIOTransport, AsyncClient

    prompts = (f"number {index}" for index in range(case["items"]))
    transport = AnyIOTransport(max_connections=None)
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder, "journal.jsonl") if case["journal"] else None
        async with (
            AsyncClient(KEY, base_url=case["url"], transport=transport) as client,
            client.batch(prompts, model=MODEL, max_concurrency=case["concurrency"], journal=journal) as batch,
        ):
            return sum([outcome.error is None async for outcome in batch])


def sync_batch_of_ours(case: Case) -> int:
    """The same with the sync client."""
    prompts = (f"number {index}" for index in range(case["items"]))
    with (
        _sync_client("ours", case) as client,
        client.batch(prompts, model=MODEL, max_concurrency=case["concurrency"]) as batch,
    ):
        return sum(outcome.error is None for outcome in batch)


async def batch_by_hand(contender: str, case: Case) -> int:
    """The bare loop in workers; the others with `asyncio.gather` and a semaphore, as commonly written."""
    async with ASYNC[contender](case) as call:
        if contender == "bare":
            return await _workers(call, case["items"], case["concurrency"])
        semaphore = asyncio.Semaphore(case["concurrency"])

        async def one() -> bool:
            async with semaphore:
                return await call() is not None

        return sum(await asyncio.gather(*(one() for _ in range(case["items"]))))


def measure_batch(contender: str, case: Case) -> dict[str, float]:
    """Return the cost per item, items per second, and peak memory."""
    __import__("openai" if contender == "openai" else "omnigate")  # so that imports are not measured
    start, cpu = time.perf_counter(), time.process_time()
    if contender == "ours" and case["what"] == "sync_batch":
        succeeded = sync_batch_of_ours(case)
    elif contender == "ours":
        import anyio

        succeeded = anyio.run(batch_of_ours, case, backend=case["backend"])
    elif contender == "bare":
        import anyio

        succeeded = anyio.run(batch_by_hand, contender, case, backend=case["backend"])
    else:
        succeeded = asyncio.run(batch_by_hand(contender, case))
    spent, took = time.process_time() - cpu, time.perf_counter() - start
    assert succeeded >= case["items"] // case["concurrency"] * case["concurrency"], (succeeded, case)
    return {
        "microseconds": spent / succeeded * 1e6,
        "items_per_second": succeeded / took,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    contender, case = sys.argv[1], json.loads(sys.argv[2])
    if case["what"] in ("calls", "stream"):
        measure = measure_calls if case["what"] == "calls" else measure_stream
        if contender in ("published", "openai", "aiohttp"):
            result = asyncio.run(measure(contender, case))
        else:
            import anyio

            result = anyio.run(measure, contender, case, backend=case["backend"])
    else:
        measures: dict[str, Callable[[str, Case], dict[str, float]]] = {
            "sync_calls": measure_sync_calls,
            "sync_stream": measure_sync_stream,
            "batch": measure_batch,
            "sync_batch": measure_batch,
        }
        if case["what"].startswith("data"):
            sys.path.insert(0, str(Path(__file__).parents[1]))  # on it is this script's folder
            from benchmarks import data

            measures |= {"data": data.measure_data, "data_batch": data.measure_data_batch}
        result = measures[case["what"]](contender, case)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
