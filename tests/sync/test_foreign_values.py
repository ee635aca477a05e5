"""The sync client and the local gateway take values of other libraries as Python's own."""

import enum

import numpy

from omnigate import Client
from omnigate.testing import LocalGateway


class Setting(str, enum.Enum):  # noqa: UP042 - whose `str()` is not its text
    BACKEND = "trio"
    HOST = "127.0.0.1"


def test_a_client_and_a_gateway_take_settings_of_other_types() -> None:
    with LocalGateway(
        host=Setting.HOST,
        rate_limit_per_min=numpy.int64(7),
        rate_window_seconds=numpy.int32(60),
        latency_seconds=numpy.float32(0),
    ) as gateway:
        project = gateway.create_project(rate_limit_per_min=numpy.int64(5), daily_budget=numpy.float64(2))
        with Client(project.api_key, base_url=gateway.url, backend=Setting.BACKEND) as client:  # type: ignore[arg-type]
            assert client.me().rate_limit_per_min == 5
            assert client.me().daily_budget == 2
            answer = client.chat(model="gpt-4o", messages="x")
            client.api_key = client.signup(email="a@b.test").api_key
            assert client.me().rate_limit_per_min == 7
    assert dict(answer)["content"] == answer.content
