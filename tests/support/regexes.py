"""Finds regular expressions that may backtrack for longer than linear time, by their structure alone.

Backtracking is superlinear where one stretch of text can be divided among several repeats in more than one way:
an unbounded repeat inside an unbounded repeat, or two unbounded repeats that a common character connects. A
pattern that is searched for is tried from every position: it is superlinear if one stretch of text can hold many
beginnings, and each of them reads that stretch to its end in vain. Such patterns are reported; a few harmless ones
may be, too, and are better written in another way.
"""

import re
from collections.abc import Iterator
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple

ALL = frozenset(range(256))
_MANY = 256
"""A repeat of at most so many is a constant, however long the text is."""

_CATEGORIES = {
    sre.CATEGORY_DIGIT: r"\d",
    sre.CATEGORY_NOT_DIGIT: r"\D",
    sre.CATEGORY_SPACE: r"\s",
    sre.CATEGORY_NOT_SPACE: r"\S",
    sre.CATEGORY_WORD: r"\w",
    sre.CATEGORY_NOT_WORD: r"\W",
}


class Part(NamedTuple):
    """What a pattern, or a part of it, matches.

    Attributes:
        first: characters it can begin with.
        last: characters it can end with.
        empty: whether it can match nothing.
        head: characters of an unbounded repeat at its beginning; empty if there is none.
        tail: characters of an unbounded repeat that nothing certain follows; empty if there is none.
        any: all characters it can contain.
    """

    first: frozenset[int]
    last: frozenset[int]
    empty: bool
    head: frozenset[int] = frozenset()
    tail: frozenset[int] = frozenset()
    any: frozenset[int] = frozenset()


NOTHING = Part(frozenset(), frozenset(), True)


def problems(pattern: re.Pattern[Any], *, is_searched: bool) -> list[str]:
    """Return why a pattern may take more than linear time.

    Args:
        pattern: the pattern.
        is_searched: whether it is tried at every position, and not only at the first (`match`).
    """
    found: list[str] = []
    items = list(parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE))
    _sequence(items, pattern.flags, found)
    if is_searched:
        for expanded in _expansions(items):
            found += _search_problems(expanded, pattern.flags)
    return found


def _expansions(items: list[Any]) -> Iterator[list[Any]]:
    """Yield a sequence with its groups opened and with each choice of its alternatives."""
    for place, (code, argument) in enumerate(items):
        inner: list[Any] = []
        if code is sre.SUBPATTERN:
            inner = [list(argument[3])]
        elif code is sre.BRANCH:
            inner = [list(branch) for branch in argument[1]]
        if inner:
            for chosen in inner:
                yield from _expansions(items[:place] + chosen + items[place + 1 :])
            return
    yield items


def _search_problems(items: list[Any], flags: int) -> Iterator[str]:
    before: list[frozenset[int]] = []
    for place, (code, argument) in enumerate(items):
        if code in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT) and argument[1] is sre.MAXREPEAT:
            repeated = _part(code, argument, flags, []).any
            if all(part & repeated for part in before) and place + 1 < len(items):
                yield f"a search begins anew at each place of a stretch of {_words(repeated)}"
        part = _part(code, argument, flags, [])
        if not part.empty:
            before.append(part.any)


def _sequence(items: Any, flags: int, found: list[str]) -> Part:
    result = NOTHING
    for code, argument in items:
        result = _join(result, _part(code, argument, flags, found), found)
    return result


def _join(left: Part, right: Part, found: list[str]) -> Part:
    """Return what two parts in a row match, and report repeats in both that can divide a text between them."""
    if left.tail & right.head:
        found.append(f"two repeats in a row share {_words(left.tail & right.head)}")
    # A repeat at the end of `left` stays open through `right` as far as it can match all of that.
    goes_on = left.tail if right.empty or (right.any and right.any <= left.tail) else frozenset()
    return Part(
        left.first | (right.first if left.empty else frozenset()),
        right.last | (left.last if right.empty else frozenset()),
        left.empty and right.empty,
        left.head | (right.head if left.empty or left.any <= right.head else frozenset()),
        right.tail | goes_on,
        left.any | right.any,
    )


def _part(code: Any, argument: Any, flags: int, found: list[str]) -> Part:
    if code in (sre.AT, sre.ASSERT_NOT):
        return NOTHING
    if code is sre.ASSERT:
        _sequence(argument[1], flags, found)
        return NOTHING
    if code is sre.SUBPATTERN:
        return _sequence(argument[3], flags, found)
    if code is sre.ATOMIC_GROUP:
        return _closed(_sequence(argument, flags, found))
    if code is sre.BRANCH:
        branches = [_sequence(branch, flags, found) for branch in argument[1]]
        return Part(
            frozenset().union(*(branch.first for branch in branches)),
            frozenset().union(*(branch.last for branch in branches)),
            any(branch.empty for branch in branches),
            frozenset().union(*(branch.head for branch in branches)),
            frozenset().union(*(branch.tail for branch in branches)),
            frozenset().union(*(branch.any for branch in branches)),
        )
    if code in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
        return _repeat(code, argument, flags, found)
    characters = _characters(code, argument, flags)
    return Part(characters, characters, False, any=characters)


def _repeat(code: Any, argument: Any, flags: int, found: list[str]) -> Part:
    low, high, item = argument
    inner = _sequence(item, flags, found)
    if high is not sre.MAXREPEAT and high <= _MANY:
        inner = inner._replace(empty=inner.empty or low == 0)
        return _closed(inner) if code is sre.POSSESSIVE_REPEAT else inner
    if inner.tail or inner.head:
        found.append("a repeat inside a repeat")
    if inner.empty:
        found.append("a repeat of what may be empty")
    part = Part(inner.first, inner.last, low == 0, inner.any, inner.any, inner.any)
    return _closed(part) if code is sre.POSSESSIVE_REPEAT else part


def _closed(part: Part) -> Part:
    """Return a part that gives nothing back once it has matched."""
    return part._replace(tail=frozenset())


def _characters(code: Any, argument: Any, flags: int) -> frozenset[int]:
    if code is sre.ANY:
        return ALL if flags & re.DOTALL else ALL - {10}
    if code is sre.LITERAL:
        chosen = {argument}
    elif code is sre.NOT_LITERAL:
        chosen = ALL - {argument}
    elif code is sre.IN:
        chosen = set()
        negated = False
        for kind, value in argument:
            if kind is sre.NEGATE:
                negated = True
            elif kind is sre.RANGE:
                chosen |= set(range(value[0], min(value[1], 255) + 1))
            elif kind is sre.CATEGORY:
                chosen |= {c for c in ALL if re.match(_CATEGORIES[value], chr(c))}
            else:
                chosen.add(value)
        chosen = ALL - chosen if negated else chosen
    else:
        raise NotImplementedError(f"the checker does not know {code}")
    if flags & re.IGNORECASE:
        chosen = {ord(other) for c in chosen for other in {chr(c).lower(), chr(c).upper()} if len(other) == 1}
    return frozenset(chosen)


def _words(characters: frozenset[int]) -> str:
    return repr("".join(map(chr, sorted(characters)[:8])))
