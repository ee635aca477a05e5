"""`omnigate provider-key`: the keys by which the gateway calls providers."""

from __future__ import annotations

from typing import Final

import click

from omnigate.cli._frame.command import Group, pass_invocation
from omnigate.cli._frame.invocation import Invocation
from omnigate.cli._frame.terminal import emit_json, note, read_secret

_PROVIDERS: Final = ("openai", "anthropic", "gemini", "azure")


@click.group(cls=Group, examples=["omnigate provider-key set openai"])
def command() -> None:
    """Store a provider's key in the project."""


@command.command(
    "set",
    examples=[
        "omnigate provider-key set openai                      # asks for the key",
        "omnigate provider-key set openai < openai-key.txt",
        "omnigate provider-key set azure --endpoint https://acme.openai.azure.com --deployment gpt-4o",
    ],
)
@click.argument("provider", type=click.Choice(_PROVIDERS))
@click.option("--endpoint", metavar="URL", help="For azure: the https:// address of the resource.")
@click.option("--deployment", metavar="NAME", help="For azure: the deployment.")
@click.option("--api-version", metavar="VERSION", help="For azure: the version of its API.")
@pass_invocation
def set_key(
    invocation: Invocation,
    provider: str,
    endpoint: str | None,
    deployment: str | None,
    api_version: str | None,
) -> None:
    """Store or replace the project's key for a provider.

    The key is read from a hidden prompt, or from standard input; never from an argument, which other users of
    the machine could read.
    """
    meta = {
        name: value
        for name, value in (("endpoint", endpoint), ("deployment", deployment), ("api_version", api_version))
        if value
    }
    if provider == "azure" and not (endpoint and deployment):
        raise click.UsageError("azure needs --endpoint and --deployment")
    if meta and provider != "azure":
        raise click.UsageError("--endpoint, --deployment and --api-version are for azure only")
    key = read_secret(f"{provider} key")
    with invocation.client() as client:
        client.set_provider_key(provider=provider, api_key=key, meta=meta or None)
    if invocation.is_json:
        emit_json({"provider": provider, "stored": True})
    else:
        note(f"Stored the {provider} key.")
