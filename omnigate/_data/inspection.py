"""What is found out about data before anything is sent: whether it can be read, its length, repeated ids.

Files are read once from end to end, so that a damaged one, one in another encoding, a template that fits no
row and a repeated id are one error before anything is billed, rather than thousands after. Ids take eight
bytes each: their hashes are kept, and only if two are equal, the rows are read again to name both.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

from omnigate._data.ids import ID_FIELDS, id_text
from omnigate._data.rows import InvalidRow, Row, names_of
from omnigate._data.source import DataSource, Files
from omnigate._data.templates import Template
from omnigate._wire.redaction import shown
from omnigate.exceptions import InvalidArgumentError

ITEM_FIELDS: Final = frozenset({"messages", "prompt", "body", "role"})
"""Fields of which a row that is an item by itself has one."""

_BUCKETS: Final = 256

_SUSPECTS_MAX: Final = 1024

_TELL_EVERY: Final = 1024


class Facts(NamedTuple):
    """What an inspection found.

    Attributes:
        total: how many rows there are, or None if that is not known.
        digest: of the files whose rows are identified by their numbers alone, else None.
    """

    total: int | None = None
    digest: str | None = None


def inspect(
    source: DataSource,
    *,
    template: Template | None,
    id: str | None,
    is_item: bool,
    has_journal: bool,
    counted: Callable[[int], object] | None = None,
) -> Facts:
    """Read a source from end to end, as far as needed, and return what is known of it.

    Args:
        source: of rows. One that cannot be read twice is not touched.
        template: made of its rows, or None.
        id: the field that identifies a row, or None.
        is_item: whether each row is an item by itself, without `prompt`.
        has_journal: whether each row needs an id of its own, and the files a digest.
        counted: called now and then with the number of rows so far.

    Raises:
        InvalidArgumentError: it cannot be read, is an empty file, or fits neither the template nor the ids.
        OSError: a file cannot be opened or read.
    """
    if not source.is_repeatable:
        return Facts()
    total = source.count()
    reading = _Reading(
        missing=set(template.fields if template is not None else ()),
        is_usable=not is_item,
        fields=(id,) if id is not None else ID_FIELDS if is_item and has_journal else (),
    )
    first: Row | None = None
    for row in source.firsts():
        first = first or row
        if row.origin.is_table:
            _check_table(source, row, template, id, is_item)
            reading.missing.clear()
            reading.is_usable = True
    if total is None or reading.missing or reading.fields:
        total = reading.run(source, counted)
    if not total and isinstance(source, Files):
        raise source.no_rows()
    if first is not None and not reading.is_usable:
        raise _not_items(source, first, id)
    if first is not None and reading.missing:
        name = min(reading.missing)
        raise InvalidArgumentError(
            f"prompt has the field {name!r}, which no row of {source.name} has; the first has"
            f" {names_of(first.fields)}"
        )
    is_numbered = has_journal and total and not len(reading.hashes)
    return Facts(total, source.digest() if is_numbered else None)


class _Reading:
    """Reads all rows, as far as they are needed.

    Attributes:
        missing: fields of the template that no row has had so far.
        is_usable: whether a row has been an item by itself, or need not be.
        fields: those that may hold the id of a row, if ids have to be unique.
        hashes: of the ids.
    """

    def __init__(self, *, missing: set[str], is_usable: bool, fields: Sequence[str]) -> None:
        self.missing: set[str] = missing
        self.is_usable: bool = is_usable
        self.fields: Sequence[str] = fields
        self.hashes: _Hashes = _Hashes()

    def run(self, source: DataSource, counted: Callable[[int], object] | None) -> int:
        """Read the rows and return how many there are.

        Args:
            source: of the rows.
            counted: called now and then with the number of rows so far.

        Raises:
            InvalidArgumentError: two rows have the same id.
        """
        missing, fields, hashes, is_usable = self.missing, self.fields, self.hashes, self.is_usable
        total = 0
        for row in source.rows(None if missing else fields):
            total += 1
            if counted is not None and total % _TELL_EVERY == 0:
                counted(total)
            if isinstance(row, InvalidRow):
                continue
            if missing:
                missing.difference_update(row.fields)
            if not is_usable:
                is_usable = not ITEM_FIELDS.isdisjoint(row.fields)
            if fields and (text := _id_of(row, fields)) is not None:
                hashes.add(text)
        self.is_usable = is_usable
        if suspects := hashes.repeated():
            _check_ids(source, fields, suspects)
        return total


def _check_table(
    source: DataSource, first: Row, template: Template | None, id: str | None, is_item: bool
) -> None:
    """Check the columns of a table, or of one of several files, by its first row."""
    table = repr(first.origin.name) if first.origin.name else source.name
    if is_item and ITEM_FIELDS.isdisjoint(first.fields):
        raise _not_items(source, first, id)
    columns = names_of(first.fields)
    wanted = [("prompt", name) for name in (template.fields if template is not None else ())]
    if id is not None:
        wanted.append(("id", id))
    for argument, name in wanted:
        if name not in first.fields:
            raise InvalidArgumentError(
                f"{argument} names the column {name!r}, which {table} does not have; it has {columns}"
            )
    if template is not None:
        present = {name: "" if first.fields[name] is None else first.fields[name] for name in template.fields}
        try:
            template.fill(present)
        except InvalidArgumentError as error:  # a column of the wrong type
            raise type(error)(f"{first.place}: {error}") from None
    if id is not None and first.fields[id] is not None:
        id_text(first.fields[id], f"{first.place}: {id!r} (id=)")


def _not_items(source: DataSource, first: Row, id: str | None) -> InvalidArgumentError:
    what = "columns" if first.origin.is_table else "fields"
    name = next((name for name in first.fields if name != id), "text")
    return InvalidArgumentError(
        f"requests: {source.name} has the {what} {names_of(first.fields)}, and neither 'prompt' nor "
        f"'messages'; say with prompt= how a row becomes one, for example prompt='Summarise: {{{name}}}'"
    )


def _id_of(row: Row, fields: Sequence[str]) -> str | None:
    """Return the id that a row has by itself; None if it has none, or one that is not valid."""
    for name in fields:
        value: Any = row.fields.get(name)
        if value is None:
            continue
        if type(value) is str:
            return value
        try:
            return id_text(value, name)
        except InvalidArgumentError:  # later, as the error of the row
            return None
    return None


def _check_ids(source: DataSource, fields: Sequence[str], suspects: set[int]) -> None:
    """Raise the error for an id that two rows have; hashes may be equal by chance."""
    places: dict[str, str] = {}
    for row in source.rows(fields):
        text = None if isinstance(row, InvalidRow) else _id_of(row, fields)
        if isinstance(row, Row) and text is not None and hash(text) in suspects:
            if text in places:
                where = f"{places[text]} and in {row.place}"
                raise InvalidArgumentError(
                    f"requests: each row must have an id of its own, got {shown(text)} in {where}"
                )
            places[text] = row.place


class _Hashes:
    """The hashes of many texts, to find out which come twice."""

    def __init__(self) -> None:
        self._buckets = [array("q") for _ in range(_BUCKETS)]

    def __len__(self) -> int:
        return sum(map(len, self._buckets))

    def add(self, text: str) -> None:
        """Add a text."""
        hashed = hash(text)
        self._buckets[hashed & _BUCKETS - 1].append(hashed)

    def repeated(self) -> set[int]:
        """Return hashes that come more than once: some of them, if there are very many."""
        found = (pair[0] for bucket in self._buckets for pair in _equal(bucket))
        return {hashed for hashed, _ in zip(found, range(_SUSPECTS_MAX), strict=False)}


def _equal(bucket: array[int]) -> Iterator[tuple[int, int]]:
    return (pair for pair in pairwise(sorted(bucket)) if pair[0] == pair[1])
