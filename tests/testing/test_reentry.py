"""A local gateway that is scripted by a program whose signal handlers call it."""

from typing import Any

from omnigate import Client
from omnigate.testing import LocalGateway
from omnigate.testing.faults import Delay

from ..support.reentry import everywhere

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}


def test_a_signal_handler_may_call_the_gateway_anywhere_while_it_is_scripted() -> None:
    answers: list[str] = []
    with LocalGateway() as gateway, Client(gateway.api_key, base_url=gateway.url) as client:
        client.chat(**HELLO)
        for visit in everywhere(lambda: answers.append(client.chat(**HELLO).content), step=2):
            with visit:
                gateway.script(Delay(0.0))
                assert len(gateway.pending_scripts) <= 1
                gateway.clear_scripts()
        assert gateway.pending_scripts == []
    assert len(answers) > 10
