"""Serves an ASGI application on loopback with uvicorn in a thread; starting and stopping are time-limited.

The thread runs its own asyncio loop, so that tests under trio can use it, too. Stopping does not wait for
clients: open connections are closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Any, Final, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from omnigate.testing._gateway.connection import TRANSPORT

_START_SECONDS: Final = 10.0

_STOP_SECONDS: Final = 10.0

_TICK_SECONDS: Final = 0.1


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which also passes its transport to the application."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)[TRANSPORT] = self.transport


class Server:
    """A running server."""

    def __init__(self, app: Any, host: str, port: int) -> None:
        """Start serving, and return once the server is ready.

        Raises:
            OSError: the address is not available.
            RuntimeError: it did not start in time.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=2_048)
        # Accepted sockets inherit it; asyncio does not set it on sockets created this way.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port: int = self._socket.getsockname()[1]
        self._app = app
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._started = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="omnigate-local-gateway", daemon=True)
        self._thread.start()
        if not self._started.wait(_START_SECONDS) or self._error is not None:
            raise RuntimeError("the local gateway did not start") from self._error

    def stop(self) -> None:
        """Stop serving, close open connections, and end the thread."""
        with contextlib.suppress(RuntimeError):  # the loop has already ended
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_STOP_SECONDS)
        if self._thread.is_alive():
            raise RuntimeError("the local gateway did not stop")

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - reported by the constructor
            self._error = error
            self._started.set()
        finally:
            self._socket.close()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        config = uvicorn.Config(
            self._app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
        )
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[self._socket])
        await server.on_tick(0)
        self._started.set()
        counter = 0
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _TICK_SECONDS)
            counter += 1
            await server.on_tick(counter)  # sets the Date header once a second
        for listener in server.servers:
            listener.close()
        for task in list(server.server_state.tasks):
            task.cancel()
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        await asyncio.gather(*server.server_state.tasks, return_exceptions=True)
        await asyncio.sleep(0)
