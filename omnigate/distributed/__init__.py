"""One rate limit over many processes: a pacer that all workers share.

Nothing of an extra is needed to import this.
"""

from omnigate._batch.pace.link import PacerLink
from omnigate._batch.pace.messages import PacerMessageError
from omnigate.distributed._shared import SharedPacer, exchange_stored, key_of

__all__ = ["PacerLink", "PacerMessageError", "SharedPacer", "exchange_stored", "key_of"]
