"""What calls return: structs, lists and dicts with `meta`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

from omnigate._wire.head import Meta
from omnigate._wire.structs import WireStruct

T = TypeVar("T")


class ListResult(list[T], Generic[T]):
    """A list from the gateway, with `meta`."""

    def __init__(self, items: Iterable[T], *, meta: Meta) -> None:
        super().__init__(items)
        self.meta = meta


class DictResult(dict[str, T], Generic[T]):
    """A raw JSON object from the gateway, with `meta`."""

    def __init__(self, fields: dict[str, T], *, meta: Meta) -> None:
        super().__init__(fields)
        self.meta = meta


class _MetaSlot:
    """A slot for `meta` that is not a struct field: neither decoded, encoded, compared nor dumped."""

    __slots__ = ("_meta",)

    if TYPE_CHECKING:  # at runtime msgspec would make it a field
        _meta: Meta

    @property
    def meta(self) -> Meta:
        """The call's metadata: request id, limits, budgets, attempts, elapsed time."""
        try:
            return self._meta
        except AttributeError:
            raise AttributeError(
                f"this {type(self).__name__} has no meta: it was not returned by a call"
            ) from None


class Result(_MetaSlot, WireStruct, kw_only=True, gc=False):
    """Base class of results: a struct with `meta`, which copies and pickles keep."""

    def __copy__(self) -> Self:
        made: Self = cast("Any", super()).__copy__()
        if hasattr(self, "_meta"):
            made._meta = self._meta
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        reduced = cast("tuple[Any, ...]", super().__reduce__())
        return (*reduced, (None, {"_meta": self._meta})) if hasattr(self, "_meta") else reduced


R = TypeVar("R", bound=Result)


def list_with_meta(items: list[R], meta: Meta) -> ListResult[R]:
    """Return `items` as a list with `meta`, and set it on each item."""
    for item in items:
        item._meta = meta
    return ListResult(items, meta=meta)
