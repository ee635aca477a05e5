"""Where a pacer's server listens, and the secret it shares with its workers: "unix:/path" or "tcp://host:port"."""

from __future__ import annotations

import os
import sys
from typing import Final, NamedTuple, cast

from omnigate._wire.checks import refusal
from omnigate.exceptions import InvalidArgumentError

__all__ = ["SECRET_VARIABLE", "PacerAddress", "check_secret", "parse_address"]

SECRET_VARIABLE: Final = "OMNIGATE_PACER_SECRET"  # noqa: S105 - its name
"""The environment variable that has the secret."""

SECRET_BYTES_MIN: Final = 16

_PATH_BYTES_MAX: Final = 103 if sys.platform == "darwin" else 107

_MUST: Final = 'be "unix:/path/of/a.sock" or "tcp://host:port"'


class PacerAddress(NamedTuple):
    """The address of a server.

    Attributes:
        path: absolute path of a unix domain socket; None for TCP.
        host: name or IP address, without brackets; "" for a unix domain socket.
        port: 0 for a unix domain socket.

    """

    path: str | None
    host: str
    port: int

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"


def parse_address(text: object, *, is_server: bool) -> PacerAddress:
    """Return the address that a text is.

    Args:
        text: "unix:" and a path, or "tcp://" and a host and port.
        is_server: whether it is to be listened on, so that port 0 means any.

    Raises:
        InvalidArgumentError: it is none.

    """
    if not isinstance(text, str):
        raise refusal("address", text, _MUST, is_type=True)
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        path = path.removeprefix("//") if path.startswith("///") else path
        if not path or "\0" in path:
            raise refusal("address", text, _MUST)
        if not os.path.isabs(path):
            path = os.path.abspath(path)  # a worker may run in another directory
        if len(os.fsencode(path)) > _PATH_BYTES_MAX:
            must = f"have a path of at most {_PATH_BYTES_MAX} bytes, the system's limit for sockets"
            raise refusal("address", text, must)
        return PacerAddress(path, "", 0)
    if not text.startswith("tcp://"):
        raise refusal("address", text, _MUST)
    host, colon, digits = text.removeprefix("tcp://").rstrip("/").rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if is_bracketed else host
    is_name = bool(host) and (is_bracketed or ":" not in host) and not set(host) & set("/@[] \0")
    if not colon or not is_name or not (digits.isascii() and digits.isdigit() and len(digits) <= 5):
        raise refusal("address", text, _MUST)
    port = int(digits)
    if not (0 if is_server else 1) <= port <= 65_535:
        raise refusal("address", text, f"have a port between {0 if is_server else 1} and 65535")
    return PacerAddress(None, host, port)


def check_secret(secret: object) -> bytes:
    """Return the secret as bytes; None stands for that of the environment.

    Raises:
        InvalidArgumentError: there is none, or it is too short.

    """
    name = "secret"
    if secret is None:
        name, secret = f"${SECRET_VARIABLE}", os.environ.get(SECRET_VARIABLE)
        if not secret:
            raise InvalidArgumentError(f"secret must be given, or the variable {SECRET_VARIABLE} be set")
    if isinstance(secret, str):
        try:
            secret = secret.encode()
        except UnicodeEncodeError:
            raise refusal(name, secret, "not contain lone surrogates", secret=True) from None
    if not isinstance(secret, bytes):
        raise refusal(name, secret, "be text or bytes", is_type=True, secret=True)
    if len(secret) < SECRET_BYTES_MIN:
        raise refusal(
            name,
            cast("object", secret),
            f"have at least {SECRET_BYTES_MIN} bytes, so that it cannot be guessed",
            got=f"{len(secret)}",
            hint="python -c 'import secrets; print(secrets.token_urlsafe())' makes a good one",
        )
    return secret
