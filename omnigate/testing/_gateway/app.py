"""The local gateway as an ASGI application: routes, errors, request ids, and scripted faults."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omnigate.testing._gateway import account_endpoints as accounts
from omnigate.testing._gateway import chat
from omnigate.testing._gateway.account_endpoints import Endpoint
from omnigate.testing._gateway.answers import (
    UNHANDLED,
    BadRequestError,
    UnhandledError,
    answer_json,
    unhandled,
)
from omnigate.testing._gateway.connection import hang_up
from omnigate.testing._gateway.state import State, recorded, request_id
from omnigate.testing.faults import Cut, Delay, Fault, Garbage, RecordedRequest, Scripts, Status

_ROUTES: Final[Sequence[tuple[str, str, Endpoint]]] = (
    ("POST", "/v1/chat", chat.chat),
    ("POST", "/v1/chat/completions", chat.completions),
    ("GET", "/v1/models", accounts.models),
    ("GET", "/v1/models/{model_id:path}", accounts.model),
    ("GET", "/v1/metrics", accounts.metrics),
    ("POST", "/v1/signup", accounts.signup),
    ("POST", "/v1/keys", accounts.set_provider_key),
    ("POST", "/v1/keys/api", accounts.create_api_key),
    ("GET", "/v1/keys/api", accounts.list_api_keys),
    ("DELETE", "/v1/keys/api/{key_id}", accounts.revoke_api_key),
    ("GET", "/v1/me", accounts.me),
    ("GET", "/health", accounts.health),
    ("GET", "/health/live", accounts.live),
    ("GET", "/health/ready", accounts.ready),
    ("GET", "/version", accounts.version),
    ("GET", "/metrics", accounts.prometheus),
    ("POST", "/v1/admin/orgs", accounts.create_org),
    ("GET", "/v1/admin/orgs", accounts.list_orgs),
    ("GET", "/v1/admin/orgs/{org_id}/metrics", accounts.org_metrics),
    ("POST", "/v1/admin/projects", accounts.create_project),
    ("GET", "/v1/admin/projects", accounts.list_projects),
)


class GatewayApp:
    """The ASGI application."""

    def __init__(self, state: State, scripts: Scripts, requests: deque[RecordedRequest]) -> None:
        self._state = state
        self._scripts = scripts
        self._requests = requests
        self._app = Starlette(
            routes=[
                _OneMethodRoute(method, path, self._bind(endpoint)) for method, path, endpoint in _ROUTES
            ],
            exception_handlers={HTTPException: _http_error},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"the local gateway serves HTTP only, not {scope['type']}")
        body = await _read(receive)
        scope = dict(scope)
        request = Request(scope)
        seen = recorded(request, body)
        self._requests.append(seen)
        faults = self._scripts.take(seen)
        scope["omnigate.faults"] = faults
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        sender = _Sender(scope, receive, send, faults, request_id(request))
        try:
            if await _early(scope, receive, faults, replay, sender):
                return
            await self._app(scope, replay, sender)
        except _CutError:
            pass

    def _bind(self, endpoint: Endpoint) -> Any:
        state = self._state

        async def handle(request: Request) -> ASGIApp:
            try:
                return await endpoint(state, request)
            except UnhandledError:
                return unhandled()
            except BadRequestError as error:
                try:
                    return answer_json({"detail": error.detail}, error.status, error.headers)
                except UnhandledError:  # the detail quotes a value that is not JSON
                    return unhandled()

        return handle


class _OneMethodRoute(Route):
    """A route for one method only; starlette's GET routes also answer HEAD, the gateway's with a 405."""

    def __init__(self, method: str, path: str, endpoint: Callable[[Request], Awaitable[ASGIApp]]) -> None:
        super().__init__(path, endpoint, methods=[method])
        self.methods = {method}


class _CutError(Exception):
    """A scripted cut has happened."""


class _Sender:
    """Sends a response, adds its request id, and cuts it off if a script says so."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, faults: Sequence[Fault], request_id: str
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._request_id = request_id.encode("latin-1", "replace")
        cut = next((fault for fault in faults if isinstance(fault, Cut)), None)
        self._left = None if cut is None else cut.after_bytes or 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            names = {name for name, _ in headers}
            if UNHANDLED in names:
                headers = [(name, value) for name, value in headers if name != UNHANDLED]
            elif b"x-request-id" not in names:
                headers.append((b"x-request-id", self._request_id))
            message = {**message, "headers": headers}
        elif self._left is not None:
            body = message.get("body", b"")
            if len(body) > self._left or not message.get("more_body", False):
                await self._send(
                    {"type": "http.response.body", "body": body[: self._left], "more_body": True}
                )
                await hang_up(self._scope, self._receive)
                raise _CutError
            self._left -= len(body)
        await self._send(message)


async def _early(
    scope: Scope, receive: Receive, faults: Sequence[Fault], replay: Receive, send: Send
) -> bool:
    """Apply a script that replaces the answer, and return whether there was one."""
    for fault in faults:
        if isinstance(fault, Delay):
            await anyio.sleep(fault.seconds)
        elif isinstance(fault, Status):
            await _status_response(fault)(scope, replay, send)
            return True
        elif isinstance(fault, Garbage):
            await hang_up(scope, receive, fault.data)
            return True
        elif isinstance(fault, Cut) and fault.after_bytes is None:
            await hang_up(scope, receive)
            return True
    return False


def _status_response(fault: Status) -> Response:
    if isinstance(fault.body, str | bytes):
        return Response(fault.body, fault.status, dict(fault.headers))
    return Response(json.dumps(fault.body), fault.status, dict(fault.headers), "application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return answer_json({"detail": error.detail}, error.status_code, error.headers)


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return bytes(body)
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)
