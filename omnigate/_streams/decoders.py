r"""The two stream protocols as sans-I/O decoders: bytes in, text or events out. No socket, no clock.

The text protocol (`POST /v1/chat`) is bare UTF-8 text. A failure arrives inside it, as `\\n[error] ` and a
message up to the end of the body. Proxies split the bytes anywhere, so the bytes so far may end within a
character or within the sentinel. The rule: pass everything on, except (1) an incomplete UTF-8 sequence and
(2) a tail that is a prefix of the sentinel. Both are a few bytes at most, and are decided by the next bytes
or the end of the body.

The event protocol (`POST /v1/chat/completions`) is Server-Sent Events as the HTML standard defines their
parsing (section 9.2.6): lines end in LF, CRLF or CR, a blank line ends an event, a line that starts with a
colon is a comment. Only `data` fields matter here.

Both bound their buffers: a misbehaving gateway can fail a call, but not exhaust memory.
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
        """Return the text that is certain so far; none after the sentinel."""
        return self._feed(self._decoder.decode(data))

    def finish(self) -> str:
        """Return the rest of the text; at the end of the body, held-back bytes are text."""
        text = self._feed(self._decoder.decode(b"", True)) + self._held
        self._held = ""
        return text

    @property
    def message(self) -> str | None:
        """The message after the sentinel, as far as it has arrived; None before the sentinel."""
        return None if self._message is None else "".join(self._message)

    @property
    def overflowed(self) -> bool:
        """Whether the message exceeds `MAX_MESSAGE_CHARACTERS`, and was cut there."""
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


def is_end_mark(event: bytes) -> bool:
    """Return whether an event is the end mark; proxies add blanks to it."""
    return event.strip(b" \t") == b"[DONE]"


class EventTooLongError(ValueError):
    """An event exceeds `MAX_EVENT_BYTES`; `events` are the complete ones before it."""

    def __init__(self, events: list[bytes]) -> None:
        super().__init__(f"an event is longer than {MAX_EVENT_BYTES:,} bytes")
        self.events = events


class EventDecoder:
    """Decodes Server-Sent Events into the bytes of their `data` fields."""

    __slots__ = ("_data", "_line", "_size", "_started", "_swallow_lf")

    def __init__(self) -> None:
        self._line = bytearray()  # an incomplete line
        self._data: list[bytes] = []  # the data lines of the incomplete event
        self._size = 0  # of both
        self._started = False
        self._swallow_lf = False  # the last byte was a CR: a following LF belongs to it

    def feed(self, data: bytes) -> list[bytes]:
        """Return the data of the events completed by `data`.

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
        """Return the events completed by the end of the body.

        The standard drops an event that lacks its blank line; a final `[DONE]` counts anyway.
        """
        events: list[bytes] = []
        self._take(bytes(self._line), events)
        self._line.clear()
        self._take(b"", events)
        return [event for event in events if is_end_mark(event)]

    def _take(self, line: bytes, events: list[bytes]) -> None:
        # Counts the raw line, comments included, so that the result does not depend on how the bytes were
        # split.
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
