"""Answers as values of a type: its JSON schema goes into the system message, and the text is decoded to it.

Models write JSON in fences, or with prose around it, and think aloud before it. So the last JSON value in a
text that fits is the answer. The search takes linear time: candidates do not overlap, their number is
bounded, and no pattern backtracks.

Sans-I/O. `ResponseFormat` knows a type, `Asks` one call: what to send next, and whether it has its answer.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, ClassVar, Final, Generic, TypeVar, cast

import msgspec

from omnigate._wire.checks import refusal
from omnigate._wire.redaction import one_line, redact
from omnigate._wire.structs import decode
from omnigate.exceptions import ResponseFormatError
from omnigate.models import ChatRequest, ChatResponse, Message, Usage

T = TypeVar("T")

RESPONSE_RETRIES: Final = 2
"""How often a call asks again for an answer that fits, by default."""

_INSTRUCTION: Final = "Answer with nothing but JSON that matches this JSON schema:\n"

_COMPLAINT: Final = (
    "This does not match the JSON schema: {}. Answer again, with nothing but JSON that matches it."
)

_BE_TYPE: Final = (
    "be a type with a JSON schema: a msgspec Struct, a dataclass, a TypedDict, a pydantic model, or None"
)

_PROBLEM_LENGTH: Final = 1_000

_FORMATS_KEPT: Final = 128

_SEARCHED_MOST: Final = 1 << 18
"""Characters of a text that is searched for JSON; a longer one has to be JSON as a whole."""

_CANDIDATES_MOST: Final = 32

_FALSE_STARTS_MOST: Final = 4
"""How many brackets that are never closed the search goes past."""

_NO_SCHEMA: Final = (TypeError, ValueError, NameError, AttributeError, RuntimeError)
"""What msgspec and pydantic raise for types that they cannot describe or decode."""

_BRACKET = re.compile(r"[\[{]")

_MARK = re.compile(r'["\\\[\]{}]')
"""What matters for where a JSON value ends."""


class MisfitError(Exception):
    """A text that does not fit a type; internal.

    Attributes:
        is_json: whether it is JSON at all.
    """

    def __init__(self, problem: str, *, is_json: bool) -> None:
        super().__init__(problem)
        self.is_json: bool = is_json


class SchemaType:
    """Base of types that are a JSON schema themselves, rather than described by one; internal.

    Attributes:
        json_schema: the schema.
    """

    json_schema: ClassVar[dict[str, Any]]

    @classmethod
    def checked(cls, value: Any) -> Any:
        """Return a value that matches the schema.

        Raises:
            ValueError: it does not; the error says why.
        """
        raise NotImplementedError


class ResponseFormat(Generic[T]):
    """A type as a format of answers.

    Args:
        kind: the type.

    Attributes:
        name: its name.

    Raises:
        TypeError: it has no JSON schema; or another of `_NO_SCHEMA`.
    """

    __slots__ = ("_decode", "_instruction", "name")

    def __init__(self, kind: type[T]) -> None:
        self.name: str = getattr(kind, "__name__", repr(kind))
        self._decode: Callable[[bytes], T]
        schema: dict[str, Any] | None
        if isinstance(kind, type) and issubclass(kind, SchemaType):
            schema, self._decode = kind.json_schema, _with_own_check(kind)
        elif _is_of_pydantic(kind) or (schema := _schema_of(kind)) is None:
            schema, self._decode = _with_pydantic(kind)
        else:
            self._decode = _with_msgspec(kind)
        self._instruction: str = _INSTRUCTION + msgspec.json.encode(schema).decode()

    def __repr__(self) -> str:
        return f"<ResponseFormat {self.name}>"

    def instruct(self, request: ChatRequest) -> ChatRequest:
        """Return a request that asks for this format, in its system message."""
        messages = list(request.messages)
        for index, message in enumerate(messages):
            if message.role == "system":
                text = f"{message.content}\n\n{self._instruction}"
                messages[index] = Message(role="system", content=text)
                break
        else:
            messages.insert(0, Message(role="system", content=self._instruction))
        return request.model_copy(update={"messages": messages})

    def read(self, text: str) -> T:
        """Return the value in an answer's text.

        Raises:
            MisfitError: there is none that fits; it says why the likeliest candidate does not.
        """
        problem, likeliest = "it is empty", (False, False, 0)
        for candidate in candidates(text):
            try:
                return self._decode(candidate.encode("utf-8", "replace"))
            except MisfitError as misfit:
                likeness = (candidate[0] in "[{", misfit.is_json, len(candidate))
                if likeness > likeliest:
                    problem, likeliest = str(misfit), likeness
        raise MisfitError(problem, is_json=likeliest[1])


def check_response_type(kind: type[T] | None) -> ResponseFormat[T] | None:
    """Return the format of a `response_type`; None for None.

    Raises:
        InvalidArgumentTypeError: it is not a type with a JSON schema.
    """
    if kind is None:
        return None
    try:
        return cast("ResponseFormat[T]", _made(kind))
    except _NO_SCHEMA as error:
        problem = str(error)
    hint = one_line(cast("str", redact(problem)), _PROBLEM_LENGTH)
    raise refusal("response_type", kind, _BE_TYPE, is_type=True, hint=hint)


def _made(kind: Any) -> ResponseFormat[Any]:
    try:
        hash(kind)
    except TypeError:  # `Annotated` with a dict, say
        return ResponseFormat(kind)
    return _kept(kind)


@lru_cache(maxsize=_FORMATS_KEPT)
def _kept(kind: Any) -> ResponseFormat[Any]:
    return ResponseFormat(kind)


class Asks(Generic[T]):
    """The asks of one call: until an answer fits, or it has asked as often as it may.

    Args:
        request: the request, without instructions.
        format: the format of the answer.
        retries: how often to ask again.

    Attributes:
        request: what to send next.
        rejected: the answers that did not fit.
    """

    __slots__ = ("_format", "_problem", "_retries", "rejected", "request")

    def __init__(self, request: ChatRequest, format: ResponseFormat[T], retries: int) -> None:
        self.request: ChatRequest = format.instruct(request)
        self.rejected: tuple[ChatResponse, ...] = ()
        self._format = format
        self._retries = retries
        self._problem = ""

    def settles(self, response: ChatResponse, secrets: Iterable[str] = ()) -> bool:
        """Return whether an answer fits, and complete it then; else there is a next request.

        Args:
            response: the answer.
            secrets: keys that errors must not show.

        Raises:
            ResponseFormatError: it does not fit, and there is no further ask.
        """
        try:
            value = self._format.read(response.content)
        except MisfitError as misfit:
            problem = one_line(str(misfit), _PROBLEM_LENGTH)
        else:
            complete(response, value, self.rejected)
            return True
        self.rejected = (*self.rejected, response)
        self._problem = cast("str", redact(problem, secrets))
        if len(self.rejected) > self._retries:
            raise self.unsettled()
        answer = Message(role="assistant", content=response.content)
        complaint = Message(role="user", content=_COMPLAINT.format(problem))
        messages = [*self.request.messages, answer, complaint]
        self.request = self.request.model_copy(update={"messages": messages})
        return False

    def unsettled(self) -> ResponseFormatError:
        """Return the error for a call without an answer that fits; there is at least one that does not."""
        last, count = self.rejected[-1], len(self.rejected)
        which = "the answer does" if count == 1 else f"{count} answers do"
        error = ResponseFormatError(f"{which} not fit {self._format.name}: {self._problem}")
        error.problem = self._problem
        error.text = last.content
        error.billed = self.rejected
        error.request_id = last.meta.request_id
        error.attempts = last.meta.attempts
        if last.finish_reason == "length":
            error.add_note("The answer was cut off at max_tokens (finish_reason 'length').")
        return error


def complete(response: ChatResponse, value: object, rejected: tuple[ChatResponse, ...] = ()) -> None:
    """Give an answer its value, and the costs of the answers before it."""
    response._structured = (value, rejected)
    if rejected:
        response.usage, response.cost_usd = spent((*rejected, response))


def spent(responses: Iterable[ChatResponse]) -> tuple[Usage, float]:
    """Return the tokens and the cost in USD of several answers."""
    total, cost_usd = Usage(), 0.0
    for response in responses:
        usage = response.usage
        total.prompt_tokens += usage.prompt_tokens
        total.completion_tokens += usage.completion_tokens
        total.total_tokens += usage.total_tokens
        cost_usd += response.cost_usd
    return total, cost_usd


# Types


def _is_of_pydantic(kind: object) -> bool:
    """Return whether a type is a pydantic model or dataclass, without importing pydantic."""
    return hasattr(kind, "__pydantic_validator__")


def _schema_of(kind: Any) -> dict[str, Any] | None:
    """Return a type's JSON schema by msgspec; None if it contains a type of pydantic.

    Raises:
        TypeError: it has none.
    """
    is_of_pydantic = False

    def describe(part: type) -> dict[str, Any]:
        nonlocal is_of_pydantic
        if not _is_of_pydantic(part):
            raise TypeError(f"there is none for {getattr(part, '__name__', part)}")
        is_of_pydantic = True
        return {"type": "object"}

    schema = msgspec.json.schema(kind, schema_hook=describe)
    return None if is_of_pydantic else schema


def _with_msgspec(kind: Any) -> Callable[[bytes], Any]:
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)

    def decoded(content: bytes) -> Any:
        try:
            return decode(decoder, content)
        except msgspec.ValidationError as error:
            problem, is_json = str(error), True
        except (msgspec.DecodeError, UnicodeError) as error:
            problem, is_json = str(error), False
        except RecursionError:
            problem, is_json = "it is nested too deeply", False
        raise MisfitError(problem, is_json=is_json)

    return decoded


def _with_own_check(kind: type[SchemaType]) -> Callable[[bytes], Any]:
    read = _with_msgspec(Any)

    def decoded(content: bytes) -> Any:
        value = read(content)
        try:
            return kind.checked(value)
        except ValueError as error:
            raise MisfitError(str(error), is_json=True) from None

    return decoded


def _with_pydantic(kind: Any) -> tuple[dict[str, Any], Callable[[bytes], Any]]:
    from pydantic import TypeAdapter, ValidationError

    adapter: TypeAdapter[Any] = TypeAdapter(kind)

    def decoded(content: bytes) -> Any:
        try:
            return adapter.validate_json(content)
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
            is_json = found[0]["type"] != "json_invalid"
            problems = [_words(one["msg"], one["loc"]) for one in found]
        except RecursionError:
            is_json, problems = False, ["it is nested too deeply"]
        raise MisfitError("; ".join(problems), is_json=is_json)

    return adapter.json_schema(), decoded


def _words(message: str, path: tuple[int | str, ...]) -> str:
    """Return pydantic's message with where it applies."""
    return f"{message} - at {'.'.join(map(str, path))}" if path else message


# Texts


def candidates(text: str) -> Iterator[str]:
    """Yield what may be the JSON value in a text, the likeliest first.

    That is the whole text; then the fenced blocks, and then the objects and arrays, each from the last on.
    """
    text = text.strip("\ufeff \t\r\n")
    if not text:
        return
    yield text
    if len(text) > _SEARCHED_MOST:
        return
    yield from _fenced(text)
    yield from reversed(_bracketed(text))


def _fenced(text: str) -> Iterator[str]:
    """Yield the contents of the blocks between "```", from the last one on."""
    blocks = deque(text.split("```")[1::2], maxlen=_CANDIDATES_MOST)
    for block in reversed(blocks):
        first, _, rest = block.partition("\n")
        tag = first.strip()
        if rest and (not tag or tag.isalnum()):  # the name of a language
            block = rest
        elif tag[:4].lower() == "json":
            block = block.strip()[4:]
        if block := block.strip():
            yield block


def _bracketed(text: str) -> deque[str]:
    """Return the last objects and arrays of a text that are not inside of others."""
    found: deque[str] = deque(maxlen=_CANDIDATES_MOST)
    false_starts = 0
    start = _BRACKET.search(text)
    while start is not None:
        end = _end_of(text, start.start())
        if end is None:
            false_starts += 1
            if false_starts > _FALSE_STARTS_MOST:
                break
            end = start.end()
        else:
            found.append(text[start.start() : end])
        start = _BRACKET.search(text, end)
    return found


def _end_of(text: str, start: int) -> int | None:
    """Return where the object or array that begins at `start` ends; None if it does not."""
    depth, is_in_string, escaped = 0, False, -1
    for found in _MARK.finditer(text, start):
        mark, place = found[0], found.start()
        if is_in_string:
            if place == escaped:
                continue
            if mark == "\\":
                escaped = place + 1
            else:
                is_in_string = mark != '"'
        elif mark == '"':
            is_in_string = True
        elif mark in "[{":
            depth += 1
        elif mark in "]}":
            depth -= 1
            if depth == 0:
                return found.end()
    return None
