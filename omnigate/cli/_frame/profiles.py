"""The config file: named profiles, each with a gateway's address, keys, a default model and a timeout.

It holds keys, so only its owner may read it: it is written as a new file with mode 0600, which then replaces
the old one. A run that is killed midway leaves the old file.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import click

from omnigate._runtime.extras import extra

DEFAULT_PROFILE: Final = "default"

SETTINGS: Final = ("base-url", "api-key", "admin-key", "model", "timeout")
"""The names of a profile's settings."""

SECRETS: Final = frozenset({"api-key", "admin-key"})
"""The settings that are never shown whole, and never taken from an argument."""

_LARGEST_BYTES: Final = 1 << 20


@dataclass
class Profiles:
    """The profiles of the config file.

    Attributes:
        path: where the file is, or will be.
        current: the name of the profile in use.
        profiles: the settings of each profile, by name.
    """

    path: Path
    current: str = DEFAULT_PROFILE
    profiles: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)

    def settings(self, name: str | None, *, may_be_new: bool = False) -> dict[str, str]:
        """Return the settings of a profile.

        Args:
            name: its name; None for the current one.
            may_be_new: whether it need not exist.

        Raises:
            click.UsageError: there is no profile of that name.
        """
        if name is None:
            return self.profiles.get(self.current, {})
        if name not in self.profiles and may_be_new:
            return {}
        if name not in self.profiles:
            known = ", ".join(sorted(self.profiles)) or "none yet"
            raise click.UsageError(f"no profile {name!r} in {self.path} (profiles: {known})")
        return self.profiles[name]

    def name(self, given: str | None) -> str:
        """Return the name of a profile that was asked for; of the current one, if none was."""
        return given or self.current

    def put(self, name: str, setting: str, value: str) -> None:
        """Set a setting of a profile. The first profile becomes the current one.

        Args:
            name: the profile's name.
            setting: one of `SETTINGS`.
            value: the value, already checked.
        """
        if not self.profiles:
            self.current = name
        self.profiles.setdefault(name, {})[_key(setting)] = value

    def remove(self, name: str, setting: str) -> bool:
        """Remove a setting of a profile, and a profile without any; return whether it was there."""
        settings = self.profiles.get(name, {})
        was_there = settings.pop(_key(setting), None) is not None
        if not settings:
            self.profiles.pop(name, None)
        return was_there

    def write(self) -> None:
        """Replace the file by one with these profiles, readable only by its owner.

        Raises:
            OSError: it cannot be written; the old file is unchanged.
        """
        content = json.dumps({"current": self.current, "profiles": self.profiles}, indent=2) + "\n"
        path = os.path.realpath(self.path)
        directory = os.path.dirname(path)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        try:
            fd, new = tempfile.mkstemp(".writing", ".config.", directory)  # mode 0600
        except OSError as error:
            error.filename = str(self.path)  # the caller knows this one
            raise
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise


def config_path() -> Path:
    """Return the path of the config file, whether or not it exists."""
    with extra("cli", "the config file"):
        from platformdirs import user_config_path

    return user_config_path("omnigate", appauthor=False) / "config.json"


def read_profiles() -> Profiles:
    """Return the profiles of the config file; none if there is no file.

    Raises:
        click.ClickException: it cannot be read, or is not a config file.
    """
    path = config_path()
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_LARGEST_BYTES + 1)
    except FileNotFoundError:
        return Profiles(path)
    except OSError as error:
        raise click.ClickException(f"cannot read {path}: {error.strerror}") from error
    try:
        if len(content) > _LARGEST_BYTES:
            raise ValueError(f"it is larger than {_LARGEST_BYTES:,} bytes")
        found = _checked(path, json.loads(content))
    except (ValueError, RecursionError) as error:
        raise click.ClickException(
            f"{path} is not a config file of omnigate: {error}; correct or delete it"
        ) from error
    if sys.platform != "win32" and stat.S_IMODE(mode) & 0o077 and _has_secret(found):
        click.echo(f"Warning: other users may read the keys in {path}; run: chmod 600 {path}", err=True)
    return found


def _checked(path: Path, content: Any) -> Profiles:
    """Return the profiles in the content of a config file.

    Raises:
        ValueError: it is not of that shape; the error shows no value.
    """
    if not isinstance(content, Mapping):
        raise ValueError("it is not a JSON object")
    fields = cast("Mapping[str, Any]", content)
    current, profiles = fields.get("current", DEFAULT_PROFILE), fields.get("profiles", {})
    if not isinstance(current, str) or not isinstance(profiles, dict):
        raise ValueError('"current" must be text, and "profiles" an object')
    for name, settings in cast("dict[str, Any]", profiles).items():
        if not isinstance(settings, dict):
            raise ValueError(f"profile {name!r} must be an object")
        for setting, value in cast("dict[str, Any]", settings).items():
            if not isinstance(value, str):
                raise ValueError(f"{setting!r} of profile {name!r} must be text")
            if setting == "timeout":
                check_timeout(value)
    return Profiles(path, current, cast("dict[str, dict[str, str]]", profiles))


def check_timeout(text: str) -> None:
    """Check the text of a timeout.

    Raises:
        ValueError: it is not a number above 0.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"timeout must be a number of seconds above 0, got {text!r}")


def _key(setting: str) -> str:
    return setting.replace("-", "_")


def _has_secret(found: Profiles) -> bool:
    return any(settings.get(_key(secret)) for settings in found.profiles.values() for secret in SECRETS)
