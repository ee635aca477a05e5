"""JSON from the gateway whose text is not quite text."""

import json
from typing import Any

import msgspec
import pytest

from omnigate._wire.structs import decode, decoder_for

anything = msgspec.json.Decoder()


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (rb'"\ud83d"', "\ufffd"),
        (rb'"\ude00"', "\ufffd"),
        (rb'"cut here \ud83d", "', None),
        (rb'"\ud83d\ude00 \ud83d"', "😀 \ufffd"),
        (rb'"\uD83D\uD83D\uDE00"', "\ufffd😀"),
        (rb'"\ude00\ud83d"', "\ufffd\ufffd"),
        (rb'"\\ud83d \ud83d"', "\\ud83d \ufffd"),
        (rb'"\\\ud83d"', "\\\ufffd"),
        (rb'"\\\\ud83d\ud83d\n"', "\\\\ud83d\ufffd\n"),
        (rb'"\ud83d\u0041"', "\ufffdA"),
        (rb'{"\ud83d": ["\udfff", "\u00e9"]}', {"\ufffd": ["\ufffd", "é"]}),
        (b'"\xed\xa0\xbd"', "\ufffd\ufffd\ufffd"),
        (b'"\xff\\ud83d"', "\ufffd\ufffd"),
        (b'"caf\xe9"', "caf\ufffd"),
    ],
)
def test_decoding_replaces_lone_surrogates_and_invalid_utf8(body: bytes, value: Any) -> None:
    if value is None:
        with pytest.raises(msgspec.DecodeError):
            decode(anything, body)
    else:
        assert decode(anything, body) == value


@pytest.mark.parametrize(
    "text", ["\\ud83d", '\\"\ud83d', "\\\\\\\ud83d x \ude00", "a\\u0000\ud83d\ude00", "é\n\\"]
)
def test_decoding_replaces_the_surrogates_that_the_standard_library_finds(text: str) -> None:
    body = json.dumps(text).encode()
    expected = "".join("\ufffd" if 0xD800 <= ord(c) < 0xE000 else c for c in json.loads(body))
    assert decode(anything, body) == expected


def test_json_that_no_replacement_repairs_is_still_an_error() -> None:
    for body in (b"", b"{", b'"\\ud83d', b'"\\x"', b"nonsense"):
        with pytest.raises(msgspec.DecodeError):
            decode(anything, body)
    with pytest.raises(msgspec.ValidationError):
        decode(decoder_for(list[int]), b'"\\ud83d"')
