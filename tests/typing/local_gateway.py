"""Only type-checked, never run: what a type checker must know of `omnigate.testing`."""

from typing import Unpack, assert_type

import httpx

from omnigate import AsyncClient
from omnigate.testing import GatewayFactory, GatewaySettings, LocalGateway


def fixtures(omnigate_gateway_factory: GatewayFactory, omnigate_gateway_in_process: LocalGateway) -> None:
    gateway = omnigate_gateway_factory(rate_limit_per_min=5, latency_seconds=0.1, providers=["openai"])
    assert_type(gateway, LocalGateway)
    assert_type(omnigate_gateway_factory(serve=False), LocalGateway)
    transport = omnigate_gateway_in_process.asgi_transport()
    assert_type(transport, httpx.ASGITransport)
    AsyncClient(omnigate_gateway_in_process.api_key, transport=transport)


def passed_on(**options: Unpack[GatewaySettings]) -> LocalGateway:
    return LocalGateway(**options)


def refused(omnigate_gateway_factory: GatewayFactory) -> None:
    omnigate_gateway_factory(rate_limit=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    omnigate_gateway_factory(host=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
