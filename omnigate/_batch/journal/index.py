"""Index of a journal: a hash table from ids to their last lines, at 17 to 26 bytes per id.

A dict of a million ids takes some 150 bytes for each. This table keeps, for each id, 32 bits of its hash
and one integer, the *entry*: the offset of its line and two flags. The ids themselves stay in the file.
The rules:

1. It is exact. When hashes match, the id at the offset is read (`read_id`) and compared.
2. It is open addressing with linear probing (Knuth, TAOCP 3, 6.4, algorithm L): nothing is ever removed.
3. It grows without doubling: there are 256 segments, selected by other bits of the hash than the slot. A
   segment that is 70 % full grows by half, on its own, so the peak is the table's size plus one segment. At
   12 bytes per slot that is 12 / 0.7 to 12 / 0.7 * 1.5 bytes per id.
4. Hashes are Python's own, randomized in every process: they must never be stored.
5. Ids come into the table by the hundred, from a dict that holds the latest: one pass over many ids costs a
   fraction of as many single ones between calls, which find the processor's caches full of other things.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

SUCCEEDED = 1
"""Flag of an entry: its line is a success."""

SEEN = 2
"""Flag of an entry: its id was claimed in this run."""

_FLAG_BITS = 2

_SEGMENTS = 256

_FIRST_CAPACITY = 8

_MOST_FILLED = 0.7

_GROWTH = 1.5

_FRAGMENT = 0xFFFFFFFF

_LATEST_MAX = 256


def make_entry(offset: int, *, succeeded: bool, seen: bool) -> int:
    """Return the entry of a line."""
    return offset << _FLAG_BITS | (SEEN if seen else 0) | (SUCCEEDED if succeeded else 0)


def offset_of(entry: int) -> int:
    """Return the offset of an entry's line."""
    return entry >> _FLAG_BITS


class JournalIndex:
    """A table from ids to entries.

    Args:
        read_id: returns the id of the line at an offset.

    """

    __slots__ = ("_counts", "_entries", "_fragments", "_latest", "_read_id")

    def __init__(self, read_id: Callable[[int], str]) -> None:
        self._read_id = read_id
        self._latest: dict[str, int] = {}  # the entries of ids that are not in the table yet
        # For each slot: 32 bits of the id's hash (0 if the slot is free), and its entry.
        self._fragments = [array("I", [0]) * _FIRST_CAPACITY for _ in range(_SEGMENTS)]
        self._entries = [array("Q", [0]) * _FIRST_CAPACITY for _ in range(_SEGMENTS)]
        self._counts = [0] * _SEGMENTS

    def __len__(self) -> int:
        return sum(self._counts) + len(self._latest)

    def __repr__(self) -> str:
        return f"<JournalIndex of {len(self)} ids>"

    def find(self, id: str) -> int | None:
        """Return the entry of an id, or None. Reads a line for each matching hash on the way."""
        if id in self._latest:
            return self._latest[id]
        hashed = hash(id)
        segment = hashed >> 32 & 0xFF
        fragments = self._fragments[segment]
        fragment = hashed & _FRAGMENT or 1
        capacity = len(fragments)
        slot = fragment * capacity >> 32
        while found := fragments[slot]:
            if found == fragment:
                entry = self._entries[segment][slot]
                if self._read_id(entry >> _FLAG_BITS) == id:
                    return entry
            slot += 1
            if slot == capacity:
                slot = 0
        return None

    def add(self, id: str, entry: int) -> None:
        """Add an id that is known not to be in the index, without reading the file."""
        self._latest[id] = entry
        if len(self._latest) >= _LATEST_MAX:
            self._store_latest()

    def replace(self, id: str, old: int, new: int) -> None:
        """Replace the entry `old` of an id with `new`, without reading the file."""
        if id in self._latest:
            self._latest[id] = new
            return
        segment, slot = self._slot(id, old)
        self._entries[segment][slot] = new

    def has(self, id: str, offset: int) -> bool:
        """Return whether the id's entry points to `offset`, without reading the file."""
        if id in self._latest:
            return self._latest[id] >> _FLAG_BITS == offset
        hashed = hash(id)
        segment = hashed >> 32 & 0xFF
        fragments, entries = self._fragments[segment], self._entries[segment]
        slot = (hashed & _FRAGMENT or 1) * len(fragments) >> 32
        while fragments[slot]:
            if entries[slot] >> _FLAG_BITS == offset:
                return True
            slot = slot + 1 if slot + 1 < len(fragments) else 0
        return False

    def _slot(self, id: str, entry: int) -> tuple[int, int]:
        # Offsets are unique, so an equal entry on the id's probe path belongs to the id.
        hashed = hash(id)
        segment = hashed >> 32 & 0xFF
        fragments, entries = self._fragments[segment], self._entries[segment]
        slot = (hashed & _FRAGMENT or 1) * len(fragments) >> 32
        while fragments[slot]:
            if entries[slot] == entry:
                return segment, slot
            slot = slot + 1 if slot + 1 < len(fragments) else 0
        raise KeyError(id)

    def _store_latest(self) -> None:
        counts = self._counts
        for id, entry in self._latest.items():
            hashed = hash(id)
            segment = hashed >> 32 & 0xFF
            counts[segment] += 1
            if counts[segment] > _MOST_FILLED * len(self._fragments[segment]):
                self._grow(segment)
            _put(self._fragments[segment], self._entries[segment], hashed & _FRAGMENT or 1, entry)
        self._latest.clear()

    def _grow(self, segment: int) -> None:
        old_fragments, old_entries = self._fragments[segment], self._entries[segment]
        capacity = int(len(old_fragments) * _GROWTH)
        fragments, entries = array("I", [0]) * capacity, array("Q", [0]) * capacity
        for fragment, entry in zip(old_fragments, old_entries, strict=True):
            if fragment:
                _put(fragments, entries, fragment, entry)
        self._fragments[segment], self._entries[segment] = fragments, entries


def _put(fragments: array[int], entries: array[int], fragment: int, entry: int) -> None:
    capacity = len(fragments)
    slot = fragment * capacity >> 32
    while fragments[slot]:
        slot += 1
        if slot == capacity:
            slot = 0
    fragments[slot] = fragment
    entries[slot] = entry
