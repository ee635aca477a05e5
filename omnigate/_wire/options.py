"""Keyword arguments shared by several methods, each defined once in a `TypedDict` that they unpack.

Type checkers and editors read them from there. Python does not, so each method checks the names it was given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypedDict, cast

from omnigate import _homes
from omnigate._wire.arguments import Timeout, check_headers, check_timeout
from omnigate._wire.checks import check_seconds
from omnigate._wire.values import Id, Integer, Number
from omnigate.exceptions import InvalidArgumentTypeError


class CallOptions(TypedDict, total=False):
    """Options that every call accepts.

    Attributes:
        timeout: seconds for each of connect, write, read and waiting for a pooled connection, or an
            `httpx.Timeout`; None for no limit. Replaces the client's.
        deadline_seconds: seconds for all attempts and the waits between them, above 0; then `TimeoutError`.
            None (the default) for no limit.
        extra_headers: headers for this call only; they replace the client's headers of the same name, and
            None leaves one out. A gateway key in them is used in place of `$OMNIGATE_API_KEY`.

    """

    timeout: Timeout
    deadline_seconds: Number | None
    extra_headers: Mapping[str, str | None] | None


class _SamplingParameters(CallOptions, total=False):
    """What both `SamplingOptions` and `ChatDefaults` have."""

    max_tokens: Integer | None
    temperature: Number | None
    top_p: Number | None
    stop: str | Sequence[str] | None
    presence_penalty: Number | None
    frequency_penalty: Number | None
    seed: Integer | None


class SamplingOptions(_SamplingParameters, total=False):
    """Sampling parameters and the user id, with `CallOptions`. None leaves a field to the provider.

    Attributes:
        max_tokens: maximum tokens in the answer, at least 1.
        temperature: 0 to 2.
        top_p: 0 to 1.
        stop: one or more stop sequences.
        presence_penalty: -2 to 2.
        frequency_penalty: -2 to 2.
        seed: a signed 64-bit integer.
        user_id: the end user, replacing the client's; "" for none. At most 255 Latin-1 characters.

    """

    user_id: Id | None


class ChatDefaults(_SamplingParameters, total=False):
    """Parameters of a batch's chats, for items that have none of their own, with `CallOptions`.

    Attributes:
        max_tokens: maximum tokens in the answer, at least 1.
        temperature: 0 to 2.
        top_p: 0 to 1.
        stop: one or more stop sequences.
        presence_penalty: -2 to 2.
        frequency_penalty: -2 to 2.
        seed: a signed 64-bit integer.
        system: the system message, for items without one.
        fallback_models: up to five models to try if the first fails.
        cache: whether to use the gateway's cache; only takes effect with `temperature=0`.

    """

    system: str | None
    fallback_models: Sequence[str] | None
    cache: bool | None


class ChatStreamOptions(SamplingOptions, total=False):
    """Options of `chat_stream`: `SamplingOptions`, and two that must be None.

    Attributes:
        fallback_models: None; the gateway ignores it for streams, so any other value is rejected.
        cache: None, for the same reason.

    """

    fallback_models: None
    cache: None


_CALL_NAMES: Final = CallOptions.__optional_keys__


def check_known(given: Mapping[str, object], kind: type[Any], method: str) -> None:
    """Check that keyword arguments are keys of the `TypedDict` that a method unpacks.

    Args:
        given: the keyword arguments, without those in the method's own signature.
        kind: the `TypedDict`.
        method: the method's name, with its class.

    Raises:
        InvalidArgumentTypeError: some are not.

    """
    names: frozenset[str] = kind.__optional_keys__
    if unknown := given.keys() - names:
        takes = ", ".join(name for name in kind.__annotations__ if name in names)
        raise InvalidArgumentTypeError(
            f"{method}() got an unknown argument {', '.join(map(repr, sorted(unknown)))}; "
            f"it also accepts {takes}"
        )


def check_options(
    options: CallOptions, method: str
) -> tuple[dict[bytes, bytes | None], dict[str, float | None] | None, float | None]:
    """Return a call's extra headers, its transport timeout (None: the client's), and its deadline.

    Raises:
        InvalidArgumentError: an option is invalid, or unknown (then the error names `method`).

    """
    check_known(options, CallOptions, method)
    timeout = check_timeout(options["timeout"]) if "timeout" in options else None
    deadline_seconds = options.get("deadline_seconds")
    if deadline_seconds is not None:
        deadline_seconds = check_seconds(deadline_seconds, "deadline_seconds", otherwise=", or None")
    return check_headers(options.get("extra_headers"), "extra_headers"), timeout, deadline_seconds


def split_options(
    options: SamplingOptions | ChatDefaults, kind: type[Any], method: str
) -> tuple[dict[str, Any], str | None, CallOptions]:
    """Split options into the request's fields, the user id, and the call's options.

    Args:
        options: the method's keyword arguments.
        kind: the `TypedDict` that it unpacks.
        method: the method's name, with its class.

    Raises:
        InvalidArgumentTypeError: some are not in `kind`.

    """
    check_known(options, kind, method)
    fields: dict[str, Any] = {}
    call_options: dict[str, Any] = {}
    for name, value in options.items():
        (call_options if name in _CALL_NAMES else fields)[name] = value
    return fields, fields.pop("user_id", None), cast("CallOptions", call_options)


_homes.settle(__name__)
