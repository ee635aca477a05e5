"""`omnigate config`: the profiles in the config file."""

from __future__ import annotations

import click

from omnigate._wire.redaction import mask
from omnigate.cli._frame.command import Group, pass_invocation
from omnigate.cli._frame.invocation import Invocation
from omnigate.cli._frame.profiles import SECRETS, SETTINGS, check_timeout, config_path, read_profiles
from omnigate.cli._frame.tables import Column, emit_table
from omnigate.cli._frame.terminal import emit, emit_json, note, read_secret, safe

_COMMON = ("profile", "json", "debug")


@click.group(
    cls=Group,
    examples=[
        "omnigate config set base-url https://gateway.example",
        "omnigate config set api-key                           # asks for the key",
        "omnigate config set --profile local base-url http://localhost:8000",
        "omnigate config use local",
    ],
)
def command() -> None:
    """Manage profiles: addresses, keys and default models.

    A profile has a base-url, an api-key, an admin-key, a model and a timeout. They apply where neither an
    option nor an environment variable is given. Only you can read the file, and keys are never printed whole.
    """


@command.command(
    "set",
    common=_COMMON,
    examples=["omnigate config set model gpt-4o-mini", "omnigate config set api-key < key.txt"],
)
@click.argument("setting", type=click.Choice(SETTINGS))
@click.argument("value", required=False)
@pass_invocation
def set_setting(invocation: Invocation, setting: str, value: str | None) -> None:
    """Set a setting of the profile.

    Keys are read from a hidden prompt or from standard input, never from an argument, which other users of
    the machine could read.
    """
    if setting in SECRETS:
        if value is not None:
            raise click.UsageError(f"{setting} is read from a prompt or standard input, not from an argument")
        value = read_secret(setting)
    elif value is None:
        raise click.UsageError(f"no value for {setting}")
    value = _checked(setting, value)
    profiles = read_profiles()
    name = profiles.name(invocation.profile_name())
    profiles.put(name, setting, value)
    profiles.write()
    if invocation.is_json:
        emit_json({"profile": name, setting: _shown(setting, value)})
    else:
        note(f"Set {setting} of the profile {name!r} to {safe(_shown(setting, value))}.")


@command.command("get", common=_COMMON, examples=["omnigate config get base-url"])
@click.argument("setting", type=click.Choice(SETTINGS))
@pass_invocation
def get_setting(invocation: Invocation, setting: str) -> None:
    """Print a setting of the profile; of a key, only how it begins. The exit code is 1 if it is not set."""
    value = read_profiles().settings(invocation.profile_name()).get(setting.replace("-", "_"))
    if invocation.is_json:
        emit_json({setting: None if value is None else _shown(setting, value)})
    if value is None:
        raise click.ClickException(f"{setting} is not set")
    if not invocation.is_json:
        emit(safe(_shown(setting, value)))


@command.command("unset", common=_COMMON, examples=["omnigate config unset model"])
@click.argument("setting", type=click.Choice(SETTINGS))
@pass_invocation
def unset_setting(invocation: Invocation, setting: str) -> None:
    """Remove a setting from the profile. A profile without settings is removed."""
    profiles = read_profiles()
    name = profiles.name(invocation.profile_name())
    was_set = profiles.remove(name, setting)
    if was_set:
        profiles.write()
    if invocation.is_json:
        emit_json({"profile": name, setting: None, "was_set": was_set})
    else:
        note(f"Removed {setting} from the profile {name!r}." if was_set else f"{setting} was not set.")


@command.command("list", common=("json", "debug"), examples=["omnigate config list"])
@pass_invocation
def list_profiles(invocation: Invocation) -> None:
    """List the profiles, and show which is the current one."""
    profiles = read_profiles()
    shown = {
        name: {
            setting: _shown(setting, settings[key])
            for setting in SETTINGS
            if (key := setting.replace("-", "_")) in settings
        }
        for name, settings in sorted(profiles.profiles.items())
    }
    if invocation.is_json:
        emit_json({"path": str(profiles.path), "current": profiles.current, "profiles": shown})
        return
    if not shown:
        note(f"No profiles yet: `omnigate config set base-url URL` creates {profiles.path}.")
        return
    emit_table(
        [
            Column("profile"),
            Column("current"),
            *(Column(setting, can_shrink=setting == "base-url") for setting in SETTINGS),
        ],
        [
            (
                name,
                "yes" if name == profiles.current else "no",
                *(settings.get(each, "-") for each in SETTINGS),
            )
            for name, settings in shown.items()
        ],
    )


@command.command("use", common=("json", "debug"), examples=["omnigate config use local"])
@click.argument("name")
@pass_invocation
def use_profile(invocation: Invocation, name: str) -> None:
    """Make a profile the current one."""
    profiles = read_profiles()
    profiles.settings(name)
    profiles.current = name
    profiles.write()
    if invocation.is_json:
        emit_json({"current": name})
    else:
        note(f"The current profile is {name!r} now.")


@command.command("path", common=("json", "debug"), examples=["omnigate config path"])
@pass_invocation
def show_path(invocation: Invocation) -> None:
    """Print the path of the config file, whether or not it exists."""
    path = str(config_path())
    if invocation.is_json:
        emit_json({"path": path})
    else:
        emit(path)


def _shown(setting: str, value: str) -> str:
    return mask(value) if setting in SECRETS else value


def _checked(setting: str, value: str) -> str:
    """Return a value as it is stored.

    Raises:
        InvalidArgumentError: it is not allowed.
        click.UsageError: it is not allowed.
    """
    if setting == "base-url":
        from omnigate._wire.arguments import check_base_url

        return str(check_base_url(value))
    if setting in SECRETS:
        from omnigate._wire.arguments import check_key

        check_key(value, setting)
    elif setting == "timeout":
        try:
            check_timeout(value)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    elif not value.strip():
        raise click.UsageError(f"{setting} must not be empty")
    return value
