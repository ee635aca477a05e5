"""A server of canned responses, in its own process, so that its CPU time is not counted as the client's.

    python benchmarks/server.py [--tls CERTIFICATE] [--delay SECONDS] [--spacing SECONDS] [--chunks NUMBER]
        [--unlimited]

Prints its port. It answers every request with the gateway's headers and a chat; with small chunks of text
if the body has `"stream": true`; and with a chat completion, or its events, under `/v1/chat/completions`. It
never sleeps: it polls its sockets continuously, so a client pays for sending to it, but not for waking it.
It exits when its standard input is closed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import heapq
import json
import ssl
import sys
import threading
import time
from collections import deque

CHUNKS = 2_000
HEADERS = (
    b"date: Mon, 23 Nov 2026 09:14:39 GMT\r\nserver: uvicorn\r\n"
    b"x-ratelimit-limit: 100000000\r\nx-ratelimit-remaining: 99999999\r\nx-ratelimit-reset: 20\r\n"
    b"x-budget-project-daily-spend: 0.000000\r\nx-budget-project-daily-limit: 0.0000\r\n"
    b"x-budget-org-daily-spend: 0.000000\r\nx-budget-org-daily-limit: 0.0000\r\n"
    b"x-request-id: 4e46c95c-a1b4-45fc-9487-05cc64aad720\r\nx-llmgw-provider: openai\r\n"
    b"x-llmgw-model: gpt-4o-mini\r\nx-llmgw-cached: false\r\nx-llmgw-fallback: false\r\n"
)
USAGE = {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}
TEXT = "echo[gpt-4o-mini]: Say hi in French"
CHAT = {
    "id": "chatcmpl-1",
    "provider": "openai",
    "model": "gpt-4o-mini",
    "content": TEXT,
    "usage": USAGE,
    "cost_usd": 4e-06,
    "finish_reason": "stop",
    "cached": False,
    "fallback_used": False,
    "latency_ms": 40,
}
COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_790_000_000,
    "model": "gpt-4o-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
    "usage": USAGE,
}


def answer(value: object) -> bytes:
    """Return a whole response with a JSON body."""
    body = json.dumps(value).encode()
    head = b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\ncontent-type: application/json\r\n\r\n"
    return head % (HEADERS, len(body)) + body


CHAT_ANSWER = answer(CHAT)
COMPLETION_ANSWER = answer(COMPLETION)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\n" + HEADERS + b"content-type: text/plain; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
STREAM_CHUNK = b"7\r\n words \r\n"
EVENT = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 1_790_000_000,
    "model": "gpt-4o-mini",
    "choices": [{"index": 0, "delta": {"role": "assistant", "content": " words "}, "finish_reason": None}],
}
EVENTS_HEAD = STREAM_HEAD.replace(b"text/plain", b"text/event-stream")


def chunk(data: bytes) -> bytes:
    """Return data as a chunk of the transfer encoding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


EVENT_CHUNK = chunk(b"data: " + json.dumps(EVENT).encode() + b"\n\n")
LAST_CHOICE = {"index": 0, "delta": {}, "finish_reason": "stop"}
LAST_EVENT = chunk(
    b"data: " + json.dumps(EVENT | {"choices": [LAST_CHOICE]}).encode() + b"\n\ndata: [DONE]\n\n"
)


class Answering(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        pending = self.pending + data if self.pending else data
        while (end := pending.find(b"\r\n\r\n")) >= 0:
            head = pending[:end].lower()
            start = head.find(b"content-length:")
            length = int(head[start + 15 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
            if len(pending) < end + 4 + length:
                break
            body = pending[end + 4 : end + 4 + length]
            pending = pending[end + 4 + length :]
            if b'"stream":true' in body.replace(b" ", b""):
                self.server.stream(self.transport, b"/completions" in head[:40])
            elif b"/completions" in head[:40]:
                self.server.send(self.transport, COMPLETION_ANSWER)
            else:
                self.server.send(self.transport, self.server.chat_answer)
        self.pending = pending


class Server:
    """Sends responses that are due: immediately, or after their delay."""

    def __init__(self, delay: float, spacing: float, chunks: int, chat_answer: bytes) -> None:
        self.delay = delay
        self.chat_answer = chat_answer
        self.chunks = chunks
        self.spacing = spacing
        self.due: deque[tuple[float, asyncio.Transport, bytes]] = deque()  # in order: delays are equal
        self.streams: list[tuple[float, int, asyncio.Transport, int, bool]] = []

    def send(self, transport: asyncio.Transport, data: bytes) -> None:
        if self.delay:
            self.due.append((time.perf_counter() + self.delay, transport, data))
        else:
            transport.write(data)

    def stream(self, transport: asyncio.Transport, is_events: bool) -> None:
        transport.write(EVENTS_HEAD if is_events else STREAM_HEAD)
        heapq.heappush(self.streams, (time.perf_counter(), id(transport), transport, self.chunks, is_events))

    async def run(self) -> None:
        while True:
            now = time.perf_counter()
            while self.due and self.due[0][0] <= now:
                _, transport, data = self.due.popleft()
                if not transport.is_closing():
                    transport.write(data)
            while self.streams and self.streams[0][0] <= now:
                at, key, transport, left, is_events = heapq.heappop(self.streams)
                if transport.is_closing():
                    continue
                if left:
                    transport.write(EVENT_CHUNK if is_events else STREAM_CHUNK)
                    due = max(at + self.spacing, now)
                    heapq.heappush(self.streams, (due, key, transport, left - 1, is_events))
                else:
                    transport.write(LAST_EVENT * is_events + b"0\r\n\r\n")
            await asyncio.sleep(0)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tls", help="a PEM file with a private key and its certificate")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before a response")
    parser.add_argument("--spacing", type=float, default=0.0, help="seconds between the chunks of a stream")
    parser.add_argument("--chunks", type=int, default=CHUNKS, help="chunks of a stream")
    parser.add_argument("--unlimited", action="store_true", help="chats without a rate limit's headers")
    arguments = parser.parse_args()
    chat = CHAT_ANSWER
    if arguments.unlimited:
        chat = b"\r\n".join(line for line in chat.split(b"\r\n") if not line.startswith(b"x-ratelimit"))
    context = None
    if arguments.tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(arguments.tls)
    server = Server(arguments.delay, arguments.spacing, arguments.chunks, chat)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: Answering(server), "127.0.0.1", 0, backlog=4_096, ssl=context)
    print(listener.sockets[0].getsockname()[1], flush=True)
    running = asyncio.ensure_future(server.run())
    threading.Thread(
        target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(running.cancel)), daemon=True
    ).start()
    with contextlib.suppress(asyncio.CancelledError):
        await running


if __name__ == "__main__":
    asyncio.run(main())
