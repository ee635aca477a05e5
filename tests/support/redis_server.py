"""A real Redis of the tests' own, on a unix domain socket; tests that need one skip where there is none."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_START_SECONDS = 20


class RedisServer:
    """A Redis in its own process.

    Attributes:
        url: its URL.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "redis.sock"
        self.url = f"unix://{self._path}"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        import redis

        command = ["redis-server", "--port", "0", "--unixsocket", str(self._path), "--save", "", "--dir", "."]
        with open(self._directory / "log", "ab") as log:
            self._process = subprocess.Popen(command, cwd=self._directory, stdout=log, stderr=log)
        end = time.monotonic() + _START_SECONDS
        with redis.Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.exceptions.ConnectionError:
                    assert time.monotonic() < end, (self._directory / "log").read_text()
                    time.sleep(0.02)

    def kill(self) -> None:
        """End it as `kill -9` does: nothing is saved."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """Run a Redis until the block ends; skip the test if there is none."""
    pytest.importorskip("redis", reason="the extra `redis` is not installed")
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    with tempfile.TemporaryDirectory(prefix="omnigate-redis-") as directory:  # a short path
        server = RedisServer(Path(directory))
        server.start()
        try:
            yield server
        finally:
            server.kill()
