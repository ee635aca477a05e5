"""Shared by all tests: both event loops, virtual time on request, a clean environment."""

import gc
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import trustme
from hypothesis import HealthCheck, settings

from .support.event_loops import BOTH, backend_of
from .support.virtual_time import waiting_for_threads

# Properties use the same examples in every run. To search longer: HYPOTHESIS_PROFILE=long pytest --timeout=0 …
settings.register_profile(
    "same", derandomize=True, deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("long", deadline=None, max_examples=5_000, suppress_health_check=list(HealthCheck))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_configure() -> None:
    """Let Ctrl-C through even if the tests run in a shell's background, where it is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip virtual time on uvloop, which has its own clock."""
    impossible = {
        item
        for item in items
        if item.get_closest_marker("virtual_time")
        and hasattr(item, "callspec")
        and item.callspec.params.get("anyio_backend") == "asyncio+uvloop"
    }
    if impossible:
        items[:] = [item for item in items if item not in impossible]
        config.hook.pytest_deselected(items=list(impossible))


@pytest.fixture(params=BOTH)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run a test on each event loop; with the mark `virtual_time`, sleeping takes no real time."""
    return backend_of(request)


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> None:
    """Let tests that collect garbage scan only objects younger than their module."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _virtual_time_waits_for_threads() -> Iterator[None]:
    with waiting_for_threads():
        yield


@pytest.fixture(scope="session", autouse=True)
def _few_authorities(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trust one authority by default: reading all those of certifi takes each TLS context 20 ms."""
    path = tmp_path_factory.mktemp("authorities") / "authority.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        yield


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMNIGATE_API_KEY", "OMNIGATE_BASE_URL", "OMNIGATE_ADMIN_KEY", "OMNIGATE_PACER_SECRET"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
