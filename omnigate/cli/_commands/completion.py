"""`omnigate completion`: the script by which a shell completes commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from omnigate.cli._frame.app import COMPLETE_VARIABLE, PROGRAM
from omnigate.cli._frame.app import command as app
from omnigate.cli._frame.command import Command, pass_invocation
from omnigate.cli._frame.invocation import Invocation
from omnigate.cli._frame.terminal import emit, emit_json


@click.command(
    cls=Command,
    common=("json", "debug"),
    examples=[
        'eval "$(omnigate completion bash)"                    # in ~/.bashrc',
        'eval "$(omnigate completion zsh)"                     # in ~/.zshrc',
        "omnigate completion fish > ~/.config/fish/completions/omnigate.fish",
    ],
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@pass_invocation
def command(invocation: Invocation, shell: str) -> None:
    """Print the shell completion for bash, zsh or fish."""
    kind = get_completion_class(shell)
    assert kind is not None
    source = kind(app, {}, PROGRAM, COMPLETE_VARIABLE).source()
    if invocation.is_json:
        emit_json({"shell": shell, "script": source})
    else:
        emit(source)
