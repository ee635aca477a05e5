"""One run of the command: its common options, and the settings that follow from them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from omnigate import AdminClient, Client

_TIMEOUT_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where and as whom to call the gateway.

    Attributes:
        api_key: the gateway key; None without one.
        admin_key: the admin key; None without one.
        base_url: the gateway's address; None for the client's default.
        model: the model to use unless a command names one; None without one.
        timeout_seconds: how long to wait for the gateway.
    """

    api_key: str | None = field(repr=False)
    admin_key: str | None = field(repr=False)
    base_url: str | None
    model: str | None
    timeout_seconds: float


@dataclass(slots=True)
class Invocation:
    """The common options of one run; None for those that were not given.

    Attributes:
        api_key: `--api-key`.
        admin_key: `--admin-key` of the administration.
        base_url: `--base-url`.
        profile: `--profile`.
        timeout: `--timeout`, in seconds.
        is_json: whether to print JSON.
        is_debug: whether to show tracebacks.
        may_create_profile: whether the profile need not exist, since the command will create it.
    """

    api_key: str | None = field(default=None, repr=False)
    admin_key: str | None = field(default=None, repr=False)
    base_url: str | None = None
    profile: str | None = None
    timeout: float | None = None
    is_json: bool = False
    is_debug: bool = False
    may_create_profile: bool = False
    _settings: Settings | None = field(default=None, repr=False)

    def settings(self) -> Settings:
        """Return the settings: from options, else environment variables, else the profile, else defaults.

        A profile named by `--profile` counts as an option.

        Raises:
            click.ClickException: the profile does not exist, or the config file cannot be read.
        """
        if self._settings is None:
            stored = self._stored()
            is_named = self.profile is not None

            def setting(name: str, option: str | None = None) -> str | None:
                sources = (option, os.environ.get(f"OMNIGATE_{name.upper()}"), stored.get(name))
                if is_named:
                    sources = (option, stored.get(name), sources[1])
                return next((source for source in sources if source), None)

            timeout = self.timeout or float(stored.get("timeout", _TIMEOUT_SECONDS))
            self._settings = Settings(
                api_key=setting("api_key", self.api_key),
                admin_key=setting("admin_key", self.admin_key),
                base_url=setting("base_url", self.base_url),
                model=setting("model"),
                timeout_seconds=timeout,
            )
        return self._settings

    def client(self, **options: Any) -> Client:
        """Return a client of the gateway, to be used with `with`.

        Args:
            options: further arguments of `Client`.
        """
        from omnigate import Client

        settings = self.settings()
        options.setdefault("timeout", settings.timeout_seconds)
        return Client(settings.api_key, base_url=settings.base_url, **options)

    def admin_client(self) -> AdminClient:
        """Return a client of the gateway's administration, to be used with `with`."""
        from omnigate import AdminClient

        settings = self.settings()
        return AdminClient(settings.admin_key, base_url=settings.base_url, timeout=settings.timeout_seconds)

    def model(self, given: str | None) -> str:
        """Return the model to use.

        Args:
            given: the option `--model`.

        Raises:
            click.UsageError: none is named anywhere.
        """
        found = given or self.settings().model
        if not found:
            raise click.UsageError(
                "no model: name one with -m, in $OMNIGATE_MODEL or with `omnigate config set model NAME`; "
                "`omnigate models` lists them"
            )
        return found

    def profile_name(self) -> str | None:
        """Return the name of the profile that was asked for; None for the current one."""
        return self.profile or os.environ.get("OMNIGATE_PROFILE") or None

    def _stored(self) -> dict[str, str]:
        from omnigate.cli._frame.profiles import read_profiles

        return read_profiles().settings(self.profile_name(), may_be_new=self.may_create_profile)
