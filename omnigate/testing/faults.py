"""Faults that a test can script for the next matching requests.

    gateway.script(Status(503, {"detail": "openai circuit is open"}), times=2)
    gateway.script(Cut(after_bytes=100), path="/v1/chat")
    gateway.script(ProviderFailure(429, "slow down"), when=lambda request: b"poison" in request.body)

Scripts that match the same request apply together, in the order in which they were added: for example a delay
and then a status. A script expires after `times` requests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True)
class RecordedRequest:
    """A request as the gateway received it; header names are in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str] = field(repr=False)  # may hold keys
    body: bytes = field(repr=False)


@dataclass(frozen=True)
class Status:
    """Answer with this status and body (JSON, text or bytes) instead of the gateway's own."""

    status: int
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Delay:
    """Wait before handling the request."""

    seconds: float


@dataclass(frozen=True)
class ProviderFailure:
    """The provider fails with a status and body, or is unreachable with `status=None`.

    `/v1/chat` answers with the provider's own status, completions with OpenAI's envelope, and a stream with
    the sentinel or an error event before any text. An unreachable provider's `body` is the reason; an empty
    body means a timeout.
    """

    status: int | None = 500
    body: str = '{"error":{"message":"The server had an error while processing your request."}}'


@dataclass(frozen=True)
class StreamFailure:
    """The provider fails inside a stream, after this many bytes of text."""

    message: str
    after_bytes: int = 0


@dataclass(frozen=True)
class Cut:
    """Close the connection after this many bytes of the response body; None: before sending anything."""

    after_bytes: int | None = None


@dataclass(frozen=True)
class Garbage:
    """Send these bytes instead of a response and close the connection. Only over a real socket."""

    data: bytes


@dataclass(frozen=True)
class Answer:
    """Make the model answer this; if given as several pieces, a stream has exactly these chunks."""

    text: str | Sequence[bytes]


Fault: TypeAlias = Status | Delay | ProviderFailure | StreamFailure | Cut | Garbage | Answer


@dataclass
class Script:
    """A fault and the requests that it applies to."""

    fault: Fault
    times: int
    method: str | None = None
    path: str | None = None
    when: Callable[[RecordedRequest], bool] | None = None

    def matches(self, request: RecordedRequest) -> bool:
        """Return whether the fault applies to `request`."""
        return (
            self.times > 0
            and self.method in (None, request.method)
            and self.path in (None, request.path)
            and (self.when is None or self.when(request))
        )


class Scripts:
    """The scripts that have not expired. Scripts may be added from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._scripts: list[Script] = []

    def add(self, script: Script) -> None:
        """Add a script."""
        with self._lock:
            self._scripts.append(script)

    def take(self, request: RecordedRequest) -> list[Fault]:
        """Return the faults that apply to `request`, counting one use of each."""
        if not self._scripts:
            return []
        with self._lock:
            found = [script for script in self._scripts if script.matches(request)]
            for script in found:
                script.times -= 1
            self._scripts = [script for script in self._scripts if script.times > 0]
        return [script.fault for script in found]

    def pending(self) -> list[Script]:
        """Return the scripts that have not expired."""
        with self._lock:
            return list(self._scripts)

    def clear(self) -> None:
        """Remove all scripts."""
        with self._lock:
            self._scripts.clear()
