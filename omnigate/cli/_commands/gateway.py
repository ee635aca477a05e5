"""`omnigate gateway`: a local gateway, until Ctrl-C."""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType

import click

from omnigate.cli._frame.command import Command
from omnigate.exceptions import InvalidArgumentError
from omnigate.testing import LocalGateway
from omnigate.testing.gateway import DEFAULT_PROVIDERS

_DAY_SECONDS = 86_400


@click.command(
    cls=Command,
    common=("debug",),
    examples=["omnigate gateway", "omnigate gateway --port 0 --no-provider-keys"],
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65_535), help="0: any free port."
)
@click.option(
    "--provider-keys/--no-provider-keys",
    default=True,
    show_default=True,
    help="Whether the API key's project has provider keys for openai, anthropic and gemini. Without them, "
    "calls fail as they do for a new project, until you store a key with set_provider_key().",
)
def command(host: str, port: int, provider_keys: bool) -> None:
    """Serve a local gateway in the foreground, until Ctrl-C.

    It implements the whole protocol in memory and echoes prompts: nothing leaves this machine. The printed
    keys work.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        providers = DEFAULT_PROVIDERS if provider_keys else ()
        with LocalGateway(host=host, port=port, providers=providers) as local:
            click.echo(f"OmniGate local gateway at {local.url}  (Ctrl-C stops it)\n")
            if not provider_keys:
                click.echo("The project has no provider key yet: store one with client.set_provider_key().\n")
            click.echo(f"  export OMNIGATE_BASE_URL={local.url}")
            click.echo(f"  export OMNIGATE_API_KEY={local.api_key}")
            click.echo(f"  export OMNIGATE_ADMIN_KEY={local.admin_key}")
            sys.stdout.flush()
            while True:
                time.sleep(_DAY_SECONDS)  # until a signal; Windows has no signal.pause()
    except KeyboardInterrupt:
        click.echo("stopped")
    except (OSError, UnicodeError) as error:  # UnicodeError: the host is not a valid name
        raise click.ClickException(f"cannot serve at {host}:{port}: {error}") from error
    except InvalidArgumentError as error:
        raise click.ClickException(str(error)) from error


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
