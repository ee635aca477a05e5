"""Optional packages: what to install when one of an extra is missing."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Final

_GATEWAY: Final = ("pydantic", "starlette", "uvicorn")

_PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "gateway": _GATEWAY,
    "cli": (*_GATEWAY, "click", "jsonschema", "platformdirs", "prompt_toolkit", "rich"),
    "plot": ("matplotlib",),
    "redis": ("redis",),
    "data": ("backports", "ijson", "pyarrow"),
    "dask": ("dask", "distributed", "pandas", "pyarrow"),
    "ray": ("pyarrow", "ray"),
}


class MissingExtraError(ImportError):
    """A package of one of omnigate's extras is not installed; the message says what to install."""


@contextmanager
def extra(name: str, what: str) -> Generator[None]:
    """Import packages of an extra in this block; the error for a missing one says how to install it.

    Args:
        name: the extra.
        what: what needs it, as the message's subject.

    Raises:
        MissingExtraError: a package of the extra is missing. Any other failed import is raised unchanged.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if isinstance(error, MissingExtraError) or package not in _PACKAGES[name]:
            raise
        message = f"{what} needs {package}: pip install 'omnigate[{name}]'"
        raise MissingExtraError(message, name=package) from None
