"""The pytest plugin: a fixture that runs a local gateway. Heavy imports are deferred until it is used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from omnigate.testing.gateway import LocalGateway


@pytest.fixture
def omnigate_gateway() -> Iterator[LocalGateway]:
    """Run a fresh local gateway for one test: `omnigate_gateway.url`, `.api_key`, `.script(…)`."""
    from omnigate.testing.gateway import LocalGateway

    with LocalGateway() as gateway:
        yield gateway
