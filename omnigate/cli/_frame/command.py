"""Commands and groups that have the common options, and examples in their help.

The common options may stand before or after a command's name; the last one counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import click

from omnigate.cli._frame.invocation import Invocation

F = TypeVar("F", bound=Callable[..., Any])

COMMON: Final = ("api-key", "base-url", "profile", "timeout", "json", "debug")
"""The options that all commands share which call a gateway."""

pass_invocation = click.make_pass_decorator(Invocation, ensure=True)
"""Pass the `Invocation` to a command's function, as its first argument."""


class _CommonOption(click.Option):
    """An option that all commands share; its value goes into the `Invocation`, not to the function."""


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Keep the value of a common option, so that a later one overrides it."""
    if value is None or value is False:
        return
    assert param.name is not None
    setattr(ctx.ensure_object(Invocation), param.name, value)


def _common_options() -> list[click.Option]:
    """Return the options that all commands have."""
    kept: dict[str, Any] = {"expose_value": False, "callback": _remember}
    return [
        _CommonOption(
            ["--api-key"],
            metavar="KEY",
            help="The gateway key; else $OMNIGATE_API_KEY, else the profile's.",
            **kept,
        ),
        _CommonOption(
            ["--admin-key"],
            metavar="KEY",
            help="The admin key; else $OMNIGATE_ADMIN_KEY, else the profile's.",
            **kept,
        ),
        _CommonOption(
            ["--base-url"],
            metavar="URL",
            help="The gateway's address; else $OMNIGATE_BASE_URL, else the profile's, else http://localhost:8000.",
            **kept,
        ),
        _CommonOption(
            ["--profile"],
            metavar="NAME",
            help="The profile to use; else $OMNIGATE_PROFILE, else that of `omnigate config use`.",
            **kept,
        ),
        _CommonOption(
            ["--timeout"],
            metavar="SECONDS",
            type=click.FloatRange(min=0, min_open=True),
            help="How long to wait for the gateway; else the profile's, else 60.",
            **kept,
        ),
        _CommonOption(["--json", "is_json"], is_flag=True, help="Print the result as JSON.", **kept),
        _CommonOption(["--debug", "is_debug"], is_flag=True, help="Show the traceback of an error.", **kept),
    ]


def common_options(function: F) -> F:
    """Add the common options to a command that is not a `Command`."""
    params: list[click.Option] = getattr(function, "__click_params__", [])
    common = [option for option in _common_options() if option.opts[0][2:] in COMMON]
    vars(function)["__click_params__"] = [*reversed(common), *params]
    return function


class Command(click.Command):
    """A command with the common options.

    Args:
        examples: command lines for its help, one for each use.
        common: the common options that it has, without dashes.
        arguments: the arguments of `click.Command`.
    """

    def __init__(
        self, *arguments: Any, examples: Sequence[str] = (), common: Sequence[str] = COMMON, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.params.extend(option for option in _common_options() if option.opts[0][2:] in common)
        self.examples: tuple[str, ...] = tuple(examples)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's options, and apart from them those that all commands have."""
        _write_options(self, ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        super().format_epilog(ctx, formatter)
        _write_examples(self.examples, formatter)


class Group(click.Group):
    """A group of commands.

    Args:
        examples: command lines for its help.
        arguments: the arguments of `click.Group`.
    """

    command_class = Command

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.no_args_is_help = False  # handled here, alike with all releases of click
        self.examples: tuple[str, ...] = tuple(examples)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; without any, show the help as an error."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            raise click.exceptions.Exit(2)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, and the commands."""
        self.format_commands(ctx, formatter)
        _write_options(self, ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        super().format_epilog(ctx, formatter)
        _write_examples(self.examples, formatter)


def _write_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    own: list[tuple[str, str]] = []
    common: list[tuple[str, str]] = []
    for param in command.get_params(ctx):
        # Newer releases of click have records of arguments, too; the usage shows these.
        if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None:
            (common if isinstance(param, _CommonOption) else own).append(record)
    for title, records in (("Options", own), ("Common options", common)):
        if records:
            with formatter.section(title):
                formatter.write_dl(records)


def _write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    if examples:
        with formatter.section("Examples"):
            for example in examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")
