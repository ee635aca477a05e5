"""One rate limit over many processes: a pacer that all workers share.

`client.batch(…, pacer=link)` sends under leases of a `SharedPacer`, to which the link carries its reports.
Nothing of an extra is needed to import this.
"""

from omnigate import _homes
from omnigate._batch.pace.link import PacerLink
from omnigate._batch.pace.messages import PacerMessageError
from omnigate.distributed._local import LocalLink
from omnigate.distributed._partition import (
    ClientArguments,
    PartitionSettings,
    chat_partition,
    chat_partition_sync,
)
from omnigate.distributed._redis_pacer import RedisClient, RedisPacer
from omnigate.distributed._server import PacerServer
from omnigate.distributed._shared import SharedPacer, exchange_stored, key_of
from omnigate.distributed._socket_pacer import SocketPacer

__all__ = [
    "ClientArguments",
    "LocalLink",
    "PacerLink",
    "PacerMessageError",
    "PacerServer",
    "PartitionSettings",
    "RedisClient",
    "RedisPacer",
    "SharedPacer",
    "SocketPacer",
    "chat_partition",
    "chat_partition_sync",
    "exchange_stored",
    "key_of",
]

_homes.settle_exports(__name__)
