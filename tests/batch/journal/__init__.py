"""The journal of a batch, with the helpers that its tests share."""

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

from omnigate import GatewayError
from omnigate._batch.journal.index import SUCCEEDED
from omnigate._batch.journal.journal import Journal
from omnigate._batch.journal.lines import digest_of, encode_line
from omnigate._batch.outcomes import Outcome
from omnigate._wire.head import Meta
from omnigate.models import ChatRequest, ChatResponse, Usage


def ask(text: str = "hello") -> ChatRequest:
    return ChatRequest(model="m", messages=text)


def answer(text: str = "hi", *, request_id: str | None = "req-1", **fields: Any) -> ChatResponse:
    response = ChatResponse(
        **{"id": "chatcmpl-1", "provider": "openai", "model": "m-2026", "content": text, **fields},
        usage=Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3),
    )
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 5"
    if request_id is not None:
        head += b"\r\nX-Request-Id: " + request_id.encode()
    response._meta = Meta(200, head, attempts=1, elapsed=0.5)
    return response


def success(id: str = "a", index: int = 0, text: str = "hi", **fields: Any) -> Outcome:
    response = answer(text, **fields)
    return Outcome(index=index, id=id, request=ask(), response=response, attempts=2, elapsed=1.5)


def failure(id: str = "a", index: int = 0, error: GatewayError | None = None) -> Outcome:
    error = GatewayError("broken") if error is None else error
    return Outcome(index=index, id=id, request=ask(), error=error, attempts=3, elapsed=2.5)


DIGEST = digest_of(ask())


def opened(path: Any) -> Journal:
    journal = Journal(path)
    journal.open()
    return journal


def replayable(journal: Journal) -> int:
    """Return how many ids have a success as their last line."""
    index = journal._index
    slots = zip(chain(*index._fragments), chain(*index._entries), strict=True)
    stored = [entry for is_taken, entry in slots if is_taken]
    return sum(entry & SUCCEEDED for entry in [*stored, *index._latest.values()])


def fill(path: Any, *outcomes: Outcome, finished: bool = False) -> None:
    """Write outcomes as a run does: claim each id once, then write its line."""
    journal = opened(path)
    for outcome in outcomes:
        journal.claim(outcome.id, DIGEST, outcome.index)
        journal.write(outcome, DIGEST)
    journal.close(finished=finished)


def text(outcome: Outcome) -> bytes:
    return encode_line(outcome, DIGEST, created=0)


def ids_in(path: Path) -> list[str]:
    """Return the ids of the lines; every one of them must be whole."""
    data = path.read_bytes()
    assert data == b"" or data.endswith(b"\n")
    return [json.loads(line)["custom_id"] for line in data.splitlines()]


def start(source: str, *arguments: Any) -> "subprocess.Popen[str]":
    """Start a program in its own process, where it can import the tests."""
    command = [sys.executable, "-c", source, *map(str, arguments)]
    root = Path(__file__).parents[3]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
