"""`omnigate models`: the gateway's models and their prices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from omnigate.cli._frame.command import Command, pass_invocation
from omnigate.cli._frame.invocation import Invocation
from omnigate.cli._frame.tables import Column, emit_table
from omnigate.cli._frame.terminal import emit_json, note

if TYPE_CHECKING:
    from omnigate.models import ModelInfo

_TOKENS = 1_000  # prices are stated for a million tokens, and travel for a thousand


@click.command(
    cls=Command,
    examples=[
        "omnigate models",
        "omnigate models mini --provider openai --sort price",
        "omnigate models --json",
    ],
)
@click.argument("words", nargs=-1, metavar="[WORD]...")
@click.option("--provider", metavar="NAME", help="Only the models of a provider.")
@click.option(
    "--sort",
    type=click.Choice(["name", "price"]),
    default="name",
    show_default=True,
    help="By name, or by the price of input and output together.",
)
@pass_invocation
def command(invocation: Invocation, words: tuple[str, ...], provider: str | None, sort: str) -> None:
    """List the gateway's models and their prices.

    Only those whose name contains every WORD. Prices are in USD per million tokens.
    """
    with invocation.client() as client:
        models = list(client.models())
    found = [model for model in models if _matches(model, words, provider)]
    found.sort(key=lambda model: (_price(model) if sort == "price" else 0.0, model.provider, model.id))
    if invocation.is_json:
        emit_json(found)
        return
    if not found:
        note(
            f"None of the gateway's {len(models)} models matches." if models else "The gateway has no models."
        )
        return
    emit_table(
        [
            Column("model", can_shrink=True),
            Column("provider"),
            Column("input", is_number=True),
            Column("output", is_number=True),
        ],
        [
            (
                model.id,
                model.provider or model.owned_by,
                _shown(model.pricing.input_per_1k_usd) if model.pricing else "-",
                _shown(model.pricing.output_per_1k_usd) if model.pricing else "-",
            )
            for model in found
        ],
    )
    note("Prices in USD per million tokens.")


def _matches(model: ModelInfo, words: tuple[str, ...], provider: str | None) -> bool:
    name = model.id.lower()
    return all(word.lower() in name for word in words) and (
        provider is None or provider.lower() in (model.provider.lower(), model.owned_by.lower())
    )


def _price(model: ModelInfo) -> float:
    """Return the price to sort by; models without one come last."""
    return model.pricing.input_per_1k_usd + model.pricing.output_per_1k_usd if model.pricing else float("inf")


def _shown(per_1k_usd: float) -> str:
    from omnigate._wire.money import positional

    whole, _, rest = positional(round(per_1k_usd * _TOKENS, 6)).partition(".")
    return f"{int(whole):,}.{rest:<02}"
