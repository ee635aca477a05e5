"""Faults that a test can script for the next matching requests.

    gateway.script(Status(503, {"detail": "openai circuit is open"}), times=2)
    gateway.script(Cut(after_bytes=100), path="/v1/chat")
    gateway.script(ProviderFailure(429, "slow down"), when=lambda request: b"poison" in request.body)

Scripts that match the same request apply together, in the order in which they were added: for example a delay
and then a status. A script expires after `times` requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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


@dataclass(eq=False)
class Script:
    """A fault and the requests that it applies to; `times` is how often it will still do so."""

    fault: Fault
    times: int
    method: str | None = None
    path: str | None = None
    when: Callable[[RecordedRequest], bool] | None = None

    def __post_init__(self) -> None:
        self._left = iter(range(self.times - 1, -1, -1))

    def use(self) -> bool:
        """Count one use, in any thread; return False if there was none left."""
        left = next(self._left, None)
        self.times = left or 0
        return left is not None

    def matches(self, request: RecordedRequest) -> bool:
        """Return whether the fault applies to `request`."""
        return (
            self.times > 0
            and self.method in (None, request.method)
            and self.path in (None, request.path)
            and (self.when is None or self.when(request))
        )


class Scripts:
    """The scripts that have not expired. May be used from any thread.

    It holds no lock: a signal handler that calls the gateway meanwhile waits for the gateway's thread, which
    would wait for the lock.
    """

    def __init__(self) -> None:
        self._scripts: list[Script] = []

    def add(self, script: Script) -> None:
        """Add a script."""
        self._scripts.append(script)

    def take(self, request: RecordedRequest) -> list[Fault]:
        """Return the faults that apply to `request`, counting one use of each."""
        faults: list[Fault] = []
        for script in tuple(self._scripts):
            if script.matches(request) and script.use():
                faults.append(script.fault)
            if script.times <= 0:
                with suppress(ValueError):  # cleared meanwhile
                    self._scripts.remove(script)
        return faults

    def pending(self) -> list[Script]:
        """Return the scripts that have not expired."""
        return list(self._scripts)

    def clear(self) -> None:
        """Remove all scripts."""
        self._scripts.clear()
