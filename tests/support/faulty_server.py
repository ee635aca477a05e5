"""A gateway's server in its own process that fails occasionally, in every way a wire allows.

    python tests/support/faulty_server.py FRACTION SEED

It prints its port and makes each kind of fault equally often. It ends when its standard input does, after printing
the number of requests and of each kind of fault as JSON.
"""

import asyncio
import contextlib
import json
import random
import sys
import threading

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: request-1\r\n"
    b"x-ratelimit-limit: 1000000000\r\nx-ratelimit-remaining: 999999999\r\nx-ratelimit-reset: 30\r\n"
)
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
BODY = json.dumps(
    {
        "id": "c",
        "provider": "openai",
        "model": "gpt-4o-mini",
        "content": "fine",
        "usage": USAGE,
        "cost_usd": 1e-6,
    }
).encode()
FINE = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n"


def error(status: int, body: bytes, extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d Oops\r\ncontent-length: %d\r\n%b\r\n%b" % (status, len(body), extra, body)


# What is written, and how the connection then ends: None if it stays open, else "close" or "reset".
FAULTS: dict[str, tuple[bytes, str | None]] = {
    "chunked": (CHUNKED, None),
    "connection: close": (FINE.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1), "close"),
    "closed afterwards": (FINE, "close"),
    "interim responses": (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3 + FINE, None),
    "bytes left over": (FINE + b"x", None),
    "provider 500": (error(500, b'{"detail": "OpenAI error 500: oops"}'), None),
    "provider 429": (error(429, b'{"detail": "OpenAI error 429: slow down"}'), None),
    "503": (error(503, b'{"detail": "openai circuit is open"}'), None),
    "an HTML page": (error(502, b"<html><title>Bad Gateway</title></html>"), "close"),
    "400": (error(400, b'{"detail": "OpenAI error 400: no"}'), None),
    "not JSON": (HEAD + b"content-length: 4\r\n\r\nnope", None),
    "another type": (HEAD + b'content-length: 9\r\n\r\n{"id": 1}', None),
    "closed at once": (b"", "close"),
    "reset at once": (b"", "reset"),
    "cut in the head": (FINE[:60], "close"),
    "reset in the head": (FINE[:60], "reset"),
    "cut in the body": (FINE[:-9], "close"),
    "reset in the body": (FINE[:-9], "reset"),
    "cut in a chunk": (CHUNKED[:-20], "close"),
    "garbage": (b"\x00\xff garbage \r\n\r\n" * 5, "close"),
    "a bad length": (FINE.replace(b"content-length: ", b"content-length: -"), "close"),
    "a bad chunk size": (CHUNKED.replace(b"\r\n\r\n", b"\r\n\r\nzz", 1), "close"),
    "a stall": (b"", None),
}


class Answering(asyncio.Protocol):
    def __init__(self, server: "Server") -> None:
        self.server = server
        self.pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.pending += data
        while (end := self.pending.find(b"\r\n\r\n")) >= 0 and not self.transport.is_closing():
            head = self.pending[:end].lower()
            start = head.find(b"content-length:")
            length = int(head[start + 15 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
            if len(self.pending) < end + 4 + length:
                return
            body, self.pending = self.pending[end + 4 : end + 4 + length], self.pending[end + 4 + length :]
            if b'"stream":true' in body:
                asyncio.get_running_loop().create_task(self.stream())
            else:
                self.server.answer(self.transport)

    async def stream(self) -> None:
        self.transport.write(STREAM)
        for _ in range(20):
            await asyncio.sleep(0.01)
            if self.transport.is_closing():
                return
            self.transport.write(b"5\r\nword \r\n")
        self.transport.write(b"0\r\n\r\n")


class Server:
    def __init__(self, fraction: float, seed: int) -> None:
        self.fraction = fraction
        self.chance = random.Random(seed)
        self.requests = 0
        self.made = dict.fromkeys(FAULTS, 0)

    def answer(self, transport: asyncio.Transport) -> None:
        self.requests += 1
        if self.chance.random() >= self.fraction:
            transport.write(FINE)
            return
        kind = self.chance.choice(list(FAULTS))
        self.made[kind] += 1
        data, end = FAULTS[kind]
        if data:
            transport.write(data)
        if end == "reset":
            transport.abort()  # before the written bytes may have been sent
        elif end:
            transport.close()


async def main() -> None:
    server = Server(float(sys.argv[1]), int(sys.argv[2]))
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: Answering(server), "127.0.0.1", 0, backlog=4_096)
    print(listener.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    threading.Thread(
        target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(ended.set)), daemon=True
    ).start()
    with contextlib.suppress(asyncio.CancelledError):
        await ended.wait()
    print(json.dumps({"requests": server.requests, "made": server.made}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
