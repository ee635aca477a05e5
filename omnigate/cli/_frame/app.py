"""The root of the command line. It imports a command only when it is run, or its own help is shown.

So `omnigate --help` starts as fast as click: nothing here may import msgspec, httpx or rich.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from omnigate._runtime.extras import extra
from omnigate._version import __version__
from omnigate.cli._frame.command import Group, common_options
from omnigate.cli._frame.invocation import Invocation
from omnigate.cli._frame.running import run

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

PROGRAM: Final = "omnigate"

COMPLETE_VARIABLE: Final = "_OMNIGATE_COMPLETE"

_COMMANDS: Final[Mapping[str, Mapping[str, str]]] = {
    "Models": {
        "chat": "Ask a model, or hold a conversation with -i.",
        "batch": "Run many prompts from files, within the gateway's rate limit.",
        "journal": "Show, filter and merge the journals of batches.",
        "models": "List the gateway's models and their prices.",
    },
    "Account": {
        "me": "Show the project that the API key belongs to.",
        "metrics": "Show what was used, and what it cost.",
        "keys": "List, create and revoke API keys.",
        "provider-key": "Store a provider's key in the project.",
        "signup": "Create an account and its first API key.",
        "admin": "Manage organisations and projects with the admin key.",
    },
    "Gateway": {
        "health": "Check the gateway, its database and its cache.",
        "gateway": "Serve a local gateway in the foreground, until Ctrl-C.",
        "demo": "Show the client at work against a local gateway.",
    },
    "Setup": {
        "config": "Manage profiles: addresses, keys and default models.",
        "completion": "Print the shell completion for bash, zsh or fish.",
    },
}
"""The commands and the first lines of their help, by section."""

SUMMARIES: Final[Mapping[str, str]] = {
    name: summary for section in _COMMANDS.values() for name, summary in section.items()
}


class App(Group):
    """The root command: its sub-commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of that name."""
        if cmd_name not in SUMMARIES:
            return None
        with extra("cli", f"{PROGRAM} {cmd_name}"):
            module = import_module(f"omnigate.cli._commands.{cmd_name.replace('-', '_')}")
        found: click.Command = module.command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, without importing them."""
        for section, commands in _COMMANDS.items():
            with formatter.section(section):
                formatter.write_dl(list(commands.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the name of a command, without importing any, or an option."""
        from click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=summary)
            for name, summary in SUMMARIES.items()
            if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run the command line and exit with its code."""
        arguments = list(sys.argv[1:] if args is None else args)

        def action(invocation: Invocation) -> None:
            if instruction := os.environ.get(COMPLETE_VARIABLE):
                from click.shell_completion import shell_complete

                raise click.exceptions.Exit(shell_complete(self, {}, PROGRAM, COMPLETE_VARIABLE, instruction))
            with self.make_context(PROGRAM, arguments, obj=invocation, **extra) as context:
                self.invoke(context)

        run(action)


@click.group(cls=App, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
@common_options
def command() -> None:
    """Work with an OmniGate LLM gateway from the command line.

    Settings come from options, then environment variables, then the profile (`omnigate config`).
    """
