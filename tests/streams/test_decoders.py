"""The stream decoders, whose output must not depend on how the bytes are split."""

from itertools import combinations

import pytest

from omnigate import InvalidResponseError
from omnigate._streams import decoders
from omnigate._streams.decoders import EventDecoder, EventTooLongError, TextDecoder
from omnigate._streams.readers import CompletionReader


def decode_text(parts: list[bytes]) -> tuple[str, str | None]:
    decoder = TextDecoder()
    text = "".join(map(decoder.feed, parts)) + decoder.finish()
    return text, decoder.message


def decode_events(parts: list[bytes]) -> list[bytes]:
    decoder = EventDecoder()
    events = [event for part in parts for event in decoder.feed(part)]
    return events + decoder.finish()


def all_splits(body: bytes) -> list[list[bytes]]:
    """Return `body` split at every one and every two places, and into single bytes."""
    places = range(len(body) + 1)
    splits = [[body[:a], body[a:b], body[b:]] for a, b in combinations(places, 2)]
    return [*splits, [body[i : i + 1] for i in range(len(body))]]


@pytest.mark.parametrize(
    ("body", "text", "message"),
    [
        ("plain", "plain", None),
        ("", "", None),
        ("Héllo 👩‍👩‍👧 日本語", "Héllo 👩‍👩‍👧 日本語", None),
        ("text\n[error] boom", "text", "boom"),
        ("\n[error] at once", "", "at once"),
        ("\n[error] ", "", ""),
        ("a\n[error] two\nlines\n[error] again", "a", "two\nlines\n[error] again"),
        ("a\n\n[error] b", "a\n", "b"),
        ("a\n[err\n[error] é", "a\n[err", "é"),
        ("[error] at line start", "[error] at line start", None),
        ("ends with a beginning\n[error]", "ends with a beginning\n[error]", None),
        ("ends with a newline\n", "ends with a newline\n", None),
        ("\n\n\n[erro\n", "\n\n\n[erro\n", None),
    ],
)
def test_a_text_stream_decodes_the_same_however_it_is_split(
    body: str, text: str, message: str | None
) -> None:
    for parts in all_splits(body.encode()):
        assert decode_text(parts) == (text, message)


def test_text_decoder_holds_back_only_a_possible_start_of_the_sentinel() -> None:
    decoder = TextDecoder()
    assert decoder.feed(b"all of it, to the last letter") == "all of it, to the last letter"
    assert decoder.feed(b"line\n") == "line"
    assert decoder.feed(b"[er") == ""
    assert decoder.feed(b"go") == "\n[ergo"


def test_text_decoder_holds_back_an_incomplete_character() -> None:
    decoder = TextDecoder()
    assert decoder.feed("aé".encode()[:2]) == "a"
    assert decoder.feed("aé".encode()[2:]) == "é"


def test_text_decoder_replaces_invalid_utf_8() -> None:
    assert decode_text([b"a\xffb", b"\xe6\x97"]) == ("a�b�", None)


def test_text_decoder_bounds_an_endless_failure_message() -> None:
    decoder = TextDecoder()
    decoder.feed(b"\n[error] ")
    piece = b"x" * 65_536
    for _ in range(40):
        decoder.feed(piece)
    assert decoder.overflowed
    assert decoder.message == "x" * decoders.MAX_MESSAGE_CHARACTERS


def test_the_limit_of_a_failure_message_does_not_depend_on_its_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "MAX_MESSAGE_CHARACTERS", 4)
    for parts in all_splits(b"a\n[error] 12345"):
        assert decode_text(parts) == ("a", "1234")


EVENTS = b'data: {"a": 1}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (EVENTS, [b'{"a": 1}', b"[DONE]"]),
        (EVENTS.replace(b"\n", b"\r\n"), [b'{"a": 1}', b"[DONE]"]),
        (EVENTS.replace(b"\n", b"\r"), [b'{"a": 1}', b"[DONE]"]),
        (b"\xef\xbb\xbfdata: bom\n\n", [b"bom"]),
        (b": comment\n\n:\n\ndata: x\n\n", [b"x"]),
        (b"data: two\ndata: lines\n\n", [b"two\nlines"]),
        (b"data:no space\n\n", [b"no space"]),
        (b"data:  two spaces\n\n", [b" two spaces"]),
        (b"event: e\nid: 7\nretry: 5\ndata: x\nunknown: y\n\n", [b"x"]),
        (b"data\n\n", [b""]),
        (b"event: without data\n\n", []),
        (b"data: dropped, since its blank line is missing\n", []),
        (b"data: x\n\ndata: [DONE]", [b"x", b"[DONE]"]),
        (b"data: mixed\r\n\n\rdata: y\r\r\n", [b"mixed", b"y"]),
        ("data: é😀\n\n".encode(), ["é😀".encode()]),
    ],
)
def test_an_event_stream_decodes_the_same_however_it_is_split(body: bytes, events: list[bytes]) -> None:
    for parts in all_splits(body):
        assert decode_events(parts) == events


@pytest.mark.parametrize("piece", [b"x" * 65_536, b"data: " + b"x" * 65_536 + b"\n"])
def test_event_decoder_refuses_an_endless_event(piece: bytes) -> None:
    decoder = EventDecoder()
    decoder.feed(b"data: ")

    def endless() -> None:
        for _ in range(100):
            decoder.feed(piece)

    with pytest.raises(EventTooLongError):
        endless()


@pytest.mark.parametrize("long", [b"data: 78901234567", b":8901234567890123", b"data: 1\ndata: 567890"])
def test_events_before_an_oversized_one_are_complete_however_they_are_split(
    long: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "MAX_EVENT_BYTES", 12)
    for parts in all_splits(b"data: a\n\n" + long + b"\n\ndata: b\n\n"):
        decoder = EventDecoder()
        events: list[bytes] = []
        with pytest.raises(EventTooLongError) as caught:
            for part in parts:
                events += decoder.feed(part)
        assert events + caught.value.events == [b"a"]


def test_an_oversized_event_ends_a_reader_after_the_pieces_before_it() -> None:
    reader = CompletionReader(request_id="r", secrets=())
    endless = b"data: " + b"x" * decoders.MAX_EVENT_BYTES
    assert reader.feed(b'data: {"a": 1}\n\n' + endless) == [{"a": 1}]
    assert isinstance(reader.error, InvalidResponseError)
    reader = CompletionReader(request_id="r", secrets=())
    assert reader.feed(b"data: [DONE]\n\n" + endless) == []
    assert reader.done
    assert reader.error is None
