"""What an engine's workers do with each partition: settings that travel, and the journal of each.

A partition of an engine has no name that lasts: it may be cut again or run on another worker. So its journal
is named by what is in it, its ids or else its rows, and is found again wherever the same rows come together.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final, cast

import msgspec

from omnigate._batch.items import row_of as fields_of
from omnigate._data.cells import plain_cell
from omnigate._data.ids import ID_FIELDS
from omnigate._wire.checks import check_bool, refusal
from omnigate._wire.options import check_known
from omnigate.async_client import AsyncClient
from omnigate.distributed._partition import ClientArguments, PartitionSettings, check_prompt
from omnigate.distributed._tables import items_of

_DIGEST_BYTES: Final = 16


class _Arguments(dict[str, Any]):
    """The arguments of a client, whose repr shows no key."""

    def __repr__(self) -> str:
        return f"<arguments of a client: {', '.join(self) or 'none'}>"


class PartitionTask:
    """The settings of a job, checked, which can be pickled; its repr shows no key.

    Args:
        owner: the name of the function or class, for messages.
        client: the arguments of the clients that the workers make.
        journal_dir: the directory of the journals, on a path that all workers share; None for none.
        settings: as in `chat_partition`.

    Raises:
        InvalidArgumentError: an argument is not allowed.
    """

    def __init__(
        self,
        owner: str,
        client: ClientArguments | None,
        journal_dir: str | os.PathLike[str] | None,
        share_limit: bool,
        settings: PartitionSettings,
    ) -> None:
        self.owner: str = owner
        check_known(settings, PartitionSettings, owner)
        if journal := settings.get("journal"):
            hint = "each partition has a journal of its own; pass their directory as journal_dir="
            raise refusal("journal", journal, "not be given", hint=hint)
        if not isinstance(cast("object", client), Mapping | None):
            must = "be a dict of a client's arguments, or None"
            raise refusal("client", client, must, is_type=True, hint="each worker makes its own")
        arguments: Any = _Arguments(client or {})
        check_known(arguments, ClientArguments, "client")
        self.client: ClientArguments = arguments
        if not isinstance(cast("object", journal_dir), str | os.PathLike | None) or journal_dir == "":
            raise refusal("journal_dir", journal_dir, "be a path, or None", is_type=True)
        self.journal_dir: str | None = None if journal_dir is None else os.path.abspath(journal_dir)
        self.share_limit: bool = check_bool(share_limit, "share_limit")
        if not self.share_limit and settings.get("pacer") is not None:
            raise refusal("pacer", settings.get("pacer"), "not be given with share_limit=False")
        self.settings: PartitionSettings = settings
        check_prompt(settings)
        given: Any = settings
        AsyncClient(**self.client).batch((), **given)  # checks them; sends nothing, and starts nothing

    def __repr__(self) -> str:
        where = self.client.get("base_url") or "$OMNIGATE_BASE_URL"
        return f"<{self.owner}: model={self.settings.get('model')!r}, {where}>"

    def settings_for(self, rows: Any) -> PartitionSettings:
        """Return the settings for a partition, its journal among them; make the directory. Blocks."""
        if self.journal_dir is None:
            return self.settings
        with contextlib.suppress(OSError):  # then the journal cannot be opened, which the rows say
            os.makedirs(self.journal_dir, mode=0o700, exist_ok=True)
        name = f"part-{digest_of(rows, self.settings.get('id'))}.jsonl"
        return {**self.settings, "journal": os.path.join(self.journal_dir, name)}


def digest_of(rows: Any, id: str | None) -> str:
    """Return a digest of what identifies rows, in order: their ids, or else all of their fields.

    Args:
        rows: as in `chat_partition`.
        id: the field that identifies a row, or None.
    """
    hashed = blake2b(digest_size=_DIGEST_BYTES)
    for raw in items_of(rows):
        fields = fields_of(raw)
        names = ID_FIELDS if id is None else (id,)
        own = None if fields is None else next((fields[name] for name in names if fields.get(name)), None)
        if own is None:
            own = raw if fields is None else fields
        hashed.update(msgspec.json.encode(plain_cell(own)))
        hashed.update(b"\n")
    return hashed.hexdigest()
