"""How the items of a batch become requests: `prompt=`, `system=`, `id=`, and the defaults of every item."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, cast

from msgspec.structs import replace

from omnigate._batch.items import Item, item_id, make_item, place_of, read_item, row_of
from omnigate._data.inspection import Facts, inspect
from omnigate._data.rows import Again, InvalidRow, names_of
from omnigate._data.source import DataSource, is_data
from omnigate._data.templates import Template
from omnigate._wire.checks import check_not_async, check_not_awaitable, check_text, refusal
from omnigate._wire.redaction import one_line, redact
from omnigate._wire.structs import construct
from omnigate.exceptions import GatewayError, InvalidArgumentError
from omnigate.models import ChatRequest, Message, MessagesInput

PromptArgument: TypeAlias = str | Callable[[Mapping[str, Any]], MessagesInput]
"""A template, "Summarise: {text}", or a callable that takes a row, a dict, and returns messages."""

_SHOWN_LENGTH: Final = 200

_MESSAGE: Final = Message(role="user", content="")

_BE_PROMPT: Final = "a callable that takes a row and returns messages"


class Recipe:
    """Makes requests of items, and of rows.

    Args:
        model: model of items that name none.
        prompt: how a row becomes messages, or None where each item is a request by itself.
        system: the system message of items that have none.
        id: the field that identifies a row.
        defaults: fields of the request for items that lack them, by name.

    Attributes:
        model: the checked name of the model, or None.

    Raises:
        InvalidArgumentError: an argument is invalid.
    """

    def __init__(
        self,
        model: str | None = None,
        prompt: PromptArgument | None = None,
        system: str | None = None,
        id: str | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        given = {name: value for name, value in (defaults or {}).items() if value is not None}
        request = construct(
            ChatRequest,
            {"model": "none" if model is None else model, "messages": "checks the other fields", **given},
        )
        self.model: str | None = None if model is None else request.model
        self._system = None if system is None else check_text(system, "system")
        self._id = None if id is None else check_text(id, "id")
        self._defaults: dict[str, Any] = {name: getattr(request, name) for name in given}
        # Text is put into a copy of it, in a tenth of the time of `make_item`. Copies share its values.
        is_plain = model is not None and not any(isinstance(value, list) for value in self._defaults.values())
        self._request = request if is_plain and not request.stream else None
        self._prompt: Template | Callable[[Mapping[str, Any]], MessagesInput] | None = None
        if callable(prompt):
            check_not_async(prompt, "prompt", _BE_PROMPT)
            self._prompt = prompt
        elif isinstance(cast("object", prompt), str):
            self._prompt = Template(cast("str", prompt))
        elif prompt is not None:
            raise refusal("prompt", prompt, f"be a template, or {_BE_PROMPT}", is_type=True)

    @property
    def id(self) -> str | None:
        """The field that identifies a row, or None."""
        return self._id

    def check(self, requests: object) -> None:
        """Check that the template fits a list of rows: that each of its fields is in one of them.

        Raises:
            InvalidArgumentError: it does not.
        """
        if not isinstance(self._prompt, Template) or is_data(requests):
            return
        if not isinstance(requests, list | tuple):
            return
        missing = dict.fromkeys(self._prompt.fields)
        rows = [row for row in map(row_of, cast("list[object]", requests)) if row is not None]
        for row in rows:
            for name in row.keys() & missing.keys():
                del missing[name]
            if not missing:
                return
        if rows:
            name = next(iter(missing))
            first = names_of(rows[0])
            raise InvalidArgumentError(
                f"prompt has the field {name!r}, which no item of requests has; the first has {first}"
            )

    def inspect(
        self, source: DataSource, *, has_journal: bool, counted: Callable[[int], object] | None = None
    ) -> Facts:
        """Read data from end to end before anything is sent; see `inspection`. Blocks.

        Args:
            source: of its rows.
            has_journal: whether there is one, which needs ids.
            counted: called now and then with the number of rows so far.

        Raises:
            InvalidArgumentError: it cannot be read, or this does not fit it.
            OSError: a file cannot be read.
        """
        return inspect(
            source,
            template=self._prompt if isinstance(self._prompt, Template) else None,
            id=self._id,
            is_item=self._prompt is None,
            has_journal=has_journal,
            counted=counted,
        )

    def read(self, raw: object, index: int) -> Item:
        """Parse an item, as the source yielded it; an invalid one is returned with its error."""
        template = self._request
        if self._prompt is None and type(raw) is str and template is not None:
            conversation = [replace(_MESSAGE, content=raw)]
            if self._system is not None:
                conversation.insert(0, replace(_MESSAGE, role="system", content=self._system))
            return Item(index, str(index), replace(template, messages=conversation), None)
        if self._prompt is None or isinstance(raw, InvalidRow):
            return read_item(raw, index, self.model, self._defaults, system=self._system, id=self._id)
        fields = row_of(raw)
        if fields is None:
            must = "be a row, that is a dict, since prompt= is given"
            return Item(index, str(index), None, refusal(place_of(raw, index), raw, must, is_type=True))
        id = str(index)
        try:
            if self._id is not None or isinstance(fields, Again):
                id = item_id(fields, index, self._id)
            messages = self._messages(fields)
        except InvalidArgumentError as error:
            problem = type(error)(f"{place_of(raw, index)}: {error}")
            problem.__cause__ = error.__cause__
            return Item(index, id, None, problem, fields)
        made = {"model": self.model, "messages": messages, **self._defaults}
        return make_item(made, raw, index, id, fields, self._system)

    def _messages(self, row: Mapping[str, Any]) -> MessagesInput:
        prompt = self._prompt
        if isinstance(prompt, Template):
            return prompt.fill(row)
        assert prompt is not None
        try:
            messages = prompt(row)
            check_not_awaitable(messages, "prompt")
        except GatewayError as error:
            raise InvalidArgumentError(str(error)) from error
        except Exception as error:
            text = one_line(redact(str(error)), _SHOWN_LENGTH)
            raise InvalidArgumentError(f"prompt raised {type(error).__name__}: {text}") from error
        return messages
