"""The file of a batch's items: JSON objects, one per line, in UTF-8.

Any other kind of file (compressed, UTF-16, CSV, a JSON array) is refused before its first item: read line by
line, it would yield only a failed outcome for each newline byte.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from omnigate._wire.structs import decoder_for
from omnigate.exceptions import InvalidArgumentError

_HEAD_BYTES: Final = 4096

_UNPACK: Final = "decompress it first"

_ENCODE: Final = "convert it to UTF-8 first, for example with iconv"

_KINDS: Final = (
    (b"\x1f\x8b", "compressed (gzip)", _UNPACK),
    (b"BZh", "compressed (bzip2)", _UNPACK),
    (b"\xfd7zXZ\0", "compressed (xz)", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd)", _UNPACK),
    (b"\x04\x22\x4d\x18", "compressed (lz4)", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "compressed (7z)", _UNPACK),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack it, or write its rows as JSON lines"),
    (b"PAR1", "a Parquet file", "read it with a library, and pass [{'prompt': text} for text in its column]"),
    (
        b"ARROW1",
        "an Arrow file",
        "read it with a library, and pass [{'prompt': text} for text in its column]",
    ),
    (codecs.BOM_UTF32_LE, "UTF-32 text", _ENCODE),
    (codecs.BOM_UTF32_BE, "UTF-32 text", _ENCODE),
    (codecs.BOM_UTF16_LE, "UTF-16 text", _ENCODE),
    (codecs.BOM_UTF16_BE, "UTF-16 text", _ENCODE),
)
"""First bytes of other kinds of files, what they are, and what to do. UTF-32 comes before UTF-16, since its
byte order mark starts with that of UTF-16."""


class InvalidLine(NamedTuple):
    """A line of a file that is not JSON."""

    error: InvalidArgumentError


def path_of(source: os.PathLike[str] | os.PathLike[bytes]) -> Path:
    """Return a path object as a `pathlib.Path`; one that is a `Path` already keeps its class."""
    return source if isinstance(source, Path) else Path(os.fsdecode(source))


def read_lines(path: Path) -> Iterator[Any]:
    """Yield the items of a batch file: JSON objects, one per line.

    Skips empty lines, and a byte order mark at the start, which editors on Windows add to UTF-8.

    Raises:
        InvalidArgumentError: it is another kind of file.
        OSError: it cannot be read.
    """
    decode = decoder_for(dict[str, Any]).decode
    with path.open("rb") as file:
        _check_kind(path, file.peek(_HEAD_BYTES))
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                yield decode(line)
            except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
                yield InvalidLine(
                    InvalidArgumentError(f"{path.name}, line {number}, is not a JSON object: {error}")
                )


def _check_kind(path: Path, head: bytes) -> None:
    """Refuse a file whose first bytes cannot be those of JSON lines."""
    found = next(((what, hint) for magic, what, hint in _KINDS if head.startswith(magic)), None)
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if found is None and b"\0" in head:
        found = "not text, or UTF-16 without its mark", _ENCODE
    if found is None and text[:1] == b"[":
        found = "one JSON array", "pass json.load(file), or write its items one per line"
    if found is None and text and text[:1] != b"{":
        found = "not JSON lines", "for a CSV file pass list(csv.DictReader(file)), with a column 'prompt'"
    if found is not None:
        what, hint = found
        must = "be a file of JSON objects, one per line, in UTF-8"
        raise InvalidArgumentError(f"requests must {must}; {str(path)!r} is {what} ({hint})")
