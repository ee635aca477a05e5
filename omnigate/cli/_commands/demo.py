"""`omnigate demo`: the main features, end to end, against a local gateway, in a few seconds."""

from __future__ import annotations

import csv
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from omnigate import AdminClient, AuthError, Client, ProviderError
from omnigate._wire.redaction import mask, printable
from omnigate.cli._frame.command import Command
from omnigate.cli._frame.running import interrupt_on_sigterm
from omnigate.testing import LocalGateway

_MODEL = "gpt-4o-mini"

_WINDOW_SECONDS = 3

_CALLS_A_WINDOW = 4

_ITEMS = 10


@click.command(cls=Command, common=("debug",), examples=["omnigate demo"])
def command() -> None:
    """Show the client at work against a local gateway.

    Sign-up, a chat, a stream, a structured answer, a file of prompts that is stopped and resumed, errors, a
    batch that keeps the rate limit, metrics. Nothing leaves this machine.
    """
    interrupt_on_sigterm()
    try:
        run_demo()
    except KeyboardInterrupt:
        click.echo("\nstopped")
        sys.exit(130)


def escape(text: str) -> str:
    """Escape text from the gateway, so that neither rich nor the terminal interprets it."""
    return escape_markup(printable(text))


def run_demo() -> None:
    """Run the demonstration and print what happens."""
    console = Console(highlight=False)
    console.soft_wrap = not console.is_terminal  # a file or a pipe gets whole lines
    with LocalGateway(rate_window_seconds=_WINDOW_SECONDS, chunk_delay_seconds=0.06) as gateway:
        console.print(f"A local gateway serves at [bold]{gateway.url}[/]. Nothing leaves this machine.")
        with Client(base_url=gateway.url) as newcomer:
            account = newcomer.signup(email="dev@acme.test", org_name="Acme")
        _step(console, "Sign up", f"organisation {account.org_id[:8]}…, key {mask(account.api_key)}")
        with Client(account.api_key, base_url=gateway.url) as client:
            client.set_provider_key(provider="openai", api_key="sk-any-key-will-do-here")
            _step(console, "Store a provider key", "openai")
            _chat(console, client)
            _stream(console, client)
            _structured(console, client)
            with TemporaryDirectory() as folder:
                _data(console, client, Path(folder))
            _errors(console, client, gateway)
            _batch(console, gateway)
            _metrics(console, client)
    console.print("\nDone.")


def _step(console: Console, title: str, text: str = "") -> None:
    console.print(f"\n[bold cyan]{title}[/]" + (f"  {text}" if text else ""))


def _chat(console: Console, client: Client) -> None:
    answer = client.chat(model=_MODEL, messages="Say hi in French")
    _step(console, "Chat", escape(answer.content))
    limit = answer.meta.rate_limit
    console.print(
        f"  {answer.usage.total_tokens} tokens, {answer.cost_usd:.6f} USD, "
        f"{answer.meta.elapsed * 1000:.0f} ms, request {escape((answer.meta.request_id or '?')[:8])}…, "
        f"{limit.remaining if limit else '?'} calls left in this window"
    )


def _stream(console: Console, client: Client) -> None:
    _step(console, "Stream")
    console.print("  ", end="")
    question = "tell me of the river that runs down to the sea and comes back as rain"
    with client.chat_stream(model=_MODEL, messages=question, include_usage=True) as stream:
        for piece in stream:
            console.print(escape(piece), end="", soft_wrap=True)
    tokens = stream.usage.total_tokens if stream.usage else "?"
    console.print(f"\n  {tokens} tokens, finish reason {stream.finish_reason}")


@dataclass
class City:
    name: str
    population: int


def _structured(console: Console, client: Client) -> None:
    _step(console, "A structured answer")
    question = 'A city of Norway, as {"name": "Oslo", "population": 724000}'
    answer = client.chat(model=_MODEL, messages=question, response_type=City)
    console.print(f"  {escape(repr(answer.parsed))}")


def _data(console: Console, client: Client, folder: Path) -> None:
    _step(console, "A file in, a file out", "reviews.csv to answers.csv")
    reviews, journal, answers = (
        folder / "reviews.csv",
        folder / "answers.journal.jsonl",
        folder / "answers.csv",
    )
    texts = ("The soup was cold", "Great cake", "Never again", "We will be back", "Too loud", "Just right")
    reviews.write_text("id,text\n" + "".join(f"r{n},{text}\n" for n, text in enumerate(texts, 1)), "utf-8")
    options: Any = {"model": _MODEL, "prompt": "Sum up: {text}", "id": "id", "max_tokens": 20}
    estimate = client.estimate(reviews, **options)
    low, high = estimate.total_tokens
    console.print(f"  estimate: {estimate.items} items, {low} to {high} tokens")
    with client.batch(reviews, journal=journal, max_concurrency=1, **options) as batch:
        for outcome in batch:
            if outcome.id == "r3":
                batch.stop()
    console.print(f"  first run: {batch.stats.succeeded} answered, then stopped")
    stats = client.batch(reviews, journal=journal, **options).write(answers)
    console.print(f"  second run: {stats.replayed} from the journal, {stats.succeeded} called")
    with answers.open(newline="", encoding="utf-8") as file:
        first = next(csv.DictReader(file))
    console.print(
        f"  {escape(first['id'])}: {escape(first['content'])}  [dim]{first['total_tokens']} tokens[/]"
    )


def _errors(console: Console, client: Client, gateway: LocalGateway) -> None:
    _step(console, "Errors have types")
    try:
        client.chat(model="claude-3-5-haiku-latest", messages="hi")
    except ProviderError as error:
        console.print(escape(f"  ProviderError: {error}"))
    with Client("llmg_wrong", base_url=gateway.url) as stranger:
        try:
            stranger.me()
        except AuthError as error:
            console.print(escape(f"  AuthError: {error}"), f"\n    [dim]{' '.join(error.__notes__)}[/]")


def _batch(console: Console, gateway: LocalGateway) -> None:
    _step(
        console,
        "A batch keeps the rate limit",
        f"{_ITEMS} prompts, {_CALLS_A_WINDOW} calls allowed in {_WINDOW_SECONDS} s (really: a minute)",
    )
    with AdminClient(gateway.admin_key, base_url=gateway.url) as admin:
        org = admin.create_org(name="Acme")
        project = admin.create_project(org_id=org.id, name="slow", rate_limit_per_min=_CALLS_A_WINDOW)
    started = time.monotonic()
    with Client(project.api_key, base_url=gateway.url) as client:
        client.set_provider_key(provider="openai", api_key="sk-any-key-will-do-here")
        with client.batch((f"number {n}" for n in range(1, _ITEMS + 1)), model=_MODEL, ordered=True) as batch:
            for outcome in batch:
                after = time.monotonic() - started
                console.print(f"  {escape(outcome.unwrap().content)}  [dim]after {after:.1f} s[/]")
        stats = batch.stats
    console.print(
        f"  {stats.succeeded} answered, {stats.failed} failed, none lost; "
        f"{stats.total_tokens} tokens, {stats.cost_usd:.6f} USD"
    )


def _metrics(console: Console, client: Client) -> None:
    _step(console, "Usage metrics")
    metrics = client.metrics(range="1h", group_by="model")
    table = Table("model", "requests", "tokens", "USD", "errors")
    for row in metrics.breakdown:
        table.add_row(
            escape(row.key),
            str(row.requests),
            str(row.total_tokens),
            f"{row.cost_usd:.6f}",
            f"{row.error_rate:.0%}",
        )
    console.print(table)
