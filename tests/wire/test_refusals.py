"""Every public argument refuses what it cannot take in the same words: what must hold, and what was given."""

import inspect
import math
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, get_args, get_type_hints

import httpx
import pytest

from omnigate import (
    AdminClient,
    AsyncAdminClient,
    AsyncClient,
    ChatRequest,
    Client,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    Message,
    RetryConfig,
)
from omnigate._transport.anyio_transport import AnyIOTransport
from omnigate._wire.arguments import check_headers
from omnigate._wire.checks import Range, one_of, refusal, text_of
from omnigate.testing import LocalGateway
from omnigate.testing.faults import Status
from tests.support.scripted import ScriptedTransport

KEY = "llmg_Abcdefg" + "x" * 36

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}

NEEDED: dict[str, dict[str, Any]] = {
    "batch": {"requests": []},
    "chat": HELLO,
    "chat_many": {"requests": []},
    "chat_stream": HELLO,
    "completions": HELLO,
    "completions_stream": HELLO,
    "create_api_key": {"name": "n"},
    "create_org": {"name": "n"},
    "create_project": {"org_id": "o", "name": "n"},
    "estimate": {"requests": []},
    "model": {"id": "m"},
    "org_metrics": {"org_id": "o"},
    "race": {"models": ["m"], "messages": "hello"},
    "revoke_api_key": {"id": "i"},
    "set_provider_key": {"provider": "openai", "api_key": "sk-12345678"},
    "signup": {"email": "a@b.test"},
}
"""What a method needs besides the argument under test."""

NEEDED_WITH: dict[str, dict[str, Any]] = {"end": {"start": "2026-11-26T00:00:00Z"}}
"""What an argument cannot do without."""

NEVER_CHECKED = {"aclose", "close"}

IGNORED = {("estimate", "journal"), ("estimate", "progress")}
"""Arguments of a batch that an estimate of it has no use for."""


class Unfit:
    """Nothing that any argument takes."""

    def __repr__(self) -> str:
        return "<unfit>"


def arguments_of(function: Callable[..., Any]) -> Iterator[str]:
    """Yield the names of a callable's arguments, those of a `TypedDict` that it unpacks included."""
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            (unpacked,) = get_args(get_type_hints(function)[name])
            yield from unpacked.__annotations__
        elif name != "self":
            yield name


def methods_with_arguments(*kinds: type) -> list[tuple[type, str, str]]:
    return [
        (kind, name, argument)
        for kind in kinds
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_") and name not in NEVER_CHECKED
        for argument in arguments_of(method)
        if (name, argument) not in IGNORED
    ]


def of_constructors(*kinds: type) -> list[tuple[type, str]]:
    return [(kind, argument) for kind in kinds for argument in arguments_of(kind)]


def settable(*kinds: type) -> list[tuple[type, str]]:
    return [
        (kind, name)
        for kind in kinds
        for name, member in inspect.getmembers(kind)
        if isinstance(member, property) and member.fset is not None
    ]


def with_unfit(method: str, argument: str) -> dict[str, Any]:
    """Return arguments of a method of which one is unfit."""
    return {**NEEDED.get(method, {}), **NEEDED_WITH.get(argument, {}), argument: Unfit()}


def check_refusal(error: InvalidArgumentError, argument: str) -> None:
    """Check an error about `Unfit` as an argument."""
    assert isinstance(error, TypeError)
    assert re.fullmatch(rf"{argument} must .+, got (<unfit>|an object of type Unfit)( \(.+\))?", str(error))


def unsent(request: httpx.Request) -> httpx.Response:
    raise AssertionError("a request was sent")


@pytest.mark.parametrize(
    ("kind", "argument"),
    of_constructors(
        AsyncClient, AsyncAdminClient, Client, AdminClient, RetryConfig, AnyIOTransport, LocalGateway
    ),
)
def test_a_bad_value_of_each_constructor_argument_is_refused_by_name(kind: type, argument: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        kind(**{argument: Unfit()})
    check_refusal(caught.value, argument)


@pytest.mark.parametrize(
    ("kind", "argument"),
    [(kind, name) for kind in (ChatRequest, Message) for name in kind.__struct_fields__],
)
def test_a_bad_value_of_each_request_field_is_refused_by_name(kind: type, argument: str) -> None:
    needed = {**HELLO} if kind is ChatRequest else {"role": "user", "content": "x"}
    with pytest.raises(InvalidArgumentError) as caught:
        kind(**{**needed, argument: Unfit()})
    check_refusal(caught.value, argument)


@pytest.mark.parametrize(("kind", "argument"), settable(AsyncClient, AsyncAdminClient, Client, AdminClient))
def test_a_bad_value_of_each_client_attribute_is_refused_by_name(kind: type, argument: str) -> None:
    client = kind(KEY, transport=ScriptedTransport(unsent))
    with pytest.raises(InvalidArgumentError) as caught:
        setattr(client, argument, Unfit())
    check_refusal(caught.value, argument)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # nothing is sent, on any event loop
@pytest.mark.parametrize(
    ("kind", "method", "argument"), methods_with_arguments(AsyncClient, AsyncAdminClient)
)
async def test_a_bad_value_of_each_async_method_argument_is_refused_by_name(
    kind: type, method: str, argument: str
) -> None:
    async with kind(KEY, transport=ScriptedTransport(unsent)) as client:
        with pytest.raises(InvalidArgumentError) as caught:
            result = getattr(client, method)(**with_unfit(method, argument))
            if inspect.isawaitable(result):
                await result
            else:
                assert isinstance(result, AsyncIterator)
                await anext(result)
    check_refusal(caught.value, argument)


@pytest.fixture(scope="module")
def sync_clients() -> Iterator[dict[type, Client | AdminClient]]:
    with (
        Client(KEY, transport=ScriptedTransport(unsent)) as client,
        AdminClient(KEY, transport=ScriptedTransport(unsent)) as admin,
    ):
        yield {Client: client, AdminClient: admin}


@pytest.mark.parametrize(("kind", "method", "argument"), methods_with_arguments(Client, AdminClient))
def test_a_bad_value_of_each_sync_method_argument_is_refused_by_name(
    sync_clients: dict[type, Client | AdminClient], kind: type, method: str, argument: str
) -> None:
    call = getattr(sync_clients[kind], method)
    with pytest.raises(InvalidArgumentError) as caught:
        result = call(**with_unfit(method, argument))
        next(result)
    check_refusal(caught.value, argument)


@pytest.mark.parametrize(
    ("method", "argument"),
    [
        (method, argument)
        for method in ("create_project", "script")
        for argument in arguments_of(getattr(LocalGateway, method))
    ],
)
def test_a_bad_value_of_each_local_gateway_argument_is_refused_by_name(method: str, argument: str) -> None:
    needed = {"fault": Status(500)} if method == "script" else {}
    with pytest.raises(InvalidArgumentError) as caught:
        getattr(LocalGateway(), method)(**{**needed, argument: Unfit()})
    check_refusal(caught.value, argument)


def test_a_refusal_says_what_must_hold_and_what_was_given() -> None:
    error = refusal("temperature", 3, "be between 0 and 2")
    assert str(error) == "temperature must be between 0 and 2, got 3"
    assert not isinstance(error, TypeError)
    with_hint = refusal("stop", {1}, "be text", is_type=True, hint="or leave it out")
    assert str(with_hint) == "stop must be text, got {1} (or leave it out)"
    assert isinstance(with_hint, InvalidArgumentTypeError)


def test_a_refusal_masks_keys_shortens_values_and_shows_no_secret() -> None:
    assert KEY not in str(refusal("name", KEY, "be short"))
    assert len(str(refusal("name", "x" * 10_000, "be short"))) < 150
    assert str(refusal("api_key", "hunter2", "be longer", secret=True)) == "api_key must be longer, got ***"
    assert str(refusal("api_key", b"hunter2", "be text", secret=True, is_type=True)).endswith(
        "got an object of type bytes"
    )


@pytest.mark.parametrize(
    ("numbers", "text", "inside", "outside"),
    [
        (Range(minimum=0, maximum=2), "between 0 and 2", [0, 2, 0.5], [-0.1, 2.1, math.nan, 10**400]),
        (Range(minimum=-2, maximum=2), "between -2 and 2", [-2, 2], [-3, 3]),
        (Range(minimum=1, is_integer=True), "an integer of at least 1", [1, 10**400], [0, -(10**400)]),
        (Range(minimum=1, maximum=60, is_integer=True), "an integer between 1 and 60", [1, 60], [0, 61]),
        (Range(above=0), "a finite number above 0", [0.1, 10], [0, -1, math.inf, math.nan, 10**400]),
        (Range(above=0, unit="seconds"), "a finite number of seconds above 0", [1], [0]),
        (Range(minimum=0), "a finite number, at least 0", [0, 1e300], [-1, math.inf, math.nan]),
    ],
)
def test_a_range_refuses_numbers_outside_its_stated_bounds(
    numbers: Range, text: str, inside: list[float], outside: list[float]
) -> None:
    assert str(numbers) == text
    for value in inside:
        assert numbers.check(value, "x") == value
    for value in outside:
        with pytest.raises(InvalidArgumentError) as caught:
            numbers.check(value, "x")
        assert str(caught.value).startswith(f"x must be {text}, got ")
        assert not isinstance(caught.value, TypeError)
    with pytest.raises(InvalidArgumentTypeError, match=f"^x must be {text}, or None, got True$"):
        numbers.check(True, "x", otherwise=", or None")


def test_choices_and_text_lengths_are_worded_as_english() -> None:
    assert one_of(("a",)) == "'a'"
    assert one_of(("a", "b", "c")) == "'a', 'b' or 'c'"
    assert text_of(1, None) == "text of at least 1 character"
    assert text_of(0, 255) == "text of at most 255 characters"
    assert text_of(3, 255) == "text of 3 to 255 characters"


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({5: "x"}, "headers must have text as names, got 5"),
        ({"a b": "x"}, "headers must have names of letters, digits and -_., got 'a b'"),
        ({"Host": 5}, "headers['Host'] must be Latin-1 text without line breaks and control characters, got 5"),
        ({"x": "\n"}, r"headers['x'] must be Latin-1 text without line breaks and control characters, got '\n'"),
        (
            {"Authorization": "hunter2\n"},
            "headers['Authorization'] must be Latin-1 text without line breaks and control characters, got ***",
        ),
        (
            {"Cookie": b"hunter2"},
            "headers['Cookie'] must be Latin-1 text without line breaks and control characters, "
            "got an object of type bytes",
        ),
        (
            {"TE": "x"},
            "headers must leave out the headers that the client itself sets, got 'TE'",
        ),
    ],
)  # fmt: skip
def test_a_header_is_refused_by_its_name_and_a_secret_is_not_shown(
    headers: dict[Any, Any], message: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_headers(headers, "headers")
    assert str(caught.value) == message
