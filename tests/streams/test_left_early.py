"""Streams that are left early, against the local gateway: what was used is in its metrics."""

from typing import Any

import anyio
import pytest

from omnigate import AsyncClient, Client
from omnigate.testing import LocalGateway

pytestmark = pytest.mark.anyio

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}
TIMES = 5


async def test_a_raw_stream_left_at_its_last_chunk_keeps_the_gateways_usage_record() -> None:
    with LocalGateway(chunk_delay_seconds=0.001) as gateway, anyio.fail_after(30):
        async with AsyncClient(gateway.api_key, base_url=gateway.url) as client:
            for last in ("usage", "finish_reason"):
                for _ in range(TIMES):
                    async with client.completions_stream(**HELLO, include_usage=True) as stream:
                        async for chunk in stream:
                            if chunk.get("usage") or (
                                last == "finish_reason" and chunk["choices"][0]["finish_reason"]
                            ):
                                break
            assert (await client.metrics(range="1h")).totals.requests == 2 * TIMES


def test_a_sync_raw_stream_left_at_its_last_chunk_keeps_the_gateways_usage_record() -> None:
    with (
        LocalGateway(chunk_delay_seconds=0.001) as gateway,
        Client(gateway.api_key, base_url=gateway.url) as client,
    ):
        for _ in range(TIMES):
            with client.completions_stream(**HELLO, include_usage=True) as stream:
                for chunk in stream:
                    if chunk.get("usage"):
                        break
        assert client.metrics(range="1h").totals.requests == TIMES
