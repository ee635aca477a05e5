"""Chats with `response_type`: what is asked, which text fits, how often it is asked again, and what is billed."""

import contextlib
import copy
import dataclasses
import enum
import gc
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypedDict

import anyio
import httpx
import msgspec
import pydantic
import pytest

from omnigate import (
    AsyncClient,
    ChatRequest,
    ChatResponse,
    ClientClosedError,
    GatewayError,
    InvalidArgumentTypeError,
    ProviderError,
    ResponseFormatError,
    RetryConfig,
    TimeoutError,
    Usage,
)
from omnigate._calls.structured import (
    _CANDIDATES_MOST,
    _FALSE_STARTS_MOST,
    _SEARCHED_MOST,
    Asks,
    MisfitError,
    ResponseFormat,
    candidates,
    check_response_type,
)

from ..support.scripted import ScriptedTransport, Step, chat_answer, error_answer
from ..support.steps import count_of

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

KEY = "a-key-of-no-known-shape"
HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": "hello"}


class City(msgspec.Struct, frozen=True):
    name: str
    population: int


@dataclasses.dataclass
class Country:
    name: str
    cities: list[City]

    def __post_init__(self) -> None:
        if not self.cities:
            raise ValueError("a country needs a city")


class River(TypedDict):
    name: str
    kilometres: float


class Point(NamedTuple):
    x: int
    y: int


class Colour(enum.Enum):
    RED = "red"


class Mountain(pydantic.BaseModel):
    name: str
    metres: int = pydantic.Field(ge=1)


class Tree(msgspec.Struct):
    children: "list[Tree]" = []


class Plain:
    pass


class Handled(Exception):
    pass


@dataclasses.dataclass
class Buggy:
    name: str

    def __post_init__(self) -> None:
        raise Handled


PARIS = City("Paris", 2_100_000)
PARIS_JSON = '{"name": "Paris", "population": 2100000}'


def saying(content: str, **fields: Any) -> Step:
    return lambda _: chat_answer(content=content, **fields)


def client_of(*steps: Step, **arguments: Any) -> tuple[AsyncClient, ScriptedTransport]:
    transport = ScriptedTransport(*steps)
    arguments.setdefault("retry_config", RetryConfig(jitter=0))
    return AsyncClient(KEY, base_url="http://gateway.test", transport=transport, **arguments), transport


def sent(transport: ScriptedTransport) -> list[list[tuple[str, str]]]:
    return [
        [(message["role"], message["content"]) for message in json.loads(request.content)["messages"]]
        for request in transport.requests
    ]


def read(kind: Any, text: str) -> Any:
    return ResponseFormat(kind).read(text)


# What is asked


async def test_the_schema_is_a_system_message_of_its_own_if_there_is_none() -> None:
    client, transport = client_of(saying(PARIS_JSON))
    response = await client.chat(**HELLO, response_type=City)
    assert response.parsed == PARIS
    assert response.rejected == ()
    [((role, text), user)] = sent(transport)
    assert (role, user) == ("system", ("user", "hello"))
    words, _, schema = text.partition("\n")
    assert words == "Answer with nothing but JSON that matches this JSON schema:"
    assert json.loads(schema)["$defs"]["City"]["required"] == ["name", "population"]


async def test_the_schema_is_appended_to_the_system_message_that_is_given() -> None:
    client, transport = client_of(saying(PARIS_JSON))
    given = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    await client.chat(model="m", messages=given, response_type=City)
    [(system, user)] = sent(transport)
    assert system[1].startswith("Be brief.\n\nAnswer with nothing but JSON")
    assert user == ("user", "hello")
    assert given[0]["content"] == "Be brief."


async def test_a_chat_without_response_type_sends_no_schema_and_has_nothing_parsed() -> None:
    client, transport = client_of(saying(PARIS_JSON))
    response = await client.chat(**HELLO)
    assert sent(transport) == [[("user", "hello")]]
    assert response.parsed is None
    assert response.rejected == ()


def test_instructions_leave_the_request_itself_unchanged() -> None:
    request = ChatRequest(model="m", messages="hello", temperature=0)
    made = ResponseFormat(City).instruct(request)
    assert len(request.messages) == 1
    assert (len(made.messages), made.temperature) == (2, 0)


# Which types


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (City, PARIS_JSON, PARIS),
        (Country, f'{{"name": "France", "cities": [{PARIS_JSON}]}}', Country("France", [PARIS])),
        (River, '{"name": "Seine", "kilometres": 777}', {"name": "Seine", "kilometres": 777.0}),
        (Point, "[1, 2]", Point(1, 2)),
        (Colour, '"red"', Colour.RED),
        (Mountain, '{"name": "Blanc", "metres": 4806}', Mountain(name="Blanc", metres=4806)),
        (list[Mountain], '[{"name": "Blanc", "metres": 4806}]', [Mountain(name="Blanc", metres=4806)]),
        (list[City], f"[{PARIS_JSON}]", [PARIS]),
        (City | None, "null", None),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (Annotated[int, msgspec.Meta(ge=1, extra={"unhashable": []})], "5", 5),
        (Tree, '{"children": [{}]}', Tree([Tree()])),
    ],
)
def test_a_type_with_a_json_schema_is_decoded(kind: Any, text: str, value: Any) -> None:
    format = check_response_type(kind)
    assert format is not None
    assert format.read(text) == value
    assert format.read(f"Here you are:\n```json\n{text}\n```\nAnything else?") == value


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        (Plain, "there is none for Plain"),
        (list[Plain], "there is none for Plain"),
        ("City", "is not supported"),
        ({"type": "object"}, "is not supported"),
        (5, "is not supported"),
        (PARIS, "is not supported"),
        (complex, "there is none for complex"),
        (City | Tree, "must be tagged"),
        (Callable, "there is none for Callable"),
    ],
)
async def test_a_response_type_without_a_json_schema_is_refused_before_anything_is_sent(
    kind: Any, hint: str
) -> None:
    client, transport = client_of(saying(PARIS_JSON))
    words = "^response_type must be a type with a JSON schema: a msgspec Struct, a dataclass, .*, got .*"
    with pytest.raises(InvalidArgumentTypeError, match=f"{words}{hint}"):
        await client.chat(**HELLO, response_type=kind)
    with pytest.raises(InvalidArgumentTypeError, match=words):
        client.batch(["x"], model="m", response_type=kind)
    with pytest.raises(InvalidArgumentTypeError, match=words):
        await client.chat_many(["x"], model="m", response_type=kind)
    assert transport.requests == []


async def test_a_stream_takes_no_response_type() -> None:
    client, transport = client_of(saying(PARIS_JSON))
    with pytest.raises(InvalidArgumentTypeError, match="unknown argument 'response_type'"):
        client.chat_stream(**HELLO, response_type=City)  # type: ignore[call-overload]
    assert transport.requests == []


async def test_response_retries_must_not_be_negative() -> None:
    client, transport = client_of(saying(PARIS_JSON))
    words = "^response_retries must be an integer of at least 0, got -1"
    with pytest.raises(ValueError, match=words):
        await client.chat(**HELLO, response_type=City, response_retries=-1)
    with pytest.raises(ValueError, match=words):
        client.batch(["x"], model="m", response_retries=-1)
    assert transport.requests == []


def test_pydantic_is_imported_only_for_its_own_types() -> None:
    script = (
        "import sys, msgspec, omnigate; from omnigate._calls.structured import ResponseFormat as F\n"
        "assert F(msgspec.defstruct('C', [('a', int)])).read('{\"a\": 1}').a == 1\n"
        "assert F(list[int]).read('[1]') == [1]\n"
        "assert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True)


def test_the_format_of_a_type_is_made_once() -> None:
    assert check_response_type(City) is check_response_type(City)
    assert check_response_type(None) is None


def test_a_large_schema_is_sent_whole() -> None:
    kind: Any = int
    for depth in range(100):
        kind = msgspec.defstruct(f"Level{depth}", [(f"field_{n}", kind) for n in range(3)])
    request = ResponseFormat(kind).instruct(ChatRequest(model="m", messages="x"))
    assert '"Level0"' in request.messages[0].content


# Which text


@pytest.mark.parametrize(
    "text",
    [
        PARIS_JSON,
        f"\ufeff\n {PARIS_JSON}\n",
        f"```json\n{PARIS_JSON}\n```",
        f"```\n{PARIS_JSON}\n```",
        f"```JSON {PARIS_JSON}```",
        f"Sure! {PARIS_JSON} I hope that helps :-}}",
        f"Here [sic: {PARIS_JSON} it is",
        f'He said: "{{". {PARIS_JSON}',
        f'<think>It has the form {{"name": "…", "population": 1}}.</think>\n{PARIS_JSON}',
        f"{PARIS_JSON}\n\n(See [1].)",
        f'```json\n{{"name": "Draft"}}\n```\nCorrected:\n```json\n{PARIS_JSON}\n```',
        f"```json\n{PARIS_JSON}",
    ],
)
def test_the_value_is_found_in_a_fence_or_in_prose(text: str) -> None:
    assert read(City, text) == PARIS


def test_the_last_value_that_fits_is_the_answer() -> None:
    draft = '{"name": "Draft", "population": 1}'
    assert read(City, f"{draft} No: {PARIS_JSON}") == PARIS
    assert read(City, f"```\n{draft}\n``` No:\n```\n{PARIS_JSON}\n```") == PARIS


@pytest.mark.parametrize(
    "name", ["Zürich 🏔", 'a "quoted" name', "}{][", "back\\slash\\", "```json", "line\nline", "\u2028"]
)
@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_text_of_any_kind_survives_in_a_value(name: str, ensure_ascii: bool) -> None:
    text = json.dumps({"name": name, "population": 1}, ensure_ascii=ensure_ascii)
    for answer in (text, f"Here: {text} Bye.", f"```json\n{text}\n```"):
        assert read(City, answer) == City(name, 1)


def test_a_lone_surrogate_in_a_value_becomes_a_replacement_character() -> None:
    assert read(City, '{"name": "x\\ud83d", "population": 1}') == City("x\ufffd", 1)


@pytest.mark.parametrize(
    ("kind", "text", "problem"),
    [
        (City, "", "it is empty"),
        (City, " \n", "it is empty"),
        (City, "I cannot say.", "JSON is malformed"),
        (City, '{"name": "Paris"}', "missing required field `population`"),
        (City, '{"name": "Paris", "population": "many"}', r"Expected `int`, got `str` - at `\$.population`"),
        (City, '2 answers: {"name": "Paris", "population": "2"}', r"got `str` - at `\$.population`"),
        (City, '{"name": "Paris", "popu', "truncated"),
        (City, '{"name": "Paris", "population": 1e999}', r"at `\$.population`|out of range"),
        (City, "[]" * 5_000, "Expected `object`, got `array`|missing"),
        (Country, '{"name": "Nowhere", "cities": []}', "a country needs a city"),
        (Mountain, '{"metres": 0}', "name.*greater than or equal to 1 - at metres"),
        (Mountain, "no", "Invalid JSON"),
        (list[int], f"{[1] * 5}"[:-1], "truncated"),
        (Any, "[" * 100_000, "nested too deeply"),
        (Tree, '{"children":[' * 100_000, "nested too deeply"),
        (Mountain, "[" * 100_000, "recursion limit"),
        (City, "[" * 100_000, "Expected `object`, got `array`"),
    ],
)
def test_a_text_that_does_not_fit_says_why(kind: Any, text: str, problem: str) -> None:
    with pytest.raises(MisfitError, match=f"(?s){problem}"):
        read(kind, text)


@pytest.mark.parametrize("kind", [City, Mountain])
@pytest.mark.parametrize("text", ["no", f"So {PARIS_JSON}", 'So {"name": "Blanc", "metres": 4806}'])
def test_reading_leaves_no_garbage_for_the_collector(kind: Any, text: str) -> None:
    format = ResponseFormat(kind)
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(MisfitError):
            format.read(text)
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("unit", ["[", "{", '{"a', '\\"', "{}", '"', "```", '[{"', "} {"])
def test_the_search_takes_linear_time(unit: str) -> None:
    def work(length: int) -> int:
        return count_of(lambda: list(candidates(unit * (length // len(unit)))))

    work(100)
    assert work(8_000) <= 8 * (_FALSE_STARTS_MOST + 1) * max(work(1_000), 200)


def test_the_number_and_the_length_of_candidates_are_bounded() -> None:
    assert len(list(candidates("{}" * 10_000))) <= 2 * _CANDIDATES_MOST + 1
    assert len(list(candidates("```{}``` " * 10_000))) <= 2 * _CANDIDATES_MOST + 1
    prose = "x" * _SEARCHED_MOST
    assert list(candidates(prose + PARIS_JSON)) == [prose + PARIS_JSON]
    assert read(City, PARIS_JSON[:-1] + ',"more":"' + prose + '"}') == PARIS


# Asking again


async def test_an_answer_that_does_not_fit_is_asked_again_with_what_is_wrong() -> None:
    client, transport = client_of(saying('{"name": "Paris"}'), saying("Sorry!"), saying(PARIS_JSON))
    response = await client.chat(**HELLO, response_type=City)
    assert response.parsed == PARIS
    first, second, third = sent(transport)
    assert second[: len(first)] == first
    assert second[-2] == ("assistant", '{"name": "Paris"}')
    assert second[-1] == (
        "user",
        "This does not match the JSON schema: Object missing required field `population`. "
        "Answer again, with nothing but JSON that matches it.",
    )
    assert third[: len(second)] == second
    assert third[-2] == ("assistant", "Sorry!")


async def test_all_answers_of_a_call_are_billed_visibly() -> None:
    client, _ = client_of(
        error_answer(503, "OpenAI error 503: busy"), saying("no", cost_usd=0.25), saying(PARIS_JSON)
    )
    response = await client.chat(**HELLO, response_type=City)
    assert response.usage == Usage(prompt_tokens=2, completion_tokens=4, total_tokens=6)
    assert response.cost_usd == pytest.approx(0.250004)
    assert response.meta.attempts == 3
    [rejected] = response.rejected
    assert (rejected.content, rejected.cost_usd, rejected.usage.total_tokens) == ("no", 0.25, 3)
    assert (rejected.meta.attempts, rejected.meta.request_id) == (2, "request-1")
    assert rejected.parsed is None


@pytest.mark.parametrize(("retries", "answers"), [(None, 3), (0, 1), (4, 5)])
async def test_what_never_fits_is_a_typed_error_with_the_text_and_all_answers(
    retries: int | None, answers: int
) -> None:
    client, transport = client_of(saying('{"name": "sk-secret1234"}', cost_usd=0.5))
    options: dict[str, Any] = {} if retries is None else {"response_retries": retries}
    with pytest.raises(ResponseFormatError) as caught:
        await client.chat(**HELLO, response_type=City, **options)
    error = caught.value
    assert len(transport.requests) == answers == error.attempts == len(error.billed)
    which = "the answer does" if answers == 1 else f"{answers} answers do"
    problem = "Object missing required field `population`"
    assert str(error) == f"{which} not fit City: {problem}"
    assert (error.text, error.problem) == ('{"name": "sk-secret1234"}', problem)
    assert error.request_id == "request-1"
    assert sum(answer.cost_usd for answer in error.billed) == 0.5 * answers
    assert isinstance(error, ValueError)
    assert isinstance(error, GatewayError)


async def test_the_error_redacts_keys_in_the_problem_and_keeps_the_text_as_it_came() -> None:
    class Closed(msgspec.Struct, forbid_unknown_fields=True):
        a: int

    client, _ = client_of(saying('{"sk-secret1234 a-key-of-no-known-shape": 1}'))
    with pytest.raises(ResponseFormatError) as caught:
        await client.chat(**HELLO, response_type=Closed, response_retries=0)
    shown = str(caught.value) + repr(caught.value) + caught.value.problem
    assert "sk-*** ***" in str(caught.value)
    assert "secret" not in shown
    assert KEY not in shown
    assert f"sk-secret1234 {KEY}" in caught.value.text


async def test_an_answer_that_was_cut_off_is_noted_in_the_error() -> None:
    client, _ = client_of(saying('{"name": "Par', finish_reason="length"))
    with pytest.raises(ResponseFormatError) as caught:
        await client.chat(**HELLO, response_type=City, response_retries=0)
    assert any("max_tokens" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
async def test_a_parsed_response_and_the_error_can_be_copied_and_pickled(
    copied: Callable[[Any], Any],
) -> None:
    client, _ = client_of(saying("no"), saying(PARIS_JSON))
    response = copied(await client.chat(**HELLO, response_type=City))
    assert (response.parsed, response.rejected[0].content) == (PARIS, "no")
    assert response.meta.request_id == "request-1"
    client, _ = client_of(saying("no"))
    with pytest.raises(ResponseFormatError) as caught:
        await client.chat(**HELLO, response_type=City)
    error = copied(caught.value)
    assert (str(error), error.text, len(error.billed)) == (str(caught.value), "no", 3)


async def test_an_error_while_asking_again_has_the_answers_that_were_billed() -> None:
    client, _ = client_of(saying("no"), error_answer(400, "OpenAI error 400: no"))
    with pytest.raises(ProviderError) as caught:
        await client.chat(**HELLO, response_type=City)
    assert [answer.content for answer in caught.value.billed] == ["no"]
    assert caught.value.attempts == 2


async def test_each_ask_is_retried_as_often_as_a_call_of_its_own() -> None:
    busy = error_answer(503, "OpenAI error 503: busy")
    client, transport = client_of(
        busy, busy, saying("no"), busy, busy, saying(PARIS_JSON), retry_config=RetryConfig(max_retries=2)
    )
    response = await client.chat(**HELLO, response_type=City)
    assert response.meta.attempts == len(transport.requests) == 6


async def test_all_asks_share_one_deadline() -> None:
    async def slow(_: httpx.Request) -> httpx.Response:
        await anyio.sleep(4)
        return chat_answer(content="no")

    client, transport = client_of(slow)
    start = anyio.current_time()
    with pytest.raises(TimeoutError, match="deadline_seconds=10") as caught:
        await client.chat(**HELLO, response_type=City, response_retries=9, deadline_seconds=10)
    assert anyio.current_time() - start == pytest.approx(10)
    assert len(transport.requests) == 3
    assert len(caught.value.billed) == 2


async def test_each_ask_is_hedged() -> None:
    async def slow(_: httpx.Request) -> httpx.Response:
        await anyio.sleep(60)
        raise AssertionError("unreachable")

    client, transport = client_of(slow, saying("no"), slow, saying(PARIS_JSON))
    response = await client.chat(**HELLO, response_type=City, hedge_after=1)
    assert response.parsed == PARIS
    assert len(transport.requests) == 4
    assert len(response.rejected) == 1


async def test_a_client_that_is_closed_between_two_asks_keeps_what_was_billed() -> None:
    async def close(_: httpx.Request) -> httpx.Response:
        await client.aclose()
        return chat_answer(content="no")

    client, transport = client_of(close)
    with pytest.raises(ClientClosedError) as caught:
        await client.chat(**HELLO, response_type=City)
    assert len(transport.requests) == 1
    assert [answer.content for answer in caught.value.billed] == ["no"]


async def test_a_cancelled_ask_ends_the_call() -> None:
    async def hang(_: httpx.Request) -> httpx.Response:
        scope.cancel()
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    client, transport = client_of(saying("no"), hang)
    with anyio.CancelScope() as scope:
        await client.chat(**HELLO, response_type=City)
    assert scope.cancelled_caught
    assert len(transport.requests) == 2


async def test_a_bug_in_a_type_is_raised_as_it_is() -> None:
    client, transport = client_of(saying('{"name": "x"}'))
    with pytest.raises(Handled):
        await client.chat(**HELLO, response_type=Buggy)
    assert len(transport.requests) == 1


def test_asks_need_no_event_loop() -> None:
    asks = Asks(ChatRequest(model="m", messages="x"), ResponseFormat(City), retries=1)
    answer = ChatResponse(id="1", provider="p", model="m", content=PARIS_JSON)
    assert asks.settles(answer)
    assert answer.parsed == PARIS


def test_response_classes_can_be_subscripted_in_annotations() -> None:
    assert ChatResponse[City].__origin__ is ChatResponse
    assert msgspec.json.decode(
        b'{"id":"1","provider":"p","model":"m","content":"c"}', type=ChatResponse
    ) == ChatResponse(id="1", provider="p", model="m", content="c")
    assert "parsed" not in ChatResponse.model_json_schema()["properties"]
