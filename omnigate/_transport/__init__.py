"""How requests travel: httpx transports of every kind, and the clients' default."""

from omnigate._transport.adapters import adapt
from omnigate._transport.anyio_transport import AnyIOTransport
from omnigate._transport.default import default_transport

__all__ = ["AnyIOTransport", "adapt", "default_transport"]
