"""Warns of a key that goes over the network where anyone on the way can read it: over `http://`.

Once for each client, and at the line that made the client or set its address. Not for loopback addresses,
which no network sees.
"""

from __future__ import annotations

import ipaddress
import sys
import warnings
from types import FrameType

import httpx


class PlaintextKeyWarning(UserWarning):
    """A key will be sent over plain `http://` to a host that is not this one, readable to all on the way."""


def warn_of_plaintext_key(url: httpx.URL) -> bool:
    """Warn if what is sent to `url` can be read on the way, and return whether it can."""
    if url.scheme != "http" or is_loopback(url.host):
        return False
    warnings.warn(
        f"the key will be sent unencrypted to {url.host}: take an https:// address as base_url",
        PlaintextKeyWarning,
        stacklevel=level_of_caller(),
    )
    return True


def is_loopback(host: str) -> bool:
    """Return whether `host` is this one: localhost (RFC 6761, section 6.3), 127.0.0.0/8 or ::1."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def level_of_caller() -> int:
    """Return the `stacklevel` of the first frame outside of this package, for who calls this function."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame):
        frame = frame.f_back
        level += 1
    return level


def _is_ours(frame: FrameType) -> bool:
    package = frame.f_globals.get("__package__")  # None in a plain script
    return isinstance(package, str) and package.partition(".")[0] == "omnigate"
