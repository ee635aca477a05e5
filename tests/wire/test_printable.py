"""Text from elsewhere, as a message, a log or a terminal shows it."""

import pytest

from omnigate._wire.redaction import one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 日本 👩", "plain é 日本 👩"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x9b31m", "\\x9b31m"),
        ("a\x00b\x07c\x08d\x7f", "a\\x00b\\x07c\\x08d\\x7f"),
        ("over\rwritten", "over\\rwritten"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("half \ud83d", "half \\ud83d"),
        ("kept\n\tas it is\u00a0", "kept\n\tas it is\u00a0"),
    ],
)
def test_printable_text_shows_what_a_terminal_would_obey(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("one", "one"),
        ("two\nlines", "two lines"),
        ("forged\r\nERROR root: all is lost", "forged ERROR root: all is lost"),
        ("{\n  'a': 1,\n\n  'b': 2\n}\n", "{ 'a': 1, 'b': 2 }"),
        ("a\u2028b\x85c\x0bd", "a b c d"),
        ("tab\tstop\x1b", "tab stop\\x1b"),
        ("", ""),
    ],
)
def test_one_line_replaces_line_breaks_and_control_characters(text: str, shown: str) -> None:
    assert one_line(text, 100) == shown


def test_one_line_shortens_text_that_is_too_long() -> None:
    assert one_line("x" * 11, 10) == "x" * 10 + "…"
    assert one_line("x" * 10, 10) == "x" * 10
