"""Details of transport errors beyond their type: what could not be reached, why, and whether permanently.

For a foreign transport's error they are found in its chain of causes and contexts, which ends with the
operating system's or OpenSSL's own error. A chain that is cut (`from None`) is not shown, but still there.
"""

from __future__ import annotations

import errno
import ssl
import sys
from collections.abc import Iterator
from typing import Final, cast

import httpx

FULL: Final = frozenset({errno.EMFILE, errno.ENFILE})
"""The errors for having no more descriptors, in this process or the whole system."""

_MOST_CAUSES: Final = 64


class ConnectFailure(httpx.ConnectError):
    """A connect error that names what could not be reached.

    Attributes:
        subject: what could not be reached, if not the gateway.
        is_permanent: whether another attempt would fail in the same way.
    """

    def __init__(self, message: str, *, subject: str | None = None, is_permanent: bool = False) -> None:
        super().__init__(message)
        self.subject = subject
        self.is_permanent = is_permanent


class ConnectTimedOut(httpx.ConnectTimeout):
    """A connect timeout that names what could not be reached.

    Attributes:
        subject: what could not be reached, if not the gateway.
    """

    def __init__(self, message: str, *, subject: str | None = None) -> None:
        super().__init__(message)
        self.subject = subject


class NoFreeConnection(httpx.PoolTimeout):
    """A pool timeout that says how many connections there may be."""


def subject_of(error: BaseException) -> str | None:
    """Return what could not be reached, if not the gateway."""
    return error.subject if isinstance(error, ConnectFailure | ConnectTimedOut) else None


def is_permanent(error: BaseException) -> bool:
    """Return whether another attempt would fail in the same way: a certificate that is not trusted."""
    if isinstance(error, ConnectFailure) and error.is_permanent:
        return True
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error))


def reason_of(error: BaseException) -> str:
    """Return why it failed: what to do if that is known, else the first message in the chain of causes."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError) and not isinstance(error, ConnectFailure):
            return f"the certificate is not trusted: {getattr(cause, 'verify_message', cause)}"
    words = (str(cause) for cause in _causes(error))
    return lack_of_files(error) or next(filter(None, words), "") or type(error).__name__


def lack_of_files(error: BaseException) -> str | None:
    """Return what to do if no more files (or sockets) can be opened; None if that is not the reason."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in FULL:
            if cause.errno == errno.ENFILE:
                return "too many open files in the whole system"
            limit = _file_limit()
            allowed = "" if limit is None else f" (the limit is {limit:,}: `ulimit -n`)"
            return f"too many open files in this process{allowed}; raise the limit, or lower max_connections"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what it was raised from, and the members of groups on the way."""
    left: list[BaseException] = [error]
    seen: set[int] = set()
    while left and len(seen) < _MOST_CAUSES:
        found = left.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        if isinstance(found, BaseExceptionGroup):
            left += cast("BaseExceptionGroup[BaseException]", found).exceptions
        cause = found.__cause__ or found.__context__  # even if it is not shown
        if cause is not None:
            left.append(cause)


def _file_limit() -> int | None:
    if sys.platform == "win32":  # has no such limit
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit
