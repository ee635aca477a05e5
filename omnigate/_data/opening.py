"""Files as streams of UTF-8 bytes: opened, decompressed, and recognised by their first bytes.

The bytes decide about compression, Parquet and encodings, since names are often wrong; the name decides what
text is. Damage and wrong encodings become one error that names the file.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import zlib
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import PurePath
from typing import IO, Any, Final, Literal, NamedTuple, TypeAlias, cast

from omnigate._runtime.extras import extra
from omnigate.exceptions import InvalidArgumentError

Kind: TypeAlias = Literal["jsonl", "json", "csv", "tsv", "parquet"]

KINDS: Final[dict[str, Kind]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}

_COMPRESSED: Final = (".gz", ".bz2", ".xz", ".zst")

_HEAD_BYTES: Final = 4096

_BLOCK_BYTES: Final = 1 << 16

ENCODE: Final = "convert it to UTF-8, or pass open(path, encoding=…, newline='')"

_REFUSED: Final = (
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack it, or save its sheet as CSV"),
    (b"\x04\x22\x4d\x18", "compressed (lz4)", "decompress it first"),
    (b"7z\xbc\xaf\x27\x1c", "compressed (7z)", "decompress it first"),
    (b"ARROW1", "an Arrow file", "pass the table: pyarrow.feather.read_table(path)"),
    (codecs.BOM_UTF32_LE, "UTF-32 text", ENCODE),
    (codecs.BOM_UTF32_BE, "UTF-32 text", ENCODE),
    (codecs.BOM_UTF16_LE, "UTF-16 text", ENCODE),
    (codecs.BOM_UTF16_BE, "UTF-16 text", ENCODE),
)
"""First bytes of what is not read, what it is, and what to do. UTF-32 comes before UTF-16, since its byte
order mark starts with that of UTF-16."""


class Opened(NamedTuple):
    """A file that is being read: its bytes, undone of any compression, and what they are."""

    stream: io.BufferedReader
    kind: Kind
    name: str


class Input:
    """A file to read rows from, by its path or open.

    Args:
        given: the path, or the open file, text or binary; it is read from where it stands, and not closed.

    Attributes:
        name: what messages call it.
        is_repeatable: whether it can be read more than once.
    """

    def __init__(self, given: os.PathLike[Any] | IO[Any]) -> None:
        self._path: str | None = None
        self._file: Any = None
        self._start: int | None = None
        if isinstance(given, os.PathLike):
            self._path = os.fsdecode(given)
            self.name: str = PurePath(self._path).name
            # What is missing, or a folder, is to be found out before anything is sent; a pipe is read once.
            is_pipe = os.path.exists(self._path) and not os.path.isfile(self._path)
            self.is_repeatable: bool = not is_pipe or os.path.isdir(self._path)
            self._told: str = self._path
        else:
            self._file = given
            named = getattr(given, "name", None)
            self.name = PurePath(named).name if isinstance(named, str) and named else "<file>"
            self._told = self.name
            self._start = _position(given)
            self.is_repeatable = self._start is not None

    @contextmanager
    def open(self) -> Generator[Opened]:
        """Open the file; reading within the block raises one clear error for damage.

        Raises:
            InvalidArgumentError: it is another kind of file, damaged, or not in UTF-8.
            OSError: it cannot be opened or read.
        """
        with ExitStack() as stack, self._told_errors():
            raw = stack.enter_context(self._raw())
            stream = _decompressed(raw, stack)
            yield Opened(stream, self._kind(stream), self.name)

    @contextmanager
    def raw(self) -> Generator[io.BufferedReader]:
        """Open the file as it is, without looking at what is in it."""
        with self._raw() as stream:
            yield stream

    def _raw(self) -> io.BufferedReader:
        if self._path is not None:
            try:
                return io.BufferedReader(io.FileIO(self._path), _BLOCK_BYTES)
            except IsADirectoryError:
                raise self._refusal("a folder", "for the files in it, pass Path(…, '*.csv')") from None
        if self._start is not None:
            self._file.seek(self._start)
        return io.BufferedReader(_Borrowed(self._file), _BLOCK_BYTES)

    def _kind(self, stream: io.BufferedReader) -> Kind:
        head = stream.peek(_HEAD_BYTES)
        if head.startswith(b"PAR1"):
            return "parquet"
        for magic, what, hint in _REFUSED:
            if head.startswith(magic):
                raise self._refusal(what, hint)
        named = kind_named(self.name)
        if named == "parquet":
            raise self._refusal("not a Parquet file: damaged, or of another kind", "name it by what it is")
        if b"\0" in head:
            raise self._refusal("not text, or UTF-16 without its mark", ENCODE)
        text = head.removeprefix(codecs.BOM_UTF8).lstrip()
        if text[:1] == b"{":
            if named in ("csv", "tsv"):
                raise self._refusal(f"named .{named} and has JSON in it", "name it .jsonl")
            return "jsonl"
        if text[:1] == b"[" and named not in ("csv", "tsv"):
            return "json"
        if named in ("csv", "tsv") or not text:
            return named or "jsonl"
        if named is not None:
            raise self._refusal("not JSON", "name a file .csv or .tsv if it is one")
        if self._path is None and not PurePath(self.name).suffix:
            return "csv"  # with a wrong header, unless it is one, which is refused before anything is sent
        hint = "name it .csv or .tsv, if it is one"
        raise self._refusal("of no kind that is known: JSON lines, a JSON array, CSV, TSV or Parquet", hint)

    def _refusal(self, what: str, hint: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"requests: {self._told!r} is {what} ({hint})")

    @contextmanager
    def _told_errors(self) -> Generator[None]:
        try:
            yield
        except UnicodeDecodeError as error:
            what = f"not UTF-8 (the byte 0x{error.object[error.start]:02x} cannot be read)"
            raise self._refusal(what, ENCODE) from None
        except UnicodeEncodeError:
            raise self._refusal("not valid text (lone surrogates)", ENCODE) from None
        except Exception as error:
            if not _is_damage(error):
                raise
            raise InvalidArgumentError(
                f"requests: {self._told!r} is damaged or truncated: {error}"
            ) from error


def kind_named(name: str) -> Kind | None:
    """Return what a file is by its name, or None."""
    path = PurePath(name.lower())
    while path.suffix in _COMPRESSED:
        path = path.with_suffix("")
    return KINDS.get(path.suffix)


class _Borrowed(io.RawIOBase):
    """Bytes of somebody else's open file, binary or text; closing it leaves the file open."""

    def __init__(self, file: IO[Any]) -> None:
        self._file = file
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        room = len(buffer)
        if not self._rest:
            read: object = self._file.read(room)
            self._rest = read.encode() if isinstance(read, str) else bytes(cast("bytes", read or b""))
        part, self._rest = self._rest[:room], self._rest[room:]
        buffer[: len(part)] = part
        return len(part)


def _position(file: Any) -> int | None:
    """Return where an open file stands, to read it again from there; None if it cannot be."""
    try:
        return cast("int", file.tell()) if file.seekable() else None
    except (AttributeError, OSError, ValueError):  # also a text file that was iterated, or a closed file
        return None


def _decompressed(file: io.BufferedReader, stack: ExitStack) -> io.BufferedReader:
    """Return the stream of a file without its compression, if it has one."""
    head = file.peek(_HEAD_BYTES)
    found = next((open for magic, open in _DECOMPRESSORS if head.startswith(magic)), None)
    if found is None:
        return file
    unpacked = stack.enter_context(found(file))
    return io.BufferedReader(cast("io.RawIOBase", unpacked), _BLOCK_BYTES)


def _gzip(file: io.BufferedReader) -> Any:
    import gzip

    return gzip.GzipFile(fileobj=file)


def _bz2(file: io.BufferedReader) -> Any:
    import bz2

    return bz2.BZ2File(file)


def _xz(file: io.BufferedReader) -> Any:
    import lzma

    return lzma.LZMAFile(file)


def _zst(file: io.BufferedReader) -> Any:
    with extra("data", "reading .zst files"):
        zstd: Any = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    return zstd.ZstdFile(file)


_DECOMPRESSORS: Final[tuple[tuple[bytes, Callable[[io.BufferedReader], Any]], ...]] = (
    (b"\x1f\x8b", _gzip),
    (b"BZh", _bz2),
    (b"\xfd7zXZ\0", _xz),
    (b"\x28\xb5\x2f\xfd", _zst),
)


def _is_damage(error: Exception) -> bool:
    """Return whether a reader of a compressed file, or of Parquet, says that the file is damaged."""
    if isinstance(error, EOFError | zlib.error):
        return True
    if isinstance(error, OSError):  # bz2 raises some without a number
        return error.errno is None and not isinstance(error, io.UnsupportedOperation)
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"LZMAError", "ZstdError", "ArrowInvalid"})
