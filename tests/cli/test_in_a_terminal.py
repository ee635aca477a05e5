"""The command in a real terminal: what is on the screen, at several widths, without colour, and with Ctrl-C."""

import sys

import pytest

if sys.platform == "win32":
    pytest.skip("needs a pty", allow_module_level=True)

import json
import stat
import subprocess
from pathlib import Path

from omnigate import Client
from omnigate.cli._frame.tables import cells_of
from omnigate.testing import Answer, Delay, LocalGateway, Status

from .terminal import Terminal

pytestmark = pytest.mark.proof

OMNIGATE = [sys.executable, "-W", "error", "-m", "omnigate"]


@pytest.fixture(scope="module")
def served() -> LocalGateway:  # type: ignore[misc]
    with LocalGateway(chunk_delay_seconds=0.02) as gateway:
        yield gateway  # type: ignore[misc]


def omnigate(*arguments: str, columns: int = 80, **environment: str) -> Terminal:
    return Terminal([*OMNIGATE, *arguments], columns=columns, environment=environment)


SHOWN = [["models", "claude"], ["me"], ["keys", "list"], ["metrics", "--group-by", "model"], ["health"],
         ["admin", "orgs", "list"], ["admin", "projects", "list"], ["config", "list"]]  # fmt: skip


@pytest.mark.parametrize("columns", [40, 60, 120])
@pytest.mark.parametrize("arguments", SHOWN, ids=" ".join)
def test_what_is_shown_fits_the_terminal(arguments: list[str], columns: int, gateway: LocalGateway) -> None:
    with Client(gateway.api_key, base_url=gateway.url) as client:
        client.create_api_key(name="a key with a rather long name")
        client.chat(model="gpt-4o-mini", messages="hi")
    with omnigate(*arguments, columns=columns) as terminal:
        assert terminal.wait() == 0
        lines = terminal.raw.decode().replace("\x1b[1m", "").replace("\x1b[0m", "").split("\r\n")
    too_long = [line for line in lines if cells_of(line) > columns]
    # Only single words that are not to be cut off, as ids and paths, may need more than a narrow terminal has.
    assert [line for line in too_long if max(map(len, line.split())) < 30] == []


@pytest.mark.parametrize(
    ("environment", "has_escapes"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True)],
)
def test_colour_is_only_for_terminals_that_want_it(
    environment: dict[str, str], has_escapes: bool, gateway: LocalGateway
) -> None:
    with omnigate("models", **environment) as terminal:
        assert terminal.wait() == 0
        assert (b"\x1b[" in terminal.raw) == has_escapes


def test_a_pipe_gets_no_escapes_and_nothing_cut_off(gateway: LocalGateway) -> None:
    with Client(gateway.api_key, base_url=gateway.url) as client:
        client.create_api_key(name="n" * 200)
    done = subprocess.run([*OMNIGATE, "keys", "list"], capture_output=True, text=True, timeout=60, check=True)
    assert "n" * 200 in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_an_answer_appears_while_it_arrives(gateway: LocalGateway) -> None:
    gateway.script(Answer([b"first ", *[b"."] * 100, b" last"]))
    with omnigate("chat", "hi") as terminal:
        terminal.wait_for("first ..")
        assert "last" not in terminal.text
        assert terminal.wait() == 0
        assert terminal.lines[-1].endswith(" last")


def test_escapes_of_a_model_do_not_reach_the_terminal(gateway: LocalGateway) -> None:
    gateway.script(Answer([b"a\x1b", b"[2Jb\x1b]0;owned\x07", "\u202ec".encode()]))
    with omnigate("chat", "hi") as terminal:
        assert terminal.wait() == 0
        assert terminal.lines == ["a\\x1b[2Jb\\x1b]0;owned\\x07\\u202ec"]
        assert b"\x1b" not in terminal.raw


def test_ctrl_c_before_the_answer_exits_with_130(gateway: LocalGateway) -> None:
    gateway.script(Delay(60))
    before = len(gateway.requests)
    with omnigate("chat", "hi") as terminal:
        while len(gateway.requests) == before:
            assert terminal.process.poll() is None
            terminal._read(0.05)
        terminal.interrupt()
        assert terminal.wait() == 130
        assert terminal.lines == ["^C", "Interrupted."]


def test_ctrl_c_during_the_answer_exits_with_130_and_keeps_what_arrived(gateway: LocalGateway) -> None:
    gateway.script(Answer([b"first ", *[b"."] * 4_000]))
    with omnigate("chat", "hi") as terminal:
        terminal.wait_for("first ..")
        terminal.interrupt()
        assert terminal.wait() == 130
        assert terminal.lines[0].startswith("first ..")
        assert terminal.lines[-1] == "Interrupted."
        assert "Traceback" not in terminal.text


def test_a_key_is_asked_for_without_being_shown(gateway: LocalGateway) -> None:
    with omnigate("provider-key", "set", "openai") as terminal:
        terminal.wait_for("openai key:")
        terminal.type("sk-typed-in-secret\n")
        assert terminal.wait() == 0
        assert terminal.lines == ["openai key:", "Stored the openai key."]
        assert b"typed" not in terminal.raw
    assert json.loads(gateway.requests[-1].body)["api_key"] == "sk-typed-in-secret"


def test_ctrl_c_at_the_prompt_for_a_key_exits_with_130(gateway: LocalGateway) -> None:
    with omnigate("config", "set", "api-key") as terminal:
        terminal.wait_for("api-key:")
        terminal.interrupt()
        assert terminal.wait() == 130
        assert terminal.lines[-1] == "Interrupted."


def test_the_end_of_input_at_the_prompt_for_a_key_is_an_error_in_one_line(gateway: LocalGateway) -> None:
    with omnigate("config", "set", "api-key") as terminal:
        terminal.wait_for("api-key:")
        terminal.type("\x04")
        assert terminal.wait() == 1
        assert terminal.lines[-1].endswith("Error: the input ended before an answer was given")


def test_a_conversation_has_memory_commands_and_several_lines(gateway: LocalGateway, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    with omnigate("chat", "-i", "one", "--usage") as terminal:
        terminal.wait_for("echo[gpt-4o-mini]: one")
        terminal.wait_for("1 tokens in, 2 out")
        terminal.wait_for_prompt()
        terminal.type("line a\x1b\rline b\r")
        terminal.wait_for("echo[gpt-4o-mini]: line a\nline b")
        terminal.wait_for_prompt()
        terminal.type("/model gpt-4o\r")
        terminal.wait_for("Talking to gpt-4o.")
        terminal.wait_for_prompt()
        terminal.type("three\r")
        terminal.wait_for("echo[gpt-4o]: three")
        request = json.loads([each for each in gateway.requests if b"three" in each.body][-1].body)
        assert [message["content"] for message in request["messages"] if message["role"] == "user"] == [
            "one", "line a\nline b", "three",
        ]  # fmt: skip
        terminal.wait_for_prompt()
        terminal.type("/undo\r")
        terminal.wait_for("Took back: three")
        terminal.wait_for_prompt()
        terminal.type(f"/save {path}\r")
        terminal.wait_for("Saved 2 questions and answers")
        terminal.wait_for_prompt()
        terminal.type("/nonsense\r")
        terminal.wait_for("/nonsense is not a command")
        terminal.wait_for_prompt()
        terminal.type("/help\r")
        terminal.wait_for("take back the last question")
        terminal.wait_for_prompt()
        terminal.type("//etc is a folder\r")
        terminal.wait_for("echo[gpt-4o]: /etc is a folder")
        terminal.wait_for_prompt()
        terminal.type("/exit\r")
        assert terminal.wait() == 0
    assert [turn["content"] for turn in json.loads(path.read_text())["messages"]] == [
        "one", "echo[gpt-4o-mini]: one", "line a\nline b", "echo[gpt-4o-mini]: line a\nline b",
    ]  # fmt: skip
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_ctrl_c_in_a_conversation_stops_the_answer_and_not_the_program(gateway: LocalGateway) -> None:
    gateway.script(Answer([b"first ", *[b"."] * 4_000]))
    with omnigate("chat", "-i") as terminal:
        terminal.wait_for_prompt()
        terminal.interrupt()
        terminal.wait_for("(/exit or Ctrl-D leaves)")
        terminal.wait_for_prompt()
        terminal.type("go on\r")
        terminal.wait_for("first ..")
        terminal.interrupt()
        terminal.wait_for("(stopped)")
        terminal.wait_for_prompt()
        terminal.type("again\r")
        terminal.wait_for("echo[gpt-4o-mini]: again")
        request = json.loads([each for each in gateway.requests if b"again" in each.body][-1].body)
        assert request["messages"][1]["content"].startswith("first ..")
        terminal.wait_for_prompt()
        terminal.type("\x04")
        assert terminal.wait() == 0
        assert "Traceback" not in terminal.text


def test_ctrl_c_before_an_answer_in_a_conversation_drops_the_question(gateway: LocalGateway) -> None:
    gateway.script(Delay(60))
    before = len(gateway.requests)
    with omnigate("chat", "-i", "slow one") as terminal:
        while len(gateway.requests) == before:
            assert terminal.process.poll() is None
            terminal._read(0.05)
        terminal.interrupt()
        terminal.wait_for("(stopped)")
        terminal.wait_for_prompt()
        terminal.type("next\r")
        terminal.wait_for("echo[gpt-4o-mini]: next")
        assert b"slow one" not in gateway.requests[-1].body
        terminal.wait_for_prompt()
        terminal.type("\x04")
        assert terminal.wait() == 0


def test_an_error_in_a_conversation_is_one_line_and_offers_the_question_again(gateway: LocalGateway) -> None:
    gateway.script(Status(402, {"detail": "Project daily budget exceeded"}))
    with omnigate("chat", "-i", "hello", columns=100) as terminal:
        terminal.wait_for("Error: [402] Project daily budget exceeded.")
        terminal.wait_for("> hello")
        terminal.type("\r")
        terminal.wait_for("echo[gpt-4o-mini]: hello")
        terminal.wait_for_prompt()
        terminal.type("\x04")
        assert terminal.wait() == 0
