"""Transports: our own, adapters for every kind of httpx transport, and the default."""

from omnigate._transport.adapters import adapt
from omnigate._transport.anyio_transport import AnyIOTransport
from omnigate._transport.default import default_transport

__all__ = ["AnyIOTransport", "adapt", "default_transport"]
