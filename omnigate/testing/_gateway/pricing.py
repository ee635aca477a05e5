"""The local gateway's models: their providers and prices."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, Final

# USD per 1,000 tokens: input, output.
PRICES: Final[dict[str, tuple[float, float]]] = {
    "claude-3-5-haiku-latest": (0.0008, 0.004),
    "claude-3-5-sonnet-20241022": (0.003, 0.015),
    "claude-3-5-sonnet-latest": (0.003, 0.015),
    "claude-3-7-sonnet-latest": (0.003, 0.015),
    "claude-3-haiku": (0.00025, 0.00125),
    "claude-3-opus-latest": (0.015, 0.075),
    "claude-3-sonnet": (0.003, 0.015),
    "claude-opus-4": (0.015, 0.075),
    "claude-sonnet-4": (0.003, 0.015),
    "gemini-1.0-pro": (0.0005, 0.0015),
    "gemini-1.5-flash": (0.000075, 0.0003),
    "gemini-1.5-flash-8b": (0.0000375, 0.00015),
    "gemini-1.5-pro": (0.00125, 0.005),
    "gemini-2.0-flash": (0.0001, 0.0004),
    "gemini-2.0-flash-lite": (0.000075, 0.0003),
    "gpt-3.5-turbo": (0.0005, 0.0015),
    "gpt-4": (0.03, 0.06),
    "gpt-4-turbo": (0.01, 0.03),
    "gpt-4.1": (0.002, 0.008),
    "gpt-4.1-mini": (0.0004, 0.0016),
    "gpt-4.1-nano": (0.0001, 0.0004),
    "gpt-4o": (0.0025, 0.01),
    "gpt-4o-mini": (0.00015, 0.0006),
    "o1": (0.015, 0.06),
    "o1-mini": (0.0011, 0.0044),
    "o3": (0.01, 0.04),
    "o3-mini": (0.0011, 0.0044),
    "o4-mini": (0.0011, 0.0044),
}

_PROVIDERS: Final = (
    ("openai", ("gpt", "o1", "o3", "o4", "chatgpt")),
    ("anthropic", ("claude",)),
    ("gemini", ("gemini", "models/gemini")),
    ("azure", ("azure/", "azure-")),
)

_DATE: Final = re.compile(r"-(\d{3}|\d{6,8}|\d{4}-\d{2}-\d{2})\Z")

_OWNERS: Final = {"gemini": "google"}

DISPLAY_NAMES: Final = {
    "openai": "OpenAI",
    "anthropic": "Anthropic",
    "gemini": "Gemini",
    "azure": "Azure OpenAI",
}


def provider_of_model(model: str) -> str | None:
    """Return the provider to which the prefix of a model's name is routed, ignoring case, or None."""
    name = model.lower()
    for provider, beginnings in _PROVIDERS:
        if name.startswith(beginnings):
            return provider
    return None


def prices_of(model: str) -> tuple[float, float] | None:
    """Return a model's prices; a dated name (`gpt-4o-2024-08-06`) costs the same as the undated one."""
    if model in PRICES:
        return PRICES[model]
    name = model.strip().removeprefix("azure/")
    while name not in PRICES:
        undated = _DATE.sub("", name)
        if undated == name:
            return None
        name = undated
    return PRICES[name]


def cost_in_micro_usd(model: str, prompt_tokens: int, completion_tokens: int) -> int:
    """Return the cost of a call in millionths of a USD, rounded half to even as the gateway does."""
    prices = prices_of(model)
    if prices is None:
        return 0
    for_input, for_output = (Decimal(repr(price)) for price in prices)
    return round((prompt_tokens * for_input + completion_tokens * for_output) * 1_000)


def card(model: str) -> dict[str, Any] | None:
    """Return a model's description, or None if it has no price."""
    prices = prices_of(model)
    if prices is None:
        return None
    provider = provider_of_model(model) or "unknown"
    return {
        "id": model,
        "object": "model",
        "created": 0,
        "owned_by": _OWNERS.get(provider, provider),
        "provider": provider,
        "pricing": {"input_per_1k_usd": prices[0], "output_per_1k_usd": prices[1]},
    }
