"""The results of calls: structs, lists and dicts with `meta`."""

from __future__ import annotations

from collections.abc import Iterable
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args

from omnigate import _homes
from omnigate._wire.head import Meta
from omnigate._wire.structs import WireStruct

T = TypeVar("T")

if TYPE_CHECKING:  # only type checkers need the default, and Python has it from 3.13 on
    from typing_extensions import TypeVar as _TypeVar

    Parsed = _TypeVar("Parsed", default=object)
    ParsedT_co = _TypeVar("ParsedT_co", default=object, covariant=True)
else:
    Parsed = TypeVar("Parsed")
    ParsedT_co = TypeVar("ParsedT_co", covariant=True)


class ListResult(list[T], Generic[T]):
    """A list from the gateway, with `meta`."""

    def __init__(self, items: Iterable[T], *, meta: Meta) -> None:
        super().__init__(items)
        self.meta = meta

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        (item,) = get_args(source) or (Any,)
        return handler.generate_schema(GenericAlias(list, (item,)))


class DictResult(dict[str, T], Generic[T]):
    """A raw JSON object from the gateway, with `meta`."""

    def __init__(self, fields: dict[str, T], *, meta: Meta) -> None:
        super().__init__(fields)
        self.meta = meta

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        (value,) = get_args(source) or (Any,)
        return handler.generate_schema(GenericAlias(dict, (str, value)))


class Result(WireStruct, kw_only=True, gc=False):
    """Base class of results: a struct with `meta`, which copies and pickles keep."""

    @property
    def meta(self) -> Meta:
        """The call's metadata: request id, limits, budgets, attempts, elapsed time."""
        try:
            return self._meta
        except AttributeError:
            raise AttributeError(
                f"this {type(self).__name__} has no meta: it was not returned by a call"
            ) from None


R = TypeVar("R", bound=Result)


def list_with_meta(items: list[R], meta: Meta) -> ListResult[R]:
    """Return `items` as a list with `meta`, and set it on each item."""
    for item in items:
        item._meta = meta
    return ListResult(items, meta=meta)


_homes.settle(__name__)
