"""A command in a terminal of its own: a pty whose screen is kept by a terminal emulator."""

import errno
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import pyte

WAIT_SECONDS = 30


class Terminal:
    """A running command, and what its terminal shows.

    Args:
        command: the command.
        columns: the terminal's width.
        lines: its height.
        environment: environment variables, in addition to those of this process.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        columns: int = 80,
        lines: int = 50,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.screen = pyte.Screen(columns, lines)
        self.screen.write_process_input = self.type  # what a terminal answers when it is asked for its cursor
        self.raw = b""
        self._stream = pyte.ByteStream(self.screen)
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

        def lead() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C reaches the command as a signal

        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | (environment or {}),
            preexec_fn=lead,
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_SECONDS)
        os.close(self._master)

    @property
    def lines(self) -> list[str]:
        """Return the lines of the screen that are not empty."""
        return [line.rstrip() for line in self.screen.display if line.strip()]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> None:
        """Read until the screen shows a text."""
        end = time.monotonic() + WAIT_SECONDS
        while text not in self.text:
            if not self._read(end - time.monotonic()):
                raise AssertionError(f"{text!r} is not on the screen:\n{self.text}")

    def wait_for_prompt(self) -> None:
        """Read until a conversation waits for a question."""
        end = time.monotonic() + WAIT_SECONDS
        while not self.lines or self.lines[-1] != ">":
            if not self._read(end - time.monotonic()):
                raise AssertionError(f"there is no prompt on the screen:\n{self.text}")

    def wait(self) -> int:
        """Read until the command has ended, and return its exit code."""
        end = time.monotonic() + WAIT_SECONDS
        while self._read(end - time.monotonic()):
            pass
        return self.process.wait(max(0.1, end - time.monotonic()))

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.type("\x03")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def _read(self, seconds: float) -> bool:
        """Read what comes within some seconds; return False at the end, or if nothing came."""
        ready, _, _ = select.select([self._master], [], [], max(0.0, seconds))
        if not ready:
            return False
        try:
            data = os.read(self._master, 65_536)
        except OSError as error:
            if error.errno != errno.EIO:  # EIO: the command has ended
                raise
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)
