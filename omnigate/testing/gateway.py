"""`LocalGateway`: a whole OmniGate gateway in memory, for demonstrations and tests."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypedDict, Unpack, cast, get_args

import anyio
import anyio.to_thread
import httpx

from omnigate._runtime.extras import extra
from omnigate._wire.arguments import check_budget, check_key
from omnigate._wire.checks import check_callable, check_integer, check_number, check_text, one_of, refusal
from omnigate._wire.redaction import mask
from omnigate.testing._clocks import refuse_autojump, running_trio_clock
from omnigate.testing._gateway.accounts import new_key
from omnigate.testing._gateway.limits import RateLimiter
from omnigate.testing.faults import Fault, RecordedRequest, Script, Scripts

if TYPE_CHECKING:
    from omnigate.testing._gateway.app import GatewayApp
    from omnigate.testing._gateway.server import Server

DEFAULT_PROVIDERS: Final = ("openai", "anthropic", "gemini")

_RECORDED_REQUESTS: Final = 10_000

_ALL_PROVIDERS: Final = (*DEFAULT_PROVIDERS, "azure")

HIGH_LIMIT: Final = 1_000_000_000
"""As good as no limit."""

_API_KEY: Final = re.compile(r"llmg_[A-Za-z0-9_-]{7,}")  # its public prefix is its first 12 characters


@dataclass(frozen=True)
class LocalProject:
    """A ready-to-use project of a local gateway."""

    api_key: str = field(repr=False)
    project_id: str
    org_id: str


class GatewaySettings(TypedDict, total=False):
    """The keyword arguments of `LocalGateway`, for functions that pass them on."""

    host: str
    port: int
    rate_limit_per_min: int
    rate_window_seconds: int
    admin_key: str | None
    clock: Callable[[], float]
    latency_seconds: float
    chunk_delay_seconds: float
    usage_delay_seconds: float
    providers: Iterable[str]
    fail_rate: float
    seed: int | None
    api_key: str | None


class GatewayFactory(Protocol):
    """The type of the pytest fixture `omnigate_gateway_factory`, for annotations."""

    def __call__(self, *, serve: bool = True, **options: Unpack[GatewaySettings]) -> LocalGateway:
        """Create a local gateway, and serve it until the test ends.

        Args:
            serve: False for a gateway without a server, to be called through `gateway.asgi_transport()`. Its
                windows then follow the event loop's clock, real or virtual, unless `clock` is given.
            options: the settings of `LocalGateway`, such as `rate_limit_per_min` and `latency_seconds`.

        Raises:
            ValueError: a setting is out of range.
            RuntimeError: it would be served under trio's autojump clock.
        """
        ...


class LocalGateway:
    """An OmniGate gateway that implements the whole protocol in memory. Nothing leaves the machine.

    Use it as `with LocalGateway() as gateway:` or with `async with`, under asyncio or trio, and point a
    client at `gateway.url` with `gateway.api_key`. Without a server, pass
    `transport=gateway.asgi_transport()` to an `AsyncClient`: calls then stay in its event loop. Models echo
    the prompt; a token is a word.

    A served gateway does not work under trio's autojump clock (`MockClock(autojump_threshold=0)`,
    `autojump_clock`): the clock jumps while a client waits for its socket, so every call times out. Entering
    one there is refused. `asgi_transport()` does work.

    Args:
        host: address to listen on.
        port: port to listen on, 0 for any free port.
        rate_limit_per_min: calls per window for projects created by sign-up, at least 1.
        rate_window_seconds: length of a window, 1 to 60; the real gateway's is 60.
        admin_key: the admin key; random if omitted.
        clock: returns the seconds since 1970, for windows, budgets and records.
        latency_seconds: how long a model takes to answer.
        chunk_delay_seconds: pause between the chunks of a stream.
        usage_delay_seconds: how long writing a stream's usage record takes, between its text and its end.
        providers: the providers that the project of `api_key` has keys for: "openai", "anthropic", "gemini",
            "azure"; () to see how calls fail without a provider key.
        fail_rate: the share of the providers' calls that fail, from 0 to 1, with a 500, 503 or 429.
        seed: makes these failures the same in every run, as far as the calls come in the same order; None for
            others each time.
        api_key: a fixed key for the attribute `api_key`: `llmg_` and at least 7 letters, digits, "-" or "_";
            random if omitted.

    Raises:
        ValueError: an argument is out of range.
        ImportError: the extra `gateway` is not installed.
        OSError: the address is not available (raised on entering).
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        rate_limit_per_min: int = 60,
        rate_window_seconds: int = 60,
        admin_key: str | None = None,
        clock: Callable[[], float] = time.time,
        latency_seconds: float = 0.0,
        chunk_delay_seconds: float = 0.0,
        usage_delay_seconds: float = 0.0,
        providers: Iterable[str] = DEFAULT_PROVIDERS,
        fail_rate: float = 0.0,
        seed: int | None = None,
        api_key: str | None = None,
    ) -> None:
        check_extra()
        from omnigate.testing._gateway.app import GatewayApp
        from omnigate.testing._gateway.model import Accidents
        from omnigate.testing._gateway.state import State

        host = check_text(host, "host")
        if host.isspace():
            raise refusal("host", host, "be an address to listen on")
        port = check_integer(port, "port", minimum=0, maximum=65_535)
        rate_limit_per_min = check_integer(
            rate_limit_per_min, "rate_limit_per_min", minimum=1, maximum=HIGH_LIMIT
        )
        rate_window_seconds = check_integer(rate_window_seconds, "rate_window_seconds", minimum=1, maximum=60)
        latency_seconds = check_number(latency_seconds, "latency_seconds", minimum=0)
        chunk_delay_seconds = check_number(chunk_delay_seconds, "chunk_delay_seconds", minimum=0)
        usage_delay_seconds = check_number(usage_delay_seconds, "usage_delay_seconds", minimum=0)
        fail_rate = check_number(fail_rate, "fail_rate", minimum=0, maximum=1)
        seed = None if seed is None else check_integer(seed, "seed", minimum=0)
        check_callable(clock, "clock", "a callable that returns the seconds since 1970")
        key = check_key(admin_key, "admin_key")
        if key == "":
            raise refusal("admin_key", key, "be text that is not empty, or None for a random one")
        self.admin_key: str = key or new_key().replace("llmg_", "admin_")
        """The key for `AdminClient`."""
        self.requests: deque[RecordedRequest] = deque(maxlen=_RECORDED_REQUESTS)
        """The last 10,000 requests received."""
        self._providers = _check_providers(providers)
        self._host = host
        self._port = port
        self._state = State(
            clock=clock,
            admin_key=self.admin_key,
            rate_limit_per_min=rate_limit_per_min,
            limiter=RateLimiter(rate_window_seconds),
            latency_seconds=latency_seconds,
            chunk_delay_seconds=chunk_delay_seconds,
            usage_delay_seconds=usage_delay_seconds,
            accidents=Accidents(fail_rate, seed),
        )
        self._scripts = Scripts()
        self._server: Server | None = None
        self._project: LocalProject | None = None
        self.app: GatewayApp = GatewayApp(self._state, self._scripts, self.requests)
        """The ASGI application."""
        if api_key is not None:  # it works from the start, unlike a random one, which nobody knows yet
            self._project = self._unlimited_project(api_key)

    @property
    def url(self) -> str:
        """The base URL of the running gateway.

        Raises:
            RuntimeError: it is not running.
        """
        if self._server is None:
            raise RuntimeError("the local gateway is not running: enter it with `with` or `async with`")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._server.port}"

    @property
    def api_key(self) -> str:
        """A valid gateway key; its project has no limits, and keys for the gateway's `providers`."""
        if self._project is None:
            self._project = self._unlimited_project(None)
        return self._project.api_key

    def _unlimited_project(self, api_key: str | None) -> LocalProject:
        return self.create_project(rate_limit_per_min=HIGH_LIMIT, providers=self._providers, api_key=api_key)

    def create_project(
        self,
        *,
        rate_limit_per_min: int = 60,
        daily_budget: Decimal | float | str = 0,
        monthly_budget: Decimal | float | str = 0,
        providers: Iterable[str] = ("openai",),
        api_key: str | None = None,
    ) -> LocalProject:
        """Create a project in an organisation of its own, as an administrator would.

        Args:
            rate_limit_per_min: calls per window, at least 1.
            daily_budget: USD per UTC day, 0 for unlimited.
            monthly_budget: USD per UTC month, 0 for unlimited.
            providers: the providers it has keys for: "openai", "anthropic", "gemini", "azure".
            api_key: its key, `llmg_` and at least 7 letters, digits, "-" or "_", and no other project's;
                random if omitted.

        Raises:
            ValueError: an argument is out of its limits.
        """
        rate_limit_per_min = check_integer(
            rate_limit_per_min, "rate_limit_per_min", minimum=1, maximum=HIGH_LIMIT
        )
        daily, monthly = (
            Decimal(check_budget(value, name))
            for name, value in (("daily_budget", daily_budget), ("monthly_budget", monthly_budget))
        )
        names = _check_providers(providers)
        accounts = self._state.accounts
        key = check_key(api_key, "api_key")
        if key is not None:
            if not _API_KEY.fullmatch(key):
                must = "be 'llmg_' and at least 7 letters, digits, '-' or '_'"
                raise refusal("api_key", key, must, secret=True)
            if accounts.find_key(key) is not None:
                raise refusal("api_key", key, "be no other project's", secret=True)
        now = self._state.now()
        org = accounts.create_org("Local", Decimal(0), Decimal(0), now)
        project, secret = accounts.create_project(
            org, "Default", daily, monthly, rate_limit_per_min, now, key
        )
        project.providers.update(names)
        return LocalProject(secret, project.id, org.id)

    def script(
        self,
        fault: Fault,
        *,
        times: int = 1,
        method: str | None = None,
        path: str | None = None,
        when: Callable[[RecordedRequest], bool] | None = None,
    ) -> None:
        """Script a fault for the next matching requests.

        Args:
            fault: what goes wrong; see `omnigate.testing.faults`.
            times: the number of requests it applies to, at least 1.
            method: apply only to this HTTP method.
            path: apply only to this path.
            when: apply only to requests for which this returns True.

        Raises:
            ValueError: an argument is invalid.
        """
        if not isinstance(cast("Any", fault), Fault):
            kinds = ", ".join(kind.__name__ for kind in get_args(Fault))
            raise refusal("fault", fault, f"be an instance of one of {kinds}", is_type=True)
        method = None if method is None else check_text(method, "method")
        path = None if path is None else check_text(path, "path")
        if when is not None:
            check_callable(when, "when", "a callable that takes a RecordedRequest, or None")
        times = check_integer(times, "times", minimum=1, maximum=HIGH_LIMIT)
        self._scripts.add(Script(fault, times, method, path, when))

    @property
    def pending_scripts(self) -> list[Script]:
        """The scripts that have not expired."""
        return self._scripts.pending()

    def clear_scripts(self) -> None:
        """Remove all scripts."""
        self._scripts.clear()

    def asgi_transport(self) -> httpx.ASGITransport:
        """Return a transport that calls the gateway in-process, without a server or a socket.

        Pass it as `transport=` to an `AsyncClient`. It works under any clock, such as trio's autojump clock.
        Streams arrive whole once they have ended, and a scripted `Cut` or `Garbage` raises the client's
        `ConnectionError` without any bytes: use a served gateway to test these.
        """
        return httpx.ASGITransport(cast("Any", self.app))

    def __enter__(self) -> Self:
        """Start serving.

        Raises:
            RuntimeError: it is already running, or the caller runs under trio's autojump clock.
            OSError: the address is not available.
        """
        if self._server is not None:
            raise RuntimeError("the local gateway is already running")
        refuse_autojump(running_trio_clock())
        from omnigate.testing._gateway.server import Server

        self._server = Server(self.app, self._host, self._port)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    async def __aenter__(self) -> Self:
        refuse_autojump(running_trio_clock())
        return await anyio.to_thread.run_sync(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):  # the server's own time limit bounds it
            await anyio.to_thread.run_sync(self.__exit__, kind, error, traceback)

    def __repr__(self) -> str:
        where = "not serving" if self._server is None else self.url
        key = "" if self._project is None else f", api_key={mask(self._project.api_key)!r}"
        return f"<LocalGateway {where}{key}>"


def check_extra() -> None:
    """Check that the extra `gateway` is installed.

    Raises:
        ImportError: it is not; the message names the missing package.
    """
    with extra("gateway", "the local gateway"):
        import_module("omnigate.testing._gateway.app")
        import_module("omnigate.testing._gateway.server")


def _check_providers(providers: Iterable[str]) -> list[str]:
    must = f"be an iterable, each item {one_of(_ALL_PROVIDERS)}"
    if isinstance(providers, str) or not isinstance(cast("Any", providers), Iterable):
        raise refusal("providers", providers, must, is_type=True)
    names = list(providers)
    if any(name not in _ALL_PROVIDERS for name in names):
        raise refusal("providers", names, must)
    return names
