"""The async client of the administration endpoints, `/v1/admin/*`."""

import os
import ssl
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Final, Unpack
from uuid import UUID

from omnigate._calls.base_client import BaseAsyncClient
from omnigate._calls.retry import RetryConfig
from omnigate._calls.session import Session
from omnigate._sync.face import BaseClient, method
from omnigate._sync.portal import Backend, Portal
from omnigate._wire import endpoints
from omnigate._wire.arguments import (
    CallOptions,
    Timeout,
    check_budget,
    check_id,
    check_segment,
    environment_base_url,
    metrics_query,
)
from omnigate._wire.checks import check_integer, check_text
from omnigate._wire.results import ListResult
from omnigate.async_client import Transport
from omnigate.models import MetricsResponse, OrgInfo, ProjectCreated, ProjectInfo


class AsyncAdminClient(BaseAsyncClient):
    """A client of a gateway's administration: organisations, projects, and what they use.

    Args:
        admin_key: the gateway's admin key; else `$OMNIGATE_ADMIN_KEY`.
        base_url: as `AsyncClient`'s.
        timeout: as `AsyncClient`'s.
        retries: as `AsyncClient`'s.
        retry_config: as `AsyncClient`'s.
        headers: as `AsyncClient`'s.
        transport: as `AsyncClient`'s.
        verify: as `AsyncClient`'s.

    Raises:
        InvalidArgumentError: an argument is not allowed (a `ValueError`).

    """

    def __init__(
        self,
        admin_key: str | None = None,
        *,
        base_url: str | None = None,
        timeout: Timeout = 60.0,
        retries: int = 2,
        retry_config: RetryConfig | None = None,
        headers: Mapping[str, str] | None = None,
        transport: Transport | None = None,
        verify: bool | ssl.SSLContext = True,
    ) -> None:
        self._session = Session(
            base_url=environment_base_url(base_url),
            key_header="x-admin-key",
            key=os.environ.get("OMNIGATE_ADMIN_KEY") if admin_key is None else admin_key,
            timeout=timeout,
            retries=retries,
            retry_config=retry_config,
            headers=headers,
            transport=transport,
            verify=verify,
        )

    @property
    def admin_key(self) -> str | None:
        """The admin key."""
        return self._session.configuration.key

    @admin_key.setter
    def admin_key(self, value: str | None) -> None:
        self._session.configuration.key = value

    async def create_org(
        self,
        *,
        name: str,
        daily_budget: Decimal | float | str = 0,
        monthly_budget: Decimal | float | str = 0,
        **options: Unpack[CallOptions],
    ) -> OrgInfo:
        """Create an organisation (`POST /v1/admin/orgs`).

        Args:
            name: 1 to 255 characters.
            daily_budget: USD a UTC day, 0 for none.
            monthly_budget: USD a UTC month, 0 for none.
            options: `timeout`, `deadline_seconds`, `extra_headers`; see `CallOptions`.

        """
        body = {
            "name": check_text(name, "name", maximum=255),
            "daily_budget": check_budget(daily_budget, "daily_budget"),
            "monthly_budget": check_budget(monthly_budget, "monthly_budget"),
        }
        return await self._session.fetch(
            OrgInfo, self._session.prepare(endpoints.CREATE_ORG, body=body, options=options)
        )

    async def list_orgs(self, **options: Unpack[CallOptions]) -> ListResult[OrgInfo]:
        """Return all organisations (`GET /v1/admin/orgs`)."""
        call = self._session.prepare(endpoints.LIST_ORGS, options=options)
        return await self._session.fetch_list(OrgInfo, call)

    async def create_project(
        self,
        *,
        org_id: str | UUID,
        name: str,
        daily_budget: Decimal | float | str = 0,
        monthly_budget: Decimal | float | str = 0,
        rate_limit_per_min: int = 60,
        **options: Unpack[CallOptions],
    ) -> ProjectCreated:
        """Create a project and return its key, which is shown only this once (`POST /v1/admin/projects`).

        Once sent it is never sent again, since that would make a second project.

        Args:
            org_id: of the organisation it belongs to.
            name: at least one character.
            daily_budget: USD a UTC day, 0 for none.
            monthly_budget: USD a UTC month, 0 for none.
            rate_limit_per_min: calls a UTC minute, at least 1.
            options: as in `create_org`.

        Raises:
            APIError: with `status_code` 404: there is no such organisation.

        """
        body = {
            "org_id": check_id(org_id, "org_id"),
            "name": check_text(name, "name"),
            "daily_budget": check_budget(daily_budget, "daily_budget"),
            "monthly_budget": check_budget(monthly_budget, "monthly_budget"),
            "rate_limit_per_min": check_integer(rate_limit_per_min, "rate_limit_per_min", minimum=1),
        }
        return await self._session.fetch(
            ProjectCreated, self._session.prepare(endpoints.CREATE_PROJECT, body=body, options=options)
        )

    async def list_projects(
        self, *, org_id: str | UUID | None = None, **options: Unpack[CallOptions]
    ) -> ListResult[ProjectInfo]:
        """Return the projects (`GET /v1/admin/projects`).

        Args:
            org_id: only those of this organisation.
            options: as in `create_org`.

        """
        query = None if org_id is None else {"org_id": check_id(org_id, "org_id")}
        call = self._session.prepare(endpoints.LIST_PROJECTS, query=query, options=options)
        return await self._session.fetch_list(ProjectInfo, call)

    async def org_metrics(
        self,
        org_id: str | UUID,
        *,
        range: str | None = None,
        start: datetime | str | None = None,
        end: datetime | str | None = None,
        group_by: str | None = None,
        granularity: str | None = None,
        **options: Unpack[CallOptions],
    ) -> MetricsResponse:
        """Return an organisation's usage (`GET /v1/admin/orgs/{org_id}/metrics`).

        The arguments are those of `AsyncClient.metrics`.

        Raises:
            APIError: with `status_code` 404: there is no such organisation.

        """
        query = metrics_query(range, start, end, group_by, granularity)
        suffix = f"{check_segment(check_id(org_id, 'org_id'), 'org_id')}/metrics"
        call = self._session.prepare(endpoints.ORG_METRICS, suffix=suffix, query=query, options=options)
        return await self._session.fetch(MetricsResponse, call)


class AdminClient(BaseClient[AsyncAdminClient]):
    """A sync client of a gateway's administration: `AsyncAdminClient` without `await`.

    Args:
        admin_key: as `AsyncAdminClient`'s, like the others not named here.
        base_url: see `AsyncAdminClient`.
        timeout: see `AsyncAdminClient`.
        retries: see `AsyncAdminClient`.
        retry_config: see `AsyncAdminClient`.
        headers: see `AsyncAdminClient`.
        transport: see `AsyncAdminClient`.
        verify: see `AsyncAdminClient`.
        backend: the event loop of its thread, "asyncio" or "trio".

    Raises:
        InvalidArgumentError: an argument is not allowed (a `ValueError`).

    """

    def __init__(
        self,
        admin_key: str | None = None,
        *,
        base_url: str | None = None,
        timeout: Timeout = 60.0,
        retries: int = 2,
        retry_config: RetryConfig | None = None,
        headers: Mapping[str, str] | None = None,
        transport: Transport | None = None,
        verify: bool | ssl.SSLContext = True,
        backend: Backend = "asyncio",
    ) -> None:
        self._async = AsyncAdminClient(
            admin_key,
            base_url=base_url,
            timeout=timeout,
            retries=retries,
            retry_config=retry_config,
            headers=headers,
            transport=transport,
            verify=verify,
        )
        self._portal = Portal(backend, self._async.aclose)

    @property
    def admin_key(self) -> str | None:
        """The admin key."""
        return self._async.admin_key

    @admin_key.setter
    def admin_key(self, value: str | None) -> None:
        self._async.admin_key = value

    create_org: Final = method(AsyncAdminClient.create_org)
    list_orgs: Final = method(AsyncAdminClient.list_orgs)
    create_project: Final = method(AsyncAdminClient.create_project)
    list_projects: Final = method(AsyncAdminClient.list_projects)
    org_metrics: Final = method(AsyncAdminClient.org_metrics)
