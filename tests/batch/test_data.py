"""Batches of data: files and frames become requests, and what is wrong with them is told before anything is sent."""

import contextlib
import gzip
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from omnigate import (
    AsyncClient,
    ChatRequest,
    Client,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    JournalError,
    Message,
    Outcome,
)
from omnigate._batch.recipe import Recipe
from omnigate._data.source import data_source
from omnigate.testing import LocalGateway

from ..support.provider import Provider

MODEL = "gpt-4o-mini"
PROMPT = "Summarise: {text}"

pytestmark = [pytest.mark.anyio]


def client_of(provider: Provider) -> AsyncClient:
    return AsyncClient("llmg_x", base_url="http://gateway.test", transport=provider, retries=0)


async def run(provider: Provider, requests: Any, **arguments: Any) -> list[Outcome]:
    arguments = {"model": MODEL, "ordered": True, **arguments}
    async with client_of(provider).batch(requests, **arguments) as batch:
        return [outcome async for outcome in batch]


def run_sync(provider: Provider, requests: Any, **arguments: Any) -> list[Outcome]:
    arguments = {"model": MODEL, "ordered": True, **arguments}
    with Client("llmg_x", base_url="http://gateway.test", transport=provider, retries=0) as client:
        with client.batch(requests, **arguments) as batch:
            return list(batch)


async def in_thread(function: Callable[..., list[Outcome]], *given: Any, **arguments: Any) -> list[Outcome]:
    """Run what blocks, as the sync client does, outside of the event loop."""
    return await anyio.to_thread.run_sync(partial(function, *given, **arguments))


def csv_file(folder: Path, name: str = "rows.csv", count: int = 3) -> Path:
    path = folder / name
    path.write_text("key,text,label\n" + "".join(f"k{n},text {n},l{n}\n" for n in range(count)))
    return path


# Rows become requests


async def test_each_row_of_a_file_is_called_with_the_prompt_of_its_template(tmp_path: Path) -> None:
    provider = Provider()
    outcomes = await run(provider, csv_file(tmp_path), prompt=PROMPT, id="key", system="Be brief.")
    assert [outcome.id for outcome in outcomes] == ["k0", "k1", "k2"]
    assert [outcome.unwrap().content for outcome in outcomes] == [f"Summarise: text {n}" for n in range(3)]
    assert outcomes[1].item == {"key": "k1", "text": "text 1", "label": "l1"}
    request = outcomes[0].request
    assert request is not None
    assert request.messages == [
        Message(role="system", content="Be brief."),
        Message(role="user", content="Summarise: text 0"),
    ]


async def test_a_callable_makes_the_messages_of_a_row(tmp_path: Path) -> None:
    def prompt(row: Any) -> list[dict[str, str]]:
        return [{"role": "user", "content": row["text"].upper()}]

    outcomes = await run(Provider(), csv_file(tmp_path), prompt=prompt)
    assert [outcome.unwrap().content for outcome in outcomes] == ["TEXT 0", "TEXT 1", "TEXT 2"]
    assert [outcome.id for outcome in outcomes] == ["0", "1", "2"]


async def test_a_callable_that_raises_fails_its_row_and_says_which() -> None:
    rows = [{"text": "a"}, {"other": "b"}, {"text": "c"}]
    outcomes = await run(Provider(), rows, prompt=lambda row: row["text"])
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert str(outcomes[1].error) == "item 1: prompt raised KeyError: 'text'"
    assert outcomes[1].error is not None
    assert isinstance(outcomes[1].error.__cause__, KeyError)
    assert outcomes[1].item == {"other": "b"}


async def test_the_error_of_a_callable_shows_no_key_and_no_endless_text() -> None:
    def prompt(row: Any) -> str:
        raise ValueError("llmg_0123456789abcdef " + "x" * 10_000)

    (outcome,) = await run(Provider(), [{"text": "a"}], prompt=prompt)
    assert "0123456789abcdef" not in str(outcome.error)
    assert len(str(outcome.error)) < 300


async def test_an_async_callable_as_prompt_is_refused() -> None:
    async def prompt(row: Any) -> str:
        return ""

    with pytest.raises(InvalidArgumentTypeError, match="prompt must be a callable that .*, and not async"):
        client_of(Provider()).batch([{"text": "a"}], prompt=prompt)  # type: ignore[arg-type]


@pytest.mark.parametrize("library", ["pandas", "polars"])
async def test_each_row_of_a_frame_is_called(library: str) -> None:
    frame = pytest.importorskip(library).DataFrame({"n": [1, 2], "text": ["a", "b"]})
    outcomes = await run(Provider(), frame, prompt="{text} {n}", id="n")
    assert [(outcome.id, outcome.unwrap().content) for outcome in outcomes] == [("1", "a 1"), ("2", "b 2")]
    assert outcomes[0].item == {"n": 1, "text": "a"}


async def test_a_table_with_a_prompt_column_needs_no_template_and_its_settings_are_used(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,prompt,temperature,max_tokens,label\na,hello,0.5,,x\nb,bye,,7,y\n")
    outcomes = await run(Provider(), path)
    assert [outcome.id for outcome in outcomes] == ["a", "b"]
    requests = [outcome.request for outcome in outcomes]
    assert [(r.temperature, r.max_tokens) for r in requests if r is not None] == [(0.5, None), (None, 7)]
    assert outcomes[1].item is not None
    assert outcomes[1].item["label"] == "y"


async def test_chat_many_answers_in_the_order_of_the_rows(tmp_path: Path) -> None:
    answers = await client_of(Provider()).chat_many(csv_file(tmp_path), model=MODEL, prompt="{text}")
    assert [answer.content for answer in answers] == ["text 0", "text 1", "text 2"]


def test_a_sync_batch_reads_data_like_an_async_one(tmp_path: Path) -> None:
    path = csv_file(tmp_path)
    outcomes = run_sync(Provider(), path, prompt=PROMPT, id="key", temperature=0)
    assert [(outcome.id, outcome.unwrap().content) for outcome in outcomes] == [
        (f"k{n}", f"Summarise: text {n}") for n in range(3)
    ]
    with path.open(newline="") as file:
        assert len(run_sync(Provider(), file, prompt=PROMPT)) == 3
    with pytest.raises(InvalidArgumentError, match="prompt names the column 'txt', which 'rows.csv' does"):
        with path.open(newline="") as file:
            run_sync(Provider(), file, prompt="{txt}")
    with pytest.raises(InvalidArgumentError, match="which no item of requests has; the first has 'text'"):
        run_sync(Provider(), [{"text": "a"}], prompt="{txt}")


# Defaults of every item


@pytest.mark.parametrize("face", ["async", "sync"])
async def test_parameters_of_a_batch_are_the_defaults_of_its_items(face: str) -> None:
    items: list[Any] = [
        "a",
        {"prompt": "b", "temperature": 1, "stop": ["x"]},
        {"messages": [{"role": "system", "content": "own"}, {"role": "user", "content": "c"}]},
        ChatRequest(model="other", messages="d"),
        ChatRequest(model="other", messages="e", max_tokens=1),
    ]
    options = {"temperature": 0, "max_tokens": 9, "stop": "end", "system": "be brief", "seed": 7}
    if face == "sync":
        outcomes = await in_thread(run_sync, Provider(), items, **options)
    else:
        outcomes = await run(Provider(), items, **options)
    requests = [outcome.request.model_dump(exclude_defaults=True) for outcome in outcomes if outcome.request]
    settings = [{n: v for n, v in request.items() if n != "messages"} for request in requests]
    shared = {"model": MODEL, "temperature": 0, "max_tokens": 9, "stop": "end", "seed": 7}
    assert settings == [
        shared,
        {**shared, "temperature": 1, "stop": ["x"]},
        shared,
        {**shared, "model": "other"},
        {**shared, "model": "other", "max_tokens": 1},
    ]
    systems = [[m["content"] for m in r["messages"] if m["role"] == "system"] for r in requests]
    assert systems == [["be brief"], ["be brief"], ["own"], ["be brief"], ["be brief"]]
    assert items[3] == ChatRequest(model="other", messages="d"), "the given request is unchanged"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 3}, "temperature must be between 0 and 2, got 3"),
        ({"max_tokens": 0}, "max_tokens must be an integer of at least 1, got 0"),
        ({"system": 7}, "system must be text of at least 1 character, got 7"),
        ({"system": ""}, "system must be text of at least 1 character, got ''"),
        ({"id": 7}, "id must be text of at least 1 character, got 7"),
        (
            {"prompt": 7},
            "prompt must be a template, or a callable that takes a row and returns messages, got 7",
        ),
        ({"prompt": "{text.upper}"}, "prompt must have the names of fields in braces, without access"),
        ({"temprature": 1}, r"AsyncClient\.batch\(\) got an unknown argument 'temprature'; it also accepts"),
        ({"model": ""}, "model must be"),
    ],
)
async def test_bad_parameters_of_a_batch_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        client_of(Provider()).batch([{"text": "a"}], **arguments)


# Bad input, before anything is sent


def empty(folder: Path) -> Path:
    path = folder / "rows.csv"
    path.write_text("")
    return path


def header_only(folder: Path) -> Path:
    path = folder / "rows.csv"
    path.write_text("key,text\n")
    return path


def empty_lines(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n\n")
    return path


def repeated_ids(folder: Path) -> Path:
    path = csv_file(folder, count=3_000)
    path.write_text(path.read_text() + "k7,again,x\n")
    return path


def json_lines(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"key": n, "text": f"{n}"}) + "\n" for n in range(5)))
    return path


def repeated_custom_ids(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    lines = [{"custom_id": "a", "prompt": "1"}, {"prompt": "2"}, {"custom_id": "a", "prompt": "3"}]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def truncated_parquet(folder: Path) -> Path:
    path = parquet(folder)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def parquet(folder: Path, **columns: Any) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = folder / "rows.parquet"
    columns = columns or {"key": list(range(1_000)), "text": [f"text {n}" for n in range(1_000)]}
    parquet.write_table(pyarrow.table(columns), path)
    return path


def lists_of_text(folder: Path) -> Path:
    return parquet(folder, key=[1], text=[["a", "b"]])


def fractions_as_ids(folder: Path) -> Path:
    return parquet(folder, key=[1.5], text=["a"])


def truncated_gzip(folder: Path) -> Path:
    path = folder / "rows.csv.gz"
    content = gzip.compress(csv_file(folder, count=5_000).read_bytes())
    path.write_bytes(content[: len(content) // 2])
    return path


def latin(folder: Path) -> Path:
    path = folder / "rows.csv"
    path.write_bytes(b"key,text\n" + b"k,text\n" * 50_000 + "k2,caf\xe9\n".encode("latin-1"))
    return path


WITH_ID = {"prompt": PROMPT, "id": "key"}


@pytest.mark.parametrize("face", ["async", "sync"])
@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (empty, WITH_ID, r"requests: '.*rows\.csv' is empty: there are no rows in it"),
        (header_only, WITH_ID, r"requests: '.*rows\.csv' is empty: there are no rows in it"),
        (empty_lines, WITH_ID, r"requests: '.*rows\.jsonl' is empty: there are no rows in it"),
        (
            csv_file,
            {"prompt": "Summarise: {txt}"},
            r"prompt names the column 'txt', which '.*rows\.csv' does not have; it has 'key', 'text', 'label'",
        ),
        (
            json_lines,
            {"prompt": "Summarise: {txt}"},
            r"prompt has the field 'txt', which no row of '.*rows\.jsonl' has; the first has 'key', 'text'",
        ),
        (
            csv_file,
            {"prompt": PROMPT, "id": "kye"},
            r"id names the column 'kye', which '.*rows\.csv' does not have; it has 'key', 'text', 'label'",
        ),
        (
            csv_file,
            {},
            r"'.*rows\.csv' has the columns 'key', 'text', 'label', and neither 'prompt' nor 'messages'; say with "
            r"prompt= how a row becomes one, for example prompt='Summarise: \{key\}'",
        ),
        (
            json_lines,
            {},
            r"'.*rows\.jsonl' has the fields 'key', 'text', and neither 'prompt' nor 'messages'",
        ),
        (
            repeated_ids,
            WITH_ID,
            r"each row must have an id of its own, got 'k7' in rows\.csv, row 8 and in rows\.csv, row 3001",
        ),
        (
            repeated_custom_ids,
            {"journal": "journal.jsonl"},
            r"each row must have an id of its own, got 'a' in rows\.jsonl, line 1 and in rows\.jsonl, line 3",
        ),
        (
            lists_of_text,
            WITH_ID,
            r"rows\.parquet, row 1: the field 'text' of the prompt must be text, .*, got \['a', 'b'\]",
        ),
        (
            fractions_as_ids,
            WITH_ID,
            r"rows\.parquet, row 1: 'key' \(id=\) must be text, an integer or a UUID, got 1\.5",
        ),
        (truncated_parquet, WITH_ID, r"'.*rows\.parquet' is damaged or truncated: "),
        (truncated_gzip, WITH_ID, r"'.*rows\.csv\.gz' is damaged or truncated: Compressed file ended before"),
        (latin, {"prompt": PROMPT}, r"'.*rows\.csv' is not UTF-8 \(the byte 0xe9 cannot be read\)"),
    ],
)
async def test_bad_data_is_one_clear_error_before_anything_is_sent(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], Path],
    arguments: dict[str, Any],
    message: str,
    face: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    provider = Provider()
    path = make(tmp_path)
    with pytest.raises(InvalidArgumentError, match=message):
        if face == "sync":
            await in_thread(run_sync, provider, path, **arguments)
        else:
            await run(provider, path, **arguments)
    assert provider.prompts == []


async def test_a_file_with_other_columns_than_the_others_is_told_before_anything_is_sent(
    tmp_path: Path,
) -> None:
    csv_file(tmp_path, "part-1.csv")
    (tmp_path / "part-2.csv").write_text("key,body\nk9,text 9\n")
    provider = Provider()
    with pytest.raises(InvalidArgumentError, match="the column 'text', which 'part-2.csv' does not have; it"):
        await run(provider, tmp_path / "part-*.csv", **WITH_ID)
    assert provider.prompts == []


@pytest.mark.parametrize("arguments", [{"prompt": PROMPT}, WITH_ID])
def test_the_rows_of_files_of_several_formats_are_counted(tmp_path: Path, arguments: dict[str, Any]) -> None:
    paths = [csv_file(tmp_path), parquet(tmp_path, key=[7, 8], text=["a", "b"])]
    recipe = Recipe(MODEL, **arguments)
    facts = recipe.inspect(data_source(paths), has_journal=True)
    assert facts.total == 5
    assert (facts.digest is None) == ("id" in arguments)


class Slow(io.RawIOBase):
    """An open file that is read once it may be."""

    def __init__(self) -> None:
        self.began, self.may_go_on = threading.Event(), threading.Event()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return 0

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0

    def readinto(self, buffer: Any) -> int:
        self.began.set()
        self.may_go_on.wait(10)
        return 0


async def test_a_batch_cancelled_while_its_file_is_checked_releases_its_journal(tmp_path: Path) -> None:
    journal, file = tmp_path / "journal.jsonl", Slow()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(partial(run, Provider(), file, prompt=PROMPT, journal=journal))
            await anyio.to_thread.run_sync(file.began.wait, 10)
            group.cancel_scope.cancel()
            file.may_go_on.set()
    outcomes = await run(Provider(), csv_file(tmp_path), prompt=PROMPT, journal=journal)
    assert len(outcomes) == 3


async def test_a_missing_file_is_an_error_before_anything_is_sent(tmp_path: Path) -> None:
    provider = Provider()
    with pytest.raises(FileNotFoundError):
        await run(provider, [csv_file(tmp_path), tmp_path / "none.csv"], prompt=PROMPT)
    assert provider.prompts == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"key": 2}', "rows.jsonl, line 2: there is no field 'text' for the prompt, only 'key'"),
        ('{"key": 2, "text": null}', "rows.jsonl, line 2: the field 'text' of the prompt is null"),
        ('{"text": "b"}', "rows.jsonl, line 2: the field 'key' (id=) is missing, there are only 'text'"),
        ('{"key": null, "text": "b"}', "rows.jsonl, line 2: the field 'key' (id=) is null"),
        ('{"key": 2, "text": ["b"]}', "rows.jsonl, line 2: the field 'text' of the prompt must be text"),
        ("[]", "rows.jsonl, line 2, is not a JSON object"),
    ],
)
async def test_a_row_without_what_it_needs_is_a_failed_outcome_that_names_it(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"key": 1, "text": "a"}}\n{line}\n{{"key": 3, "text": "c"}}\n')
    provider = Provider()
    outcomes = await run(provider, path, **WITH_ID)
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert str(outcomes[1].error).startswith(message)
    assert len(provider.prompts) == 2


async def test_dicts_with_an_id_twice_are_refused_before_anything_is_sent() -> None:
    with pytest.raises(InvalidArgumentError, match=r"got 'a' for items 0 and 1 \(by id='key'\)"):
        client_of(Provider()).batch([{"key": "a"}, {"key": "a"}], id="key", model=MODEL)


async def test_an_item_that_is_no_row_fails_where_there_is_a_template() -> None:
    outcomes = await run(Provider(), ["text", {"text": "a"}], prompt=PROMPT)
    assert str(outcomes[0].error).startswith("item 0 must be a row, that is a dict, since prompt= is given")
    assert outcomes[1].error is None


async def test_paths_of_an_iterator_say_what_to_pass(tmp_path: Path) -> None:
    outcomes = await run(Provider(), iter([csv_file(tmp_path)]))
    assert "for files, pass a list of their paths" in str(outcomes[0].error)


# Resuming


async def test_a_file_that_was_changed_is_noticed_where_its_rows_are_identified_by_number(
    tmp_path: Path,
) -> None:
    journal, provider = tmp_path / "journal.jsonl", Provider()
    path = csv_file(tmp_path)
    await run(provider, path, prompt=PROMPT, journal=journal)
    outcomes = await run(provider, path, prompt=PROMPT, journal=journal)
    assert [outcome.replayed for outcome in outcomes] == [True] * 3
    assert outcomes[2].item == {"key": "k2", "text": "text 2", "label": "l2"}
    path.write_text(path.read_text() + "k3,text 3,l3\n")
    before = journal.read_bytes()
    with pytest.raises(
        JournalError, match=r"is of another file, or of this one before it was changed, and its"
    ):
        await run(provider, path, prompt=PROMPT, journal=journal)
    assert journal.read_bytes() == before
    assert len(provider.prompts) == 3
    with pytest.raises(JournalError, match="or of this one before it was changed"):
        await in_thread(run_sync, provider, path, prompt=PROMPT, journal=journal)


async def test_a_file_that_grew_is_resumed_where_its_rows_have_ids(tmp_path: Path) -> None:
    journal, provider = tmp_path / "journal.jsonl", Provider()
    path = csv_file(tmp_path)
    await run(provider, path, **WITH_ID, journal=journal)
    path.write_text("key,text,label\nk9,text 9,l9\n" + path.read_text().partition("\n")[2])
    outcomes = await run(provider, path, **WITH_ID, journal=journal)
    assert [(outcome.id, outcome.replayed) for outcome in outcomes] == [
        ("k9", False), ("k0", True), ("k1", True), ("k2", True),
    ]  # fmt: skip


async def test_json_lines_with_ids_of_their_own_may_change_between_runs(tmp_path: Path) -> None:
    journal, provider = tmp_path / "journal.jsonl", Provider()
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "0", "prompt": "a"}\n')
    await run(provider, path, journal=journal)
    path.write_text('{"id": "1", "prompt": "b"}\n{"id": "0", "prompt": "a"}\n')
    assert [outcome.replayed for outcome in await run(provider, path, journal=journal)] == [False, True]


KILLED = """
import sys
import threading
import anyio
import omnigate
from functools import partial
from pathlib import Path
url, key, journal, given, face, id = sys.argv[1:]
requests = Path(given)
if given.endswith("*open.csv"):
    requests = open(given.replace("*", ""), newline="")
elif given.endswith("frame.parquet"):
    import pandas
    requests = pandas.read_parquet(given)
elif given.endswith("polars.parquet"):
    import polars
    requests = polars.read_parquet(given)
options = {"model": "gpt-4o-mini", "journal": journal, "max_concurrency": 4, "replay": False,
           "prompt": "Summarise: {text}", "id": id or None}

async def main():
    async with omnigate.AsyncClient(key, base_url=url) as client, client.batch(requests, **options) as batch:
        async for outcome in batch:
            print(outcome.unwrap().content, flush=True)

if face == "sync":
    with omnigate.Client(key, base_url=url) as client, client.batch(requests, **options) as batch:
        for outcome in batch:
            print(outcome.unwrap().content, flush=True)
else:
    anyio.run(main, backend=face)
print("complete", flush=True)
"""

COUNT = 300


def inputs(folder: Path) -> Iterator[Path]:
    """Yield a path of each kind of input, of the same rows."""
    rows = [{"key": f"k{n}", "text": f"number {n}"} for n in range(COUNT)]
    text = "key,text\n" + "".join(f"{row['key']},{row['text']}\n" for row in rows)
    contents = {
        "rows.csv": text.encode(),
        "open.csv": text.encode(),
        "rows.tsv": text.replace(",", "\t").encode(),
        "rows.csv.gz": gzip.compress(text.encode()),
        "rows.jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "rows.json": json.dumps(rows).encode(),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    for number in range(3):
        part = rows[number * 100 : (number + 1) * 100]
        (folder / f"part-{number}.jsonl").write_text("\n".join(map(json.dumps, part)))
    columns = {name: [row[name] for row in rows] for name in ("key", "text")}
    for name in ("rows.parquet", "frame.parquet", "polars.parquet"):
        parquet(folder, **columns).rename(folder / name)
    parquet(folder, **columns)
    yield from (folder / name for name in contents if name != "open.csv")
    yield from (
        folder / name
        for name in ("*open.csv", "part-*.jsonl", "rows.parquet", "frame.parquet", "polars.parquet")
    )


@pytest.mark.proof
@pytest.mark.timeout(180)
@pytest.mark.parametrize("id", ["", "key"], ids=["by number", "by id"])
def test_a_killed_batch_resumes_with_every_kind_of_input(tmp_path: Path, id: str) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("polars")
    for number, path in enumerate(inputs(tmp_path)):
        journal = tmp_path / f"journal-{number}.jsonl"
        face = ("sync", "asyncio", "trio")[number % 3]
        with LocalGateway() as gateway:
            command = [
                sys.executable, "-c", KILLED, gateway.url, gateway.api_key, str(journal), str(path), face, id,
            ]  # fmt: skip
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                printed = [process.stdout.readline() for _ in range(20)]
                process.kill()
            assert "complete\n" not in printed, path
            whole = journal.read_bytes().rpartition(b"\n")[0].splitlines()
            done = {json.loads(line)["custom_id"] for line in whole}
            assert len(done) >= 20
            called = len(gateway.requests)
            finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
            assert finished.stdout.endswith("complete\n"), path
            prompts = [
                json.loads(request.body)["messages"][-1]["content"]
                for request in list(gateway.requests)[called:]
            ]
        again = {f"Summarise: number {name.lstrip('k')}" for name in done} & set(prompts)
        assert not again, path
        assert len(set(prompts)) == COUNT - len(done), path  # of the killed process some may arrive late


@pytest.fixture
def pipe() -> Iterator[tuple[Any, int]]:
    ours, theirs = os.pipe()
    with open(ours, "rb") as reader:
        yield reader, theirs
        with contextlib.suppress(OSError):  # closed by the test
            os.close(theirs)


async def test_the_event_loop_runs_on_while_a_batch_waits_for_a_pipe(pipe: tuple[Any, int]) -> None:
    reader, writer = pipe
    os.write(writer, b'{"prompt": "first"}\n')

    async def end() -> None:
        await anyio.wait_all_tasks_blocked()  # the batch reads
        os.write(writer, b'{"prompt": "second"}\n')
        os.close(writer)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(end)
            outcomes = await run(Provider(), reader)
    assert [outcome.unwrap().content for outcome in outcomes] == ["first", "second"]


@pytest.mark.parametrize("text", [b"", b"Say hi\n", b"id,prompt\n"])
async def test_a_pipe_without_rows_is_refused_as_an_empty_file_is(
    text: bytes, pipe: tuple[Any, int], tmp_path: Path
) -> None:
    reader, writer = pipe
    os.write(writer, text)
    os.close(writer)
    path = tmp_path / "empty.csv"
    path.write_bytes(text)
    for source, name in ((reader, "<file>"), (path, str(path)), ([path], str(path))):
        with pytest.raises(InvalidArgumentError, match="its first line is a header") as raised:
            await run(Provider(), source)
        assert f"{name!r} is empty: there are no rows in it" in str(raised.value)


async def test_a_batch_that_waits_for_a_pipe_can_be_cancelled(pipe: tuple[Any, int]) -> None:
    reader, writer = pipe

    async def read() -> None:
        await run(Provider(), reader)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
    os.close(writer)  # ends the read that was abandoned
