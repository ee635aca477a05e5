"""A transport that answers each chat as its prompt says, and counts prompts and concurrent calls."""

import json
from typing import Any

import anyio
import httpx

from .scripted import chat_answer


class Provider(httpx.AsyncBaseTransport):
    """Answer a prompt with itself.

    Words of the prompt control the answer: "sleep=S" waits S seconds before it; "status=N" in place of an
    answer; "once=N" the same, the first time only; "broken" for a connection that breaks; "bug" for a
    transport that raises what no transport should.
    """

    def __init__(self, **headers: str) -> None:
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.prompts: list[str] = []
        self.answered: list[str] = []
        self.times: list[float] = []
        self.in_flight = 0
        self.most_in_flight = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        prompt = json.loads(await request.aread())["messages"][-1]["content"]
        self.prompts.append(prompt)
        self.times.append(anyio.current_time())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._answer(prompt)
        finally:
            self.in_flight -= 1

    async def _answer(self, prompt: str) -> httpx.Response:
        await anyio.lowlevel.checkpoint()
        words = dict(word.partition("=")[::2] for word in prompt.split())
        await anyio.sleep(float(words.get("sleep", 0)))
        if "broken" in words:
            raise httpx.ReadError("broken")
        if "bug" in words:
            raise KeyError("bug")
        status = words.get("status")
        if status is None and self.prompts.count(prompt) == 1:
            status = words.get("once")
        if status is not None:
            return self.error(int(status))
        self.answered.append(prompt)
        answer = chat_answer(content=prompt)
        answer.headers.update(self.headers)
        return answer

    def error(self, status: int) -> httpx.Response:
        details: dict[int, Any] = {
            401: "Invalid API key",
            402: "Project daily budget exceeded",
            429: "Rate limit exceeded",
            500: "OpenAI error 500: oops",
            499: "OpenAI error 429: slow down",
        }
        headers = {"retry-after": "20"} if status == 429 else {}
        detail = details.get(status, "something else")
        return httpx.Response(429 if status == 499 else status, json={"detail": detail}, headers=headers)
