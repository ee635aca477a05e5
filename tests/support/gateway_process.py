"""The local gateway in a process of its own, so that every descriptor and task of this one is the client's."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

_MAIN = """
import sys
from omnigate.testing import LocalGateway
with LocalGateway() as gateway:
    print(gateway.url, gateway.api_key, gateway.admin_key, flush=True)
    sys.stdin.read()
"""


class GatewayProcess(NamedTuple):
    """Where it is, and who may use it."""

    url: str
    api_key: str
    admin_key: str


@contextmanager
def gateway_process() -> Iterator[GatewayProcess]:
    """Serve until the block is left."""
    command = [sys.executable, "-c", _MAIN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield GatewayProcess(*process.stdout.readline().split())
        finally:
            process.stdin.close()
