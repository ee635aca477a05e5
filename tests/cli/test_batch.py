"""`omnigate batch`: inputs and outputs, resuming, estimates, failures and Ctrl-C."""

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from omnigate.cli._commands.batch_run import Interrupts
from omnigate.cli._commands.batch_summary import Summary
from omnigate.testing import Delay, LocalGateway, Status

from .conftest import Cli

NO_SUCH_MODEL = "no-such-model"


@pytest.fixture(scope="module")
def served() -> LocalGateway:  # type: ignore[misc]
    with LocalGateway(rate_limit_per_min=10_000) as gateway:
        yield gateway  # type: ignore[misc]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def reviews(folder: Path) -> list[str]:
    """Write ten reviews, and return the command that sums them up."""
    rows = "".join(f"r{number},Soup {number} was cold\n" for number in range(10))
    (folder / "in.csv").write_text("review,text\n" + rows)
    return ["batch", "in.csv", "-o", "out.csv", "--prompt", "Sum up: {text}", "--id", "review"]


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def refuse(gateway: LocalGateway, *texts: str) -> None:
    """Make the gateway refuse prompts with one of these texts, once each."""
    for text in texts:
        fault = Status(400, b'{"detail":"too rude"}')
        gateway.script(fault, when=lambda request, text=text: text.encode() in request.body)


def sent(gateway: LocalGateway) -> int:
    return sum(request.path == "/v1/chat" for request in gateway.requests)


def test_a_table_becomes_a_table(cli: Cli, gateway: LocalGateway, reviews: list[str]) -> None:
    done = cli(*reviews)
    assert (done.code, done.out) == (0, "")
    rows = rows_of("out.csv")
    assert [row["review"] for row in rows] == [f"r{number}" for number in range(10)]
    assert rows[3]["content"] == "echo[gpt-4o-mini]: Sum up: Soup 3 was cold"
    assert "10 done, " in done.err
    assert "Written to out.csv." in done.err


def test_a_second_run_sends_nothing_again(cli: Cli, gateway: LocalGateway, reviews: list[str]) -> None:
    assert cli(*reviews, "--limit", "4").code == 0
    before = sent(gateway)
    done = cli(*reviews)
    assert sent(gateway) == before + 6
    assert "6 done, 4 from the journal" in done.err
    assert len(rows_of("out.csv")) == 10


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl.gz", "out.tsv"])
def test_the_suffix_tells_the_format(
    name: str, cli: Cli, gateway: LocalGateway, reviews: list[str], folder: Path
) -> None:
    reviews[reviews.index("out.csv")] = name
    assert cli(*reviews).code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["in.csv", "out.journal.jsonl", name]


def test_standard_input_to_standard_output(cli: Cli, gateway: LocalGateway, folder: Path) -> None:
    lines = "".join(json.dumps({"id": f"q{number}", "prompt": f"Say {number}"}) + "\n" for number in range(3))
    done = cli("batch", "-", input=lines)
    assert done.code == 0
    found = {row["id"]: row["content"] for row in map(json.loads, done.out.splitlines())}
    assert found == {f"q{number}": f"echo[gpt-4o-mini]: Say {number}" for number in range(3)}
    assert list(folder.iterdir()) == []


def test_lines_in_the_order_of_the_input(cli: Cli, gateway: LocalGateway) -> None:
    gateway.script(Delay(0.1))
    done = cli("batch", "-", "--ordered", input="".join(f'{{"prompt": "Say {n}"}}\n' for n in range(12)))
    assert [json.loads(line)["id"] for line in done.out.splitlines()] == [str(n) for n in range(12)]


def test_answers_on_standard_output_are_harmless_for_a_terminal(cli: Cli, gateway: LocalGateway) -> None:
    done = cli("batch", "-", input='{"prompt": "\\u001b[2J \\u202e \\u009b"}\n')
    assert not {"\x1b", "\u202e", "\x9b"} & set(done.out)
    assert json.loads(done.out)["content"].endswith("\x1b[2J \u202e \x9b")


def test_failed_items_are_told_by_kind_with_an_example(
    cli: Cli, gateway: LocalGateway, reviews: list[str]
) -> None:
    refuse(gateway, "Soup 3", "Soup 5")
    done = cli(*reviews)
    assert done.code == 3
    assert "8 done, 2 failed" in done.err
    assert "2 x APIError 400, such as r" in done.err
    assert "Run the same command again to try what failed once more" in done.err
    errors = [row["error"] for row in rows_of("out.csv")]
    assert sum(map(bool, errors)) == 2


def test_retrying_what_failed_completes_the_table(
    cli: Cli, gateway: LocalGateway, reviews: list[str]
) -> None:
    refuse(gateway, "Soup 3")
    assert cli(*reviews).code == 3
    before = sent(gateway)
    assert cli(*reviews, "--retry-failed").code == 0
    assert sent(gateway) == before + 1
    rows = rows_of("out.csv")
    assert [row["review"] for row in rows] == [f"r{number}" for number in range(10)]
    assert not any(row["error"] for row in rows)


def test_what_failed_runs_alone_with_another_model(
    cli: Cli, gateway: LocalGateway, reviews: list[str]
) -> None:
    refuse(gateway, "Soup 3")
    assert cli(*reviews).code == 3
    before = sent(gateway)
    again = ["batch", "--retry-failed", "--journal", "out.journal.jsonl", "--prompt", "Sum up: {text}"]
    refused = cli(*again, "-o", "out.csv")
    assert refused.code == 2
    assert "-o 'out.csv' exists" in refused.err
    assert cli(*again, "-o", "again.csv", "-m", "gpt-4o").code == 0
    assert sent(gateway) == before + 1
    assert [(row["review"], row["content"]) for row in rows_of("again.csv")] == [
        ("r3", "echo[gpt-4o]: Sum up: Soup 3 was cold")
    ]
    assert cli(*again).code == 0
    assert sent(gateway) == before + 1


def test_json_is_the_summary(cli: Cli, gateway: LocalGateway, reviews: list[str]) -> None:
    refuse(gateway, "Soup 3")
    done = cli(*reviews, "--json")
    assert done.json["succeeded"] == 9
    assert done.json["errors"][0]["example"]["id"] == "r3"
    assert (done.json["output"], done.json["journal"]) == ("out.csv", "out.journal.jsonl")
    assert done.json["exit_code"] == done.code == 3
    lines = cli("batch", "-", "--json", "-q", input='{"prompt": "x"}\n')
    assert json.loads(lines.out)["content"] == "echo[gpt-4o-mini]: x"
    assert json.loads(lines.err.splitlines()[-1])["succeeded"] == 1


def test_answers_that_fit_a_schema(cli: Cli, gateway: LocalGateway, folder: Path) -> None:
    (folder / "city.json").write_text('{"type": "object", "required": ["name"]}')
    done = cli("batch", "-", "--type", "city.json", input=json.dumps({"prompt": '{"name": "Oslo"}'}) + "\n")
    assert done.code == 0
    assert json.loads(done.out)["parsed"] == {"name": "Oslo"}


def test_an_estimate_is_asked_about_before_anything_is_sent(
    cli: Cli, gateway: LocalGateway, reviews: list[str]
) -> None:
    before = sent(gateway)
    refused = cli(*reviews, "--confirm-above", "0", "--max-tokens", "10")
    assert refused.code == 2
    assert "Estimate: 10 items" in refused.err
    assert "It may cost up to 0.0" in refused.err
    assert "confirm with --yes" in refused.err
    assert sent(gateway) == before
    assert cli(*reviews, "--confirm-above", "0", "--max-tokens", "10", "--yes").code == 0
    assert sent(gateway) == before + 10


def test_a_cheap_batch_is_not_asked_about(cli: Cli, gateway: LocalGateway, reviews: list[str]) -> None:
    assert cli(*reviews, "--confirm-above", "1", "--max-tokens", "10").code == 0
    assert (
        cli(*reviews, "--estimate", "--max-tokens", "10").code == 0
    )  # off a terminal, without a limit, it is only told


def test_an_unknown_cost_is_asked_about(cli: Cli, gateway: LocalGateway, reviews: list[str]) -> None:
    done = cli(*reviews, "--confirm-above", "1")
    assert done.code == 2
    assert "Its cost has no known limit." in done.err


def test_a_sample_narrows_the_estimate(cli: Cli, gateway: LocalGateway, reviews: list[str]) -> None:
    done = cli(*reviews, "--sample", "3", "--yes")
    assert done.code == 0
    assert "A sample of 3 items was sent" in done.err


def test_a_limit_ends_the_batch_and_says_how_to_go_on(
    cli: Cli, gateway: LocalGateway, reviews: list[str]
) -> None:
    done = cli(*reviews, "--max-tokens-total", "40", "-c", "1")
    assert done.code == 1
    assert "Ended: " in done.err
    assert "out.partial.csv" in done.err
    assert "Run the same command again to continue" in done.err
    assert cli(*reviews).code == 0


def test_a_wrong_model_ends_the_batch(cli: Cli, gateway: LocalGateway, folder: Path) -> None:
    (folder / "in.jsonl").write_text('{"prompt": "x"}\n' * 50)
    done = cli("batch", "in.jsonl", "-o", "out.csv", "-m", NO_SUCH_MODEL)
    assert done.code == 1
    assert "stop_after_failures" in done.err or "alike" in done.err
    done = cli("batch", "in.jsonl", "-o", "new.csv", "-m", NO_SUCH_MODEL, "--stop-after-failures", "never")
    assert done.code == 3
    assert len(rows_of("new.csv")) == 50


def test_a_wrong_key_exits_with_4(cli: Cli, gateway: LocalGateway, reviews: list[str]) -> None:
    done = cli(*reviews, "--api-key", "llmg_wrong")
    assert done.code == 4
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["batch"], "no INPUT"),
        (["batch", "in.csv", "-"], "- (standard input) cannot be combined"),
        (["batch", "in.csv", "-o", "./in.csv"], "-o is the input 'in.csv'"),
        (["batch", "in.csv", "--journal", "in.csv"], "--journal is the input 'in.csv'"),
        (["batch", "in.csv", "-o", "x.jsonl", "--journal", "x.jsonl"], "the same file"),
        (["batch", "in.csv", "--no-journal", "--journal", "x"], "--no-journal cannot be combined"),
        (["batch", "in.csv", "--prompt", "x", "--prompt-file", "y"], "--prompt cannot be combined"),
        (["batch", "--retry-failed", "in.csv", "-o", "x.csv"], "there is no journal 'x.journal.jsonl'"),
        (["batch", "--retry-failed"], "--retry-failed needs a journal"),
        (["batch", "-", "--estimate"], "can be read only once"),
        (["batch", "in.csv", "-c", "0"], "'0' must be a number of calls, at least 1, or auto"),
        (["batch", "in.csv", "-c", "many"], "'many' must be a number of calls"),
        (["batch", "in.csv", "--stop-after-failures", "101%"], "'101%' must be a number of items"),
        (["batch", "in.csv", "--stop-after-failures", "0"], "'0' must be a number of items"),
        (["batch", "in.csv", "--prompt", "{nothing}"], "nothing"),
        (["batch", "in.csv", "-o", "x.xlsx", "--prompt", "{text}"], "xlsx"),
        (["batch", "in.csv", "--prompt", "{text}", "--id", "nothing"], "nothing"),
    ],
)
def test_wrong_usage_is_said_before_anything_is_sent(
    arguments: list[str], problem: str, cli: Cli, gateway: LocalGateway, reviews: list[str], folder: Path
) -> None:
    before = sent(gateway)
    done = cli(*arguments)
    assert done.code == 2
    assert problem in done.err
    assert sent(gateway) == before
    assert [path.name for path in folder.iterdir()] == ["in.csv"]


def test_a_missing_input_is_one_line(cli: Cli, gateway: LocalGateway, folder: Path) -> None:
    done = cli("batch", "nothing.csv", "-o", "out.csv", "--prompt", "{text}")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "nothing.csv" in done.err
    assert list(folder.iterdir()) == []


def interrupt_after(monkeypatch: pytest.MonkeyPatch, count: int, times: int) -> None:
    """Press Ctrl-C so many times when so many outcomes were read."""
    add = Summary.add

    def added(self: Summary, outcome: Any) -> None:
        add(self, outcome)
        if self.count == count:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Summary, "add", added)


def test_ctrl_c_finishes_what_is_in_flight(
    cli: Cli, gateway: LocalGateway, reviews: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3, 1)
        before = sent(gateway)
        done = cli(*reviews, "-c", "1")
    assert done.code == 130
    ended = sent(gateway) - before
    assert 3 <= ended < 10
    assert f"{ended} done" in done.err
    assert "Interrupted." in done.err
    assert "Run the same command again to continue" in done.err
    assert len(rows_of("out.partial.csv")) == ended
    assert not Path("out.csv").exists()
    assert cli(*reviews).code == 0
    assert sent(gateway) == before + 10


def test_ctrl_c_twice_ends_immediately(
    cli: Cli, gateway: LocalGateway, reviews: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3, 2)
        done = cli(*reviews, "-c", "1")
    assert done.code == 130
    assert "Interrupted." in done.err
    assert "Traceback" not in done.err
    assert cli(*reviews).code == 0
    assert len(rows_of("out.csv")) == 10


def test_ctrl_c_at_the_last_outcome_changes_nothing(
    cli: Cli, gateway: LocalGateway, reviews: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(monkeypatch, 10, 1)
    assert cli(*reviews).code == 0
    assert len(rows_of("out.csv")) == 10


def test_the_handler_of_ctrl_c_is_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    calls: list[int] = []
    interrupts = Interrupts(lambda: calls.append(1))
    with interrupts.caught():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert calls == [1]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupted_run_without_a_journal_says_so(
    cli: Cli, gateway: LocalGateway, reviews: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(monkeypatch, 3, 1)
    done = cli(*reviews, "--no-journal", "-c", "1")
    assert done.code == 130
    assert "There is no journal" in done.err


def test_a_journal_of_another_prompt_is_refused(cli: Cli, gateway: LocalGateway, reviews: list[str]) -> None:
    assert cli(*reviews).code == 0
    reviews[reviews.index("Sum up: {text}")] = "Translate: {text}"
    done = cli(*reviews)
    assert done.code == 1
    assert "out.journal.jsonl" in done.err


def test_show_lists_outcomes_and_totals(cli: Cli, gateway: LocalGateway, reviews: list[str]) -> None:
    refuse(gateway, "Soup 3")
    cli(*reviews)
    done = cli("journal", "show", "out.journal.jsonl", "--limit", "2")
    assert len(done.out.splitlines()) == 3
    assert "8 more outcomes" in done.err
    assert "9 done, 1 failed" in done.err
    shown = cli("journal", "show", "out.journal.jsonl", "--json").json
    assert (shown["succeeded"], len(shown["outcomes"])) == (9, 10)


def test_failed_lists_what_failed_and_what_to_run_again(
    cli: Cli, gateway: LocalGateway, reviews: list[str]
) -> None:
    refuse(gateway, "Soup 3")
    cli(*reviews)
    done = cli("journal", "failed", "out.journal.jsonl")
    assert (done.code, done.out.split("\t")[0]) == (1, "r3")
    assert "1 of 10 items failed." in done.err
    items = [
        json.loads(line) for line in cli("journal", "failed", "out.journal.jsonl", "--items").out.splitlines()
    ]
    assert [(item["id"], item["text"]) for item in items] == [("r3", "Soup 3 was cold")]
    lines = cli("journal", "failed", "out.journal.jsonl", "--json").out.splitlines()
    assert json.loads(lines[0])["error"]["status_code"] == 400


def test_merge_makes_one_journal(cli: Cli, gateway: LocalGateway, reviews: list[str]) -> None:
    cli(*reviews, "--limit", "4")
    cli(*reviews, "--journal", "other.jsonl")
    done = cli("journal", "merge", "out.journal.jsonl", "other.jsonl", "-o", "all.jsonl")
    assert "all.jsonl: 10 ids from 2 journals" in done.err
    assert done.code in (0, 1)  # 1 if the model gave two answers
    assert cli("journal", "show", "all.jsonl", "--json").json["succeeded"] == 10


def test_a_missing_journal_is_one_line(cli: Cli) -> None:
    for arguments in (["show", "none"], ["failed", "none"], ["merge", "none", "-o", "all"]):
        done = cli("journal", *arguments)
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert "'none'" in done.err


def test_a_batch_that_a_wrong_key_ends_tells_what_to_do_in_words_of_the_command_line(
    gateway: LocalGateway, cli: Cli
) -> None:
    done = cli("batch", "-", "--api-key", "llmg_of_nobody", input='{"messages": "hi"}\n')
    assert done.code == 4
    assert "Give a valid key with --api-key" in done.err
    assert "api_key=" not in done.err
