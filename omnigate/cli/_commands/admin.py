"""`omnigate admin`: organisations and projects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from omnigate.cli._commands.metrics import metrics_options, show_metrics
from omnigate.cli._frame.command import Group, pass_invocation
from omnigate.cli._frame.invocation import Invocation
from omnigate.cli._frame.tables import Column, emit_table
from omnigate.cli._frame.terminal import emit, emit_json, note, safe, shown_once
from omnigate.cli._frame.values import budget, moment

if TYPE_CHECKING:
    from omnigate.models import MetricsResponse

_COMMON: Final = ("admin-key", "base-url", "profile", "timeout", "json", "debug")

_BUDGET: Final = "USD, 0 for unlimited."


@click.group(
    cls=Group,
    examples=["omnigate admin orgs create Acme --daily-budget 50", "omnigate admin projects list"],
)
def command() -> None:
    """Manage organisations and projects with the admin key."""


@command.group("orgs", cls=Group, examples=["omnigate admin orgs list"])
def orgs() -> None:
    """List and create organisations."""


@orgs.command("list", common=_COMMON, examples=["omnigate admin orgs list"])
@pass_invocation
def list_orgs(invocation: Invocation) -> None:
    """List all organisations."""
    with invocation.admin_client() as admin:
        found = admin.list_orgs()
    if invocation.is_json:
        emit_json(list(found))
        return
    if not found:
        note("There are no organisations.")
        return
    emit_table(
        [
            Column("id"),
            Column("name", can_shrink=True),
            Column("daily budget", is_number=True),
            Column("monthly budget", is_number=True),
            Column("created (UTC)"),
        ],
        [
            (org.id, org.name, budget(org.daily_budget), budget(org.monthly_budget), moment(org.created_at))
            for org in found
        ],
    )


@orgs.command("create", common=_COMMON, examples=["omnigate admin orgs create Acme --monthly-budget 500"])
@click.argument("name")
@click.option("--daily-budget", metavar="USD", default="0", show_default=True, help=_BUDGET)
@click.option("--monthly-budget", metavar="USD", default="0", show_default=True, help=_BUDGET)
@pass_invocation
def create_org(invocation: Invocation, name: str, daily_budget: str, monthly_budget: str) -> None:
    """Create an organisation, and print its id."""
    with invocation.admin_client() as admin:
        org = admin.create_org(name=name, daily_budget=daily_budget, monthly_budget=monthly_budget)
    if invocation.is_json:
        emit_json(org)
        return
    note(f"Created the organisation {safe(org.name)}.")
    emit(safe(org.id))


@command.group("projects", cls=Group, examples=["omnigate admin projects list"])
def projects() -> None:
    """List and create projects."""


@projects.command("list", common=_COMMON, examples=["omnigate admin projects list --org ORG_ID"])
@click.option("--org", "org_id", metavar="ID", help="Only the projects of an organisation.")
@pass_invocation
def list_projects(invocation: Invocation, org_id: str | None) -> None:
    """List projects."""
    with invocation.admin_client() as admin:
        found = admin.list_projects(org_id=org_id)
    if invocation.is_json:
        emit_json(list(found))
        return
    if not found:
        note("There are no projects.")
        return
    emit_table(
        [
            Column("id"),
            Column("organisation"),
            Column("name", can_shrink=True),
            Column("key"),
            Column("calls/min", is_number=True),
            Column("daily budget", is_number=True),
            Column("monthly budget", is_number=True),
            Column("created (UTC)"),
        ],
        [
            (
                project.id,
                project.org_id,
                project.name,
                f"{project.key_prefix}…",
                f"{project.rate_limit_per_min:,}",
                budget(project.daily_budget),
                budget(project.monthly_budget),
                moment(project.created_at),
            )
            for project in found
        ],
    )


@projects.command(
    "create", common=_COMMON, examples=["omnigate admin projects create ORG_ID nightly --rate-limit 600"]
)
@click.argument("org_id")
@click.argument("name")
@click.option("--daily-budget", metavar="USD", default="0", show_default=True, help=_BUDGET)
@click.option("--monthly-budget", metavar="USD", default="0", show_default=True, help=_BUDGET)
@click.option(
    "--rate-limit",
    type=click.IntRange(min=1),
    metavar="N",
    default=60,
    show_default=True,
    help="Calls a minute.",
)
@pass_invocation
def create_project(
    invocation: Invocation, org_id: str, name: str, daily_budget: str, monthly_budget: str, rate_limit: int
) -> None:
    """Create a project, and print its API key: this is the only time that it is shown."""
    with invocation.admin_client() as admin:
        project = admin.create_project(
            org_id=org_id,
            name=name,
            daily_budget=daily_budget,
            monthly_budget=monthly_budget,
            rate_limit_per_min=rate_limit,
        )
    with shown_once(
        f"The project {safe(project.name)}, id {safe(project.id)}, was created; create another one."
    ):
        if invocation.is_json:
            emit_json(project)
            return
        note(f"Created the project {safe(project.name)}, id {safe(project.id)}.")
        note("Keep the key: it is shown only this once.")
        emit(safe(project.api_key))


@command.command(
    "metrics", common=_COMMON, examples=["omnigate admin metrics ORG_ID --range 30d --group-by model"]
)
@click.argument("org_id")
@metrics_options
@pass_invocation
def org_metrics(
    invocation: Invocation,
    org_id: str,
    range: str | None,
    start: str | None,
    end: str | None,
    group_by: str | None,
    granularity: str | None,
    chart: str,
    plot: str | None,
) -> None:
    """Show what an organisation used, and what it cost."""

    def fetch() -> MetricsResponse:
        with invocation.admin_client() as admin:
            return admin.org_metrics(
                org_id, range=range, start=start, end=end, group_by=group_by, granularity=granularity
            )

    show_metrics(invocation, fetch, chart, plot)
