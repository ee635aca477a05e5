"""`omnigate health`: whether the gateway, its database and its cache work."""

from __future__ import annotations

import sys
from typing import Any, Final, cast

import click

from omnigate.cli._frame.command import Command, pass_invocation
from omnigate.cli._frame.errors import FAILED
from omnigate.cli._frame.invocation import Invocation
from omnigate.cli._frame.tables import emit_fields
from omnigate.cli._frame.terminal import emit_json

_NAMES: Final = {"redis": "cache"}


@click.command(
    cls=Command,
    examples=["omnigate health", "until omnigate health --timeout 2 > /dev/null 2>&1; do sleep 1; done"],
)
@pass_invocation
def command(invocation: Invocation) -> None:
    """Check the gateway, its database and its cache.

    Needs no key. The exit code is 0 if everything works, and 1 if something does not or there is no answer.
    """
    with invocation.client(retries=0) as client:
        alive, ready = client.health(), client.ready()
    checks = cast("dict[str, Any]", ready.get("checks") or {})
    is_ready = ready.meta.status_code == 200
    if invocation.is_json:
        emit_json(
            {
                "status": alive.get("status"),
                "version": alive.get("version"),
                "ready": is_ready,
                "checks": checks,
            }
        )
    else:
        gateway = f"{alive.get('status', 'unknown')}, version {alive.get('version', 'unknown')}"
        fields = [("gateway", gateway)]
        fields += [(_NAMES.get(name, name), str(state)) for name, state in checks.items()]
        fields.append(("ready", "yes" if is_ready else "no"))
        emit_fields(fields)
    if not is_ready:
        sys.exit(FAILED)
