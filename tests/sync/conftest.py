"""The event loops of the portal's thread, as `Client(backend=)` names them. Blocking one fails a test here too."""

from typing import Any

import pytest

from ..support.event_loops import BOTH, nothing_blocks

__all__ = ["nothing_blocks"]


@pytest.fixture(params=BOTH)
def backend(request: pytest.FixtureRequest) -> Any:
    return request.param
