"""`omnigate keys`: the project's API keys."""

from __future__ import annotations

import click

from omnigate.cli._frame.command import Group, pass_invocation
from omnigate.cli._frame.invocation import Invocation
from omnigate.cli._frame.tables import Column, emit_table
from omnigate.cli._frame.terminal import emit, emit_json, note, safe, shown_once
from omnigate.cli._frame.values import moment


@click.group(cls=Group, examples=["omnigate keys list", "omnigate keys create ci"])
def command() -> None:
    """List, create and revoke API keys."""


@command.command("list", examples=["omnigate keys list", "omnigate keys list --json | jq -r '.[].id'"])
@pass_invocation
def list_keys(invocation: Invocation) -> None:
    """List the project's API keys, without the keys themselves."""
    with invocation.client() as client:
        keys = client.list_api_keys()
    if invocation.is_json:
        emit_json(list(keys))
        return
    if not keys:
        note("The project has no named keys.")
        return
    emit_table(
        [
            Column("id"),
            Column("name", can_shrink=True),
            Column("key"),
            Column("created (UTC)"),
            Column("last used"),
            Column("revoked"),
        ],
        [
            (
                key.id,
                key.name,
                f"{key.key_prefix}…",
                moment(key.created_at),
                moment(key.last_used_at, "never"),
                moment(key.revoked_at),
            )
            for key in keys
        ],
    )


@command.command(
    "create", examples=["omnigate keys create ci", "OMNIGATE_API_KEY=$(omnigate keys create ci)"]
)
@click.argument("name")
@pass_invocation
def create_key(invocation: Invocation, name: str) -> None:
    """Create an API key, and print it: this is the only time that it is shown."""
    with invocation.client() as client:
        key = client.create_api_key(name=name)
    with shown_once(f"Revoke it with `omnigate keys revoke {safe(key.id)}`, and create another one."):
        if invocation.is_json:
            emit_json(key)
            return
        note(f"Created {safe(key.name)}, id {safe(key.id)}. Keep the key: it is shown only this once.")
        emit(safe(key.api_key))


@command.command("revoke", examples=["omnigate keys revoke 0b4e2d0e-6f0a-4c3c-9a52-6a1f3e1f8a11"])
@click.argument("id")
@pass_invocation
def revoke_key(invocation: Invocation, id: str) -> None:
    """Revoke an API key, named by the id that `keys list` shows."""
    with invocation.client() as client:
        client.revoke_api_key(id)
    if invocation.is_json:
        emit_json({"id": id, "revoked": True})
    else:
        note(f"Revoked {safe(id)}.")
