"""`omnigate me`: the project of the key in use."""

from __future__ import annotations

import click

from omnigate.cli._frame.command import Command, pass_invocation
from omnigate.cli._frame.invocation import Invocation
from omnigate.cli._frame.tables import emit_fields
from omnigate.cli._frame.terminal import emit_json
from omnigate.cli._frame.values import budget


@click.command(cls=Command, examples=["omnigate me", "omnigate me --json | jq .project_id"])
@pass_invocation
def command(invocation: Invocation) -> None:
    """Show the project that the API key belongs to."""
    with invocation.client() as client:
        me = client.me()
    if invocation.is_json:
        emit_json(me)
        return
    emit_fields(
        [
            ("project", me.project_name),
            ("project id", me.project_id),
            ("organisation id", me.org_id),
            ("key", f"{me.key_prefix}…"),
            ("rate limit", f"{me.rate_limit_per_min:,} calls a minute"),
            ("daily budget", budget(me.daily_budget)),
            ("monthly budget", budget(me.monthly_budget)),
            (
                "providers",
                ", ".join(me.configured_providers) or "none yet: omnigate provider-key set PROVIDER",
            ),
        ]
    )
