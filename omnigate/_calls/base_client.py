"""What the async clients share: construction, closing, and turning a call into a typed result."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final, Self

import anyio
import anyio.lowlevel

from omnigate._calls.attempts import Attempts, Call
from omnigate._calls.session import Session
from omnigate._wire.results import DictResult, ListResult, R, list_with_meta

_CLOSE_SECONDS: Final = 5.0


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
