"""The async and sync clients of the administration endpoints, `/v1/admin/*`."""

import ssl
from collections.abc import Mapping
from datetime import datetime
from typing import Unpack

from omnigate import _homes
from omnigate._calls.base_client import BaseAsyncClient
from omnigate._calls.retry import RetryConfig
from omnigate._calls.session import Session
from omnigate._sync.face import BaseClient
from omnigate._sync.loop_thread import Backend
from omnigate._wire import endpoints
from omnigate._wire.arguments import (
    Timeout,
    check_budget,
    check_id,
    check_segment,
    metrics_query,
)
from omnigate._wire.checks import check_integer, check_text
from omnigate._wire.options import CallOptions
from omnigate._wire.results import ListResult
from omnigate._wire.values import Id, Integer, Number
from omnigate.async_client import Transport
from omnigate.models import MetricsResponse, OrgInfo, ProjectCreated, ProjectInfo


class AsyncAdminClient(BaseAsyncClient):
    """A client of a gateway's administration (organisations, projects, usage) for trio and asyncio.

    Use it with `async with`, or call `aclose()` at the end.

    Args:
        admin_key: the gateway's admin key; else `$OMNIGATE_ADMIN_KEY`.
        base_url: the gateway's address, `http(s)://host[:port][/prefix]`; else `$OMNIGATE_BASE_URL`, else
            "http://localhost:8000". Sending a key to another machine over plain `http://` warns
            (`PlaintextKeyWarning`), once per client without a `transport`.
        timeout: seconds for each of connecting, writing, reading and waiting for a connection; an
            `httpx.Timeout` sets them separately; None for no limit.
        retries: how many times to retry a failed request; ignored if `retry_config` is given.
        retry_config: the whole retry policy.
        headers: headers to send with every request; None leaves out one that the client would send. An
            `x-admin-key` in them is used in place of `$OMNIGATE_ADMIN_KEY`.
        transport: any httpx transport, async or sync; closed with the client. The default is the same as
            for `AsyncClient`.
        verify: whether to verify TLS certificates, or the `ssl.SSLContext` to use.

    Raises:
        InvalidArgumentError: an argument is not allowed (a `ValueError`).

    """

    def __init__(
        self,
        admin_key: str | None = None,
        *,
        base_url: str | None = None,
        timeout: Timeout = 60.0,
        retries: Integer = 2,
        retry_config: RetryConfig | None = None,
        headers: Mapping[str, str | None] | None = None,
        transport: Transport | None = None,
        verify: bool | ssl.SSLContext = True,
    ) -> None:
        self._session = Session(
            base_url=base_url,
            key_header="x-admin-key",
            key=admin_key,
            key_variable="OMNIGATE_ADMIN_KEY",
            timeout=timeout,
            retries=retries,
            retry_config=retry_config,
            headers=headers,
            transport=transport,
            verify=verify,
        )
        self._session.owner = "AsyncAdminClient"

    @property
    def admin_key(self) -> str | None:
        """The admin key; assign to it to change it for later calls."""
        return self._session.configuration.key

    @admin_key.setter
    def admin_key(self, value: str | None) -> None:
        self._session.configuration.key = value

    async def create_org(
        self,
        *,
        name: str,
        daily_budget: Number | str = 0,
        monthly_budget: Number | str = 0,
        **options: Unpack[CallOptions],
    ) -> OrgInfo:
        """Create an organisation (`POST /v1/admin/orgs`).

        Args:
            name: 1 to 255 characters.
            daily_budget: USD per UTC day, 0 for no limit.
            monthly_budget: USD per UTC month, 0 for no limit.
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
        """List all organisations (`GET /v1/admin/orgs`).

        Args:
            options: see `CallOptions`.

        """
        call = self._session.prepare(endpoints.LIST_ORGS, options=options)
        return await self._session.fetch_list(OrgInfo, call)

    async def create_project(
        self,
        *,
        org_id: Id,
        name: str,
        daily_budget: Number | str = 0,
        monthly_budget: Number | str = 0,
        rate_limit_per_min: Integer = 60,
        **options: Unpack[CallOptions],
    ) -> ProjectCreated:
        """Create a project and return its key, which is shown only once (`POST /v1/admin/projects`).

        Never retried once sent, since that would create a second project.

        Args:
            org_id: id of the organisation it belongs to.
            name: at least one character.
            daily_budget: USD per UTC day, 0 for no limit.
            monthly_budget: USD per UTC month, 0 for no limit.
            rate_limit_per_min: calls per UTC minute, at least 1.
            options: see `CallOptions`.

        Raises:
            APIError: with `status_code` 404 if there is no such organisation.

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
        self, *, org_id: Id | None = None, **options: Unpack[CallOptions]
    ) -> ListResult[ProjectInfo]:
        """List projects (`GET /v1/admin/projects`).

        Args:
            org_id: only list projects of this organisation.
            options: see `CallOptions`.

        """
        query = None if org_id is None else {"org_id": check_id(org_id, "org_id")}
        call = self._session.prepare(endpoints.LIST_PROJECTS, query=query, options=options)
        return await self._session.fetch_list(ProjectInfo, call)

    async def org_metrics(
        self,
        org_id: Id,
        *,
        range: str | None = None,
        start: datetime | str | None = None,
        end: datetime | str | None = None,
        group_by: str | None = None,
        granularity: str | None = None,
        **options: Unpack[CallOptions],
    ) -> MetricsResponse:
        """Return an organisation's usage (`GET /v1/admin/orgs/{org_id}/metrics`).

        Args:
            org_id: the id of the organisation.
            range: "1h", "24h", "7d" or "30d" up to now; default "24h", unless `start` is given.
            start: instead of `range`: a datetime with a time zone, or ISO-8601 text with an offset.
            end: same types, after `start`; default now.
            group_by: "provider", "model", "user" or "status": fills `breakdown`, up to 100 rows.
            granularity: of `timeseries`: "minute", "hour" or "day"; default by the length of the window.
            options: see `CallOptions`.

        Raises:
            APIError: with `status_code` 404 if there is no such organisation.

        """
        query = metrics_query(range, start, end, group_by, granularity)
        suffix = f"{check_segment(check_id(org_id, 'org_id'), 'org_id')}/metrics"
        call = self._session.prepare(endpoints.ORG_METRICS, suffix=suffix, query=query, options=options)
        return await self._session.fetch(MetricsResponse, call)


class AdminClient(BaseClient):
    """A client of a gateway's administration (organisations, projects, usage) for synchronous programs.

    Use it with `with`, or call `close()` at the end.

    Args:
        admin_key: the gateway's admin key; else `$OMNIGATE_ADMIN_KEY`.
        base_url: the gateway's address, `http(s)://host[:port][/prefix]`; else `$OMNIGATE_BASE_URL`, else
            "http://localhost:8000". Sending a key to another machine over plain `http://` warns
            (`PlaintextKeyWarning`), once per client without a `transport`.
        timeout: seconds for each of connecting, writing, reading and waiting for a connection; an
            `httpx.Timeout` sets them separately; None for no limit.
        retries: how many times to retry a failed request; ignored if `retry_config` is given.
        retry_config: the whole retry policy.
        headers: headers to send with every request; None leaves out one that the client would send. An
            `x-admin-key` in them is used in place of `$OMNIGATE_ADMIN_KEY`.
        transport: any httpx transport, async or sync; closed with the client. The default is the same as
            for `Client`.
        verify: whether to verify TLS certificates, or the `ssl.SSLContext` to use.
        backend: event loop of the client's thread, "asyncio" or "trio".

    Raises:
        InvalidArgumentError: an argument is not allowed (a `ValueError`).

    """

    def __init__(
        self,
        admin_key: str | None = None,
        *,
        base_url: str | None = None,
        timeout: Timeout = 60.0,
        retries: Integer = 2,
        retry_config: RetryConfig | None = None,
        headers: Mapping[str, str | None] | None = None,
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
        super().__init__(self._async, backend, name="AdminClient")

    @property
    def admin_key(self) -> str | None:
        """The admin key; assign to it to change it for later calls."""
        return self._async.admin_key

    @admin_key.setter
    def admin_key(self, value: str | None) -> None:
        self._async.admin_key = value

    def create_org(
        self,
        *,
        name: str,
        daily_budget: Number | str = 0,
        monthly_budget: Number | str = 0,
        **options: Unpack[CallOptions],
    ) -> OrgInfo:
        """Create an organisation (`POST /v1/admin/orgs`).

        Args:
            name: 1 to 255 characters.
            daily_budget: USD per UTC day, 0 for no limit.
            monthly_budget: USD per UTC month, 0 for no limit.
            options: `timeout`, `deadline_seconds`, `extra_headers`; see `CallOptions`.

        """
        return self._portal.call(
            lambda: self._async.create_org(
                name=name, daily_budget=daily_budget, monthly_budget=monthly_budget, **options
            )
        )

    def list_orgs(self, **options: Unpack[CallOptions]) -> ListResult[OrgInfo]:
        """List all organisations (`GET /v1/admin/orgs`).

        Args:
            options: see `CallOptions`.

        """
        return self._portal.call(lambda: self._async.list_orgs(**options))

    def create_project(
        self,
        *,
        org_id: Id,
        name: str,
        daily_budget: Number | str = 0,
        monthly_budget: Number | str = 0,
        rate_limit_per_min: Integer = 60,
        **options: Unpack[CallOptions],
    ) -> ProjectCreated:
        """Create a project and return its key, which is shown only once (`POST /v1/admin/projects`).

        Never retried once sent, since that would create a second project.

        Args:
            org_id: id of the organisation it belongs to.
            name: at least one character.
            daily_budget: USD per UTC day, 0 for no limit.
            monthly_budget: USD per UTC month, 0 for no limit.
            rate_limit_per_min: calls per UTC minute, at least 1.
            options: see `CallOptions`.

        Raises:
            APIError: with `status_code` 404 if there is no such organisation.

        """
        return self._portal.call(
            lambda: self._async.create_project(
                org_id=org_id,
                name=name,
                daily_budget=daily_budget,
                monthly_budget=monthly_budget,
                rate_limit_per_min=rate_limit_per_min,
                **options,
            )
        )

    def list_projects(
        self, *, org_id: Id | None = None, **options: Unpack[CallOptions]
    ) -> ListResult[ProjectInfo]:
        """List projects (`GET /v1/admin/projects`).

        Args:
            org_id: only list projects of this organisation.
            options: see `CallOptions`.

        """
        return self._portal.call(lambda: self._async.list_projects(org_id=org_id, **options))

    def org_metrics(
        self,
        org_id: Id,
        *,
        range: str | None = None,
        start: datetime | str | None = None,
        end: datetime | str | None = None,
        group_by: str | None = None,
        granularity: str | None = None,
        **options: Unpack[CallOptions],
    ) -> MetricsResponse:
        """Return an organisation's usage (`GET /v1/admin/orgs/{org_id}/metrics`).

        Args:
            org_id: the id of the organisation.
            range: "1h", "24h", "7d" or "30d" up to now; default "24h", unless `start` is given.
            start: instead of `range`: a datetime with a time zone, or ISO-8601 text with an offset.
            end: same types, after `start`; default now.
            group_by: "provider", "model", "user" or "status": fills `breakdown`, up to 100 rows.
            granularity: of `timeseries`: "minute", "hour" or "day"; default by the length of the window.
            options: see `CallOptions`.

        Raises:
            APIError: with `status_code` 404 if there is no such organisation.

        """
        return self._portal.call(
            lambda: self._async.org_metrics(
                org_id,
                range=range,
                start=start,
                end=end,
                group_by=group_by,
                granularity=granularity,
                **options,
            )
        )


_homes.settle(__name__)
