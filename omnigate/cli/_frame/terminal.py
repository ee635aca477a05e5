"""Output and input: data on standard output, everything else on standard error; no colour off a terminal."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from getpass import getpass
from typing import IO, Any, Final

import click

from omnigate._runtime.terminals import is_terminal
from omnigate._wire.redaction import printable

INPUT_MOST_BYTES: Final = 16 << 20
"""The most that is read from standard input."""

_SECRET_MOST_BYTES: Final = 1 << 16

_NARROWEST: Final = 20

_WRAPPING: Final[Mapping[str, Any]] = {
    "break_long_words": False,
    "break_on_hyphens": False,
    "replace_whitespace": False,
    "drop_whitespace": True,
}

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that a terminal obeys; not tabs and line feeds."""

_UNSAFE_IN_JSON = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def is_dumb() -> bool:
    """Return whether the terminal understands no escape sequences."""
    return os.environ.get("TERM") == "dumb"


def has_colour(stream: IO[str] | None) -> bool:
    """Return whether to write colours to a stream: a terminal, unless `NO_COLOR` or `TERM=dumb` is set."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and not is_dumb()


def can_prompt() -> bool:
    """Return whether there is somebody to ask: standard input and standard error are terminals."""
    return is_terminal(sys.stdin) and is_terminal(sys.stderr)


def width() -> int:
    """Return the terminal's width in columns; 80 if there is none."""
    return max(shutil.get_terminal_size().columns, _NARROWEST)


def styled(text: str, stream: IO[str] | None = None, **style: Any) -> str:
    """Return text with a style of `click.style`, if the stream (else standard output) has colours."""
    return click.style(text, **style) if has_colour(stream or sys.stdout) else text


def emit(text: str) -> None:
    """Write a line of data to standard output. Text from elsewhere must be `safe` already."""
    click.echo(text, color=has_colour(sys.stdout))


def note(text: str) -> None:
    """Write words for people to standard error, wrapped to the terminal."""
    if is_terminal(sys.stderr):
        columns = width()
        lines = (textwrap.fill(line, columns, **_WRAPPING) if line else "" for line in text.split("\n"))
        text = "\n".join(lines)
    click.echo(text, err=True, color=has_colour(sys.stderr))


@contextmanager
def shown_once(lost: str) -> Generator[None]:
    """Write out a key that is shown only once; if it cannot be written, say what is lost.

    Args:
        lost: what was created, and what to do now.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError:
        note(f"The key could not be written. {lost}")
        raise


def emit_json(value: Any) -> None:
    """Write a value as JSON to standard output, with what a terminal would obey as escapes.

    Args:
        value: of plain values, structs, datetimes and decimals.
    """
    import msgspec

    content = msgspec.json.encode(value, enc_hook=_plain)
    text = msgspec.json.format(content, indent=2).decode()
    click.echo(_UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def emit_json_line(value: Any, *, err: bool = False) -> None:
    """Write a value as one line of JSON, with what a terminal would obey as escapes.

    Args:
        value: of plain values, structs, datetimes and decimals.
        err: whether to write to standard error instead of standard output.
    """
    import msgspec

    text = msgspec.json.encode(value, enc_hook=_plain).decode()
    click.echo(_UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text), err=err)


def _plain(value: Any) -> Any:
    """Return what msgspec can encode for an object of a subclass."""
    if isinstance(value, Mapping):
        return dict(value)  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str(value)
    raise NotImplementedError(f"no JSON for {type(value).__name__}")


def safe(text: str) -> str:
    """Return text from the gateway on one line, with nothing in it that a terminal obeys."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


class SafeText:
    """Makes a model's text harmless for a terminal, piece by piece: newlines and tabs stay.

    Escapes and control characters are replaced, so a sequence that is split between pieces is harmless, too.
    On a terminal, so are the marks that change the direction of text; in a pipe or a file these stay, since
    languages written from right to left use them.

    Args:
        stream: where the text goes.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._is_terminal = is_terminal(stream)
        self._held = ""

    def take(self, piece: str) -> str:
        """Return a piece to be written."""
        piece = self._held + piece
        self._held = ""
        if piece.endswith("\r"):  # the first half of a line's end, perhaps
            piece, self._held = piece[:-1], "\r"
        piece = piece.replace("\r\n", "\n")
        if self._is_terminal:
            return printable(piece)
        return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), piece)

    def end(self) -> str:
        """Return what is left at the end of the text."""
        held, self._held = self._held, ""
        return printable(held)


def read_input(what: str) -> str:
    """Return standard input as text.

    Args:
        what: what is read, for errors.

    Raises:
        click.ClickException: it is not UTF-8, or too long.
    """
    content = sys.stdin.buffer.read(INPUT_MOST_BYTES + 1)
    if len(content) > INPUT_MOST_BYTES:
        raise click.ClickException(f"{what} on standard input must be at most {INPUT_MOST_BYTES >> 20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.ClickException(
            f"{what} on standard input must be UTF-8, but byte {error.start} is not"
        ) from None


def read_secret(what: str) -> str:
    """Return a key, from a hidden prompt in a terminal, else from standard input.

    Args:
        what: what the key is, for the prompt and errors.

    Raises:
        click.UsageError: there is none.
    """
    # Not click's prompt: it shows itself before what is typed is hidden.
    given = getpass(f"{what}: ") if can_prompt() else sys.stdin.read(_SECRET_MOST_BYTES)
    given = given.strip()
    if not given:
        raise click.UsageError(f"no {what}: enter it at the prompt, or write it to standard input")
    return given


def confirm(question: str, *, otherwise: str) -> None:
    """Ask before something that cannot be undone.

    Args:
        question: the question, answered with y or n.
        otherwise: the option that answers it where there is no terminal.

    Raises:
        click.UsageError: there is no terminal.
        click.exceptions.Exit: the answer is no.
    """
    if not can_prompt():
        raise click.UsageError(f"{question} Without a terminal, confirm with {otherwise}.")
    if not click.confirm(question, err=True):
        note("Nothing was changed.")
        raise click.exceptions.Exit(1)
