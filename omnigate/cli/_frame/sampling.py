"""The options that become fields of a chat request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_NAMES: Final = (
    "max_tokens",
    "temperature",
    "top_p",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "fallback_models",
    "cache",
    "user_id",
)


def model_option(function: F) -> F:
    """Add the option that names the model."""
    return click.option(
        "-m", "--model", metavar="NAME", help="The model; else $OMNIGATE_MODEL, else the profile's."
    )(function)


def sampling_options(function: F) -> F:
    """Add the sampling options; `sampling_of` takes them out of the function's keyword arguments."""
    penalty = click.FloatRange(-2, 2)
    for option in reversed(
        (
            click.option(
                "--max-tokens", type=click.IntRange(min=1), metavar="N", help="The most tokens to generate."
            ),
            click.option(
                "--temperature", type=click.FloatRange(0, 2), metavar="N", help="How random the answer is."
            ),
            click.option("--top-p", type=click.FloatRange(0, 1), metavar="N", help="Nucleus sampling."),
            click.option("--stop", multiple=True, metavar="TEXT", help="Where to stop; may be repeated."),
            click.option(
                "--presence-penalty", type=penalty, metavar="N", help="Against tokens that occurred."
            ),
            click.option(
                "--frequency-penalty", type=penalty, metavar="N", help="Against tokens that occurred often."
            ),
            click.option("--seed", type=int, metavar="N", help="For answers that can be repeated."),
            click.option(
                "--fallback",
                "fallback_models",
                multiple=True,
                metavar="NAME",
                help="A model to try if the first fails; up to five.",
            ),
            click.option(
                "--cache/--no-cache", default=None, help="Use the gateway's cache; needs --temperature 0."
            ),
            click.option("--user-id", metavar="ID", help="The end user that the call is attributed to."),
        )
    ):
        function = option(function)
    return function


def sampling_of(options: dict[str, Any]) -> dict[str, Any]:
    """Take the sampling options that were given out of a command's options, as `Client` names them."""
    found: dict[str, Any] = {}
    for name in _NAMES:
        value = options.pop(name, None)
        if isinstance(value, tuple):
            value = list(value) or None  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]
        if value is not None:
            found[name] = value
    return found
