"""Base classes that refuse to pickle objects with connections, threads or keys."""

from __future__ import annotations

from typing import ClassVar, NoReturn, SupportsIndex

from omnigate.exceptions import InvalidArgumentTypeError


class Unpicklable:
    """An object that cannot be pickled, copied or sent to another process, and says what to do instead."""

    __slots__ = ()

    _instead: ClassVar[str]

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn:
        """Refuse."""
        name = type(self).__name__
        raise InvalidArgumentTypeError(f"{name} objects cannot be pickled or copied: {self._instead}")


class UnpicklableClient(Unpicklable):
    """A client or transport that cannot be pickled."""

    __slots__ = ()

    _instead = (
        "it holds connections, and its key would be stored in the clear. Create one in each process: in the "
        "`initializer` of a multiprocessing.Pool or ProcessPoolExecutor, or in the `__init__` of a Ray actor"
    )


class UnpicklableReader(Unpicklable):
    """A stream or batch that cannot be pickled."""

    __slots__ = ()

    _instead = (
        "it reads from connections of this process. Read it here, and pass on what it yields; responses, "
        "chunks and outcomes can be pickled"
    )
