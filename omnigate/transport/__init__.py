"""How requests travel: httpx transports of every kind, and the clients' default."""

from omnigate.transport.adapters import adapt
from omnigate.transport.anyio_transport import AnyIOTransport
from omnigate.transport.default import default_transport

__all__ = ["AnyIOTransport", "adapt", "default_transport"]
