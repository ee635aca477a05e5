"""A server on loopback in threads of its own, whose every byte a test decides, for clients that block theirs."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from .raw_server import chat_bytes


class Connection:
    """The server's side of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._pending = b""

    def request(self) -> bytes:
        """Read one request with a Content-Length; raise EOFError at the end."""
        while b"\r\n\r\n" not in self._pending:
            self._receive()
        head, _, body = self._pending.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        while len(body) < length:
            self._receive()
            body = self._pending[len(head) + 4 :]
        self._pending = body[length:]
        return body[:length]

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self._socket.sendall(data)

    def send_chunk(self, text: bytes) -> None:
        """Send one chunk of a chunked body; the empty one ends it."""
        self.send(b"%x\r\n%b\r\n" % (len(text), text))

    def until_closed(self) -> None:
        """Wait until the client closes the connection."""
        with suppress(EOFError, ConnectionError):
            while True:
                self._receive()

    def _receive(self) -> None:
        data = self._socket.recv(65_536)
        if not data:
            raise EOFError
        self._pending += data


Handler = Callable[[Connection], None]


def answering(connection: Connection) -> None:
    """Answer every request with a chat."""
    while True:
        connection.request()
        connection.send(chat_bytes())


class ThreadServer:
    """Serves each connection with `handler`, in a thread; counts connections."""

    def __init__(self, handler: Handler = answering) -> None:
        self.accepted = 0
        self.open = 0
        self._handler = handler
        self._changed = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def until_open(self, count: int) -> None:
        """Wait until so many connections are open."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.open == count, 10), self.open

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._changed:
                self.accepted += 1
                self.open += 1
            self._sockets.append(sock)
            thread = threading.Thread(target=self._serve, args=(sock,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, suppress(EOFError, ConnectionError):
            self._handler(Connection(sock))
        with self._changed:
            self.open -= 1
            self._changed.notify_all()
