"""A local gateway for tests and demonstrations. Needs the extra `gateway`: `pip install 'omnigate[gateway]'`.

    from omnigate import Client
    from omnigate.testing import LocalGateway

    with LocalGateway() as gateway, Client(gateway.api_key, base_url=gateway.url) as client:
        assert client.chat(model="gpt-4o-mini", messages="hi").content == "echo[gpt-4o-mini]: hi"

The extra is needed to create a gateway, not to import this module.

There are pytest fixtures: `omnigate_gateway` serves one on a free port, `omnigate_gateway_factory` creates
more of them with your settings, and `omnigate_gateway_in_process` is one without a server, for tests in
virtual time, such as under trio's autojump clock.
"""

import typing as _typing

if _typing.TYPE_CHECKING:
    from omnigate.testing.faults import (
        Answer,
        Cut,
        Delay,
        Fault,
        Garbage,
        ProviderFailure,
        RecordedRequest,
        Status,
        StreamFailure,
    )
    from omnigate.testing.gateway import GatewayFactory, GatewaySettings, LocalGateway, LocalProject

__all__ = [
    "Answer",
    "Cut",
    "Delay",
    "Fault",
    "Garbage",
    "GatewayFactory",
    "GatewaySettings",
    "LocalGateway",
    "LocalProject",
    "ProviderFailure",
    "RecordedRequest",
    "Status",
    "StreamFailure",
]


def __getattr__(name: str) -> object:
    """Import the gateway and the faults when they are first used, so that pytest starts fast."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from omnigate.testing import faults, gateway

    globals().update((each, vars(gateway).get(each) or vars(faults)[each]) for each in __all__)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted(__all__)
