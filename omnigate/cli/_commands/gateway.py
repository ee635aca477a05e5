"""`omnigate gateway`: a local gateway, until Ctrl-C."""

from __future__ import annotations

import errno
import shlex
import sys
import time
from typing import Final

import click

from omnigate.cli._frame.command import Command, pass_invocation
from omnigate.cli._frame.invocation import Invocation
from omnigate.cli._frame.running import interrupt_on_sigterm
from omnigate.cli._frame.terminal import emit_json
from omnigate.exceptions import InvalidArgumentError
from omnigate.testing import LocalGateway
from omnigate.testing.gateway import DEFAULT_PROVIDERS, HIGH_LIMIT

_DAY_SECONDS = 86_400


DEFAULT_PORT: Final = 8780


@click.command(
    cls=Command,
    common=("json", "debug"),
    examples=[
        "omnigate gateway",
        "omnigate gateway --rate-limit 20 --window 10 --latency 1.5 --fail-rate 0.05 --seed 7",
        "omnigate gateway --port 0 --no-provider-keys",
    ],
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=DEFAULT_PORT,
    show_default=True,
    type=click.IntRange(0, 65_535),
    help="Port to listen on; 0 for any free one.",
)
@click.option(
    "--api-key",
    metavar="KEY",
    help="A fixed key, instead of a random one: llmg_ and at least 7 letters, digits, - or _.",
)
@click.option(
    "--rate-limit",
    type=click.IntRange(1, HIGH_LIMIT),
    metavar="CALLS",
    help="Calls of the key in each window; else no limit.",
)
@click.option(
    "--window",
    type=click.IntRange(1, 60),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="Length of a rate window; the real gateway's is 60.",
)
@click.option(
    "--latency",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a model takes to answer.",
)
@click.option(
    "--fail-rate",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    metavar="SHARE",
    help="The share of calls that fail at the provider, with 500, 503 or 429.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Makes the failures the same in every run.")
@click.option(
    "--provider-keys/--no-provider-keys",
    default=True,
    show_default=True,
    help="Whether the key's project has provider keys for openai, anthropic and gemini. Without them, calls "
    "fail as they do for a new project, until you store one with `omnigate provider-key set`.",
)
@pass_invocation
def command(
    invocation: Invocation,
    host: str,
    port: int,
    api_key: str | None,
    rate_limit: int | None,
    window: int,
    latency: float,
    fail_rate: float,
    seed: int | None,
    provider_keys: bool,
) -> None:
    """Serve a local gateway in the foreground, until Ctrl-C.

    It implements the whole protocol in memory and echoes prompts: nothing leaves this machine. The printed
    keys work. With a limit, a latency and failures, try how a job copes with trouble.
    """
    interrupt_on_sigterm()
    try:
        local = LocalGateway(
            host=host,
            port=port,
            rate_window_seconds=window,
            latency_seconds=latency,
            fail_rate=fail_rate,
            seed=seed,
        )
        providers = DEFAULT_PROVIDERS if provider_keys else ()
        project = local.create_project(
            rate_limit_per_min=rate_limit or HIGH_LIMIT, providers=providers, api_key=api_key
        )
        with local:
            _tell(invocation, local, project.api_key, provider_keys=provider_keys)
            while True:
                time.sleep(_DAY_SECONDS)  # until a signal; Windows has no signal.pause()
    except KeyboardInterrupt:
        click.echo("stopped", err=invocation.is_json)
    except (OSError, UnicodeError) as error:  # UnicodeError: the host is not a valid name
        busy = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        hint = "; give another --port, or 0 for any free one" if busy else ""
        raise click.ClickException(f"cannot serve at {host}:{port}: {error}{hint}") from error
    except InvalidArgumentError as error:
        raise click.UsageError(str(error)) from error


def _tell(invocation: Invocation, local: LocalGateway, api_key: str, *, provider_keys: bool) -> None:
    """Print the address and the keys, for a shell to use."""
    if invocation.is_json:
        emit_json({"base_url": local.url, "api_key": api_key, "admin_key": local.admin_key})
    else:
        click.echo(f"OmniGate local gateway at {local.url}  (Ctrl-C stops it)\n")
        if not provider_keys:
            click.echo("The project has no provider key yet: store one with `omnigate provider-key set`.\n")
        click.echo(f"  export OMNIGATE_BASE_URL={local.url}")
        click.echo(f"  export OMNIGATE_API_KEY={shlex.quote(api_key)}")
        click.echo(f"  export OMNIGATE_ADMIN_KEY={local.admin_key}")
    sys.stdout.flush()
