"""The local gateway's models: deterministic answers built from the prompt, and scripted failures."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from omnigate.testing._gateway.pricing import DISPLAY_NAMES, cost_in_micro_usd
from omnigate.testing.faults import Answer, Fault, ProviderFailure, StreamFailure

_TRANSIENT: Final = frozenset({408, 429, 500, 502, 503, 504})


class ProviderError(Exception):
    """A provider failed.

    Args:
        status: status of the answer.
        message: what `detail` says of it.
        reason: what a stream says of it, where that is not the message.
        transient: whether it counts against the provider's circuit breaker.
    """

    def __init__(
        self, status: int, message: str, *, reason: str | None = None, transient: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = message if reason is None else reason
        self.transient = transient


@dataclass(frozen=True)
class ModelAnswer:
    """A model's answer."""

    model: str
    text: str
    pieces: Sequence[bytes]
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    failure: StreamFailure | None = None

    @property
    def micro_usd(self) -> int:
        """Return the cost in millionths of a USD."""
        return cost_in_micro_usd(self.model, self.prompt_tokens, self.completion_tokens)

    def usage(self) -> dict[str, int]:
        """Return the token counts as JSON fields."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class Accidents:
    """Failures of providers that happen by chance.

    Args:
        rate: the share of calls that fail, from 0 to 1.
        seed: makes them the same in every run; None for others each time.
    """

    def __init__(self, rate: float, seed: int | None) -> None:
        self._rate = rate
        self._dice = random.Random(seed)  # noqa: S311 - no secrets

    def faults(self, scripted: Sequence[Fault]) -> Sequence[Fault]:
        """Return the faults of a call: the scripted ones, and perhaps an accident."""
        if not self._rate or self._dice.random() >= self._rate:
            return scripted
        return [*scripted, ProviderFailure(self._dice.choice(_ACCIDENTS))]


_ACCIDENTS: Final = (500, 503, 429)


def provider_failure(provider: str, contents: Sequence[str], faults: Sequence[Fault]) -> ProviderError | None:
    """Return the failure of a provider's call, if any: a scripted one, or text that cannot be sent to it."""
    for fault in faults:
        if isinstance(fault, ProviderFailure):
            name = DISPLAY_NAMES[provider]
            if fault.status is None:
                reason = str(fault.body)
                return ProviderError(502, f"{name} request failed: {reason}", reason=reason, transient=True)
            message = f"{name} error {fault.status}: {fault.body}"
            return ProviderError(fault.status, message, transient=fault.status in _TRANSIENT)
    try:
        "".join(contents).encode()
    except UnicodeEncodeError as error:  # a lone surrogate, which pydantic lets pass
        return ProviderError(502, f"{provider} call failed: {error}", reason=str(error), transient=True)
    return None


def answer(
    model: str,
    contents: Sequence[str],
    last_user_content: str,
    max_tokens: int | None,
    faults: Sequence[Fault],
) -> ModelAnswer:
    """Return the answer: an echo of the last user message, or the scripted text.

    A token is a word. Longer answers are cut at `max_tokens`, with the finish reason "length".
    """
    pieces: list[bytes] | None = None
    text = f"echo[{model}]: {last_user_content}"
    for fault in faults:
        if isinstance(fault, Answer):
            if isinstance(fault.text, str):
                text = fault.text
            else:
                pieces = list(fault.text)
                text = b"".join(pieces).decode("utf-8", "replace")
    finish_reason = "stop"
    words = text.split(" ")
    if max_tokens is not None and len(text.split()) > max_tokens and pieces is None:
        words = words[:max_tokens]
        text = " ".join(words)
        finish_reason = "length"
    if pieces is None:
        pieces = [f"{word} ".encode() for word in words[:-1]] + [words[-1].encode()]
    failure = next((fault for fault in faults if isinstance(fault, StreamFailure)), None)
    return ModelAnswer(
        model,
        text,
        [piece for piece in pieces if piece],
        sum(len(content.split()) for content in contents),
        len(text.split()),
        finish_reason,
        failure,
    )


def cut_pieces(pieces: Sequence[bytes], after_bytes: int) -> list[bytes]:
    """Return the first `after_bytes` bytes of the pieces."""
    kept: list[bytes] = []
    for piece in pieces:
        if after_bytes <= 0:
            break
        kept.append(piece[:after_bytes])
        after_bytes -= len(piece)
    return kept
