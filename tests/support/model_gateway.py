"""A model of the gateway behind httpx's transport interface: fixed windows by arrival, in virtual time."""

import json
import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import anyio
import httpx

from .scripted import chat_answer


class Reply(NamedTuple):
    """How a call ends: after so many seconds, with a status, and if it is an error, with a detail and headers."""

    seconds: float
    status: int = 200
    detail: Any = None
    headers: dict[str, str] = {}  # noqa: RUF012 - never changed


Handler = Callable[[str, str, "ModelGateway"], Reply]
"""Takes the model, the prompt and the gateway; may raise what a transport raises."""


class ModelGateway(httpx.AsyncBaseTransport):
    """Counts calls in windows of a minute; what lies behind it is up to a handler.

    Args:
        handle: answers a call that was admitted.
        limit: calls per minute; None for no limit and no headers.
        way: seconds to the gateway, and back.
        seed: if given, each call takes 0.7 to 1.3 times as long, and its way half to twice as long.
    """

    def __init__(
        self, handle: Handler, *, limit: int | None = None, way: float = 0.02, seed: int | None = None
    ) -> None:
        self.limit = limit
        self.rejected = 0
        self.log: list[tuple[float, str, str]] = []  # (time, model, prompt), as they arrive
        self.in_flight: Counter[str] = Counter()  # by model
        self._handle, self._way = handle, way
        self._dice = None if seed is None else random.Random(seed)
        self._counts: Counter[int] = Counter()

    @property
    def now(self) -> float:
        return anyio.current_time()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(await request.aread())
        model, prompt = body["model"], body["messages"][-1]["content"]
        way, longer = self._way, 1.0
        if self._dice is not None:
            way, longer = way * self._dice.uniform(0.5, 2.0), self._dice.uniform(0.7, 1.3)
        await anyio.sleep(way)
        headers = self._count()
        self.log.append((self.now, model, prompt))
        if headers and self._counts[int(self.now // 60)] > int(headers["x-ratelimit-limit"]):
            self.rejected += 1
            headers["retry-after"] = headers["x-ratelimit-reset"]
            return httpx.Response(429, json={"detail": "Rate limit exceeded"}, headers=headers)
        self.in_flight[model] += 1
        try:
            reply = self._handle(model, prompt, self)
            await anyio.sleep(reply.seconds * longer + way)
        finally:
            self.in_flight[model] -= 1
        if reply.status != 200:
            if isinstance(reply.detail, bytes):
                return httpx.Response(reply.status, content=reply.detail, headers=reply.headers)
            return httpx.Response(reply.status, json={"detail": reply.detail}, headers=reply.headers)
        answer = chat_answer(content=prompt, model=model)
        answer.headers.update(headers)
        return answer

    def _count(self) -> dict[str, str]:
        if self.limit is None:
            return {}
        window = int(self.now // 60)
        self._counts[window] += 1
        return {
            "x-ratelimit-limit": str(self.limit),
            "x-ratelimit-remaining": str(max(0, self.limit - self._counts[window])),
            "x-ratelimit-reset": str(max(1, math.ceil((window + 1) * 60 - self.now))),
        }
