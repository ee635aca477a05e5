"""The pytest plugin: fixtures with local gateways. It loads without the extra `gateway`; they need it.

Every run of pytest imports it, so it imports the package only when a fixture is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Unpack, cast

import pytest

if TYPE_CHECKING:
    from omnigate.testing.gateway import GatewayFactory, GatewaySettings, LocalGateway

_SERVES = pytest.StashKey[bool]()


@pytest.fixture
def omnigate_gateway_factory(request: pytest.FixtureRequest) -> Iterator[GatewayFactory]:
    """Create local gateways with settings, such as `rate_limit_per_min=5, latency_seconds=0.1`.

    They stop when the test ends. Under trio's autojump clock a served gateway cannot work: use `serve=False`.
    """
    from omnigate.testing._clocks import LoopClock
    from omnigate.testing.gateway import LocalGateway, check_extra

    try:
        check_extra()
    except ImportError as error:
        pytest.fail(str(error), pytrace=False)
    with ExitStack() as running:

        def create(*, serve: bool = True, **options: Unpack[GatewaySettings]) -> LocalGateway:
            if not serve:
                options.setdefault("clock", LoopClock())
                return LocalGateway(**options)
            gateway = running.enter_context(LocalGateway(**options))
            request.node.stash[_SERVES] = True
            return gateway

        yield create


@pytest.fixture
def omnigate_gateway(omnigate_gateway_factory: GatewayFactory) -> LocalGateway:
    """Serve a fresh local gateway for one test: `omnigate_gateway.url`, `.api_key`, `.script(…)`.

    It cannot work under trio's autojump clock; `omnigate_gateway_in_process` can.
    """
    return omnigate_gateway_factory()


@pytest.fixture
def omnigate_gateway_in_process(omnigate_gateway_factory: GatewayFactory) -> LocalGateway:
    """Create a fresh local gateway without a server, for tests in virtual time.

    Use it as `AsyncClient(gateway.api_key, transport=gateway.asgi_transport())`. Its rate-limit windows
    follow the event loop's clock.
    """
    return omnigate_gateway_factory(serve=False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Fail a test that is to run under trio's autojump clock with a served gateway, and say what works."""
    if _SERVES not in item.stash:
        return
    from omnigate.testing._clocks import AUTOJUMP_REFUSED, is_autojump_clock

    if any(map(is_autojump_clock, _clocks(item))):
        pytest.fail(AUTOJUMP_REFUSED, pytrace=False)


def _clocks(item: pytest.Item) -> Iterator[object]:
    """Yield what may be the clock of a test: any fixture (pytest-trio), or an option of anyio's backend."""
    fixtures: dict[str, Any] = getattr(item, "funcargs", {})
    yield from fixtures.values()
    backend = fixtures.get("anyio_backend")
    if isinstance(backend, tuple):
        _, options = cast("tuple[str, dict[str, Any]]", backend)
        yield options.get("clock")
