"""`omnigate signup`: a new account."""

from __future__ import annotations

import click

from omnigate.cli._frame.command import Command, pass_invocation
from omnigate.cli._frame.invocation import Invocation
from omnigate.cli._frame.terminal import emit, emit_json, note, safe, shown_once


@click.command(
    cls=Command,
    examples=[
        "omnigate signup dev@acme.example --org Acme --save",
        "omnigate signup dev@acme.example --base-url https://gateway.example --save --profile acme",
    ],
)
@click.argument("email")
@click.option("--org", "org_name", metavar="NAME", help="The organisation's name.")
@click.option(
    "--project",
    "project_name",
    metavar="NAME",
    default="Default",
    show_default=True,
    help="The project's name.",
)
@click.option("--save", is_flag=True, help="Save the key in the profile, and do not print it.")
@pass_invocation
def command(invocation: Invocation, email: str, org_name: str | None, project_name: str, save: bool) -> None:
    """Create an account and its first API key.

    Prints the key, which is shown only this once; needs no key itself.
    """
    invocation.may_create_profile = save
    with invocation.client() as client:
        account = client.signup(email=email, org_name=org_name, project_name=project_name)
    saved = _save(invocation, account.api_key) if save else None
    ids = f"organisation {safe(account.org_id)}, project {safe(account.project_id)}"
    lost = f"The account was created: {ids}." if saved is None else saved
    with shown_once(lost):
        if invocation.is_json:
            emit_json(account)
            return
        note(f"Signed up {safe(account.email)}: {ids}.")
        if saved is not None:
            note(saved)
        else:
            note("Keep the key: it is shown only this once.")
            emit(safe(account.api_key))


def _save(invocation: Invocation, api_key: str) -> str | None:
    """Save the key in the profile and return the words for it; None if that failed, and was said."""
    from omnigate.cli._frame.profiles import read_profiles

    profiles = read_profiles()
    name = profiles.name(invocation.profile_name())
    profiles.put(name, "api-key", api_key)
    if address := invocation.settings().base_url:
        profiles.put(name, "base-url", address)
    try:
        profiles.write()
    except OSError as error:  # the key must not be lost
        note(f"Warning: the key could not be saved in {profiles.path}: {error.strerror}")
        return None
    return f"Saved the key in the profile {name!r} of {profiles.path}."
