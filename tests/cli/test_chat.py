"""`omnigate chat`: the question, the answer as it arrives, its type, its cost, and what a model cannot do to a terminal."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from omnigate.cli._commands.chat_session import Conversation
from omnigate.cli._frame.terminal import SafeText
from omnigate.testing import Answer, Cut, LocalGateway, Status, StreamFailure

from .conftest import Cli

CITY = {
    "title": "City",
    "type": "object",
    "properties": {"name": {"type": "string"}, "people": {"$ref": "#/$defs/count"}},
    "required": ["name", "people"],
    "$defs": {"count": {"type": "integer", "minimum": 1}},
}


def sent(gateway: LocalGateway) -> Any:
    return json.loads(gateway.requests[-1].body)


@pytest.fixture
def city(tmp_path: Path) -> str:
    path = tmp_path / "city.json"
    path.write_text(json.dumps(CITY))
    return str(path)


def test_an_answer_is_streamed_and_ends_with_one_newline(gateway: LocalGateway, cli: Cli) -> None:
    done = cli("chat", "Say hi")
    assert (done.code, done.out, done.err) == (0, "echo[gpt-4o-mini]: Say hi\n", "")
    assert sent(gateway)["stream"] is True
    gateway.script(Answer("two lines\n\n"))
    assert cli("chat", "Say hi").out == "two lines\n\n"


@pytest.mark.parametrize(
    ("argument", "input", "question"),
    [
        (["Say hi"], "", "Say hi"),
        ([], "from a pipe\n", "from a pipe\n"),
        (["Summarise"], "some text\n", "Summarise\n\nsome text\n"),
        (["Summarise"], " \n", "Summarise"),
        ([], "\ufeffwith a mark", "with a mark"),
    ],
)
def test_the_question_is_the_argument_the_input_or_both(
    argument: list[str], input: str, question: str, gateway: LocalGateway, cli: Cli
) -> None:
    assert cli("chat", *argument, input=input).code == 0
    assert sent(gateway)["messages"] == [{"role": "user", "content": question}]


def test_options_become_fields_of_the_request(gateway: LocalGateway, cli: Cli) -> None:
    options = [
        "-m",
        "gpt-4o",
        "--system",
        "Be.brief",
        "--max-tokens",
        "5",
        "--temperature",
        "0.5",
        "--top-p",
        "0.9",
        "--stop",
        "a",
        "--stop",
        "b",
    ]
    options += ["--presence-penalty", "-1", "--frequency-penalty", "1.5", "--seed", "7", "--user-id", "u1"]
    assert cli("chat", *options, "hi").code == 0
    fields = sent(gateway)
    assert fields["messages"][0] == {"role": "system", "content": "Be.brief"}
    assert {name: fields[name] for name in ("model", "max_tokens", "temperature", "top_p", "stop", "seed")} == {
        "model": "gpt-4o", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "stop": ["a", "b"], "seed": 7,
    }  # fmt: skip
    assert (fields["presence_penalty"], fields["frequency_penalty"]) == (-1, 1.5)
    assert gateway.requests[-1].headers["x-user-id"] == "u1"


def test_what_streams_do_not_have_is_asked_for_as_a_whole(gateway: LocalGateway, cli: Cli) -> None:
    done = cli("chat", "hi", "-m", "nope", "--fallback", "gpt-4o", "--cache", "--temperature", "0", "--usage")
    assert (done.code, done.out) == (0, "echo[gpt-4o]: hi\n")
    assert done.err.startswith("gpt-4o: 1 tokens in, 2 out, 0.0000")
    assert sent(gateway)["fallback_models"] == ["gpt-4o"]


@pytest.mark.parametrize(
    ("arguments", "input", "words"),
    [
        ([], b"", 'no question: give it as "PROMPT" or on standard input, or use -i'),
        ([], b"  \n", "no question"),
        (["hi", "-i"], b"", "-i needs a terminal"),
        (["hi", "-i", "--json"], b"", "-i cannot be combined with --type or --json"),
        (["hi", "-i", "--cache"], b"", "cannot be combined with --fallback or --cache"),
        (["hi", "--temperature", "3"], b"", "3.0 is not in the range 0<=x<=2"),
        (["hi", "--fallback", "a"] + ["--fallback", "b"] * 5, b"", "fallback_models"),
    ],
)
def test_a_question_that_cannot_be_asked_is_a_usage_error(
    arguments: list[str], input: bytes, words: str, gateway: LocalGateway, cli: Cli
) -> None:
    before = len(gateway.requests)
    done = cli("chat", *arguments, input=input)
    assert (done.code, done.out, len(gateway.requests)) == (2, "", before)
    assert words in done.err


def test_input_that_is_not_text_or_too_long_is_refused(
    gateway: LocalGateway, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "must be UTF-8, but byte 2 is not" in cli("chat", input=b"ab\xff").err
    monkeypatch.setattr("omnigate.cli._frame.terminal.INPUT_MOST_BYTES", 1 << 20)
    assert "must be at most 1 MiB" in cli("chat", input=b"a" * ((1 << 20) + 1)).err


def test_without_a_model_the_error_says_how_to_name_one(
    gateway: LocalGateway, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMNIGATE_MODEL")
    done = cli("chat", "hi")
    assert done.code == 2
    assert "name one with -m, in $OMNIGATE_MODEL or with `omnigate config set model NAME`" in done.err
    cli("config", "set", "model", "gpt-4o")
    assert cli("chat", "hi").out == "echo[gpt-4o]: hi\n"


def test_usage_ends_with_tokens_and_cost_on_standard_error(gateway: LocalGateway, cli: Cli) -> None:
    done = cli("chat", "Say hi", "--usage")
    assert done.out == "echo[gpt-4o-mini]: Say hi\n"
    assert done.err == "gpt-4o-mini: 2 tokens in, 3 out, 0.0000021 USD\n"
    whole = cli("chat", "Say hi", "--json").json
    assert whole["cost_usd"] == pytest.approx(0.0000021, abs=1e-6)


def test_the_cost_is_unknown_without_a_price(gateway: LocalGateway, cli: Cli) -> None:
    gateway.script(Status(404, {"error": {"message": "no such model"}}), path="/v1/models/gpt-4o-mini")
    assert cli("chat", "Say hi", "--usage").err == "gpt-4o-mini: 2 tokens in, 3 out, cost unknown\n"


def test_an_answer_as_json_has_its_usage_cost_and_request_id(gateway: LocalGateway, cli: Cli) -> None:
    shown = cli("chat", "Say hi", "--json").json
    assert shown["content"] == "echo[gpt-4o-mini]: Say hi"
    assert shown["usage"]["total_tokens"] == 5
    assert shown["request_id"]


def test_an_answer_that_was_cut_off_says_so(gateway: LocalGateway, cli: Cli) -> None:
    cut = {"id": "1", "provider": "openai", "model": "m", "content": "half", "finish_reason": "length"}
    gateway.script(Status(200, cut), path="/v1/chat")
    done = cli("chat", "hi", "--cache")
    assert done.out == "half\n"
    assert done.err == "The answer was cut off: it reached the most tokens allowed (--max-tokens).\n"


@pytest.mark.parametrize("fault", [StreamFailure("it broke", after_bytes=12), Cut(after_bytes=900)])
def test_a_stream_that_breaks_keeps_what_arrived_and_exits_with_1(
    fault: StreamFailure | Cut, gateway: LocalGateway, cli: Cli
) -> None:
    gateway.script(fault)
    done = cli("chat", "one two three four five six seven eight nine ten")
    assert done.code == 1
    assert done.out
    assert "one two three four five six seven eight nine ten".startswith(done.out.partition(": ")[2])
    assert done.err.startswith("Error: ")
    assert done.err.count("\n") == 1


def test_an_answer_fits_the_schema_or_is_asked_for_again(gateway: LocalGateway, cli: Cli, city: str) -> None:
    gateway.script(Answer('{"name": "Paris", "people": 0}'))
    gateway.script(
        Answer('Sure: {"name": "Paris", "people": 2100000}'),
        when=lambda request: b"people: 0" in request.body,
    )
    done = cli("chat", "The capital of France", "--type", city)
    # Both answers are scripted for the first request that matches, so the second is only used once asked again.
    assert (done.code, done.err) == (0, "")
    assert done.json == {"name": "Paris", "people": 2_100_000}
    complaint = sent(gateway)["messages"][-1]["content"]
    assert "$.people: 0 is less than the minimum of 1" in complaint
    assert '"minimum":1' in sent(gateway)["messages"][0]["content"]


def test_an_answer_that_never_fits_is_an_error_that_says_why(
    gateway: LocalGateway, cli: Cli, city: str
) -> None:
    gateway.script(Answer('{"name": "Paris"}'), times=3)
    done = cli("chat", "The capital of France", "--type", city)
    assert (done.code, done.out) == (1, "")
    assert "3 answers do not fit City: " in done.err
    assert "$: 'people' is a required property" in done.err


def test_a_typed_answer_as_json_has_the_value(gateway: LocalGateway, cli: Cli, city: str) -> None:
    gateway.script(Answer('{"name": "Paris", "people": 1}'))
    assert cli("chat", "x", "--type", city, "--json").json["parsed"] == {"name": "Paris", "people": 1}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "it must be an object"),
        ('{"type": "strin"}', "is not a JSON schema: $.type: 'strin' is not valid"),
        ('{"$ref": "#/nowhere"}', "refers to '#/nowhere', which is not in it"),
        ('{"$ref": "http://127.0.0.1:9/other.json"}', "refers to 'http://127.0.0.1:9/other.json'"),
        (" " * ((1 << 20) + 1), "is larger than"),
    ],
)
def test_a_file_that_is_no_schema_is_refused_before_anything_is_sent(
    content: str, words: str, gateway: LocalGateway, cli: Cli, tmp_path: Path
) -> None:
    path = tmp_path / "schema.json"
    path.write_text(content)
    before = len(gateway.requests)
    done = cli("chat", "hi", "--type", str(path))
    assert (done.code, done.out, len(gateway.requests)) == (2, "", before)
    assert words in done.err


def test_a_type_without_jsonschema_says_what_to_install(
    gateway: LocalGateway, cli: Cli, city: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    done = cli("chat", "hi", "--type", city)
    assert (done.code, done.err) == (1, "Error: --type needs jsonschema: pip install 'omnigate[cli]'\n")


def test_a_schema_that_is_missing_is_one_line(gateway: LocalGateway, cli: Cli, tmp_path: Path) -> None:
    done = cli("chat", "hi", "--type", str(tmp_path / "none.json"))
    assert (done.code, done.err) == (1, f"Error: {tmp_path / 'none.json'}: No such file or directory\n")


HOSTILE = "a\x1b[31mred\x1b]0;title\x07\x9b2J\x7f\tb\r\nc\rd\n"
HARMLESS = "a\\x1b[31mred\\x1b]0;title\\x07\\x9b2J\\x7f\tb\nc\\rd\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_escapes_in_an_answer_are_harmless_however_they_are_split(
    size: int, gateway: LocalGateway, cli: Cli
) -> None:
    gateway.script(Answer([HOSTILE[at : at + size].encode() for at in range(0, len(HOSTILE), size)]))
    assert cli("chat", "hi").out == HARMLESS


def test_escapes_in_a_whole_answer_and_in_json_are_harmless(gateway: LocalGateway, cli: Cli) -> None:
    gateway.script(Answer(HOSTILE), times=2)
    assert cli("chat", "hi", "--cache").out == HARMLESS
    done = cli("chat", "hi", "--json")
    assert not set(done.out) & set("\x1b\x07\x9b\x7f\r")
    assert done.json["content"] == HOSTILE


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_marks_of_direction_are_harmless_in_a_terminal_and_stay_in_a_file() -> None:
    text = "\u05d0\u200f\u202eb"
    assert SafeText(Tty()).take(text) == "\u05d0\\u200f\\u202eb"
    assert SafeText(io.StringIO()).take(text) == text


@pytest.mark.parametrize("pieces", [["a\r", "\nb"], ["a", "\r", "\n", "b"], ["a\r\nb"]])
def test_the_end_of_a_line_of_windows_is_a_newline_however_it_is_split(pieces: list[str]) -> None:
    safe_text = SafeText(io.StringIO())
    assert "".join(map(safe_text.take, pieces)) + safe_text.end() == "a\nb"
    assert safe_text.take("a\r") + safe_text.end() == "a\\r"


def test_a_conversation_can_be_undone_and_saved(tmp_path: Path) -> None:
    conversation = Conversation("gpt-4o", "Be brief")
    conversation.add("one", "1")
    conversation.add("two", "2")
    assert conversation.undo() == "two"
    assert conversation.messages("three") == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "three"},
    ]
    conversation.save(str(tmp_path / "talk.json"))
    assert json.loads((tmp_path / "talk.json").read_text())["messages"] == conversation.messages()
    conversation.save(str(tmp_path / "talk.md"))
    conversation.save(str(tmp_path / "talk.md"))
    assert (
        (tmp_path / "talk.md")
        .read_text()
        .startswith("# Conversation with gpt-4o\n\n## System\n\nBe brief\n\n## User")
    )
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(FileExistsError):
        conversation.save(str(tmp_path / "mine"))
    assert (tmp_path / "mine").read_text() == "mine"
    assert conversation.undo() == "one"
    assert conversation.undo() is None
