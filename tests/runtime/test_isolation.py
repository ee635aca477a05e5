"""The check whether the caller is cancelled."""

import anyio
import anyio.lowlevel
import pytest

from omnigate._runtime.isolation import cancellation_check

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("has_backend", [True, False], ids=["the backend's", "anyio's"])
async def test_the_check_raises_where_the_caller_is_cancelled_and_not_behind_a_shield(
    has_backend: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_backend:  # as in a release of anyio that has another inside
        monkeypatch.delattr(anyio.lowlevel, "get_async_backend")
    check = cancellation_check()
    monkeypatch.undo()
    await check()
    passed: list[str] = []
    with anyio.CancelScope() as scope:
        await check()
        scope.cancel()
        with anyio.CancelScope(shield=True):
            await check()
            passed.append("shielded")
        with anyio.CancelScope():
            await check()
            passed.append("cancelled")
    assert scope.cancelled_caught
    assert passed == ["shielded"]
    await check()
