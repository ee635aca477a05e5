"""`omnigate chat -i`: a conversation in the terminal.

Ctrl-C stops the answer, or clears the line; it never ends the program. What arrived of a stopped answer stays
in the conversation. A question that failed is offered again at the next prompt.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from omnigate._runtime.extras import extra
from omnigate.cli._commands.chat import Streamed, price_of, print_stream, usage_line
from omnigate.cli._frame.errors import line_of
from omnigate.cli._frame.terminal import note, safe
from omnigate.exceptions import GatewayError

if TYPE_CHECKING:
    from omnigate import Client

_HELP: Final = """\
Enter sends, Alt-Enter (or Esc, Enter) begins a new line. Ctrl-C stops an answer, Ctrl-D leaves.

  /model [NAME]   show or change the model
  /system [TEXT]  show or change the system message
  /save FILE      save all as FILE.json, or else as Markdown
  /undo           take back the last question and answer
  /help           show this
  /exit           leave

A line that begins with // is sent with one slash."""


class Conversation:
    """What has been said, and with which model.

    Args:
        model: the model's name.
        system: the system message, if any.

    Attributes:
        turns: questions and answers, in order.
    """

    def __init__(self, model: str, system: str | None) -> None:
        self.model = model
        self.system = system
        self.turns: list[dict[str, str]] = []
        self._saved: set[str] = set()

    def messages(self, question: str | None = None) -> list[dict[str, str]]:
        """Return the messages of a request, with a further question."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages += self.turns
        if question is not None:
            messages.append({"role": "user", "content": question})
        return messages

    def add(self, question: str, answer: str) -> None:
        """Add a question and its answer."""
        self.turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def undo(self) -> str | None:
        """Take back the last question and its answer, and return the question; None if there is none."""
        if not self.turns:
            return None
        question = self.turns[-2]["content"]
        del self.turns[-2:]
        return question

    def save(self, path: str) -> None:
        """Save the conversation in a new file that only its owner can read, or in one saved before.

        Args:
            path: the file; with `.json` as a list of messages, else as Markdown.

        Raises:
            OSError: the file exists, or cannot be written.
        """
        path = os.path.expanduser(path)
        if path.endswith(".json"):
            content = json.dumps(
                {"model": self.model, "messages": self.messages()}, ensure_ascii=False, indent=2
            )
        else:
            parts = [f"# Conversation with {self.model}"]
            parts += [f"## {turn['role'].capitalize()}\n\n{turn['content']}" for turn in self.messages()]
            content = "\n\n".join(parts)
        real = os.path.realpath(path)
        new_only = 0 if real in self._saved else os.O_EXCL
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | new_only, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
            self._saved.add(real)
            file.write(content + "\n")


def converse(
    client: Client,
    model: str,
    system: str | None,
    sampling: dict[str, Any],
    question: str | None,
    *,
    shows_usage: bool,
) -> None:
    """Hold a conversation until the user leaves.

    Args:
        client: the client.
        model: the model to begin with.
        system: the system message, if any.
        sampling: the sampling options of all questions.
        question: the first question, if there is one already.
        shows_usage: whether to show tokens and cost after each answer.
    """
    ask = _prompt()
    conversation = Conversation(model, system)
    note(f"Talking to {safe(model)}. /help lists the commands, Ctrl-D leaves.")
    offered = ""
    while True:
        try:
            text = question if question is not None else ask(offered)
            question, offered = None, ""
            if not text.strip():
                continue
            if text.startswith("/") and not text.startswith("//"):
                if not _obey(conversation, text):
                    return
                continue
            text = text.removeprefix("/") if text.startswith("//") else text
            offered = _answer(client, conversation, text, sampling, shows_usage=shows_usage)
        except KeyboardInterrupt:  # at the prompt, or just as an answer ended
            note("(/exit or Ctrl-D leaves)")
        except EOFError:
            return


def _prompt() -> Callable[[str], str]:
    """Return a function that reads a question, with line editing; its argument is the text to begin with."""
    with extra("cli", "chat -i"):
        from prompt_toolkit import PromptSession
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        "> ", multiline=True, prompt_continuation=". ", key_bindings=keys
    )
    return lambda text: session.prompt(default=text)


def _answer(
    client: Client, conversation: Conversation, question: str, sampling: dict[str, Any], *, shows_usage: bool
) -> str:
    """Ask, print the answer and keep both; return the question if it should be offered again, else ""."""
    streamed = Streamed()
    offered = ""
    try:
        print_stream(client, conversation.model, conversation.messages(question), sampling, streamed)
    except KeyboardInterrupt:
        note("(stopped)")
    except GatewayError as error:
        note(f"Error: {line_of(error)}")
        offered = question
    if streamed.text:
        conversation.add(question, streamed.text)
        offered = ""
    if shows_usage and streamed.usage is not None:
        try:
            note(usage_line(conversation.model, streamed.usage, price_of(client, conversation.model)))
        except GatewayError as error:
            note(f"Error: {line_of(error)}")
    return offered


def _obey(conversation: Conversation, line: str) -> bool:
    """Run a command of the conversation; return whether it goes on."""
    name, _, argument = line.strip().partition(" ")
    if name in ("/exit", "/quit"):
        return False
    if (command := _COMMANDS.get(name)) is not None:
        command(conversation, argument.strip())
    else:
        note(f"{safe(name)} is not a command; /help lists them.")
    return True


def _model(conversation: Conversation, name: str) -> None:
    if name:
        conversation.model = name
    note(f"Talking to {safe(conversation.model)}.")


def _system(conversation: Conversation, text: str) -> None:
    if text:
        conversation.system = text
    note(
        f"System message: {safe(conversation.system)}"
        if conversation.system
        else "There is no system message."
    )


def _undo(conversation: Conversation, _: str) -> None:
    question = conversation.undo()
    note("There is nothing to take back." if question is None else f"Took back: {safe(question)}")


def _save(conversation: Conversation, path: str) -> None:
    if not path:
        note("Error: /save needs the name of a file")
        return
    try:
        conversation.save(path)
    except FileExistsError:
        note(f"Error: {safe(path)} exists; choose another name")
    except OSError as error:
        note(f"Error: {line_of(error)}")
    else:
        note(f"Saved {len(conversation.turns) // 2} questions and answers in {safe(path)}.")


def _show_help(_: Conversation, __: str) -> None:
    note(_HELP)


_COMMANDS: Final[Mapping[str, Callable[[Conversation, str], None]]] = {
    "/model": _model,
    "/system": _system,
    "/save": _save,
    "/undo": _undo,
    "/help": _show_help,
}
