"""The index from ids to offsets: exact and small."""

import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from omnigate._batch.journal import index as module
from omnigate._batch.journal.index import SEEN, SUCCEEDED, JournalIndex, make_entry, offset_of


@pytest.fixture(params=[1, 3, 256], ids="{} at once".format)
def stored_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ids come into the table one by one, or few or many at once."""
    monkeypatch.setattr(module, "_LATEST_MAX", request.param)


class Lines:
    """A stand-in for the file: ids by offset."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.reads = 0
        self.index = JournalIndex(self.read)

    def read(self, offset: int) -> str:
        self.reads += 1
        return self.ids[offset]

    def add(self, id: str) -> int:
        self.ids.append(id)
        entry = make_entry(len(self.ids) - 1, succeeded=False, seen=False)
        self.index.add(id, entry)
        return entry


@pytest.fixture
def lines(stored_at_once: None) -> Lines:
    return Lines()


@pytest.mark.parametrize("offset", [0, 1, 4095, 2**40, 2**61])
@pytest.mark.parametrize(("succeeded", "seen"), [(False, False), (False, True), (True, False), (True, True)])
def test_a_journal_index_entry_packs_an_offset_and_two_flags(
    offset: int, succeeded: bool, seen: bool
) -> None:
    entry = make_entry(offset, succeeded=succeeded, seen=seen)
    assert offset_of(entry) == offset
    assert bool(entry & SUCCEEDED) is succeeded
    assert bool(entry & SEEN) is seen
    index = JournalIndex(lambda _: "a")
    index.add("a", entry)
    assert index.find("a") == entry


def test_an_empty_journal_index_finds_nothing_and_replaces_nothing(lines: Lines) -> None:
    assert len(lines.index) == 0
    assert lines.index.find("a") is None
    assert not lines.index.has("a", 0)
    with pytest.raises(KeyError):
        lines.index.replace("a", 0, 1)
    assert lines.reads == 0


def test_replacing_a_journal_index_entry_reads_no_line(lines: Lines) -> None:
    old = lines.add("a")
    lines.ids.append("a")
    new = make_entry(1, succeeded=True, seen=True)
    lines.index.replace("a", old, new)
    assert lines.index.has("a", 1)
    assert not lines.index.has("a", 0)
    assert lines.reads == 0
    assert lines.index.find("a") == new
    assert len(lines.index) == 1


def test_journal_index_looks_up_absent_ids_without_reading_the_file(lines: Lines) -> None:
    for number in range(20_000):
        lines.add(f"item-{number}")
    assert all(lines.index.find(f"other-{number}") is None for number in range(20_000))
    assert lines.reads <= 3  # 40 bits collide by chance
    assert len(lines.index._latest) < 256
    assert len(lines.index) == 20_000


class Same(str):
    """Text whose hash is chosen."""

    __slots__ = ("chosen",)
    chosen: int

    def __hash__(self) -> int:
        return self.chosen

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other)


def same(text: str, chosen: int) -> Same:
    id = Same(text)
    id.chosen = chosen
    return id


@pytest.mark.parametrize("chosen", [0, 1, -1, 0xFFFFFFFF, 2**63 - 1 >> 2, -(2**60), 0xFF_FFFF_FFFF])
def test_journal_index_tells_ids_with_equal_hashes_apart(lines: Lines, chosen: int) -> None:
    ids = [same(f"item-{number}", chosen) for number in range(200)]
    entries = []
    for id in ids:
        assert lines.index.find(id) is None
        entries.append(lines.add(id))
    assert [lines.index.find(id) for id in ids] == entries
    assert lines.index.find(same("item-200", chosen)) is None
    for number, id in enumerate(ids):
        assert lines.index.has(id, number)
        assert not lines.index.has(id, number + 200)
        lines.index.replace(id, entries[number], entries[number] | SEEN)
    assert [lines.index.find(id) for id in ids] == [entry | SEEN for entry in entries]


class AgainstADict(RuleBasedStateMachine):
    """The index behaves like a dict, with few hashes so that all of them collide."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = Lines()
        self.model: dict[str, int] = {}
        self.patch = pytest.MonkeyPatch()

    @initialize(most=st.sampled_from([1, 3, 10, 256]))
    def store_at_once(self, most: int) -> None:
        self.patch.setattr(module, "_LATEST_MAX", most)

    def teardown(self) -> None:
        self.patch.undo()

    @rule(number=st.integers(0, 60), hashed=st.sampled_from([0, 5, -7, 0xFFFFFFFF]), flags=st.integers(0, 3))
    def put(self, number: int, hashed: int, flags: int) -> None:
        id: Any = same(f"{hashed}-{number}", hashed)
        self.lines.ids.append(id)
        new = len(self.lines.ids) - 1 << 2 | flags
        old = self.lines.index.find(id)
        assert old == self.model.get(id)
        if old is None:
            self.lines.index.add(id, new)
        else:
            self.lines.index.replace(id, old, new)
        self.model[id] = new

    @invariant()
    def finds_all(self) -> None:
        assert len(self.lines.index) == len(self.model)
        for id, entry in self.model.items():
            assert self.lines.index.find(id) == entry
            assert self.lines.index.has(id, offset_of(entry))


TestAgainstADict = AgainstADict.TestCase
TestAgainstADict.settings = settings(max_examples=20, stateful_step_count=60, deadline=None)


def test_journal_index_takes_12_bytes_a_slot_and_stays_well_filled(lines: Lines) -> None:
    for number in range(30_000):
        lines.add(f"item-{number}")
        if number > 20_000 and number % 500 == 0:
            columns = [*lines.index._fragments, *lines.index._entries]
            used = sum(len(column) * column.itemsize for column in columns)
            stored = number + 1 - len(lines.index._latest)
            assert 12 / 0.7 <= used / stored <= 12 / 0.7 * 1.5


# The peak memory of the whole process, before and after. It runs in a process of its own,
# since peaks never fall. The lines are as short as possible; their content makes no difference.
MILLION = """
import sys
from omnigate._batch.journal.journal import Journal
from omnigate._batch.journal.lines import decode_line

def peak():
    if sys.platform == "linux":
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

path, count = sys.argv[1], 1_000_000
line = (
    '{"id":"","custom_id":"item-%d","response":null,"error":{"code":"","message":""},'
    '"omnigate":{"digest":"d","index":0,"attempts":1,"elapsed":0}}\\n'
)
with open(path, "w") as file:
    for start in range(0, count, 1000):
        file.write("".join([line % number for number in range(start, start + 1000)]))
before = peak()
journal = Journal(path)
journal.open()
print((peak() - before) / count)
assert len(journal) == count
assert journal.claim("item-777777", "d", 0) is None
journal.close(finished=False)
"""


@pytest.mark.proof
@pytest.mark.skipif(sys.platform == "win32", reason="the peak is not asked for there")
def test_opening_a_journal_of_a_million_ids_takes_at_most_32_bytes_per_id(tmp_path: Any) -> None:
    path = tmp_path / "journal.jsonl"
    ran = subprocess.run(
        [sys.executable, "-c", MILLION, path], capture_output=True, text=True, check=False, env=os.environ
    )
    path.unlink(missing_ok=True)
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) <= 32
