"""`omnigate chat`: one question to a model, or a conversation."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from omnigate._runtime.terminals import is_terminal
from omnigate.cli._frame.command import Command, pass_invocation
from omnigate.cli._frame.invocation import Invocation
from omnigate.cli._frame.sampling import model_option, sampling_of, sampling_options
from omnigate.cli._frame.terminal import SafeText, emit_json, note, read_input
from omnigate.cli._frame.values import usd

if TYPE_CHECKING:
    from omnigate import ChatResponse, Client, SyncChatStream, Usage
    from omnigate.models import ModelPricing

_PER = 1_000  # prices are for a thousand tokens


@click.command(
    cls=Command,
    examples=[
        'omnigate chat -m gpt-4o-mini "Say hi in French"',
        'omnigate chat "Summarise in one sentence" < report.txt',
        'omnigate chat --type city.json "The capital of France"',
        "omnigate chat -i",
    ],
)
@click.argument("prompt", required=False)
@model_option
@click.option("--system", metavar="TEXT", help="The system message.")
@sampling_options
@click.option(
    "--type",
    "type_path",
    metavar="FILE",
    help="A JSON schema that the answer has to fit; asks again if it does not.",
)
@click.option("--usage", is_flag=True, help="End with the tokens and the cost, on standard error.")
@click.option("-i", "--interactive", is_flag=True, help="Hold a conversation; /help lists its commands.")
@pass_invocation
def command(
    invocation: Invocation,
    /,
    prompt: str | None,
    model: str | None,
    system: str | None,
    type_path: str | None,
    usage: bool,
    interactive: bool,
    **options: Any,
) -> None:
    """Ask a model, or hold a conversation with -i.

    The answer is printed as it arrives. The question is PROMPT, or standard input, or both: then PROMPT says
    what to do with the text on standard input.
    """
    model = invocation.model(model)
    sampling = sampling_of(options)
    if interactive:
        _converse(invocation, prompt, model, system, type_path, sampling, shows_usage=usage)
        return
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": _question(prompt)})
    if type_path is not None:
        from omnigate.cli._frame.schema_type import schema_type

        sampling["response_type"] = schema_type(type_path)
    with invocation.client() as client:
        if invocation.is_json or sampling.keys() & {"response_type", "fallback_models", "cache"}:
            _print_whole(
                invocation, client.chat(model=model, messages=messages, **sampling), type_path, usage
            )
        else:
            streamed = print_stream(client, model, messages, sampling)
            if usage:
                note(usage_line(model, streamed.usage, price_of(client, model)))


class Streamed:
    """A streamed answer, or the part of it that arrived.

    Attributes:
        text: the text, as the model wrote it.
        usage: its tokens, once it is complete.
    """

    def __init__(self) -> None:
        self.text: str = ""
        self.usage: Usage | None = None


def print_stream(
    client: Client,
    model: str,
    messages: list[dict[str, str]],
    sampling: dict[str, Any],
    streamed: Streamed | None = None,
) -> Streamed:
    """Print an answer as it arrives, ending on a new line.

    Args:
        client: the client.
        model: the model.
        messages: the conversation.
        sampling: the sampling options.
        streamed: where to keep what arrived, if it matters how far an interrupted answer came.
    """
    streamed = streamed or Streamed()
    pieces: list[str] = []
    safe_text = SafeText(sys.stdout)
    last = "\n"
    try:
        stream: SyncChatStream[str] = client.chat_stream(
            model=model, messages=messages, as_chunks=False, include_usage=True, **sampling
        )
        with stream:
            for piece in stream:
                pieces.append(piece)
                if shown := safe_text.take(piece):
                    sys.stdout.write(shown)
                    sys.stdout.flush()
                    last = shown
        sys.stdout.write(safe_text.end())
        streamed.usage = stream.usage
        if not last.endswith("\n"):
            sys.stdout.write("\n")
        sys.stdout.flush()
    except BaseException:
        if not last.endswith("\n") and is_terminal(sys.stdout):
            sys.stdout.write("\n")  # the error, or the next prompt, begins a line
        raise
    finally:
        streamed.text = "".join(pieces)
    if stream.finish_reason == "length":
        note("The answer was cut off: it reached the most tokens allowed (--max-tokens).")
    return streamed


def price_of(client: Client, model: str) -> ModelPricing | None:
    """Return the price of a model; None if the gateway knows none."""
    from omnigate import APIError

    try:
        return client.model(model).pricing
    except APIError as error:
        if error.status_code == 404:
            return None
        raise


def usage_line(model: str, usage: Usage | None, price: ModelPricing | None) -> str:
    """Return the words for what an answer took; streams tell no cost, so it follows from the price."""
    if usage is None:
        return f"{model}: tokens and cost unknown"
    if price is None:
        cost = "cost unknown"
    else:
        cost = usd(
            (usage.prompt_tokens * price.input_per_1k_usd + usage.completion_tokens * price.output_per_1k_usd)
            / _PER
        )
    return f"{model}: {usage.prompt_tokens:,} tokens in, {usage.completion_tokens:,} out, {cost}"


def _question(prompt: str | None) -> str:
    """Return the question from the argument and standard input."""
    text = "" if is_terminal(sys.stdin) else read_input("the text")
    if prompt and text.strip():
        return f"{prompt}\n\n{text}"
    if not prompt and not text.strip():
        raise click.UsageError('no question: give it as "PROMPT" or on standard input, or use -i')
    return prompt or text


def _print_whole(
    invocation: Invocation, response: ChatResponse[Any], type_path: str | None, shows_usage: bool
) -> None:
    """Print an answer that arrived as a whole."""
    if invocation.is_json:
        shown = {**response.model_dump(mode="json"), "request_id": response.meta.request_id}
        if type_path is not None:
            shown["parsed"] = response.parsed
        emit_json(shown)
    elif type_path is not None:
        emit_json(response.parsed)
    else:
        safe_text = SafeText(sys.stdout)
        click.echo((safe_text.take(response.content) + safe_text.end()).removesuffix("\n"))
    if response.finish_reason == "length":
        note("The answer was cut off: it reached the most tokens allowed (--max-tokens).")
    if shows_usage:
        tokens = response.usage
        note(
            f"{response.model}: {tokens.prompt_tokens:,} tokens in, {tokens.completion_tokens:,} out, "
            f"{usd(response.cost_usd)}{' (cached)' if response.cached else ''}"
        )


def _converse(
    invocation: Invocation,
    prompt: str | None,
    model: str,
    system: str | None,
    type_path: str | None,
    sampling: dict[str, Any],
    *,
    shows_usage: bool,
) -> None:
    if type_path is not None or invocation.is_json:
        raise click.UsageError("-i cannot be combined with --type or --json")
    if sampling.keys() & {"fallback_models", "cache"}:
        raise click.UsageError("-i streams its answers, so it cannot be combined with --fallback or --cache")
    if not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        raise click.UsageError("-i needs a terminal")
    from omnigate.cli._commands.chat_session import converse

    with invocation.client() as client:
        converse(client, model, system, sampling, prompt, shows_usage=shows_usage)
