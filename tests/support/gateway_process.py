"""The local gateway in its own process, so that every descriptor and task in this one is the client's."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from omnigate.testing import LocalGateway, Status

OVERLOADED = "a prompt for which there is never an answer"

_MAIN = """
import sys
from omnigate.testing import LocalGateway
from tests.support.gateway_process import refuse_overloaded
with LocalGateway() as gateway:
    refuse_overloaded(gateway)
    print(gateway.url, gateway.api_key, gateway.admin_key, flush=True)
    sys.stdin.read()
"""


class GatewayProcess(NamedTuple):
    """The address of the gateway and its keys."""

    url: str
    api_key: str
    admin_key: str


def refuse_overloaded(gateway: LocalGateway) -> None:
    """Make the gateway answer 500 whenever the prompt is `OVERLOADED`."""
    wanted = OVERLOADED.encode()
    gateway.script(
        Status(500, {"detail": "OpenAI error 500: overloaded"}),
        times=1_000_000,
        when=lambda request: wanted in request.body,
    )


@contextmanager
def gateway_process() -> Iterator[GatewayProcess]:
    """Run the gateway until the block ends."""
    command = [sys.executable, "-c", _MAIN]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield GatewayProcess(*process.stdout.readline().split())
        finally:
            process.stdin.close()
