r"""The two stream protocols as sans-I/O decoders: bytes in, text or events out. No socket, no clock.

The text protocol (`POST /v1/chat`) is bare UTF-8 text. A failure arrives inside it, as `\\n[error] ` and
a message up to the end of the body. Proxies split the bytes anywhere, so at any moment the end of what has
arrived may be the beginning of a character or of the sentinel. The rule is: hand on everything, hold back
only (1) an incomplete UTF-8 sequence and (2) a tail that is a beginning of the sentinel. Both are at most
a few bytes, and what comes next, or the end of the body, decides about them.

The event protocol (`POST /v1/chat/completions`) is Server-Sent Events as the HTML standard defines their
parsing (section 9.2.6): lines end in LF, CRLF or CR, a blank line ends an event, a line that starts with a
colon is a comment. Only `data` fields matter here.

Neither may buffer without a bound: a gateway gone mad can make a call fail, but not fill the memory.
"""

from __future__ import annotations

import codecs
import re
from typing import Final

SENTINEL: Final = "\n[error] "

MAX_MESSAGE_CHARACTERS: Final = 1 << 20

MAX_EVENT_BYTES: Final = 4 << 20

_UTF8 = codecs.getincrementaldecoder("utf-8")

_LINE_END = re.compile(rb"\r\n|\n|\r")


class TextDecoder:
    """Decodes the text protocol."""

    __slots__ = ("_decoder", "_held", "_message", "_message_length")

    def __init__(self) -> None:
        self._decoder = _UTF8("replace")
        self._held = ""
        self._message: list[str] | None = None
        self._message_length = 0

    def feed(self, data: bytes) -> str:
        """Return the text that is certain after `data`; after the sentinel there is none."""
        return self._feed(self._decoder.decode(data))

    def finish(self) -> str:
        """Return the rest of the text: the body has ended, so what was held back is text."""
        text = self._feed(self._decoder.decode(b"", True)) + self._held
        self._held = ""
        return text

    @property
    def message(self) -> str | None:
        """The message after the sentinel, as far as it has arrived; None while there is no sentinel."""
        return None if self._message is None else "".join(self._message)

    @property
    def overflowed(self) -> bool:
        """Whether the message is longer than `MAX_MESSAGE_CHARACTERS`: no more of it is kept."""
        return self._message_length > MAX_MESSAGE_CHARACTERS

    def _feed(self, text: str) -> str:
        if self._message is not None:
            if not self.overflowed:
                self._message.append(text[: MAX_MESSAGE_CHARACTERS - self._message_length])
                self._message_length += len(text)
            return ""
        if self._held:
            text = self._held + text
            self._held = ""
        newline = text.rfind("\n")
        if newline < 0:
            return text
        start = text.find(SENTINEL)
        if start >= 0:
            self._message = []
            self._feed(text[start + len(SENTINEL) :])
            return text[:start]
        if SENTINEL.startswith(text[newline:]):
            self._held = text[newline:]
            return text[:newline]
        return text


class EventTooLongError(ValueError):
    """An event exceeds `MAX_EVENT_BYTES`; `events` are those that were complete before it."""

    def __init__(self, events: list[bytes]) -> None:
        super().__init__(f"an event is longer than {MAX_EVENT_BYTES:,} bytes")
        self.events = events


class EventDecoder:
    """Decodes Server-Sent Events into the bytes of their `data` fields."""

    __slots__ = ("_data", "_line", "_size", "_started", "_swallow_lf")

    def __init__(self) -> None:
        self._line = bytearray()  # the beginning of a line whose end has not arrived
        self._data: list[bytes] = []  # the data lines of the event that has not ended
        self._size = 0  # of both
        self._started = False
        self._swallow_lf = False  # the last byte was a CR: an LF that follows belongs to it

    def feed(self, data: bytes) -> list[bytes]:
        """Return the data of the events that `data` completes.

        Raises:
            EventTooLongError: an event exceeds `MAX_EVENT_BYTES`.

        """
        if self._swallow_lf and data:
            self._swallow_lf = False
            if data.startswith(b"\n"):
                data = data[1:]
        if b"\r" in data:
            self._swallow_lf = data.endswith(b"\r")
            lines = _LINE_END.split(data)
        else:
            lines = data.split(b"\n")
        last = lines.pop()
        events: list[bytes] = []
        if lines:
            self._line += lines[0]
            lines[0] = bytes(self._line)
            self._line.clear()
            for line in lines:
                self._take(line, events)
        self._line += last
        if self._size + len(self._line) > MAX_EVENT_BYTES:
            raise EventTooLongError(events)
        return events

    def finish(self) -> list[bytes]:
        """Return what the end of the body completes.

        The standard drops an event without its blank line; a final `[DONE]` is taken all the same.
        """
        events: list[bytes] = []
        self._take(bytes(self._line), events)
        self._line.clear()
        self._take(b"", events)
        return [event for event in events if event == b"[DONE]"]

    def _take(self, line: bytes, events: list[bytes]) -> None:
        # The line as it came, whatever is in it: so it makes no difference whether it came in one piece.
        if self._size + len(line) > MAX_EVENT_BYTES:
            raise EventTooLongError(events)
        if not self._started:
            self._started = True
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line:
            if self._data:
                events.append(b"\n".join(self._data))
                self._data = []
                self._size = 0
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            value = value[1:] if value.startswith(b" ") else value
            self._data.append(value)
            self._size += len(value) + 1
