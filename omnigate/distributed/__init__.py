"""One rate limit over many processes: a pacer that all workers share.

`client.batch(…, pacer=link)` sends under leases of a `SharedPacer`, to which the link carries its reports.
Nothing of an extra is needed to import this.
"""

from omnigate._batch.pace.link import PacerLink
from omnigate._batch.pace.messages import PacerMessageError
from omnigate.distributed._local import LocalLink
from omnigate.distributed._shared import SharedPacer, exchange_stored, key_of

__all__ = ["LocalLink", "PacerLink", "PacerMessageError", "SharedPacer", "exchange_stored", "key_of"]
