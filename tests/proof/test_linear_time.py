"""Whatever a gateway sends is handled in linear time: shown by structure and by counts, never by a clock."""

import ast
import gzip
import importlib
import json
import pkgutil
import re
import zlib
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest

import omnigate
from omnigate import InvalidResponseError
from omnigate._calls import failures
from omnigate._calls.failures import invalid_response, response_error, stream_error
from omnigate._streams.readers import CompletionReader, TextReader
from omnigate._transport.bodies import Inflater
from omnigate._transport.carrier import Answer
from omnigate._transport.http11 import ResponseReader
from omnigate._wire.head import Meta, parse_http_date, parse_retry_after
from omnigate._wire.redaction import one_line

from ..support.regexes import problems
from ..support.steps import count_of

PACKAGE = Path(omnigate.__file__).parent
MATCHES = {"match", "fullmatch"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for found in pkgutil.walk_packages([str(PACKAGE)], "omnigate."):
        path = PACKAGE.joinpath(*found.name.split(".")[1:])
        source = path / "__init__.py" if found.ispkg else path.with_suffix(".py")
        yield found.name, ast.parse(source.read_text(encoding="utf-8"))


def uses_of_re(tree: ast.Module) -> tuple[set[str], dict[str, set[str]], list[int]]:
    """Return the names of a module's patterns, the methods used on each, and the lines of other uses of `re`."""
    names: set[str] = set()
    compiled: set[int] = set()
    for statement in tree.body:
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Call) and ast.unparse(value.func) == "re.compile":
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target  # type: ignore[union-attr]
            assert isinstance(target, ast.Name)
            names.add(target.id)
            compiled.add(id(value.func))
    methods: dict[str, set[str]] = {name: set() for name in names}
    others: list[int] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
            continue
        if node.value.id in names:
            methods[node.value.id].add(node.attr)
        elif (
            node.value.id == "re"
            and node.attr in dir(re)
            and node.attr.islower()
            and id(node) not in compiled
        ):
            others.append(node.lineno)
    return names, methods, others


def test_no_pattern_of_the_package_can_take_more_than_linear_time() -> None:
    seen = 0
    for name, tree in modules():
        names, methods, others = uses_of_re(tree)
        assert not others, (
            f"{name}: patterns are compiled at the module's top, where this test finds them: {others}"
        )
        for pattern_name in names:
            pattern = getattr(importlib.import_module(name), pattern_name)
            searched = bool(methods[pattern_name] - MATCHES)
            assert not problems(pattern, is_searched=searched), f"{name}.{pattern_name}: {pattern.pattern!r}"
            seen += 1
    assert seen > 20


@pytest.mark.parametrize(
    ("pattern", "is_searched"),
    [
        (rb"\ntransfer-encoding:[ \t]*([^\r]*?)[ \t]*(?:\r|\Z)", True),
        (rb"connection:(?:[^\r]*,)?[ \t]*close", True),
        (r"(a+)+b", False),
        (r"(?:a|b+)*c", False),
        (r"\s+$", True),
        (r"a.*b", True),
        (r".+?(?:, got .*)?$", False),
        (r"[a-z]*[0-9]?[a-z]*x", False),
        (r"x(\d+|[0-5]*y)*", False),
    ],
)
def test_the_regex_check_finds_patterns_that_backtrack(pattern: Any, is_searched: bool) -> None:
    assert problems(re.compile(pattern), is_searched=is_searched)


@pytest.mark.parametrize(
    ("pattern", "is_searched"),
    [
        (r"\s+", True),
        (r"\s+$", False),
        (r"[a-z]+[0-9]+[a-z]+", False),
        (r"\r\nname:([^\r\n]*)\r", True),
        (r"(?:ab)+c", False),
        (r"[a-z]*+[a-z]", False),
    ],
)
def test_the_regex_check_passes_patterns_that_do_not_backtrack(pattern: Any, is_searched: bool) -> None:
    assert problems(re.compile(pattern), is_searched=is_searched) == []


ERROR_BODIES: dict[str, Callable[[int], bytes]] = {
    "a page of brackets": lambda n: json.dumps({"detail": "<html>" + "<" * n}).encode(),
    "a page of tags": lambda n: b"<html>" + b"<a>" * (n // 3),
    "a page of comments": lambda n: b"<html>" + b"<!--" * (n // 4),
    "a page of entities": lambda n: b"<html>" + b"&#1;" * (n // 4),
    "a page of attributes": lambda n: b"<html><a" + b" a='" * (n // 4),
    "blanks": lambda n: b" " * n,
    "lists": lambda n: b"[" * n,
    "providers": lambda n: json.dumps({"detail": "OpenAI error " * (n // 13)}).encode(),
    "keys": lambda n: json.dumps({"detail": "sk-" * (n // 3)}).encode(),
    "surrogates": lambda n: b'{"detail":"' + b"\\ud800" * (n // 6) + b'"}',
    "backslashes": lambda n: b'{"detail":"' + b"\\\\" * (n // 2) + b"\\ud800",
    "fields": lambda n: json.dumps({"detail": [{"loc": ["a"], "msg": "b"}] * (n // 28)}).encode(),
}


@pytest.mark.parametrize("name", ERROR_BODIES)
def test_an_error_body_of_twice_the_size_takes_at_most_twice_the_calls(name: str) -> None:
    make = ERROR_BODIES[name]

    def work(size: int) -> Callable[[], object]:
        answer = Answer(502, httpx.Headers(), make(size))
        return lambda: str(response_error(answer, secrets=("secret",)))

    assert count_of(work(200_000)) <= 2.1 * count_of(work(100_000)) + 50


@pytest.mark.parametrize("name", [name for name in ERROR_BODIES if "page" in name])
def test_only_the_beginning_of_an_html_page_is_parsed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []

    class Counting(failures._TextOfHtml):
        def feed(self, data: str) -> None:
            fed.append(len(data))
            super().feed(data)

    monkeypatch.setattr(failures, "_TextOfHtml", Counting)
    assert issubclass(failures._TextOfHtml, HTMLParser)
    body = ERROR_BODIES[name](1_000_000)
    assert "HTML page" in str(response_error(Answer(502, httpx.Headers(), body)))
    assert "HTML page" in str(
        invalid_response(Answer(200, httpx.Headers(), b"<html>" + body), "x", (), show_body=True)
    )
    assert len(fed) == 2
    assert max(fed) <= failures._PAGE_LENGTH


@pytest.mark.parametrize("name", ERROR_BODIES)
def test_error_messages_have_a_maximum_length(name: str) -> None:
    body = ERROR_BODIES[name](1_000_000)
    assert len(str(response_error(Answer(502, httpx.Headers(), body)))) < 3_000
    assert len(str(stream_error(body.decode(), request_id=None))) < 3_000
    assert (
        len(str(invalid_response(Answer(200, httpx.Headers(), body), body.decode(), (), show_body=True)))
        < 3_000
    )
    assert len(one_line(" \n" * 1_000_000, 100)) <= 101


@pytest.mark.parametrize(
    "of", ["1" * 60_000, "1." + "1" * 60_000, "Wed, " * 12_000, "1" + " " * 60_000 + "1", "(" * 60_000]
)
def test_values_of_headers_that_no_number_or_date_has_are_not_parsed(of: str) -> None:
    assert parse_retry_after(of.strip()) is None
    assert parse_http_date(of) is None
    headers = httpx.Headers({"x-budget-project-daily-spend": of})
    assert Meta(200, headers, attempts=1, elapsed=0.0).budget is None


@pytest.mark.parametrize("padding", [b" ", b"\t", b" \t", b",", b", "])
def test_a_transfer_coding_with_60_kilobytes_of_padding_is_refused(padding: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: a" + padding * (60_000 // len(padding)) + b"b\r\n\r\n"
    with pytest.raises(httpx.RemoteProtocolError, match=r"transfer coding|not HTTP"):
        ResponseReader("POST").feed(head)


def test_a_head_that_comes_byte_by_byte_is_not_copied_for_each_byte() -> None:
    reader = ResponseReader("POST")
    head = b"HTTP/1.1 200 OK\r\nx: " + b"y" * 20_000 + b"\r\ncontent-length: 0\r\n\r\n"
    buffers = set()
    for n in range(len(head)):
        reader.feed(head[n : n + 1])
        if 2 < n < len(head) - 1:
            buffers.add(id(reader._buffer))
    assert reader.complete
    assert reader.head == head[:-4]
    assert len(buffers) == 1


def test_gzip_members_are_decompressed_without_copying_the_rest_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decompressor = zlib.decompressobj

    def bytes_given(members: int) -> int:
        given = 0

        class Counting:
            def __init__(self, bits: int) -> None:
                self._stream = decompressor(bits)

            def decompress(self, data: bytes, most: int) -> bytes:
                nonlocal given
                given += len(data)
                return self._stream.decompress(data, most)

            def __getattr__(self, name: str) -> Any:
                return getattr(self._stream, name)

        with monkeypatch.context() as patch:
            patch.setattr(zlib, "decompressobj", Counting)
            inflater = Inflater("gzip")
            data = gzip.compress(b"") * members
            assert b"".join(inflater.feed(data)) == b""
        return given

    assert bytes_given(8_000) <= 2.1 * bytes_given(4_000)


@pytest.mark.parametrize(
    "event",
    [b"data: " + b"[" * 5_000, b"data:", b":", b"data: \\ud800" * 9, b"x" * 5_000],
    ids=lambda e: str(e[:9]),
)
def test_a_stream_of_twice_the_size_takes_at_most_twice_the_calls(event: bytes) -> None:
    def work(times: int) -> Callable[[], object]:
        return lambda: [
            reader.feed(event + b"\n\n")
            for reader in [_completions()]
            for _ in range(times)
            if reader.error is None
        ]

    assert count_of(work(400)) <= 2.1 * count_of(work(200)) + 50


def test_text_of_half_sentinels_takes_calls_in_proportion_to_its_size() -> None:
    def work(times: int) -> Callable[[], object]:
        reader = TextReader(str, request_id=None, secrets=())
        return lambda: [reader.feed(b"\n[error]") for _ in range(times)]

    assert count_of(work(4_000)) <= 2.1 * count_of(work(2_000))


def _completions() -> CompletionReader:
    return CompletionReader(request_id=None, secrets=())


def test_an_invalid_response_error_does_not_contain_a_large_body() -> None:
    error = invalid_response(
        Answer(200, httpx.Headers(), b"x" * 9_000_000), "y" * 9_000_000, (), show_body=True
    )
    assert isinstance(error, InvalidResponseError)
    assert len(str(error)) < 3_000
