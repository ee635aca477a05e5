"""What a user of the sync clients sees: real functions with docstrings that name no async client."""

import inspect
import pydoc
import re
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jedi
import pytest

import omnigate
from omnigate import AdminClient, AsyncAdminClient, AsyncClient, Client, InvalidArgumentTypeError

ROOT = Path(omnigate.__file__).parents[1]
CLIENTS = {Client: AsyncClient, AdminClient: AsyncAdminClient}
STREAMS = {
    omnigate.SyncChatStream: omnigate.ChatStream,
    omnigate.SyncCompletionStream: omnigate.CompletionStream,
}
FACES = [*CLIENTS, *STREAMS, omnigate.SyncBatch]
NOT_SYNC = re.compile(r"\basync (with|for)\b|\bawait|\bAsync\w*Client\b|\baclose\b|event loop's thread")

IN_SYNC_WORDS = {
    "AsyncAdminClient": "AdminClient",
    "AsyncClient": "Client",
    "SyncChatStream": "ChatStream",
    "SyncCompletionStream": "CompletionStream",
    "SyncBatch": "Batch",
    "async with": "with",
    "async for": "for",
    "aclose()": "close()",
    "for trio and asyncio": "for synchronous programs",
    "of tasks": "of threads",
    "one task": "one thread",
    "the event loop's thread": "the client's own thread",
    "a sync callable": "a callable",
    "an iterable or async iterable": "an iterable",
}

ONLY_SYNC = {
    "Its first call starts a thread with an event loop, which does all that the caller's thread cannot do by "
    "itself.",
    "Ctrl-C cancels the call in flight.",
    "A client that was used before `os.fork()` raises `ForkedClientError` in the child process.",
    "backend:",
    'event loop of the client\'s thread, "asyncio" or "trio".',
    "The caller's thread iterates `requests`, ahead of the outcomes, and yields no outcome while it waits for an "
    "item.",
    "So a source must not wait for an outcome of the same batch.",
}

ONLY_ASYNC = {
    "Once its event loop has ended, it may be used in another.",
    "An async generator is closed at the end.",
}


def public(kind: type) -> list[str]:
    return [name for name in dir(kind) if not name.startswith("_")]


def functions(kinds: Iterable[type]) -> list[Any]:
    """Return test parameters: each public method of each class."""
    return [
        pytest.param(kind, name, id=f"{kind.__name__}.{name}")
        for kind in kinds
        for name in public(kind)
        if inspect.isroutine(inspect.getattr_static(kind, name))
    ]


def in_sync_words(text: str) -> str:
    for ours, theirs in IN_SYNC_WORDS.items():
        text = text.replace(ours, theirs)
    return text


def sentences(thing: Any) -> list[str]:
    text = " ".join(in_sync_words(inspect.getdoc(thing) or "").split())
    return re.split(r"(?<=[.:]) ", text)


def shape(function: Any) -> list[Any]:
    """Return a signature in comparable form and sync words, ignoring the type of a batch's source."""
    signature = inspect.signature(function)
    parameters = [
        (
            p.name,
            p.kind,
            p.default,
            p.name == "requests" or in_sync_words(inspect.formatannotation(p.annotation)),
        )
        for p in signature.parameters.values()
    ]
    return [*parameters, in_sync_words(inspect.formatannotation(signature.return_annotation))]


# Compared with the async classes


@pytest.mark.parametrize(("sync", "asynchronous"), CLIENTS.items())
def test_a_sync_client_has_the_methods_and_signatures_of_the_async_one(
    sync: type, asynchronous: type
) -> None:
    assert set(public(sync)) - {"close"} == set(public(asynchronous)) - {"aclose"}
    for name in set(public(asynchronous)) - {"aclose"}:
        ours, theirs = getattr(sync, name), getattr(asynchronous, name)
        if isinstance(theirs, property):
            assert (ours.fset is None) is (theirs.fset is None), name
            continue
        assert shape(ours) == shape(theirs), name
        overloads = [list(map(shape, typing.get_overloads(method))) for method in (ours, theirs)]
        assert overloads[0] == overloads[1], name
    ours, theirs = inspect.signature(sync).parameters, inspect.signature(asynchronous).parameters
    assert [p for p in ours.values() if p.name != "backend"] == list(theirs.values())


@pytest.mark.parametrize(("sync", "asynchronous"), [*CLIENTS.items(), *STREAMS.items()])
def test_docstrings_of_a_sync_class_match_the_async_one(sync: type, asynchronous: type) -> None:
    differing = {}
    shared = [name for name in public(sync) if hasattr(asynchronous, name)]
    for name, ours, theirs in [
        ("class", sync, asynchronous),
        *((name, getattr(sync, name), getattr(asynchronous, name)) for name in shared),
    ]:
        said = [sentence for sentence in sentences(ours) if sentence not in ONLY_SYNC]
        if said != [sentence for sentence in sentences(theirs) if sentence not in ONLY_ASYNC]:
            differing[name] = said
    assert len(shared) >= 1
    assert differing == {}


# In an editor, and in `help()`


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return a function that completes or inspects a line of code with jedi, as an editor does."""
    before = jedi.settings.cache_directory
    jedi.settings.cache_directory = str(tmp_path_factory.mktemp("jedi"))
    project = jedi.Project(ROOT, smart_sys_path=False, added_sys_path=[str(ROOT)])
    yield lambda line: jedi.Script(
        f"from omnigate import *\n{line}", project=project, environment=jedi.InterpreterEnvironment()
    )
    jedi.settings.cache_directory = before


@pytest.mark.proof
@pytest.mark.parametrize(("kind", "name"), functions(FACES))
def test_an_editor_shows_a_sync_method_with_its_signature_and_docstring(
    kind: type, name: str, script: Any
) -> None:
    member = f"{kind.__name__}.{name}"
    (found,) = script(member).help()
    assert (found.type, found.name) == ("function", name)
    text = found.docstring()
    assert text.startswith(f"{name}(self")
    first = (inspect.getdoc(getattr(kind, name)) or "").splitlines()[0]
    assert first in text
    assert NOT_SYNC.search(text) is None
    (completion,) = (c for c in script(member).complete() if c.name == name)
    assert completion.type == "function"
    signatures = script(f"{member}(").get_signatures()
    wanted = [p for p in inspect.signature(getattr(kind, name)).parameters if p != "self"]
    assert [p.name for p in signatures[-1].params if p.name != "self"] == wanted


@pytest.mark.parametrize("kind", FACES, ids=lambda kind: kind.__name__)
def test_an_editor_shows_the_docstring_of_a_sync_class(kind: type, script: Any) -> None:
    (found,) = script(kind.__name__).help()
    assert found.type == "class"
    assert NOT_SYNC.search(found.docstring()) is None
    assert "with" in found.docstring()
    if kind in CLIENTS:
        assert re.findall(r"^    (\w+): ", found.docstring(), re.MULTILINE)[
            : len(inspect.signature(kind).parameters)
        ] == [*inspect.signature(kind).parameters]


@pytest.mark.parametrize("kind", FACES, ids=lambda kind: kind.__name__)
def test_the_help_of_a_sync_class_mentions_nothing_async(kind: type) -> None:
    text = pydoc.plain(pydoc.render_doc(kind))
    for name in public(kind):
        assert re.search(rf"^ \|  {name}\b", text, re.MULTILINE), name
    assert [
        line for line in text.splitlines() if NOT_SYNC.search(line) and "__orig_bases__" not in line
    ] == []


# Arguments shared by several methods


@pytest.mark.parametrize(
    ("options", "base"),
    [
        (omnigate.CallOptions, None),
        (omnigate.SamplingOptions, omnigate.CallOptions),
        (omnigate.ChatStreamOptions, omnigate.SamplingOptions),
        (omnigate.ChatDefaults, omnigate.CallOptions),
        (omnigate.BatchSettings, omnigate.ChatDefaults),
    ],
)
def test_each_shared_argument_is_documented_in_its_typed_dict(options: Any, base: Any) -> None:
    described = re.findall(r"^    (\w+): ", inspect.getdoc(options) or "", re.MULTILINE)
    inherited = () if base is None else base.__annotations__
    assert described == [name for name in options.__annotations__ if name not in inherited]


@pytest.mark.parametrize(("kind", "name"), functions([*CLIENTS, *CLIENTS.values()]))
def test_a_method_docstring_names_the_typed_dict_of_its_shared_arguments(kind: type, name: str) -> None:
    method = getattr(kind, name)
    options = inspect.signature(method).parameters.get("options")
    if options is None:
        assert name in ("close", "aclose")
        return
    (taken,) = typing.get_args(options.annotation)
    assert getattr(omnigate, taken.__name__) is taken
    text = inspect.getdoc(method) or ""
    assert re.search(rf"^    options:[^:]*`{taken.__name__}`", text, re.MULTILINE)


REQUIRED: dict[str, Any] = {
    "model": "m",
    "messages": "x",
    "models": ["m"],
    "requests": ["x"],
    "id": "x",
    "email": "a@b.test",
    "provider": "openai",
    "api_key": "sk-12345678",
    "name": "n",
    "org_id": "o",
}


def arguments_of(kind: type, name: str) -> dict[str, Any] | None:
    """Return the required arguments of a method, or None if it takes no options."""
    parameters = inspect.signature(getattr(kind, name)).parameters
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    return {key: REQUIRED[key] for key in needed if key != "self"} if "options" in parameters else None


def refusal(kind: type, name: str) -> str:
    """Return a pattern for the error about an unknown argument."""
    return rf"^{kind.__name__}\.{name}\(\) got an unknown argument 'modle'; it also accepts .*\btimeout, "


@pytest.mark.parametrize(("kind", "name"), functions(CLIENTS))
def test_an_unknown_argument_is_a_type_error_naming_it_and_the_sync_method(kind: Any, name: str) -> None:
    arguments = arguments_of(kind, name)
    if arguments is None:
        assert name == "close"
        return
    with kind("k", transport=httpx.MockTransport(lambda _: httpx.Response(500))) as client:
        with pytest.raises(InvalidArgumentTypeError, match=refusal(kind, name)) as caught:
            getattr(client, name)(**arguments, modle="m")
        assert isinstance(caught.value, TypeError)


@pytest.mark.anyio
@pytest.mark.parametrize(("kind", "name"), functions(CLIENTS.values()))
async def test_an_unknown_argument_is_a_type_error_naming_it_and_the_async_method(
    kind: Any, name: str
) -> None:
    arguments = arguments_of(kind, name)
    if arguments is None:
        assert name == "aclose"
        return
    async with kind("k", transport=httpx.MockTransport(lambda _: httpx.Response(500))) as client:
        with pytest.raises(InvalidArgumentTypeError, match=refusal(kind, name)) as caught:
            result = getattr(client, name)(**arguments, modle="m")
            await result
        assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize(("kind", "name"), functions(CLIENTS))
def test_a_missing_argument_is_a_type_error_naming_the_sync_method(kind: Any, name: str) -> None:
    arguments = arguments_of(kind, name)
    if arguments:
        with kind("k", transport=httpx.MockTransport(lambda _: httpx.Response(500))) as client:
            with pytest.raises(TypeError, match=rf"^{kind.__name__}\.{name}\(\) missing \d required"):
                getattr(client, name)(modle="m")


def test_errors_of_sync_streams_and_batches_do_not_mention_async_with() -> None:
    with Client("k", transport=httpx.MockTransport(lambda _: httpx.Response(500)), retries=0) as client:
        batch = client.batch(["x"], model="m")
        stream = client.chat_stream(model="m", messages="x")
        with pytest.raises(omnigate.NotStartedError, match="`with`") as unstarted:
            next(batch)
        with pytest.raises(AttributeError, match="enter it with `with`") as unopened:
            _ = stream.meta
        with batch:
            batch.run()
        with pytest.raises(omnigate.NotStartedError, match="once") as second:
            batch.__enter__()
        stream.close()
        with pytest.raises(omnigate.StreamClosedError) as closed:
            next(stream)
    assert [
        str(e.value) for e in (unstarted, unopened, second, closed) if NOT_SYNC.search(str(e.value))
    ] == []
