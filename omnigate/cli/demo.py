"""`omnigate demo`: the main job, end to end, against the built-in local gateway, in a few seconds."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from omnigate import AdminClient, AuthError, ChatResponse, Client, ProviderError
from omnigate.redaction import mask
from omnigate.testing import LocalGateway

_MODEL = "gpt-4o-mini"
_WINDOW_SECONDS = 3
_CALLS_A_WINDOW = 4
_CALLS = 6


def run_demo() -> None:
    """Run the demonstration and print what happens."""
    console = Console(highlight=False, soft_wrap=True)
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
            _errors(console, client, gateway)
            _rate_limit(console, gateway)
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
        f"{answer.meta.elapsed * 1000:.0f} ms, request {(answer.meta.request_id or '?')[:8]}…, "
        f"{limit.remaining if limit else '?'} calls left in this window"
    )


def _stream(console: Console, client: Client) -> None:
    _step(console, "Stream")
    console.print("  ", end="")
    question = "tell me of the river that runs down to the sea and comes back as rain"
    with client.chat_stream(model=_MODEL, messages=question, include_usage=True) as stream:
        for piece in stream:
            console.print(escape(piece), end="")
    tokens = stream.usage.total_tokens if stream.usage else "?"
    console.print(f"\n  {tokens} tokens, finish reason {stream.finish_reason}")


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


def _rate_limit(console: Console, gateway: LocalGateway) -> None:
    _step(
        console,
        "A rate limit is honoured",
        f"{_CALLS} calls at once, {_CALLS_A_WINDOW} allowed in {_WINDOW_SECONDS} s (really: a minute)",
    )
    with AdminClient(gateway.admin_key, base_url=gateway.url) as admin:
        org = admin.create_org(name="Acme")
        project = admin.create_project(org_id=org.id, name="slow", rate_limit_per_min=_CALLS_A_WINDOW)
    started = time.monotonic()
    with Client(project.api_key, base_url=gateway.url) as client, ThreadPoolExecutor(_CALLS) as threads:
        client.set_provider_key(provider="openai", api_key="sk-any-key-will-do-here")

        def call(number: int) -> ChatResponse:
            return client.chat(model=_MODEL, messages=f"number {number}")

        for answer in threads.map(call, range(1, _CALLS + 1)):
            waited = " after a 429 and the wait it asked for" if answer.meta.attempts > 1 else ""
            console.print(f"  {escape(answer.content)}  [dim]{answer.meta.elapsed:.1f} s{waited}[/]")
    console.print(f"  all {_CALLS} answered in {time.monotonic() - started:.1f} s, none lost")


def _metrics(console: Console, client: Client) -> None:
    _step(console, "Usage metrics")
    metrics = client.metrics(range="1h", group_by="model")
    table = Table("model", "requests", "tokens", "USD", "errors")
    for row in metrics.breakdown:
        table.add_row(
            row.key, str(row.requests), str(row.total_tokens), f"{row.cost_usd:.6f}", f"{row.error_rate:.0%}"
        )
    console.print(table)
