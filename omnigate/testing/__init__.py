"""A local gateway for tests and demonstrations. Needs the extra `gateway`: `pip install 'omnigate[gateway]'`.

    from omnigate import Client
    from omnigate.testing import LocalGateway

    with LocalGateway() as gateway, Client(gateway.api_key, base_url=gateway.url) as client:
        assert client.chat(model="gpt-4o-mini", messages="hi").content == "echo[gpt-4o-mini]: hi"

With pytest there is a fixture, `omnigate_gateway`.
"""

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

__all__ = [
    "Answer",
    "Cut",
    "Delay",
    "Fault",
    "Garbage",
    "LocalGateway",
    "LocalProject",
    "ProviderFailure",
    "RecordedRequest",
    "Status",
    "StreamFailure",
]

try:
    from omnigate.testing.gateway import LocalGateway, LocalProject
except ImportError as _error:
    if (_error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "pydantic"):
        raise
    raise ImportError(
        f"the local gateway needs {_error.name}: pip install 'omnigate[gateway]'", name=_error.name
    ) from _error
