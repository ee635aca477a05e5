"""A partition: its rows in, the same rows with their results out, in order; no row raises."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from omnigate import AsyncClient, Client, InvalidArgumentError, JournalError, JournalWarning, RetryConfig
from omnigate._batch.journal.file import JournalFile
from omnigate._batch.rows import RESULT_COLUMNS
from omnigate.distributed import _partition
from omnigate.distributed._partition import chat_partition, chat_partition_sync
from omnigate.distributed._task import PartitionTask, digest_of

from ..support.provider import Provider

pytestmark = pytest.mark.anyio

MODEL = "gpt-4o"

KEY = "llmg_test_0123456789abcdef"


def arguments() -> dict[str, Any]:
    return {"api_key": KEY, "base_url": "http://gateway.test", "retry_config": RetryConfig(max_retries=0)}


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def client(provider: Provider) -> AsyncClient:
    return AsyncClient(**arguments(), transport=provider)


@pytest.fixture
def sync_client(provider: Provider) -> Iterator[Client]:
    with Client(**arguments(), transport=provider) as client:
        yield client


async def test_rows_come_back_in_order_with_the_columns_of_the_results(client: AsyncClient) -> None:
    rows = [{"text": f"sleep=0.0{9 - n}"} for n in range(9)]
    made = await chat_partition(rows, client=client, model=MODEL, prompt="{text}")
    assert [row["text"] for row in made] == [row["text"] for row in rows]
    assert [row["content"] for row in made] == [row["text"] for row in rows]
    assert list(made[0]) == ["text", *RESULT_COLUMNS]
    assert rows[0] == {"text": "sleep=0.09"}


def test_the_sync_function_returns_the_same(sync_client: Client) -> None:
    rows = [{"id": n, "text": f"row {n}"} for n in range(300)]
    made = chat_partition_sync(rows, client=sync_client, model=MODEL, prompt="{text}", id="id")
    assert [(row["id"], row["content"]) for row in made] == [(n, f"row {n}") for n in range(300)]


async def test_items_that_are_not_rows_get_their_id_and_prompt(client: AsyncClient) -> None:
    made = await chat_partition(["hi", {"messages": "you", "model": "gpt-3"}], client=client, model=MODEL)
    assert [(row.get("prompt"), row["content"]) for row in made] == [("hi", "hi"), (None, "you")]


async def test_a_bad_row_and_a_failed_call_say_so_and_the_others_have_their_content(
    client: AsyncClient,
) -> None:
    rows = [{"text": "one"}, {"no": 1}, {"text": None}, {"text": "status=500"}, {"text": "five"}]
    made = await chat_partition(rows, client=client, model=MODEL, prompt="{text}")
    assert [row["content"] for row in made] == ["one", None, None, None, "five"]
    kinds = [None if row["error"] is None else row["error"].partition(":")[0] for row in made]
    assert kinds == [None, "InvalidArgumentError", "InvalidArgumentError", "ProviderError", None]
    assert [row["attempts"] for row in made] == [1, 0, 0, 1, 1]


async def test_the_rows_that_a_stopped_batch_has_not_called_say_why(
    client: AsyncClient, provider: Provider
) -> None:
    rows = [{"text": "one"}, {"text": "status=401"}, *({"text": f"row {n}"} for n in range(50))]
    made = await chat_partition(rows, client=client, model=MODEL, prompt="{text}", max_concurrency=1)
    assert provider.prompts == ["one", "status=401"]
    assert made[0]["error"] is None
    assert {row["error"].partition(":")[0] for row in made[1:]} == {"AuthError"}
    assert [row["attempts"] for row in made[1:]] == [1, *(0 for _ in range(50))]


@pytest.mark.parametrize("kind", ["pandas", "arrow"])
async def test_a_table_keeps_its_columns_and_each_result_has_one_type(client: AsyncClient, kind: str) -> None:
    pandas = pytest.importorskip("pandas")
    pyarrow = pytest.importorskip("pyarrow")
    data = {"text": ["one", None, "status=500"], "content": [1, 2, 3], "when": [0.5, 1.5, 2.5]}
    frame = pandas.DataFrame(data, index=[7, 8, 9])
    table = frame if kind == "pandas" else pyarrow.table(data)
    made = await chat_partition(table, client=client, model=MODEL, prompt="{text}")
    none = await chat_partition(table[:0], client=client, model=MODEL, prompt="{text}")
    failed = await chat_partition(table[1:2], client=client, model=MODEL, prompt="{text}")
    if kind == "pandas":
        assert list(made.columns) == ["text", "input_content", "when", *RESULT_COLUMNS]
        assert list(made.index) == [7, 8, 9]
        assert made["input_content"].dtype == "int64"
        assert dict(made.dtypes) == dict(none.dtypes) == dict(failed.dtypes)
        assert made["content"].isna().tolist() == [False, True, True]
        assert made["content"].iloc[0] == "one"
    else:
        assert made.column_names == ["text", "input_content", "when", *RESULT_COLUMNS]
        assert made.schema == none.schema == failed.schema
        assert made["content"].to_pylist() == ["one", None, None]
        assert made["input_content"].to_pylist() == [1, 2, 3]


async def test_values_of_a_response_type_are_json_in_a_table_and_nested_in_rows(client: AsyncClient) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    settings: Any = {"model": MODEL, "prompt": "{text}", "response_type": list[int], "response_retries": 0}
    made = await chat_partition(pyarrow.table({"text": ["[1, 2]", "no"]}), client=client, **settings)
    assert made["parsed"].to_pylist() == ["[1,2]", None]
    rows = await chat_partition([{"text": "[1, 2]"}], client=client, **settings)
    assert rows[0]["parsed"] == [1, 2]


async def test_a_partition_that_is_run_again_repeats_no_call(
    client: AsyncClient, provider: Provider, tmp_path: Path
) -> None:
    rows = [{"id": n, "text": f"once=500 {n}"} for n in range(5)]
    settings: Any = {"model": MODEL, "prompt": "{text}", "id": "id", "journal": tmp_path / "part.jsonl"}
    first = await chat_partition(rows[:3], client=client, **settings)
    again = await chat_partition(rows, client=client, **settings)
    third = await chat_partition(rows, client=client, **settings)
    assert [row["content"] is None for row in first] == [True, True, True]
    assert [row["content"] is None for row in again] == [False, False, False, True, True]
    assert [row["content"] for row in third] == [row["text"] for row in rows]
    assert len(provider.prompts) == 10


async def test_with_a_journal_rows_without_an_id_of_their_own_say_so_and_the_rest_is_called(
    client: AsyncClient, provider: Provider, tmp_path: Path
) -> None:
    ids = ["a", "a", None, 1.5, "1", 1]
    rows = [{"id": id, "text": f"row {n}"} for n, id in enumerate(ids)]
    journal = tmp_path / "part.jsonl"
    made = await chat_partition(rows, client=client, model=MODEL, prompt="{text}", id="id", journal=journal)
    assert sorted(provider.prompts) == ["row 0", "row 4"]
    assert made[1]["error"] == "RepeatedIdError: row 2 has the id 'a' of row 1; each needs one of its own"
    assert "row 3: the field 'id' (id=) is null" in made[2]["error"]
    assert "row 4" in made[3]["error"]
    assert "row 6 has the id '1' of row 5" in made[5]["error"]


async def test_the_index_of_an_item_may_not_be_the_id_of_another(client: AsyncClient, tmp_path: Path) -> None:
    items = ["a", {"id": "0", "messages": "b"}, "c"]
    made = await chat_partition(items, client=client, model=MODEL, journal=tmp_path / "part.jsonl")
    assert [row["content"] for row in made] == ["a", None, "c"]
    assert "RepeatedIdError" in made[1]["error"]


async def test_a_journal_that_cannot_be_opened_is_told_in_every_row(
    client: AsyncClient, provider: Provider, tmp_path: Path
) -> None:
    settings: Any = {"model": MODEL, "journal": tmp_path / "no" / "part.jsonl"}
    made = await chat_partition(["one", "two"], client=client, **settings)
    assert {row["error"].partition(":")[0] for row in made} == {"JournalError"}
    assert provider.prompts == []


async def test_a_journal_that_fills_the_disk_loses_no_row(
    client: AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: JournalFile, line: bytes) -> int:
        raise JournalError("no space left on device")

    monkeypatch.setattr(JournalFile, "append", full)
    settings: Any = {"model": MODEL, "journal": tmp_path / "part.jsonl", "max_concurrency": 1}
    made = await chat_partition(["one", "two", "three"], client=client, **settings)
    assert len(made) == 3
    assert "no space left" in made[-1]["error"]


async def test_a_journal_in_use_is_waited_for(
    client: AsyncClient, provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "part.jsonl"
    holder = await anyio.to_thread.run_sync(JournalFile.open, path)
    looks: list[object] = []
    look = JournalFile.open

    def looking(path: Any, *, lock: bool = True) -> JournalFile:
        looks.append(path)
        return look(path, lock=lock)

    monkeypatch.setattr(JournalFile, "open", looking)
    monkeypatch.setattr(_partition, "_LOOK_AGAIN_SECONDS", 0.001)
    made: list[Any] = []

    async def run() -> None:
        made.extend(await chat_partition(["one"], client=client, model=MODEL, journal=path))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            while len(looks) < 3:
                await anyio.sleep(0.001)
            assert provider.prompts == []
            await anyio.to_thread.run_sync(holder.close)
    assert made[0]["content"] == "one"


async def test_a_journal_that_stays_in_use_is_told_in_every_row(
    client: AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_partition, "_LOOK_AGAIN_SECONDS", 0.001)
    path = tmp_path / "part.jsonl"
    holder = await anyio.to_thread.run_sync(JournalFile.open, path)
    settings: Any = {"model": MODEL, "journal": path, "max_wait_seconds": 0.01}
    made = await chat_partition(["one"], client=client, **settings)
    await anyio.to_thread.run_sync(holder.close)
    assert "in use by another process" in made[0]["error"]


def test_a_sync_partition_waits_for_a_journal_in_use(
    sync_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "part.jsonl"
    holder = JournalFile.open(path)
    monkeypatch.setattr(_partition.time, "sleep", lambda seconds: holder.close())
    made = chat_partition_sync(["one"], client=sync_client, model=MODEL, journal=path)
    assert made[0]["content"] == "one"


async def test_an_exception_of_stop_on_is_told_in_the_rows_that_were_not_called(client: AsyncClient) -> None:
    def broken(error: Exception) -> bool:
        raise KeyError("bug")

    settings: Any = {"model": MODEL, "stop_on": broken, "max_concurrency": 1}
    made = await chat_partition(["one", "status=500", "three"], client=client, **settings)
    assert made[0]["content"] == "one"
    assert made[2]["error"] == "KeyError: 'bug'"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"rows": "text"},
            "rows must be an iterable of rows, a pyarrow.Table or a pandas.DataFrame, got 'text'",
        ),
        ({"rows": Path("x.csv")}, "rows must be an iterable of rows"),
        ({"rows": {"text": ["a"]}}, "batch_format='pyarrow'"),
        ({"rows": 7}, "rows must be an iterable of rows"),
        ({"model": None}, "model must be the name of a model, since prompt= is given, got None"),
        ({"prompt": "{txt}"}, "prompt has the field 'txt', which no item of requests has"),
        ({"temperature": 3}, "temperature must be between 0 and 2, got 3"),
        (
            {"client": 7},
            "client must be .* Client, or a dict of its arguments, got 7|an AsyncClient, or a dict",
        ),
        ({"client": {"key": "x"}}, "client.* got an unknown argument 'key'"),
        ({"modle": "x"}, "got an unknown argument 'modle'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_an_argument_that_is_wrong_for_every_row_raises(
    client: AsyncClient, provider: Provider, wrong: dict[str, Any], message: str
) -> None:
    given: Any = {"rows": [{"text": "a"}], "client": client, "model": MODEL, "prompt": "{text}", **wrong}
    with pytest.raises(InvalidArgumentError, match=message):
        await chat_partition(**given)
    assert provider.prompts == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": MODEL, "prompt": "{txt}"}, "prompt names the column 'txt'.* they have 'text'"),
        ({"model": MODEL, "prompt": "{text}", "id": "key"}, "id names the column 'key'"),
        ({"model": MODEL}, "neither 'prompt' nor 'messages'.*prompt='Summarise: {text}'"),
    ],
    ids=["prompt", "id", "no prompt"],
)
async def test_a_table_without_a_column_that_is_named_raises(
    client: AsyncClient, settings: dict[str, Any], message: str
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    with pytest.raises(InvalidArgumentError, match=message):
        await chat_partition(pyarrow.table({"text": ["a"]}), client=client, **settings)


def test_a_task_can_be_pickled_and_shows_no_key() -> None:
    task = PartitionTask(
        "chat", arguments_that_pickle(), "journals", True, {"model": MODEL, "prompt": "{text}"}
    )
    again: PartitionTask = pickle.loads(pickle.dumps(task))
    assert repr(again) == repr(task) == "<chat: model='gpt-4o', https://gateway.test>"
    assert KEY not in repr(vars(again)) + repr(vars(task))
    assert again.client["api_key"] == KEY


def arguments_that_pickle() -> Any:
    return {"api_key": KEY, "base_url": "https://gateway.test"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"client": AsyncClient(KEY)}, "client must be a dict of a client's arguments, or None"),
        ({"journal_dir": 7}, "journal_dir must be a path, or None, got 7"),
        ({"share_limit": 1}, "share_limit must be True or False, got 1"),
        ({"settings": {"journal": "x"}}, "journal must not be given.*journal_dir="),
        ({"settings": {"prompt": "{x}"}}, "model must be the name of a model"),
        ({"settings": {"temperature": 3}}, "temperature must be between 0 and 2, got 3"),
        ({"settings": {"modle": 3}}, "unknown argument 'modle'"),
    ],
)
def test_a_task_names_a_wrong_argument(wrong: dict[str, Any], message: str) -> None:
    given: Any = {"client": None, "journal_dir": None, "share_limit": True, "settings": {}, **wrong}
    with pytest.raises(InvalidArgumentError, match=message):
        PartitionTask("chat", **given)


def test_the_journal_of_a_partition_is_named_by_its_ids_or_else_by_its_rows(tmp_path: Path) -> None:
    task = PartitionTask("chat", None, tmp_path / "journals", True, {"model": MODEL, "id": "key"})
    rows = [{"key": "a", "text": "x"}, {"key": "b", "text": "y"}]
    path: Any = task.settings_for(rows).get("journal")
    other: Any = task.settings_for([{**row, "text": "other"} for row in rows]).get("journal")
    assert path == other
    assert Path(path).parent == tmp_path / "journals"
    assert (tmp_path / "journals").stat().st_mode & 0o777 == 0o700
    assert path != task.settings_for(rows[::-1]).get("journal")
    assert digest_of(["a"], None) != digest_of(["b"], None)
    assert digest_of([{"text": "a"}], None) != digest_of([{"text": "b"}], None)
    pandas = pytest.importorskip("pandas")
    assert digest_of(pandas.DataFrame(rows), "key") == digest_of(rows, "key")


def test_a_journal_that_only_failed_at_the_end_is_a_warning(
    sync_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: JournalFile) -> None:
        raise JournalError("the disk is gone")

    monkeypatch.setattr(JournalFile, "sync", broken)
    with pytest.warns(JournalWarning, match="the disk is gone"):
        made = chat_partition_sync(["one"], client=sync_client, model=MODEL, journal=tmp_path / "part.jsonl")
    assert made[0]["content"] == "one"
