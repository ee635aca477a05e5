"""What the async clients share: construction, closing, and turning a call into a typed result."""

from __future__ import annotations

import os
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import anyio
import anyio.lowlevel

from omnigate.arguments import check_choice, check_moment
from omnigate.attempts import Attempts, Call
from omnigate.exceptions import InvalidArgumentError
from omnigate.meta import DictResult, ListResult, Meta
from omnigate.session import Session
from omnigate.structs import Result

R = TypeVar("R", bound=Result)

_DEFAULT_BASE_URL: Final = "http://localhost:8000"
_CLOSE_SECONDS: Final = 5.0
_RANGES: Final = ("1h", "24h", "7d", "30d")
_GROUPS: Final = ("provider", "model", "user", "status")
_GRANULARITIES: Final = ("minute", "hour", "day")


class BaseAsyncClient:
    """What both async clients are: a session, a way to close it, and what their methods have in common."""

    _session: Session

    @property
    def base_url(self) -> str:
        """The gateway's address, without a trailing slash."""
        return self._session.base_url

    @base_url.setter
    def base_url(self, value: str) -> None:
        self._session.base_url = value

    async def aclose(self) -> None:
        """Close the client and its transport; a second time does nothing.

        What is in flight, or waits to be sent again, fails with `ClientClosedError`.
        """
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await self._session.aclose()
        await anyio.lowlevel.checkpoint()

    async def __aenter__(self) -> Self:
        await anyio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._session!r})"

    async def _fetch(self, kind: type[R], call: Call, begun: Attempts | None = None) -> R:
        response, body, attempts = await self._session.exchange(call, attempts=begun)
        result: R = self._session.decode(kind, response, body, call)
        result._meta = attempts.meta(response)
        return result

    async def _fetch_list(self, kind: type[R], call: Call) -> ListResult[R]:
        response, body, attempts = await self._session.exchange(call)
        items = self._session.decode(list[kind], response, body, call)  # type: ignore[valid-type]
        return list_with_meta(items, attempts.meta(response))

    async def _fetch_dict(self, call: Call, *, accept: int | None = None) -> DictResult[Any]:
        response, body, attempts = await self._session.exchange(call, accept=accept)
        fields = self._session.decode(dict[str, Any], response, body, call)
        return DictResult(fields, meta=attempts.meta(response))


def environment_base_url(base_url: str | None) -> str:
    """Return the gateway's address: the argument, else `$OMNIGATE_BASE_URL`, else the default."""
    return (os.environ.get("OMNIGATE_BASE_URL") or _DEFAULT_BASE_URL) if base_url is None else base_url


def metrics_query(
    range: str | None,
    start: datetime | str | None,
    end: datetime | str | None,
    group_by: str | None,
    granularity: str | None,
) -> dict[str, str]:
    """Return the query of a metrics endpoint (protocol, "Metrics and health")."""
    query: dict[str, str] = {}
    if range is not None and (start is not None or end is not None):
        raise InvalidArgumentError("range is not allowed together with start and end: one or the other")
    if end is not None and start is None:
        raise InvalidArgumentError("end is not allowed without start")
    if start is not None:
        query["from"] = check_moment(start, "start")
        if end is not None:
            query["to"] = check_moment(end, "end")
    else:
        query["range"] = "24h" if range is None else check_choice(range, "range", _RANGES)
    if group_by is not None:
        query["group_by"] = check_choice(group_by, "group_by", _GROUPS)
    if granularity is not None:
        query["granularity"] = check_choice(granularity, "granularity", _GRANULARITIES)
    return query


def list_with_meta(items: list[R], meta: Meta) -> ListResult[R]:
    """Return `items` as a list with `meta`, which each of them gets, too."""
    for item in items:
        item._meta = meta
    return ListResult(items, meta=meta)
